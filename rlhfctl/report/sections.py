"""Build the page of one run: the first screen, then a section per question, each with a sentence on how to read it.

Pure: the records of facts/records.py in, the parts of content.py out. A section that has nothing to show is left out.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhfctl.dashboard.text import number
from rlhfctl.report import prompt_section, training_sections, words
from rlhfctl.report.cells import p_value, plain, with_interval
from rlhfctl.report.content import Code, Example, Figures, Page, Part, Samples, Section, Table, Text
from rlhfctl.report.facts.measures import by_prompt, changed_most, length_effect, prompt_groups, score_bins
from rlhfctl.report.facts.records import Judged, Pair, Run
from rlhfctl.report.figures import verdict
from rlhfctl.report.figures.spec import Figure
from rlhfctl.verdict import share

EXAMPLES = 3
"""Pairs shown on the first screen on each side."""

MOST_TEXT = 6_000_000
"""Characters of samples on one page: with the charts the file stays below 10 MB."""

LONGEST_TEXT = 6_000
"""Characters of one text on the page."""

_Column = tuple[str, Callable[[Judged], str]]


def page_of(run: Run) -> Page:
    """Build the report of one run."""
    found = run.comparison
    gains, losses = changed_most(run.pairs, found.primary, EXAMPLES) if found is not None else ([], [])
    judge = found.primary if found is not None else ""
    return Page(
        title=run.name,
        subtitle=_subtitle(run),
        word=found.verdict if found is not None else "",
        headline=words.headline(run),
        sentence=found.sentence if found is not None else "",
        meaning=words.meaning(run),
        numbers=words.numbers(run),
        gains=[Example(cut(pair), pair.change(judge) or 0.0) for pair in gains],
        losses=[Example(cut(pair), pair.change(judge) or 0.0) for pair in losses],
        judge=judge,
        checks=words.checks(run),
        sections=[section for section in _sections(run) if section.parts],
    )


def _subtitle(run: Run) -> str:
    versions = next((stage.manifest.versions for stage in run.stages if stage.manifest is not None), {})
    made = f"rlhfctl {versions['rlhfctl']}" if "rlhfctl" in versions else "rlhfctl"
    done = sum(stage.state == "complete" for stage in run.stages)
    state = "finished" if run.finished else f"{done} of {len(run.stages)} stages complete"
    return f"{made}; {state}"


def _sections(run: Run) -> Iterator[Section]:
    yield _verdict(run)
    yield prompt_section.prompts(run)
    yield training_sections.curves(run)
    yield training_sections.optimization(run)
    yield training_sections.card(run)
    yield _scores(run)
    yield _length(run)
    yield _groups(run)
    yield _samples(run)
    yield training_sections.tokens(run)
    yield training_sections.alarms(run)
    yield training_sections.costs(run)
    yield training_sections.lineage(run)
    yield _reproduce(run)


# ---------------------------------------------------------------- the verdict


def _verdict(run: Run) -> Section:
    found, parts = run.comparison, list[Part]()
    if found is not None:
        if run.by_seed:
            parts.append(Figures([verdict.seeds(run.by_seed)]))
            parts.append(_seed_table(run))
        parts += [Figures([verdict.win_rates(found)]), _judge_table(found.judges, found.primary)]
        parts += [_fact_table(found.facts)] if found.facts else []
        parts += [_endpoint_table(found.endpoint)] if found.endpoint else []
    return Section(
        "win-rates",
        "Win rates",
        "An interval that lies wholly right of 50% is a win, wholly left a loss; one that crosses 50% decides nothing.",
        parts,
    )


def _judge_table(judges: Mapping[str, Judged], primary: str) -> Table:
    ordered = sorted(judges.values(), key=lambda one: one.judge != primary)
    columns: list[_Column] = [("judge", lambda one: one.judge + (" *" if one.independent is False else ""))]
    columns += [
        ("change", lambda one: with_interval(one.delta, one.delta_ci, lambda value: f"{value:+.3g}")),
        ("win rate", lambda one: with_interval(one.win_rate, one.win_rate_ci, share)),
    ]
    optional: list[tuple[str, str, Callable[[Judged], str]]] = [
        ("reference to policy", "policy_mean", lambda one: f"{plain(one.reference_mean)} to {plain(one.policy_mean)}"),
        ("length-controlled win rate", "length_controlled",
         lambda one: with_interval(one.length_controlled, one.length_controlled_ci, share)),
        ("effect size", "effect_size",
         lambda one: with_interval(one.effect_size, one.effect_size_ci, lambda value: f"{value:.2f}")),
        ("p", "p_value", lambda one: p_value(one.p_value)),
        ("p, corrected", "p_adjusted", lambda one: p_value(one.p_adjusted)),
        ("prompts to settle it", "prompts_to_settle", lambda one: plain(one.prompts_to_settle)),
    ]  # fmt: skip
    columns += [
        (heading, write) for heading, name, write in optional if any(getattr(one, name) is not None for one in ordered)
    ]
    columns.append(("policy is", lambda one: one.verdict or "-"))
    return Table(
        [heading for heading, _ in columns],
        [[write(one) for _, write in columns] for one in ordered],
        "Judges of the main comparison. Brackets hold 95% intervals; p is the exact sign test."
        + (" Corrected: for the number of judges." if any(one.p_adjusted is not None for one in ordered) else "")
        + (" A star marks what PPO trained on." if any(one.independent is False for one in ordered) else ""),
        frozenset(range(1, len(columns) - 1)),
    )


def _fact_table(facts: Mapping[str, tuple[float | None, float | None]]) -> Table:
    def write(name: str, value: float | None) -> str:
        return "-" if value is None else number(value, 3) if name == "response length" else share(value)

    rows = [[name, write(name, policy), write(name, reference)] for name, (policy, reference) in facts.items()]
    return Table(["", "policy", "reference"], rows, "What no judge sees.", frozenset({1, 2}))


def _seed_table(run: Run) -> Table:
    rows = [
        [
            one.seed,
            with_interval(one.judged.win_rate, one.judged.win_rate_ci, share),
            plain(one.judged.delta),
            plain(one.kl),
            one.judged.verdict or "-",
        ]
        for one in run.by_seed
    ]
    return Table(["seed", "win rate", "change", "KL", "policy is"], rows, "Each seed alone.", frozenset({1, 2, 3}))


def _endpoint_table(endpoint: Mapping[str, Any]) -> Table:
    rows = []
    for key, value in endpoint.items():
        if isinstance(value, Mapping):
            rows += [[f"{key.replace('_', ' ')} with {name}", plain(inner)] for name, inner in value.items()]
        elif value is not None:
            rows.append([key.replace("_", " "), plain(value)])
    caption = "What its answers took, and how far the position in its prompt mattered."
    return Table(["judge at an endpoint", ""], rows, caption, frozenset({1}))


# ---------------------------------------------------------------- samples


def _samples(run: Run) -> Section:
    found, parts = run.comparison, list[Part]()
    if found is not None and run.pairs:
        kept = fitting(run.pairs)
        left_out = len(run.pairs) - len(kept)
        if left_out:
            parts.append(
                Text(
                    f"{len(kept):,} of {len(run.pairs):,} pairs fit on this page, equally many from each part of the "
                    "file. All of them are in compare/samples.jsonl."
                )
            )
        parts.append(Samples([cut(pair) for pair in kept], list(found.judges), found.primary, left_out))
    return Section(
        "samples",
        "Samples",
        "Each row is one prompt with both answers; sort by change to read what was gained and what was lost.",
        parts,
    )


def fitting(pairs: Sequence[Pair], most: int = MOST_TEXT) -> list[Pair]:
    """Return all pairs, or every n-th one where their texts are longer than `most` characters together."""
    total = sum(_size(pair) for pair in pairs)
    each = math.ceil(total / most) if total > most else 1
    return list(pairs[::each])


def _size(pair: Pair) -> int:
    return sum(min(len(text), LONGEST_TEXT) for text in (pair.prompt, pair.policy, pair.reference))


def cut(pair: Pair) -> Pair:
    """Cut very long texts of a pair, and say where."""

    def shorter(text: str) -> str:
        left = len(text) - LONGEST_TEXT
        return text if left <= 0 else f"{text[:LONGEST_TEXT]} [{left:,} more characters in samples.jsonl]"

    return replace(pair, prompt=shorter(pair.prompt), policy=shorter(pair.policy), reference=shorter(pair.reference))


# ---------------------------------------------------------------- scores, length, groups


def _scores(run: Run) -> Section:
    found, rows = run.comparison, list[Part]()
    if found is not None and run.pairs:
        for judge in sorted(found.judges, key=lambda name: name != found.primary):
            results = by_prompt(run.pairs, judge)
            if results:
                spread = verdict.distribution(score_bins(run.pairs, judge), judge, results)
                rows.append(Figures([spread, verdict.changes(results, judge)]))
    return Section(
        "scores",
        "Scores",
        "A policy that is better throughout shifts as a whole; a long tail on one side means that few prompts decide.",
        rows,
    )


def _length(run: Run) -> Section:
    found, parts = run.comparison, list[Part]()
    if found is not None and run.pairs:
        rows, figures = [], []
        for judge in sorted(found.judges, key=lambda name: name != found.primary):
            effect = length_effect(run.pairs, judge)
            if effect is None:
                continue
            controlled = found.judges[judge].length_controlled
            rows.append(
                [
                    judge,
                    plain(effect.correlation),
                    *(
                        f"{share(group.win_rate)} of {group.prompts}" if group else "-"
                        for group in (effect.longer, effect.shorter)
                    ),
                    "-"
                    if controlled is None
                    else with_interval(controlled, found.judges[judge].length_controlled_ci, share),
                ]
            )
            figures.append(verdict.length(run.pairs, judge, effect))
        headings = ["judge", "score and length, rank correlation", "win rate where longer", "win rate where shorter",
                    "length-controlled win rate"]  # fmt: skip
        if all(row[-1] == "-" for row in rows):
            headings, rows = headings[:-1], [row[:-1] for row in rows]
        if rows:
            caption = "Longer, shorter: pairs whose policy's answer is that, by prompt; a prompt may stand in both."
            parts = [Figures(figures), Table(headings, rows, caption, frozenset(range(1, len(headings))))]
    return Section(
        "length",
        "Length",
        "A judge that simply likes long answers is easy to please: a gain should hold at equal length.",
        parts,
    )


def _groups(run: Run) -> Section:
    found, figures = run.comparison, list[Figure]()
    if found is not None and run.pairs:
        for heading, groups in prompt_groups(by_prompt(run.pairs, found.primary)):
            figures.append(verdict.groups(heading, groups, found.primary))
    return Section(
        "groups",
        "Which prompts",
        "A gain on one group of prompts only is a gain on that group only; intervals of small groups are wide.",
        [Figures(figures)] if figures else [],
    )


def _reproduce(run: Run) -> Section:
    return Section(
        "reproduce",
        "Recipe and commands",
        "The recipe has every default filled in: saved as a file, it gives this run again where its data is found.",
        [
            Code(commands(run), "commands"),
            Code(run.recipe_text, "recipe"),
        ],
    )


def commands(run: Run) -> str:
    """Write the commands that make the run again: the versions, the run, its verdict, its report."""
    versions = next((stage.manifest.versions for stage in run.stages if stage.manifest is not None), {})
    pins = " ".join(
        f"{name}=={versions[name].partition('+')[0]}"
        for name in ("torch", "transformers", "trl", "peft")
        if name in versions
    )
    file, folder = shlex.quote(f"{run.name}.yaml"), shlex.quote(f"runs/{run.name}")
    lines = [
        f"# the recipe below, saved as {file}" + (f"; rlhfctl {versions['rlhfctl']}" if "rlhfctl" in versions else ""),
        *([f"pip install {pins}"] if pins else []),
        f"rlhfctl run {file} --run-dir {folder}",
        f"rlhfctl compare {folder}",
        f"rlhfctl report {folder}",
    ]
    if any(stage.kind in ("ppo", "dpo") and stage.state == "complete" for stage in run.stages):
        lines.append(f"rlhfctl export {folder} --to {shlex.quote(f'{run.name}-policy')}")
    return "\n".join(lines) + "\n"
