"""What ends a response, and what scorers read of it: end tokens and stop strings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhfctl.generation import generator, local
from rlhfctl.models import build, special_tokens, tokenizing
from rlhfctl.recipe.schema import Init, Ppo
from rlhfctl.rewards.episode import make_episode

TEXT = "a tiny text to start from. stop here\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizing.train_tokenizer(
        Init(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=300), [TEXT]
    )


# ---------------------------------------------------------------- stop strings


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("good tea. and more", (".",), "good tea"),
        ("good tea\nHuman: and", ("\nHuman:", "."), "good tea"),
        ("no stop at all", (".",), "no stop at all"),
        (".", (".",), ""),
        ("first. second\n", ("\n", "."), "first"),
    ],
)
def test_scorers_read_the_text_before_a_stop_string(
    text: str, stops: tuple[str, ...], expected: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    episode = make_episode(tokenizer, {"prompt": "q"}, [5], ids, stops)
    assert episode.completion == expected
    if expected != text:
        *before, end = episode.response_ids
        assert tokenizer.decode(before) == expected and end == tokenizer.eos_token_id
    else:
        assert list(episode.response_ids) == ids


def test_a_conversations_answer_is_cut_too(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("yes. no", add_special_tokens=False)["input_ids"]
    episode = make_episode(tokenizer, {"prompt": [{"role": "user", "content": "q"}]}, [5], ids, (".",))
    assert episode.completion == [{"role": "assistant", "content": "yes"}]


# ---------------------------------------------------------------- end tokens


def test_every_end_token_of_the_generation_config_ends_a_response(tokenizer: PreTrainedTokenizerBase) -> None:
    init = Init(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=300)
    model = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    other = tokenizer.convert_tokens_to_ids("a")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, other, tokenizer.pad_token_id, 10**6]
    assert special_tokens.end_tokens(model, tokenizer) == (
        tokenizer.eos_token_id,
        other,
    )  # neither pad nor what is no token
    notes = special_tokens.ensure_pad(model, tokenizer)
    assert any("each of these tokens ends a response" in note and ", a" in note for note in notes)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, other]  # exports and reloads keep it
    with torch.no_grad():  # the likeliest token is always `other`
        model.lm_head.weight.zero_()
        model.lm_head.weight[other] = 1.0
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.fill_(1.0)
    sampling = generator.sampling_for(Ppo(response_length=6), tokenizer, seed=0, stream=0)
    (response,) = local.sample(
        model, [[5, 6]], tokenizer, generator.Sampling(6, None, 1, 0, stop_ids=sampling.stop_ids)
    )
    assert (response.ids, response.ended) == ([other], True)


# ---------------------------------------------------------------- ALiBi

ALIBI: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True,
               "new_decoder_architecture": False, "ffn_hidden_size": 64},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
}  # fmt: skip


@pytest.mark.parametrize("family", ALIBI)
def test_families_with_alibi_sample_what_their_forward_gives(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **ALIBI[family], vocab_size=300, pad_token_id=1, eos_token_id=0, bos_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]  # of several lengths: padded on the left
    sampling = generator.Sampling(6, 1.0, 3, 0, stop_ids=())
    for prompt, response in zip(prompts, local.sample(model, prompts, tokenizer, sampling), strict=True):
        ids = torch.tensor([[*prompt, *response.ids]])
        with torch.no_grad():
            logits = model(ids).logits[0].float()
        logits[:, tokenizer.pad_token_id] = torch.finfo(torch.float32).min
        logprobs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        exact = logprobs.gather(-1, torch.tensor(response.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), exact, atol=1e-4, rtol=1e-4)
