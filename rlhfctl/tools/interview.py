"""Ask the questions of `rlhfctl init` and check the answers.

Asks for the run's name, the model, the data, the scorer, and the size of the machine: no default can know these. People
type paths relative to the current folder; `Answers` holds them relative to the recipe's folder. Counts the prompts in
their file. Writes nothing. Leaves out the recipe's text (init.py) and checks of the rows (`validate --deep`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.schema import DATA_SUFFIXES, NAME
from rlhfctl.recipe.sections.scorers import FUNCTION_NAME

NEW = "new"
NONE = "none"
_DEFAULT_NAME = "my-rlhf"
_FEWEST_PROMPTS = 3  # one for test, and two to train on

ScoredBy = Literal["preferences", "model", "function"]
# (question, default answer or None, check) -> answer. The check returns the answer as the recipe states it, or raises
# RlhfctlError with what is wrong.
Ask = Callable[[str, str | None, Callable[[str], str]], str]


@dataclass(frozen=True)
class Answers:
    """Answers of the interview. Paths are as the recipe states them; `prompts_rows` is None if it cannot be counted."""

    name: str
    model: str = NEW
    demonstrations: str | None = None
    scorer: str = ""
    scored_by: ScoredBy = "preferences"
    prompts: str = ""
    prompts_rows: int | None = None
    lora: bool = True
    gpu: bool = False


def ask_questions(file: Path | None, ask: Ask) -> tuple[Path, Answers]:
    """Ask all questions. Return the recipe's file (`file`, or NAME.yaml) and the answers."""
    if file is not None:
        _refuse_existing(file)
    stem = file.stem if file is not None else ""
    name = ask(
        "Name of the run, and of its folder",
        stem if re.match(NAME, stem) else _DEFAULT_NAME,
        lambda text: _check_name(text, file),
    )
    file = file or Path(f"{name}.yaml")
    folder = file.parent
    model = ask(
        "Base model: a folder, a Hub id, or `new` for a tiny one on the built-in task",
        NEW,
        lambda text: _check_model(text, folder),
    )
    if model == NEW:
        return file, Answers(name, lora=_ask_lora(ask))
    demonstrations = ask(
        "Demonstrations (a file of prompt, completion), or `none`", NONE, lambda text: _check_file(text, folder, NONE)
    )
    scorer = ask(
        "What scores: preferences (a file of prompt, chosen, rejected), a reward model, or a function (module:name)",
        None,
        lambda text: _check_scorer(text, folder),
    )
    prompts = ask("Prompts (a file of prompt)", None, lambda text: _check_prompts(text, folder))
    lora = _ask_lora(ask)
    size = "gpu" if shutil.which("nvidia-smi") is not None else "cpu"
    gpu = ask("Sizes for a `gpu` or a `cpu`", size, lambda text: _check_word(text, "gpu", "cpu")) == "gpu"
    return file, Answers(
        name=name,
        model=model,
        demonstrations=None if demonstrations == NONE else demonstrations,
        scorer=scorer,
        scored_by=_kind_of_scorer(scorer, folder),
        prompts=prompts,
        prompts_rows=_count_rows(prompts, folder),
        lora=lora,
        gpu=gpu,
    )


def _ask_lora(ask: Ask) -> bool:
    answer = ask("Train `lora` adapters or `all` weights", "lora", lambda text: _check_word(text, "lora", "all"))
    return answer == "lora"


# ---------------------------------------------------------------- checks: return the text for the recipe, or raise


def _refuse_existing(file: Path) -> None:
    fs.require_new(file, fix="name another: rlhfctl init FILE")


def _check_name(text: str, file: Path | None) -> str:
    if not re.match(NAME, text):
        raise RlhfctlError("use letters, digits, '.', '_' and '-', the first a letter or a digit")
    if file is None:
        _refuse_existing(Path(f"{text}.yaml"))
    return text


def _check_model(text: str, folder: Path) -> str:
    """Check a model: a folder, stated relative to the recipe's folder, or a Hub id, stated as it is."""
    path = Path(text).expanduser()
    if text == NEW or has_variable(text):
        return text
    if path.is_dir():
        return _relative_to_recipe(folder, text, model=True)
    if path.exists():
        raise RlhfctlError(f"{text} is a file; name the folder that holds the model")
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise RlhfctlError(f"there is no folder {text}")
    return text


def _check_file(text: str, folder: Path, otherwise: str | None = None) -> str:
    """Check a file of rows and state it relative to the recipe's folder. The word `otherwise` stays as it is."""
    if text == otherwise or has_variable(text):
        return text
    if not Path(text).expanduser().is_file():
        raise RlhfctlError(f"there is no file {text}")
    return _relative_to_recipe(folder, text)


def _check_scorer(text: str, folder: Path) -> str:
    if FUNCTION_NAME.fullmatch(text):
        return text
    if Path(text).expanduser().is_file() or Path(text).suffix in DATA_SUFFIXES:
        return _check_file(text, folder)
    if "/" not in text and not Path(text).is_dir():
        raise RlhfctlError(f"there is no file or folder {text}; a Hub id is owner/name, a function module:name")
    return _check_model(text, folder)


def _check_prompts(text: str, folder: Path) -> str:
    stated = _check_file(text, folder)
    count = _count_rows(stated, folder)
    if count is not None and count < _FEWEST_PROMPTS:
        raise RlhfctlError(
            f"{text} holds {count} prompts; some are kept for the verdict: give {_FEWEST_PROMPTS} or more"
        )
    return stated


def _check_word(text: str, *words: str) -> str:
    if text not in words:
        raise RlhfctlError(f"answer {' or '.join(words)}")
    return text


def has_variable(text: str) -> bool:
    """Tell whether a path holds an environment variable, so that it may lead somewhere else on each machine."""
    return "${" in text


def _relative_to_recipe(folder: Path, text: str, *, model: bool = False) -> str:
    """Convert a path relative to the current folder into one relative to `folder`. Absolute paths stay as they are."""
    if text.startswith(("/", "~")):
        return text
    if folder.resolve() != Path.cwd().resolve():
        text = os.path.relpath(text, folder)
    return f"./{text}" if model and not text.startswith(".") else text  # without ./ it reads as a Hub id


def _kind_of_scorer(stated: str, folder: Path) -> ScoredBy:
    if FUNCTION_NAME.fullmatch(stated):
        return "function"
    rows = Path(stated).suffix in DATA_SUFFIXES or resolve_path(folder, stated).is_file()
    return "preferences" if rows else "model"


def resolve_path(folder: Path, stated: str) -> Path:
    """Return the file or folder that a path in the recipe means. The recipe's folder need not exist yet."""
    return Path(os.path.normpath(folder / Path(stated).expanduser()))


def _count_rows(stated: str, folder: Path) -> int | None:
    """Count the rows of a file with one row per line. None for other formats and for paths with a variable."""
    if has_variable(stated) or Path(stated).suffix not in (".jsonl", ".ndjson", ".txt"):
        return None
    with resolve_path(folder, stated).open("rb") as lines:
        return sum(1 for line in lines if line.strip())
