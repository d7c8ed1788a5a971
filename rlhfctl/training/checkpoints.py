"""Mark complete checkpoints, find the newest complete one, and save and restore random states.

transformers resumes silently from a checkpoint that lacks its optimizer or random states, and then trains on with other
numbers. Here a mark file (complete.json) is written last and lists every file with its size. A checkpoint folder is
skipped if the mark is missing, or if a listed file is missing or too short; the next older checkpoint is used instead.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rlhfctl import fs

PER_STAGE = 10  # checkpoints per stage if the recipe sets no checkpoint_steps
MARK = "complete.json"
PREFIX = "checkpoint-"
REQUIRED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
RANDOM_STATES = "rng_state*.pth"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and the step at which it was written."""

    path: Path
    step: int


def interval(steps: int) -> int:
    """Compute the steps between two checkpoints if the recipe sets none: about ten checkpoints per stage."""
    return max(1, math.ceil(steps / PER_STAGE))


def mark_complete(folder: Path) -> None:
    """Flush the checkpoint to disk and write its mark. ValueError if a required state is missing."""
    if missing := _missing_states(folder):
        raise ValueError(f"{folder} cannot be marked complete: it lacks {', '.join(missing)}")
    fs.sync_tree(folder)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    # Leave out an earlier mark, and the partial file of a killed write (.complete.json.partial): both are replaced.
    sizes = {name: size for name, size in sizes.items() if name != MARK and not name.startswith(".")}
    fs.write_json(folder / MARK, {"files": sizes})


def _missing_states(folder: Path) -> list[str]:
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if not list(folder.glob(RANDOM_STATES)):
        missing.append("the random states (rng_state.pth)")
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append("the weights")
    return missing


def fault(folder: Path) -> str | None:
    """Explain why training cannot resume from `folder`; None if it can."""
    try:
        recorded: dict[str, int] = dict(json.loads((folder / MARK).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return "it was not finished"
    except (ValueError, KeyError, TypeError):
        return "its completeness mark cannot be read"
    for name, size in recorded.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
    missing = _missing_states(folder)
    return f"it lacks {', '.join(missing)}" if missing else None


def all_checkpoints(work: Path) -> Iterator[Checkpoint]:
    """Yield all checkpoint folders under `work`, complete or not, highest step first."""
    checkpoints = []
    for path in work.glob(f"{PREFIX}*"):
        number = path.name.removeprefix(PREFIX)
        if path.is_dir() and number.isdigit():
            checkpoints.append(Checkpoint(path, int(number)))
    yield from sorted(checkpoints, key=lambda c: -c.step)


def newest_complete(work: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest complete checkpoint under `work`; also return one sentence per newer one that was skipped."""
    passed_over: list[str] = []
    for checkpoint in all_checkpoints(work):
        reason = fault(checkpoint.path)
        if reason is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.path.name} is passed over: {reason}")
    return None, passed_over


# ---------------------------------------------------------------- random states


def random_states() -> dict[str, Any]:
    """Snapshot every random generator that a reward function or a library may use (the loop itself uses none)."""
    name, keys, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore a snapshot made by `random_states()`."""
    random.setstate(states["python"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        with contextlib.suppress(RuntimeError):  # the number of devices has changed
            torch.cuda.set_rng_state_all(states["cuda"])


def save(state: Any, path: Path) -> None:
    """Write a state of tensors and plain values with torch.save."""
    torch.save(state, path)


def loaded(path: Path) -> Any:
    """Read a file of torch.save onto the CPU; only tensors and plain values are accepted."""
    return torch.load(path, map_location="cpu", weights_only=True)
