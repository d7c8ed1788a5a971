"""Record a trained model's outputs for a few rows, and check that the reloaded model gives the same outputs.

Writes and reads probes.json: rows of token ids with their log-probabilities or scores. A stage writes it from the model
in memory, before merging and saving. Every later load compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from rlhfctl import fs
from rlhfctl.artifacts import read_json
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import devices, scoring
from rlhfctl.recipe.schema import Model

PROBES = "probes.json"
# Largest gap between a reloaded model and the recorded numbers: natural-log probabilities per token, and scores.
# base* is merged in full precision after training on a quantized one, and quantized again where it is loaded for PPO:
# there the log-probabilities move. Scores are always those of the adapter on base* quantized.
LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.05, "8bit": 0.5, "4bit": 2.0}
SCORE_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.25, "float16": 0.05, "8bit": 0.05, "4bit": 0.05}


def precision(section: Model) -> str:
    """Return what limits the precision of two equal computations: the key of the tolerances."""
    return section.quantization or section.dtype


def write_probes(
    folder: Path, rows: Sequence[Sequence[int]], values: Sequence[Any], kind: str, **more: Sequence[Any]
) -> None:
    """Record `rows` of ids and the model's outputs: kind logprobs (a list per row) or scores (a number per row).

    `more`: other values to record for each row, by name.
    """
    numbers = [number for value in values for number in (value if isinstance(value, list) else [value])]
    require_finite(numbers, folder.name, "log-probabilities" if kind == "logprobs" else kind)
    fs.write_json(folder / PROBES, {"rows": [list(row) for row in rows], kind: list(values), **more})


def require_finite(numbers: Sequence[float], stage: str, kind: str) -> None:
    """Raise RlhfctlError if a trained model's outputs are not finite: such a model is not published."""
    if not all(math.isfinite(number) for number in numbers):
        raise RlhfctlError(
            f"training diverged: the {kind} that the model of the stage {stage} gives are not finite",
            where=f"{stage}.learning_rate" if stage == "ppo" else f"{stage}.trainer.learning_rate",
            fix="lower it; nothing was handed over",
        )


def check_logprobs(model: PreTrainedModel, pad: int, probes: Path, precise: str) -> float:
    """Measure the largest gap between the recorded log-probabilities and the model's; HandoffError above tolerance."""
    kept = read_json(probes)
    with _on_accelerator(model):
        now = scoring.sequence_logprobs(model, kept["rows"], pad)
    devices.release_memory()  # logits and states
    gap = max(
        (abs(a - b) for old, new in zip(kept["logprobs"], now, strict=True) for a, b in zip(old, new, strict=True)),
        default=0.0,
    )
    _within(gap, LOGPROB_TOLERANCE[precise], "log-probabilities", probes)
    return gap


def check_scores(model: PreTrainedModel, pad: int, probes: Path, precise: str) -> float:
    """Measure the largest gap between the recorded scores and the reward model's; HandoffError above tolerance."""
    kept = read_json(probes)
    with _on_accelerator(model):
        now = scoring.score_rows(model, kept["rows"], pad)
    devices.release_memory()  # logits and states
    gap = max((abs(a - b) for a, b in zip(kept["scores"], now, strict=True)), default=0.0)
    _within(gap, SCORE_TOLERANCE[precise] * max(1.0, *(abs(score) for score in kept["scores"])), "scores", probes)
    return gap


@contextmanager
def _on_accelerator(model: PreTrainedModel) -> Iterator[None]:
    """Move `model` to the accelerator, where its outputs were recorded, and back afterwards.

    Every kind of attention works there.
    """
    before = next(model.parameters()).device
    if before.type == devices.device().type:
        yield
        return
    model.to(devices.device())
    try:
        yield
    finally:
        model.to(before)


def _within(gap: float, limit: float, what: str, probes: Path) -> None:
    if not gap <= limit:  # NaN fails too
        raise HandoffError(
            f"the reloaded model does not give the {what} it was saved with: off by {gap:.3g}, allowed {limit:.3g}",
            where=str(probes.parent),
            fix="run that stage again with --force; if it stays, other library versions are installed than then",
        )
