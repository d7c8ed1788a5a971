"""Drafts of answers, on a policy of seven tokens: how they are sampled, and what rewards read of them."""

from __future__ import annotations

from typing import Any

import pytest
from small_policies import tiny
from stages_of_a_run import recipe_at

from rlhfctl.artifacts import Source
from rlhfctl.errors import RlhfctlError
from rlhfctl.generation.generator import Sampling
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.stages.loader import Base
from rlhfctl.tools.chat.models import Scorer, Settings, Speaker
from rlhfctl.tools.chat.stages import Choice


def speaker(tmp_path: Any, *, context: int | None = None, **sampling: Any) -> Speaker:
    tokenizer, model = tiny()
    choice = Choice("ppo", Source("model", "f"), recipe_at(tmp_path).recipe)
    given: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.3, "batch_size": 1, "seed": 0}
    language_model = LanguageModel(model, tokenizer.pad_token_id)
    return Speaker(choice, Base(model, tokenizer, "model"), Sampling(**given | sampling), language_model, context)


def drawn(one: Speaker, settings: Settings, draw: int = 0) -> Any:
    draft = one.begin("ab", settings, draw)
    list(draft.tokens())
    return draft


def test_settings_replace_temperature_seed_and_length_and_nothing_else(tmp_path: Any) -> None:
    one = speaker(tmp_path, stop_ids=(), top_k=2)
    sampling = one.begin("ab", Settings(1.5, 9, 3), 0).sampling
    assert sampling == Sampling(3, 1.5, 1, 9, top_k=2, stop_ids=())
    assert one.begin("ab", Settings(0.0, 9), 0).sampling.temperature is None  # greedy
    assert one.begin("ab", Settings(0.0, 9), 0).sampling.max_new_tokens == 8


def test_a_draft_that_is_not_over_was_stopped(tmp_path: Any) -> None:
    draft = speaker(tmp_path, stop_ids=()).begin("ab", Settings(1.0, 0), 0)
    tokens = draft.tokens()
    next(tokens)
    assert draft.answer(None).stopped and draft.answer(None).tokens == 1
    list(tokens)
    assert not draft.answer(None).stopped and draft.answer(None).tokens == 8 and not draft.answer(None).ended


def test_the_text_and_the_ids_that_are_scored_end_before_a_stop_string(tmp_path: Any) -> None:
    one = speaker(tmp_path, stop_strings=("c",))
    eos = one.base.tokenizer.eos_token_id
    found = 0
    for draw in range(30):
        draft = drawn(one, Settings(1.0, 0), draw)
        written = one.base.tokenizer.decode(draft.ids, skip_special_tokens=True)
        if "c" in written:
            found += 1
            assert draft.text == written.partition("c")[0] and draft.ended
            assert draft.episode().response_ids == [*draft.ids[:-1], eos]
            assert draft.episode().prompt == "ab" and draft.episode().prompt_ids == draft.prompt_ids
    assert found > 5


def test_answers_fit_into_the_context(tmp_path: Any) -> None:
    draft = speaker(tmp_path, context=5, stop_ids=()).begin("ab", Settings(1.0, 0), 0)
    assert draft.short and draft.sampling.max_new_tokens == 3
    assert not speaker(tmp_path, context=10).begin("ab", Settings(1.0, 0), 0).short
    with pytest.raises(RlhfctlError, match="has 2 tokens, and the model reads 2"):
        speaker(tmp_path, context=2).begin("ab", Settings(1.0, 0), 0)


def test_a_function_of_the_recipe_scores_answers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = speaker(tmp_path)
    recipe = recipe_at(tmp_path, "reward={function: 'scores:length'}", "compare.judges=[gold]").recipe
    scorer = Scorer.of(None, recipe, print)
    assert scorer is not None and scorer.name == "scores:length"
    draft = drawn(one, Settings(1.0, 0))
    assert scorer.score(draft) == len(draft.text)
    assert Scorer.of(None, recipe_at(tmp_path).recipe, print) is None
