"""A tree of one token and an end, two tokens long, with numbers that can be worked out in the head."""

from __future__ import annotations

from rlhfctl.dashboard.trees import Node, Side, Tree


def small_tree(best_policy: bool = False) -> Tree:
    def node(ids: tuple[int, ...], before: float, after: float, score: float | None) -> Node:
        texts = tuple({2: "a", 0: "<end>"}[token] for token in ids)
        value = None if score is not None and len(ids) == 2 else 0.25
        sides = (Side(before, value, 0.5), Side(after, value, 0.75))
        return Node(ids, texts, bool(ids) and ids[-1] == 0, score, *sides)

    nodes = (node((), 1, 1, None), node((0,), 0.5, 0.1, 0.0), node((2,), 0.5, 0.9, None))
    nodes += (node((2, 0), 0.5, 0.8, 1.0), node((2, 2), 0.5, 0.2, -1.0))
    return Tree("ppo", "ab", 2, nodes, best_policy)
