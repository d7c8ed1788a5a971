"""Rules between the sections of a recipe: what one section needs of another."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_recipe import problems, recipe, sample_with_inherited_lora

from rlhfctl.errors import RecipeError
from rlhfctl.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()


LORA = "so LoRA learns nothing"


def test_lora_on_random_weights_names_where_it_comes_from() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(sample_with_inherited_lora())
    (problem,) = caught.value.problems
    assert problem.key == "sft.lora" and problem.where == "inherited.yaml:13"
    assert problem.what.endswith(f"{LORA} (inherited from the top-level lora)")
    assert problem.fix == "write `lora: null` under sft, which trains all weights"
    without_sft = problems("sft=null")
    assert [problem.key for problem in without_sft] == ["reward.lora", "ppo.lora"]
    assert recipe("sft=null", "lora=null").sft is None


def test_stages_need_their_data_and_their_parents() -> None:
    assert [problem.key for problem in problems("data.prompts=null")] == ["ppo", "compare"]
    assert [problem.key for problem in problems("reward=null")] == ["ppo", "compare.judges"]
    assert "add a reward section" in str(problems("reward=null")[0])
    (none,) = problems("sft=null", "reward=null", "ppo=null", "compare=null")
    assert (none.key, none.what) == ("", "no stage to run")
    (untrained,) = problems("sft=null", "lora=null", "data.demonstrations=null")
    assert untrained.key == "model.init" and "to train the tokenizer on" in untrained.what


def test_a_card_needs_pairs_whatever_the_scorer() -> None:
    ready = "reward={model: a/b, card: {}, gate: {}}"
    found = problems(ready, "data.preferences=null")
    assert [problem.key for problem in found] == ["reward.card", "reward.gate"]
    assert found[0].what == "examines the scorer on pairs, but there are none"
    assert found[0].fix == "add data.preferences, or remove card"
    assert recipe(ready).reward is not None
    (trained,) = problems("reward={card: {}}", "data.preferences=null")  # said once: it needs them anyway
    assert trained.key == "reward"


def test_a_reward_is_shifted_to_demonstrations_that_are_there() -> None:
    without = (
        "sft=null",
        "lora=null",
        "data.demonstrations=null",
        "model.init.tokens=[a, b]",
        "model.init.vocab_size=null",
    )
    found = problems("reward.normalize=demonstrations", *without)
    assert "reward.normalize" in [problem.key for problem in found]
    assert recipe("reward.normalize=demonstrations").reward is not None
    assert "reward.normalize" not in [problem.key for problem in problems("reward.normalize=reference", *without[:3])]


def test_a_gate_alone_has_the_card_that_it_needs() -> None:
    asked = [recipe(change).reward for change in ("name=x", "reward.gate={}", "reward.card={samples: 4}")]
    sizes = [None if one is None or one.resolved_card is None else one.resolved_card.samples for one in asked]
    assert sizes == [None, 32, 4]
    assert asked[1] is not None and asked[1].gate is not None
    assert (asked[1].gate.min_accuracy, asked[1].gate.flags) == (0.55, ["length_only"])
    assert asked[1].scorer.model_dump() == asked[0].model_dump()  # type: ignore[union-attr]
    assert {"card", "gate"}.isdisjoint(asked[0].model_dump())  # type: ignore[union-attr]


def test_best_needs_prompts_to_choose_on() -> None:
    (problem,) = problems("ppo.use=best", "data.prompts.eval=0")
    assert "data.prompts.eval is 0" in problem.what
    assert recipe("ppo.use=best").ppo is not None


def test_prompt_and_response_fit_the_context_together() -> None:
    found = problems("data.max_prompt_length=240", "compare.max_new_tokens=10")
    assert [problem.key for problem in found] == ["ppo.response_length"]
    assert "24 tokens beside a prompt of 240 (data.max_prompt_length)" in found[0].what


@pytest.mark.parametrize(
    ("reward", "key", "what"),
    [
        (
            "{function: 'http://a/b', retries: 2}",
            "reward.retries",
            "is for Python functions, but the reward is a server",
        ),
        ("{function: 'https://a/b?key=sk'}", "reward.function", "host, port and path alone (it is not shown:"),
        ("{function: 'm:f', server: {}}", "reward.server", "is not used: no scorer is an address"),
        ("{function: 'http://a', server: {key_env: rk-1}}", "reward.server.key_env", "is no name of an environment"),
        ("{function: 'http://a', server: {timeout: 0}}", "reward.server.timeout", "must be greater than 0, got 0"),
    ],
)
def test_a_server_is_an_address_without_a_key(reward: str, key: str, what: str) -> None:
    (problem,) = problems(f"reward={reward}", "compare.judges=[gold]")
    assert problem.key == key and what in problem.what and "sk" not in problem.what


def test_ppo_may_do_without_a_reward_section_where_its_rewards_do() -> None:
    own = "ppo={engine: rlhfctl, rewards: {'m:f': 1.0}}"
    assert recipe("reward=null", own, "compare.judges=[gold]").reward is None
    (problem,) = problems("reward=null", own.replace("'m:f'", "reward"), "compare.judges=[gold]")
    assert problem.what == "needs something that scores responses"
    made = recipe("reward=null", own.replace("m:f", "http://a/b"), "compare.judges=[gold, 'http://a/c']")
    assert made.ppo is not None and made.ppo.rewards == {"http://a/b": 1.0}
