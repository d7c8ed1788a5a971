"""Build the pages of `rlhfctl reproduce gao` and `rloo`: which statements held, the curves, and their numbers.

Pure: the result as the command writes it with --json in, a page out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhfctl.dashboard.text import counted
from rlhfctl.report.content import Figures, Page, Section, Table
from rlhfctl.report.figures.reproduction import algorithm_figures, reproduction_figures
from rlhfctl.stats.scaling import over_seeds

_OUTCOMES: dict[bool | None, str] = {True: "held", False: "did not hold", None: "cannot tell"}
_KINDS = {"best_of_n": "best of n: d (alpha - beta d)", "rl": "RL: d (alpha - beta log d)"}


def page_of_reproduction(result: Mapping[str, Any]) -> Page:
    """Build the page from the result of at least two seeds."""
    seeds, statements = result["seeds"], result["statements"]
    figures = reproduction_figures(result)
    return Page(
        title="Reward over-optimization",
        subtitle=f"Gao et al. (2022) and Coste et al. (2023) in small, {counted(len(seeds), 'seed')}",
        word="",
        headline=_headline([one["held"] for one in statements if one["name"].startswith("Gao")]),
        meaning="A proxy is a reward model that is optimized; gold is the built-in task's true preference. Every "
        "statement is judged by 95% intervals over seeds, which are not corrected for their number.",
        sections=[
            Section("outcomes", "Which statements held", "What they say, in short.", [_outcomes(statements)]),
            Section(
                "curves",
                "Curves",
                "Distance from the reference from left to right, score upwards; all curves start at 0.",
                [Figures(figures[:2]), Figures(figures[2:])],
            ),
            Section("fits", "Fits", "The mean over seeds and its 95% interval.", [_fits(seeds)]),
            Section(
                "measures",
                "Measures",
                "What each statement was judged by: the mean over seeds, its 95% interval, and what was asked.",
                [_measures(statements)],
            ),
        ],
    )


def page_of_algorithms(result: Mapping[str, Any]) -> Page:
    """Build the page of `rlhfctl reproduce rloo` from the result of at least two seeds."""
    seeds, statements = result["seeds"], result["statements"]
    return Page(
        title="Algorithms side by side",
        subtitle=f"Ahmadian et al. (2024) in small, {counted(len(seeds), 'seed')}",
        word="",
        headline=_counted([one["held"] for one in statements]),
        meaning="All algorithms begin with the same base and the same reward model. Gold is the built-in task's true "
        "preference. Every statement is judged by 95% intervals over seeds, which are not corrected for their number.",
        sections=[
            Section("outcomes", "Which statements held", "What they say, in short.", [_outcomes(statements)]),
            Section("ends", "At equal samples", "Where each run ends: the mean over seeds and its 95% interval.",
                    [_ends(seeds)]),
            Section(
                "curves",
                "Curves",
                "Distance from the reference from left to right, score upwards; all curves start at 0.",
                [Figures(algorithm_figures(result))],
            ),
            Section(
                "measures",
                "Measures",
                "What each statement was judged by: the mean over seeds, its 95% interval, and what was asked.",
                [_measures(statements)],
            ),
        ],
    )  # fmt: skip


def _ends(seeds: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("gold", "wins", "score", "kl", "broken")
    rows = [
        [name, *(_with_interval([seed["ends"][name][column] for seed in seeds]) for column in columns)]
        for name in seeds[0]["ends"]
    ]
    headings = ("algorithm", "gold", "win rate", "reward model's score", "KL in nats", "gold is 0")
    return Table(headings, rows, right=frozenset(range(1, 6)), whole=frozenset(range(6)))


def _headline(outcomes: Sequence[bool | None]) -> str:
    return _counted(outcomes, " of Gao et al.")


def _counted(outcomes: Sequence[bool | None], whose: str = "") -> str:
    held, failed, open_ = (sum(outcome is one for outcome in outcomes) for one in (True, False, None))
    stated = counted(len(outcomes), "statement")
    return f"of the {stated}{whose}, {held} held, {failed} did not, and of {open_} these seeds cannot tell"


def _outcomes(statements: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[one["name"], _OUTCOMES[one["held"]], one["says"]] for one in statements]
    return Table(("statement", "outcome", "what it says"), rows, whole=frozenset({0, 1}))


def _fits(seeds: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for kind, form in _KINDS.items():
        for size in sorted(seeds[0][kind], key=int):
            curves = [seed[kind][size] for seed in seeds]
            numbers = [[curve["fit"][name] for curve in curves] for name in ("alpha", "beta", "r_squared")]
            rows.append([form, f"{int(size):,}", *map(_with_interval, [*numbers, [max(c["gold"]) for c in curves]])])
    headings = ("form of gold", "pairs", "alpha", "beta", "R squared", "highest gold")
    return Table(headings, rows, right=frozenset(range(1, 6)), whole=frozenset(range(6)))


def _measures(statements: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [one["name"], measure["what"], _written(measure["value"], *measure["ci95"]), measure["asked"],
         _OUTCOMES[measure["held"]]]
        for one in statements
        for measure in one["measures"]
    ]  # fmt: skip
    headings = ("statement", "measure", "measured", "asked", "outcome")
    return Table(headings, rows, right=frozenset({2}), whole=frozenset({0, 2, 3, 4}))


def _with_interval(values: Sequence[float]) -> str:
    mean, interval = over_seeds(values)
    return _written(mean, interval.low, interval.high)


def _written(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
