"""Tokenizers, new and adopted models, the pad token, LoRA, heads, and the numbers a hand-over is checked with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import TaskType
from small_models import ARCHITECTURES, FLOAT, LORA, SMALL, WORDS, logits_of, stir, words
from torch import nn

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import adapters, build, scoring, tokenizing
from rlhfctl.models.heads import scorer_on
from rlhfctl.recipe.schema import Init, Model

# ---------------------------------------------------------------- models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_each_architecture_is_built_from_the_seed(architecture: str, tied: bool) -> None:
    init = Init(**SMALL, architecture=architecture, tokens=WORDS, tie_word_embeddings=tied)
    tokenizer = tokenizing.train_tokenizer(init, [])
    first, again, other = (build.build_model(init, tokenizer, seed=seed, dtype=FLOAT) for seed in (1, 1, 2))
    assert logits_of(first, [2, 3, 4]).shape == (3, len(tokenizer))
    assert first.config.num_hidden_layers == 2 and first.config.hidden_size == 16
    assert torch.equal(logits_of(first, [2, 3, 4]), logits_of(again, [2, 3, 4]))
    assert not torch.equal(logits_of(first, [2, 3, 4]), logits_of(other, [2, 3, 4]))
    shared = first.get_input_embeddings().weight is first.get_output_embeddings().weight
    assert shared is tied
    with torch.no_grad():  # nothing random in training mode either
        ids = torch.tensor([[2, 3, 4]])
        assert torch.equal(first.train()(input_ids=ids).logits, first(input_ids=ids).logits)
    scorer = scorer_on(first, seed=0)
    assert len(set(scoring.score_rows(scorer, [[2, 3], [4, 5, 6]], 1))) == 2


def test_the_feed_forward_has_the_width_asked_for() -> None:
    assert words(intermediate_size=24)[1].config.intermediate_size == 24
    assert words(architecture="gpt2", intermediate_size=24)[1].config.n_inner == 24
    assert words(hidden_size=48)[1].config.intermediate_size == 128  # 8/3, three matrices
    assert words(architecture="gpt_neox")[1].config.intermediate_size == 64  # 4, two


# ---------------------------------------------------------------- LoRA


def test_weights_put_back_are_those_saved(tmp_path: Path) -> None:
    for name, adapted in (("whole", False), ("adapter", True)):
        _, model = words()
        if adapted:
            model = adapters.add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
        stir(model, 1)
        saved = logits_of(model, [2, 3, 4])
        model.save_pretrained(tmp_path / name)
        stir(model, 2)
        assert not torch.allclose(logits_of(model, [2, 3, 4]), saved, atol=1e-3)
        build.load_weights(model, tmp_path / name)
        assert torch.equal(logits_of(model, [2, 3, 4]), saved)


def test_a_frozen_copy_is_apart() -> None:
    _, model = words()
    twin = build.copy_frozen(model)
    before = logits_of(twin, [2, 3])
    stir(model)
    assert torch.equal(logits_of(twin, [2, 3]), before) and not torch.equal(logits_of(model, [2, 3]), before)
    assert build.count_parameters(twin)[0] == 0
    assert build.count_parameters(model)[0] == build.count_parameters(twin)[1] > 0


# ---------------------------------------------------------------- from a recipe


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-4, 1e-5])
def test_what_a_half_width_format_rounds_away_is_told(learning_rate: float) -> None:
    """Of weights in bfloat16 just those stay that AdamW's first step, of the learning rate's size, leaves alone."""
    weights = nn.Parameter(torch.randn(4000, generator=torch.Generator().manual_seed(0)).mul(0.05).bfloat16())
    sentence = build.updates_lost_to_rounding([weights], learning_rate)
    before = weights.detach().clone()
    weights.grad = torch.ones_like(weights)
    torch.optim.AdamW([weights], lr=learning_rate, weight_decay=0.0).step()
    stayed = float((weights == before).float().mean())
    if stayed < 0.1:
        assert sentence is None and learning_rate == 1e-2
    else:
        assert sentence is not None and f"learning_rate {learning_rate:g}" in sentence
        assert sentence.startswith(f"{stayed:.0%} of the trained weights")
    assert build.updates_lost_to_rounding([nn.Parameter(weights.detach().float())], learning_rate) is None


def test_few_weights_that_stay_are_no_news() -> None:
    large = nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    assert build.updates_lost_to_rounding([large], 1e-4) is not None
    assert build.updates_lost_to_rounding([large, nn.Parameter(torch.ones(91))], 1e-4) is None
    assert build.updates_lost_to_rounding([], 1e-4) is None


def test_a_pretrained_base_is_made_ready(tmp_path: Path) -> None:
    tokenizer, model = words()
    tokenizer.pad_token = tokenizer.eos_token
    build.save_model(model, tokenizer, tmp_path / "base")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    section = Model(path=str(tmp_path / "base"), chat_template=str(tmp_path / "t.jinja"))
    prepared = tokenizing.tokenizer_from_recipe(section)
    theirs = prepared.tokenizer
    loaded, notes = build.base_from_recipe(section, prepared, seed=0, dtype=FLOAT)
    assert theirs.chat_template == "{{ messages }}"
    assert theirs.padding_side == "left"
    assert theirs.pad_token_id not in (None, theirs.eos_token_id)
    assert torch.equal(logits_of(loaded, [2, 3])[:, :3], logits_of(model, [2, 3])[:, :3])
    assert len(notes) == 2
    inline = section.model_copy(update={"chat_template": "{{ bos_token }}"})
    assert tokenizing.tokenizer_from_recipe(inline).tokenizer.chat_template == "{{ bos_token }}"
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "base")
    with pytest.raises(RlhfctlError, match="no end-of-sequence token"):
        tokenizing.tokenizer_from_recipe(section)
