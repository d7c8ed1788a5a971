"""The tree of all responses: its numbers are the trace's, an independent forward's, and those of sampling."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhfctl.dashboard.trees import Node, Tree
from rlhfctl.errors import RlhfctlError
from rlhfctl.tools import tokens, tree
from rlhfctl.tools.tree import grow


@pytest.fixture(scope="module")
def first(traced_run: Path) -> tuple[tokens.Episode, Tree]:
    episode = tokens.find(traced_run, None, 1, 0)
    return episode, grow(episode)


def by_ids(grown: Tree) -> dict[tuple[int, ...], Node]:
    return {node.ids: node for node in grown.nodes}


def test_the_tree_holds_every_response_once(first: tuple[tokens.Episode, Tree]) -> None:
    """Two letters and an end, up to four tokens: 15 states (1 + 2 + 4 + 8), 15 ends after them, 16 that are cut off."""
    grown = first[1]
    assert len(grown.nodes) == len(by_ids(grown)) == 15 + 15 + 16
    whole = [node for node in grown.nodes if node.score is not None]
    assert len(whole) == 31 and sum(node.ended for node in whole) == 15
    for node in whole:
        assert node.score == pytest.approx(node.texts.count("a") / 4 - (0 if node.ended else 0.5))


def test_probabilities_add_up(first: tuple[tokens.Episode, Tree]) -> None:
    nodes = by_ids(first[1])
    for ids in {node.ids[:-1] for node in nodes.values() if node.ids}:
        children = [node for node in nodes.values() if node.ids and node.ids[:-1] == ids]
        assert sum(node.before.probability for node in children) == pytest.approx(1, abs=1e-5)
        assert sum(node.after.probability for node in children) == pytest.approx(1, abs=1e-5)


def test_before_is_the_state_in_which_the_first_update_sampled(traced_run: Path) -> None:
    """Also the critic's, which here began as that of another run: the trace of update 1 has its values."""
    for run in (traced_run, traced_run.parent / "again"):
        episode = tokens.find(run, None, 1, 3)
        nodes, record = by_ids(grow(episode)), episode.record
        for at, logprob in enumerate(record["policy_logprobs"]):
            node = nodes[tuple(record["ids"][: at + 1])]
            assert math.log(node.before.probability) == pytest.approx(logprob, abs=1e-5)
            assert nodes[tuple(record["ids"][:at])].before.value == pytest.approx(record["values"][at], abs=1e-5)
        assert nodes[tuple(record["ids"])].score == pytest.approx(record["score"])
        if len(record["values"]) > len(record["ids"]):
            assert nodes[tuple(record["ids"])].before.value == pytest.approx(record["values"][-1], abs=1e-5)
    assert any(value != 0 for value in record["values"])  # of the second run: the first one's critic began at 0


def test_after_is_the_saved_critic(first: tuple[tokens.Episode, Tree], traced_run: Path) -> None:
    episode, grown = first
    folder = str(traced_run / "ppo" / "critic")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    critic = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    prompt = tokenizer(episode.record["prompt"], add_special_tokens=False)["input_ids"]
    chosen = [node for node in grown.nodes if node.after.value is not None][:12]
    assert len(chosen) == 12
    for node in chosen:
        with torch.no_grad():
            logits = critic(input_ids=torch.tensor([[*prompt, *node.ids]])).logits
        assert node.after.value == pytest.approx(float(logits[0, 0]), abs=1e-5)


def test_the_true_value_is_the_mean_return_of_samples(first: tuple[tokens.Episode, Tree]) -> None:
    """By walking down the tree 4,000 times: score less what KL costs (kl_coef 0.2, k1), with gamma 1."""
    nodes = by_ids(first[1])
    draw = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(4000):
        ids: tuple[int, ...] = ()
        while (node := nodes[ids]).score is None:
            children = [nodes[(*ids, token)] for token in range(4) if (*ids, token) in nodes]
            chances = torch.tensor([child.after.probability for child in children])
            child = children[int(torch.multinomial(chances, 1, generator=draw))]
            total -= 0.2 * (math.log(child.after.probability) - math.log(child.before.probability))
            ids = child.ids
        total += node.score
    assert nodes[()].after.expected == pytest.approx(total / 4000, abs=0.02)
    assert nodes[()].before.expected != pytest.approx(total / 4000, abs=0.02)  # training has changed it


def test_a_state_after_an_end_is_worth_its_score(first: tuple[tokens.Episode, Tree]) -> None:
    node = by_ids(first[1])[(2, 0)]
    assert node.ended and node.score == node.before.expected == node.after.expected == 0.25


def test_a_world_that_is_too_large_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    world = tree._World([], tuple(range(400)), (0,), 12)
    episode = tokens.Episode(tmp_path, "ppo", {}, [], {})
    with pytest.raises(RlhfctlError, match="too many responses: 400 tokens, up to 12 of them"):
        tree._refuse_large(world, episode)
    for tokens_, longest in ((3, 9), (2, 1000)):
        tree._refuse_large(tree._World([], tuple(range(tokens_)), (0,), longest), episode)
    with pytest.raises(RlhfctlError, match="too many responses"):
        tree._refuse_large(tree._World([], (0, 1, 2), (0,), 10**9), episode)


def test_a_stage_that_is_not_complete_has_no_tree(traced_run: Path, tmp_path: Path) -> None:
    episode = replace(tokens.find(traced_run, None, 1, 0), run=tmp_path)
    with pytest.raises(RlhfctlError, match="the stage is not complete"):
        grow(episode)


def test_a_prompt_that_is_gone_is_named(traced_run: Path) -> None:
    found = tokens.find(traced_run, None, 1, 0)
    with pytest.raises(RlhfctlError, match="no longer among the recipe's prompts"):
        grow(replace(found, record=found.record | {"prompt": "zzz"}))
