"""The card of a real small run: its numbers recomputed, what it may read, and rewards of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_here
from small_cards import card_context, made_card, pool_rows
from small_stage import small_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhfctl.artifacts import load_artifact
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.load import check_all
from rlhfctl.data.types import PreferenceGroup
from rlhfctl.events import Metrics, StageStarted
from rlhfctl.models import tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages.altered import PROBES
from rlhfctl.stages.card import Pairs
from rlhfctl.stages.context import PublishedByFirst
from rlhfctl.stats.best_of_n import best_of_n, standardized
from rlhfctl.tools.export import export
from rlhfctl.world import gold


@pytest.fixture(scope="module")
def other_reward(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second reward model on the tiny run's base*, trained with another seed: it stands for the held-out one."""
    run = tmp_path_factory.mktemp("other") / "run"
    arguments = ("--policy", tiny_run / "sft", "--run-dir", run, "--set", "seed=1")
    result = run_here("reward", tiny_run.parent / "tiny.yaml", *arguments, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    return run / "reward"


def card_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "card" / "card.json").read_text(encoding="utf-8"))
    return found


def test_numbers_of_the_pairs_agree_with_those_of_the_reward_stage(carded_run: Path) -> None:
    card, reward = card_of(carded_run), load_artifact(carded_run / "reward").manifest.metrics
    assert card["pairs"] == card["prompts"] == 16  # one pair per prompt
    assert card["accuracy"]["value"] == reward["heldout_accuracy"]
    assert card["accuracy"]["ci95"] == pytest.approx([reward["heldout_accuracy_low"], reward["heldout_accuracy_high"]])
    assert card["margins"]["mean"] == pytest.approx(reward["heldout_margin"], abs=1e-5)
    assert len(card["margins"]["values"]) == 16
    assert sum(one["n"] for one in card["calibration"]["bins"]) == 16
    assert card["base_is_policys"] is True and card["gate"] is None
    assert [probe["name"] for probe in card["probes"]] == list(PROBES)
    assert all(probe["n"] == 16 for probe in card["probes"])


def test_curves_follow_from_the_pool_that_is_kept(carded_run: Path) -> None:
    card, rows = card_of(carded_run), pool_rows(carded_run)
    assert len(rows) == 6 * 8 and [row["sample"] for row in rows] == list(range(8)) * 6
    assert [row["prompt"] for row in rows] == [rows[8 * (n // 8)]["prompt"] for n in range(48)]
    scores = np.array([row["scores"]["reward"] for row in rows]).reshape(6, 8)
    curves = card["optimization"]
    expected = best_of_n(scores, standardized(scores), curves["n"], seed=0)
    assert curves["proxy"]["mean"] == pytest.approx(expected.mean)
    assert curves["pool"] == {"prompts": 6, "samples": 8} and curves["n"] == [1, 2, 4, 8]
    given = [row["scores"]["gold"] for row in rows]
    assert given == gold.score([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert len({row["response"] for row in rows}) > 40
    assert curves["heldout"] is curves["peak"] is curves["disagreement"] is None
    assert set(card["agreement"]) == {"gold"}


def test_the_pool_answers_eval_prompts_and_never_test_prompts(carded_run: Path) -> None:
    recipe = load_recipe(carded_run / "recipe.yaml").recipe
    split: Any = check_all(recipe.data, recipe.data_seed, {"prompts"})["prompts"].split
    asked = {row["prompt"] for row in pool_rows(carded_run)}
    assert asked == {row["prompt"] for row in split.eval}
    assert asked.isdisjoint(row["prompt"] for row in split.test)


def test_flags_are_warnings_and_metrics_are_the_main_figures(carded_run: Path) -> None:
    card, manifest = card_of(carded_run), load_artifact(carded_run / "card").manifest
    assert manifest.layout == {"card": "card.json", "pool": "pool.jsonl"}
    assert manifest.section == {"prompts": 6, "samples": 8}
    for flag in card["flags"]:
        assert f"warning: {flag['name']}: {flag['message']}" in manifest.notes
    assert card["flags"] and manifest.metrics["flags"] == len(card["flags"])
    assert manifest.metrics["accuracy"] == card["accuracy"]["value"]
    assert manifest.metrics["proxy_gain"] == card["optimization"]["proxy"]["mean"][-1]
    assert "heldout_gain" not in manifest.metrics and manifest.metrics["gold_gain"] == 0.0


def test_a_heldout_reward_model_scores_what_the_reward_chooses(
    tiny_run: Path, other_reward: Path, tmp_path: Path
) -> None:
    ctx, events = card_context(tiny_run, tmp_path, parents={"heldout": other_reward})
    card = made_card(ctx)
    rows = pool_rows(tmp_path)
    assert len(rows) == 12 and set(rows[0]["scores"]) == {"reward", "heldout", "gold"}
    first, second = (np.array([row["scores"][name] for row in rows]).reshape(3, 4) for name in ("reward", "heldout"))
    curves = card["optimization"]
    expected = best_of_n(first, standardized(second), [1, 2, 4], seed=0)
    assert curves["heldout"]["mean"] == pytest.approx(expected.mean)
    assert curves["peak"]["n"] in (1, 2, 4) and len(curves["disagreement"]) == 3
    assert 0 <= card["agreement"]["heldout"]["pairs_same"] <= 1
    (metrics,) = [event for event in events if isinstance(event, Metrics)]
    assert {"heldout_gain", "peak_kl"} <= set(metrics.values)
    (started,) = [event for event in events if isinstance(event, StageStarted)]
    assert (started.total_steps, started.resumed_from) == (12, None)
    # A model that scores like the proxy itself agrees with it in everything.
    same, _ = card_context(tiny_run, tmp_path / "same", parents={"heldout": tiny_run / "reward"})
    twin = made_card(same)
    assert twin["agreement"]["heldout"] == {"pairs_same": 1.0, "spearman": pytest.approx(1.0)}
    assert twin["optimization"]["disagreement"] == pytest.approx([0, 0, 0], abs=1e-5)
    assert twin["optimization"]["heldout"]["mean"] == pytest.approx(twin["optimization"]["proxy"]["mean"])


def test_a_function_has_a_card_without_calibration(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(
        "def words(prompts, completions, **columns):\n    return [len(text.split()) for text in completions]\n"
    )
    reward = "reward={function: 'scores:words', card: {prompts: 3, samples: 4}}"
    ctx, _ = card_context(tiny_run, tmp_path / "run", reward, f"folder={tmp_path}", parents={"reward": Path()})
    card = made_card(ctx)
    assert card["calibration"] is None and card["base_is_policys"] is None
    assert card["length"]["unit"] == "words" and card["length"]["score_correlation"] == pytest.approx(1)
    assert card["length"]["length_controlled_accuracy"] == 0.5
    by_name = {probe["name"]: probe for probe in card["probes"]}
    assert by_name["doubled"]["share_above"] == 1.0 and by_name["empty"]["share_above"] == 0.0
    assert by_name["flattery"]["delta_mean"] == 8
    assert "length_only" in [flag["name"] for flag in card["flags"]]
    assert "ece" not in load_artifact(tmp_path / "run" / "card").manifest.metrics


def test_a_ready_model_scores_as_the_one_that_was_trained_here(
    carded_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    export(tiny_run, "reward", tmp_path / "own", adapter=False)
    ready = f"reward={{model: {tmp_path / 'own'}, card: {{prompts: 6, samples: 8}}}}"
    parents = {"reward": tmp_path / "own"}
    ctx, _ = card_context(tiny_run, tmp_path / "run", ready, parents=parents)
    card, expected = made_card(ctx), card_of(carded_run)
    assert card["base_is_policys"] is None
    for key in ("accuracy", "probes", "length"):
        assert json.dumps(card[key]) == json.dumps(expected[key]) or card[key] == pytest.approx(expected[key])
    assert card["optimization"]["proxy"]["mean"] == pytest.approx(expected["optimization"]["proxy"]["mean"], abs=1e-5)


def test_a_classifier_reads_text_and_is_of_another_base(tiny_run: Path, tmp_path: Path) -> None:
    tokenizer = tokenizing.load_tokenizer(str(tiny_run / "sft" / "model"))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), num_labels=2, pad_token_id=0, **size)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    ready = f"reward={{model: {tmp_path / 'classifier'}, label: 1, card: {{prompts: 3, samples: 4}}}}"
    ctx, _ = card_context(tiny_run, tmp_path / "run", ready, parents={"reward": tmp_path / "classifier"})
    card = made_card(ctx)
    assert card["base_is_policys"] is False and "other_base" in [flag["name"] for flag in card["flags"]]
    assert card["calibration"] is not None and len({row["scores"]["reward"] for row in pool_rows(tmp_path / "run")}) > 6


def test_the_first_of_several_processes_alone_makes_the_card(tiny_run: Path, tmp_path: Path) -> None:
    ctx, events = card_context(tiny_run, tmp_path)
    with pytest.raises(PublishedByFirst):
        made_card(replace(ctx, process=1))
    assert events == [] and not list((tmp_path / "card").rglob("*.json*"))


def test_without_eval_prompts_the_prompts_of_held_out_pairs_are_answered(tiny_run: Path, tmp_path: Path) -> None:
    ctx, _ = card_context(tiny_run, tmp_path, without=("prompts",))
    made_card(ctx)
    groups = ctx.data["preferences"].split.heldout
    assert {row["prompt"] for row in pool_rows(tmp_path)} == {group.prompt for group in groups[:3]}
    assert (
        "there are no eval prompts (data.prompts.eval): the pool answers the prompts of the held-out pairs" in ctx.notes
    )
    assert set(pool_rows(tmp_path)[0]["scores"]) == {"reward", "gold"}


def test_the_gate_of_the_recipe_is_in_the_card(tiny_run: Path, tmp_path: Path) -> None:
    ctx, _ = card_context(tiny_run, tmp_path, "reward.gate={min_accuracy: 1.0}")
    card = made_card(ctx)
    assert card["gate"]["passed"] is False and "below min_accuracy 1" in card["gate"]["reasons"][0]


def test_ranked_lists_are_encoded_once_and_compared_in_pairs() -> None:
    group = PreferenceGroup("a", ("b", "ab", "ba", "bb"), (0, 1, 2, 2), ((0, 1), (0, 2), (1, 2)))
    pairs = Pairs.of([group, PreferenceGroup("b", ("a", "b"), (0, 1), ((0, 1),))], Encoder(small_tokenizer()))
    assert [episode.completion for episode in pairs.episodes] == ["b", "ab", "ba", "a", "b"]  # "bb" is in no pair
    assert pairs.comparisons == [(0, 1), (0, 2), (1, 2), (3, 4)]
    scored = pairs.scored([5.0, 3.0, 4.0, 1.0, 1.0])
    assert scored.margins.tolist() == [2.0, 1.0, -1.0, 0.0] and scored.prompts == ["a", "a", "a", "b"]
    assert scored.lengths["tokens"][0].tolist() == [2.0, 2.0, 3.0, 2.0]  # with the end token
    assert scored.lengths["characters"][1].tolist() == [2.0, 2.0, 2.0, 1.0]
