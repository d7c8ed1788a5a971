"""Paths in recipes: they start from the file that states them, and missing files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import PRETRAINED, loaded, problems


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
