"""Adapter folders as peft saves them: what their files say of the base, the task and the kind of adapter.

Reads adapter_config.json alone and loads no torch, so that a run's inputs can be told without it. Merging is in
adapters.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhfctl.errors import HandoffError, RlhfctlError

CONFIG = "adapter_config.json"
# Kinds that put tokens or states before the text in place of changing weights: there is nothing to merge.
_NO_WEIGHTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"
}  # fmt: skip


def fetched(path: str, revision: str | None = None) -> str:
    """A local folder for an adapter on the Hub; `path` itself for folders and for whole models."""
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(path, revision=revision) is None:
            return path
        folder = snapshot_download(path, revision=revision)
    except (OSError, ValueError):  # not to be reached, or no name: loading it says what is wrong
        return path
    return str(folder) if is_adapter(folder) else path


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter and no weights of a whole model."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The adapter's configuration; RlhfctlError where the file is not whole."""
    file = Path(folder) / CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RlhfctlError(
            f"the adapter cannot be loaded: {CONFIG} is not whole: {error}",
            where=str(folder),
            fix="fetch or save the folder again",
        ) from error
    return found if isinstance(found, dict) else {}


def base_of(folder: str | Path) -> str:
    """The base model that the adapter was trained on: a folder that is there, else a Hub id.

    A relative name is looked for inside the adapter's folder, beside it and from where the command runs.
    """
    name = read_config(folder).get("base_model_name_or_path")
    if not name:
        raise HandoffError(
            "the adapter does not say which base model it belongs to",
            where=str(folder),
            fix=f"write it into {CONFIG} as base_model_name_or_path, or name a folder with merged weights",
        )
    places = [Path(folder) / name, Path(folder).parent / name, Path(name).expanduser()]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None:
        return str(found)
    if str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise HandoffError(
            f"the base model of the adapter is not there: {name}",
            where=str(folder),
            fix=f"write where it lies now into {CONFIG} as base_model_name_or_path (a path relative to the adapter's "
            "folder will do), or name a folder with merged weights",
        )
    return str(name)


def bases_of(path: str | Path) -> list[str]:
    """The base of the adapter folder, and the base's own where that is an adapter too; [] for a model folder."""
    found: list[str] = []
    while is_adapter(path):
        path = base_of(path)
        if path in found:
            raise HandoffError("the adapters name each other as their bases", where=path, fix=f"correct {CONFIG}")
        found.append(str(path))
    return found


def tokenizer_folder(path: str) -> str:
    """Where the tokenizer of a model or adapter folder is: an adapter may leave it with its base."""
    for folder in [path, *bases_of(path)]:
        if not is_adapter(folder) or (Path(folder) / "tokenizer_config.json").is_file():
            return folder
    return path


def require_policy_adapter(folder: str | Path) -> None:
    """HandoffError unless the adapter is one of a language model that can be merged into its base."""
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
    """HandoffError where peft cannot add such an adapter into the weights of its base."""
    kind = read_config(folder).get("peft_type")
    if kind in _NO_WEIGHTS:
        raise HandoffError(
            f"an adapter of the kind {kind} cannot be merged into its base",
            where=str(folder),
            fix="name an adapter that changes weights, e.g. LORA, or a whole model",
        )
