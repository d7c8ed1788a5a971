"""Layers of a recipe: what an upper file merges and what it replaces, and the origin of each value."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import GOLDEN, PRETRAINED, loaded, problems

from rlhfctl.recipe.load import dump_recipe, load_recipe
from rlhfctl.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_problems_name_the_file_in_which_the_value_stands() -> None:
    Path("base").mkdir()
    Path("base/parent.yaml").write_text(PRETRAINED.replace("kl_coef: 0.1", "kl_coef: x, lam: 2"), encoding="utf-8")
    assert problems("extends: base/parent.yaml\nname: child\nppo:\n  gamma: y\n  lam: 3\nsedd: 1\n") == [
        "recipe.yaml:4: ppo.gamma: expected a number, got the string 'y'",
        "recipe.yaml:5: ppo.lam: must be at most 1, got 3",
        "recipe.yaml:6: sedd: unknown key; did you mean 'seed'?",
        "base/parent.yaml:6: ppo.kl_coef: expected a number, got the string 'x'",
    ]


def test_extends_merges_mappings_and_replaces_the_rest() -> None:
    Path("a.yaml").write_text(PRETRAINED + "seed: 1\nreport_to: [wandb, tensorboard]\nlora: {r: 4}\n", encoding="utf-8")
    Path("b.yaml").write_text("extends: [a.yaml]\nseed: 2\nppo: {gamma: 0.9}\n", encoding="utf-8")
    recipe = loaded("extends: b.yaml\nname: c\nreport_to: [wandb]\nlora: null\n").recipe
    assert (recipe.name, recipe.seed, recipe.report_to, recipe.lora) == ("c", 2, ["wandb"], None)
    assert recipe.ppo is not None
    assert (recipe.ppo.kl_coef, recipe.ppo.gamma, recipe.ppo.lora) == (0.1, 0.9, None)


def test_what_replaces_what_in_the_parent() -> None:
    Path("a.yaml").write_text((GOLDEN / "sample.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    Path("p.jsonl").touch()
    child = """\
extends: a.yaml
model: {path: gpt2}
data: {preferences: {source: p.jsonl}}
reward: {function: "scores:length"}
compare: {judges: [gold, reward_function]}
"""
    recipe = loaded(child).recipe
    assert (recipe.model.init, recipe.model.path) == (None, "gpt2")
    assert recipe.reward is not None and recipe.reward.kind == "function"
    assert recipe.data.preferences is not None and recipe.data.preferences.rows is None
    back = """\
extends: recipe.yaml
reward: {trainer: {}}
model: {init: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}
compare: {judges: [gold]}
data: {preferences: {source: "builtin:reviews", rows: 9}}
"""
    again = loaded(back, name="back.yaml").recipe
    assert again.model.path is None and again.model.init is not None
    assert again.reward is not None and again.reward.kind == "trained"
    # Both in one file is still an error; null replaces nothing else.
    both = child.replace("gpt2}", "gpt2, init: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}")
    assert "model.path: is for pretrained weights" in problems(both)[0]
    assert loaded("extends: a.yaml\nmodel: {path: null}\n").recipe.model.init is not None


def test_section_touched_by_set_still_stands_in_the_file() -> None:
    (problem,) = problems(PRETRAINED.replace("reward:", "# reward:"), "ppo.kl_coef=1")
    assert problem.startswith("recipe.yaml:6: ppo: needs something that scores responses")


@pytest.mark.parametrize("written", ["3", "[0, 1, 2]", "{values: 3}", "{values: [0, 1, 2], from: null}"])
def test_seeds_are_a_number_a_list_or_a_section(written: str) -> None:
    seeds = loaded(PRETRAINED + f"seeds: {written}\n").recipe.seeds
    assert seeds is not None and (seeds.listed, seeds.start) == ([0, 1, 2], None)


def test_a_number_of_seeds_counts_from_seed() -> None:
    seeds = loaded(PRETRAINED + "seed: 7\nseeds: 2\n").recipe.seeds
    assert seeds is not None and seeds.listed == [7, 8]


def test_other_seeds_leave_from_as_it_is() -> None:
    Path("a.yaml").write_text(PRETRAINED + "seeds: {values: 3, from: ppo}\n", encoding="utf-8")
    recipe = loaded("extends: a.yaml\nname: b\nseeds: [4, 9]\n").recipe
    assert recipe.seeds is not None and (recipe.seeds.listed, recipe.seeds.start) == ([4, 9], "ppo")
    again = load_recipe(_written(recipe)).recipe
    assert again == recipe and "from: ppo" in dump_recipe(recipe)
    for overrides, listed in ((("seeds.values=[1,2]",), [1, 2]), (("seeds=4",), [0, 1, 2, 3])):
        changed = loaded("extends: a.yaml\nname: b\n", *overrides).recipe.seeds
        assert changed is not None and (changed.listed, changed.start) == (listed, "ppo")
    assert loaded("extends: a.yaml\nname: b\n", "seeds=null").recipe.seeds is None


def _written(recipe: Recipe) -> Path:
    Path("resolved.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    return Path("resolved.yaml")


def test_a_fault_in_a_list_of_seeds_names_its_line() -> None:
    assert problems(PRETRAINED + "seeds:\n- 0\n- -1\n") == [
        "recipe.yaml:9: seeds.values[1]: must be at least 0, got -1"
    ]
    assert problems(PRETRAINED + "seeds: [0, 0]\n") == [
        "recipe.yaml:7: seeds.values: a seed is listed more than once\n      fix: list each seed once"
    ]


def test_an_algorithm_named_in_an_upper_layer_puts_out_the_keys_that_it_does_not_use() -> None:
    own = PRETRAINED.replace("kl_coef: 0.1", "kl_coef: 0.1, num_ppo_epochs: 2, cliprange: 0.3, lam: 0.9")
    Path("a.yaml").write_text(own, encoding="utf-8")
    below = loaded("extends: a.yaml\nppo: {algorithm: a2c}\n").recipe.ppo
    assert below is not None and not below.is_set("cliprange") and not below.is_set("num_ppo_epochs")
    assert (below.kl_coef, below.lam, below.passes) == (0.1, 0.9, 1)
    by_set = loaded(own, "ppo.algorithm=a2c").recipe.ppo
    assert by_set is not None and by_set.lam == 0.9 and not by_set.is_set("cliprange")
    (problem,) = problems(own, "ppo.algorithm=a2c", "ppo.cliprange=0.1")  # stated beside the algorithm
    assert "a2c does not use it" in problem
