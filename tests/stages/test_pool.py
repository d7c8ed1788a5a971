"""The pool of samples: the same responses after a kill, in other batches and in a larger pool."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_stage import context, small_model, small_tokenizer

from rlhfctl.data.types import PreferenceGroup, PreferenceSplit, PromptSplit
from rlhfctl.events import Event, Progress, StageStarted
from rlhfctl.generation import local
from rlhfctl.models import special_tokens
from rlhfctl.recipe.schema import Card
from rlhfctl.stages import blocks, pool
from rlhfctl.stages.loader import Base

PROMPTS = [{"prompt": text} for text in ("a", "b", "ab", "ba", "abb", "bab")]
TESTED = [{"prompt": text} for text in ("aaaa", "bbbb")]


def base() -> Base:
    tokenizer = small_tokenizer()
    model = small_model(tokenizer)
    special_tokens.mask_pad(model, tokenizer.pad_token_id)
    return Base(model, tokenizer, "made here")


def drawn(
    folder: Path, prompts: int = 6, samples: int = 4, *, generate: Any = local.sample, **ppo: Any
) -> tuple[list[list[tuple[int, ...]]], list[Event], pool.Pool]:
    """The ids of the responses by prompt, the events, and the pool itself."""
    events: list[Event] = []
    groups = [PreferenceGroup("bb", ("a", "b"), (0, 1), ((0, 1),))]
    data = {
        "prompts": SimpleNamespace(split=PromptSplit([], PROMPTS, TESTED)),
        "preferences": SimpleNamespace(split=PreferenceSplit([], groups)),
    }
    ctx = context(folder, "card", events)
    recipe = ctx.recipe.model_copy(update={"ppo": ctx.recipe.ppo.model_copy(update=ppo)})  # type: ignore[union-attr]
    ctx = type(ctx)(**{**vars(ctx), "recipe": recipe, "data": data})
    found = pool.draw(Card(prompts=prompts, samples=samples), base(), ctx, generate)
    return [[tuple(one.response_ids) for one in row] for row in found.episodes], events, found


def test_each_prompt_has_its_samples_and_none_is_a_test_prompt(tmp_path: Path) -> None:
    ids, events, found = drawn(tmp_path)
    assert [len(row) for row in ids] == [4] * 6
    assert [row[0].prompt for row in found.episodes] == [row["prompt"] for row in PROMPTS]
    assert len({response for row in ids for response in row}) > 12  # samples of one prompt differ
    eos = small_tokenizer().eos_token_id
    assert found.ended == [[response[-1] == eos for response in row] for row in ids]
    (started,) = [event for event in events if isinstance(event, StageStarted)]
    assert started.total_steps == 24 and started.settings["temperature"] == 0.7
    assert [event.step for event in events if isinstance(event, Progress)][-1] == 24


def test_neither_batches_nor_the_size_of_the_pool_change_a_response(tmp_path: Path) -> None:
    ids, _, _ = drawn(tmp_path / "a")
    small, _, _ = drawn(tmp_path / "b", prompts=3, samples=2, local_rollout_forward_batch_size=5)
    assert small == [row[:2] for row in ids[:3]]
    warmer, _, _ = drawn(tmp_path / "c", temperature=3.0)
    assert warmer != ids  # PPO's own settings count


class Killed(Exception):
    pass


def test_a_killed_attempt_goes_on_after_its_last_whole_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 7)
    whole, _, _ = drawn(tmp_path / "whole")
    calls: list[int] = []

    def dies(model: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise Killed
        return local.sample(model, prompts, *rest, **more)

    with pytest.raises(Killed):
        drawn(tmp_path / "killed", generate=dies)
    again, events, _ = drawn(tmp_path / "killed", generate=dies, local_rollout_forward_batch_size=2)
    assert again == whole
    assert calls == [7, 7, 7, 7, 3]  # of 24 responses: two blocks, the killed one, then the two that were missing
    (started,) = [event for event in events if isinstance(event, StageStarted)]
    assert started.resumed_from == 14


def test_fewer_prompts_than_asked_for_are_reported(tmp_path: Path) -> None:
    ctx = context(tmp_path, "card", [])
    rows = SimpleNamespace(split=PromptSplit([], PROMPTS, TESTED))
    ctx = type(ctx)(**{**vars(ctx), "data": {"prompts": rows}})
    found = pool.draw(Card(prompts=50, samples=2), base(), ctx)
    assert len(found.episodes) == 6
    assert ctx.notes == ["the pool has all 6 eval prompts; reward.card.prompts would take up to 50"]
