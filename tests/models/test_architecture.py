"""What a configuration tells of a model: whether it is a decoder, and how much it reads."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import architecture


def test_the_tables_of_families_name_families() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert {*architecture._READ_BOTH_WAYS, *architecture._OTHER_LOGITS} <= set(CONFIG_MAPPING_NAMES)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("bert", True),
        ("bert-generation", True),
        ("roberta", True),
        ("gpt_neox", False),
        ("llama", False),
        ("gpt2", False),
    ],
)
def test_a_family_that_is_both_by_a_setting_is_refused_unless_it_is_set(kind: str, refused: bool) -> None:
    config = AutoConfig.for_model(kind)
    if not refused:
        architecture.require_causal(config, kind)
        return
    with pytest.raises(RlhfctlError, match="each of its tokens sees those after it"):
        architecture.require_causal(config, kind)
    architecture.require_causal(AutoConfig.for_model(kind, is_decoder=True), kind)


@pytest.mark.parametrize(
    ("kind", "config", "own", "limit"),
    [
        ("bert", {"max_position_embeddings": 512}, None, 512),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, None, 512),
        ("bert", {"max_position_embeddings": 512}, 128, 128),
        ("gpt2", {"n_positions": 64}, None, 64),
        ("bloom", {}, None, None),
    ],
)
def test_contexts_by_configuration_and_tokenizer(kind: str, config: Any, own: int | None, limit: int | None) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    if own is not None:
        tokenizer.model_max_length = own
    assert architecture.context_of(AutoConfig.for_model(kind, **config), tokenizer) == limit
