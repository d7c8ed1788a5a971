"""docs/extending.md is executed: each example is applied to a copy of the package, and what the page says then works.

A block whose first line is `# new file: NAME` is a new file. A `diff` block changes an existing file: the lines of each
hunk must be in it exactly once. `bash` and `python` blocks are run in order in the copy, in processes of their own. The
lines of a `text` block must be in what the commands before it printed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
QUICK = ("A metric", "A data format")  # the others train models
COPIED = ("rlhfctl", "recipes", "docs")
MOST_FILES = 2  # existing ones that an example may touch
NEW_FILE = re.compile(r"# new file: (\S+)\n")


@dataclass
class Example:
    """One chapter of the page."""

    new: dict[str, str] = field(default_factory=dict)  # file -> its text
    changes: list[tuple[str, str, str]] = field(default_factory=list)  # file, lines before, lines after
    steps: list[tuple[str, str]] = field(default_factory=list)  # language, block


def example_of(chapter: str) -> Example:
    found = Example()
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL):
        if named := NEW_FILE.match(block):
            found.new[named[1]] = block
        elif language == "diff":
            found.changes += changes_in(block)
        else:
            assert language in ("bash", "python", "text"), block
            found.steps.append((language, block))
    return found


def changes_in(diff: str) -> list[tuple[str, str, str]]:
    """The hunks of a diff of one file, as the lines that stand there and those that come in their place."""
    head, *hunks = re.split(r"^@@\n", diff, flags=re.MULTILINE)
    names = re.fullmatch(r"--- a/(\S+)\n\+\+\+ b/(\S+)\n", head)
    assert names and names[1] == names[2], head
    return [(names[1], _side(hunk, " -"), _side(hunk, " +")) for hunk in hunks]


def _side(hunk: str, kept: str) -> str:
    lines = hunk.splitlines(keepends=True)
    assert all(line[0] in " +-" for line in lines), hunk
    return "".join(line[1:] for line in lines if line[0] in kept)


def changed(text: str, before: str, after: str) -> str:
    found = [match.start() for match in re.finditer(rf"^(?={re.escape(before)})", text, re.MULTILINE)]
    assert before and len(found) == 1, f"not there exactly once:\n{before}"
    return text[: found[0]] + after + text[found[0] + len(before) :]


def apply(example: Example, folder: Path) -> None:
    for name, text in example.new.items():
        assert not (folder / name).exists(), name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name, before, after in example.changes:
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(changed(text, before, after), encoding="utf-8")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in the copy, with the copy's package before any other."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def command_of(line: str) -> list[str]:
    program, *arguments = line.split()
    return [sys.executable, *{"rlhfctl": ["-m", "rlhfctl"], "python": []}[program], *arguments]


def follow(steps: list[tuple[str, str]], folder: Path) -> None:
    printed = ""
    for language, block in steps:
        if language == "text":
            missing = [line for line in block.splitlines() if line not in printed]
            assert not missing, f"{missing} in\n{printed}"
            continue
        printed = ""
        commands = [[sys.executable, "-c", block]]
        if language == "bash":
            commands = [command_of(line) for line in block.splitlines()]
        for command in commands:
            result = run(command, folder)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
            printed += result.stdout + result.stderr


CHAPTERS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMMON = example_of(CHAPTERS["The recipe of the examples"])
EXAMPLES = {name: found for name, text in CHAPTERS.items() if (found := example_of(text)).changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the package with the files that all examples use."""
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    apply(COMMON, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.ci) for name in EXAMPLES]
)
def test_the_example_works(name: str, folder: Path) -> None:
    apply(EXAMPLES[name], folder)
    follow(EXAMPLES[name].steps, folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_touches_few_files(name: str) -> None:
    touched = {file for file, _, _ in EXAMPLES[name].changes}
    assert all((ROOT / file).is_file() for file in touched)
    assert 1 <= len(touched) <= MOST_FILES, touched
    assert EXAMPLES[name].steps


# Chapter -> what its steps fail with where the changes of existing files are not made.
REFUSED = {
    "An algorithm": "got the string .batch_mean",
    "A stage": "unknown key",
    "A reward": "there is no scorer 'full_stop'",
    "A metric": "AssertionError",
    "A data format": "demos.toml",
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.ci) for name in REFUSED]
)
def test_without_the_changes_the_example_does_not_work(name: str, folder: Path) -> None:
    apply(Example(new=EXAMPLES[name].new), folder)
    with pytest.raises(AssertionError, match=REFUSED[name]):
        follow(EXAMPLES[name].steps, folder)


def test_the_page_has_an_example_of_each_kind() -> None:
    assert list(EXAMPLES) == list(REFUSED)


def test_a_change_is_applied_only_where_its_lines_stand_exactly_once() -> None:
    ((name, before, after),) = changes_in("--- a/x.py\n+++ b/x.py\n@@\n one\n-two\n+three\n")
    assert name == "x.py" and changed("zero\none\ntwo\n", before, after) == "zero\none\nthree\n"
    for text in ("one\nother\ntwo\n", "one\ntwo\none\ntwo\n", "lone\ntwo\n"):
        with pytest.raises(AssertionError, match="exactly once"):
            changed(text, before, after)
