"""Completion in a shell: recipes and runs, by the functions and by the protocol of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl.recipe.shipped import shipped_recipes
from rlhfctl.tools import complete


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/quick", "runs/other", "elsewhere/run"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").touch()
        (folder / "events.jsonl").touch()
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "query.yaml").touch()
    (tmp_path / "query.txt").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "r.yml").touch()


def test_recipes() -> None:
    assert complete.recipes("qu") == ["quickstart", "query.yaml"]
    assert complete.recipes("") == [*shipped_recipes(), "query.yaml", "elsewhere/", "runs/"]
    assert complete.recipes("elsewhere/run/") == ["elsewhere/run/recipe.yaml"]
    assert complete.recipes(".hidden/") == [".hidden/r.yml"]
    assert complete.recipes(".h") == [".hidden/"]
    assert complete.recipes("no-such-folder/") == complete.recipes("zzz") == []
    assert complete.shipped("qu") == ["quickstart"]


def test_runs() -> None:
    assert complete.runs("") == ["runs/other", "runs/quick", "elsewhere/", "runs/"]
    assert complete.runs("runs/q") == ["runs/quick"]
    assert complete.runs("elsewhere/") == ["elsewhere/run"]
    assert complete.runs("runs/n") == ["runs/notes/"]
    assert complete.runs("query.txt/") == []
    assert complete.recipes_or_runs("q") == ["quickstart", "query.yaml"]
    assert complete.recipes_or_runs("runs/q") == ["runs/quick"]


def test_a_sweep_is_completed_as_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "a-sweep").mkdir(parents=True)
    for name in ("sweep.json", "events.jsonl"):
        (tmp_path / "runs" / "a-sweep" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete.runs("runs/a") == ["runs/a-sweep"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run qu", ["quickstart", "query.yaml"]),
        ("bench ppo quick", ["quickstart"]),
        ("recipes copy ti", ["tiny-chatgpt"]),
        ("show runs/q", ["runs/quick"]),
        ("export runs/o", ["runs/other"]),
        ("compare runs/quick runs/o", ["runs/other"]),
    ],
)
def test_the_shell_gets_them(typed: str, offered: list[str]) -> None:
    words = ["rlhfctl", *typed.split()]
    environment = {"_RLHFCTL_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words)}
    environment["COMP_CWORD"] = str(len(words) - 1)
    program = (
        "import sys; from rlhfctl.cli import app; sys.argv = ['rlhfctl']\n"
        "try:\n    app(prog_name='rlhfctl')\n"
        "finally:\n    print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == offered, done.stderr
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "transformers", "ruamel", "rich"}  # at every press of the key
