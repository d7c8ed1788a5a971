"""Combine the main comparison and its controls into one verdict: a word and a sentence.

A policy can win at temperature 1 only because its samples are less random. Therefore compare also runs controls: both
sides at equal lower temperatures, at matched entropy, and greedy, and the policy against a reference that alone is
sampled at a lower temperature.

A run over several seeds has one such verdict per seed and, in summary.json, one over all of them by the same rule. Its
intervals are for new seeds and new prompts; the sentence says how the seeds by themselves ended.

*better* needs a win in every fair control, so several comparisons make it no more likely by chance than one. *worse* in
one of several controls is not corrected for their number: its only effect is that the verdict is not better.

Reads the content of `compare.json`; reads and writes no files itself. Pure functions; imports the standard library and
stats/ only. Leaves out sampling and judging (stages/compare.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rlhfctl.stats.paired import Verdict

Overall = Literal["better", "worse", "undecided", "mixed"]
Row = Mapping[str, Any]

EQUAL, MATCHED, COLDER, BEST_OF_N = "equal_temperature", "matched_entropy", "colder_reference", "best_of_n"
"""Kinds of controls. The first two are fair: both sides lose the same randomness. The others favour the reference."""

FAIR = (EQUAL, MATCHED)
MAIN = "main"  # the name in `verdict_basis` of the comparison at compare.temperature (its numbers: `judges`)


def overall(main: Verdict, fair: Sequence[Verdict], colder: Sequence[Verdict]) -> Overall:
    """Combine the results of the main comparison, the fair controls and the colder references into one word.

    better: the policy wins the main comparison and every fair control, and no colder reference beats it. worse: it
    loses the main comparison and wins no fair control. undecided: every result is undecided. mixed: all other cases.
    """
    basis = [main, *fair]
    if all(one == "better" for one in basis) and "worse" not in colder:
        return "better"
    if main == "worse" and "better" not in basis:
        return "worse"
    return "undecided" if {*basis, *colder} == {"undecided"} else "mixed"


def basis(controls: Sequence[Row]) -> list[str]:
    """List the names of the comparisons that decide the verdict, the main one first."""
    return [MAIN, *(row["name"] for row in controls if row["kind"] in (*FAIR, COLDER))]


def lowest_control(report: Row) -> float | None:
    """Return the policy's lowest win rate in the fair controls, by the primary judge; None without fair controls."""
    fair = (row for row in report.get("controls") or () if row["kind"] in FAIR)
    return min((row["judges"][report["primary_judge"]]["win_rate"] for row in fair), default=None)


def sentence(report: Mapping[str, Any]) -> str:
    """Write the verdict as a sentence, the strongest fair control first.

    `report`: the content of `compare.json` or `summary.json`.
    """
    words = [seed["verdict"] for seed in report.get("seed_verdicts") or ()]
    counts = [f"{words.count(word)} {word}" for word in dict.fromkeys((report["verdict"], *words)) if word in words]
    return _about_all(report) + (f"; seed by seed: {', '.join(counts)}" if words else "")


def _about_all(report: Mapping[str, Any]) -> str:
    """Write the sentence about the main comparison and its controls."""
    judge, controls = report["primary_judge"], report.get("controls") or []
    word, main = report["verdict"], report["judges"][judge]
    fair = [(_where(row), row["judges"][judge]) for row in controls if row["kind"] in FAIR]
    at_main = (_main(report), main)
    if not fair:
        return f"{word}: {_prefers(judge, report, *at_main, side=word)}{_open(report)}{_without_controls(report)}"
    weakest = min([at_main, *fair], key=lambda pair: (pair[1]["win_rate"], pair[1]["delta"]))
    if word == "better":
        others = [pair for pair in (at_main, *fair) if pair is not weakest]
        rest = ", ".join(f"{share(values['win_rate'])} {condition}" for condition, values in others)
        return f"better: {_prefers(judge, report, *weakest)}, its strongest fair control; {rest}"
    if word == "worse":
        return f"worse: {_prefers(judge, report, *weakest, side=word)}"
    if word == "undecided":
        return f"undecided: {_prefers(judge, report, *weakest)}; no control decides it either{_open(report)}"
    return f"mixed: {'; '.join(_claims(judge, at_main, fair, controls))}"


def judging(block: Mapping[str, Any]) -> str:
    """Write what the judge `endpoint` did and cost. `block`: `endpoint` of `compare.json`."""
    asked, cached = block["calls"], block["cached"]
    pairs = f"{block['model']} judged {block['pairs'] - block['failed']} of {block['pairs']} pairs"
    notes = [f"{block['identical']} with equal responses" if block["identical"] else ""]
    notes.append(f"{block['failed']} without a usable answer are left out" if block["failed"] else "")
    told = "; ".join(note for note in notes if note)
    answers = f"{asked} answers" + (f" and {cached} from before" if cached else "")
    parts = [f"{pairs} ({told})" if told else pairs, answers]
    if block["input_tokens"] is not None and block["output_tokens"] is not None:
        parts.append(f"{block['input_tokens']:,} tokens read and {block['output_tokens']:,} written")
    parts.append("cost unknown" if block["cost"] is None else f"cost {block['cost']:.4g}")
    if block["position_bias"] is not None:
        low, high = block["position_bias_ci95"]
        bias = f"position bias {block['position_bias']:+.2f} (95% interval {low:+.2f} to {high:+.2f})"
        parts.append(f"{bias}, the same winner in both orders for {share(block['consistent'])}")
    for judge, value in block["agreement"].items():
        if value is not None:
            parts.append(f"agrees with {judge} on {share(value)} of {block['agreement_pairs'][judge]} pairs")
    return ", ".join(parts)


def length_warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for each judge whose win rate lies on the other side of one half at equal length."""
    for name, values in report["judges"].items():
        rate, controlled = values["win_rate"], values.get("length_controlled_win_rate")
        if controlled is None or (rate - 0.5) * (controlled - 0.5) >= 0:
            continue
        winner, other = ("policy", "reference") if rate > 0.5 else ("reference", "policy")
        yield (
            f"{name} prefers the {winner} on {share(max(rate, 1 - rate))} of the prompts, but at equal length the "
            f"{other} on {share(max(controlled, 1 - controlled))}: the length of the responses may be why it wins"
        )


def _open(report: Mapping[str, Any]) -> str:
    """Write what an undecided main comparison needs; nothing for other verdicts and for reports without the number."""
    values = report["judges"][report["primary_judge"]]
    if report["verdict"] != "undecided" or "prompts_to_settle" not in values:
        return ""
    needed, prompts = values["prompts_to_settle"], values.get("prompts", report["prompts"])
    if needed is None:
        return "; wins and losses are too even for any number of prompts to settle it"
    if needed <= prompts:
        return f"; the sign test finds a difference (p {values['p_value']:.2g}), the mean of the scores does not"
    return f"; if wins and losses stay in proportion, about {_rounded(needed):,} prompts would settle it"


def _rounded(count: int) -> int:
    """Round up to two digits: the number rests on shares that are themselves uncertain."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step


def _claims(
    judge: str, at_main: tuple[str, Row], fair: Sequence[tuple[str, Row]], controls: Sequence[Row]
) -> Iterator[str]:
    """Write the clauses of a mixed verdict: fair comparisons by result, then colder references that are not beaten."""
    words = {"better": "better", "undecided": "no better", "worse": "worse"}
    groups: dict[str, list[str]] = {name: [] for name in words}
    for condition, values in (at_main, *fair):
        groups[values["verdict"]].append(f"{condition} ({share(values['win_rate'])})")
    for result, conditions in groups.items():
        if conditions:
            yield f"{words[result]} {_listed(conditions)}" + (f", by {judge}" if result == "better" else "")
    for row in controls:
        values = row["judges"][judge]
        if row["kind"] == COLDER and values["verdict"] == "worse":
            yield f"worse than the reference {_sampled(row['temperature'])} ({share(values['win_rate'])})"
    colder = [row for row in controls if row["kind"] == COLDER and row["judges"][judge]["verdict"] == "undecided"]
    if colder and at_main[1]["verdict"] == "better":
        warmest = max(colder, key=lambda row: row["temperature"])
        yield f"no better than the reference {_sampled(warmest['temperature'])}"


def _prefers(judge: str, report: Mapping[str, Any], condition: str, values: Row, side: str = "better") -> str:
    """Write how often the judge prefers the policy under a condition; the reference if `side` is worse."""
    rate, (low, high) = values["win_rate"], values["win_rate_ci95"]
    winner = "policy"
    if side == "worse":
        rate, low, high, winner = 1 - rate, 1 - high, 1 - low, "reference"
    prompts = values.get("prompts", report["prompts"])  # a judge that left some out counts its own
    return (
        f"{judge} prefers the {winner} on {share(rate)} of {prompts} prompts{_seeds(report)} {condition} "
        f"(95% interval {share(low)} to {share(high)})"
    )


def _seeds(report: Mapping[str, Any]) -> str:
    return f" over {len(report['seeds'])} seeds" if report.get("seeds") else ""


def _without_controls(report: Mapping[str, Any]) -> str:
    if report.get("temperature") is None:
        return "; no controls: samples made elsewhere cannot be drawn again, and a lower temperature may explain it"
    return "; no controls were run: a lower temperature alone may explain it"


def _main(report: Mapping[str, Any]) -> str:
    temperature = report.get("temperature")
    return "in the samples given" if temperature is None else f"at temperature {temperature:g}"


def _where(row: Row) -> str:
    """Describe a fair control's sampling: `at temperature 0.8`, `when both are greedy`, `at matched entropy (...)`."""
    if row["kind"] == MATCHED:
        return f"at matched entropy (reference at temperature {row['temperature']:.2g})"
    return f"at temperature {row['temperature']:g}" if row["temperature"] else "when both are greedy"


def _sampled(temperature: float) -> str:
    return f"at temperature {temperature:g}" if temperature else "when it is greedy"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def share(value: float) -> str:
    """Format a share as 78%, with one decimal if rounding would hide the side of 0, a half or 1."""
    percent = 100 * value
    whole = round(percent)
    return f"{percent:.1f}%" if whole in (0, 50, 100) and abs(percent - whole) > 0.05 else f"{whole}%"


def measures(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what the metrics of the comparison give, in one sentence: policy against reference."""
    told = [
        f"{name} {entry['policy_mean']:.4g} against {entry['reference_mean']:.4g}"
        if entry["prompts"]
        else f"{name} without a value"
        for name, entry in entries.items()
    ]
    return f"metrics, policy against reference: {', '.join(told)}"
