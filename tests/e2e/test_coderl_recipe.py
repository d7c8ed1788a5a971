"""A tiny variant of recipes/coderl.yaml: programs run in the sandbox, from sft to critic sampling in compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli

PAGE = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
PROGRAMS = PAGE.partition("## Programs in compare.json")[2].partition("## prompts.json")[0]
TINY = f"""\
extends: {ROOT / "recipes" / "coderl.yaml"}
name: tiny-coderl
model:
  init: {{hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 340}}
data:
  demonstrations: {{rows: 800}}
  prompts: {{rows: 80, eval: 8, test: 12}}
sft:
  trainer: {{num_train_epochs: 2, learning_rate: 1e-2, warmup_steps: 2}}
ppo:
  outcome_critic: {{samples: 64, epochs: 1, batch_size: 16}}
  total_episodes: 48
  per_device_train_batch_size: 16
  eval: {{every: 1}}
compare: {{samples_per_prompt: 2, controls: none, bootstrap_samples: 200, critic_sampling: {{samples: 4}}}}
"""


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.ci
def test_a_tiny_coderl_runs_and_goes_on(confining: None, here: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    result = here("run", "tiny.yaml", "--run-dir", "run")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"

    manifest = json.loads((run / "ppo" / "manifest.json").read_text())
    assert not (run / "ppo" / "critic").exists() and (run / "ppo" / "outcome-critic" / "config.json").is_file()
    shares = [manifest["metrics"][f"outcome/{name}"] for name in ("compile_error", "runtime_error", "failed", "passed")]
    assert sum(shares) == pytest.approx(1.0)
    assert 0 <= manifest["metrics"]["outcome_critic_accuracy"] <= 1
    metrics = [one["values"] for one in events(run) if one["event"] == "metrics" and one["stage"] == "ppo"]
    train, evaluated = [one for one in metrics if "score" in one], [one for one in metrics if "eval_score" in one]
    assert len(train) == 3 and all({"greedy_score", "belief"} <= one.keys() for one in train)
    assert all("eval_outcome/passed" in one for one in evaluated) and "value_loss" not in train[0]

    report = json.loads((run / "compare" / "compare.json").read_text())
    rates = {side: report[f"passed_{side}"] for side in ("policy", "reference")}
    assert rates["policy"] == pytest.approx(report["judges"]["passes"]["policy_mean"])
    assert report["judges"]["passes"]["independent"] is False
    rows = [json.loads(line) for line in (run / "compare" / "samples.jsonl").read_text().splitlines()]
    scores = {"compile_error": -1.0, "runtime_error": -0.6, "failed": -0.3, "passed": 1.0}
    for row in rows:
        for side in ("policy", "reference"):
            assert row[f"{side}_scores"]["unit_tests"] == scores[row[f"{side}_outcome"]]
    sampling = report["critic_sampling"]
    assert (sampling["samples"], sampling["prompts"]) == (4, 12)
    for name in ("any", "chosen", "mean", "distinct"):
        delta = sampling["critic"][name] - sampling["plain"][name]
        assert sampling["difference"][name]["delta"] == pytest.approx(delta)
    fields = set(re.findall(r"^\| `(\w+)[.\w]*` \|", PROGRAMS, re.MULTILINE))
    assert fields == {*(f"{name}_{side}" for name in scores for side in ("policy", "reference")), "critic_sampling"}
    assert fields <= report.keys()
    assert "critic sampling, 4 programs per prompt" in result.stdout + result.stderr

    assert "programs that pass all tests" in (run / "report.html").read_text(encoding="utf-8")
    again = here("run", "tiny.yaml", "--run-dir", "run")
    assert again.returncode == 0 and again.stdout.count("unchanged") >= 2, again.stdout
