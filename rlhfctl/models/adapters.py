"""Make, switch and save LoRA adapters: the one file that knows which kind of adapter a model carries."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    PreTrainedModel,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import adapters, head_bias
from rlhfctl.recipe.schema import Lora

# Names of the adapters on the shared model; peft saves `default` without a folder of its own.
POLICY, CRITIC, REWARD, HELDOUT, MASKING = "default", "critic", "reward", "heldout", "masking"
_LOW_RANK = ".lora_"  # part of the name of every adapter parameter
# Fused kernels of these families read weights without calling the layer, so peft refuses adapters there.
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


# ---------------------------------------------------------------- LoRA


def lora_config(lora: Lora, task: TaskType, model: nn.Module | None = None, tokens: Sequence[int] = ()) -> LoraConfig:
    """Make peft's configuration of an adapter; a scalar head is always saved with it.

    With all-linear, layers of `model` that cannot carry an adapter are left out. The rows of `tokens` in the embeddings
    and in the output layer are trained together with the adapter.
    """
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    left_out = _not_plain(model) if targets == "all-linear" and model is not None else None
    if lora.layers_to_transform is not None and model is not None:
        _require_layers(lora.layers_to_transform, model)
        if targets == "all-linear":  # peft wants names where it is given layers
            targets = _linear_names(model, left_out or ())
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        layers_to_transform=lora.layers_to_transform,
        exclude_modules=left_out or None,
        task_type=task,
        modules_to_save=["score"] if task is TaskType.SEQ_CLS else None,
        trainable_token_indices=_rows_of(model, tokens) if tokens and model is not None else None,
    )


def _rows_of(model: nn.Module, tokens: Sequence[int]) -> dict[str, list[int]]:
    """Map layer name -> ids of the trained rows, for the embeddings and the output layer."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(getattr(layer, "bias", None) is not None for layer in layers):
        raise RlhfctlError(
            "the output layer has a bias, which peft drops where it trains single rows",
            where="model.template_tokens",
            fix="set it to text, or train all weights in this stage (sft.lora: null)",
        )
    return {name: list(tokens) for name, module in model.named_modules() if any(module is layer for layer in layers)}


def _not_plain(model: nn.Module) -> list[str]:
    """List linear layers that cannot carry an adapter: Mamba's fused layers, routers of experts, grouped layers."""
    fused = ["out_proj", "conv1d"] if getattr(model.config, "model_type", "") in _MAMBA else []
    routers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).__name__.endswith(("Router", "GroupedLinear"))
    }
    return [*fused, *sorted(routers)]


def _require_layers(layers: Sequence[int], model: nn.Module) -> None:
    """Raise RlhfctlError for the index of a layer that `model` does not have."""
    count = model.config.get_text_config().num_hidden_layers
    if max(layers) >= count:
        raise RlhfctlError(
            f"there is no layer {max(layers)}: this model has {count}, the first is 0",
            where="lora.layers_to_transform",
            fix=f"name layers from 0 to {count - 1}",
        )


def _linear_names(model: nn.Module, left_out: Sequence[str]) -> list[str]:
    """List the last names of the linear layers that lie in numbered layers of `model`, without those `left_out`."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return sorted({name.rpartition(".")[2] for name in linear if re.search(r"\.\d+\.", name)} - set(left_out))


def add_lora(model: PreTrainedModel, lora: Lora, task: TaskType, *, seed: int, tokens: Sequence[int] = ()) -> PeftModel:
    """Add a new LoRA adapter to `model` (B = 0, so outputs are unchanged). Targets on the embeddings are refused.

    The rows of `tokens` in the embeddings and in the output layer are trained with it.
    """
    named = [lora.target_modules] if isinstance(lora.target_modules, str) else list(lora.target_modules)
    outer = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    if named != ["all-linear"]:
        config = lora_config(lora, task, model)
        hit = sorted(
            name
            for name, module in model.named_modules()
            if id(module) in outer and check_target_module_exists(config, name)
        )
        if hit:
            tied = getattr(model.config, "tie_word_embeddings", False)
            why = (
                "they are tied, one matrix for input and output, so merging moves both"
                if tied
                else "policy, critic and reward model share their layers, not their heads"
            )
            raise RlhfctlError(
                f"LoRA on embeddings is refused: {why}",
                where="lora.target_modules",
                fix=f"leave out {', '.join(hit)}; all-linear does so by itself",
            )
    set_seed(seed)
    try:
        peft_model = get_peft_model(model, lora_config(lora, task, model, tokens))
    except ValueError as error:
        linear = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear | Conv1D) and id(module) not in outer  # Conv1D: GPT-2's linear layer
            }
        )
        raise RlhfctlError(
            f"LoRA cannot be attached: {str(error).splitlines()[0]}",
            where="lora.target_modules",
            fix=f"this model's linear layers are: {', '.join(linear)}; or use all-linear",
        ) from error
    if tokens:  # TRL's loss reads weight and bias of the output layer, and peft's wrapper has no bias
        peft_model.get_base_model().get_output_embeddings().bias = None
    return peft_model


def is_adapter_parameter(name: str, adapter: str | None = None) -> bool:
    """Tell whether the parameter `name` belongs to `adapter`; None means any adapter."""
    return _LOW_RANK in name and (adapter is None or f".{adapter}." in name)


def is_output_factor(name: str) -> bool:
    """Tell whether the parameter `name` is the second factor B of an adapter, which is zero in a new adapter."""
    return f"{_LOW_RANK}B." in name


def save_adapter(model: PeftModel, folder: Path, *, base: str, head: bool) -> None:
    """Save the adapter with `base` as its base model. If `head`, check that the file holds the scalar head."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # Trained rows are saved separately; without this, peft would also save both whole matrices because they have grown.
    rows = model.peft_config["default"].trainable_token_indices is not None
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False if rows else "auto")
    if head and not adapter_has_head(folder):
        raise HandoffError(
            "the reward adapter was saved without its scalar head",
            where=str(folder),
            fix="put reward.lora: null, which trains the whole model, or install the tested peft: rlhfctl doctor",
        )


def adapter_has_head(folder: Path) -> bool:
    """Tell whether the adapter's file holds the weights of a scalar head."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise HandoffError(
            "the adapter folder holds no adapter_model.safetensors",
            where=str(folder),
            fix="save the adapter again: model.save_pretrained(folder, safe_serialization=True)",
        )
    with safe_open(file, framework="pt") as weights:
        # A head that only carries LoRA (".score.lora_A.") does not count: its own weights are not saved.
        return any(name.endswith((".score.weight", ".score.modules_to_save.weight")) for name in weights.keys())  # noqa: SIM118


class AdapterSwitch:
    """Choose the active adapter of a peft model.

    After each switch, `requires_grad` of the trained parameters is set again, because peft's switch turns it off. All
    roles on one model share one AdapterSwitch (LanguageModel.with_adapter, Roles).
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.active: str | None = "?"  # anything may be active before the first switch
        self._layers: list[BaseTunerLayer] = []
        self._adapters: set[str] = set()

    @property
    def layers(self) -> list[BaseTunerLayer]:
        """List every layer that carries an adapter. Adding an adapter may add layers, so the list is then renewed."""
        if self._adapters != self.model.peft_config.keys():
            self._layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
            self._adapters = set(self.model.peft_config)
            self.active = "?"
        return self._layers

    def to(self, adapter: str | None) -> None:
        """Make `adapter` the only active one; None turns all adapters off."""
        layers = self.layers
        if adapter == self.active and self._as_left(adapter):
            return
        for layer in layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter([adapter], inference_mode=True)
                layer._disable_adapters = False
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.active = adapter

    def _as_left(self, adapter: str | None) -> bool:
        """Tell whether the state is still that of the last switch. peft changes all layers alike, so one is checked."""
        layer = self.layers[0]
        acting = None if layer.disable_adapters else layer.active_adapters
        return acting == (None if adapter is None else [adapter]) and all(p.requires_grad for p in self.trained[:1])

    def trains(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set the parameters that are trained; all others stay frozen."""
        self.trained = list(parameters)


def load_weights(model: PeftModel, folder: Path, stage: str) -> None:
    """Give the `default` adapter the weights (and the head, without its bias) that are saved in `folder`.

    Raises HandoffError if they are of another shape. `stage` is the key of the section that sets it: ppo or reward.
    """
    refused = HandoffError(
        f"{stage} of the round before has an adapter of another shape",
        where=str(folder),
        fix=f"leave {stage}.lora as it was, or begin again with a new run",
    )
    saved = LoraConfig.from_pretrained(str(folder))
    own = model.peft_config[POLICY]
    if (saved.r, saved.lora_alpha) != (own.r, own.lora_alpha):  # alpha scales the product: it must be the same
        raise refused
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not head_bias.is_bias(name)}
    try:
        result = set_peft_model_state_dict(model, kept, adapter_name=POLICY)
    except RuntimeError as error:
        raise refused from error
    if result.unexpected_keys or any(is_adapter_parameter(name, POLICY) for name in result.missing_keys):
        raise refused


def add_frozen(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Let `model` carry adapters made as that of `folder`; its `default` adapter is new and changes nothing."""
    config = LoraConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.base_model_name_or_path = TaskType.CAUSAL_LM, None, None
    return get_peft_model(model, config)


def drop_policy(model: PeftModel) -> None:
    """Remove the `default` adapter of a model that has others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells that it makes another one active
        model.delete_adapter(POLICY)


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Overwrite the weights of adapter `target` with those of `source`, which has the same shape."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if is_adapter_parameter(name, source):
                weights[name.replace(f".{source}.", f".{target}.")].copy_(weight)


def add_adapter(model: PeftModel, name: str, lora: Lora, *, seed: int) -> None:
    """Add a second new adapter (B = 0) to the policy's model."""
    set_seed(seed)
    model.add_adapter(name, adapters.lora_config(lora, TaskType.CAUSAL_LM, model.get_base_model()))
