"""Load models from folders and the Hub as the recipe says, and explain failures.

Reads safetensors files only. Refuses missing weights and weights of another shape: transformers would replace them by
random ones. Writes nothing. Leaves out adapter folders (merging.py) and new models (build.py).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import Work
from rlhfctl.models import adapter_folders, architecture, head_bias
from rlhfctl.models import quantization as quantized_layers
from rlhfctl.models.devices import device
from rlhfctl.recipe.schema import Model

_SHOWN_WEIGHTS = 4
_HEADS = ("score.", "classifier.")
_VOCABULARIES = ("tokenizer.", "vocab", "merges", "spiece", "sentencepiece", "tekken")


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Silence warnings and progress bars of libraries inside the block, for commands that keep no log; show errors."""
    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


def options(section: Model) -> dict[str, Any]:
    """Return the loading options of the recipe's `model` section, as keyword arguments of the functions below."""
    return {
        "dtype": torch_dtype(section.dtype),
        "trust_remote_code": section.trust_remote_code,
        "attn_implementation": section.attn_implementation,
    }


def load_config(section: Model) -> PretrainedConfig:
    """Load the configuration of the recipe's pretrained model without its weights; for an adapter, that of its base."""
    assert section.path is not None
    path = adapter_folders.fetched(section.path, section.revision)
    base = next(reversed(adapter_folders.bases_of(path)), None)
    revision = section.revision if base is None else None
    return read_config(base or path, "model", revision=revision, trust_remote_code=section.trust_remote_code)


def read_config(
    path: str, what: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Read the configuration of a model folder or Hub id; raise RlhfctlError if it cannot be read."""
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(path, what, error) from error


def load_causal_lm(
    path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model from a folder or Hub id; safetensors only. `quantization`: 8bit, 4bit or None.

    Raises RlhfctlError if weights are missing: transformers would replace them by random ones without an error.
    """
    model, missing = _pretrained(
        AutoModelForCausalLM,
        path,
        "model",
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        **quantized_layers.load_options(quantization, dtype, device()),
    )
    if missing:
        raise RlhfctlError(
            f"the model lacks the weights {_some(missing)}: random ones would stand in for them",
            where=path,
            fix="name a folder saved from a whole causal language model",
        )
    quantized_layers.use_portable_products(model)
    return model


def load_scorer(
    path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Load a reward model from a folder or Hub id: a sequence classifier with one output at the last token.

    Raises HandoffError if the head is missing: transformers would make a random one, and the scores would be noise.
    """
    config = read_config(path, "reward model", trust_remote_code=trust_remote_code)
    saved, known = next(iter(config.architectures or []), ""), architecture.classifier_class(config)
    if known is not None and saved == known.__name__ and not architecture.has_linear_head(known):
        raise _no_head(saved, path)
    made = not trust_remote_code or architecture.causal_class(config) is not None
    model, missing = _pretrained(
        architecture.scorer_class(config) if made else AutoModelForSequenceClassification,
        path,
        "reward model",
        dtype=dtype,
        num_labels=1,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
    )
    _require_weights(missing, path)
    if not isinstance(getattr(model, "score", None), nn.Module):
        raise _no_head(type(model).__name__, path)
    return model


def _no_head(name: str, path: str) -> HandoffError:
    return HandoffError(
        f"{name} has no scalar head on its last token, where scores are read",
        where=path,
        fix='name a decoder with a head, or score in a Python function: reward: {function: "module:name"}',
    )


def _require_weights(missing: Sequence[str], path: str) -> None:
    if missing:
        raise HandoffError(
            f"the reward model lacks the weights {_some(missing)}: its scores would be noise",
            where=path,
            fix="name a folder saved from a sequence-classification model with its head",
        )


def load_classifier(
    path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Load a sequence classifier, encoder or decoder, with all labels; raise HandoffError if its head is missing."""
    model, missing = _pretrained(
        _classifier_auto(path, trust_remote_code=trust_remote_code),
        path,
        "reward model",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
    )
    _require_weights(missing, path)
    return model


def load_headless_classifier(
    path: str, outputs: int, *, dtype: torch.dtype, trust_remote_code: bool, attn_implementation: str | None
) -> PreTrainedModel:
    """Load the weights of `path` into a sequence classifier; the caller loads its head, of `outputs` outputs, later."""
    model, _ = _pretrained(
        _classifier_auto(path, trust_remote_code=trust_remote_code),
        path,
        "reward model",
        dtype=dtype,
        num_labels=outputs,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        new_head=True,
    )
    return model


def _classifier_auto(path: str, *, trust_remote_code: bool) -> Any:
    """Choose the class that loads a classifier: transformers' own, the model's code if trusted, or one made here."""
    config = read_config(path, "reward model", trust_remote_code=trust_remote_code)
    if architecture.classifier_class(config) is not None or trust_remote_code:
        return AutoModelForSequenceClassification
    return architecture.scorer_class(config)


def _pretrained(
    auto: Any, path: str, what: str, *, attn_implementation: str | None, new_head: bool = False, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load (model, names of the weights that its files lack); raise RlhfctlError if loading fails.

    `new_head`: the caller needs another head than the one in the files, so that one may have another shape.
    """
    with Work(f"loading {path}"), loadable(path, what, attn_implementation):
        model, info = auto.from_pretrained(
            path,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            attn_implementation=attn_implementation,
            **options,
        )
    mismatched = [entry for entry in info["mismatched_keys"] if not (new_head and entry[0].startswith(_HEADS))]
    if other := [f"{name} {tuple(kept)} for {tuple(wanted)}" for name, kept, wanted in mismatched]:
        heads = what == "reward model" and all(name.startswith("score.") for name in other)
        raise RlhfctlError(
            f"weights of the {what} have another shape than {'one score needs' if heads else 'its config.json says'}: "
            + _some(sorted(other)),
            where=path,
            fix="name a model with a single output"
            if heads
            else "put the config.json back that belongs to these weights, or fetch the model again",
        )
    if head_bias.BIAS in info["unexpected_keys"]:  # transformers' class has a head without one
        bias = head_bias.bias_of_model(Path(adapter_folders.fetched(path)))
        if bias is not None and isinstance(head := getattr(model, "score", None), nn.Linear):
            head_bias.set_bias(head, bias)
    return model, sorted(info["missing_keys"])


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_WEIGHTS
    return ", ".join(names[:_SHOWN_WEIGHTS]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def loadable(path: str, what: str, attn_implementation: str | None) -> Iterator[None]:
    """Turn the errors of loading `path` into RlhfctlError: not a model, or an unsupported attention."""
    if attn_implementation == "flash_attention_2":
        _check_flash_attention()
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if attn_implementation is not None and isinstance(error, ImportError | ValueError):
            first = str(error).strip().split(". ")[0]
            if "attention" in first.lower():
                raise RlhfctlError(
                    f"the {what} cannot have this attention: {first}",
                    where="model.attn_implementation",
                    fix="use another one, or null for the architecture's own",
                ) from error
        raise cannot_load(path, what, error) from error


def _check_flash_attention() -> None:
    if find_spec("flash_attn") is None:
        raise RlhfctlError(
            "flash-attn is not installed",
            where="model.attn_implementation",
            fix="pip install flash-attn --no-build-isolation, or use sdpa",
        )
    if device().type != "cuda":
        raise RlhfctlError("flash_attention_2 needs a GPU", where="model.attn_implementation", fix="use sdpa, or null")


def check_quantization(section: Model) -> str | None:
    """Test a tiny quantized product as wide as the recipe's model before training; return a sentence or raise."""
    if section.quantization is None or section.path is None:
        return None
    width = int(load_config(section).get_text_config().hidden_size)
    quantized_layers.try_product(section.quantization, width, torch_dtype(section.dtype), device())
    return f"model.quantization {section.quantization}: a product of width {width} is right on this machine"


def is_quantized(model: Any) -> bool:
    """Check whether a model holds 8-bit or 4-bit weights."""
    return bool(getattr(model, "is_quantized", False))


def float32_head(model: PreTrainedModel) -> PreTrainedModel:
    """Convert the scalar head of `model` to float32: 16 bits would round small steps and squared gradients to 0."""
    if model.score.weight.dtype.itemsize < 4:
        model.score.float()
        model.score.register_forward_pre_hook(_in_head_dtype)
    return model


def _in_head_dtype(head: nn.Linear, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (given[0].to(head.weight.dtype), *given[1:])


def cannot_load(path: str, what: str, error: Exception) -> RlhfctlError:
    """Make the RlhfctlError for a model or tokenizer (`what`) that failed to load: the likely reason and a fix."""
    reason = str(error).strip().splitlines()[0].rstrip() if str(error).strip() else type(error).__name__
    fix = "name a Hugging Face model folder or a Hub id that can be reached"
    names = {file.name for file in Path(path).iterdir()} if Path(path).is_dir() else set()
    if names and (broken := _broken_file(Path(path))):
        reason, fix = broken, "fetch or save the folder again"
    elif "trust_remote_code" in str(error):
        reason = "it needs code that comes with it, and such code is not run unasked"
        fix = "read that code; if you trust it, set model.trust_remote_code: true"
    elif names and not names & {"config.json", "adapter_config.json"}:
        reason = "the folder holds no config.json: it is not a model folder"
    elif what == "tokenizer" and names and not any(name.startswith(_VOCABULARIES) for name in names):
        reason = "the folder holds no tokenizer"
        fix = "save the model's tokenizer there, too: tokenizer.save_pretrained(FOLDER)"
    elif what != "tokenizer" and names and not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        reason = "the folder holds no weights (model.safetensors)"
        fix = "fetch or save the model again"
        if pickled:
            reason = f"its weights are pickled ({pickled[0]}), and reading a pickle can run any code"
            fix = "convert a model that you trust: load it with transformers and save it with save_pretrained(FOLDER)"
    elif names and not isinstance(error, ImportError):
        fix = "fetch or save the folder again; where it is newer than the installed transformers, upgrade that"
    return RlhfctlError(f"the {what} cannot be loaded: {reason}", where=path, fix=fix)


def _broken_file(folder: Path) -> str | None:
    """Find the damaged file of a model folder: the libraries' messages rarely name it. None if all can be read."""
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except (ValueError, OSError, SafetensorError) as error:
            return f"{file.name} is not whole: {error}"
    return None


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype for its name in the recipe."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
