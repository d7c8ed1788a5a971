"""Check and measure PPO on one GPU (or, at toy size, on the CPU): the rows of check.sh, their table, JSON and Markdown.

First correctness (gpu_stages.py), then speed and memory beside TRL's trainer (gpu_speed.py), then what needs a package
more. Needs no network. All rows together take at most `--minutes`; a row that would exceed what is left is skipped and
says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_rows import Budget, Done, Row, as_json, as_markdown, made
from gpu_speed import FULL, TOY, Speed
from gpu_stages import Check, extra_rows, rows

MINUTES = 8.0
LIBRARIES = ("torch", "transformers", "peft", "trl")


def all_rows(given: argparse.Namespace, folder: Path, budget: Budget) -> tuple[list[Row], str]:
    """The rows in order, and the work of the speed rows in words. Without a GPU speed is measured at toy size only."""
    check = Check(folder, budget)
    size = TOY if given.toy else FULL
    speed = Speed(folder / "speed", size, budget).rows() if given.toy or check.on_gpu else []
    return [*rows(check), *speed, *extra_rows(check)], size.sentence


def report(given: argparse.Namespace, work: str, done: Sequence[Done]) -> None:
    """Write the files that were asked for."""
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "command": " ".join(["tests/gpu/check.sh", *sys.argv[1:]]),
        "work": work,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(about, done), indent=2) + "\n", encoding="utf-8")
    if given.markdown is not None:
        given.markdown.write_text(as_markdown(about, done), encoding="utf-8")


def main() -> int:
    """Print the table; 1 where a row failed."""
    parser = argparse.ArgumentParser(prog="tests/gpu/check.sh")
    parser.add_argument("--quick", action="store_true", help="leave out speed and what takes longest")
    parser.add_argument("--toy", action="store_true", help="measure speed at toy size: it tests this script, no device")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="all rows together (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write tables for LOG.md here")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rlhfctl-check-"))
    (folder / "speed").mkdir()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}; {', '.join(f'{name} {version(name)}' for name in LIBRARIES)}", flush=True)
    budget = Budget(given.minutes * 60)
    done = []
    try:
        planned, work = all_rows(given, folder, budget)
        for one in made(planned, budget, quick=given.quick):
            done.append(one)
            print(one.line(), flush=True)
    finally:
        shutil.rmtree(folder)
        report(given, work if done else "", done)
    failed = sum(one.outcome.passed is False for one in done)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
