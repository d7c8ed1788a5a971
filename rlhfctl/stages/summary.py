"""Combine the comparisons of all seeds into one verdict: intervals over seeds and prompts, and how the seeds agree.

Reads compare.json and values.json of every seed's compare stage. Writes summary.json. Every seed has answered the same
test prompts. Loads no model and no torch. Leaves out the statistics (stats/hierarchical.py) and the rule by which
comparisons become a word and a sentence (verdict.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from rlhfctl import fs
from rlhfctl import verdict as verdicts
from rlhfctl.artifacts import Artifact, read_json
from rlhfctl.errors import HandoffError
from rlhfctl.events import Metrics, VerdictReached
from rlhfctl.recipe.schema import Seeds
from rlhfctl.stage_order import in_order
from rlhfctl.stages.context import Context
from rlhfctl.stats.hierarchical import compare_over_seeds, verdict_over_seeds
from rlhfctl.stats.resampling import Interval

FILE = "summary.json"
_OF_SEED = ("win_rate", "win_rate_ci95", "delta", "delta_ci95", "verdict")
Reports = Mapping[int, Mapping[str, Any]]  # seed -> content of compare.json
Values = Mapping[str, Mapping[str, Any]]  # judge -> its value per prompt on each side


def run(section: Seeds, ctx: Context) -> Artifact:
    """Read the seeds' comparisons, combine them, and write the verdict over all seeds."""
    made = {source.artifact.stage.seed: source.artifact for source in ctx.parents.values() if source.artifact}
    artifacts = {seed: made[seed] for seed in section.listed}
    for artifact in artifacts.values():
        artifact.verify()
    reports: Reports = {seed: read_json(artifact.part("compare")) for seed, artifact in artifacts.items()}
    values = {seed: read_json(artifact.part("values")) for seed, artifact in artifacts.items()}
    _require_equal("judges", {seed: [*report["judges"]] for seed, report in reports.items()})
    _require_equal("prompts", {seed: report["prompts"] for seed, report in reports.items()})

    first = next(iter(reports.values()))
    primary = first["primary_judge"]
    judges = _pooled({seed: found["main"] for seed, found in values.items()}, ctx)
    for name, entry in judges.items():
        rows = ((seed, report["judges"][name]) for seed, report in reports.items())
        entry["per_seed"] = [{"seed": seed} | {key: row[key] for key in _OF_SEED} for seed, row in rows]
    controls = list(_controls(reports, values, ctx))
    fair = [row["judges"][primary]["verdict"] for row in controls if row["kind"] in verdicts.FAIR]
    colder = [row["judges"][primary]["verdict"] for row in controls if row["kind"] == verdicts.COLDER]
    report: dict[str, Any] = {
        "verdict": verdicts.overall(judges[primary]["verdict"], fair, colder),
        "verdict_basis": verdicts.basis(controls),
        "seeds": section.listed,
        "seed_verdicts": [{"seed": seed, "verdict": one["verdict"]} for seed, one in reports.items()],
        "shared": [str(one) for one in in_order(ctx.recipe) if one.seed is None and str(one) != ctx.name],
        "primary_judge": primary,
        "independent": all(one["independent"] for one in reports.values()),
        "prompts": first["prompts"],
        "samples_per_prompt": first["samples_per_prompt"],
        "temperature": first["temperature"],
        "judges": judges,
        "controls": controls,
        "kl_mean": [one["kl_mean"] for one in reports.values()],
        "length_policy_mean": [one["length_policy_mean"] for one in reports.values()],
    }
    report["sentence"] = verdicts.sentence(report)
    fs.write_json(ctx.folder / FILE, report)
    metrics = _metrics(report)
    ctx.emit(Metrics(stage=ctx.name, step=0, values=metrics, split="test"))
    ctx.emit(VerdictReached(stage=ctx.name, verdict=report["verdict"], sentence=report["sentence"]))
    return ctx.publish(section.model_dump(mode="json"), {"summary": FILE}, metrics=metrics)


def _require_equal(what: str, found: Mapping[int, Any]) -> None:
    """Raise HandoffError if the seeds were compared with other judges or on other prompts."""
    (first, expected), *others = found.items()
    for seed, value in others:
        if value != expected:
            raise HandoffError(
                f"seeds {first} and {seed} were compared with other {what} ({expected}, {value})",
                where=f"seed-{seed}/compare",
                fix="run the comparisons again: rlhfctl run RECIPE --from compare --force",
            )


def _pooled(values: Mapping[int, Values], ctx: Context) -> dict[str, dict[str, Any]]:
    """Return each judge's entry over all seeds. `values`: by seed, the judges' values in one comparison.

    A judge can leave out a prompt (null). Prompts that it has judged at every seed count.
    """
    compare = ctx.recipe.compare
    assert compare is not None  # there are no comparisons without it
    first, *others = values.values()
    entries = {}
    for judge in (name for name in first if all(name in one for one in others)):
        sides = [one[judge][side] for side in ("policy", "reference") for one in values.values()]
        kept = [prompt for prompt in zip(*sides, strict=True) if None not in prompt]
        columns = [*zip(*kept, strict=True)]
        policy, reference = columns[: len(values)], columns[len(values) :]
        result = compare_over_seeds(policy, reference, seed=ctx.recipe.seed, samples=compare.bootstrap_samples)
        entries[judge] = {
            "prompts": result.n,
            "win_rate": result.win_rate,
            "win_rate_ci95": _ends(result.win_rate_ci95),
            "delta": result.delta,
            "delta_ci95": _ends(result.delta_ci95),
            "ties": result.ties,
            "verdict": verdict_over_seeds(result),
        }
    return entries


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _controls(reports: Reports, values: Mapping[int, Mapping[str, Any]], ctx: Context) -> Iterator[dict[str, Any]]:
    """Yield the controls over the seeds that have them: matched entropy can be missing where it was not reached."""
    by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
    for seed, report in reports.items():
        for row in report["controls"]:
            by_name.setdefault(row["name"], {})[seed] = row
    for name, rows in by_name.items():
        if lacking := [str(seed) for seed in reports if seed not in rows]:
            use = "it counts for the others" if len(rows) > 1 else "it is left out, because one seed has no interval"
            ctx.warn(f"the control {name} is missing for the seeds {', '.join(lacking)}; {use}")
        if len(rows) < 2:
            continue
        yield {
            "kind": next(iter(rows.values()))["kind"],
            "name": name,
            "seeds": [*rows],
            "temperature": fmean(row["temperature"] for row in rows.values()),
            "policy_temperature": fmean(row["policy_temperature"] for row in rows.values()),
            "judges": _pooled({seed: values[seed]["controls"][name] for seed in rows}, ctx),
        }


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics for screen, manifest and trackers."""
    judge = report["judges"][report["primary_judge"]]
    lowest = verdicts.lowest_control(report)
    metrics = {"win_rate": judge["win_rate"], "delta": judge["delta"]}
    metrics |= {"control_win_rate": lowest} if lowest is not None else {}
    kl = [value for value in report["kl_mean"] if value is not None]
    return metrics | ({"kl": fmean(kl)} if len(kl) == len(report["seeds"]) else {})
