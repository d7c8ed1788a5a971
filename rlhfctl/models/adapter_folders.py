"""Read adapter folders as peft saves them: the base model, the task and the kind of adapter.

Reads adapter_config.json only and never loads torch: the pipeline needs these facts to fingerprint a run's inputs
before torch is imported. Downloads an adapter from the Hub if its folder is not local. Leaves out merging (merging.py)
and training (adapters.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhfctl.errors import HandoffError, RlhfctlError

CONFIG = "adapter_config.json"
# These kinds add tokens or states before the text and change no weights, so they cannot be merged.
_NO_WEIGHTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"
}  # fmt: skip


def fetched(path: str, revision: str | None = None) -> str:
    """Download an adapter from the Hub, return its local folder; return `path` for local folders and whole models."""
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(path, revision=revision) is None:
            return path
        folder = snapshot_download(path, revision=revision)
    except (OSError, ValueError):  # the Hub is unreachable, or the name is invalid: loading reports it
        return path
    return str(folder) if is_adapter(folder) else path


def is_adapter(path: str | Path) -> bool:
    """Check whether a folder holds an adapter and no weights of a whole model."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read the adapter's configuration; raise RlhfctlError if the file is missing or damaged."""
    file = Path(folder) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RlhfctlError(
            f"the adapter cannot be loaded: {CONFIG} is not whole: {error}",
            where=str(folder),
            fix="fetch or save the folder again",
        ) from error
    return config if isinstance(config, dict) else {}


def base_of(folder: str | Path) -> str:
    """Find the base model that the adapter was trained on: an existing folder, or else a Hub id.

    A relative name is searched inside the adapter's folder, beside it, and in the current directory, in this order.
    """
    name = read_config(folder).get("base_model_name_or_path")
    if not name:
        raise HandoffError(
            "the adapter does not say which base model it belongs to",
            where=str(folder),
            fix=f"write it into {CONFIG} as base_model_name_or_path, or name a folder with merged weights",
        )
    candidates = [Path(folder) / name, Path(folder).parent / name, Path(name).expanduser()]
    base = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if base is not None:
        return str(base)
    if str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise HandoffError(
            f"the base model of the adapter is not there: {name}",
            where=str(folder),
            fix=f"write where it lies now into {CONFIG} as base_model_name_or_path (a path relative to the adapter's "
            "folder will do), or name a folder with merged weights",
        )
    return str(name)


def bases_of(path: str | Path) -> list[str]:
    """List the bases of an adapter folder, nearest first: a base may be an adapter itself. [] for a model folder."""
    bases: list[str] = []
    while is_adapter(path):
        path = base_of(path)
        if path in bases:
            raise HandoffError("the adapters name each other as their bases", where=path, fix=f"correct {CONFIG}")
        bases.append(str(path))
    return bases


def tokenizer_folder(path: str) -> str:
    """Find the folder that holds the tokenizer of a model or adapter: an adapter may rely on that of its base."""
    for folder in [path, *bases_of(path)]:
        if not is_adapter(folder) or (Path(folder) / "tokenizer_config.json").is_file():
            return folder
    return path


def require_policy_adapter(folder: str | Path) -> None:
    """Raise HandoffError unless the adapter belongs to a language model and can be merged into its base."""
    task = read_config(folder).get("task_type")
    if task not in (None, "CAUSAL_LM"):
        scores = task == "SEQ_CLS"
        raise HandoffError(
            "the adapter was trained to score text (task_type SEQ_CLS), not to write it"
            if scores
            else f"the adapter was trained for another task than writing text (task_type {task})",
            where=str(folder),
            fix="name it as reward.model, and a language model here" if scores else "name an adapter of task CAUSAL_LM",
        )
    require_mergeable(folder)


def require_mergeable(folder: str | Path) -> None:
    """Raise HandoffError if peft cannot add this kind of adapter to the weights of its base."""
    kind = read_config(folder).get("peft_type")
    if kind in _NO_WEIGHTS:
        raise HandoffError(
            f"an adapter of the kind {kind} cannot be merged into its base",
            where=str(folder),
            fix="name an adapter that changes weights, e.g. LORA, or a whole model",
        )
