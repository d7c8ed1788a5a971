"""Statistics of labels: agreement against hand-computed values, position bias, what cannot be told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlhfctl.labels.desk import Desk, Settings
from rlhfctl.labels.items import make_item
from rlhfctl.labels.store import Event, open_labels
from rlhfctl.tools.label_stats import statistics_of, view

ITEMS = [make_item(f"q{n}", ["a", "b"], ["m", "n"]) for n in range(10)]


def events(annotator: str, ranks: list[tuple[int, int]], shown: tuple[int, int] = (0, 1)) -> list[Event]:
    return [
        Event(f"{annotator}{n}", "label", item.id, annotator, ranks=one, shown=shown, seconds=float(n))
        for n, (item, one) in enumerate(zip(ITEMS, ranks, strict=False))
    ]


def test_agreement_equals_what_is_computed_by_hand(tmp_path: Path) -> None:
    left, right = (0, 1), (1, 0)
    with open_labels(tmp_path / "l.sqlite") as store:
        desk = Desk(ITEMS, store, Settings(overlap=1.0))
        for one in events("ana", [left] * 6 + [right] * 4) + events("bo", [left] * 5 + [right] * 5, (1, 0)):
            store.add(one)
        desk.refresh()
        found = statistics_of(desk, desk.answers.labels([item.id for item in ITEMS]))
    assert found["agreement"]["percent"]["value"] == pytest.approx(0.9)
    # Observed 0.9; by chance 0.6 * 0.5 + 0.4 * 0.5 = 0.5.
    assert found["cohen_kappa"]["ana and bo"]["value"] == pytest.approx(0.8)
    # Shares over both: 11 of 20 left, 9 right: 0.55^2 + 0.45^2 = 0.505.
    assert found["agreement"]["fleiss_kappa"]["value"] == pytest.approx((0.9 - 0.505) / (1 - 0.505))
    # 1 - (2 unequal ordered pairs of 20) / ((20^2 - 11^2 - 9^2) / (20 * 19)).
    assert found["agreement"]["krippendorff_alpha"]["value"] == pytest.approx(1 - 0.1 / (198 / 380))
    assert found["annotators"]["ana"]["first_chosen"] | {"ci95": None, "p_value": None} == {
        "share": 0.6, "ci95": None, "p_value": None, "pairs": 10,
    }  # fmt: skip
    assert found["annotators"]["bo"]["first_chosen"]["share"] == 0.5
    assert found["annotators"]["ana"]["median_seconds"] == 4.5
    text = drawn(found)
    assert "equal answers" in text and "90%" in text and "the intervals are rough" in text


def test_people_compare_the_models_that_wrote(tmp_path: Path) -> None:
    mixed = [make_item(f"q{n}", ["a", "b"], ["ppo", "sft"] if n % 2 else ["sft", "ppo"]) for n in range(8)]
    alike = make_item("alike", ["a", "b"], ["ppo", "ppo"])
    with open_labels(tmp_path / "l.sqlite") as store:
        desk = Desk([*mixed, alike], store)
        for n, item in enumerate([*mixed, alike]):
            best = item.origins.index("ppo") if n < 5 else 1 - item.origins.index("ppo")
            ranks = (0, 0) if n == 7 else (int(best == 1), int(best == 0))
            store.add(Event(f"k{n}", "label", item.id, "ana", ranks=ranks, shown=(0, 1)))
        desk.refresh()
        found = statistics_of(desk, desk.answers.labels([item.id for item in desk.items]))
    one = found["between_models"]["ppo over sft"]
    assert (one["share"], one["answers"], one["ties"]) == (5.5 / 8, 8, 1)
    assert one["ci95"][0] < 5.5 / 8 < one["ci95"][1]
    assert "ppo over sft 69%" in " ".join(drawn(found).split())


def test_without_overlap_agreement_cannot_be_told(tmp_path: Path) -> None:
    with open_labels(tmp_path / "l.sqlite") as store:
        desk = Desk(ITEMS, store)
        for one in events("ana", [(0, 1), (0, 0)]):
            store.add(one)
        desk.refresh()
        found = statistics_of(desk, desk.answers.labels([item.id for item in ITEMS]))
    assert found["agreement"]["percent"]["value"] is None and found["cohen_kappa"] == {}
    assert found["annotators"]["ana"]["ties"] == 1 and found["annotators"]["ana"]["first_chosen"]["pairs"] == 1
    text = drawn(found)
    assert "2 of 10 answers to 10 questions" in text and "agreement cannot be told" in text


def drawn(found: dict[str, object]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    for part in view(found):
        console.print(part)
    return console.export_text()
