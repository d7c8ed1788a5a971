"""Build the page of several runs: verdicts side by side, what differs in their recipes, win rate against KL, curves.

Pure: the records of facts/records.py in, the parts of content.py out. Samples stay in each run's own report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhfctl.dashboard.text import counted, number, setting
from rlhfctl.report import words
from rlhfctl.report.cells import plain, with_interval
from rlhfctl.report.content import Check, Figures, Fold, Legend, Number, Page, Part, Section, Table, Text
from rlhfctl.report.facts.records import Run, Stage
from rlhfctl.report.figures import training
from rlhfctl.report.figures.runs import pareto
from rlhfctl.report.training_sections import curve_parts
from rlhfctl.verdict import share

_ABSENT = "not set"
_NAMES_OF_RUNS = ("name", "folder")  # keys that name a run and change nothing


def page_of_several(runs: Sequence[Run]) -> Page:
    """Build the report of several runs."""
    named = list(zip(labels(runs), runs, strict=True))
    judged = [(label, run) for label, run in named if run.comparison is not None]
    return Page(
        title=" and ".join(label for label, _ in named) if len(named) < 4 else f"{len(named)} runs",
        subtitle=f"{counted(len(named), 'run')} side by side",
        word="",
        headline=_best(judged),
        meaning="Win rates are each run's policy against its own reference. They can be compared where the runs share "
        "test prompts, judge and temperature.",
        numbers=[Number(label, *_rate(run), *_bar(run)) for label, run in named[:4]],
        checks=list(_checks(judged)),
        sections=[section for section in sections_of(named) if section.parts],
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """Name each run: by its folder, with as many folders above as tell the runs apart."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({index + 1})" for index, path in enumerate(paths)]


def _rate(run: Run) -> tuple[str, str]:
    found = run.comparison
    if found is None:
        return "-", "no verdict yet"
    kl = "" if found.kl is None else f"; KL {number(found.kl, 3)}"
    return share(found.main.win_rate), f"{found.verdict}, by {found.primary}{kl}"


def _bar(run: Run) -> tuple[tuple[float, float] | None, float | None]:
    found = run.comparison
    return (None, None) if found is None else (found.main.win_rate_ci, found.main.win_rate)


def _best(judged: Sequence[tuple[str, Run]]) -> str:
    """Name the run whose win rate's interval begins highest; this is no test between runs."""
    if not judged:
        return "none of these runs has a verdict yet"

    def lower_end(item: tuple[str, Run]) -> float:
        assert item[1].comparison is not None
        main = item[1].comparison.main
        return main.win_rate_ci[0] if main.win_rate_ci else main.win_rate

    label, run = max(judged, key=lower_end)
    assert run.comparison is not None
    return (
        f"{label} is the surest to win: at least {share(lower_end((label, run)))} of the test prompts, by "
        f"{run.comparison.primary}"
    )


def _checks(judged: Sequence[tuple[str, Run]]) -> Iterator[Check]:
    found = [(run, run.comparison) for _, run in judged if run.comparison is not None]
    if len(found) < 2:
        return
    prompts = {_input(run, "data.prompts") for run, _ in found}
    same = len(prompts) == 1
    text = "All runs were compared on the same." if same else "They differ: the win rates are not on one scale."
    yield Check("good" if same else "bad", "Test prompts", text)
    judges = sorted({comparison.primary for _, comparison in found})
    yield Check("good" if len(judges) == 1 else "bad", "Judge", ", ".join(judges) + ".")
    temperatures = {comparison.temperature for _, comparison in found}
    same = len(temperatures) == 1
    yield Check("good" if same else "bad", "Temperature", "The same." if same else "They differ.")
    alone = [label for label, run in judged if run.comparison is not None and run.comparison.main.independent is False]
    if alone:
        yield Check("bad", "Independent judge", f"PPO trained against the judge: {', '.join(alone)}.")
    yield Check(
        "unknown", "Difference between runs", "Not tested here: overlapping intervals are no proof of equality."
    )


def _input(run: Run, name: str) -> str:
    manifests = [stage.manifest for stage in run.of_kind("compare") if stage.manifest is not None]
    return manifests[-1].inputs.get(name, "") if manifests else ""


def sections_of(named: Sequence[tuple[str, Run]]) -> Iterator[Section]:
    """Yield the sections that set several runs side by side; some may have no parts."""
    figure = pareto(named)
    yield Section(
        "pareto",
        "Win rate against KL",
        "A gain that costs less KL leaves more of the old model in place.",
        [Figures([figure])] if figure is not None else [],
    )
    yield Section("verdicts", "Verdicts", "One row per run; brackets hold 95% intervals.", [_verdicts(named)])
    rows = differences([run for _, run in named])
    differs: list[Part] = [Table(["key", *(label for label, _ in named)], rows)] if rows else []
    yield Section(
        "differences",
        "What differs",
        "Only these keys and inputs differ; everything else in the recipes is equal.",
        differs or [Text("The recipes are equal.")],
    )
    parts: list[Part] = []
    by_place = _by_place(named)
    series = list(dict.fromkeys(name for stages in by_place.values() for name in stages))
    for place, stages in by_place.items():
        parts += curve_parts(place, stages, series)
    parts = [Legend(series), *parts] if parts else []
    yield Section("curves", "Curves", "The same metric of all runs over each other, a colour per run.", parts)
    over = training.reward_over_kl({label: run.of_kind("ppo")[-1] for label, run in named if run.of_kind("ppo")})
    yield Section(
        "optimization",
        "Reward against KL",
        "The run whose curve lies higher at the same KL pays less for its reward.",
        [Figures([over])] if over is not None else [],
    )
    recipes: list[Part] = [Fold(label, _of_one(run)) for label, run in named]
    yield Section("runs", "Each run", "What each run means by itself; its own report has its samples.", recipes)


def _of_one(run: Run) -> list[Part]:
    said = run.comparison.sentence if run.comparison is not None else "no verdict yet"
    checks = [[check.mark, check.title, check.text] for check in words.checks(run)]
    return [
        Text(said, strong=True),
        Text(words.meaning(run)),
        Table(["", "looked at", "found"], checks),
        Text(f"Its own report: rlhfctl report {run.path}"),
    ]


def _verdicts(named: Sequence[tuple[str, Run]]) -> Table:
    rows = []
    for label, run in named:
        found = run.comparison
        cost = words.seconds_text(run)
        if found is None:
            rows.append([label, "unfinished", "-", "-", "-", "-", "-", cost])
            continue
        main, lowest = found.main, found.lowest
        rows.append(
            [
                label,
                found.verdict,
                found.primary + (" *" if main.independent is False else ""),
                with_interval(main.win_rate, main.win_rate_ci, share),
                with_interval(main.delta, main.delta_ci, lambda value: f"{value:+.3g}"),
                "-" if lowest is None else share(lowest.judges[found.primary].win_rate),
                plain(found.kl),
                cost,
            ]
        )
    headings = ["run", "verdict", "judge", "win rate", "change", "lowest fair control", "KL", "time"]
    starred = any(row[2].endswith("*") for row in rows)
    return Table(headings, rows, "A star marks what PPO trained on." if starred else "", frozenset(range(3, 8)))


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Return one row per key of the recipes, and per input of the stages, that is not equal in all runs."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in _NAMES_OF_RUNS]
    rows = [[key, *(setting(one[key]) if key in one else _ABSENT for one in flat)] for key in keys]
    inputs = [_inputs(run) for run in runs]
    for name in dict.fromkeys(name for one in inputs for name in one):
        rows.append([f"{name} (content)", *(one.get(name, _ABSENT)[:12] for one in inputs)])
    return [row for row in rows if len(set(row[1:])) > 1]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of nested mappings by its dotted key; a list is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(value, default=str))


def _inputs(run: Run) -> dict[str, str]:
    """Return the fingerprints of a run's data and reward functions: equal keys may name files that have changed."""
    found: dict[str, str] = {}
    for stage in run.stages:
        for name, fingerprint in (stage.manifest.inputs if stage.manifest is not None else {}).items():
            if name == "functions" or (name.startswith("data.") and name != "data.prompt_lengths"):
                found[name] = fingerprint
    return found


def _by_place(named: Sequence[tuple[str, Run]]) -> dict[str, dict[str, Stage]]:
    """Group the stages of all runs by place; seeds of one run are lines of their own."""
    found: dict[str, dict[str, Stage]] = {}
    for label, run in named:
        for stage in run.stages:
            found.setdefault(stage.place, {})[f"{label}, {stage.seed}" if stage.seed else label] = stage
    return found
