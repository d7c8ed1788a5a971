"""`rlhfctl label --stats`: how far annotators agree, how fast they are, what they do with the first place, and gold.

Reads the labels of a target. Writes nothing. Pure but for printing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.text import counted
from rlhfctl.labels import rankings
from rlhfctl.labels.answers import Answers, category, pairs_of_annotators
from rlhfctl.labels.desk import Desk
from rlhfctl.labels.items import Item
from rlhfctl.labels.store import Event
from rlhfctl.stats import agreement
from rlhfctl.stats.paired import compare_paired, wilson_ci

_SEED = 0  # of the bootstrap
_FEW = 50  # units judged by several people: with fewer the intervals of agreement are rough


def statistics_of(desk: Desk, labels: Sequence[Event]) -> dict[str, Any]:
    """Return the statistics of a desk's labels: the JSON that `label --stats --json` prints."""
    items = {item.id: item for item in desk.items}
    asked = [item for item in desk.items if item.gold is None]
    ratings = agreement.tabulate([_categories(desk.answers, item) for item in asked])
    own = {item.id for item in asked}
    shared = sum(1 for item in asked if len(desk.answers.judged(item.id)) > 1)
    names = sorted({event.annotator for event in labels})
    pairs = pairs_of_annotators(desk.answers, [item.id for item in asked])
    return {
        "questions": len(asked),
        "wanted_answers": desk.wanted_answers(),
        "open_answers": desk.open_questions(),
        "labels": len(labels),
        "judged_by_several": shared,
        "agreement": {
            "percent": _as_json(agreement.percent_agreement(ratings, seed=_SEED)),
            "krippendorff_alpha": _as_json(agreement.krippendorff_alpha(ratings, seed=_SEED)),
            "fleiss_kappa": _as_json(agreement.fleiss_kappa(ratings, seed=_SEED)),
        },
        "cohen_kappa": {
            f"{one} and {other}": _as_json(agreement.cohen_kappa(ratings, one, other, seed=_SEED))
            for one, other in pairs
        },
        "between_models": _between_models(rankings.between_origins([e for e in labels if e.item in own], items)),
        "annotators": {name: _of_annotator([e for e in labels if e.annotator == name], items) for name in names},
        "all": _of_annotator(labels, items),
    }


def _between_models(found: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, Any]:
    """Return, for each pair of models, how often people prefer the first one; ties count half."""
    told = {}
    for (first, second), values in sorted(found.items()):
        compared = compare_paired(values, [1 - value for value in values], seed=_SEED)
        told[f"{first} over {second}"] = {
            "share": compared.win_rate,
            "ci95": [compared.win_rate_ci95.low, compared.win_rate_ci95.high],
            "answers": len(values),
            "ties": values.count(0.5),
        }
    return told


def _categories(answers: Answers, item: Item) -> Mapping[str, str]:
    return {annotator: category(event) for annotator, event in answers.judged(item.id).items()}


def _as_json(found: agreement.Agreement) -> dict[str, Any]:
    values = asdict(found)
    interval = found.ci95
    return values | {"ci95": None if interval is None else [interval.low, interval.high]}


def _of_annotator(labels: Sequence[Event], items: Mapping[str, Item]) -> dict[str, Any]:
    right, known = rankings.right_on_gold(labels, items)
    first, decided = rankings.first_chosen(labels)
    bias = agreement.position_bias([1] * first + [-1] * (decided - first))
    return {
        "labels": len(labels),
        "ties": sum(1 for event in labels if event.ranks is not None and len(set(event.ranks)) == 1),
        "all_bad": sum(1 for event in labels if event.kind == "bad"),
        "median_seconds": rankings.median_seconds(labels),
        "first_chosen": {
            "share": bias.share,
            "ci95": None if bias.ci95 is None else [bias.ci95.low, bias.ci95.high],
            "p_value": bias.p_value,
            "pairs": decided,
        },
        "gold": {
            "right": right,
            "asked": known,
            "ci95": None if not known else [wilson_ci(right, known).low, wilson_ci(right, known).high],
        },
    }


# ---------------------------------------------------------------- the table


def view(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Draw the statistics: what is there, agreement, then one row per annotator."""
    given = found["wanted_answers"] - found["open_answers"]
    yield Text(f"{given} of {found['wanted_answers']} answers to {counted(found['questions'], 'question')} are there")
    if found["judged_by_several"]:
        yield _agreement(found)
        if found["judged_by_several"] < _FEW:
            yield Text(f"few questions are judged by several people (below {_FEW}): the intervals are rough", "yellow")
    else:
        yield Text("no question is judged by two people, so agreement cannot be told: rlhfctl label ... --overlap 0.2")
    if found["between_models"]:
        yield _models(found["between_models"])
    if found["annotators"]:
        yield _annotators(found)
        yield Text("first chosen: pairs in which the response shown first won; brackets: 95% intervals")


def _agreement(found: Mapping[str, Any]) -> Table:
    table = Table("agreement", "value", box=None, padding=(0, 2, 0, 0))
    names = {"percent": "equal answers", "krippendorff_alpha": "Krippendorff's alpha", "fleiss_kappa": "Fleiss' kappa"}
    for key, label in names.items():
        table.add_row(label, _interval(found["agreement"][key], percent=key == "percent"))
    for pair, value in found["cohen_kappa"].items():
        table.add_row(f"Cohen's kappa, {pair}", f"{_interval(value)} on {counted(value['units'], 'question')}")
    return table


def _models(found: Mapping[str, Any]) -> Table:
    table = Table("preferred", "share of answers, ties half", "answers", "ties", box=None, padding=(0, 2, 0, 0))
    for name, one in found.items():
        low, high = one["ci95"]
        table.add_row(name, f"{one['share']:.0%} [{low:.0%}, {high:.0%}]", str(one["answers"]), str(one["ties"]))
    return table


def _interval(value: Mapping[str, Any], *, percent: bool = False) -> str:
    if value["value"] is None:
        return "cannot be told"

    def written(number: float) -> str:
        return f"{number:.0%}" if percent else f"{number:.2f}"

    interval = "" if value["ci95"] is None else " [" + ", ".join(map(written, value["ci95"])) + "]"
    return written(value["value"]) + interval


def _annotators(found: Mapping[str, Any]) -> Table:
    table = Table(
        "annotator",
        "labels",
        "ties",
        "all bad",
        "time each",
        "first chosen",
        "gold right",
        box=None,
        padding=(0, 2, 0, 0),
    )
    rows = dict(found["annotators"])
    for name, values in (rows | {"all": found["all"]} if len(rows) > 1 else rows).items():
        seconds, first, gold = values["median_seconds"], values["first_chosen"], values["gold"]
        told = "-" if first["share"] is None else f"{first['share']:.0%}"
        if first["ci95"] is not None:
            told += f" [{first['ci95'][0]:.0%}, {first['ci95'][1]:.0%}]"
        known = "-" if not gold["asked"] else f"{gold['right']} of {gold['asked']}"
        table.add_row(
            name,
            str(values["labels"]),
            str(values["ties"]),
            str(values["all_bad"]),
            "-" if seconds is None else f"{seconds:.1f} s",
            told,
            known,
        )
    return table
