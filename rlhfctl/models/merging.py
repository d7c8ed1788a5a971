"""Load an adapter folder as a whole model: load the base, merge the adapter, and compare the outputs before and after.

Reads adapter folders (adapter_folders.py finds their bases). Writes nothing. Leaves out making, training and saving
adapters (adapters.py).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from rlhfctl.errors import HandoffError
from rlhfctl.events import Work
from rlhfctl.models import adapter_folders, head_bias, loading

_WEIGHTS = "adapter_model.safetensors"
_HEADS = {"score", "classifier"}  # names of the heads that peft saves with a SEQ_CLS adapter
_EMBEDDINGS = {"embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out"}
_CHECK_TOKENS, _CHECK_TOLERANCE = 12, {4: 1e-4, 8: 1e-6}  # relative to the largest logit; keys: bytes per number
_LOW_PRECISION_TOLERANCE = 5e-2


def load_causal_lm(
    path: str, *, revision: str | None = None, quantization: str | None = None, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a causal language model from a model folder, an adapter folder or a Hub id; return it and notes on merging.

    An adapter is merged into its base, which may be an adapter itself. `options` are those of loading.load_causal_lm.
    """
    path = adapter_folders.fetched(path, revision)
    if not adapter_folders.is_adapter(path):
        return loading.load_causal_lm(path, revision=revision, quantization=quantization, **options), []
    if quantization is not None:
        raise HandoffError(
            "the model is an adapter, which cannot be merged into quantized weights",
            where=path,
            fix="merge it in full precision first: run a recipe of this model without sft and quantization, and name "
            "its base/model folder; or take model.quantization out",
        )
    adapter_folders.require_policy_adapter(path)
    base_path = adapter_folders.base_of(path)
    base, notes = load_causal_lm(base_path, **options)
    model = merge(base, Path(path)).requires_grad_(True)  # peft froze the base
    return model, [*notes, f"the adapter {path} is merged into its base {base_path}"]


def head_outputs(folder: str | Path) -> int | None:
    """Return the number of outputs of the head in an adapter's file; None if the file holds no head."""
    file = Path(folder) / _WEIGHTS
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as weights:
        heads = [name for name in weights.keys() if _HEADS & set(name.split(".")) and "lora" not in name]  # noqa: SIM118
        rows = [weights.get_slice(name).get_shape()[0] for name in heads if name.endswith(".weight")]
    return min(rows, default=None)


def load_classifier(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a sequence classifier from an adapter with a head, merged into its base. `options`: for from_pretrained."""
    outputs = head_outputs(folder)
    if outputs is None:
        raise HandoffError(
            "the adapter holds no head: its scores would be noise",
            where=str(folder),
            fix="train it with task_type SEQ_CLS, which saves the head with it",
        )
    adapter_folders.require_mergeable(folder)
    base = loading.load_headless_classifier(adapter_folders.base_of(folder), outputs, **options)
    return merged(load_adapter(base, folder))


def merge(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge the adapter of `folder` into the weights of `base`; raise HandoffError if the outputs change."""
    names = _prepare_embeddings(base, folder)
    if any("lora" in name for name in names) and not adapter_folders.read_config(folder).get("ensure_weight_tying"):
        _untie(base)  # an update of one of two tied matrices must not change the other
    adapted = load_adapter(base, folder)
    ids = torch.arange(_CHECK_TOKENS)[None] % base.get_input_embeddings().weight.shape[0]
    before = _output(adapted, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about tied embeddings, which are handled here
        model = merged(adapted)
    _tie_if_equal(model)
    gap = float((_output(model, ids) - before).abs().max())
    allowed = _CHECK_TOLERANCE.get(model.dtype.itemsize, _LOW_PRECISION_TOLERANCE)
    if not gap <= allowed * max(1.0, float(before.abs().max())):
        raise HandoffError(
            f"merged into its base, the adapter computes something else: off by {gap:.3g}",
            where=str(folder),
            fix="merge it with peft yourself and name the folder of the merged model",
        )
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter of `folder`, frozen, on `model`; raise HandoffError if it does not fit."""
    try:
        head_bias.prepare_for_adapter(model, folder)
        return PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HandoffError(
            f"the adapter does not fit this base: {_misfit(error)}",
            where=str(folder),
            fix="use the base model that the adapter was trained on (base_model_name_or_path in adapter_config.json)",
        ) from error


def _misfit(error: Exception) -> str:
    """Return the first mismatch that torch reports, in one line: the first line of its message names none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]
    return f"{first[:-1]} (and {len(lines) - 2} more)" if first.endswith(".") and len(lines) > 2 else first


def merged(model: PeftModel) -> PreTrainedModel:
    """Return the plain model with the adapter's update added to its weights; quantized weights would round it."""
    assert not loading.is_quantized(model.get_base_model())
    with Work("merging the adapter"):
        return model.merge_and_unload()


def _output(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Compute the logits of `ids` in eval mode, as float32."""
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=ids.to(model.device)).logits.float()
    return out


def _prepare_embeddings(base: PreTrainedModel, folder: Path) -> list[str]:
    """Resize the base's embeddings to those of the adapter, which may have been trained with added tokens.

    Returns the names of the tensors in the adapter's file that change embeddings or the output layer.
    """
    file = folder / _WEIGHTS
    if not file.is_file():
        return []
    rows = base.get_input_embeddings().weight.shape[0]
    with safe_open(file, framework="pt") as weights:
        names = [name for name in weights.keys() if _EMBEDDINGS & set(name.split("."))]  # noqa: SIM118
        whole = [name for name in names if "lora" not in name and name.endswith(".weight")]
        kept = max((weights.get_slice(name).get_shape()[0] for name in whole), default=rows)
    if trained := adapter_folders.read_config(folder).get("trainable_token_indices"):  # one list, or one per layer
        listed = trained.values() if isinstance(trained, dict) else [trained]
        kept = max(kept, *(1 + max(tokens) for tokens in listed))
    if kept > rows:
        base.resize_token_embeddings(kept, mean_resizing=False)
    return names


def _untie(base: PreTrainedModel) -> None:
    """Give the output layer a matrix of its own if it shares that of the input embeddings."""
    output = base.get_output_embeddings()
    if output is not None and output.weight is base.get_input_embeddings().weight:
        output.weight = torch.nn.Parameter(output.weight.detach().clone())
        _set_tied(base, False)


def _tie_if_equal(model: PreTrainedModel) -> None:
    """Share one matrix for input and output embeddings if both are equal, and record this in the configuration."""
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None:
        return
    if output.weight.shape == inputs.weight.shape and torch.equal(output.weight, inputs.weight):
        output.weight = inputs.weight
        _set_tied(model, True)
    else:
        _set_tied(model, False)


def _set_tied(model: PreTrainedModel, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied
