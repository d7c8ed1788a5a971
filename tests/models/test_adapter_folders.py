"""Adapter folders: where their base and their tokenizer are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_adapters import edit, write_adapter, write_base

from rlhfctl.models import adapter_folders, loading, tokenizing
from rlhfctl.recipe.schema import Model


def test_the_tokenizer_is_the_adapters_or_its_bases(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "with", tokens=("<|new|>",))
    write_adapter(base, tmp_path / "without")
    found = {
        name: tokenizing.tokenizer_from_recipe(Model(path=str(tmp_path / name))).tokenizer
        for name in ("with", "without")
    }
    assert {name: len(tokenizer) for name, tokenizer in found.items()} == {"with": 271, "without": 270}
    assert loading.load_config(Model(path=str(tmp_path / "without"))).hidden_size == 16


@pytest.mark.parametrize("name", ["../base", "base", "absolute"])
def test_the_base_is_found_from_the_adapter_or_from_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path=str(base) if name == "absolute" else name)
    monkeypatch.chdir("/")
    found = adapter_folders.base_of(tmp_path / "adapter")
    assert Path(found).resolve() == base
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "adapter", tmp_path / "elsewhere" / "adapter")
    monkeypatch.chdir(tmp_path)
    if name == "base":  # as peft saw it from where it was trained
        assert Path(adapter_folders.base_of(tmp_path / "elsewhere" / "adapter")).resolve() == base
