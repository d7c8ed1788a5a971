"""Every shipped recipe validates, and what the README tells people to type works."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, Cli

from rlhfctl.recipe.load import load_recipe

SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
EXPECTED = 13


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the files that reviews.yaml finds through the environment."""
    for name in ("demonstrations", "preferences", "prompts"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    monkeypatch.setenv("RLHFCTL_REVIEWS", str(tmp_path))
    return tmp_path


def test_all_are_counted() -> None:
    assert len(SHIPPED) == EXPECTED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_validates(path: Path, reviews: Path) -> None:
    assert load_recipe(path).recipe.name == path.stem


def test_reviews_says_what_to_set(monkeypatch: pytest.MonkeyPatch, here: Cli) -> None:
    monkeypatch.delenv("RLHFCTL_REVIEWS", raising=False)
    result = here("validate", "reviews")
    assert result.returncode == 2
    assert "RLHFCTL_REVIEWS" in result.stderr


def test_reviews_data_makes_the_three_files(tmp_path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "reviews_data"}
    exec(compile((ROOT / "recipes" / "reviews_data.py").read_text(), "reviews_data.py", "exec"), namespace)
    make = namespace["make"]
    assert callable(make)
    kind = [f"the film number {i} is a warm and lovely thing ." for i in range(20)]
    unkind = [f"the film number {i} is a cold and tired thing ." for i in range(20)]
    make(kind, unkind, tmp_path)
    from rlhfctl.data import load
    from rlhfctl.recipe.schema import Demonstrations, Preferences, Prompts

    assert len(load.load_demonstrations(Demonstrations(source=str(tmp_path / "demonstrations.jsonl")), 0).rows) == 40
    pairs = load.load_preferences(Preferences(source=str(tmp_path / "preferences.jsonl")), 0).rows
    assert pairs
    assert all("lovely" in pair["chosen"] and "tired" in pair["rejected"] for pair in pairs)
    assert load.load_prompts(Prompts(source=str(tmp_path / "prompts.jsonl")), 0).rows


@pytest.mark.parametrize("name", ["quickstart", "tiny-chatgpt"])
def test_deep_validation_passes(name: str, here: Cli) -> None:
    result = here("validate", name, "--deep")
    assert result.returncode == 0, result.stderr
    assert "valid, with its data and trainer options" in result.stdout
    assert result.stderr == ""  # libraries' remarks about each other are none of the recipe's


# ---------------------------------------------------------------- the README


README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def test_commands_page_names_every_command_and_no_other(here: Cli) -> None:
    listed = set(re.findall(r"^  ([\w-]+) ", here("--help").stdout.split("Commands:")[1], re.MULTILINE))
    named = {line.split()[0] for line in re.findall(r"`rlhfctl (\w[^`]*)`", COMMANDS)}
    assert named == listed


def test_every_help_shows_an_example_that_parses(here: Cli) -> None:
    commands = [
        "run",
        "sft",
        "reward",
        "ppo",
        "compare",
        "validate",
        "show",
        "runs",
        "watch",
        "export",
        "init",
        "schema",
    ]
    commands += ["data", "doctor", "bench ppo", "recipes list", "recipes show", "recipes copy"]
    commands += ["tokens", "course list", "course copy", "course check"]
    for command in commands:
        text = here(*command.split(), "--help").stdout
        assert f"Example: rlhfctl {command}" in " ".join(text.split()), command


def test_readme_recipe_validates(tmp_path: Path, here: Cli) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    data_page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    two_lines = next(block for block in re.findall(r"```yaml\n(.*?)```", data_page, re.DOTALL) if "helpful" in block)
    (tmp_path / "my-base-model").mkdir()
    for name in ("demos.jsonl", "pairs.parquet", "prompts.jsonl", "helpful-base.jsonl.gz"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "support.yaml").write_text(recipe)
    (tmp_path / "hh.yaml").write_text(f"name: hh\nmodel: {{path: ./my-base-model}}\ndata:\n{two_lines}")
    for name in ("support.yaml", "hh.yaml"):
        result = here("validate", tmp_path / name)
        assert result.returncode == 0, result.stderr


def test_readme_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "make":
                assert f"\n{words[1]}:" in makefile


def test_the_wheel_carries_the_recipes(tmp_path: Path) -> None:
    import subprocess
    import sys

    build = pytest.importorskip("hatchling.build", reason="hatchling is not installed here")
    del build
    program = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = zipfile.ZipFile(tmp_path / result.stdout.split()[-1]).namelist()
    for path in SHIPPED:
        assert f"rlhfctl/recipes_data/{path.name}" in names
    assert "rlhfctl/recipes_data/tiny_chatgpt.py" in names
    for path in (ROOT / "recipes" / "course").iterdir():
        assert path.name == "__pycache__" or f"rlhfctl/recipes_data/course/{path.name}" in names
