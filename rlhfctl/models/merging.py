"""Models that are adapter folders: the base is loaded, the adapter merged into it, and what it computes compared.

Reads what adapter_folders.py finds. Adapters that are trained here are made and saved in adapters.py.
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
from rlhfctl.models import adapter_folders, loading

_WEIGHTS = "adapter_model.safetensors"
_HEADS = {"score", "classifier"}  # as peft saves them with a SEQ_CLS adapter
_EMBEDDINGS = {"embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out"}
_CHECK_TOKENS, _CHECK_TOLERANCE = 12, {4: 1e-4, 8: 1e-6}  # of the largest logit, by the bytes of a number
_LOW_PRECISION_TOLERANCE = 5e-2


def load_causal_lm(
    path: str, *, revision: str | None = None, quantization: str | None = None, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A causal language model from a model folder, an adapter folder or a Hub id, and sentences about what was done.

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
    """How many outputs the head in an adapter's file has; None: it holds none."""
    file = Path(folder) / _WEIGHTS
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as weights:
        heads = [name for name in weights.keys() if _HEADS & set(name.split(".")) and "lora" not in name]  # noqa: SIM118
        rows = [weights.get_slice(name).get_shape()[0] for name in heads if name.endswith(".weight")]
    return min(rows, default=None)


def load_classifier(folder: Path, **options: Any) -> PreTrainedModel:
    """A sequence classifier that is an adapter with its head, merged into its base. `options`: of from_pretrained."""
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
    """`base` with the adapter of `folder` in its weights; HandoffError unless that computes what both computed."""
    names = _prepare_embeddings(base, folder)
    if any("lora" in name for name in names) and not adapter_folders.read_config(folder).get("ensure_weight_tying"):
        _untie(base)  # what is added to one of two tied matrices must not reach the other
    adapted = load_adapter(base, folder)
    ids = torch.arange(_CHECK_TOKENS)[None] % base.get_input_embeddings().weight.shape[0]
    before = _output(adapted, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft speaks of tied embeddings, which are looked at here
        model = merged(adapted)
    _say_whether_tied(model)
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
    """`model` with the adapter of `folder`, frozen."""
    try:
        return PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HandoffError(
            f"the adapter does not fit this base: {_misfit(error)}",
            where=str(folder),
            fix="use the base model that the adapter was trained on (base_model_name_or_path in adapter_config.json)",
        ) from error


def _misfit(error: Exception) -> str:
    """The first thing that torch found not to fit, in one line: its own first line only says that there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]
    return f"{first[:-1]} (and {len(lines) - 2} more)" if first.endswith(".") and len(lines) > 2 else first


def merged(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapter's update added into its weights, which must not be quantized: that rounds it."""
    assert not loading.is_quantized(model.get_base_model())
    with Work("merging the adapter"):
        return model.merge_and_unload()


def _output(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=ids.to(model.device)).logits.float()
    return out


def _prepare_embeddings(base: PreTrainedModel, folder: Path) -> list[str]:
    """Give the base as many rows of embeddings as the adapter's file holds, where tokens were added for it.

    Returns the names of the tensors in that file that change embeddings or the output layer.
    """
    file = folder / _WEIGHTS
    if not file.is_file():
        return []
    rows = base.get_input_embeddings().weight.shape[0]
    with safe_open(file, framework="pt") as weights:
        names = [name for name in weights.keys() if _EMBEDDINGS & set(name.split("."))]  # noqa: SIM118
        whole = [name for name in names if "lora" not in name and name.endswith(".weight")]
        kept = max((weights.get_slice(name).get_shape()[0] for name in whole), default=rows)
    if trained := adapter_folders.read_config(folder).get("trainable_token_indices"):  # of all, or by layer
        listed = trained.values() if isinstance(trained, dict) else [trained]
        kept = max(kept, *(1 + max(tokens) for tokens in listed))
    if kept > rows:
        base.resize_token_embeddings(kept, mean_resizing=False)
    return names


def _untie(base: PreTrainedModel) -> None:
    output = base.get_output_embeddings()
    if output is not None and output.weight is base.get_input_embeddings().weight:
        output.weight = torch.nn.Parameter(output.weight.detach().clone())
        _set_tied(base, False)


def _say_whether_tied(model: PreTrainedModel) -> None:
    """Share one matrix for input and output where both are alike, and say in the configuration whether they are."""
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None:
        return
    if output.weight.shape == given.weight.shape and torch.equal(output.weight, given.weight):
        output.weight = given.weight
        _set_tied(model, True)
    else:
        _set_tied(model, False)


def _set_tied(model: PreTrainedModel, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied
