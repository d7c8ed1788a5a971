"""Templates by name render, grow at their end, and end in a token; variables are fixed in the text that is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rlhfctl.data import templates
from rlhfctl.data.chat import use_template_eos
from rlhfctl.data.encoding import Encoder
from rlhfctl.models import tokenizing
from rlhfctl.recipe.schema import Init, Model

INIT = Init(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=300)
ROWS = [{"text": "Human: what is it?\n\nAssistant: a tiny text"}]
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
ANSWER = [{"role": "assistant", "content": "a"}]


def tokenizer_of(**model: object) -> PreTrainedTokenizerBase:
    return tokenizing.tokenizer_from_recipe(Model(init=INIT, **model), ROWS).tokenizer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "prompt", "response"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
            "a",
        ),
        ("human-assistant", "Be brief.\n\nHuman: q\n\nAssistant:", " a"),
        ("zephyr", "<|system|>\nBe brief.<|endoftext|>\n<|user|>\nq<|endoftext|>\n<|assistant|>\n", "a"),
    ],
)
def test_a_template_by_name(name: str, prompt: str, response: str) -> None:
    tokenizer = tokenizer_of(chat_template=name)
    encoder = Encoder(tokenizer)
    assert tokenizer.decode(encoder.prompt(ASKED)) == prompt
    _, response_ids = encoder.pair(ASKED, ANSWER)  # it only grows at its end, else this raises
    text = tokenizer.decode(response_ids)
    assert text.startswith(response) and response_ids[-1] == tokenizer.eos_token_id
    if name != "chatml":
        assert text == f"{response}<|endoftext|>"
        assert use_template_eos(tokenizer) is None  # turns end with the tokenizer's own token


def test_variables_are_fixed_in_the_stored_template(tmp_path: Path) -> None:
    thinking = "{% if enable_thinking %}<think>{% endif %}{{ style }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = tokenizer_of(chat_template=thinking, chat_template_kwargs={"enable_thinking": False, "style": 'x"y'})
    assert tokenizer.apply_chat_template(ASKED[1:], tokenize=False, enable_thinking=True) == 'x"yq'
    tokenizer.save_pretrained(tmp_path)
    assert tokenizing.load_tokenizer(str(tmp_path)).apply_chat_template(ASKED[1:], tokenize=False) == 'x"yq'
    on = tokenizer_of(chat_template=thinking, chat_template_kwargs={"enable_thinking": True})
    assert on.apply_chat_template(ASKED[1:], tokenize=False) == "<think>q"


def test_all_names_are_in_the_description() -> None:
    description = str(Model.model_fields["chat_template"].description)
    assert all(name in description for name in templates.NAMED)
    assert json.dumps(sorted(templates.NAMED)) == '["chatml", "human-assistant", "zephyr"]'
