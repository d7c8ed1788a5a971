"""Loading a recipe: line numbers, `extends`, `--set`, paths, YAML 1.2, and messages word for word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl.errors import RecipeError
from rlhfctl.recipe import load
from rlhfctl.recipe.load import LoadedRecipe, dump_recipe, find_recipe, load_recipe

GOLDEN = Path(__file__).parent / "golden"
PRETRAINED = """\
name: small
model: {path: gpt2}
data:
  prompts: {source: "builtin:reviews", rows: 300}
reward: {function: "scores:length"}
ppo: {kl_coef: 0.1}
"""
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


def loaded(text: str, *overrides: str, name: str = "recipe.yaml") -> LoadedRecipe:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(name, overrides)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loaded(text, *overrides)
    return [str(problem) for problem in caught.value.problems]


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


# YAML


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


def test_problems_name_the_file_in_which_the_value_stands() -> None:
    Path("base").mkdir()
    Path("base/parent.yaml").write_text(PRETRAINED.replace("kl_coef: 0.1", "kl_coef: x, lam: 2"), encoding="utf-8")
    assert problems("extends: base/parent.yaml\nname: child\nppo:\n  gamma: y\n  lam: 3\nsedd: 1\n") == [
        "recipe.yaml:4: ppo.gamma: expected a number, got the string 'y'",
        "recipe.yaml:5: ppo.lam: must be at most 1, got 3",
        "recipe.yaml:6: sedd: unknown key; did you mean 'seed'?",
        "base/parent.yaml:6: ppo.kl_coef: expected a number, got the string 'x'",
    ]


# extends


def test_extends_merges_mappings_and_replaces_the_rest() -> None:
    Path("a.yaml").write_text(PRETRAINED + "seed: 1\nreport_to: [wandb, tensorboard]\nlora: {r: 4}\n", encoding="utf-8")
    Path("b.yaml").write_text("extends: [a.yaml]\nseed: 2\nppo: {gamma: 0.9}\n", encoding="utf-8")
    recipe = loaded("extends: b.yaml\nname: c\nreport_to: [wandb]\nlora: null\n").recipe
    assert (recipe.name, recipe.seed, recipe.report_to, recipe.lora) == ("c", 2, ["wandb"], None)
    assert recipe.ppo is not None
    assert (recipe.ppo.kl_coef, recipe.ppo.gamma, recipe.ppo.lora) == (0.1, 0.9, None)


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


# --set


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


def test_section_touched_by_set_still_stands_in_the_file() -> None:
    (problem,) = problems(PRETRAINED.replace("reward:", "# reward:"), "ppo.kl_coef=1")
    assert problem.startswith("recipe.yaml:6: ppo: needs something that scores responses")


# Paths


def test_paths_start_from_the_file_that_states_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("base/prompts.jsonl", "base/chat.jinja", "data/prefs.jsonl", "here/model/config.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("base/parent.yaml").write_text(
        "name: p\nmodel: {path: gpt2, chat_template: chat.jinja}\ndata: {prompts: {source: prompts.jsonl}}\n"
        "reward: {function: 'scores:length'}\nppo: {}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    text = "extends: ../base/parent.yaml\nmodel: {path: ./model}\n"
    text += 'data: {preferences: {source: "${DATA_DIR}/prefs.jsonl"}}\n'
    recipe = loaded(text, name="here/recipe.yaml").recipe
    assert recipe.model.path == str(tmp_path / "here/model")
    assert recipe.model.chat_template == str(tmp_path / "base/chat.jinja")
    assert recipe.data.prompts is not None and recipe.data.prompts.source == str(tmp_path / "base/prompts.jsonl")
    assert recipe.data.preferences is not None and recipe.data.preferences.source == str(tmp_path / "data/prefs.jsonl")
    assert recipe.folder == str(tmp_path / "base")  # the folder of the file that names the function
    set_ = loaded(text, "model.path=here/model", name="here/recipe.yaml").recipe
    assert set_.model.path == str(tmp_path / "here/model")


def test_hub_ids_and_templates_stay_as_they_are() -> None:
    recipe = loaded(PRETRAINED, "model.path=org/name", "model.chat_template='{{ messages }}'").recipe
    assert (recipe.model.path, recipe.model.chat_template) == ("org/name", "{{ messages }}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.prompts={source: prompt.jsonl, rows: null}",
            "there is no file prompt.jsonl; did you mean 'prompts.jsonl'?",
        ),
        ("data.prompts.source=nowhere/p.jsonl", "there is no file nowhere/p.jsonl"),
        ("model.path=./modle", "there is no folder modle; did you mean 'model'?"),
        ("model.chat_template=chat.jinja", "there is no file chat.jinja"),
        ("reward.model=/no/such", "there is no folder /no/such"),
        ("model.path=${NO_SUCH_VARIABLE}", "the environment variable NO_SUCH_VARIABLE is not set"),
    ],
)
def test_files_that_are_not_there(override: str, message: str) -> None:
    Path("prompts.jsonl").touch()
    Path("model").mkdir()
    found = problems(PRETRAINED, override)
    assert len(found) == 1
    assert found[0].startswith(f"--set {override}: ") and message in found[0].splitlines()[0]


def test_a_missing_file_of_the_parent_is_no_problem_when_the_child_names_another() -> None:
    parent = PRETRAINED.replace('"builtin:reviews", rows: 300', "'${NO_SUCH}/x.jsonl'")
    Path("a.yaml").write_text(parent, encoding="utf-8")
    Path("mine.jsonl").touch()
    assert loaded("extends: a.yaml\ndata: {prompts: {source: mine.jsonl}}\n").recipe.data.prompts is not None


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
