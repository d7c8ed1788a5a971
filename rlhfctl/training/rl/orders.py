"""Choose prompts and minibatches by random orders that depend only on seed, update and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PROMPT_ORDER, _MINIBATCH_ORDER, _TEXT_ORDER = 1, 2, 3  # different keys than for sampling responses


@dataclass(frozen=True)
class Orders:
    """The random orders of a run. A run resumed from a checkpoint gets the same orders as an uninterrupted one."""

    seed: int

    def prompts(self, number: int, batch_size: int, repeats: int, count: int) -> list[int]:
        """Choose the prompt indices of update `number`; each pass over all `count` prompts has its own order."""
        per_update = batch_size // repeats
        chosen = []
        order, drawn = np.empty(0), -1
        for position in range((number - 1) * per_update, number * per_update):
            epoch, index = divmod(position, count)
            if epoch != drawn:  # an order costs as much as there are prompts: draw each once per update
                order, drawn = self._order(_PROMPT_ORDER, epoch, 0, count), epoch
            chosen += [int(order[index])] * repeats
        return chosen

    def minibatches(self, number: int, epoch: int, batch_size: int) -> list[int]:
        """Draw the order in which PPO epoch `epoch` of update `number` visits the episodes of the batch."""
        order: list[int] = self._order(_MINIBATCH_ORDER, number, epoch, batch_size).tolist()
        return order

    def texts(self, first: int, wanted: int, count: int) -> list[int]:
        """Choose the rows `first` to `first + wanted` of endless passes over `count` rows, each in its own order."""
        chosen: list[int] = []
        order, drawn = np.empty(0), -1
        for position in range(first, first + wanted):
            turn, index = divmod(position, count)
            if turn != drawn:
                order, drawn = self._order(_TEXT_ORDER, turn, 0, count), turn
            chosen.append(int(order[index]))
        return chosen

    def _order(self, kind: int, first: int, second: int, count: int) -> np.ndarray:
        generator = np.random.Philox(key=[self.seed, kind], counter=[0, 0, first, second])
        return np.random.Generator(generator).permutation(count)
