"""`rlhfctl rank`: compare the policies of several runs, and their references, with each other.

Reads the scores that one judge gave in each run's comparison (compare.json, samples.jsonl, the manifest). Samples and
judges nothing, loads no torch, writes nothing. All runs must have answered the same test prompts, and the judge must be
the same. Leaves out the controls: each run's own verdict says whether its gain has a cheaper explanation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhfctl.artifacts import Artifact, load_artifact, read_json
from rlhfctl.errors import RlhfctlError
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.sections.scorers import REWARD_FUNCTION, REWARD_MODEL, SCORERS
from rlhfctl.stats.paired import paired_differences
from rlhfctl.stats.resampling import Floats
from rlhfctl.stats.round_robin import Meeting, RoundRobin, round_robin

Key = tuple[str, int]  # a prompt's content, and which of the prompts with this content it is
Differences = Mapping[tuple[int, int], Floats]

_JUDGES_OF_PAIRS = tuple(name for name, scorer in SCORERS.items() if scorer.scores == "pairs")
"""Judges that compare the two sides of one run: their scores mean nothing beside those of another run."""

_SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class _Compared:
    """A run's comparison by one judge.

    `prompts`: all prompts that were answered. `values`: policy's and reference's mean score by prompt; a prompt without
    scores is missing. `reference`: the fingerprint of the model that is the reference.
    """

    path: Path
    artifact: Artifact
    report: Mapping[str, Any]
    prompts: frozenset[Key]
    values: Mapping[Key, tuple[float, float]]
    reference: str


@dataclass(frozen=True)
class _Side:
    """A policy or a reference in the ranking, with its value per prompt."""

    name: str
    kind: str  # policy or reference
    runs: list[str]
    values: list[float]


def rank(runs: Sequence[Path], judge: str | None = None) -> dict[str, Any]:
    """Rank the runs' policies and references, strongest first: the JSON that `rank --json` prints.

    `judge` None: the primary judge of all runs.
    """
    if len({path.resolve() for path in runs}) < max(2, len(runs)):
        raise RlhfctlError("rank needs several different runs", fix=f"one run's verdict: rlhfctl compare {runs[0]}")
    for path in runs:
        _require_one_seed(path)
    artifacts = {path: load_artifact(path / "compare") for path in runs}
    reports = {path: _verified_report(artifact) for path, artifact in artifacts.items()}
    judge = _judge_of_all(reports) if judge is None else judge
    compared = [_read(path, artifacts[path], reports[path], judge) for path in runs]
    _require_same_prompts(compared)
    _require_same_judge(judge, compared)
    shared = [key for key in compared[0].values if all(key in one.values for one in compared)]
    if not shared:
        raise RlhfctlError(f"{judge} has scored no prompt in all of these runs", fix="rlhfctl compare RECIPE --force")
    sides = [*_policies(compared, shared), *_references(compared, shared)]
    found = round_robin(_differences(judge, compared, sides, shared), seed=_SEED)
    return {"judge": judge, "prompts": len(shared)} | _ranked(sides, found) | {"notes": list(_notes(judge, compared))}


# ---------------------------------------------------------------- reading


def _require_one_seed(run: Path) -> None:
    """Raise RlhfctlError for a run over several seeds: each of its seeds is a policy of its own."""
    compared = [stage for stage in RunPaths(run).stages() if stage.name == "compare"]
    if compared and all(stage.seed is not None for stage in compared):
        seeds = ", ".join(str(run / stage.group) for stage in compared)
        raise RlhfctlError("is a run over several seeds", where=str(run), fix=f"name seeds of it: {seeds}")


def _verified_report(artifact: Artifact) -> Mapping[str, Any]:
    artifact.verify()
    report: Mapping[str, Any] = read_json(artifact.part("compare"))
    return report


def _judge_of_all(reports: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return the primary judge of all reports; raise RlhfctlError if they differ."""
    primary = {str(path): str(report["primary_judge"]) for path, report in reports.items()}
    if len(set(primary.values())) > 1:
        listed = ", ".join(f"{judge} in {path}" for path, judge in primary.items())
        common = set.intersection(*(set(report["judges"]) for report in reports.values()))
        raise RlhfctlError(
            f"the primary judges differ: {listed}",
            fix=f"name one that judged them all: --judge {' or '.join(sorted(common))}"
            if common
            else "compare them by one judge: compare.judges, then rlhfctl compare RECIPE",
        )
    return next(iter(primary.values()))


def _read(path: Path, artifact: Artifact, report: Mapping[str, Any], judge: str) -> _Compared:
    """Read a run's samples and average the judge's scores by prompt."""
    if judge not in report["judges"]:
        raise RlhfctlError(
            f"{judge} has not judged this run; its judges: {', '.join(report['judges'])}",
            where=str(path),
            fix="name a judge of all runs with --judge, or add it to compare.judges and run compare again",
        )
    scores: dict[Key, tuple[list[float], list[float]]] = {}
    seen: dict[str, int] = {}
    key = ("", 0)
    for line in artifact.part("samples").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["sample"] == 0:
            text = json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False)
            seen[text] = seen.get(text, -1) + 1
            key = (text, seen[text])
            scores[key] = ([], [])
        if judge in row["policy_scores"] and judge in row["reference_scores"]:
            for side, given in zip(scores[key], ("policy_scores", "reference_scores"), strict=True):
                side.append(row[given][judge])
    values = {key: (fmean(policy), fmean(reference)) for key, (policy, reference) in scores.items() if policy}
    return _Compared(path, artifact, report, frozenset(scores), values, _reference_of(path, artifact))


def _reference_of(path: Path, artifact: Artifact) -> str:
    """Return a fingerprint of the reference, or of the file of its samples."""
    parent = artifact.manifest.parents.get("reference")
    if parent is not None:
        return parent.fingerprint
    return artifact.manifest.inputs.get("reference_samples", str(path.resolve()))


# ---------------------------------------------------------------- checks


def _require_same_prompts(compared: Sequence[_Compared]) -> None:
    first = compared[0]
    for other in compared[1:]:
        if other.prompts != first.prompts:
            shared = len(first.prompts & other.prompts)
            raise RlhfctlError(
                f"{other.path} answered other test prompts than {first.path}: they share {shared} of "
                f"{len(first.prompts | other.prompts)}",
                fix="compare both on the same prompts: give both recipes the same data.prompts and data_seed",
            )


def _require_same_judge(judge: str, compared: Sequence[_Compared]) -> None:
    """Raise RlhfctlError if a judge of one name is not the same judge in all runs."""
    first = compared[0]
    for other in compared[1:]:
        if _identity(judge, first) != _identity(judge, other):
            raise RlhfctlError(
                f"{judge} is not the same judge in {first.path} and {other.path}: their scores are not on one scale",
                fix="judge both by one: rlhfctl compare RECIPE --reward-model MODEL --run-dir DIR"
                if judge == REWARD_MODEL
                else "name another judge with --judge, or compare again with the same one",
            )


def _identity(judge: str, one: _Compared) -> Any:
    """Return what tells whether a judge is the same: its model, its function's content, or what it was asked.

    The content of functions is recorded for all of a recipe together, so it shows nothing of a function named
    module:name; _notes speaks of that.
    """
    manifest = one.artifact.manifest
    if judge == REWARD_FUNCTION:
        return manifest.inputs.get("functions")
    if judge in _JUDGES_OF_PAIRS:
        asked = manifest.section.get(judge) or {}
        return {key: asked.get(key) for key in ("model", "criteria")}
    # A held-out reward model is a parent of its own name.
    parent = manifest.parents.get("reward" if judge == REWARD_MODEL else judge)
    label = manifest.inputs.get("reward.label") if judge == REWARD_MODEL else None
    return parent.fingerprint if parent is not None else None, label


def _notes(judge: str, compared: Sequence[_Compared]) -> Iterator[str]:
    """Yield what limits the ranking."""
    dependent = [str(one.path) for one in compared if one.report["judges"][judge].get("independent") is False]
    if dependent:
        yield f"PPO trained against {judge} in {', '.join(dependent)}: it is not independent evidence of improvement"
    if ":" in judge and len({one.artifact.manifest.inputs.get("functions") for one in compared}) > 1:
        yield f"the functions that these runs called differ: make sure that {judge} is the same in all"
    for key, what in (("temperature", "temperatures"), ("samples_per_prompt", "numbers of samples per prompt")):
        found = {one.report.get(key) for one in compared}
        if len(found) > 1:
            yield f"these runs were compared at different {what}: {', '.join(sorted(map(str, found)))}"
    left_out = len(compared[0].prompts) - len(set.intersection(*(set(one.values) for one in compared)))
    if left_out:
        yield f"{left_out} prompts that {judge} did not score in every run are left out"


# ---------------------------------------------------------------- sides and results


def _policies(compared: Sequence[_Compared], shared: Sequence[Key]) -> list[_Side]:
    return [_Side(str(one.path), "policy", [str(one.path)], [one.values[key][0] for key in shared]) for one in compared]


def _references(compared: Sequence[_Compared], shared: Sequence[Key]) -> list[_Side]:
    """Return each reference once, with its mean over all runs that share it."""
    groups: dict[str, list[_Compared]] = {}
    for one in compared:
        groups.setdefault(one.reference, []).append(one)
    sides = []
    for group in groups.values():
        runs = [str(one.path) for one in group]
        name = "reference" if len(groups) == 1 else f"reference of {', '.join(runs)}"
        sides.append(_Side(name, "reference", runs, [fmean(one.values[key][1] for one in group) for key in shared]))
    return sides


def _differences(
    judge: str, compared: Sequence[_Compared], sides: Sequence[_Side], shared: Sequence[Key]
) -> Differences:
    """Compute the differences of each pair of sides by prompt; by a judge of pairs, of policies and their reference."""
    if judge not in _JUDGES_OF_PAIRS:
        pairs = combinations(range(len(sides)), 2)
        return {(i, j): paired_differences(sides[i].values, sides[j].values) for i, j in pairs}
    if len(sides) > len(compared) + 1:
        raise RlhfctlError(
            f"{judge} compares the two sides of a run, and the references of these runs differ: nothing links them",
            fix="rank runs with the same reference, or by a judge that scores single responses: --judge NAME",
        )
    reference = len(compared)  # the policies come before it
    return {
        (i, reference): paired_differences(*zip(*(one.values[key] for key in shared), strict=True))
        for i, one in enumerate(compared)
    }


def _ranked(sides: Sequence[_Side], found: RoundRobin) -> dict[str, Any]:
    """Write strengths, the two matrices and the pairs; rows and columns of a matrix are in the order of the ranking."""
    order = sorted(range(len(sides)), key=lambda index: -round(found.strengths[index].value, 9))
    rates: dict[tuple[int, int], float] = {}
    p_values: dict[tuple[int, int], float] = {}
    for one in found.meetings:
        rates[one.first, one.second], rates[one.second, one.first] = one.win_rate, 1 - one.win_rate
        p_values[one.first, one.second] = p_values[one.second, one.first] = one.p_adjusted
    return {
        "ranking": [
            {
                "name": sides[index].name,
                "kind": sides[index].kind,
                "runs": sides[index].runs,
                "strength": found.strengths[index].value,
                "strength_ci95": [found.strengths[index].ci95.low, found.strengths[index].ci95.high],
            }
            for index in order
        ],
        "win_rates": [[rates.get((i, j)) for j in order] for i in order],
        "p_adjusted": [[p_values.get((i, j)) for j in order] for i in order],
        "pairs": [_pair(one, sides) for one in found.meetings],
    }


def _pair(meeting: Meeting, sides: Sequence[_Side]) -> dict[str, Any]:
    interval = meeting.win_rate_ci95
    return asdict(meeting) | {
        "first": sides[meeting.first].name,
        "second": sides[meeting.second].name,
        "win_rate_ci95": [interval.low, interval.high],
    }
