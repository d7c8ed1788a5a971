"""Gather what a run folder holds into the records of records.py: events, manifests, verdict, samples, card, traces.

Reads recipe.yaml, events.jsonl and the files of complete stages; loads no model and writes nothing. Works on a run that
is not finished: what is missing is None or empty. Leaves out figures and sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhfctl import reward_card
from rlhfctl.artifacts import MANIFEST, Artifact, load_artifact, read_json
from rlhfctl.dashboard.state import real
from rlhfctl.errors import HandoffError
from rlhfctl.events import transcript
from rlhfctl.graph import STAGES
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.reading import yaml_1_2
from rlhfctl.recipe.schema import Gate
from rlhfctl.report.facts.compared import comparison_of, summary_of
from rlhfctl.report.facts.history import History
from rlhfctl.report.facts.records import Comparison, Pair, Run, SeedResult, Stage
from rlhfctl.sweeping import require_run

TRACED_UPDATES = 2
"""The first and the last traced update are shown."""

_SEED_OR_ROUND = re.compile(r"(seed|round)-([0-9]+)")


def gather(folder: Path) -> Run:
    """Read a run folder; RlhfctlError if it is none."""
    paths = RunPaths(folder)
    require_run(folder)
    text = paths.recipe.read_text(encoding="utf-8")
    recipe = yaml_1_2().load(text)
    history = History.read(paths.events)
    artifacts = dict(_artifacts(folder))
    stages = [_stage(name, paths, artifacts.get(name), history) for name in _names(history, artifacts)]
    compared, by_seed, pairs = _compared(artifacts)
    return Run(
        path=folder,
        name=str(recipe.get("name") or folder.name),
        recipe=recipe,
        recipe_text=text,
        stages=stages,
        warnings=history.warnings(),
        alarms=history.alarms(),
        comparison=compared,
        by_seed=by_seed,
        pairs=pairs,
        card=_card(folder, artifacts, recipe),
        prompts=[
            (_seed(name), read_json(artifact.part("prompts")))
            for name, artifact in artifacts.items()
            if artifact.has("prompts")
        ],
        traces=list(_traces(paths, stages)),
        stopped=history.stopped,
    )


# ---------------------------------------------------------------- stages


def _artifacts(folder: Path) -> Iterator[tuple[str, Artifact]]:
    """Yield name and artifact of each complete stage, of all rounds and seeds."""
    for depth in ("*", "*/*", "*/*/*"):
        for file in sorted(folder.glob(f"{depth}/{MANIFEST}")):
            name = file.parent.relative_to(folder).as_posix()
            above = name.split("/")[:-1]
            if all(_SEED_OR_ROUND.fullmatch(part) for part in above):
                yield name, load_artifact(file.parent)


def _names(history: History, artifacts: Mapping[str, Artifact]) -> list[str]:
    """List the stages of the run: those that commands announced and those that are complete, in the order of a run."""
    order = list(STAGES)

    def position(name: str) -> tuple[int, int, int]:
        *above, kind = name.split("/")
        numbers = {match[1]: int(match[2]) for part in above if (match := _SEED_OR_ROUND.fullmatch(part))}
        place = order.index(kind) if kind in order else len(order)
        return numbers.get("round", 1), place, numbers.get("seed", -1)

    return sorted({*history.announced, *artifacts}, key=position)


def _stage(name: str, paths: RunPaths, artifact: Artifact | None, history: History) -> Stage:
    told = history.stages.get(name)
    manifest = artifact.manifest if artifact is not None else None
    under_way = paths.stage(name).is_dir()
    return Stage(
        name=name,
        state="complete" if manifest is not None else "under way" if under_way else "not started",
        manifest=manifest,
        settings=told.settings if told is not None else {},
        curves=told.curves if told is not None else {},
        measured=told.measured if told is not None else {},
        seconds=manifest.seconds if manifest is not None else None,
        peak_memory=told.peak_memory if told is not None else None,
    )


# ---------------------------------------------------------------- verdict and samples


def _compared(artifacts: Mapping[str, Artifact]) -> tuple[Comparison | None, list[SeedResult], list[Pair]]:
    """Return the verdict of the run (that of all seeds where there is one), each seed's, and the pairs of samples."""
    comparisons: list[tuple[str, Comparison]] = []
    pairs: list[Pair] = []
    for name, artifact in artifacts.items():
        if not artifact.has("compare"):
            continue
        seed = _seed(name)
        comparisons.append((seed, comparison_of(name, read_json(artifact.part("compare")), _is_unaltered(artifact))))
        if artifact.has("samples"):
            pairs += _pairs(artifact.part("samples"), seed)
    summaries = [artifact for artifact in artifacts.values() if artifact.has("summary")]
    one = comparisons[-1][1] if comparisons else None  # of the last round
    if summaries:
        whole, by_seed = summary_of(read_json(summaries[-1].part("summary")), one, _is_unaltered(summaries[-1]))
        return whole, by_seed, pairs
    if len({seed for seed, _ in comparisons}) > 1:  # seeds without their summary yet
        primary = [(seed, found) for seed, found in comparisons if found.primary in found.judges]
        return one, [SeedResult(seed, found.main, found.kl) for seed, found in primary], pairs
    return one, [], pairs


def _seed(name: str) -> str:
    return next((part.replace("-", " ") for part in name.split("/") if part.startswith("seed-")), "")


def _is_unaltered(artifact: Artifact) -> bool:
    """Compare the stage's files with their recorded hashes: the verdict's files are small."""
    try:
        artifact.verify()
    except HandoffError:
        return False
    return True


def _pairs(file: Path, seed: str) -> Iterator[Pair]:
    for row in _rows(file):
        policy, reference = transcript(row.get("policy", "")), transcript(row.get("reference", ""))
        yield Pair(
            prompt=transcript(row.get("prompt", "")),
            sample=int(row.get("sample") or 0),
            policy=policy,
            reference=reference,
            policy_scores=_numbers(row.get("policy_scores")),
            reference_scores=_numbers(row.get("reference_scores")),
            policy_length=_length(row.get("policy_length"), policy),
            reference_length=_length(row.get("reference_length"), reference),
            policy_ended=row.get("policy_ended"),
            reference_ended=row.get("reference_ended"),
            source=str(row.get("source") or ""),
            seed=seed,
        )


def _length(value: Any, text: str) -> float:
    """Return the length in the row (tokens), else the number of words: older runs have no length."""
    found = real(value)
    return float(len(text.split())) if found is None else found


def _numbers(scores: Any) -> dict[str, float]:
    items = scores.items() if isinstance(scores, Mapping) else ()
    return {str(name): number for name, value in items if (number := real(value)) is not None}


# ---------------------------------------------------------------- card and traces


def _card(folder: Path, artifacts: Mapping[str, Artifact], recipe: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Read the reward model's card: of a stage, or the file that `reward-eval` leaves. The gate is the recipe's."""
    files = [artifact.part("card") for artifact in artifacts.values() if artifact.has("card")]
    files += [file for file in (folder / "card" / "card.json",) if file.is_file() and file not in files]
    found = read_json(files[0]) if files else None
    if not isinstance(found, Mapping):
        return None
    gate = (recipe.get("reward") or {}).get("gate")
    return {**found, "gate": reward_card.decided(found, Gate.model_validate(gate) if gate is not None else None)}


def _traces(paths: RunPaths, stages: Iterable[Stage]) -> Iterator[Mapping[str, Any]]:
    """Yield the traced episodes of the first and the last traced update of the last PPO stage that has some."""
    for stage in reversed([stage for stage in stages if stage.kind == "ppo"]):
        files = sorted((paths.stage(stage.name) / "traces").glob("update-*.jsonl"))
        if files:
            for file in dict.fromkeys([files[0], files[-1]][-TRACED_UPDATES:]):
                yield from _rows(file)
            return


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSONL file. A line that a kill cut short is passed over."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
