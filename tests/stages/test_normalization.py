"""The zero of a trained reward: the demonstrations' mean by hand, and base*'s samples to training prompts alone."""

from __future__ import annotations

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_stage import context, small_model, small_tokenizer

from rlhfctl.data.types import PreferenceGroup, PromptSplit
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.events import Event
from rlhfctl.generation import local
from rlhfctl.models import heads, scoring
from rlhfctl.recipe.schema import Reward
from rlhfctl.stages import normalization
from rlhfctl.stages.context import Context

TOKENIZER = small_tokenizer()
GROUPS = [PreferenceGroup("b a", ("a", "b"), (0, 1), ((0, 1),))]


def scorer() -> Any:
    return heads.scorer_on(small_model(TOKENIZER), seed=1)


def prepared(folder: Path, events: list[Event], data: dict[str, Any]) -> Context:
    """A context with data, whose loader gives base*."""
    ctx = context(folder, "reward", events)
    vars(ctx)["data"] = data
    vars(ctx)["parents"] = {"base": None}
    base = SimpleNamespace(model=small_model(TOKENIZER), tokenizer=TOKENIZER)
    vars(ctx)["loader"] = SimpleNamespace(load_base=lambda source, **options: base)
    return ctx


def normalized(how: str, ctx: Context, model: Any, max_length: int | None = None) -> None:
    normalization.normalize(Reward(normalize=how), model, TOKENIZER, max_length, GROUPS, ctx)  # type: ignore[arg-type]


def demonstrations(*texts: str) -> dict[str, Any]:
    return {"demonstrations": SimpleNamespace(rows=[{"prompt": "a ", "completion": text} for text in texts])}


def ids_of(text: str) -> list[int]:
    return [*TOKENIZER(f"a {text}", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]


def test_the_mean_score_of_the_demonstrations_becomes_zero(tmp_path: Path) -> None:
    model, texts = scorer(), ("b", "ab", "bba", "a b a")
    rows = [ids_of(text) for text in texts]
    before = scoring.score_rows(model, rows, TOKENIZER.pad_token_id)
    ctx = prepared(tmp_path, [], demonstrations(*texts))
    normalized("demonstrations", ctx, model)
    after = scoring.score_rows(model, rows, TOKENIZER.pad_token_id)
    mean = sum(before) / 4
    assert abs(mean) > 1e-3
    assert after == pytest.approx([score - mean for score in before], abs=1e-6)  # shifted, not scaled
    assert ctx.notes == [f"the reward is shifted by {-mean:+.4g}: the mean score of 4 demonstrations is 0"]


def test_demonstrations_that_are_too_long_do_not_count(tmp_path: Path) -> None:
    model, ctx = scorer(), prepared(tmp_path, [], demonstrations("b", "ab", "b" * 20))
    normalized("demonstrations", ctx, model, max_length=8)
    kept = scoring.score_rows(model, [ids_of("b"), ids_of("ab")], TOKENIZER.pad_token_id)
    assert statistics.fmean(kept) == pytest.approx(0, abs=1e-6)
    assert ctx.notes[0].startswith("warning: 1 of 3 demonstrations are longer than max_length=8 tokens")
    with pytest.raises(DataError, match="no demonstration fits into"):
        normalized("demonstrations", prepared(tmp_path, [], demonstrations("b" * 20)), scorer(), max_length=8)


def prompts() -> dict[str, Any]:
    rows = {name: [{"prompt": text}] for name, text in (("train", "ab "), ("eval", "ba "), ("test", "bb "))}
    return {"prompts": SimpleNamespace(split=PromptSplit(**rows))}


@pytest.mark.parametrize(("data", "answered"), [(prompts(), "ab "), ({}, "b a")])
def test_samples_of_the_reference_get_mean_zero_and_variance_one(
    data: dict[str, Any], answered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    sampled: list[Any] = []
    sample = local.sample

    def noted(model: Any, given: Any, *rest: Any, **options: Any) -> Any:
        asked.extend(given)
        sampled.extend(sample(model, given, *rest, **options))
        return sampled

    monkeypatch.setattr(local, "sample", noted)
    model = scorer()
    untouched = model.score.weight.clone()
    normalized("reference", prepared(tmp_path, [], data), model)
    prompt = TOKENIZER(answered, add_special_tokens=False)["input_ids"]
    assert asked == [prompt] * 256  # training prompts alone; without data.prompts those of the pairs
    assert len({tuple(one.ids) for one in sampled}) > 20
    scores = scoring.score_rows(model, [[*prompt, *one.ids] for one in sampled], TOKENIZER.pad_token_id)
    assert statistics.fmean(scores) == pytest.approx(0, abs=1e-4)
    assert statistics.pstdev(scores) == pytest.approx(1, abs=1e-4)
    ratio = model.score.weight / untouched
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4) and ratio[0, 0] > 0


def test_scores_without_spread_have_no_scale(tmp_path: Path) -> None:
    model = heads.scorer_on(small_model(TOKENIZER), seed=1, zero_head=True)
    with pytest.raises(RlhfctlError, match="the same score") as caught:
        normalized("reference", prepared(tmp_path, [], prompts()), model)
    assert caught.value.where == "reward.normalize"


def test_without_the_key_nothing_changes(tmp_path: Path) -> None:
    model = scorer()
    before = model.score.weight.clone()
    normalization.normalize(Reward(), model, TOKENIZER, None, GROUPS, prepared(tmp_path, [], {}))
    assert torch.equal(model.score.weight, before) and model.score.bias is None
