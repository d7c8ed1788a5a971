"""Hold the tree of all responses to one prompt, and choose the part of it that is shown. Pure data, no model.

tools/tree.py computes the numbers, terminal/tree.py draws them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """The numbers of a state before or after training.

    `probability` of its last token, given those before; `value`: the critic's; `expected`: the true value under the
    policy. None where there is none: no critic, a response that was cut off, whitened rewards.
    """

    probability: float
    value: float | None
    expected: float | None


@dataclass(frozen=True)
class Node:
    """A beginning of a response, or a whole one (`score` is not None), with its numbers before and after training."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]  # each token as text
    ended: bool
    score: float | None
    before: Side
    after: Side


@dataclass(frozen=True)
class Tree:
    """All beginnings of responses to one prompt, in the order of their token ids.

    `best_policy`: the policy after training is that of the best evaluation, not of the last update.
    """

    stage: str
    prompt: str
    longest: int
    nodes: tuple[Node, ...]
    best_policy: bool

    def shown(self, depth: int) -> Iterator[Node]:
        """Yield the nodes of at most `depth` tokens, each before its children, and ends after what goes on."""
        children: dict[tuple[int, ...], list[Node]] = {}
        for node in self.nodes:
            if node.ids and len(node.ids) <= depth:
                children.setdefault(node.ids[:-1], []).append(node)

        def below(ids: tuple[int, ...]) -> Iterator[Node]:
            for child in sorted(children.get(ids, ()), key=lambda node: (node.ended, node.ids)):
                yield child
                yield from below(child.ids)

        yield next(node for node in self.nodes if not node.ids)
        yield from below(())

    def likeliest(self) -> tuple[int, ...]:
        """Return the response that follows the likeliest token after training at each state (greedy)."""
        ids: tuple[int, ...] = ()
        while True:
            following = [node for node in self.nodes if node.ids[:-1] == ids and node.ids]
            if not following:
                return ids
            ids = max(following, key=lambda node: node.after.probability).ids
