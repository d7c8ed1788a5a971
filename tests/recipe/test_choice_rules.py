"""Rules on the choice of sft's checkpoint: what it needs of the other sections, and who may choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_recipe import problems, recipe

CHOOSE = "sft.choose={by: runs/first/reward, every: 5}"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_eval_prompts_are_needed() -> None:
    assert recipe(CHOOSE).sft.choose.by == "runs/first/reward"  # type: ignore[union-attr]
    (problem,) = problems(CHOOSE, "data.prompts.eval=0")
    assert problem.key == "sft.choose" and "data.prompts holds none" in problem.what
    (problem,) = problems(CHOOSE, "data.prompts=null", "ppo=null", "compare=null")
    assert problem.key == "sft.choose" and "eval above 0" in (problem.fix or "")


def test_the_held_out_loss_needs_held_out_rows_and_no_prompts() -> None:
    by = "sft.choose={by: heldout_loss, every: 5}"
    (problem,) = problems(by)
    assert (problem.key, problem.what) == ("sft.choose.by", "heldout_loss needs held-out demonstrations")
    assert recipe(by, "data.demonstrations.heldout=0.1", "data.prompts.eval=0").sft


@pytest.mark.parametrize("key", ["temperature: 0.5", "max_new_tokens: 3", "batch_size: 64"])
def test_keys_of_sampling_are_refused_where_nothing_is_sampled(key: str) -> None:
    (problem,) = problems(f"sft.choose={{by: heldout_loss, every: 5, {key}}}", "data.demonstrations.heldout=0.1")
    assert problem.key == f"sft.choose.{key.partition(':')[0]}" and "heldout_loss reads held-out" in problem.what


@pytest.mark.parametrize("key", ["eval_strategy=epoch", "eval_steps=5", "eval_on_start=true"])
def test_trls_own_evaluation_of_sft_is_refused_with_the_way(key: str) -> None:
    (problem,) = problems(f"sft.trainer.{key}")
    assert problem.key == f"sft.trainer.{key.partition('=')[0]}" and "data.demonstrations.heldout" in (
        problem.fix or ""
    )
    assert recipe("sft.trainer.eval_strategy='no'").sft and recipe("reward.trainer.eval_strategy=epoch").reward


@pytest.mark.parametrize("name", ["unit_tests", "passes"])
def test_unit_tests_choose_only_where_there_are_some(name: str) -> None:
    (problem,) = problems(f"sft.choose={{by: {name}, every: 5}}")
    assert (problem.key, problem.what) == ("sft.choose.by", f"{name} needs reward.unit_tests")


@pytest.mark.parametrize("name", ["gold", "reward", "reward_model", "heldout", "perplexity@gpt2", "rouge9", "a:b:c"])
def test_what_cannot_choose_is_refused(name: str) -> None:
    (problem,) = problems(f"sft.choose={{by: '{name}', every: 5}}")
    assert problem.key == "sft.choose.by" and f"there is no scorer '{name}' here" in problem.what
    assert "runs/NAME/reward" in (problem.fix or "")


@pytest.mark.parametrize("name", ["mine:score", "http://127.0.0.1:8000/score", "org/model@good", "rougeL", "length"])
def test_what_scores_a_response_can_choose(name: str) -> None:
    assert recipe(f"sft.choose={{by: '{name}', every: 5}}").sft.choose.by == name  # type: ignore[union-attr]


def test_an_address_holds_no_key() -> None:
    (problem,) = problems("sft.choose={by: 'http://me:secret@host/score', every: 5}")
    assert problem.key == "sft.choose.by" and "secret" not in problem.what


def test_one_epoch_without_every_is_no_choice() -> None:
    by = "sft.choose={by: runs/first/reward}"
    (problem,) = problems(by, "sft.trainer.num_train_epochs=1")
    assert problem.key == "sft.choose" and "has one candidate" in problem.what
    for enough in ("sft.trainer.num_train_epochs=2", "sft.trainer.max_steps=9", "sft.choose.every=5"):
        assert recipe(by, "sft.trainer.num_train_epochs=1", enough).sft


def test_a_server_that_only_chooses_is_a_use_of_reward_server() -> None:
    server, by = "reward.server={batch_size: 4}", "sft.choose={by: 'http://127.0.0.1:8000/score', every: 5}"
    assert recipe(server, by).reward
    assert [problem.key for problem in problems(server)] == ["reward.server"]


def test_a_recipe_without_a_choice_is_written_as_before() -> None:
    assert "choose" not in recipe().sft.model_dump()  # type: ignore[union-attr]
    assert "heldout" not in recipe().data.demonstrations.model_dump()  # type: ignore[union-attr]
