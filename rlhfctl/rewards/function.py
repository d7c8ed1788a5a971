"""Score responses with a Python function of the user, in the signature of TRL's GRPO reward functions.

`f(prompts, completions, **columns) -> list[float | None]`. Prompts and completions are strings, or lists of messages if
the prompts are conversations. `completion_ids` (the token ids of each response) and every other column of the prompt
file are passed as lists under their own names, if the function takes them. None means that the function does not score
this row. The function may be `async`. The recipe names it as "module:name"; it is imported from the recipe's folder.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RewardFailed, RlhfctlError
from rlhfctl.events import transcript
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.rewards.episode import Episode

Say = Callable[[str], None]
_GIVEN = {"prompts", "completions", "completion_ids"}
_SHOWN = 60  # characters of a text in a message
_MEND = "correct it and give the same command again: it resumes from the last complete checkpoint"


class Unscored:
    """Warn once about rows for which every reward function returned None."""

    def __init__(self, say: Say) -> None:
        self.say, self.warned = say, False

    def report(self, count: int, total: int) -> None:
        """Warn if `count` of the `total` rows of a batch have no score."""
        if count and not self.warned:
            self.warned = True
            self.say(f"{count} of {total} responses are scored by no reward function (None): they count as 0")


class FunctionReward:
    """Call the function and check its contract: one number or None per completion, finite if `finite`.

    RewardFailed if it raises (after `retries` more calls) or returns something else. `batch_size`: the most completions
    per call (None: all). With several `processes` the first one calls it, with all episodes: the function sees what it
    sees in one process, and each row is scored once.
    """

    def __init__(
        self,
        spec: str,
        folder: Path,
        *,
        finite: bool = True,
        retries: int = 0,
        batch_size: int | None = None,
        say: Say = lambda sentence: None,
        processes: Processes = ALONE,
    ) -> None:
        self.spec = spec
        self.processes = processes
        self.batch_size = batch_size
        self.unscored = Unscored(say)
        self.finite = finite
        self.retries = retries
        self.function = load_function(spec, folder)
        parameters = inspect.signature(self.function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self._names = set(named)
        self._needs = {name for name, p in named.items() if p.default is p.empty} - _GIVEN
        if not self._takes_all and not {"prompts", "completions"} <= self._names:
            raise RlhfctlError(
                "the reward function must take prompts and completions by these names",
                where=spec,
                fix="write it as def NAME(prompts, completions, **columns)",
            )

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        """Score each episode; None of the function counts as 0."""
        values = self.optional(episodes)
        self.unscored.report(sum(value is None for value in values), len(values))
        return [0.0 if value is None else value for value in values]

    def optional(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Score each episode; None if the function does not score the row."""
        return self.processes.from_first(lambda: self._scores(episodes))

    def _scores(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Score each episode in this process, by calls of at most `batch_size` completions."""
        if self.batch_size is None:
            return self._checked(episodes)
        size = self.batch_size
        batches = [episodes[start : start + size] for start in range(0, len(episodes), size)]
        return [value for batch in batches for value in self._checked(batch)]

    def _checked(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Call the function once and check what it returns; RewardFailed if it breaks its contract."""
        values = self._called(episodes)
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
            raise self._failed(f"returned {values!r}, not a list", "return a list with one float for each completion")
        values = list(values)
        if len(values) != len(episodes):
            raise self._failed(
                f"returned {len(values)} numbers for {len(episodes)} completions",
                "return a list with one float for each completion",
            )
        for index, value in enumerate(values):
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and (not number or (self.finite and not math.isfinite(value))):
                raise self._failed(f"returned {value!r} for {_shown(episodes[index])}", "return finite floats, or None")
        return [None if value is None else float(value) for value in values]

    def _arguments(self, episodes: Sequence[Episode]) -> dict[str, list[Any]]:
        given: dict[str, list[Any]] = {
            "prompts": [episode.prompt for episode in episodes],
            "completions": [episode.completion for episode in episodes],
            "completion_ids": [list(episode.response_ids) for episode in episodes],
        }
        own = {"prompt", "completion", *_GIVEN}
        have = sorted({key for episode in episodes for key in episode.row})
        for name in have:
            if name not in own:
                given[name] = [episode.row.get(name) for episode in episodes]
        if absent := sorted(self._needs - given.keys()):
            raise RlhfctlError(
                f"the reward function needs {', '.join(absent)}, which the prompts do not have",
                where=self.spec,
                fix=f"their columns are: {', '.join(have) or 'none'}; give the parameter a default, or add the column",
            )
        return {name: values for name, values in given.items() if self._takes_all or name in self._names}

    def _called(self, episodes: Sequence[Episode]) -> Any:
        """Call the function for the episodes; after a failure, call it again up to `retries` times."""
        arguments = self._arguments(episodes)
        for attempt in range(self.retries + 1):
            try:
                return _awaited(self.function(**arguments))
            except Exception as error:  # a user's code or a service may raise anything
                if attempt == self.retries:
                    raise self._raised(error, episodes) from error
                time.sleep(2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _raised(self, error: Exception, episodes: Sequence[Episode]) -> RewardFailed:
        """Make the error: the line in the user's file, and the first row that fails when it is scored alone."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        line = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        tries = f" {self.retries + 1} times" if self.retries else ""
        what = f"failed{tries}{line}: {type(error).__name__}: {_first_line(error)}"
        culprit = next((episode for episode in episodes if self._fails_alone(episode)), None)
        passes = f"each of the {len(episodes)} rows passes alone, the first is {_shown(episodes[0])}"
        row = f"the row is {_shown(culprit)}" if culprit is not None else passes
        return self._failed(f"{what}; {row}", _MEND)

    def _fails_alone(self, episode: Episode) -> bool:
        try:
            _awaited(self.function(**self._arguments([episode])))
        except Exception:  # noqa: BLE001 - a user's code may raise anything
            return True
        return False

    def _failed(self, what: str, fix: str) -> RewardFailed:
        return RewardFailed(f"the reward function {what}", where=self.spec, fix=fix)


def _awaited(value: Any) -> Any:
    """Wait for the result of an `async` function; other values are returned as they are."""
    return asyncio.run(_wait_for(value)) if inspect.isawaitable(value) else value


async def _wait_for(value: Any) -> Any:
    return await value


def _shown(episode: Episode) -> str:
    prompt, completion = (transcript(text)[:_SHOWN] for text in (episode.prompt, episode.completion))
    return f"completion {completion!r} to prompt {prompt!r}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def function_file(spec: str, folder: Path) -> Path | None:
    """Find the file of the function's module in the recipe's folder; None if it is an installed module."""
    module = folder.joinpath(*spec.partition(":")[0].split("."))
    candidates = [module / "__init__.py", module.with_suffix(".py")]  # the order in which Python imports
    return next((path for path in candidates if path.is_file()), None)


def function_fingerprint(spec: str, folder: Path) -> str:
    """Hash the function's module file, so that stages that use an edited function run again."""
    file = function_file(spec, folder)
    return fs.hash_json([spec, fs.hash_file(file) if file is not None else None])


def load_function(spec: str, folder: Path) -> Callable[..., Sequence[float]]:
    """Import the function "module:name" with the recipe's folder first on the path."""
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

# Modules imported from the last recipe's folder -> hash of the file. Python caches modules by name only. Without this
# table, a module of the same name from another recipe, or an old version of an edited file, would be used.
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
    """Tell whether the imported module lies in the recipe's folder."""
    if name.partition(".")[0] == "rlhfctl":  # the recipe lies in a folder above rlhfctl's source
        return False
    file, module_file = function_file(name, folder), getattr(module, "__file__", None)
    if file is None:  # perhaps a package without __init__.py
        return module_file is None and folder.joinpath(*name.split(".")).is_dir()
    return module_file == str(file)


def _file_hash(module_name: str, folder: Path) -> str | None:
    file = function_file(module_name, folder)
    return fs.hash_file(file) if file is not None else None
