"""Make, load and save the scalar heads of reward models and critics, on a separate model or on a shared trunk."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from rlhfctl.errors import HandoffError
from rlhfctl.models import architecture, head_bias, loading, tokenizing
from rlhfctl.models.adapters import is_adapter_parameter
from rlhfctl.models.architecture import backbone
from rlhfctl.models.language_model import LanguageModel


def new_scorer(config: PretrainedConfig, **options: Any) -> Any:
    """Make a sequence-classification model of any causal family with new weights."""
    return architecture.scorer_class(config)._from_config(config, **options)


def scorer_around(base: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """Make a sequence-classification model around the backbone of a language model, with a new scalar head from `seed`.

    The backbone is shared, not copied. This is for quantized backbones, which only adapters can train.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with torch.device("meta"):
        model = new_scorer(config, dtype=base.dtype)
    setattr(model, model.base_model_prefix, backbone(base))
    set_seed(seed)
    model.score = nn.Linear(model.score.in_features, 1, bias=False, device=base.device, dtype=base.dtype)
    nn.init.normal_(model.score.weight, std=getattr(config, "initializer_range", 0.02))
    # Loading set attributes on the model (quantization, device map) that peft and the trainers read: copy them.
    for name in vars(base).keys() - vars(model).keys():
        setattr(model, name, getattr(base, name))
    model.requires_grad_(False)
    return loading.float32_head(model).eval()


def scorer_on(base: PreTrainedModel, *, seed: int, zero_head: bool = False) -> PreTrainedModel:
    """Make a sequence-classification model from the weights of a language model, with a new scalar head.

    The head is drawn from `seed`, or zero for a critic that starts by predicting 0. Weights are copied, not shared.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    set_seed(seed)
    model = new_scorer(config, dtype=base.dtype)
    getattr(model, model.base_model_prefix).load_state_dict(backbone(base).state_dict())
    if zero_head:
        torch.nn.init.zeros_(model.score.weight)
    return loading.float32_head(model).to(base.device)


def draw_by_width(scorer: Any, *, seed: int) -> None:
    """Draw the weights of a scorer's head anew, with mean 0 and standard deviation 1 / sqrt(hidden size + 1).

    Stiennon et al. 2020 and Huang et al. 2024 (2403.17031) initialize reward models so.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = scorer.score.weight
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32) / math.sqrt(weight.shape[1] + 1)
    with torch.no_grad():
        weight.copy_(drawn)


# ---------------------------------------------------------------- heads on a shared trunk


class AdapterScorer(nn.Module):
    """A reward model or critic as a scalar head and an adapter on the policy's model.

    It has the attributes of a sequence-classification model: `score` (the head) and `backbone`.
    """

    base_model_prefix = "backbone"

    def __init__(self, language_model: LanguageModel, head: nn.Module) -> None:
        super().__init__()
        self.score = head
        self.backbone = _Backbone(language_model)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
        """Save it as a SEQ_CLS adapter with its head, which peft alone can load onto base*."""
        language_model = self.backbone.shared
        save_scorer_adapter(language_model.model, str(language_model.adapter), self.score, folder, base)
        tokenizing.save_tokenizer(tokenizer, folder)


def with_own_head(scorer: Any) -> Any:
    """Make a scorer on the very trunk of `scorer`, with a copy of its scalar head that can be trained by itself.

    `scorer`: an AdapterScorer or a sequence-classification model. The copied head is in float32 or wider.
    """
    head = copy.deepcopy(scorer.score)
    head = head.to(torch.promote_types(head.weight.dtype, torch.float32))
    if isinstance(scorer, AdapterScorer):
        return AdapterScorer(scorer.backbone.shared, head)
    twin = copy.copy(scorer)
    twin.__dict__["_modules"] = dict(scorer._modules)  # the trunk stays the same object, the head is another
    twin.score = head
    return twin


class _Backbone(nn.Module):
    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.__dict__["shared"] = language_model  # not a submodule: it belongs to the policy

    shared: LanguageModel

    @property
    def config(self) -> Any:
        return self.shared.trunk.config

    def as_active_trunk(self) -> Any:
        """Return the shared trunk, with this scorer's adapter active."""
        self.shared.activate()
        return self.shared.trunk

    def forward(self, **inputs: Any) -> Any:
        return self.as_active_trunk()(**inputs)


def save_scorer_adapter(model: PeftModel, adapter: str, head: nn.Module, folder: Path, base: str) -> None:
    """Save one adapter and a scalar head in the format of peft's SEQ_CLS adapters."""
    marker = f".{adapter}.weight"
    tensors = {
        name.replace(marker, ".weight"): value.detach().to("cpu").contiguous()
        for name, value in model.state_dict().items()
        if name.endswith(marker) and is_adapter_parameter(name)
    }
    for name, value in head.state_dict().items():  # weight, and the bias of a normalized reward
        tensors[f"base_model.model.score.{name}"] = value.detach().to("cpu").contiguous()
    config = copy.deepcopy(model.peft_config[adapter])
    config.task_type = TaskType.SEQ_CLS
    config.modules_to_save = ["score"]
    config.inference_mode = True
    config.base_model_name_or_path = base
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_scorer_adapter(model: PeftModel, name: str, folder: Path) -> nn.Linear:
    """Load the SEQ_CLS adapter of `folder` onto `model` as adapter `name`, frozen; return its scalar head.

    HandoffError if the file's tensors do not fit this model, or if the head is missing.
    """
    tensors = load_file(folder / "adapter_model.safetensors")
    heads = [key for key in tensors if key.endswith((".score.weight", ".score.modules_to_save.weight"))]
    if len(heads) != 1:
        raise HandoffError(
            "the adapter holds no scalar head: its scores would be noise",
            where=str(folder),
            fix="train it with task_type SEQ_CLS and modules_to_save score, or name a reward stage: runs/NAME/reward",
        )
    weight = tensors.pop(heads[0])
    bias = tensors.pop(heads[0].removesuffix("weight") + "bias", None)
    config = LoraConfig.from_pretrained(str(folder))
    config.task_type = TaskType.CAUSAL_LM
    config.modules_to_save = None
    config.inference_mode = False
    config.lora_dropout = 0.0
    try:
        model.add_adapter(name, config)
    except ValueError as error:
        raise HandoffError(
            f"the adapter does not fit this base: {str(error).splitlines()[0]}",
            where=str(folder),
            fix="use the base model that the adapter was trained on",
        ) from error
    wanted = {
        key: value
        for key, value in model.state_dict().items()
        if f".{name}.weight" in key and is_adapter_parameter(key)
    }
    given = {key.removesuffix(".weight") + f".{name}.weight": value for key, value in tensors.items()}
    if wanted.keys() != given.keys() or any(wanted[key].shape != given[key].shape for key in wanted):
        odd = sorted(wanted.keys() ^ given.keys())
        raise HandoffError(
            f"the adapter does not fit this base: {', '.join(odd[:3]) or 'shapes differ'}",
            where=str(folder),
            fix="use the base model that the adapter was trained on",
        )
    with torch.no_grad():
        for key, value in given.items():
            wanted[key].copy_(value)
    head = new_head(model, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    if bias is not None:
        head_bias.set_bias(head, bias)
    return head


def head_on_same_trunk(scorer: Any, critic: Any) -> nn.Linear:
    """Return the head of `critic` if its trunk has the very weights of `scorer`'s; HandoffError otherwise.

    Both are sequence-classification models.
    """
    own, other = backbone(scorer).state_dict(), backbone(critic).state_dict()
    if own.keys() != other.keys() or not all(_equal(own[name], other[name]) for name in own):
        raise _other_trunk("critic_from")
    head: nn.Linear = critic.score
    return head


def head_on_same_adapter(scorer: AdapterScorer, folder: Path) -> nn.Linear:
    """Load the head of the SEQ_CLS adapter in `folder` if that adapter has the very weights of `scorer`'s.

    HandoffError otherwise: the head was trained on other states.
    """
    shared = scorer.backbone.shared
    marker = f".{shared.adapter}.weight"
    own = {
        name.replace(marker, ".weight"): value
        for name, value in shared.model.state_dict().items()
        if name.endswith(marker) and is_adapter_parameter(name)
    }
    given = load_file(folder / "adapter_model.safetensors")
    adapter = {name: value for name, value in given.items() if is_adapter_parameter(name)}
    if own.keys() != adapter.keys() or not all(_equal(own[name], adapter[name]) for name in own):
        raise _other_trunk(str(folder))
    head = new_head(shared.model)
    weights = {name.rpartition(".")[2]: value for name, value in given.items() if name not in adapter}
    with torch.no_grad():
        head.weight.copy_(weights["weight"])
    if "bias" in weights:
        head_bias.set_bias(head, weights["bias"])
    return head


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to("cpu"), other.to("cpu", one.dtype))


def _other_trunk(where: str) -> HandoffError:
    return HandoffError(
        "the critic was trained on the states of another reward model",
        where=where,
        fix="name a critic that was trained with critic: reward on this reward model, or use critic: adapter or model",
    )


def new_head(model: Any, dtype: torch.dtype | None = None) -> nn.Linear:
    """Make a scalar head of zeros for the hidden states of `model`, in float32 or wider because it is trained."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    embedding = inner.get_input_embeddings().weight
    width = inner.get_output_embeddings().weight.shape[1]
    kind = torch.promote_types(dtype or embedding.dtype, torch.float32)
    head = nn.Linear(width, 1, bias=False, dtype=kind, device=embedding.device)
    nn.init.zeros_(head.weight)
    return head
