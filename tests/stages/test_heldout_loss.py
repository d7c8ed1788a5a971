"""The loss on held-out demonstrations, by hand and against TRL's own loss."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_stage import context, small_model, small_tokenizer

from rlhfctl.errors import DataError
from rlhfctl.events import Event, Metrics
from rlhfctl.stages import sft
from rlhfctl.stages.heldout_loss import HeldoutLoss

TOKENIZER = small_tokenizer()
A, B = TOKENIZER.convert_tokens_to_ids(["a", "b"])
LONG, SHORT = {"input_ids": [A, B, B, B], "labels": [-100, B, B, B]}, {"input_ids": [B, A], "labels": [-100, A]}


def loss_of(rows: list[dict[str, list[int]]], folder: Path, events: list[Event] | None = None) -> HeldoutLoss:
    return HeldoutLoss(rows, context(folder, "sft", [] if events is None else events), TOKENIZER.pad_token_id)


def test_a_model_that_knows_nothing_by_hand(tmp_path: Path) -> None:
    model = small_model(TOKENIZER)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely
    each = math.log(model.config.vocab_size)
    found = loss_of([LONG, SHORT], tmp_path)
    assert found.per_row(model) == pytest.approx([3 * each, each]) and found.tokens == 4
    assert found.of(model) == pytest.approx(each)


def test_it_is_the_mean_over_tokens_as_transformers_computes_it(tmp_path: Path) -> None:
    model = small_model(TOKENIZER)
    with torch.no_grad():
        ids, labels = (torch.tensor([LONG[key]]) for key in ("input_ids", "labels"))
        long = model(input_ids=ids, labels=labels).loss.item()
        ids, labels = (torch.tensor([SHORT[key]]) for key in ("input_ids", "labels"))
        short = model(input_ids=ids, labels=labels).loss.item()
    found = loss_of([LONG, SHORT], tmp_path)
    assert found.of(model) == pytest.approx((3 * long + short) / 4)  # not the mean over rows
    assert sum(found.as_scores(model)) / 2 == pytest.approx(-found.of(model))


def test_rows_without_a_learned_token_are_left_out_and_the_first_token_is_not_predicted(tmp_path: Path) -> None:
    nothing, first = {"input_ids": [A, B], "labels": [-100, -100]}, {"input_ids": [A, B], "labels": [A, B]}
    found = loss_of([nothing, first], tmp_path)
    assert found.rows == [[A, B]] and found.learned == [[1]]
    assert found.ctx.notes == ["warning: 1 of 2 held-out demonstrations have no token to learn and are not measured"]
    with pytest.raises(DataError, match="no held-out demonstration has a token") as caught:
        loss_of([nothing], tmp_path)
    assert caught.value.where == "data.demonstrations.heldout"


def test_dropout_is_off_and_the_model_trains_on(tmp_path: Path) -> None:
    model = small_model(TOKENIZER).train()
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda layer, given, out: out + 9 * layer.training)
    found = loss_of([LONG], tmp_path)
    assert found.of(model) == pytest.approx(found.of(model.eval()))
    model.train()
    found.of(model)
    assert model.training


def test_it_is_reported_after_each_epoch(tmp_path: Path) -> None:
    events: list[Event] = []
    found, model = loss_of([LONG], tmp_path, events), small_model(TOKENIZER)
    assert found.every is None
    found(model, 5, 10)
    (event,) = [one for one in events if isinstance(one, Metrics)]
    assert (event.step, event.total, event.split) == (5, 10, "eval")
    assert event.values == {"eval_loss": pytest.approx(found.of(model))}


def test_held_out_rows_are_encoded_as_the_others_and_cut_where_they_are(tmp_path: Path) -> None:
    row = {"prompt": "ab", "completion": "ab" * 6}
    given: dict[str, Any] = {"completion_only_loss": None, "assistant_only_loss": False, "packing": False}
    config = SimpleNamespace(**given, max_length=8)
    ctx = context(tmp_path, "sft", [])
    trained, aside = sft._encode([row], TOKENIZER, config, small_model(TOKENIZER), ctx, [row])  # type: ignore[arg-type]
    assert aside == [{key: ids[:8] for key, ids in trained[0].items()}]
