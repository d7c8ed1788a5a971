"""Redirect the output of libraries into the run's log file, and turn their progress bars into events."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import datasets
import transformers

from rlhfctl.events import Work


@contextlib.contextmanager
def quiet_libraries(log: Path) -> Iterator[None]:
    """Send the prints, warnings and logs of libraries to the file `log`, and turn their progress bars off."""
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with log.open("a", encoding="utf-8", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        library_loggers = [
            logging.getLogger(name) for name in ("transformers", "datasets", "trl", "accelerate", "peft")
        ]
        before = [(logger, list(logger.handlers), logger.propagate) for logger in library_loggers]
        root.addHandler(handler)
        for logger in library_loggers:
            logger.handlers = []
            logger.propagate = True
        shown = warnings.showwarning  # the command line may have captured warnings already
        logging.captureWarnings(True)
        bars = transformers.utils.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(stream), _stderr_to(stream):
                warnings.simplefilter("default")
                yield
        finally:
            logging.captureWarnings(False)
            if shown.__module__ == logging.__name__:
                logging.captureWarnings(True)
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            root.removeHandler(handler)
            if bars[0]:
                transformers.utils.logging.enable_progress_bar()
            if not bars[1]:
                datasets.enable_progress_bars()


@contextlib.contextmanager
def forward_library_progress() -> Iterator[None]:
    """Report transformers' loading and writing of weights as progress events, in place of its own progress bars."""
    set_hook = getattr(transformers.utils.logging, "set_tqdm_hook", None)
    if set_hook is None:  # this release of transformers has no hook: loading is silent
        yield
        return
    before = set_hook(_counted)
    try:
        yield
    finally:
        set_hook(before)


def _counted(make: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Replace a progress bar of transformers by progress events if its length is known; otherwise keep the bar."""
    items, what = (arguments[0] if arguments else None), named.get("desc")
    if not isinstance(items, Collection) or not what:
        return make(*arguments, **named)
    return Work(what[0].lower() + what[1:], len(items), "part").through(items)


@contextlib.contextmanager
def _stderr_to(stream: typing.TextIO) -> Iterator[None]:
    before = sys.stderr
    sys.stderr = stream
    try:
        yield
    finally:
        sys.stderr = before
