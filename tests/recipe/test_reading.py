"""Reading recipe files and --set: YAML 1.2, lines, `extends` that leads nowhere, broken values."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import PRETRAINED, loaded, problems

from rlhfctl.errors import RecipeError
from rlhfctl.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_numbers_and_words_are_those_of_yaml_1_2() -> None:
    trainer = "{learning_rate: 1e-5, a: yes, b: on, c: 2024-01-01, d: 1e3, e: ~, f: true}"
    recipe = loaded(PRETRAINED.replace("kl_coef: 0.1", "learning_rate: 1e-5, kl_coef: 1")).recipe
    assert recipe.ppo is not None
    assert recipe.ppo.learning_rate == 1e-5
    assert recipe.ppo.kl_coef == 1.0 and isinstance(recipe.ppo.kl_coef, float)
    Path("d.jsonl").touch()
    text = "name: x\nmodel: {path: gpt2}\ndata: {demonstrations: {source: d.jsonl}}\n"
    sft = loaded(f"{text}sft: {{trainer: {trainer}}}\n").recipe.sft
    assert sft is not None
    assert sft.trainer == {
        "learning_rate": 1e-5, "a": "yes", "b": "on", "c": "2024-01-01", "d": 1000.0, "e": None, "f": True
    }  # fmt: skip


def test_duplicate_keys_are_problems_with_their_lines() -> None:
    assert problems(PRETRAINED + "seed: 1\nseed: 2\n") == [
        "recipe.yaml:8: seed: stands twice; the first is on line 7\n      fix: remove one of them"
    ]


def test_anchors_and_merge_keys() -> None:
    text = PRETRAINED.replace("ppo: {kl_coef: 0.1}", "lora: &small {r: 4}\nppo:\n  lora: {<<: *small, lora_alpha: 8}")
    recipe = loaded(text).recipe
    assert recipe.ppo is not None and recipe.ppo.lora is not None
    assert (recipe.ppo.lora.r, recipe.ppo.lora.lora_alpha) == (4, 8)
    found = problems("name: x\nsft: {}\nmodel: &m\n  init: *m\n")
    assert "recipe.yaml:3: model.init: an anchor that contains itself" in found


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("name: x\nmodel: {path: gpt2\n", "recipe.yaml:3: not valid YAML: "),
        ("name: x\n\tmodel: 1\n", "recipe.yaml:2: not valid YAML: "),
        (
            "name: x\nmodel: {path: ${HOME}/m}\n",
            "recipe.yaml:2: not valid YAML: expected ',' or '}', but got '{'\n      fix: put quotes around what has ${",
        ),
        ("", "recipe.yaml:1: the file is empty"),
        ("null\n", "recipe.yaml:1: expected a mapping of keys (`name: ...`), got null"),
        ("name: {a,\n  b\nc: d", "recipe.yaml:3: not valid YAML: expected ',' or '}', but got ':' (while parsing"),
        ("- a\n", "recipe.yaml:1: expected a mapping of keys (`name: ...`), got a list"),
        ("name: !!python/name:os.system x\n", "recipe.yaml:1: name: cannot be read as tag:yaml.org,2002:python"),
        ("name: !!int x\n", "recipe.yaml:1: name: cannot be read as"),
    ],
)
def test_what_is_not_a_recipe_at_all(text: str, start: str) -> None:
    assert problems(text)[0].startswith(start)


def test_a_file_that_is_not_text() -> None:
    Path("recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: not UTF-8 text"):
        load_recipe("recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [a.yaml, b.yaml]\n", "recipe.yaml:1: extends: expected the path of one recipe file, got a list"),
        ("extends: 3\n", "recipe.yaml:1: extends: expected the path of one recipe file, got the number 3"),
        ("extends: bass.yaml\n", "recipe.yaml:1: extends: there is no file bass.yaml; did you mean 'base.yaml'?"),
        (
            "name: x\nextends: ${NO_SUCH}/a.yaml\n",
            "recipe.yaml:2: extends: the environment variable NO_SUCH is not set\n      fix: export NO_SUCH=...",
        ),
    ],
)
def test_extends_that_leads_nowhere(text: str, message: str) -> None:
    Path("base.yaml").write_text(PRETRAINED, encoding="utf-8")
    assert problems(text) == [message]


def test_extends_in_a_circle() -> None:
    Path("other.yaml").write_text("seed: 1\nextends: recipe.yaml\n", encoding="utf-8")
    assert problems(PRETRAINED + "extends: other.yaml\n") == [
        "other.yaml:2: extends: goes round in a circle: recipe.yaml -> other.yaml -> recipe.yaml\n"
        "      fix: remove one of them"
    ]


def test_set_goes_over_the_file_and_makes_sections() -> None:
    recipe = loaded(PRETRAINED, "ppo.kl_coef=1e-3", "ppo.eval.every=3", "lora=null", "lora.r=2", "name='7'").recipe
    assert recipe.ppo is not None and recipe.lora is not None
    assert (recipe.ppo.kl_coef, recipe.ppo.eval.every, recipe.lora.r, recipe.name) == (1e-3, 3, 2, "7")
    assert recipe.ppo.lora == recipe.lora
    assert loaded(PRETRAINED, "report_to=[wandb]").recipe.report_to == ["wandb"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo", "--set ppo: is not of the form key=value\n      fix: write it as --set ppo.kl_coef=0.1"),
        ("=3", "--set =3: is not of the form key=value\n      fix: write it as --set ppo.kl_coef=0.1"),
        ("seed=", "--set seed=: seed: the value is empty\n      fix: write --set seed=null to unset it"),
        ("extends=a.yaml", "--set extends=a.yaml: extends: is read from the recipe file only"),
        ("seed=abc", "--set seed=abc: seed: expected a whole number, got the string 'abc'"),
        ("seed.x=1", "--set seed.x=1: seed: expected a whole number, got a mapping"),
        ("ppo.klcoef=1", "--set ppo.klcoef=1: ppo.klcoef: unknown key; did you mean 'kl_coef'?"),
    ],
)
def test_set_that_cannot_be(override: str, message: str) -> None:
    assert problems(PRETRAINED, override) == [message]


def test_set_with_broken_yaml() -> None:
    assert problems(PRETRAINED, "seed=[1")[0].startswith("--set seed=[1: seed: the value is not valid YAML: ")
