"""Keep hidden states that frozen layers compute for the sequences of a batch, so that they are computed once.

    ResponseStates   the last states of a frozen reward model at the responses: a value head reads them in every PPO
                     epoch (`critic: reward`). The forward that scores the responses gives them.

States are found again by the token ids of their sequence, so callers may cut and order a batch as they like. Kept
states have the number format that the layers gave them, and stay on their device. Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rlhfctl.models.packing import Sequences

Row = tuple[int, ...]  # the token ids of a whole sequence
_KEEPER = "kept_response_states"  # name of the attribute on a scorer


def rows_of(sequences: Sequences) -> list[tuple[Row, int]]:
    """Return the token ids of each sequence and the index of its first token in `sequences.ids`, in packed order."""
    ids, start, found = sequences.ids.tolist(), 0, []
    for total in sequences.totals:
        found.append((tuple(ids[start : start + total]), start))
        start += total
    return found


class ResponseStates:
    """Keep the states from which each response token and its end are predicted: those that get a value."""

    def __init__(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
        self._first: dict[Row, int] = {}  # index in the row of the first state that is kept
        self._states: dict[Row, Tensor] = {}
        for prompt, response in zip(prompts, responses, strict=True):
            row, first = (*prompt, *response), len(prompt) - 1
            self._first[row] = min(first, self._first.get(row, first))

    def see(self, sequences: Sequences, hidden: Tensor) -> None:
        """Keep the states of those sequences that are wanted. `hidden` (T, H): all states of `sequences`."""
        for row, start in rows_of(sequences):
            if row in self._first and row not in self._states:
                self._states[row] = hidden[start + self._first[row] : start + len(row)].detach().clone()

    def has(self, prompt: Sequence[int], response: Sequence[int]) -> bool:
        """Tell whether the states of this sequence have been seen."""
        return (*prompt, *response) in self._states

    def of(self, prompt: Sequence[int], response: Sequence[int], count: int) -> Tensor:
        """Return the first `count` states (count, H) of a response: before its first token, its second, and so on."""
        row = (*prompt, *response)
        first = len(prompt) - 1 - self._first[row]
        return self._states[row][first : first + count]


@contextmanager
def shown_to(keeper: ResponseStates | None, scorer: Any) -> Iterator[None]:
    """Let `keeper` see all states that `scorer` computes inside the block; without a keeper nothing is kept."""
    if keeper is None:
        yield
        return
    scorer.__dict__[_KEEPER] = keeper
    try:
        yield
    finally:
        del scorer.__dict__[_KEEPER]


def is_watched(scorer: Any) -> bool:
    """Tell whether somebody keeps the states that `scorer` computes."""
    return _KEEPER in vars(scorer)


def show(scorer: Any, sequences: Sequences, hidden: Tensor) -> None:
    """Show the states (T, H) that `scorer` computed to the keeper that `shown_to` named."""
    keeper: ResponseStates = vars(scorer)[_KEEPER]
    keeper.see(sequences, hidden)
