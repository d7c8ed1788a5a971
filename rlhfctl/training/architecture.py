"""What a model's configuration tells before its weights load: may it be trained here, which class gives it a head.

Reads configurations of transformers; loads nothing. How models are loaded is in loading.py.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from rlhfctl.errors import RlhfctlError
from rlhfctl.training.reward_head import sequence_classifier


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class with which transformers generates text from such a model; None where it has none."""
    return _class_of(config, MODEL_FOR_CAUSAL_LM_MAPPING)


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """transformers' own sequence classifier of such a model; None where it has none."""
    return _class_of(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)


def scorer_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of a scalar head (`score`) on the backbone of a causal language model.

    transformers' own sequence classifier where it is such a head on the causal model's backbone, else one made here.
    """
    causal, theirs = causal_class(config), classifier_class(config)
    same = theirs is not None and (causal is None or theirs.base_model_prefix == causal.base_model_prefix)
    if theirs is not None and same and has_linear_head(theirs):
        return theirs
    if causal is None:
        raise RlhfctlError(
            f"the model type {config.model_type} has no causal language model in transformers, so no head can read its "
            "last token",
            fix="name a decoder",
        )
    made: type[PreTrainedModel] = sequence_classifier(causal)  # type: ignore[arg-type]  # functools.cache and type[Any]
    return made


def is_made_here(kind: type[PreTrainedModel]) -> bool:
    """Whether transformers lacks this sequence classifier, so that a folder of it needs our file to load."""
    return kind.__module__ == sequence_classifier.__module__


def has_linear_head(kind: type[PreTrainedModel]) -> bool:
    """Whether a sequence classifier reads its last token with a plain linear layer, in transformers named `score`."""
    initializer: Any = kind.__init__
    return "score" in initializer.__code__.co_names


def _class_of(config: PretrainedConfig, mapping: Any) -> type[PreTrainedModel] | None:
    return _get_model_class(config, mapping) if type(config) in mapping else None
