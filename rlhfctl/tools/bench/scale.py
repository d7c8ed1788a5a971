"""Measure how time and memory grow with each size of a run: `rlhfctl bench scale`.

    model, batch, length    one PPO update of our engine (workers.py), at some sizes of one kind, the others fixed
    rows                    reading, checking and encoding that many prompts, and a fifth as many pairs (rows_worker.py)

Each point is measured in a process of its own. The exponent of growth is fitted to the processor's seconds, which other
work on the machine disturbs less than the clock does, and to the memory beside what the process holds before the work.
What must be: an update costs what its arithmetic costs (costs.py), at least in proportion; rows cost time in
proportion, and next to no memory, since they are streamed. Writes no run.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rlhfctl
from rlhfctl.recipe.schema import Init, Lora, Model, Ppo
from rlhfctl.tools.bench import growth
from rlhfctl.tools.bench.growth import Growth
from rlhfctl.tools.bench.inputs import prepare
from rlhfctl.tools.bench.process import run_module
from rlhfctl.tools.bench.rows_worker import plant_rows
from rlhfctl.tools.bench.workload import MB, RLHFCTL, Workload, comparable
from rlhfctl.training.trl.quiet import quiet_libraries

ROWS = (1_000, 10_000, 100_000)
MOST_BYTES = 512
"""Bytes of memory that one more row may cost: an index, ids of a short prompt, places; not its text as objects."""
_STREAMED = 25_000  # rows from which on all of them lie in files, so that only there a row's cost is judged
_LAYERS, _BATCH, _LENGTH = 2, 8, 16  # the smallest model, batch and response
_WIDTH, _HEADS, _VOCABULARY, _CONTEXT = 192, 4, 512, 512


@dataclass(frozen=True)
class Point:
    """One measurement: a size, the seconds of its parts by the clock and of the processor, memory in MB.

    `needed`: floating-point operations of the arithmetic; 0 where they are not counted.
    """

    size: float
    shown: str
    seconds: dict[str, float]
    processor: dict[str, float]
    memory_mb: float
    needed: float = 0.0


@dataclass(frozen=True)
class Measured:
    """The points of one axis, and how their costs grow: by part of the time, and `memory`.

    `per_row`: bytes of memory that one more row costs; None where memory is judged by its exponent.
    """

    axis: str
    unit: str
    points: tuple[Point, ...]
    growths: dict[str, Growth]
    per_row: float | None = None

    @property
    def flags(self) -> list[str]:
        """Sentences about what grows faster than it must."""
        said = [
            f"{self.axis}: {cost} grows like {self.unit}^{one.exponent:.2f} (^{one.last:.2f} at the end), and "
            f"must grow like ^{one.must:.2f}"
            for cost, one in self.growths.items()
            if one.too_fast
        ]
        if self.per_row is not None and self.per_row > MOST_BYTES:
            said.append(f"{self.axis}: one more row costs {self.per_row:.0f} bytes of memory, though rows are streamed")
        return said


def judged(axis: str, unit: str, points: Sequence[Point]) -> Measured:
    """Fit the growth of each cost of one axis."""
    sizes = [point.size for point in points]
    must = max(1.0, growth.exponent(sizes, [point.needed for point in points])) if points[0].needed else 1.0
    growths = {
        name: growth.grown(sizes, [point.processor[name] for point in points], must) for name in points[0].processor
    }
    memory = [point.memory_mb for point in points]
    if unit != "rows":
        return Measured(axis, unit, tuple(points), growths | {"memory": growth.grown(sizes, memory)})
    streamed = [index for index, size in enumerate(sizes) if size >= _STREAMED]
    per_row = growth.per_unit(sizes, memory) * MB if len(streamed) > 1 else None
    return Measured(axis, unit, tuple(points), growths, per_row)


def measured(
    axes: Sequence[str],
    *,
    points: int = 3,
    rows: Sequence[int] = ROWS,
    threads: int = 1,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Measure the named axes of AXES, and return the report.

    `points`: sizes of the axes model, batch and length, each twice the one before. `rows`: numbers of prompts.
    """
    found = [AXES[name](points, sorted(rows), threads, say) for name in axes]
    return {
        "axes": {one.axis: asdict(one) for one in found},
        "flags": [flag for one in found for flag in one.flags],
        "machine": {"cpus": os.cpu_count(), "threads": threads, "platform": platform.platform()},
        "versions": {"rlhfctl": rlhfctl.__version__} | {name: version(name) for name in ("torch", "transformers")},
    }


# ---------------------------------------------------------------- one update of the engine


def _update(layers: int, batch: int, length: int, threads: int, size: str) -> Point:
    """Measure one update; `size` names the argument that is the point's size."""
    init = Init(
        hidden_size=_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        vocab_size=_VOCABULARY,
        max_position_embeddings=_CONTEXT,
    )
    ppo = Ppo(
        lora=Lora(r=8),
        per_device_train_batch_size=batch,
        local_rollout_forward_batch_size=batch,
        num_mini_batches=1,
        num_ppo_epochs=2,
        response_length=length,
        temperature=1.0,
    )
    work = Workload("scale", Model(init=init), ppo, 1)
    with tempfile.TemporaryDirectory(prefix="rlhfctl-scale-") as temporary:
        folder = Path(temporary)
        with quiet_libraries(folder / "libraries.log"):
            prepare(work, comparable(ppo, work.updates, None), folder)
        weights = (folder / "base" / "model.safetensors").stat().st_size / MB
        result = run_module(
            "rlhfctl.tools.bench.workers",
            [RLHFCTL, str(folder)],
            folder / "out.json",
            where=f"bench scale: {size}",
            fix="lower --points",
            threads=threads,
        )
    updates = result["updates"]
    sizes = {"layers": weights, "batch": float(batch), "length": float(length)}
    shown = {"layers": f"{weights:.1f} MB of weights", "batch": f"{batch} episodes", "length": f"{length} tokens"}
    return Point(
        sizes[size],
        shown[size],
        {"update": statistics.median(one["seconds"] for one in updates)},
        {"update": statistics.median(one["processor_s"] for one in updates)},
        result["peak_rss_mb"] - result["baseline_rss_mb"],
        statistics.median(one["flops"] for one in updates),
    )


def _model(points: int, rows: Sequence[int], threads: int, say: Callable[[str], None]) -> Measured:
    found = []
    for number in range(points):
        layers = _LAYERS * 2**number
        say(f"model: {layers} layers")
        found.append(_update(layers, _BATCH, 2 * _LENGTH, threads, "layers"))
    return judged("model", "weights", found)


def _batch(points: int, rows: Sequence[int], threads: int, say: Callable[[str], None]) -> Measured:
    found = []
    for number in range(points):
        say(f"batch: {_BATCH * 2**number} episodes")
        found.append(_update(_LAYERS, _BATCH * 2**number, 2 * _LENGTH, threads, "batch"))
    return judged("batch", "episodes", found)


def _length(points: int, rows: Sequence[int], threads: int, say: Callable[[str], None]) -> Measured:
    found = []
    for number in range(points):
        say(f"length: responses of at most {_LENGTH * 2**number} tokens")
        found.append(_update(_LAYERS, _BATCH, _LENGTH * 2**number, threads, "length"))
    return judged("length", "tokens", found)


# ---------------------------------------------------------------- rows


def _rows(points: int, rows: Sequence[int], threads: int, say: Callable[[str], None]) -> Measured:
    found = []
    for count in rows:
        say(f"rows: {count:,} prompts")
        with tempfile.TemporaryDirectory(prefix="rlhfctl-scale-") as temporary:
            plant_rows(Path(temporary), count)
            result = run_module(
                "rlhfctl.tools.bench.rows_worker",
                [temporary],
                Path(temporary) / "out.json",
                where="bench scale: rows",
                fix="lower --rows",
                threads=threads,
            )
        phases = result["phases"]
        seconds, processor = ({name: one[key] for name, one in phases.items()} for key in ("seconds", "processor_s"))
        memory = result["peak_rss_mb"] - result["baseline_rss_mb"]
        found.append(Point(float(count), f"{count:,} prompts", seconds, processor, memory))
    return judged("rows", "rows", found)


AXES: dict[str, Callable[[int, Sequence[int], int, Callable[[str], None]], Measured]] = {
    "model": _model,
    "batch": _batch,
    "length": _length,
    "rows": _rows,
}
"""What can be measured -> the function that does; a further axis is one more entry."""
