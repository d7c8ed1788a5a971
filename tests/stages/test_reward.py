"""The reward stage: the pairs that it trains on, its accuracy by hand, and the scores that it records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_stage import context, small_model, small_tokenizer
from trl import RewardConfig, RewardTrainer

from rlhfctl.artifacts import load_artifact
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.types import PreferenceGroup
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.events import Event, Metrics
from rlhfctl.models import scoring
from rlhfctl.recipe.schema import Reward
from rlhfctl.recipe.sections.reward import GROUP_LOSSES
from rlhfctl.stages import reward
from rlhfctl.training.trl.group_trainer import GroupRewardTrainer


def group(*responses: str, margin: float | None = None) -> PreferenceGroup:
    """Responses to one prompt, best first, with a pair for each two."""
    count = len(responses)
    pairs = tuple((i, j) for i in range(count) for j in range(i + 1, count))
    return PreferenceGroup("a", responses, tuple(range(count)), pairs, margin)


def encode(folder: Path, groups: list[PreferenceGroup], max_length: int | None) -> tuple[Any, list[str]]:
    tokenizer = small_tokenizer()
    ctx, config = context(folder, "reward", []), SimpleNamespace(max_length=max_length)
    return reward._encode(groups, Encoder(tokenizer), config, small_model(tokenizer), ctx), ctx.notes  # type: ignore[arg-type]


def test_pairs_longer_than_the_limit_are_dropped_one_by_one(tmp_path: Path) -> None:
    encoded, notes = encode(tmp_path, [group("b", "ab", "a" * 9)], 6)
    assert [one.group.comparisons for one in encoded] == [((0, 1),)]
    assert notes == ["warning: 2 of 3 pairs are longer than max_length=6 tokens and are dropped"]
    with pytest.raises(DataError, match="no pair fits into") as caught:
        encode(tmp_path, [group("a" * 9, "b")], 6)
    assert caught.value.where == "reward.trainer.max_length"


def test_pairs_are_rows_of_ids_and_each_has_a_margin_if_one_has(tmp_path: Path) -> None:
    plain, _ = encode(tmp_path, [group("b", "ab", "ba")], None)
    assert [set(pair) for pair in reward._pairs(plain)] == [{"chosen_ids", "rejected_ids"}] * 3
    mixed, _ = encode(tmp_path, [group("b", "a"), group("b", "ab", margin=2.0)], None)
    assert [pair["margin"] for pair in reward._pairs(mixed)] == [0.0, 2.0]


def test_the_plain_loss_keeps_trls_own_trainer_on_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loss has its trainer and its rows; the default is RewardTrainer itself, on its own columns."""
    groups, _ = encode(tmp_path, [group("b", "ab", "ba"), group("a", "b")], None)
    found = {}
    for section in (Reward(), Reward(label_error=0.1), *(Reward(loss=loss) for loss in GROUP_LOSSES)):  # type: ignore[arg-type]
        made = reward._trainer(
            section, RewardConfig(output_dir=str(tmp_path), bf16=False), groups, groups, small_tokenizer()
        )
        rows = made.keywords["train_dataset"]  # type: ignore[attr-defined]
        kind = made.func  # type: ignore[attr-defined]
        found[section.loss, section.label_error] = (kind, len(rows), "chosen_ids" in rows.column_names)
    assert found.pop(("bradley_terry", 0.0)) == (RewardTrainer, 4, True)
    assert found.pop(("bradley_terry", 0.1)) == (GroupRewardTrainer, 4, False)
    assert found == dict.fromkeys([(loss, 0.0) for loss in GROUP_LOSSES], (GroupRewardTrainer, 2, False))


def test_margins_that_a_loss_does_not_use_are_reported(tmp_path: Path) -> None:
    groups, _ = encode(tmp_path, [group("b", "a", margin=2.0), group("b", "ab")], None)
    ctx = context(tmp_path, "reward", [])
    for loss in ("bradley_terry", "k_wise", "best_of_k"):
        reward._tell_of_unused_margins(Reward(loss=loss), groups, ctx)
    assert ctx.notes == ["warning: 1 of 2 rows state a margin, which the loss best_of_k does not use"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "accuracy", "warned"),
    [
        ([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 1.0], 0.5, True),  # a tie counts as wrong
        ([1.0] * 20, [0.0] * 20, 1.0, False),
    ],
)
def test_the_heldout_accuracy_by_hand(
    chosen: list[float],
    rejected: list[float],
    accuracy: float,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "score_rows", lambda *given, **options: chosen + rejected)
    events: list[Event] = []
    ctx = context(tmp_path, "reward", events)
    pairs = [{"chosen_ids": [1], "rejected_ids": [2]}] * len(chosen)
    values = reward._heldout(None, pairs, small_tokenizer(), ctx)
    assert values["heldout_accuracy"] == accuracy
    assert values["heldout_accuracy_low"] <= accuracy <= values["heldout_accuracy_high"]
    assert values["heldout_margin"] == pytest.approx(
        sum(a - b for a, b in zip(chosen, rejected, strict=True)) / len(chosen)
    )
    assert any("no better than a coin" in note for note in ctx.notes) is warned
    (reported,) = [event for event in events if isinstance(event, Metrics)]
    assert (reported.split, reported.values) == ("heldout", values)


def test_scores_that_are_not_finite_stop_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "score_rows", lambda *given, **options: [float("inf"), 0.0])
    with pytest.raises(RlhfctlError, match="training diverged: the scores"):
        pairs = [{"chosen_ids": [1], "rejected_ids": [2]}]
        reward._heldout(None, pairs, small_tokenizer(), context(tmp_path, "reward", []))


def test_the_run_of_the_whole_loop_records_scores_of_heldout_pairs(tiny_run: Path) -> None:
    made = load_artifact(tiny_run / "reward")
    assert made.manifest.layout == {"head": True, "probes": "probes.json", "adapter": "adapter"}
    recorded = json.loads(made.part("probes").read_text())
    assert len(recorded["rows"]) == len(recorded["scores"]) == len(recorded["examples"]) == 32  # of 16 pairs
    assert len(set(recorded["scores"])) > 16
    assert {"accuracy", "heldout_accuracy", "heldout_margin"} <= set(made.manifest.metrics)
    assert made.manifest.metrics["reload_gap"] < 1e-4
