"""What was measured of a policy is read back by prompt, and measured again only where a model has changed.

test_reproduce_algorithms.py measures real policies.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhfctl.artifacts import Manifest
from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.reproduce.policies import MEASURED, Answers, Policy, measure_all, read_answers

ANSWERS = {"gold": [[1.0, 2.0]], "score": [[3.0, 4.0]], "kl": [[5.0, 6.0]]}


def stage(folder: Path, fingerprint: str) -> None:
    made = Manifest(
        stage=folder.name,
        inputs={},
        parents={},
        outputs={},
        fingerprint=fingerprint,
        section={},
        layout={},
        seed=0,
        seconds=1.0,
        metrics={},
        versions={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(made.model_dump_json())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A seed whose reference and policy have been measured, with two answers to each prompt."""
    stage(tmp_path / "base" / "sft", "b")
    stage(tmp_path / "reward" / "reward", "r")
    stage(tmp_path / "ppo" / "ppo", "p")
    for run, of in (("base", ["b", "r", "2"]), ("ppo", ["b", "r", "p", "2"])):
        (tmp_path / run / MEASURED).write_text(json.dumps({"of": of, "answers": ANSWERS}))
    return tmp_path


def measure(folder: Path, answers: int = 2) -> None:
    reward = folder / "reward" / "reward"
    measure_all(folder / "base", reward, [Policy("ppo", "ppo")], answers, lambda event: None, lambda sentence: None)


def test_answers_are_read_back(folder: Path) -> None:
    assert read_answers(folder / "ppo") == Answers(**ANSWERS)


def test_what_is_measured_is_not_measured_again(folder: Path) -> None:
    before = (folder / "ppo" / MEASURED).stat().st_mtime_ns
    measure(folder)
    assert (folder / "ppo" / MEASURED).stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", ["base/sft", "reward/reward", "ppo/ppo"])
def test_another_model_is_measured_anew(changed: str, folder: Path) -> None:
    """There are no weights here, so measuring ends with an error; it is not skipped."""
    stage(folder / changed, "another")
    with pytest.raises(RlhfctlError):
        measure(folder)


def test_another_number_of_answers_is_measured_anew(folder: Path) -> None:
    with pytest.raises(RlhfctlError):
        measure(folder, answers=3)
