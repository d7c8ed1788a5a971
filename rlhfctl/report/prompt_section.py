"""Build the report's section on the prompts that PPO found, from prompts.json of the compare stage. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhfctl.dashboard.text import number
from rlhfctl.report.content import Heading, Part, Section, Table, Text
from rlhfctl.report.facts.records import Run
from rlhfctl.verdict import share

SHOWN = 10
"""Prompts of the policy in the table, the best ones."""


def prompts(run: Run) -> Section:
    """Show the best prompts beside the empty one, the reference's and those of a search; one table per seed."""
    parts: list[Part] = []
    for seed, found in run.prompts:
        parts += [Heading(seed)] if seed else []
        parts += _of_one(found)
    return Section(
        "prompts",
        "Prompts found",
        "The order is by the reward on the examples that training and evaluation used; the accuracy on test examples, "
        "which chose nothing, says how good a prompt is.",
        parts,
    )


def _of_one(found: Mapping[str, Any]) -> Iterator[Part]:
    best, empty, examples = found["policy"][0], found["empty"], found["examples"]
    yield Text(
        f"With the best prompt, {best['prompt']!r}, the frozen model is right on {share(best['accuracy'])} of "
        f"{examples['test']} test examples; with the empty prompt on {share(empty['accuracy'])}.",
        strong=True,
    )
    rows = [("policy", row) for row in found["policy"][:SHOWN]]
    rows += [("no prompt", empty), *(("reference, its best", row) for row in found["reference"][:1])]
    search = found.get("search", {})
    if "random" in search:
        rows.append((f"best of {search['random']['tried']:,} random prompts", search["random"]))
    if "greedy" in search:
        rows.append((f"word by word, {search['greedy']['tried']:,} tried", search["greedy"]))
    yield Table(
        ["from", "prompt", "share of samples", "accuracy", "reward", f"accuracy on the {examples['chosen_on']} seen"],
        [
            [
                origin,
                row["prompt"] or "(empty)",
                share(row["share"]) if "share" in row else "",
                share(row["accuracy"]),
                number(row["reward"]),
                share(row["chosen_on_accuracy"]),
            ]
            for origin, row in rows
        ],
        caption=f"Template: {found['template']}",
        right=frozenset({2, 3, 4, 5}),
    )
