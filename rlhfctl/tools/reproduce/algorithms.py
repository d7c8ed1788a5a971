"""Define and make the runs of `rlhfctl reproduce rloo`: the algorithms of `ppo.algorithm`, DPO and best of n.

Ahmadian et al. (2024) compared PPO, REINFORCE and REINFORCE leave-one-out (RLOO) with DPO and RAFT. Here all algorithms
get the same base, the same reward model and the same number of sampled responses. Gold is the true preference of the
built-in task.

    base ──┬─▶ reward: reward, card      its pool of samples is the best of n, and gives the unit of gold
           ├─▶ ppo, a2c, reinforce, ...  one run per algorithm, against that reward model
           └─▶ dpo-BETA                  on the pairs that the reward model was trained on

Each box is a run folder of its own in FOLDER/seed-SEED. The policy that a run ends with then answers the eval prompts
several times (policies.py). A stage that is complete is skipped, so the same command goes on after a kill.

The step sizes are those of CHOSEN: the best of as many for each algorithm, on a seed that is in no result
(algorithm_choice.py). Leaves out the numbers and what they amount to (algorithm_outcomes.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhfctl.events import Event
from rlhfctl.graph import Request
from rlhfctl.tools.reproduce.experiment import Job, carry_out, jobs_of
from rlhfctl.tools.reproduce.policies import Policy, measure_all

PPO, A2C, REINFORCE, RLOO_2, RLOO_4, DPO = "ppo", "a2c", "reinforce", "rloo-2", "rloo-4", "dpo"
BASE, REWARD = "base", "reward"  # names of runs


@dataclass(frozen=True)
class Algorithm:
    """An algorithm that learns from responses of its own: its keys of `ppo`, and the step sizes to choose from.

    `step`: the key of `ppo` that sets how far an update moves the policy. Other keys are those of the recipe.
    """

    keys: Mapping[str, object]
    step: str = "learning_rate"
    steps: tuple[float, float, float] = (1e-3, 3e-3, 1e-2)


ALGORITHMS: Mapping[str, Algorithm] = {
    PPO: Algorithm({"algorithm": "ppo"}),
    A2C: Algorithm({"algorithm": "a2c"}),
    REINFORCE: Algorithm({"algorithm": "reinforce"}),
    RLOO_2: Algorithm({"algorithm": "rloo", "num_generations": 2}),
    RLOO_4: Algorithm({"algorithm": "rloo", "num_generations": 4}),
    "grpo": Algorithm({"algorithm": "grpo", "num_generations": 4}),
    "trpo": Algorithm({"algorithm": "trpo", "trpo.cg_max_steps": 5}, "trpo.max_kl", (3e-3, 1e-2, 3e-2)),
    "nlpo": Algorithm({"algorithm": "nlpo", "nlpo.top_mask": 0.98, "nlpo.target_update_iterations": 10}),
}
"""All algorithms of `ppo.algorithm`. The step of `trpo` has no learning rate: its critic keeps that of the recipe.

`trpo` takes half of the default steps of conjugate gradient, for time. With its default mask `nlpo` went far from the
reference, so the mask is the one that docs/algorithms.md measures.
"""

DPO_RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates of DPO to choose from: as many as step sizes of each of ALGORITHMS."""

CHOSEN: Mapping[str, float] = {
    PPO: 3e-3,
    A2C: 3e-3,
    REINFORCE: 1e-2,
    RLOO_2: 3e-3,
    RLOO_4: 3e-3,
    "grpo": 1e-3,
    "trpo": 1e-2,
    "nlpo": 3e-3,
    DPO: 3e-4,
}
"""The step size of each algorithm: what `rlhfctl reproduce rloo --choose` found best."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiment. `rows`: pairs that the reward model and DPO are trained on.

    `kl_coef`: with scores of variance 1 on the reference's samples (`reward.normalize`).
    """

    rows: int = 2_500
    episodes: int = 1_536
    batch: int = 64
    kl_coef: float = 0.1
    eval_every: int = 6  # updates
    eval_prompts: int = 128  # one response to each per evaluation
    answers: int = 4  # to each eval prompt, by the reference and by each policy at the end
    beta: float = 0.1  # of DPO
    prompts: int = 48  # of the pool of best of n
    samples: int = 32  # per prompt of the pool
    hidden_size: int = 80
    layers: int = 2
    demonstrations: int = 3_000
    extra: Mapping[str, object] = field(default_factory=dict)  # further keys of the recipe

    @property
    def updates(self) -> int:
        """Updates of each algorithm that samples."""
        return math.ceil(self.episodes / self.batch)


SMALL = Sizes(
    rows=120,
    episodes=128,
    batch=32,
    eval_every=1,
    eval_prompts=16,
    answers=2,
    prompts=8,
    samples=8,
    hidden_size=40,
    demonstrations=1_000,
    extra={"model.init.vocab_size": 512, "data.prompts.rows": 120, "data.prompts.test": 8},
)
"""Sizes that only try the command: minutes, and no result of interest."""


class Jobs:
    """The commands of one seed. `folder`: that of the seed."""

    def __init__(self, seed: int, folder: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        shared: dict[str, object] = {
            "model.init.hidden_size": sizes.hidden_size,
            "model.init.num_hidden_layers": sizes.layers,
            "data.demonstrations.rows": sizes.demonstrations,
            "data.preferences.rows": sizes.rows,
            "data.preferences.label_noise": 0,
            "data.prompts.eval": sizes.eval_prompts,
            "reward.normalize": "reference",
            "reward.card": f"{{prompts: {sizes.prompts}, samples: {sizes.samples}}}",
        }
        rl: dict[str, object] = {
            "ppo.kl_coef": sizes.kl_coef,
            "ppo.total_episodes": sizes.episodes,
            "ppo.per_device_train_batch_size": sizes.batch,
            "ppo.eval.every": sizes.eval_every,
            "ppo.trace_every": 0,
        }
        self._offline = jobs_of("rloo", seed, shared | dict(sizes.extra))
        self._online = jobs_of("rloo", seed, shared | rl | dict(sizes.extra))
        self._base = {"base": str(folder / BASE / "sft")}
        self._reward = {"reward": str(folder / REWARD / "reward")}

    def shared(self) -> Iterator[Job]:
        """List the commands for what all algorithms begin with."""
        yield self._online(BASE, Request(until="sft"))
        for stage in ("reward", "card"):
            yield self._online(REWARD, Request(only=stage, external=self._base))

    def online(self, name: str, algorithm: str, step: float) -> Job:
        """Return the command that trains one algorithm of ALGORITHMS with a step size against the reward model."""
        of = ALGORITHMS[algorithm]
        keys = {f"ppo__{key}": value for key, value in {**of.keys, of.step: step}.items()}
        request = Request(only="ppo", external=self._base | self._reward)
        return self._online(name, request, **keys)

    def dpo(self, name: str, beta: float, rate: float) -> Job:
        """Return the command that trains DPO on the pairs: one pass over them, 32 at once."""
        trainer = f"{{num_train_epochs: 1, learning_rate: {rate}, per_device_train_batch_size: 32}}"
        section = f"{{beta: {beta}, trainer: {trainer}}}"
        return self._offline(name, Request(only="dpo", external=self._base), ppo="null", dpo=section)


def dpo_name(beta: float) -> str:
    """Return the name of the run of DPO with this beta."""
    return f"{DPO}-{beta:g}"


def jobs(seed: int, folder: Path, sizes: Sizes) -> Iterator[Job]:
    """List the commands for one seed, in order; `folder`: that of the seed."""
    of = Jobs(seed, folder, sizes)
    yield from of.shared()
    for algorithm in ALGORITHMS:
        yield of.online(algorithm, algorithm, CHOSEN[algorithm])
    yield of.dpo(dpo_name(sizes.beta), sizes.beta, CHOSEN[DPO])


def policies(todo: list[Job]) -> list[Policy]:
    """Return the policies that the commands train."""
    return [Policy(job.name, job.request.only) for job in todo if job.request.only in ("ppo", "dpo")]


def make(
    folder: Path, seeds: list[int], sizes: Sizes, listen: Callable[[Event], None], say: Callable[[str], None]
) -> None:
    """Make all runs that are not complete yet, one seed after the other, and measure their policies."""
    each = {folder / f"seed-{seed}": list(jobs(seed, folder / f"seed-{seed}", sizes)) for seed in seeds}

    def measure(of_seed: Path) -> None:
        measure_all(of_seed / BASE, of_seed / REWARD / "reward", policies(each[of_seed]), sizes.answers, listen, say)

    carry_out_in_turn(each, listen, say, measure)


def carry_out_in_turn(
    each: Mapping[Path, list[Job]],
    listen: Callable[[Event], None],
    say: Callable[[str], None],
    then: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Give the commands of each seed, by its folder, and call `then` with the folder when they are complete."""
    total, number = sum(map(len, each.values())), 0
    for folder, todo in each.items():
        for job in todo:
            number += 1
            say(f"{number} of {total}: {folder.name}, {job.name}, {job.request.only or job.request.until}")
            carry_out(job, folder / job.name, listen)
        then(folder)
