"""Choose prompts and minibatches: random orders that are functions of (seed, update, epoch) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PROMPT_ORDER, _MINIBATCH_ORDER = 1, 2  # separates these draws from those of responses


@dataclass(frozen=True)
class Orders:
    """Every order of a run. A run that goes on from a checkpoint gets the orders that it would have had."""

    seed: int

    def prompts(self, number: int, batch_size: int, repeats: int, count: int) -> list[int]:
        """Which of `count` prompts update `number` answers: one pass after the other, each in an order of its own."""
        each = batch_size // repeats
        chosen = []
        for position in range((number - 1) * each, number * each):
            epoch, index = divmod(position, count)
            chosen += [int(self._order(_PROMPT_ORDER, epoch, 0, count)[index])] * repeats
        return chosen

    def minibatches(self, number: int, epoch: int, batch_size: int) -> list[int]:
        """The order in which PPO epoch `epoch` of update `number` visits the batch."""
        order: list[int] = self._order(_MINIBATCH_ORDER, number, epoch, batch_size).tolist()
        return order

    def _order(self, kind: int, first: int, second: int, count: int) -> np.ndarray:
        generator = np.random.Philox(key=[self.seed, kind], counter=[0, 0, first, second])
        return np.random.Generator(generator).permutation(count)
