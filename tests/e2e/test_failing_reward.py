"""A reward function that fails while PPO runs: one message, the work kept, and on from there once it is mended."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from conftest import run_here

from rlhfctl.artifacts import load_artifact
from rlhfctl.dashboard.jsonl import read_events

RECIPE = """\
name: failing
model:
  init: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}}
data:
  prompts: {{source: prompts.jsonl, eval: 4, test: 4}}
reward: {{function: "scores:score"}}
ppo:
  lora: null
  total_episodes: 40
  per_device_train_batch_size: 8
  response_length: 4
  checkpoint_steps: 2
  eval: {{every: {every}}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny PPO of five updates on a function; which call fails is up to the test."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    prompts = [f"{'ab'[i % 2] * (1 + i // 2)}" for i in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return tmp_path


def write(project: Path, body: str, every: int = 0) -> None:
    (project / "recipe.yaml").write_text(RECIPE.format(every=every))
    (project / "scores.py").write_text(
        f"import math\ncalls = [0]\n\ndef score(prompts, completions):\n    calls[0] += 1\n{body}"
    )


def test_a_mended_function_resumes_where_the_old_one_failed(project: Path) -> None:
    write(project, "    if calls[0] >= 4: raise ConnectionError('no answer')\n    return [1.0] * len(completions)\n")
    failed = run_here("run", "recipe.yaml", cwd=project)
    assert failed.returncode == 6
    assert "Traceback" not in failed.stderr + failed.stdout
    assert "the reward function failed in" in failed.stderr and "ConnectionError: no answer" in failed.stderr
    assert "the same command again: it resumes" in failed.stderr
    again = run_here("run", "recipe.yaml", cwd=project)  # not mended: it fails again, and keeps its place
    assert again.returncode == 0 or "ConnectionError" in again.stderr
    write(project, "    return [2.0] * len(completions)\n")
    mended = run_here("run", "recipe.yaml", cwd=project)
    assert mended.returncode == 0, mended.stderr
    steps = [
        event["step"]
        for event in read_events(project / "runs/failing/events.jsonl")
        if event["event"] == "metrics" and event["stage"] == "ppo" and event["split"] == "train"
    ]
    assert steps == [1, 2, 3, 4, 5]  # no update twice, none left out
    notes = load_artifact(project / "runs/failing/ppo").manifest.notes
    assert any("the reward functions changed at update 3" in note for note in notes)
    assert "changed at update 3" in run_here("show", "runs/failing", cwd=project).stdout


def test_an_edit_without_a_failure_trains_anew(project: Path) -> None:
    write(project, "    return [1.0] * len(completions)\n")
    assert run_here("run", "recipe.yaml", cwd=project).returncode == 0
    write(project, "    return [2.0] * len(completions)\n")
    result = run_here("run", "recipe.yaml", cwd=project)
    assert "runs again: changed functions" in result.stdout
    assert "resumed_from" not in result.stdout


def test_scores_that_are_not_finite_in_an_evaluation_are_kept_and_said(project: Path) -> None:
    body = "    return [math.nan if calls[0] == 1 and i == 0 else 1.0 for i, _ in enumerate(completions)]\n"
    write(project, body, every=5)
    result = run_here("run", "recipe.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "1 of 4 eval responses have a score that is not finite" in result.stdout
    kept = (project / "runs/failing/ppo/non-finite/eval-update-000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in kept] == ["nan", 1.0, 1.0, 1.0]
    values = [event for event in read_events(project / "runs/failing/events.jsonl") if event.get("split") == "eval"]
    assert all(math.isfinite(event["values"]["eval_score"]) for event in values)


def test_an_evaluation_without_one_finite_score_is_one_message(project: Path) -> None:
    write(project, "    return [math.nan] * len(completions)\n", every=5)
    result = run_here("run", "recipe.yaml", cwd=project)
    assert result.returncode == 6
    assert "4 of 4 eval responses have a score that is not finite, kept in" in result.stderr
    assert "Traceback" not in result.stderr


def test_deep_validation_calls_the_function_once(project: Path) -> None:
    write(project, "    return [0.25] * len(completions)\n")
    assert "called once, on the first prompt: 0.25" in run_here("validate", "recipe.yaml", "--deep", cwd=project).stdout
    write(project, "    return [undefined]\n")
    result = run_here("validate", "recipe.yaml", "--deep", cwd=project)
    assert result.returncode == 6
    assert "NameError: name 'undefined' is not defined" in result.stderr and "scores.py:6" in result.stderr
