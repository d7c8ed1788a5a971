"""Measure the loss on held-out demonstrations (`data.demonstrations.heldout`) while sft trains.

A part of the sft stage. The loss is the mean of -log p over all learned tokens of all held-out rows, in nats per token,
without dropout. So it depends neither on the batch size nor on the number of processes, which divide the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhfctl.data.encoding import IGNORED
from rlhfctl.errors import DataError
from rlhfctl.events import Metrics
from rlhfctl.models import scoring
from rlhfctl.models.processes import Processes
from rlhfctl.stages.context import Context


class HeldoutLoss:
    """The loss on held-out rows of ids and labels; called with the weights after each epoch, it reports `eval_loss`.

    Rows without a label to learn are left out, with a warning; DataError if no row has one.
    """

    every: int | None = None

    def __init__(self, rows: Sequence[dict[str, list[int]]], ctx: Context, pad_token_id: int) -> None:
        learned = [[place for place, label in enumerate(row["labels"]) if place and label != IGNORED] for row in rows]
        kept = [index for index, places in enumerate(learned) if places]
        self.rows = [rows[index]["input_ids"] for index in kept]
        self.learned = [learned[index] for index in kept]
        self.ctx = ctx
        self.pad = pad_token_id
        if not kept:
            raise DataError(
                "no held-out demonstration has a token whose loss could be measured",
                where="data.demonstrations.heldout",
                fix="raise it or sft.trainer.max_length, or remove it",
            )
        if lost := len(rows) - len(kept):
            ctx.warn(f"{lost} of {len(rows)} held-out demonstrations have no token to learn and are not measured")

    @property
    def tokens(self) -> int:
        """The number of learned tokens."""
        return sum(map(len, self.learned))

    def per_row(self, model: Any, processes: Processes | None = None) -> list[float]:
        """Compute the sum of -log p over each row's learned tokens, in nats.

        `processes` divide the rows, and all get all numbers (None: those that run the stage).
        """

        def own(indices: list[int]) -> list[float]:
            logprobs = scoring.sequence_logprobs(model, [self.rows[index] for index in indices], self.pad)
            return [
                -sum(row[place - 1] for place in self.learned[index])
                for index, row in zip(indices, logprobs, strict=True)
            ]

        return (processes or Processes.here()).over(range(len(self.rows)), own)

    def of(self, model: Any, processes: Processes | None = None) -> float:
        """Compute the loss of `model`, in nats per token."""
        return sum(self.per_row(model, processes)) / self.tokens

    def as_scores(self, model: Any) -> list[float]:
        """Return a number per row whose mean is minus the loss: a longer row counts for more, as in the loss."""
        weight = len(self.rows) / self.tokens
        return [-nats * weight for nats in self.per_row(model)]

    def __call__(self, model: Any, step: int, total: int, /) -> None:
        values = {"eval_loss": self.of(model)}
        self.ctx.emit(Metrics(stage=self.ctx.name, step=step, total=total, values=values, split="eval"))
