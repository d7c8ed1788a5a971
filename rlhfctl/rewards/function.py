"""Score responses with a Python function of the user, in the signature of TRL's GRPO reward functions.

`f(prompts, completions, **columns) -> list[float | None]`. Prompts and completions are strings, or lists of messages if
the prompts are conversations. `completion_ids` (the token ids of each response) and every other column of the prompt
file are passed as lists under their own names, if the function takes them. None means that the function does not score
this row. The function may be `async`. `log_metric(name, value)` and `log_extra(column, values)` note numbers and texts
beside the scores, as in TRL's GRPOTrainer. The recipe names it as "module:name"; it is imported from the recipe's
folder.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RewardFailed, RlhfctlError
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.sections.scorers import is_address
from rlhfctl.rewards.checked import MEND, Checked, Say, columns_of, shown
from rlhfctl.rewards.episode import Episode

_GIVEN = {"prompts", "completions", "completion_ids", "log_metric", "log_extra"}
_TRAINER = ("trainer_state", "environments")  # what TRL gives beside these; there is no trainer of TRL's here


class FunctionReward(Checked):
    """Call the function and check its contract: one number or None per completion, finite if `finite`.

    RewardFailed if it raises (after `retries` more calls) or returns something else. `logged` and `extras`: what the
    function said in the last scoring, by `log_metric(name, value)` and `log_extra(column, values)`. With several
    `processes` the first one calls it, with all episodes: the function sees what it sees in one process, and each row
    is scored once.
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
        super().__init__(spec, finite=finite, batch_size=batch_size, say=say, processes=processes)
        self.retries = retries
        self.function = load_function(spec, folder)
        self.waits = inspect.iscoroutinefunction(self.function)
        self.logged: dict[str, list[float]] = {}
        self.extras: dict[str, list[Any]] = {}
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

    def here(self, episodes: Sequence[Episode]) -> list[float | None]:
        self.logged, self.extras = {}, {}
        return super().here(episodes)

    def said(self) -> Any:
        return self.logged, self.extras

    def hear(self, said: Any) -> None:
        self.logged, self.extras = said

    def _arguments(self, episodes: Sequence[Episode], notes: _Notes) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompts": [episode.prompt for episode in episodes],
            "completions": [episode.completion for episode in episodes],
            "completion_ids": [list(episode.response_ids) for episode in episodes],
            "log_metric": notes.log_metric,
            "log_extra": notes.log_extra,
        }
        columns = columns_of(episodes, {"prompt", "completion", *_GIVEN})
        given |= columns
        if absent := sorted(self._needs - given.keys()):
            have = sorted({key for episode in episodes for key in episode.row})
            trainer = [name for name in absent if name in _TRAINER]
            raise RlhfctlError(
                f"the reward function needs {', '.join(absent)}, which the prompts do not have",
                where=self.spec,
                fix=f"their columns are: {', '.join(have) or 'none'}; give the parameter a default, or add the column"
                + (f" ({trainer[0]} is of TRL's GRPOTrainer alone)" if trainer else ""),
            )
        return {name: values for name, values in given.items() if self._takes_all or name in self._names}

    def _called(self, episodes: Sequence[Episode]) -> Any:
        """Call the function for the episodes; after a failure, call it again up to `retries` times."""
        for attempt in range(self.retries + 1):
            notes = _Notes()
            arguments = self._arguments(episodes, notes)
            try:
                values = _awaited(self.function(**arguments))
                values = list(values) if inspect.isgenerator(values) else values  # it logs while it is read
            except Exception as error:  # a user's code or a service may raise anything
                if attempt == self.retries:
                    raise self._raised(error, episodes) from error
                time.sleep(2**attempt)
            else:
                self._keep(notes, len(episodes))
                return values
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _keep(self, notes: _Notes, count: int) -> None:
        """Keep what the function logged in a call with `count` episodes; RewardFailed if it cannot be read."""
        for name, value in notes.metrics:
            if not isinstance(value, Real) or isinstance(value, bool):
                raise self._failed(f"logs {value!r} as the metric {name!r}", "log_metric takes a name and a number")
            self.logged.setdefault(name, []).append(float(value))
        for column, values in notes.extras.items():
            if len(values) != count:
                raise self._failed(
                    f"logs {len(values)} values of {column!r} for {count} completions",
                    "log_extra takes a name and a list with one value for each completion",
                )
            self.extras.setdefault(column, []).extend(values)

    def _raised(self, error: Exception, episodes: Sequence[Episode]) -> RewardFailed:
        """Make the error: the line in the user's file, and the first row that fails when it is scored alone."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        line = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        tries = f" {self.retries + 1} times" if self.retries else ""
        what = f"failed{tries}{line}: {type(error).__name__}: {_first_line(error)}"
        culprit = next((episode for episode in episodes if self._fails_alone(episode)), None)
        passes = f"each of the {len(episodes)} rows passes alone, the first is {shown(episodes[0])}"
        row = f"the row is {shown(culprit)}" if culprit is not None else passes
        return self._failed(f"{what}; {row}", MEND)

    def _fails_alone(self, episode: Episode) -> bool:
        try:
            _awaited(self.function(**self._arguments([episode], _Notes())))
        except Exception:  # noqa: BLE001 - a user's code may raise anything
            return True
        return False


class _Notes:
    """What a function logs during one call, in the way of TRL's GRPOTrainer."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, Any]] = []
        self.extras: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Note a number about the whole batch; the metric is the mean of all that were noted in an update."""
        self.metrics.append((str(name), value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Note one value per completion, for traces."""
        self.extras.setdefault(str(column), []).extend(_shown_as(value) for value in values)


def _shown_as(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


# ---------------------------------------------------------------- async functions

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the one event loop of all async functions, in a thread of its own: what they keep open stays usable."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="reward-functions", daemon=True).start()
        return _loop


def _awaited(value: Any) -> Any:
    """Wait for the result of an `async` function; other values are returned as they are."""
    if not inspect.isawaitable(value):
        return value
    return asyncio.run_coroutine_threadsafe(_wait_for(value), _running_loop()).result()


async def _wait_for(value: Any) -> Any:
    return await value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def function_file(spec: str, folder: Path) -> Path | None:
    """Find the file of the function's module in the recipe's folder; None if it is an installed module."""
    module = folder.joinpath(*spec.partition(":")[0].split("."))
    candidates = [module / "__init__.py", module.with_suffix(".py")]  # the order in which Python imports
    return next((path for path in candidates if path.is_file()), None)


def function_fingerprint(spec: str, folder: Path) -> str:
    """Hash the function's module file, so that stages that use an edited one run again; of a server its address."""
    if is_address(spec):
        return fs.hash_json([spec])
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
