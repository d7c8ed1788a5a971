"""Define and make the runs of `rlhfctl reproduce coste`: PPO against an ensemble and against one reward model.

Coste, Anwar, Kirk and Krueger (2023) trained five reward models alike, and optimized a policy against their mean, their
worst score, and their mean less a multiple of their variance, with correct labels and with a quarter of them flipped.
Here gold is the true preference of the built-in task.

    base ──┬─▶ clean-single: reward, card (its pool gives the unit of gold), ppo
           ├─▶ clean-ensemble: reward with `members`
           ├─▶ clean-mean, clean-min, clean-variance: ppo against that ensemble
           └─▶ noisy-...: the same with flipped labels, without the card

Each box is a run folder of its own in FOLDER/seed-SEED. A stage that is complete is skipped, so the same command goes
on after a kill. Leaves out the numbers and what they amount to (ensemble_outcomes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhfctl.events import Event
from rlhfctl.graph import Request
from rlhfctl.tools.reproduce.experiment import Job, carry_out, jobs_of

SINGLE, ENSEMBLE = "single", "ensemble"
AGGREGATES = ("mean", "min", "variance")
ARMS = (SINGLE, *AGGREGATES)
CLEAN, NOISY = "clean", "noisy"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiment. `rows`: pairs that every reward model is trained on; `noise`: share of labels flipped.

    `variance_coefficient`: with scores of mean 0 and variance 1 on the reference's samples (`reward.normalize`).
    """

    rows: int = 750
    members: int = 5
    noise: float = 0.25
    variance_coefficient: float = 0.5
    episodes: int = 3_072
    eval_every: int = 4  # updates
    eval_prompts: int = 256  # one response to each per evaluation
    prompts: int = 48  # of the pool that gives the unit of gold
    samples: int = 16  # per prompt of the pool
    hidden_size: int = 80
    extra: Mapping[str, object] = field(default_factory=dict)  # further keys of the recipe

    @property
    def labels(self) -> dict[str, float]:
        """The share of flipped labels by the name of the setting."""
        return {CLEAN: 0.0, NOISY: self.noise}


SMALL = Sizes(
    rows=60,
    members=2,
    episodes=128,
    eval_every=1,
    eval_prompts=16,
    prompts=8,
    samples=8,
    hidden_size=40,
    extra={
        "model.init.num_hidden_layers": 2,
        "model.init.vocab_size": 512,
        "data.demonstrations.rows": 1_000,
        "data.prompts.rows": 120,
        "data.prompts.test": 8,
        "ppo.per_device_train_batch_size": 32,
    },
)
"""Sizes that only try the command: two minutes, and no result of interest."""


def run_name(labels: str, arm: str) -> str:
    """Return the name of the run of one arm with `labels` clean or noisy."""
    return f"{labels}-{arm}"


def jobs(seed: int, folder: Path, sizes: Sizes) -> Iterator[Job]:
    """List the commands for one seed, in order; `folder`: that of the seed."""

    shared: dict[str, object] = {
        "model.init.hidden_size": sizes.hidden_size,
        "data.preferences.rows": sizes.rows,
        "data.prompts.eval": sizes.eval_prompts,
        "reward.normalize": "reference",
        "reward.card": f"{{prompts: {sizes.prompts}, samples: {sizes.samples}}}",
        "ppo.kl_coef": 0,
        "ppo.total_episodes": sizes.episodes,
        "ppo.eval.every": sizes.eval_every,
    }
    job = jobs_of("coste", seed, shared | dict(sizes.extra))
    base = {"base": str(folder / "base" / "sft")}
    yield job("base", Request(until="sft"))
    for labels, noise in sizes.labels.items():
        flipped = {"data__preferences__label_noise": noise}
        for stage in ("reward", "card", "ppo") if labels == CLEAN else ("reward", "ppo"):
            yield job(run_name(labels, SINGLE), Request(only=stage, external=base), **flipped)
        several = flipped | {"reward__members": sizes.members}
        yield job(run_name(labels, ENSEMBLE), Request(only="reward", external=base), **several)
        ensemble = {"reward": str(folder / run_name(labels, ENSEMBLE) / "reward")}
        for how in AGGREGATES:
            reading: dict[str, object] = {} if how == "mean" else {"reward__aggregate": how}
            if how == "variance":
                reading["reward__variance_coefficient"] = sizes.variance_coefficient
            yield job(run_name(labels, how), Request(only="ppo", external=base | ensemble), **several, **reading)


def make(
    folder: Path, seeds: list[int], sizes: Sizes, listen: Callable[[Event], None], say: Callable[[str], None]
) -> None:
    """Make all runs that are not complete yet, one seed after the other."""
    todo = [(seed, job) for seed in seeds for job in jobs(seed, folder / f"seed-{seed}", sizes)]
    for number, (seed, job) in enumerate(todo, 1):
        say(f"{number} of {len(todo)}: seed {seed}, {job.name}, {job.request.only or job.request.until}")
        carry_out(job, folder / f"seed-{seed}" / job.name, listen)
