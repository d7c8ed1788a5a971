"""Gather the measures of a sweep's combinations over their seeds, and choose the best setting by the eval prompts.

Reads the sweep's record and its run folders; writes nothing. The choice uses what PPO measured on the eval prompts: the
held-out reward or, without one, the reward itself, among the settings within the KL limit. Test prompts and gold have
no part in it. Leaves out figures and sentences (report/sweep.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhfctl import stage_order
from rlhfctl.artifacts import MANIFEST, Manifest
from rlhfctl.paths import RECIPE, StageId
from rlhfctl.recipe.load import outline
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Run
from rlhfctl.stats.scaling import over_seeds
from rlhfctl.sweeping import Combination, Sweep, read_sweep

HELDOUT, SCORE, GOLD, KL, LENGTH = "eval_heldout", "eval_score", "eval_gold", "eval_kl", "eval_length"
MEASURES = (HELDOUT, SCORE, GOLD, KL, LENGTH)
"""Metrics of PPO on the eval prompts, of the policy that it leaves; `eval_kl` in nats per response."""

CHOOSES = (HELDOUT, SCORE)
"""The measures that may choose: the first that all settings have."""

# What a measure is taken with, so that it is on one scale: parents, inputs and keys of the ppo stage.
_PROMPTS = ("data.prompts", "data.prompt_lengths")
_SCALES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    HELDOUT: (("heldout",), _PROMPTS, ()),
    SCORE: (
        ("reward",),
        (*_PROMPTS, "functions", "reward.label", "reward.aggregate", "reward.unit_tests"),
        ("rewards",),
    ),
}


@dataclass(frozen=True)
class Estimate:
    """A measure of one setting: its mean over seeds, with a 95% interval (Student's t) from two seeds on."""

    mean: float
    interval: tuple[float, float] | None
    by_seed: Mapping[str, float]

    @classmethod
    def of(cls, by_seed: Mapping[str, float]) -> Estimate:
        """Make the estimate of one number per seed."""
        values = list(by_seed.values())
        if len(values) < 2:
            return cls(values[0], None, by_seed)
        mean, interval = over_seeds(values)
        return cls(mean, (interval.low, interval.high), by_seed)


@dataclass(frozen=True)
class Setting:
    """One combination: its run, once it has begun, and its measures, once PPO is complete for every seed."""

    combination: Combination
    run: Run | None
    complete: bool = False  # every stage of its recipe
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    scales: Mapping[str, object] = field(default_factory=dict)  # measure -> what it was taken with

    @property
    def label(self) -> str:
        return self.combination.folder


@dataclass(frozen=True)
class Choice:
    """The best setting by the eval prompts, or why there is none. `tried`: settings that were compared."""

    measure: str = ""
    tried: int = 0
    allowed: int = 0  # of these, within the KL limit
    best: Setting | None = None
    second: Setting | None = None
    lead: Estimate | None = None  # of the best over the second: the mean of the differences, seed by seed
    why_not: str = ""


@dataclass(frozen=True)
class Facts:
    """What a sweep's folder holds."""

    path: Path
    sweep: Sweep
    settings: Sequence[Setting]
    choice: Choice

    @property
    def runs(self) -> list[tuple[str, Run]]:
        """The runs that have begun, with their labels."""
        return [(setting.label, setting.run) for setting in self.settings if setting.run is not None]


def gather_sweep(folder: Path) -> Facts:
    """Read a sweep's folder; RlhfctlError if its record cannot be read."""
    sweep = read_sweep(folder)
    settings = [_setting(one, folder / one.folder) for one in sweep.combinations]
    return Facts(folder, sweep, settings, choose(settings, sweep.kl_limit))


def _setting(one: Combination, folder: Path) -> Setting:
    if not (folder / RECIPE).is_file():
        return Setting(one, None)
    run = gather(folder)
    stages = stage_order.in_order(outline(folder / RECIPE))
    complete = all((folder / str(stage) / MANIFEST).is_file() for stage in stages)
    made = _last_ppo(run)
    expected = {f"seed {seed}" for seed in (run.recipe.get("seeds") or {}).get("values") or ()} or {""}
    if set(made) != expected:
        return Setting(one, run, complete)
    known = [name for name in MEASURES if all(name in manifest.metrics for manifest in made.values())]
    measures = {name: Estimate.of({seed: made[seed].metrics[name] for seed in made}) for name in known}
    return Setting(one, run, complete, measures, {name: _scale(name, made) for name in CHOOSES})


def _last_ppo(run: Run) -> dict[str, Manifest]:
    """Return the manifest of the complete ppo stage of each seed, that of the last round."""
    found: dict[str, Manifest] = {}
    for stage in sorted(run.of_kind("ppo"), key=lambda stage: StageId.parse(stage.name)):
        if stage.manifest is not None:
            found[stage.seed] = stage.manifest
        else:
            found.pop(stage.seed, None)
    return found


def _scale(measure: str, made: Mapping[str, Manifest]) -> object:
    """Return what a measure was taken with, by seed: settings are comparable where it is equal."""
    parents, inputs, keys = _SCALES[measure]
    return {
        seed: (
            [manifest.parents[role].fingerprint for role in parents if role in manifest.parents],
            [manifest.inputs.get(name) for name in inputs],
            [manifest.section.get(key) for key in keys],
        )
        for seed, manifest in made.items()
    }


def choose(settings: Sequence[Setting], kl_limit: float | None) -> Choice:
    """Choose the setting with the highest measure among those whose mean KL is within the limit."""
    measured = [setting for setting in settings if KL in setting.measures]
    measure = next((name for name in CHOOSES if measured and all(name in one.measures for one in measured)), None)
    if measure is None:
        return Choice(why_not="no setting was measured on eval prompts by PPO (`ppo.eval.every`, `data.prompts.eval`)")
    if any(one.scales[measure] != measured[0].scales[measure] for one in measured):
        what = "held-out reward model" if measure == HELDOUT else "reward"
        return Choice(measure, len(measured), why_not=f"the settings differ in their {what} or in their eval prompts, "
                      "so their scores are on different scales")  # fmt: skip
    allowed = [one for one in measured if kl_limit is None or one.measures[KL].mean <= kl_limit]
    ranked = sorted(allowed, key=lambda one: -one.measures[measure].mean)
    if not ranked:
        return Choice(measure, len(measured), why_not="no setting is within the KL limit")
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    lead = None
    if second is not None:
        ours, theirs = best.measures[measure].by_seed, second.measures[measure].by_seed
        lead = Estimate.of({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs})
    return Choice(measure, len(measured), len(allowed), best, second, lead)
