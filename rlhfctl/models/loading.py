"""Models from folders and the Hub: how the recipe has them loaded, and what is said where one cannot be.

Safetensors only; weights that are missing or of another shape are refused, where transformers would draw new ones.
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
from rlhfctl.models import adapter_folders, architecture
from rlhfctl.models import quantization as few_bits
from rlhfctl.models.devices import device
from rlhfctl.recipe.schema import Model

_SHOWN_WEIGHTS = 4
_HEADS = ("score.", "classifier.")
_VOCABULARIES = ("tokenizer.", "vocab", "merges", "spiece", "sentencepiece", "tekken")


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Without the libraries' remarks about each other, where there is no log to keep them: only errors are told."""
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
    """How the recipe has models loaded, wherever they come from: what the functions below take."""
    return {
        "dtype": torch_dtype(section.dtype),
        "trust_remote_code": section.trust_remote_code,
        "attn_implementation": section.attn_implementation,
    }


def load_config(section: Model) -> PretrainedConfig:
    """The configuration of the recipe's pretrained model, or of the base of an adapter, without its weights."""
    assert section.path is not None
    path = adapter_folders.fetched(section.path, section.revision)
    base = next(reversed(adapter_folders.bases_of(path)), None)
    revision = section.revision if base is None else None
    return read_config(base or path, "model", revision=revision, trust_remote_code=section.trust_remote_code)


def read_config(
    path: str, what: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The configuration of a model folder or Hub id; RlhfctlError where it cannot be read."""
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
    """A causal language model from a folder or Hub id; safetensors only. `quantization`: 8bit, 4bit or None.

    A folder that lacks weights is refused: transformers would draw new ones and go on.
    """
    model, missing = _pretrained(
        AutoModelForCausalLM,
        path,
        "model",
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        **few_bits.load_options(quantization, dtype, device()),
    )
    if missing:
        raise RlhfctlError(
            f"the model lacks the weights {_some(missing)}: random ones would stand in for them",
            where=path,
            fix="name a folder saved from a whole causal language model",
        )
    few_bits.use_portable_products(model)
    return model


def load_scorer(
    path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A sequence-classification model with one output from a folder or Hub id.

    A folder whose head is missing is refused: transformers would draw a new one and the scores would be noise.
    """
    config = read_config(path, "reward model", trust_remote_code=trust_remote_code)
    saved, theirs = next(iter(config.architectures or []), ""), architecture.classifier_class(config)
    if theirs is not None and saved == theirs.__name__ and not architecture.has_linear_head(theirs):
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
    """A sequence classifier with all its labels from a folder or Hub id, encoder or decoder; its head must be there."""
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
    """A sequence classifier on the weights of `path` whose head, with so many outputs, is still to be loaded."""
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
    """What loads a classifier: transformers' own class, the model's code where that is trusted, or a head made here."""
    config = read_config(path, "reward model", trust_remote_code=trust_remote_code)
    if architecture.classifier_class(config) is not None or trust_remote_code:
        return AutoModelForSequenceClassification
    return architecture.scorer_class(config)


def _pretrained(
    auto: Any, path: str, what: str, *, attn_implementation: str | None, new_head: bool = False, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """(model, names of the weights that its files lack); RlhfctlError where it cannot be loaded.

    `new_head`: the head in the files, if any, is not the one that is wanted, and may have another shape.
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
    unlike = [found for found in info["mismatched_keys"] if not (new_head and found[0].startswith(_HEADS))]
    if other := [f"{name} {tuple(kept)} for {tuple(wanted)}" for name, kept, wanted in unlike]:
        heads = what == "reward model" and all(name.startswith("score.") for name in other)
        raise RlhfctlError(
            f"weights of the {what} have another shape than {'one score needs' if heads else 'its config.json says'}: "
            + _some(sorted(other)),
            where=path,
            fix="name a model with a single output"
            if heads
            else "put the config.json back that belongs to these weights, or fetch the model again",
        )
    return model, sorted(info["missing_keys"])


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_WEIGHTS
    return ", ".join(names[:_SHOWN_WEIGHTS]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def loadable(path: str, what: str, attn_implementation: str | None) -> Iterator[None]:
    """RlhfctlError, in place of what transformers raises, where `path` is no such model or has no such attention."""
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
    """Try a tiny quantized product as wide as the recipe's model before anything trains; a sentence or an error."""
    if section.quantization is None or section.path is None:
        return None
    width = int(load_config(section).get_text_config().hidden_size)
    few_bits.try_product(section.quantization, width, torch_dtype(section.dtype), device())
    return f"model.quantization {section.quantization}: a product of width {width} is right on this machine"


def is_quantized(model: Any) -> bool:
    return bool(getattr(model, "is_quantized", False))


def float32_head(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its scalar head in float32: in 16 bits small steps are rounded away, and gradients' squares to 0."""
    if model.score.weight.dtype.itemsize < 4:
        model.score.float()
        model.score.register_forward_pre_hook(_in_head_dtype)
    return model


def _in_head_dtype(head: nn.Linear, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (given[0].to(head.weight.dtype), *given[1:])


def cannot_load(path: str, what: str, error: Exception) -> RlhfctlError:
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
    """Which file of a model folder is not whole; what the libraries say of one rarely names it."""
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
    """The torch dtype of a recipe's name for it."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
