"""The tree on a terminal: its guides in both sets of signs, its numbers, and what is left out."""

from __future__ import annotations

import io

from rich.console import Console
from small_trees import small_tree

from rlhfctl.dashboard.terminal.draw import ASCII, UNICODE, Signs
from rlhfctl.dashboard.terminal.tree import tree_view


def drawn(depth: int, signs: Signs, *, best_policy: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(tree_view(small_tree(best_policy), depth, signs))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_the_tree_has_guides_and_numbers() -> None:
    lines = drawn(2, UNICODE)
    assert lines[0] == "ppo: every response to the prompt ab"
    assert [line.split()[0:2] for line in lines[3:8]] == [
        ["(nothing", "yet)"], ["├─", "a"], ["│", "├─"], ["│", "└─"], ["└─", "(end)"],
    ]  # fmt: skip
    assert lines[6].split() == ["│", "└─", "(end)", "0.500", "0.800", "0.500", "0.750", "1.00"]
    assert lines[4].split() == ["├─", "a", "0.500", "0.900", "0.250", "0.250", "0.500", "0.750"]


def test_ascii_alone_and_what_is_not_shown() -> None:
    text = "\n".join(drawn(1, ASCII, best_policy=True))
    assert text.isascii() and "|- a" in text and "`- (end)" in text
    said = " ".join(text.split())
    assert "3 of 5 nodes are shown; --depth 2 shows all" in said and "that of the best evaluation" in said
    assert "nodes are shown" not in "\n".join(drawn(2, ASCII))
