"""Blocks of responses: drawn once, kept, and the same whatever was there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_stage import small_model, small_tokenizer

from rlhfctl.generation import local
from rlhfctl.generation.generator import Sampling
from rlhfctl.models import special_tokens
from rlhfctl.stages import blocks
from rlhfctl.stages.blocks import Blocks

PLACES = [(index, number) for number in range(3) for index in range(4)]


def drawn(folder: Path, generate: Any = local.sample) -> tuple[list[tuple[list[int], bool]], list[int]]:
    tokenizer = small_tokenizer()
    model = small_model(tokenizer)
    special_tokens.mask_pad(model, tokenizer.pad_token_id)
    reports: list[int] = []
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "b", "ab", "ba")]
    sampling = Sampling(4, 1.0, 2, 0)
    found = Blocks(folder, PLACES).draw(model, tokenizer, prompts, sampling, generate, reports.append, what="drawing")
    return found, reports


def test_responses_are_kept_in_blocks_and_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, reports = drawn(tmp_path / "whole")
    assert len(whole) == 12 and reports[-1] == 12
    monkeypatch.setattr(blocks, "BLOCK", 5)
    parts, _ = drawn(tmp_path / "parts")
    assert parts == whole  # a response depends on its place alone
    files = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert files == ["block-00000.json", "block-00001.json", "block-00002.json"]
    (tmp_path / "parts" / "block-00001.json").unlink()
    counted = Blocks(tmp_path / "parts", PLACES)
    assert counted.done == 5 and counted.size() == 7
    calls: list[int] = []

    def counting(model: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        return local.sample(model, prompts, *rest, **more)

    again, _ = drawn(tmp_path / "parts", counting)
    assert again == whole and calls == [5]
