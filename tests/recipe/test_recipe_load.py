"""Loading of a whole recipe: all mistakes at once, word for word, and a resolved recipe that loads again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import GOLDEN, PRETRAINED, loaded, problems

from rlhfctl.errors import RecipeError
from rlhfctl.recipe import load
from rlhfctl.recipe.load import dump_recipe, find_recipe, load_recipe

FILES = """\
name: 'on'
model: {path: gpt2, chat_template: "{% if a %}\\n  yes: '1e-5'\\n{% endif %}"}
lora: {}
data:
  preferences: {source: d.jsonl, columns: {prompt: 'no'}, limit: 9}
  prompts: {source: d.jsonl}
reward: {lora: null}
ppo: {learning_rate: 1e-7, eval: {every: 0}}
"""
TOKENS = """\
name: t
model: {init: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, tokens: ['null', '1', b]}}
data: {demonstrations: {source: d.jsonl}}
sft: {trainer: {learning_rate: 1e-9, optim: '1_000', x: {y: [1, ~]}}}
"""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_sample_of_the_design_loads_and_is_resolved() -> None:
    found = load_recipe(GOLDEN / "sample.yaml")
    recipe = found.recipe
    assert found.path == GOLDEN / "sample.yaml"
    assert found.folder == GOLDEN
    assert recipe.folder == str(GOLDEN)
    assert recipe.sft is not None and recipe.reward is not None and recipe.ppo is not None
    assert recipe.sft.lora is None
    assert recipe.reward.lora == recipe.ppo.lora == recipe.lora
    assert recipe.sft.trainer["learning_rate"] == 1e-3
    assert recipe.compare is not None
    assert (recipe.compare.primary_judge, recipe.compare.max_new_tokens) == ("gold", 24)


def test_several_mistakes_are_reported_together_word_for_word() -> None:
    Path("demonstrations.jsonl").touch()
    text = (GOLDEN / "mistakes.yaml").read_text(encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        loaded(text, "ppo", "ppo.cliprange=-1", "ppo.gamma=", "nonsense.x=1")
    assert str(caught.value) == (GOLDEN / "mistakes.txt").read_text(encoding="utf-8").rstrip("\n")


# Lines


def test_a_missing_key_is_shown_at_its_section() -> None:
    text = PRETRAINED.replace('{source: "builtin:reviews", rows: 300}', "{test: 10}").replace("name: small\n", "")
    assert problems(text) == [
        "recipe.yaml:1: name: missing\n      fix: add it: the run's name, and its folder's.",
        "recipe.yaml:3: data.prompts.source: missing\n"
        "      fix: add it: a file, a folder, an id on the Hub; or sources: a list of them",
    ]


def test_a_bad_value_does_not_hide_conflicts_elsewhere_nor_cause_new_ones() -> None:
    text = PRETRAINED.replace("kl_coef: 0.1", "kl_coef: high, use: best").replace("rows: 300", "rows: many")
    assert [line.split(": ")[1] for line in problems(text)] == ["data.prompts.rows", "ppo.kl_coef", "ppo.use"]
    # A misspelt section is not also reported as absent.
    assert problems(PRETRAINED.replace("reward:", "rewards:")) == [
        "recipe.yaml:5: rewards: unknown key; did you mean 'reward'?"
    ]


# Finding and writing


def test_find_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = tmp_path / "recipes"
    (shipped / "text").mkdir(parents=True)
    (shipped / "quickstart.yaml").write_text(PRETRAINED, encoding="utf-8")
    (shipped / "text/summaries.yaml").write_text(PRETRAINED, encoding="utf-8")
    monkeypatch.setattr(load, "_SHIPPED", (tmp_path / "absent", shipped))
    assert find_recipe("quickstart") == shipped / "quickstart.yaml"
    assert find_recipe("text/summaries") == shipped / "text/summaries.yaml"
    assert load_recipe("quickstart").folder == shipped
    Path("mine.yaml").write_text(PRETRAINED, encoding="utf-8")
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    for name, meant in (("quikstart", "quickstart"), ("min.yaml", "mine.yaml")):
        with pytest.raises(RecipeError, match=f"{name}: there is no such file.*; did you mean '{meant}'"):
            find_recipe(name)
    with pytest.raises(RecipeError, match="recipes: is a folder, not a recipe"):
        find_recipe("recipes")


@pytest.mark.parametrize(
    "text",
    [
        (GOLDEN / "sample.yaml").read_text(encoding="utf-8"),
        PRETRAINED,
        PRETRAINED + "compare: {judges: [gold, reward_function]}\nlora: {r: 2, target_modules: [q_proj]}\n",
        PRETRAINED.replace('{function: "scores:length"}', "{model: org/reward}") + "lora: {}\n",
        FILES,
        TOKENS,
    ],
)
def test_resolved_recipe_loads_to_an_equal_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d.jsonl").touch()
    first = loaded(text).recipe
    second = loaded(dump_recipe(first), name="run/recipe.yaml").recipe
    assert second == first
    assert dump_recipe(second) == dump_recipe(first)


def test_reading_a_recipe_loads_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "trl", "peft", "datasets", "tokenizers", "pandas", "numpy", "scipy"]
    code = f"import sys, rlhfctl.recipe.load; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=GOLDEN.parents[2]
    )
    assert done.stdout.strip() == "[]"
