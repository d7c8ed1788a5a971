"""The shipped recipes by name, without a library that a shell would wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rlhfctl.recipe.shipped import shipped_recipes


def test_a_name_has_its_folder_and_no_ending(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "text").mkdir(parents=True)
    for name in ("quickstart.yaml", "text/summaries.yaml", "notes.md"):
        (tmp_path / "recipes" / name).write_text("")
    found = shipped_recipes([tmp_path / "absent", tmp_path / "recipes"])
    assert found == {
        "quickstart": tmp_path / "recipes" / "quickstart.yaml",
        "text/summaries": tmp_path / "recipes" / "text" / "summaries.yaml",
    }


def test_the_recipes_of_this_checkout_are_found() -> None:
    assert "quickstart" in shipped_recipes() and all(path.is_file() for path in shipped_recipes().values())


def test_a_shell_gets_the_names_without_any_library() -> None:
    code = "import sys, rlhfctl.recipe.shipped; print([n for n in ('pydantic', 'ruamel', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
