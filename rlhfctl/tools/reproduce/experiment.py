"""Define and make the runs of `rlhfctl reproduce gao`: reward over-optimization on the built-in task, over seeds.

Gao, Schulman and Hilton (2022) trained reward models (proxies) on labels of a larger one (gold) and optimized a policy
against each proxy, by best of n and by PPO. Coste et al. (2023) did so with ensembles. Here the gold scorer is the
true preference of the built-in task, and a proxy's size is the number of pairs that it is trained on.

    base ──┬─▶ rm-ROWS: reward, ppo with kl_coef 0           one per size of the proxy
           │   rm-MIDDLE: also card, whose pool of samples is the best of n of all proxies
           ├─▶ member-K: reward                              the ensemble
           └─▶ penalty: ppo with kl_coef above 0, against rm-MIDDLE
    small ───▶ a smaller base, ppo against rm-MIDDLE

Each box is a run folder of its own in FOLDER/seed-SEED. Every proxy and every member of the ensemble then scores the
pool. A stage that is complete is skipped, so the same command goes on after a kill. Leaves out the numbers (curves.py)
and what they amount to (statements.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhfctl import fs, pipeline
from rlhfctl.artifacts import load_artifact, read_json
from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.events import Event, FanOut
from rlhfctl.graph import Request
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe

RECIPE = "quickstart"
PENALTY, SMALL_POLICY = "penalty", "small"  # names of runs
SCORES = "scores.json"  # in the run folder of a proxy or a member of the ensemble: its scores of the pool


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiment. `rows`: pairs of each proxy, in rising order; the middle one is the reference proxy."""

    rows: tuple[int, ...] = (250, 750, 2250)
    members: int = 4  # further reward models, trained like the middle one from other first weights: five in all
    label_noise: float = 0.25  # share of labels that are flipped, as in Coste et al.
    episodes: int = 4_096
    eval_every: int = 2  # updates
    eval_prompts: int = 256  # one response to each per evaluation
    penalty: float = 0.03  # kl_coef of the run with a KL penalty
    prompts: int = 48  # of the pool
    samples: int = 256  # per prompt of the pool
    hidden_size: int = 160
    small_hidden_size: int = 80
    extra: Mapping[str, object] = field(default_factory=dict)  # further keys of the recipe

    @property
    def middle(self) -> int:
        """The number of pairs of the reference proxy."""
        return self.rows[len(self.rows) // 2]


SMALL = Sizes(
    rows=(60, 120, 240),
    members=1,
    episodes=256,
    eval_every=1,
    eval_prompts=32,
    prompts=8,
    samples=16,
    hidden_size=80,
    small_hidden_size=40,
    extra={
        "model.init.num_hidden_layers": 2,
        "model.init.vocab_size": 512,
        "data.demonstrations.rows": 2_000,
        "data.prompts.rows": 120,
        "data.prompts.test": 8,
        "ppo.per_device_train_batch_size": 32,
    },
)
"""Sizes that only try the command: minutes, and no result of interest."""


@dataclass(frozen=True)
class Job:
    """One command on one run folder: `name` is the folder within that of the seed."""

    name: str
    overrides: tuple[str, ...]
    request: Request


def jobs_of(experiment: str, seed: int, shared: Mapping[str, object]) -> Callable[..., Job]:
    """Return job(name, request, **changes), which makes the jobs of one seed; their data are of that seed, too.

    `shared`: keys of the recipe that all of them have. A change wins over these; its name has __ where a key has a dot.
    """

    def job(name: str, request: Request, **changes: object) -> Job:
        values: dict[str, object] = {
            "name": f"{experiment}-{seed}-{name}",
            "seed": seed,
            "data_seed": seed,
            "report_to": "[]",
        }
        values |= dict(shared) | {key.replace("__", "."): value for key, value in changes.items()}
        return Job(name, tuple(f"{key}={value}" for key, value in values.items()), request)

    return job


def jobs(seed: int, folder: Path, sizes: Sizes) -> Iterator[Job]:
    """List the commands for one seed, in order; `folder`: that of the seed."""

    shared: dict[str, object] = {
        "model.init.hidden_size": sizes.hidden_size,
        "data.preferences.rows": sizes.middle,
        "data.preferences.label_noise": sizes.label_noise,
        "reward.card": f"{{prompts: {sizes.prompts}, samples: {sizes.samples}}}",
        "ppo.kl_coef": 0,
        "ppo.total_episodes": sizes.episodes,
        "ppo.eval.every": sizes.eval_every,
        "data.prompts.eval": sizes.eval_prompts,
    }
    job = jobs_of("gao", seed, shared | dict(sizes.extra))

    base = {"base": str(folder / "base" / "sft")}
    proxy = {"reward": str(folder / proxy_name(sizes.middle) / "reward")}
    yield job("base", Request(until="sft"))
    for rows in sizes.rows:
        for stage in ("reward", "card", "ppo") if rows == sizes.middle else ("reward", "ppo"):
            yield job(proxy_name(rows), Request(only=stage, external=base), data__preferences__rows=rows)
    for member in range(1, sizes.members + 1):  # other first weights and order, the same pairs
        yield job(member_name(member), Request(only="reward", external=base), seed=seed + 1_000 * member)
    yield job(PENALTY, Request(only="ppo", external=base | proxy), ppo__kl_coef=sizes.penalty)
    small = {"model__init__hidden_size": sizes.small_hidden_size}
    yield job(SMALL_POLICY, Request(until="sft"), **small)
    yield job(SMALL_POLICY, Request(only="ppo", external=proxy), **small)


def proxy_name(rows: int) -> str:
    """Return the name of the run with the proxy that is trained on `rows` pairs."""
    return f"rm-{rows}"


def member_name(number: int) -> str:
    """Return the name of the run with a further member of the ensemble, 1, 2, ..."""
    return f"member-{number}"


def make(
    folder: Path, seeds: list[int], sizes: Sizes, listen: Callable[[Event], None], say: Callable[[str], None]
) -> None:
    """Make all runs that are not complete yet, one seed after the other."""
    each = {seed: list(jobs(seed, folder / f"seed-{seed}", sizes)) for seed in seeds}
    total, number = sum(map(len, each.values())), 0
    for seed, todo in each.items():
        for job in todo:
            number += 1
            say(f"{number} of {total}: seed {seed}, {job.name}, {job.request.only or job.request.until}")
            carry_out(job, folder / f"seed-{seed}" / job.name, listen)
        _score_pool(folder / f"seed-{seed}", sizes, say)


def pool_file(folder: Path, sizes: Sizes) -> Path:
    """Return the pool of samples of the reference, which the middle proxy's card draws; `folder`: that of the seed."""
    return folder / proxy_name(sizes.middle) / "card" / "pool.jsonl"


def members(sizes: Sizes) -> list[str]:
    """Return the names of the runs whose reward models are the ensemble; the middle proxy is the first."""
    return [proxy_name(sizes.middle), *(member_name(number) for number in range(1, sizes.members + 1))]


def _score_pool(folder: Path, sizes: Sizes, say: Callable[[str], None]) -> None:
    """Let each proxy and each member of the ensemble score the pool as text, in the order of its rows."""
    from rlhfctl.tools.score import score_responses

    pool = pool_file(folder, sizes)
    of_pool = fs.hash_file(pool)
    for name in dict.fromkeys([*map(proxy_name, sizes.rows), *members(sizes)]):
        file = folder / name / SCORES
        of = [of_pool, load_artifact(folder / name / "reward").fingerprint]
        if file.is_file() and read_json(file)["of"] == of:
            continue
        say(f"{folder.name}: {name} scores the pool")
        rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
        scores = score_responses(folder / name, [(row["prompt"], row["response"]) for row in rows])
        fs.write_json(file, {"of": of, "scores": scores})


def carry_out(job: Job, run: Path, listen: Callable[[Event], None]) -> None:
    """Give the command of a job on its run folder; stages that are complete are skipped."""
    loaded = load_recipe(RECIPE, job.overrides)
    paths = RunPaths(run)
    with fs.RunLock(paths.lock), JsonlWriter(paths.events) as writer, fs.report_full_disk(run):
        pipeline.run(loaded, run, job.request, FanOut([writer, listen]))
