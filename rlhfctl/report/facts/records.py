"""Define the records that a report is made from: what one run left, as plain data.

Pure. `gather.py` fills the records from a run folder; the figures and the pages read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import Manifest
from rlhfctl.verdict import BEST_OF_N, COLDER, FAIR, MATCHED

Point = tuple[int, float]
"""A step and the value of a metric there."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its state, its record once it is complete, and the metrics that it reported."""

    name: str  # its folder inside the run, and its name in events: ppo, round-2/ppo, seed-1/ppo
    state: str  # complete, under way, not started
    manifest: Manifest | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # effective, of its last start
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)  # of metrics that steps reported
    measured: Mapping[str, float] = field(default_factory=dict)  # after training: heldout and test metrics
    seconds: float | None = None
    peak_memory: int | None = None  # bytes

    @property
    def kind(self) -> str:
        """What the stage does: `ppo` for `seed-1/ppo`."""
        return self.name.rpartition("/")[2]

    @property
    def seed(self) -> str:
        """The seed that the stage belongs to where a run has several: `seed 1`; empty for a stage that all share."""
        parts = [part for part in self.name.split("/") if part.startswith("seed-")]
        return parts[0].replace("-", " ") if parts else ""

    @property
    def place(self) -> str:
        """Its name without the seed: stages of one place are drawn together."""
        return "/".join(part for part in self.name.split("/") if not part.startswith("seed-"))


@dataclass(frozen=True)
class Alarm:
    """A sentence of the alarms, with the first and the last step at which it held."""

    stage: str
    sentence: str
    first: int
    last: int
    holds: bool  # at the stage's last report
    causes: str = ""


@dataclass(frozen=True)
class Judged:
    """A judge's numbers about policy and reference on the same prompts. Intervals are 95%."""

    judge: str
    win_rate: float
    win_rate_ci: tuple[float, float] | None
    delta: float | None
    delta_ci: tuple[float, float] | None
    verdict: str = ""
    independent: bool | None = None
    policy_mean: float | None = None
    reference_mean: float | None = None
    ties: int | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    effect_size: float | None = None
    effect_size_ci: tuple[float, float] | None = None
    length_controlled: float | None = None  # win rate
    length_controlled_ci: tuple[float, float] | None = None
    prompts_to_settle: int | None = None


@dataclass(frozen=True)
class Control:
    """The comparison under a condition that a cheap explanation would win."""

    name: str
    kind: str
    temperature: float | None
    judges: Mapping[str, Judged]

    @property
    def fair(self) -> bool:
        """Whether both sides are sampled alike, so that the verdict needs a win here."""
        return self.kind in FAIR

    @property
    def label(self) -> str:
        """Its name for people, with the temperature that was found."""
        if self.kind == MATCHED and self.temperature is not None:
            return f"{self.name} (reference at {self.temperature:.2g})"
        return self.name

    @property
    def role(self) -> str:
        """What the verdict makes of it, in a few words."""
        if self.fair:
            return "fair: both sides alike"
        return {COLDER: "reference colder", BEST_OF_N: "reference, best of n"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Pair:
    """One prompt's response of the policy beside that of the reference, with each judge's scores."""

    prompt: str
    sample: int
    policy: str
    reference: str
    policy_scores: Mapping[str, float]
    reference_scores: Mapping[str, float]
    policy_length: float
    reference_length: float
    policy_ended: bool | None = None
    reference_ended: bool | None = None
    source: str = ""  # the data source, where the row names it
    seed: str = ""

    def change(self, judge: str) -> float | None:
        """Return by how much the judge scores the policy's response higher; None where a score is missing."""
        policy, reference = self.policy_scores.get(judge), self.reference_scores.get(judge)
        return None if policy is None or reference is None else policy - reference


@dataclass(frozen=True)
class Comparison:
    """The verdict of one compare stage, or of all seeds together, and the numbers under it."""

    stage: str
    verdict: str
    sentence: str
    primary: str
    judges: Mapping[str, Judged]
    controls: Sequence[Control] = ()
    prompts: int | None = None
    samples_per_prompt: int | None = None
    temperature: float | None = None
    kl: float | None = None  # nats per response
    facts: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)  # policy, reference
    endpoint: Mapping[str, Any] | None = None
    unaltered: bool | None = None  # the files are as their stage left them; None: not checked

    @property
    def main(self) -> Judged:
        """The primary judge's numbers in the main comparison."""
        return self.judges[self.primary]

    @property
    def fair(self) -> list[Control]:
        """The fair controls that the primary judge has scored."""
        return [control for control in self.controls if control.fair and self.primary in control.judges]

    @property
    def lowest(self) -> Control | None:
        """The fair control with the policy's lowest win rate; None without fair controls."""
        return min(self.fair, key=lambda control: control.judges[self.primary].win_rate, default=None)

    @property
    def colder_wins(self) -> list[Control]:
        """The colder references that beat the policy."""
        rows = (control for control in self.controls if control.kind == COLDER and self.primary in control.judges)
        return [control for control in rows if control.judges[self.primary].verdict == "worse"]


@dataclass(frozen=True)
class SeedResult:
    """One seed's result by the primary judge."""

    seed: str
    judged: Judged
    kl: float | None = None


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    path: Path
    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    stages: Sequence[Stage]
    warnings: Sequence[tuple[str, str]] = ()  # stage, message
    alarms: Sequence[Alarm] = ()
    comparison: Comparison | None = None  # of all seeds where there are several
    by_seed: Sequence[SeedResult] = ()
    pairs: Sequence[Pair] = ()
    card: Mapping[str, Any] | None = None  # the reward model's
    prompts: Sequence[tuple[str, Mapping[str, Any]]] = ()  # seed ("" for one), and its prompts.json
    traces: Sequence[Mapping[str, Any]] = ()
    stopped: str = ""  # why the last command ended early

    @property
    def finished(self) -> bool:
        """Tell whether every stage is complete."""
        return bool(self.stages) and all(stage.state == "complete" for stage in self.stages)

    def of_kind(self, kind: str) -> list[Stage]:
        """List the stages of one kind: of all rounds and seeds."""
        return [stage for stage in self.stages if stage.kind == kind]
