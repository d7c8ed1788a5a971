"""The pad token: a token of its own, with equal ids everywhere, and never sampled."""

from __future__ import annotations

import pytest
import torch
from small_models import logits_of, words

from rlhfctl.models import special_tokens, tokenizing


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("was", [None, "eos"])
def test_pad_becomes_a_token_of_its_own(tied: bool, was: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = words(tie_word_embeddings=tied)
    monkeypatch.setattr(tokenizing, "PAD_TOKEN", "<|another|>")  # the one this tokenizer has is a word like any to it
    tokenizer.pad_token = tokenizer.eos_token if was else None
    rows = len(tokenizer)
    before = logits_of(model, [2, 3, 4])
    notes = special_tokens.ensure_pad(model, tokenizer)
    assert tokenizer.pad_token_id == rows and tokenizer.pad_token_id != tokenizer.eos_token_id
    after = logits_of(model, [2, 3, 4])
    assert after.shape[-1] == rows + 1
    assert torch.allclose(after[:, :rows], before, rtol=0, atol=1e-6)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs is outputs) is tied
    for matrix in (inputs, outputs):
        assert torch.allclose(matrix[rows], matrix[:rows].mean(0), atol=1e-6)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == rows
    assert ("had no pad token" if was is None else "padded with end-of-sequence") in notes[0]
    assert f"from {rows} to {rows + 1} rows" in notes[1]
    assert special_tokens.ensure_pad(model, tokenizer) == []  # a second time there is nothing to do


def test_sampling_defaults_are_dropped_and_ids_agree() -> None:
    tokenizer, model = words()
    model.generation_config.update(temperature=0.3, top_p=0.5, top_k=4, do_sample=True, repetition_penalty=1.3)
    model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id = 7, 8, 9
    special_tokens.set_token_ids(model, tokenizer)
    kept = model.generation_config
    assert not [
        n for n in ("temperature", "top_p", "top_k", "repetition_penalty") if getattr(kept, n) in (0.3, 0.5, 4, 1.3)
    ]
    assert not kept.do_sample
    for config in (model.config, kept):
        assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (0, 1, None)


def test_pad_cannot_be_sampled_from_a_policy_that_wants_nothing_else() -> None:
    from rlhfctl.generation import local
    from rlhfctl.generation.generator import Sampling

    tokenizer, model = words()
    pad = tokenizer.pad_token_id
    with torch.no_grad():
        model.lm_head.weight[pad] = 100 * model.lm_head.weight[3]
    wanted = torch.softmax(logits_of(model, [2, 3, 4]), -1)[:, pad]
    handle = special_tokens.mask_pad(model, pad)
    probabilities = torch.softmax(logits_of(model, [2, 3, 4]), -1)
    assert wanted.max() > 0.5
    assert torch.equal(probabilities[:, pad], torch.zeros(3))
    logits = logits_of(model, [2, 3, 4])
    entropy = torch.logsumexp(logits, -1) - (probabilities * logits).sum(-1)  # as TRL takes it: 0 x logit must be 0
    assert torch.isfinite(entropy).all() and (entropy > 0).all()
    assert torch.isfinite(torch.softmax(logits.half().float(), -1)).all()
    sampling = Sampling(max_new_tokens=4, temperature=2.0, batch_size=500, seed=0)
    responses = local.sample(model, [[2, 3]] * 2000, tokenizer, sampling)
    assert sum(len(response.ids) for response in responses) > 2000
    assert not any(pad in response.ids for response in responses)
    handle.remove()
    assert torch.equal(torch.softmax(logits_of(model, [2, 3, 4]), -1)[:, pad], wanted)
    special_tokens.mask_pad(model, pad)
    special_tokens.unmask_pad(model)
    assert torch.equal(torch.softmax(logits_of(model, [2, 3, 4]), -1)[:, pad], wanted)
