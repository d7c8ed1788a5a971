"""`recipes`: the list of shipped recipes, and copies that work in their new folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.shipped import shipped_recipes
from rlhfctl.tools import recipes

NAMES = sorted(shipped_recipes())


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demonstrations", "preferences", "prompts"):
        Path(f"{name}.jsonl").write_text("{}\n")
    monkeypatch.setenv("RLHFCTL_REVIEWS", str(tmp_path))
    monkeypatch.setenv("RLHFCTL_RL4LMS", str(tmp_path / "tasks"))
    for task in (name.split("/")[1] for name in NAMES if "/" in name):
        (tmp_path / "tasks" / task).mkdir(parents=True)
        for name in ("demonstrations", "prompts", "test"):
            (tmp_path / "tasks" / task / f"{name}.jsonl").write_text("{}\n")


def test_the_list_names_each_with_its_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHFCTL_REVIEWS")  # the list does not need what a run of the recipe needs
    result = CliRunner().invoke(app, ["recipes", "list"])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for name in NAMES:
        assert name in words
    assert "The whole loop on the" in words  # as far as one line of the column goes
    for word in recipes.purpose(recipes.show("quickstart")).split():
        assert word in words
    assert "yaml-language-server" not in words
    assert "base, ppo, compare" in words  # tiny-chatgpt
    assert "EleutherAI/pythia-70m" in words


@pytest.mark.parametrize(
    ("text", "purpose"),
    [
        ("# yaml-language-server: $schema=x.json\n#\n# What for.\n# More.\nname: a\n", "What for."),
        ("name: a  # not this\n# nor this\n", ""),
        ("", ""),
    ],
)
def test_the_purpose_is_the_first_words_of_the_comment(text: str, purpose: str) -> None:
    assert recipes.purpose(text) == purpose


def test_show_prints_the_file() -> None:
    result = CliRunner().invoke(app, ["recipes", "show", "quickstart"])
    assert result.output == (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_loads_where_it_lies(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["recipes", "copy", name])
    assert result.exit_code == 0, result.output
    copy = tmp_path / Path(f"{name}.yaml").name
    assert load_recipe(copy).recipe.name == copy.stem
    original = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    schema_line, rest = original.split("\n", 1)
    assert schema_line == f"# yaml-language-server: $schema={'../' * name.count('/')}recipe.schema.json"
    assert copy.read_text(encoding="utf-8") == rest
    assert f"rlhfctl validate {copy.name}" in result.output


@pytest.mark.parametrize(("file", "name"), [("mine.yaml", "mine"), ("1e5.yaml", "1e5"), ("my run.yaml", "quickstart")])
def test_a_copy_under_another_name_is_another_run(file: str, name: str, tmp_path: Path) -> None:
    said = list(recipes.copy("quickstart", Path(file)))
    assert load_recipe(tmp_path / file).recipe.name == name
    assert f"its run goes to runs/{name} " in said[-1]


def test_a_copy_takes_along_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    lines = list(recipes.copy("tiny-chatgpt", Path("mine")))  # a folder
    names = {"tiny-chatgpt.yaml", "tiny-chatgpt.prompts.jsonl", "tiny_chatgpt.py"}
    assert {path.name for path in Path("mine").iterdir()} == names
    assert "tiny_chatgpt.py" in lines[0]
    list(recipes.copy("tiny-chatgpt", Path("mine/second.yaml")))  # the same files beside it may stay
    list(recipes.copy("quickstart", Path("new/folder/q.yaml")))
    assert [path.name for path in Path("new/folder").iterdir()] == ["q.yaml"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    Path("quickstart.yaml").write_text("mine")
    with pytest.raises(RlhfctlError, match=r"already exists.*\n.*recipes copy quickstart my-quickstart\.yaml"):
        list(recipes.copy("quickstart", None))
    Path("dangling.yaml").symlink_to("nowhere")
    with pytest.raises(RlhfctlError, match="already exists"):
        list(recipes.copy("quickstart", Path("dangling.yaml")))
    Path("tiny_chatgpt.py").write_text("mine")
    with pytest.raises(RlhfctlError, match=r"tiny_chatgpt\.py: already exists.*\n.*in another folder"):
        list(recipes.copy("tiny-chatgpt", Path("t.yaml")))
    assert Path("quickstart.yaml").read_text() == Path("tiny_chatgpt.py").read_text() == "mine"
    assert not Path("t.yaml").exists()
    Path("file").touch()
    with pytest.raises(RlhfctlError, match="cannot be written"):
        list(recipes.copy("quickstart", Path("file/q.yaml")))


def test_a_wrong_name_is_told_the_right_ones() -> None:
    with pytest.raises(RlhfctlError, match=r"did you mean 'quickstart'\?\n.*shipped recipes: .*quickstart, reviews"):
        recipes.show("quikstart")
