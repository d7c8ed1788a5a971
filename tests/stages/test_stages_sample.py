"""The sample stage: different responses, drawn again where they are equal, blinded, mixed, the same after a kill."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_stage import INIT, small_model, small_tokenizer

from rlhfctl.artifacts import Source
from rlhfctl.data.types import PromptSplit
from rlhfctl.errors import DataError
from rlhfctl.events import Event, StageStarted
from rlhfctl.generation import local
from rlhfctl.labels.items import Item, read_items
from rlhfctl.models import special_tokens
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import blocks, sample
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Base

PROMPTS = [{"prompt": text} for text in ("a", "b", "ab", "ba", "abb", "bab", "aab", "bba")]
TESTED = [{"prompt": "aaaa"}]


class Models:
    """Gives two models: base*, and a policy with other weights."""

    def load_base(self, source: Source) -> Base:
        tokenizer = small_tokenizer()
        model = small_model(tokenizer, seed=1 if "ppo" in source.name else 0)
        special_tokens.mask_pad(model, tokenizer.pad_token_id)
        return Base(model, tokenizer, source.name)


def context(folder: Path, events: list[Event], name: str = "sample", **section: Any) -> Context:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "model": {"init": INIT.model_dump(exclude_none=True)},
            "data": {"prompts": {"source": "prompts.jsonl", "eval": 0, "test": 1}},
            "sample": {"prompts": 8, "temperature": 1.5} | section,
            "label": {},
            "reward": {},
            "ppo": {"lora": None, "response_length": 4},
            **({"rounds": 2} if "round" in name else {}),
        }
    )
    parents = {"base": Source("the base", "0")} | ({"policy": Source("ppo", "1")} if "round" in name else {})
    data = {"prompts": SimpleNamespace(split=PromptSplit(PROMPTS, [], TESTED))}
    ctx = Context(name, recipe, RunPaths(folder), parents, {"section": "0"}, data, events.append)
    ctx.__dict__["loader"] = Models()
    return ctx


def made(ctx: Context, generate: Any = local.sample) -> list[Item]:
    assert ctx.recipe.sample is not None
    artifact = sample.run(ctx.recipe.sample, ctx, generate)
    return read_items(artifact.part("items"))


def test_each_prompt_has_different_responses_that_are_not_empty(tmp_path: Path) -> None:
    events: list[Event] = []
    ctx = context(tmp_path, events, responses=3)
    items = made(ctx)
    assert {item.prompt for item in items} <= {row["prompt"] for row in PROMPTS}
    for item in items:
        assert len(set(map(str, item.responses))) == len(item.responses) and all(item.responses)
        assert item.origins == ("the base",) * len(item.responses)
    (started,) = [event for event in events if isinstance(event, StageStarted)]
    assert started.total_steps == 24 and started.settings["temperature"] == 1.5
    assert sum(len(item.responses) == 3 for item in items) >= 6


def test_responses_that_stay_equal_are_counted_and_a_model_that_says_one_thing_is_told(tmp_path: Path) -> None:
    ctx = context(tmp_path / "some", [])

    def often_a(model: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        found = local.sample(model, prompts, *rest, **more)
        ids = found[0].ids  # the first prompts' responses become equal, each time
        return [type(one)(ids, one.ended, one.logprobs) if len(prompt) < 3 else one for one, prompt in
                zip(found, prompts, strict=True)]  # fmt: skip

    items = made(ctx, often_a)
    assert len(items) < 8
    assert any("different responses and are left out: further draws were equal or empty" in note for note in ctx.notes)

    def always_a(model: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        found = local.sample(model, prompts, *rest, **more)
        return [type(one)([small_tokenizer()("a")["input_ids"][-1]], True, []) for one in found]

    with pytest.raises(DataError, match="nothing to compare"):
        made(context(tmp_path / "none", []), always_a)


def test_two_models_write_in_turn(tmp_path: Path) -> None:
    items = made(context(tmp_path, [], "round-2/sample", prompts=16, models=["latest", "base"]))
    origins = Counter(item.origins for item in items if len(item.origins) == 2)
    assert set(origins) == {("ppo", "the base"), ("the base", "ppo")} and min(origins.values()) >= 2
    notes = context(tmp_path / "first", [], models=["latest", "base"])
    assert {origin for item in made(notes) for origin in item.origins} == {"the base"}
    assert any("in the first round the latest model is base*" in note for note in notes.notes)


def test_more_questions_than_prompts_ask_some_again(tmp_path: Path) -> None:
    ctx = context(tmp_path, [], prompts=12)
    items = made(ctx)
    counts = Counter(str(item.prompt) for item in items)
    assert len(items) > 8 and max(counts.values()) == 2
    assert any("8 training prompts for 12 questions" in note for note in ctx.notes)


class Killed(Exception):
    pass


def test_a_killed_attempt_goes_on_and_ends_with_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 5)
    whole = made(context(tmp_path / "whole", [], responses=2))
    calls: list[int] = []

    def dies(model: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise Killed
        return local.sample(model, prompts, *rest, **more)

    with pytest.raises(Killed):
        made(context(tmp_path / "killed", []), dies)
    events: list[Event] = []
    assert made(context(tmp_path / "killed", events, batch_size=3), dies) == whole
    (started,) = [event for event in events if isinstance(event, StageStarted)]
    assert started.resumed_from == 10
    manifest = json.loads((tmp_path / "killed" / "sample" / "manifest.json").read_text())
    assert manifest["metrics"]["items"] == len(whole)
