"""Compute log-probabilities and reward scores of rows of token ids, one batch at a time.

Reads and writes no files. Leaves out classifiers, which read text (classifiers.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rlhfctl.events import Work
from rlhfctl.models import kept_states
from rlhfctl.models.architecture import backbone
from rlhfctl.models.packing import Sequences, hidden_states
from rlhfctl.models.tensors import LOGITS_AT_ONCE, at_least_float32, pad_right


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode and disable gradients inside the block; restore the mode of every submodule afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---------------------------------------------------------------- numbers that verify a reloaded model

PROBE_ROWS, PROBE_TOKENS = 8, 128  # rows, and tokens per row, kept with their log-probabilities


def sequence_logprobs(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int, *, batch_size: int = 16
) -> list[list[float]]:
    """Compute the log-probability of each token given the tokens before it; the first token of a row has none.

    Natural logarithms. A batch has fewer than `batch_size` rows if their logits would need too much memory.
    """
    device = next(model.parameters()).device
    batch_size = rows_at_once(model, batch_size, max((len(row) for row in rows), default=1))
    result: list[list[float]] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids, mask = pad_right(batch, pad_token_id, device)
            all_logprobs = torch.log_softmax(at_least_float32(model(input_ids=ids, attention_mask=mask).logits), -1)
            logprobs = all_logprobs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
            result += [logprobs[index, : len(row) - 1].tolist() for index, row in enumerate(batch)]
            del all_logprobs  # free it before the next batch, which needs as much
    return result


def rows_at_once(model: Any, most: int, length: int) -> int:
    """Return how many rows of `length` tokens have logits of 64 MB or less in float32: at least 1, at most `most`."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return max(1, min(most, LOGITS_AT_ONCE // (length * vocabulary)))


def score_rows(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int, *, batch_size: int = 64, what: str = "scoring"
) -> list[float]:
    """Compute the scalar head's score at the last token of each row. `what`: name of the work in progress events."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # similar lengths together: less padding
    result = [0.0] * len(rows)
    with evaluating(model), Work(what, len(rows), "response") as work:
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            scores = at_least_float32(head_outputs(model, [rows[index] for index in chosen]).squeeze(-1))
            for index, score in zip(chosen, scores.tolist(), strict=True):
                result[index] = score
            work.advance(start + len(chosen))
    return result


def head_outputs(model: nn.Module, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Compute the outputs (B, outputs) of a linear head at the last token of each row of ids, in one forward."""
    return outputs_at_end(model, Sequences.of(rows, [[] for _ in rows], next(model.parameters()).device))


def outputs_at_end(model: nn.Module, sequences: Sequences) -> torch.Tensor:
    """Compute the outputs (B, outputs) of a linear head at the last token of each sequence, in one forward."""
    if kept_states.is_watched(model):
        hidden = hidden_states(backbone(model), sequences)
        kept_states.show(model, sequences, hidden)
        last = hidden[sequences.last()]
    else:
        last = hidden_states(backbone(model), sequences, sequences.last())
    outputs: torch.Tensor = model.score(last.to(model.score.weight.dtype))
    return outputs
