"""`validate`, `plan`, `data`, `doctor` as commands: their exit codes, and faults reported before libraries load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.errors import RecipeError
from rlhfctl.tools import doctor
from rlhfctl.tools.doctor import Finding


def test_validate_names_the_stages_and_what_it_leaves_out(tiny_recipe: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(tiny_recipe)])
    assert result.exit_code == 0
    assert f"{tiny_recipe}: valid (stages: sft, reward, ppo, compare)" in result.output
    assert "not checked here" in result.output


@pytest.mark.parametrize("command", ["validate", "plan", "data"])
def test_a_wrong_key_is_an_error_of_the_recipe(command: str, tiny_recipe: Path) -> None:
    result = CliRunner().invoke(app, [command, str(tiny_recipe), "--set", "ppo.kl_coeff=1"])
    assert isinstance(result.exception, RecipeError) and "did you mean 'kl_coef'" in str(result.exception)


def test_a_mistake_is_reported_without_loading_torch(tiny_recipe: Path) -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom rlhfctl.cli import app\n"
        f"result = CliRunner().invoke(app, ['plan', {str(tiny_recipe)!r}, '--set', 'ppo.kl_coeff=1'])\n"
        "assert 'kl_coef' in str(result.exception)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("status", "needed", "code"), [("ok", True, 0), ("missing", False, 0), ("missing", True, 1)])
def test_doctor_fails_only_where_the_default_engine_lacks_something(
    status: doctor.Status, needed: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("torch", status, "2.6", "pip install torch", needed)
    monkeypatch.setattr(doctor, "examine", lambda: [finding])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code
    assert json.loads(result.output)["works"] == (code == 0)
    assert "fix: pip install torch" in CliRunner().invoke(app, ["doctor"]).output
