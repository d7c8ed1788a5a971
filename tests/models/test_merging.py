"""Adapter folders in place of models: merged into their base, and refused with the way out where that cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from small_adapters import FLOAT, edit, logits_of, write_adapter, write_base
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import adapter_folders, build, merging, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Model

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "tokens-added": {"tokens": ("<|new|>", "<|other|>")},
    "head-saved": {"modules_to_save": ["lm_head"]},
    "embeddings-saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "rows-of-tokens": {"trainable_token_indices": [5, 9]},
    "rows-of-added-tokens": {
        "tokens": ("<|new|>", "<|other|>"),
        "trainable_token_indices": {"embed_tokens": [270, 271], "lm_head": [270, 271]},
    },
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 4},
    "on-the-embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_and_gives_what_peft_gives(kind: str, tied: bool, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=tied)
    expected = write_adapter(base, tmp_path / "adapter", **KINDS[kind])
    section = Model(path=str(tmp_path / "adapter"))
    prepared = tokenizing.tokenizer_from_recipe(section)
    tokenizer = prepared.tokenizer
    model, notes = build.base_from_recipe(section, prepared, seed=0, dtype=FLOAT)
    assert notes[0] == f"the adapter {tmp_path / 'adapter'} is merged into its base {base}"
    assert not isinstance(model, PeftModel) and all(parameter.requires_grad for parameter in model.parameters())
    assert not any("lora" in name for name, _ in model.named_modules())
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-4)
    plain = logits_of(AutoModelForCausalLM.from_pretrained(base))
    assert not torch.allclose(expected[..., : plain.shape[-1]], plain, atol=1e-2)  # the adapter does something
    assert (tokenizer.convert_tokens_to_ids("<|new|>") == 270) is bool(KINDS[kind].get("tokens"))
    # As anybody loads what a stage saves of it.
    build.save_model(model, tokenizer, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(again), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_on_an_adapter_is_merged_through_both(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "first")
    middle, _ = merging.load_causal_lm(str(tmp_path / "first"), dtype=FLOAT)
    build.save_model(middle, tokenizing.load_tokenizer(str(base)), tmp_path / "middle")
    expected = write_adapter(tmp_path / "middle", tmp_path / "second", r=3)
    edit(tmp_path / "second", base_model_name_or_path="../first")
    model, notes = merging.load_causal_lm(str(tmp_path / "second"), dtype=FLOAT)
    assert len(notes) == 2
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-4)


def spoil_base(folder: Path) -> None:
    edit(folder, base_model_name_or_path="/gone/base")


def spoil_task(folder: Path) -> None:
    edit(folder, task_type="SEQ_2_SEQ_LM")


def spoil_kind(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder.parent / "base")
    shutil.rmtree(folder)
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(folder)


def spoil_scorer(folder: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(folder.parent / "base", num_labels=1)
    shutil.rmtree(folder)
    get_peft_model(base, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(folder)


def spoil_name(folder: Path) -> None:
    edit(folder, base_model_name_or_path=None)


def spoil_circle(folder: Path) -> None:
    edit(folder, base_model_name_or_path=str(folder))


def spoil_file(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_')


def spoil_shape(folder: Path) -> None:
    edit(folder, r=4)


REFUSED: dict[Callable[[Path], None], tuple[str, str]] = {
    spoil_base: (
        "the base model of the adapter is not there: /gone/base",
        "write where it lies now into adapter_config",
    ),
    spoil_task: ("the adapter was trained for another task than writing text (task_type SEQ_2_SEQ_LM)", "CAUSAL_LM"),
    spoil_kind: ("an adapter of the kind PROMPT_TUNING cannot be merged into its base", "a whole model"),
    spoil_scorer: ("the adapter was trained to score text (task_type SEQ_CLS), not to write it", "as reward.model"),
    spoil_name: ("the adapter does not say which base model it belongs to", "base_model_name_or_path"),
    spoil_circle: ("the adapters name each other as their bases", "correct adapter_config.json"),
    spoil_file: ("the adapter cannot be loaded: adapter_config.json is not whole", "fetch or save the folder again"),
    spoil_shape: ("the adapter does not fit this base: size mismatch", "use the base model that the adapter"),
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_what_cannot_be_merged_is_refused_with_the_way_out(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(RlhfctlError) as caught:
        section = Model(path=str(tmp_path / "adapter"))
        build.base_from_recipe(section, tokenizing.tokenizer_from_recipe(section), seed=0, dtype=FLOAT)
    what, fix = REFUSED[spoil]
    assert caught.value.what.startswith(what) and fix in str(caught.value.fix)
    assert str(tmp_path / "adapter") in str(caught.value.where)


def test_an_adapter_is_not_merged_into_quantized_weights(tmp_path: Path) -> None:
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(HandoffError, match="cannot be merged into quantized weights"):
        merging.load_causal_lm(str(tmp_path / "adapter"), dtype=FLOAT, quantization="4bit")


def test_a_merge_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    monkeypatch.setattr(merging, "merged", lambda model: AutoModelForCausalLM.from_pretrained(base))
    with pytest.raises(HandoffError, match=r"merged into its base, the adapter computes something else: off by 0\.\d+"):
        merging.load_causal_lm(str(tmp_path / "adapter"), dtype=FLOAT)


def test_an_adapter_on_the_hub_is_fetched_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_base(tmp_path / "base")
    expected = write_adapter(base, tmp_path / "adapter")
    asked: list[tuple[str, str | None]] = []

    def find(name: str, revision: str | None = None) -> str | None:
        asked.append((name, revision))
        return "found" if name == "someone/adapter" else None

    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", find)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision=None: str(tmp_path / "adapter"))
    model, _ = merging.load_causal_lm("someone/adapter", revision="v2", dtype=FLOAT)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-4)
    assert asked == [("someone/adapter", "v2")]
    assert adapter_folders.fetched("someone/model") == "someone/model"


def test_weights_of_the_base_are_part_of_what_a_run_depends_on(tmp_path: Path) -> None:
    from rlhfctl.inputs import model_fingerprint

    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodel: {path: adapter}\ndata: {demonstrations: {source: rows.jsonl}}\nsft: {lora: null}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    before = model_fingerprint(recipe)
    assert model_fingerprint(recipe) == before
    shutil.rmtree(base)
    write_base(base, seed=1)
    assert model_fingerprint(recipe) != before
