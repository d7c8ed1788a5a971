"""Draw the tree of all responses to one prompt: a table whose first column is the tree. Prints nothing itself."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rlhfctl.dashboard.terminal.draw import Signs, shown
from rlhfctl.dashboard.text import fixed, visible
from rlhfctl.dashboard.trees import Node, Tree

_LIKELIEST = "bold cyan"


def tree_view(tree: Tree, depth: int, signs: Signs) -> Group:
    """Build the table of the tree down to `depth` tokens, and what its columns mean."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("response", no_wrap=True)
    for name in ("p before", "after", "V before", "after", "true before", "after", "score"):
        made.add_column(name, justify="right", no_wrap=True)
    likeliest = tree.likeliest()
    nodes = list(tree.shown(depth))
    for index, node in enumerate(nodes):
        style = _LIKELIEST if node.ids == likeliest[: len(node.ids)] else ""
        label = Text(_guides(nodes, index, signs), "dim").append(_name(node, signs), style)
        made.add_row(label, *_cells(node))
    return Group(
        Text(f"{tree.stage}: every response to the prompt {visible(tree.prompt)}", "bold"),
        Text(),
        made,
        Text(),
        Text(_legend(tree, depth, len(nodes)), "dim"),
    )


def _legend(tree: Tree, depth: int, count: int) -> str:
    words = (
        "p: the policy's probability of the token, given those before it. V: the critic's value of the state. "
        "true: the expected return under that policy, summed over the whole tree. before: as PPO began. "
        "after: the saved models."
    )
    if tree.best_policy:
        words += " The policy is that of the best evaluation, the critic that of the last update."
    if depth < tree.longest:
        words += f" {count} of {len(tree.nodes)} nodes are shown; --depth {tree.longest} shows all."
    return words


def _name(node: Node, signs: Signs) -> str:
    if not node.ids:
        return "(nothing yet)"
    return "(end)" if node.ended else shown(node.texts[-1], signs)


def _cells(node: Node) -> list[str]:
    sides = (node.before, node.after)
    chances = ["" if not node.ids else fixed(side.probability, 3) for side in sides]
    values = ["" if side.value is None else fixed(side.value, 3) for side in sides]
    expected = ["" if side.expected is None else fixed(side.expected, 3) for side in sides]
    return [*chances, *values, *expected, "" if node.score is None else fixed(node.score, 2)]


def _guides(nodes: list[Node], index: int, signs: Signs) -> str:
    """Draw the lines of the tree before a node: whether further children follow at each level above it."""
    node = nodes[index]
    lines = ""
    for level in range(1, len(node.ids) + 1):
        more = _has_later_sibling(nodes, index, level)
        if level < len(node.ids):
            lines += ("|  " if signs.ascii else "│  ") if more else "   "
        else:
            lines += ("|- " if signs.ascii else "├─ ") if more else ("`- " if signs.ascii else "└─ ")
    return lines


def _has_later_sibling(nodes: list[Node], index: int, level: int) -> bool:
    """Tell whether a later node shares the first `level - 1` tokens of the node and differs in the next one."""
    ids = nodes[index].ids[:level]
    for later in nodes[index + 1 :]:
        if len(later.ids) < level or later.ids[: level - 1] != ids[:-1]:
            return False
        if later.ids[:level] != ids:
            return True
    return False
