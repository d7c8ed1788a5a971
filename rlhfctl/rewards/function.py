"""A Python function as a scorer, with the signature that GRPO users know.

`f(prompts, completions, **columns) -> list[float]`: strings, or lists of messages where prompts are conversations;
every other column of the prompt file arrives as a list under its own name. Named in the recipe as "module:name" and
imported from the recipe's folder.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.rewards import Episode


class FunctionReward:
    """Calls the function and holds it to its contract: one finite number for each completion."""

    def __init__(self, spec: str, folder: Path) -> None:
        self.spec = spec
        self.function = load_function(spec, folder)
        parameters = inspect.signature(self.function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        columns: dict[str, list[Any]] = {}
        for name in sorted({key for episode in episodes for key in episode.row} - {"prompt", "completion", "completions"}):
            if self._takes_all or name in self._names:
                columns[name] = [episode.row.get(name) for episode in episodes]
        values = self.function(
            prompts=[episode.prompt for episode in episodes],
            completions=[episode.completion for episode in episodes],
            **columns,
        )
        values = list(values)
        if len(values) != len(episodes):
            raise RlhfctlError(
                f"the reward function returned {len(values)} numbers for {len(episodes)} completions",
                where=self.spec,
                fix="return a list with one float for each completion",
            )
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RlhfctlError(
                    f"the reward function returned {value!r} for completion {episodes[index].completion!r}",
                    where=self.spec,
                    fix="return finite floats",
                )
        return [float(value) for value in values]


def function_file(spec: str, folder: Path) -> Path | None:
    """The file in the recipe's folder that holds the function's module, or None (then it is an installed module)."""
    module = folder.joinpath(*spec.partition(":")[0].split("."))
    candidates = [module.with_suffix(".py"), module / "__init__.py"]
    return next((path for path in candidates if path.is_file()), None)


def function_fingerprint(spec: str, folder: Path) -> str:
    """Hash of the function's module file, so that editing it re-runs what depends on it."""
    file = function_file(spec, folder)
    return fs.hash_json([spec, fs.hash_file(file) if file is not None else None])


def load_function(spec: str, folder: Path) -> Callable[..., Sequence[float]]:
    """Import "module:name" with the recipe's folder first on the path."""
    module_name, _, name = spec.partition(":")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RlhfctlError(
            f"the module {error.name!r} cannot be imported",
            where=spec,
            fix=f"put {module_name}.py into {folder}, or install the package that holds it",
        ) from error
    finally:
        sys.path.remove(str(folder))
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise RlhfctlError(
            f"the module {module_name} has no function {name!r}",
            where=spec,
            fix=f"it has: {', '.join(names) or 'no functions'}",
        )
    return function  # type: ignore[no-any-return]
