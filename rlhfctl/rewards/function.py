"""A Python function as a scorer, with the signature that GRPO users know.

`f(prompts, completions, **columns) -> list[float]`: strings, or lists of messages where prompts are conversations;
every other column of the prompt file arrives as a list under its own name, if the function takes it. Named in the
recipe as "module:name" and imported from the recipe's folder.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.rewards import Episode


class FunctionReward:
    """Calls the function and holds it to its contract: one number for each completion, a `finite` one unless told."""

    def __init__(self, spec: str, folder: Path, *, finite: bool = True) -> None:
        self.spec = spec
        self.finite = finite
        self.function = load_function(spec, folder)
        parameters = inspect.signature(self.function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self._names = set(named)
        self._needs = {name for name, p in named.items() if p.default is p.empty} - {"prompts", "completions"}
        if not self._takes_all and not {"prompts", "completions"} <= self._names:
            raise RlhfctlError(
                "the reward function must take prompts and completions by these names",
                where=spec,
                fix="write it as def NAME(prompts, completions, **columns)",
            )

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        columns: dict[str, list[Any]] = {}
        own = {"prompt", "prompts", "completion", "completions"}
        for name in sorted({key for episode in episodes for key in episode.row} - own):
            if self._takes_all or name in self._names:
                columns[name] = [episode.row.get(name) for episode in episodes]
        if absent := sorted(self._needs - columns.keys()):
            have = sorted({key for episode in episodes for key in episode.row})
            raise RlhfctlError(
                f"the reward function needs {', '.join(absent)}, which the prompts do not have",
                where=self.spec,
                fix=f"their columns are: {', '.join(have) or 'none'}; give the parameter a default, or add the column",
            )
        values = self.function(
            prompts=[episode.prompt for episode in episodes],
            completions=[episode.completion for episode in episodes],
            **columns,
        )
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
            raise RlhfctlError(
                f"the reward function returned {values!r}, not a list",
                where=self.spec,
                fix="return a list with one float for each completion",
            )
        values = list(values)
        if len(values) != len(episodes):
            raise RlhfctlError(
                f"the reward function returned {len(values)} numbers for {len(episodes)} completions",
                where=self.spec,
                fix="return a list with one float for each completion",
            )
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, Real) or (self.finite and not math.isfinite(value)):
                raise RlhfctlError(
                    f"the reward function returned {value!r} for completion {episodes[index].completion!r}",
                    where=self.spec,
                    fix="return finite floats",
                )
        return [float(value) for value in values]


def function_file(spec: str, folder: Path) -> Path | None:
    """The file in the recipe's folder that holds the function's module, or None (then it is an installed module)."""
    module = folder.joinpath(*spec.partition(":")[0].split("."))
    candidates = [module / "__init__.py", module.with_suffix(".py")]  # in the order of Python's import
    return next((path for path in candidates if path.is_file()), None)


def function_fingerprint(spec: str, folder: Path) -> str:
    """Hash of the function's module file, so that editing it re-runs what depends on it."""
    file = function_file(spec, folder)
    return fs.hash_json([spec, fs.hash_file(file) if file is not None else None])


def load_function(spec: str, folder: Path) -> Callable[..., Sequence[float]]:
    """Import "module:name" with the recipe's folder first on the path."""
    module_name, _, name = spec.partition(":")
    module = _import(module_name, folder.resolve(), spec)
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise RlhfctlError(
            f"the module {module_name} has no function {name!r}",
            where=spec,
            fix=f"it has: {', '.join(names) or 'no functions'}",
        )
    return function


# ---------------------------------------------------------------- importing from a recipe's folder

# Modules that came from the last recipe's folder, with the hash of each one's file. Python keeps modules by name alone,
# so another recipe's module, or helper, of the same name would else be taken for this one's; an edited one for the old.
_imported: dict[str, str | None] = {}
_imported_from: Path | None = None


def _import(module_name: str, folder: Path, spec: str) -> ModuleType:
    global _imported_from
    if _imported_from != folder or any(_file_hash(name, folder) != was for name, was in _imported.items()):
        for name in _imported:
            sys.modules.pop(name, None)
        _imported.clear()
    _imported_from = folder
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        raise RlhfctlError(
            f"the module {module_name!r} cannot be imported: {error}",
            where=spec,
            fix=f"put {module_name.replace('.', '/')}.py into {folder}, or install the package that holds it"
            if absent
            else "correct it, or install what it needs",
        ) from error
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if _is_from(sys.modules[name], name, folder):
                _imported[name] = _file_hash(name, folder)
    wanted = function_file(module_name, folder)
    if wanted is not None and getattr(module, "__file__", None) != str(wanted):
        raise RlhfctlError(
            f"{wanted} is hidden by another module {module_name!r} that is loaded already",
            where=spec,
            fix="give the file another name",
        )
    return module


def _is_from(module: ModuleType, name: str, folder: Path) -> bool:
    if name.partition(".")[0] == "rlhfctl":  # a folder above our own source
        return False
    file, at = function_file(name, folder), getattr(module, "__file__", None)
    if file is None:  # perhaps a package without __init__.py
        return at is None and folder.joinpath(*name.split(".")).is_dir()
    return at == str(file)


def _file_hash(module_name: str, folder: Path) -> str | None:
    file = function_file(module_name, folder)
    return fs.hash_file(file) if file is not None else None
