"""`rlhfctl tokens`: find a traced episode of a run, and say clearly what there is where it is not there.

Reads traces, manifests, events.jsonl and, to explain why there is no trace, the recipe; loads no model and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhfctl.dashboard import explain, traces
from rlhfctl.dashboard.formulas import Step
from rlhfctl.errors import RlhfctlError
from rlhfctl.paths import RunPaths, StageId
from rlhfctl.recipe.load import outline
from rlhfctl.sweeping import require_run


@dataclass(frozen=True)
class Episode:
    """One traced episode, with the others of its update and the settings of its stage."""

    run: Path
    stage: str
    record: dict[str, Any]
    others: list[dict[str, Any]]  # all traced episodes of the update, this one included
    settings: dict[str, Any]

    @property
    def rows(self) -> list[traces.TokenRow]:
        """The numbers of the episode, one row per token."""
        return traces.token_rows(self.record)


def find(run: Path, stage: str | None, update: int | None, episode: int | None) -> Episode:
    """Find an episode: by default the first one of the last traced update of the run's first ppo stage."""
    stage = choose_stage(run, stage)
    updates = traces.traced_updates(run, stage)
    if not updates:
        raise _no_trace(run, stage)
    if update is not None and update not in updates:
        raise RlhfctlError(
            f"update {update} is not traced", where=str(run / stage), fix=f"traced are: {_listed(updates)}"
        )
    found = traces.read_episodes(run, stage, updates[-1] if update is None else update)
    numbers = [record["episode"] for record in found]
    wanted = numbers[0] if episode is None else episode
    if wanted not in numbers:
        raise RlhfctlError(
            f"episode {wanted} of update {found[0]['update']} is not traced",
            where=str(run / stage),
            fix=f"traced are: {_listed(numbers)}; ppo.trace_episodes says how many are",
        )
    return Episode(run, stage, found[numbers.index(wanted)], found, traces.stage_settings(run, stage))


def choose_stage(run: Path, stage: str | None) -> str:
    """Return the ppo stage that is asked for, or the first one of the last round; RlhfctlError where there is none."""
    require_run(run)
    stages = traces.ppo_stages(run)
    if stage is not None and stage not in stages:
        raise RlhfctlError(
            f"there is no stage {stage!r} that trains with PPO",
            where=str(run),
            fix=f"there are: {', '.join(stages)}" if stages else f"run it first: rlhfctl run RECIPE --run-dir {run}",
        )
    if not stages:
        raise RlhfctlError(
            "no stage of this run has trained with PPO yet",
            where=str(run),
            fix=f"run it first: rlhfctl run RECIPE --run-dir {run} --until ppo",
        )
    last = max(StageId.parse(one).round for one in stages)
    return next(one for one in stages if StageId.parse(one).round == last) if stage is None else stage


def _no_trace(run: Path, stage: str) -> RlhfctlError:
    """Make the error that says why a stage has no trace: its engine, its settings, or that it has only begun."""
    settings = traces.stage_settings(run, stage)
    if not settings:
        section = outline(RunPaths(run).recipe).ppo
        settings = section.model_dump(mode="json") if section is not None else {}
    every = settings.get("trace_every")
    total, size = settings.get("total_episodes", 0), settings.get("per_device_train_batch_size", 1)
    updates = -(-total // (size * settings.get("gradient_accumulation_steps", 1)))
    again = "set ppo.trace_every: {} and run the stage again"
    if settings.get("engine") == "trl":
        return RlhfctlError("TRL's engine writes no traces", where=str(run / stage), fix="use ppo.engine: rlhfctl")
    if not every:
        return RlhfctlError("ppo.trace_every is 0: nothing was traced", where=str(run / stage), fix=again.format(1))
    if updates < every:
        what = f"every {every} updates one is traced (ppo.trace_every), but the stage has only {updates}"
        return RlhfctlError(what, where=str(run / stage), fix=again.format(max(1, updates // 4)))
    what = f"nothing is traced yet: the first trace is that of update {every}"
    return RlhfctlError(what, where=str(run / stage), fix="wait for it, or set a lower ppo.trace_every")


def list_traces(run: Path, stage: str | None) -> list[dict[str, Any]]:
    """List the traced updates of one ppo stage, or of all: means over the episodes that are traced."""
    first = choose_stage(run, stage)
    stages = [first] if stage is not None else traces.ppo_stages(run)
    found = []
    for name in stages:
        for update in traces.traced_updates(run, name):
            episodes = traces.read_episodes(run, name, update)
            found.append(
                {
                    "stage": name,
                    "update": update,
                    "episodes": len(episodes),
                    "score": _mean([one["score"] for one in episodes]),
                    "kl": _mean([sum(one["kl"]) for one in episodes]),
                    "length": _mean([len(one["ids"]) for one in episodes]),
                }
            )
    if not found:
        raise _no_trace(run, first)
    return found


def explained(episode: Episode, position: int | None) -> tuple[traces.TokenRow, list[Step]]:
    """Explain one position of an episode: by default its last token. RlhfctlError where it is beyond the response."""
    rows = episode.rows
    if not explain.can_explain(episode.record):
        raise RlhfctlError(
            "this trace has neither a critic's values nor a baseline: there is no formula of the advantages to explain",
            where=str(episode.run / episode.stage),
            fix="leave out --explain",
        )
    at = len(episode.record["ids"]) - 1 if position is None else position
    if not 0 <= at < len(rows):
        raise RlhfctlError(
            f"the response has no position {at}", where="--token", fix=f"positions are 0 to {len(rows) - 1}"
        )
    return rows[at], explain.explain(episode.record, episode.settings, at)


def losses(episode: Episode) -> explain.Losses:
    """Add up the losses of the episode's update from its trace, beside the logged ones."""
    logged = traces.logged_metrics(episode.run, episode.stage, episode.record["update"])
    return explain.batch_losses(episode.others, episode.settings, logged)


def to_json(episode: Episode, position: int | None, *, with_explanation: bool) -> dict[str, Any]:
    """Build what `tokens --json` prints: the episode, a row per token, and if asked for the steps of one token."""
    names = ("update", "episode", "prompt", "response", "ended", "raw_score", "score", "reward_parts")
    found: dict[str, Any] = {"run": str(episode.run), "stage": episode.stage}
    found |= {name: episode.record[name] for name in names}
    found["tokens"] = [asdict(row) for row in episode.rows]
    if with_explanation:
        row, steps = explained(episode, position)
        found["explained"] = {"position": row.position, "steps": [asdict(step) for step in steps]}
        added = losses(episode)
        found["losses"] = asdict(added)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _listed(numbers: Sequence[int]) -> str:
    """Write numbers, the middle of a long list left out: `10, 20, ..., 90, 100`."""
    shown = [str(one) for one in numbers]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-3:]])
