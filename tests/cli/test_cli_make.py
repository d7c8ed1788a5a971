"""`init`, `schema`, `recipes`, `export` as commands: questions are asked again, files are not overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools import export
from rlhfctl.tools.hub import Push


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    for name in ("demos", "pairs", "prompts"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"p{index}"}) + "\n" for index in range(100)))


def test_yes_is_the_quickstart(cli: object) -> None:
    assert callable(cli)
    result = cli("init", "--yes")
    assert result.returncode == 0, result.stderr
    ours = load_recipe("my-rlhf.yaml").recipe.model_dump(exclude={"name", "folder"})
    assert ours == load_recipe("quickstart").recipe.model_dump(exclude={"name", "folder"})
    again = cli("init", "--yes")
    assert again.returncode == 1
    assert "my-rlhf.yaml: already exists" in again.stderr


def test_answers_may_be_piped(tmp_path: Path) -> None:
    answers = "\nEleutherAI/pythia-70m\nnone\npairs.jsonl\nprompts.jsonl\n\ncpu\n"
    done = subprocess.run(
        [sys.executable, "-m", "rlhfctl", "init", "piped.yaml"],
        input=answers, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_recipe("piped.yaml").recipe.model.path == "EleutherAI/pythia-70m"
    cut_short = subprocess.run(
        [sys.executable, "-m", "rlhfctl", "init", "cut.yaml"],
        input="\n", env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert cut_short.returncode == 1
    assert "Traceback" not in cut_short.stderr
    assert not Path("cut.yaml").exists()


def test_a_wrong_answer_is_asked_for_again() -> None:
    answers = [
        "no good", "ok", "./no-such-folder", "demos.jsonl", "base", "no.jsonl", "none", "nothing", "pairs.jsonl",
        "", "prompts.jsonl", "perhaps", "lora", "cpu",
    ]  # fmt: skip
    result = CliRunner().invoke(app, ["init", "x.yaml"], input="".join(f"{answer}\n" for answer in answers))
    assert result.exit_code == 0, result.output
    for message in (
        "the first a letter or a digit", "there is no folder ./no-such-folder", "demos.jsonl is a file",
        "there is no file no.jsonl", "a Hub id is owner/name", "answer lora or all",
    ):  # fmt: skip
        assert message in result.output
    assert load_recipe("x.yaml").recipe.name == "ok"


def test_no_file_is_overwritten() -> None:
    Path("mine.yaml").write_text("mine")
    result = CliRunner().invoke(app, ["init", "mine.yaml"], input="\n\n\n")
    assert isinstance(result.exception, RlhfctlError)
    assert "mine.yaml: already exists" in str(result.exception)
    assert "Name" not in result.output  # before the first question
    assert Path("mine.yaml").read_text() == "mine"


def test_schema_names_the_file_in_the_line_for_editors() -> None:
    result = CliRunner().invoke(app, ["schema", "--out", "s.json"])
    assert "# yaml-language-server: $schema=s.json" in result.output
    result = CliRunner().invoke(app, ["schema", "--format", "markdown", "--out", "page.md"])
    assert result.output == "wrote page.md\n"


def test_a_copied_recipe_validates_by_the_printed_command() -> None:
    result = CliRunner().invoke(app, ["recipes", "copy", "quickstart", "mine.yaml"])
    assert result.exit_code == 0 and "rlhfctl validate mine.yaml" in result.output
    assert CliRunner().invoke(app, ["validate", "mine.yaml"]).exit_code == 0


def test_export_prints_each_line_and_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def exported(run: Path, stage: str, to: Path, *, adapter: bool, push: object) -> list[str]:
        given.extend((run, stage, to, adapter, push))
        return ["first", "second"]

    monkeypatch.setattr(export, "export", exported)
    result = CliRunner().invoke(app, ["export", "runs/x", "--stage", "sft", "--to", "out", "--adapter"])
    assert result.output == "first\nsecond\n"
    assert given == [Path("runs/x"), "sft", Path("out"), True, None]
    CliRunner().invoke(app, ["export", "runs/x", "--to", "out", "--push-to-hub", "me/mine", "--private"])
    push = given[-1]
    assert isinstance(push, Push) and (push.repo_id, push.private) == ("me/mine", True)


def test_private_is_of_a_repository() -> None:
    result = CliRunner().invoke(app, ["export", "runs/x", "--to", "out", "--private"])
    assert isinstance(result.exception, RlhfctlError) and "give --push-to-hub REPO_ID too" in str(result.exception)
