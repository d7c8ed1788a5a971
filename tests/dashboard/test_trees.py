"""The tree of responses: which nodes are shown, in which order, and the likeliest response."""

from __future__ import annotations

from small_trees import small_tree


def test_a_node_stands_before_its_children_and_ends_stand_last() -> None:
    tree = small_tree()
    assert [node.ids for node in tree.shown(2)] == [(), (2,), (2, 2), (2, 0), (0,)]
    assert [node.ids for node in tree.shown(1)] == [(), (2,), (0,)]


def test_the_likeliest_response_follows_the_likeliest_token_after_training() -> None:
    assert small_tree().likeliest() == (2, 0)
