"""What libraries print goes into the log, and the terminal stays as it was."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from rlhfctl.training.trl import quiet

LIBRARIES = ("transformers", "datasets", "trl", "accelerate", "peft")


def test_what_libraries_say_goes_into_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "libraries.log"
    mine = logging.NullHandler()
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    loggers[0].addHandler(mine)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()

    def state() -> list[Any]:
        return [
            [(list(logger.handlers), logger.propagate, logger.level) for logger in loggers],
            list(logging.getLogger().handlers),
            (sys.stdout, sys.stderr, warnings.showwarning, list(warnings.filters)),
            transformers.utils.logging.is_progress_bar_enabled(),
            datasets.are_progress_bars_disabled(),
        ]

    before = state()
    try:
        with quiet.quiet_libraries(log):
            print("printed by a library")
            print("complained", file=sys.stderr)
            warnings.warn("an old way", FutureWarning, stacklevel=1)
            for name in LIBRARIES:
                logging.getLogger(f"{name}.deep.module").warning("logged by %s", name)
            assert not transformers.utils.logging.is_progress_bar_enabled()
            assert datasets.are_progress_bars_disabled()
        assert state() == before
        with pytest.raises(ZeroDivisionError), quiet.quiet_libraries(log):
            raise ZeroDivisionError
        assert state() == before
    finally:
        loggers[0].removeHandler(mine)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    text = log.read_text()
    for said in ("printed by a library", "complained", "an old way", *(f"logged by {name}" for name in LIBRARIES)):
        assert text.count(said) >= 1, said
    print("ours")
    assert capsys.readouterr().out == "ours\n"
    assert "ours" not in log.read_text()


def test_a_second_stage_adds_to_the_log(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with quiet.quiet_libraries(tmp_path / "libraries.log"):
            print(word)
    assert (tmp_path / "libraries.log").read_text() == "first\nsecond\n"
