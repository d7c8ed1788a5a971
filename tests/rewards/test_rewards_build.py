"""Scorers are built from the names in a recipe by one table, which rewards and judges share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rlhfctl.errors import HandoffError
from rlhfctl.graph import STAGES
from rlhfctl.models import build, heads, scoring, tokenizing
from rlhfctl.recipe.schema import Compare, Init, Model, Ppo, Recipe, Reward
from rlhfctl.recipe.sections.scorers import FUNCTION, SCORERS, kind_of
from rlhfctl.recipe.sections.server import Server
from rlhfctl.rewards.build import BUILDERS, LoadedRewardModel, Resources, build_reward, build_scorer
from rlhfctl.rewards.episode import Episode, parts_of
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.model import ModelReward, TextModelReward
from rlhfctl.rewards.server import ServerReward

EPISODES = [Episode([4, 5], [6], "a b", "c", {}), Episode([4], [7, 8], "a", "d e", {})]
SCORES = """
sizes = []

def length(prompts, completions):
    sizes.append(len(completions))
    return [len(text) for text in completions]

def one(prompts, completions):
    return [1] * len(completions)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scores.py").write_text(SCORES)
    return tmp_path


def reward_model() -> LoadedRewardModel:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=list(" abcdefghijkl"))
    tokenizer = tokenizing.train_tokenizer(init, [])
    base = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    return LoadedRewardModel(heads.scorer_on(base, seed=1), tokenizer.pad_token_id, tokenizer)


def recipe(**sections: object) -> Recipe:
    given = {"name": "t", "model": Model(path="m"), **sections}
    return Recipe.model_construct(**given)


# ---------------------------------------------------------------- names


def functions_of(stage: str, whole: Recipe) -> list[str]:
    return STAGES[stage].functions(whole)


def test_every_name_that_a_recipe_accepts_has_a_builder() -> None:
    single = [name for name, scorer in SCORERS.items() if scorer.scores == "responses"]
    assert {kind_of(name) for name in (*single, "a.b:c", "http://a/b", "org/model@GOOD")} == set(BUILDERS)
    assert kind_of("a.b:c") == FUNCTION


def test_a_stage_depends_on_the_sections_function_and_on_those_that_it_names() -> None:
    mine = Reward(function="mine:score")
    whole = recipe(
        reward=mine,
        ppo=Ppo(rewards={"reward": 1.0, "other:length": 0.5}),
        compare=Compare(judges=["gold", "reward_function", "mine:score", "third:f"]),
    )
    assert functions_of("ppo", whole) == ["mine:score", "other:length"]
    assert functions_of("compare", whole) == ["mine:score", "mine:score", "third:f"]
    assert [functions_of(stage, whole) for stage in ("base", "sft", "reward")] == [[], [], []]
    model = recipe(reward=Reward(model="m"), ppo=Ppo(), compare=Compare(judges=["reward_model"]))
    assert functions_of("ppo", model) == functions_of("compare", model) == []


# ---------------------------------------------------------------- what is built


def test_a_reward_model_reads_the_policys_ids_or_text_in_its_own_tokens(tmp_path: Path) -> None:
    loaded = reward_model()
    own = build_scorer("reward_model", Resources(tmp_path, reward_model=lambda: loaded))
    by_ids = build_scorer(
        "reward_model", Resources(tmp_path, reward_model=lambda: LoadedRewardModel(loaded.model, loaded.pad_token_id))
    )
    assert isinstance(own, TextModelReward) and isinstance(by_ids, ModelReward)
    assert isinstance(loaded.model, torch.nn.Module)
    expected = scoring.score_rows(loaded.model, [[4, 5, 6], [4, 7, 8]], loaded.pad_token_id or 0)
    assert by_ids(EPISODES) == pytest.approx(expected)
    assert own(EPISODES) != pytest.approx(expected)
    assert not any(weights.requires_grad for weights in loaded.model.parameters())


def test_the_reward_section_is_its_model_where_there_is_one_else_its_function(folder: Path) -> None:
    function = Resources(folder, function="scores:length")
    assert build_reward(None, function)(EPISODES) == [1.0, 3.0]
    assert isinstance(build_scorer("reward_function", function), FunctionReward)
    given = Resources(folder, function="scores:length", reward_model=reward_model)  # ppo --reward-model
    assert isinstance(build_reward(None, given), TextModelReward)


def test_a_weighted_sum_is_of_whatever_the_table_builds(folder: Path) -> None:
    def golden(episodes: Sequence[Episode], /) -> list[float]:
        return [10.0] * len(episodes)

    resources = Resources(folder, function="scores:length", gold=golden)
    summed = build_reward({"reward": 1.0, "scores:one": 0.5, "gold": -1.0}, resources)
    assert summed(EPISODES) == [1 + 0.5 - 10, 3 + 0.5 - 10]
    assert parts_of(summed) == {"reward": [1.0, 3.0], "scores:one": [1.0, 1.0], "gold": [10.0, 10.0]}


def test_a_function_is_given_no_more_than_its_batch_size(folder: Path) -> None:
    for size, calls in ((None, [5]), (2, [2, 2, 1])):
        scorer = build_scorer("scores:length", Resources(folder, function_batch_size=size))
        assert isinstance(scorer, FunctionReward)
        sizes = scorer.function.__globals__["sizes"]  # type: ignore[attr-defined]
        sizes.clear()
        assert scorer([*EPISODES, *EPISODES, EPISODES[0]]) == [1, 3, 1, 3, 1]
        assert sizes == calls


def test_further_reward_models_and_servers_are_parts_of_a_sum(folder: Path) -> None:
    asked: list[str] = []

    def load(name: str) -> LoadedRewardModel:
        asked.append(name)
        return reward_model()

    resources = Resources(folder, function="scores:length", models=load, server=Server(retries=0))
    weights = {"reward": 1.0, "org/one": 2.0, "org/two@GOOD": -1.0}
    summed = build_reward(weights, resources)
    scores = summed(EPISODES)
    parts = parts_of(summed)
    assert asked == ["org/one", "org/two@GOOD"] and list(parts) == list(weights)
    assert parts["org/one"] == parts["org/two@GOOD"]  # the same model here
    one = [float(value or 0) for value in parts["org/one"]]
    assert scores == pytest.approx([1 + one[0], 3 + one[1]])
    server = build_scorer("http://127.0.0.1:1/score", resources)
    assert isinstance(server, ServerReward) and server.tries == 1
    with pytest.raises(HandoffError, match="the reward model org/one cannot be loaded here"):
        build_scorer("org/one", Resources(folder))


def test_a_judge_without_a_reward_model_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(HandoffError, match="no reward model to ask") as caught:
        build_scorer("reward_model", Resources(tmp_path))
    assert caught.value.fix == "name one with --reward-model"


def test_a_recipe_says_where_functions_are_and_how_often_they_are_called() -> None:
    assert Resources.of(recipe(folder="/f")).function is None
    asking = Reward(function="http://a/b", server=Server(timeout=3.0))
    assert Resources.of(recipe(reward=asking)).server == Server(timeout=3.0)
    made = Resources.of(recipe(reward=Reward(function="mine:score", retries=3), folder="/f"))
    assert (made.folder, made.function, made.retries) == (Path("/f"), "mine:score", 3)
