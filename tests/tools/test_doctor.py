"""`doctor`: each missing or broken library is a line with a fix; only needs of the default engine make it fail."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, Cli
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.sandbox import confine
from rlhfctl.tools import doctor

GOOD = {"errors": {}, "threads": 2, "gpus": [], "mps": False, "gpu_build": None}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fake a machine on which all is well: versions, and the result of the imports. Tests change it."""
    machine: dict[str, Any] = {"versions": {**doctor.NEEDED, "trl": "1.12.0"}, "probe": dict(GOOD), "ppo": True}

    def version(name: str) -> str:
        if name not in machine["versions"]:
            raise metadata.PackageNotFoundError(name)
        return str(machine["versions"][name])

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if name in machine["versions"] else None)
    monkeypatch.setattr(doctor, "_has_ppo", lambda: machine["ppo"])
    monkeypatch.setattr(doctor, "_import_in_subprocess", lambda names: machine["probe"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return machine


def found() -> dict[str, doctor.Finding]:
    findings = doctor.examine()
    assert len({finding.name for finding in findings if finding.name != "gpu"}) + 1 >= len(findings)
    return {finding.name: finding for finding in findings}


def test_this_machine_works(cli: Cli, tmp_path: Path) -> None:
    result = cli("doctor", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["works"]
    lines = {finding["name"]: finding for finding in report["findings"]}
    for name in ("python", "torch", "transformers", "engine rlhfctl", "processor"):
        assert lines[name]["status"] == "ok", lines[name]
    assert "torch uses" in lines["processor"]["what"]  # the probe ran to its end


def test_all_is_well(here: dict[str, Any]) -> None:
    findings = found()
    assert doctor.works(list(findings.values()))
    assert findings["engine trl"].status == "ok"
    assert findings["gpu"].what.startswith("none")
    for name, fix in (("tensorboard", "rlhfctl[tensorboard]"), ("bitsandbytes", "rlhfctl[quantization]")):
        assert findings[name].status == "missing"
        assert fix in (findings[name].fix or "")
    here["versions"]["bitsandbytes"] = "0.50.2"
    assert found()["bitsandbytes"].status == "ok"


@pytest.mark.parametrize("name", sorted(doctor.NEEDED))
def test_a_missing_library_fails_and_is_named(name: str, here: dict[str, Any]) -> None:
    del here["versions"][name]
    if name == "torch":
        here["probe"] = {"errors": {}}
    findings = found()
    assert findings[name].status == "missing"
    assert findings[name].fix == f"pip install '{name}>={doctor.NEEDED[name]}'"
    assert findings["engine rlhfctl"].status == "missing"
    assert name in findings["engine rlhfctl"].what
    assert findings["engine trl"].status == "missing"
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "is not installed" in result.output


def test_an_old_or_broken_library_fails(here: dict[str, Any]) -> None:
    here["versions"]["torch"] = "2.5.1+cpu"
    here["probe"]["errors"] = {"datasets": "ImportError: no pyarrow"}
    findings = found()
    assert "2.5.1+cpu is too old: 2.6" in findings["torch"].what
    assert "ImportError: no pyarrow" in findings["datasets"].what
    assert findings["engine rlhfctl"].what == "needs torch, datasets"
    assert not doctor.works(list(findings.values()))


def test_a_newer_trl_costs_only_its_engine(here: dict[str, Any]) -> None:
    here["versions"]["trl"], here["ppo"] = "1.13.0", False
    findings = found()
    assert findings["trl"].status == findings["engine rlhfctl"].status == "ok"
    assert findings["engine trl"].status == "missing"
    assert "trl==1.12.0" in (findings["engine trl"].fix or "")
    assert doctor.works(list(findings.values()))


def test_gpus_are_named(here: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    here["probe"]["gpus"] = [{"name": "NVIDIA H100", "free": 70e9, "total": 80e9}] * 2
    lines = [finding.what for finding in doctor.examine() if finding.name == "gpu"]
    assert lines == ["NVIDIA H100, 80 GB, 70 GB of it free"] * 2
    here["probe"]["gpus"] = []
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert found()["gpu"].status == "warn"
    assert "built without CUDA" in found()["gpu"].what


def test_little_room_is_a_warning(here: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1e9))
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (8_000_000_000, 1_000_000_000))
    findings = {finding.name: finding for finding in doctor.examine(tmp_path / "not" / "there")}
    assert findings["disk"].status == findings["memory"].status == "warn"
    assert findings["memory"].what == "8.0 GB, 1.0 GB of it available"
    assert doctor.works(list(findings.values()))
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (None, None))
    assert found()["memory"].status == "warn"


def test_a_library_that_ends_the_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fine.py").write_text("print('hello')\n")
    (tmp_path / "broken.py").write_text("raise ImportError('one\\ntwo')\n")
    (tmp_path / "killer.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probe = doctor._import_in_subprocess(["fine", "broken", "killer"])
    assert probe == {"errors": {"broken": "ImportError: one", "killer": "the process ended with 3"}}


def test_a_library_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 2)
    assert doctor._import_in_subprocess(["slow"]) == {"errors": {"slow": "not done after 2 seconds"}}


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [("2.10", "2.9", False), ("2.6", "2.6.0", False), ("2.13.0+cpu", "2.6", False), ("1.11.9", "1.12", True)],
)
def test_versions_are_compared_as_numbers(version: str, least: str, older: bool) -> None:
    assert doctor._older(version, least) is older


def test_the_limits_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = dict(re.fullmatch(r"([\w.-]+)>=([\d.]+)", text).groups() for text in project["dependencies"])  # type: ignore[union-attr]
    assert {name: stated[name] for name in doctor.NEEDED} == doctor.NEEDED
    assert stated.keys() - doctor.NEEDED.keys() == {
        "jinja2",
        "pydantic",
        "rich",
        "ruamel.yaml",
        "typer",
    }  # it runs by these
    for name, (extra, _) in doctor.EXTRAS.items():
        assert any(text.startswith(name) for text in project["optional-dependencies"][extra])


def test_the_trl_that_is_tested_has_a_ppo_trainer() -> None:
    assert doctor._has_ppo() is not None


def test_a_sandbox_is_named_or_missed_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "has_seccomp", lambda: False)
    missing = doctor._sandbox()
    assert missing.status == "warn" and "no reward.unit_tests" in missing.what
    assert missing.fix is not None and "bubblewrap" in missing.fix and not missing.needed


def test_a_sandbox_that_works_is_named(confining: None) -> None:
    found = doctor._sandbox()
    assert found.status == "ok" and found.what.startswith(("landlock", "bubblewrap"))
