"""Responses drawn by several models in turn: whose is whose, what is drawn again, how far an attempt had come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_stage import small_model, small_tokenizer

from rlhfctl.generation import local
from rlhfctl.generation.generator import Sampling
from rlhfctl.models import special_tokens
from rlhfctl.stages.loader import Base
from rlhfctl.stages.responses import TRIES, Drawing, Writer, items_of

ROWS = [{"prompt": text} for text in ("a", "b", "ab", "ba")]


def drawing(folder: Path, writers: int = 2, responses: int = 3, generate: Any = local.sample) -> Drawing:
    tokenizer = small_tokenizer()
    found = []
    for number in range(writers):
        model = small_model(tokenizer, seed=number)
        special_tokens.mask_pad(model, tokenizer.pad_token_id)
        prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
        found.append(Writer(f"model {number}", Base(model, tokenizer, ""), prompts, Sampling(4, 1.5, 4, 0)))
    return Drawing(responses, found, ROWS, generate, folder, lambda step: None)


def test_response_j_to_prompt_i_is_of_the_model_whose_turn_it_is(tmp_path: Path) -> None:
    made = drawing(tmp_path)
    found = made.draw()
    assert {origin for one in found for _, origin in one.values()} == {"model 0", "model 1"}
    for index, responses in enumerate(found):
        assert all(origin == f"model {(index + number) % 2}" for number, (_, origin) in responses.items())
    assert made.done == 12 and drawing(tmp_path / "new").done is None
    assert drawing(tmp_path).draw() == found  # everything was there


def test_what_is_empty_or_equal_is_drawn_again_so_often_and_then_left_out(tmp_path: Path) -> None:
    calls: list[int] = []

    def one_thing(model: Any, prompts: Any, tokenizer: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        said = "a" if len(calls) == 1 else ""
        ids = [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return [type(one)(ids, True) for one in local.sample(model, prompts, tokenizer, *rest, **more)]

    notes: list[str] = []
    found = drawing(tmp_path, writers=1, responses=2, generate=one_thing).draw()
    assert [list(one) for one in found] == [[0]] * 4 and calls == [8] + [4] * (TRIES - 1)
    assert list(items_of(ROWS, found, notes.append)) == []
    assert notes == []  # all prompts have one response: the stage says that nothing can be compared
    found[0][1] = ("other", "model 0")
    (item,) = items_of(ROWS, found, notes.append)
    assert item.responses == ("a", "other") and item.origins == ("model 0",) * 2
    assert notes == ["3 prompts have 1 different responses and are left out: further draws were equal or empty"]
