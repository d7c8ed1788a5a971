"""Chat templates: the end of a turn, marks that are no tokens, and warnings about templates."""

from __future__ import annotations

import pytest
from chat_tokenizers import CHATML, INIT, PLAIN, WORLD, answer, ask, build, ids_of
from transformers import PreTrainedTokenizerBase

from rlhfctl.data.chat import template_warnings, use_template_eos, written_turn_end
from rlhfctl.data.encoding import Encoder, texts_of
from rlhfctl.generation import generator
from rlhfctl.models import tokenizing
from rlhfctl.models.tokenizing import EOS_TOKEN, train_tokenizer
from rlhfctl.recipe.schema import Init, Ppo
from rlhfctl.rewards.episode import make_episode


@pytest.fixture(scope="module")
def trained() -> str:
    """The tokenizer of the world, as JSON."""
    tokenizer = train_tokenizer(INIT, texts_of(WORLD))
    return str(tokenizer.backend_tokenizer.to_str())


def test_the_token_that_closes_turns_becomes_the_end(trained: str) -> None:
    tokenizer = build(trained, more=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    sentence = use_template_eos(tokenizer)
    assert sentence is not None and "<|im_end|>" in sentence and EOS_TOKEN in sentence
    assert tokenizer.eos_token == "<|im_end|>"
    assert Encoder(tokenizer).pair([ask("one")], [answer("two")])[1] == ids_of(tokenizer, "two<|im_end|>")
    assert use_template_eos(tokenizer) is None  # once is enough


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,  # turns end with a newline only
        "{% for m in messages %}{{ m['content'] }}</end>{% endfor %}",  # with ordinary text
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% endif %}{% endfor %}",
    ],
    ids=["newline", "text", "no answer"],
)
def test_what_is_no_closing_token_is_not_adopted(trained: str, template: str) -> None:
    tokenizer = build(trained, more=["<|im_start|>"])
    tokenizer.chat_template = template
    assert use_template_eos(tokenizer) is None
    assert tokenizer.eos_token == EOS_TOKEN


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokenizing.train_tokenizer(
        Init(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=300),
        ["a tiny text to start from. stop here\n"],
    )


def test_a_template_whose_marks_are_no_tokens_is_told_and_its_mark_ends_responses(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert written_turn_end(tokenizer) is None and not list(template_warnings(tokenizer))
    tokenizer.chat_template = CHATML
    try:
        assert written_turn_end(tokenizer) == "<|im_end|>"
        assert "<|im_end|>, which is no token of this tokenizer" in str(list(template_warnings(tokenizer)))
        sampling = generator.sampling_for(Ppo(stop_strings=["x"]), tokenizer, seed=0, stream=0)
        assert sampling.stop_strings == ("x", "<|im_end|>")
        ids = tokenizer("yes<|im_end|>\n", add_special_tokens=False)["input_ids"]
        assert make_episode(tokenizer, {"prompt": "q"}, [5], ids, sampling.stop_strings).completion == "yes"
    finally:
        tokenizer.chat_template = None
