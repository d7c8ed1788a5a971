"""Read compare.json and summary.json into the records of records.py.

Pure: JSON values in, records out. Fields that an older version does not have are None.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhfctl.dashboard.state import is_map, real
from rlhfctl.report.facts.records import Comparison, Control, Judged, SeedResult

_FACTS = {  # what it is called -> fields of compare.json for policy and reference
    "response length": ("length_policy_mean", "length_reference_mean"),
    "responses that end": ("end_rate_policy", "end_rate_reference"),
    "distinct words": ("distinct_1_policy", "distinct_1_reference"),
    "distinct pairs of words": ("distinct_2_policy", "distinct_2_reference"),
    "programs that are no Python": ("compile_error_policy", "compile_error_reference"),
    "programs that raise an error": ("runtime_error_policy", "runtime_error_reference"),
    "programs that fail a test": ("failed_policy", "failed_reference"),
    "programs that pass all tests": ("passed_policy", "passed_reference"),
}


def comparison_of(stage: str, report: Mapping[str, Any], unaltered: bool | None) -> Comparison:
    """Build the record of one compare.json."""
    return Comparison(
        stage=stage,
        verdict=str(report["verdict"]),
        sentence=str(report.get("sentence") or report["verdict"]),
        primary=str(report["primary_judge"]),
        judges=_judges(report["judges"]),
        controls=_controls(report.get("controls")),
        prompts=report.get("prompts"),
        samples_per_prompt=report.get("samples_per_prompt"),
        temperature=real(report.get("temperature")),
        kl=real(report.get("kl_mean")),
        facts={
            name: found
            for name, keys in _FACTS.items()
            if (found := (real(report.get(keys[0])), real(report.get(keys[1])))) != (None, None)
        },
        endpoint=report.get("endpoint"),
        unaltered=unaltered,
    )


def summary_of(
    summary: Mapping[str, Any], one: Comparison | None, unaltered: bool | None
) -> tuple[Comparison, list[SeedResult]]:
    """Build the record of a summary.json over seeds, and each seed's result. `one`: the verdict of one of the seeds."""
    primary = str(summary["primary_judge"])
    judges = _judges(summary["judges"])
    if one is not None:  # whether a judge is independent is the same for all seeds
        judges = {
            name: replace(found, independent=one.judges[name].independent) if name in one.judges else found
            for name, found in judges.items()
        }
    kls = [real(entry) for entry in summary.get("kl_mean") or ()]
    known = [kl for kl in kls if kl is not None]
    whole = Comparison(
        stage="summary",
        verdict=str(summary["verdict"]),
        sentence=str(summary["sentence"]),
        primary=primary,
        judges=judges,
        controls=_controls(summary.get("controls")),
        prompts=one.prompts if one is not None else None,
        samples_per_prompt=one.samples_per_prompt if one is not None else None,
        temperature=one.temperature if one is not None else None,
        kl=statistics.fmean(known) if known else None,
        unaltered=unaltered,
    )
    rows: Sequence[Mapping[str, Any]] = summary["judges"].get(primary, {}).get("per_seed") or []
    results = [
        SeedResult(f"seed {row['seed']}", judged(primary, row), kls[index] if index < len(kls) else None)
        for index, row in enumerate(rows)
    ]
    return whole, results


def judged(name: str, entry: Mapping[str, Any]) -> Judged:
    """Build the record of one judge's entry."""
    return Judged(
        judge=name,
        win_rate=float(entry["win_rate"]),
        win_rate_ci=interval(entry.get("win_rate_ci95")),
        delta=real(entry.get("delta")),
        delta_ci=interval(entry.get("delta_ci95")),
        verdict=str(entry.get("verdict") or _verdict(entry)),
        independent=entry.get("independent"),
        policy_mean=real(entry.get("policy_mean")),
        reference_mean=real(entry.get("reference_mean")),
        ties=entry.get("ties"),
        p_value=real(entry.get("p_value")),
        p_adjusted=real(entry.get("p_adjusted")),
        effect_size=real(entry.get("effect_size")),
        effect_size_ci=interval(entry.get("effect_size_ci95")),
        length_controlled=real(entry.get("length_controlled_win_rate")),
        length_controlled_ci=interval(entry.get("length_controlled_win_rate_ci95")),
        prompts_to_settle=entry.get("prompts_to_settle"),
    )


def _verdict(entry: Mapping[str, Any]) -> str:
    """Return what the two intervals say where an entry has no word of its own, as in a summary over seeds."""
    ends = [interval(entry.get("delta_ci95")), interval(entry.get("win_rate_ci95"))]
    if any(end is None for end in ends):
        return ""
    centred = [
        (end[0] - chance, end[1] - chance) for end, chance in zip(ends, (0.0, 0.5), strict=True) if end is not None
    ]
    if all(low > 0 for low, _ in centred):
        return "better"
    return "worse" if all(high < 0 for _, high in centred) else "undecided"


def interval(value: Any) -> tuple[float, float] | None:
    """Return an interval of two finite numbers, or None for anything else."""
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = real(value[0]), real(value[1])
    return None if low is None or high is None else (low, high)


def _judges(entries: Any) -> dict[str, Judged]:
    return {name: judged(name, entry) for name, entry in entries.items()} if is_map(entries) else {}


def _controls(rows: Any) -> list[Control]:
    return [
        Control(
            name=str(row.get("name")),
            kind=str(row.get("kind")),
            temperature=real(row.get("temperature")),
            judges=_judges(row.get("judges")),
        )
        for row in rows or ()
    ]
