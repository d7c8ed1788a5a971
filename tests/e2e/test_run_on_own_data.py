"""Data as people have them, through whole stages: public preference files, ranked lists, margins, tables."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def transcript(number: int, answer: str) -> str:
    return f"\n\nHuman: Tell me about number {number}.\n\nAssistant: Why?\n\nHuman: Please.\n\nAssistant: {answer}"


def helpful_harmless(path: Path, rows: int = 24) -> None:
    """A file as public preference sets ship them: whole transcripts, and a few rows that cannot be used."""
    pairs = [
        {"chosen": transcript(n, f"It is {n}, a fine one."), "rejected": transcript(n, f"It is {n}, go away.")}
        for n in range(rows)
    ]
    pairs.append({"chosen": transcript(1, "same"), "rejected": transcript(1, "same")})
    path.write_bytes(gzip.compress("".join(json.dumps(pair) + "\n" for pair in pairs).encode()))


def manifest(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("turns", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_public_preference_file_trains_a_reward_model_with_two_lines(
    turns: bool, tiny_run: Path, tmp_path: Path, here: Cli
) -> None:
    helpful_harmless(tmp_path / "hh.jsonl.gz")
    (tmp_path / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")
    model = f"{{path: {tiny_run / 'sft' / 'model'}{', chat_template: chat.jinja' if turns else ''}}}"
    (tmp_path / "own.yaml").write_text(
        f"name: own\nmodel: {model}\nlora: {{r: 4}}\n"
        f"data: {{preferences: {{source: hh.jsonl.gz, bad_rows: drop{', turns: {}' if turns else ''}}}}}\n"
        "reward: {trainer: {num_train_epochs: 1, per_device_train_batch_size: 8}}\n",
        encoding="utf-8",
    )
    run = tmp_path / "run"
    done = here("run", tmp_path / "own.yaml", "--run-dir", run)
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "1 of 25 rows cannot be used and are dropped" in said and "chosen and rejected" in said
    assert manifest(run, "reward")["metrics"]["steps"] == 3  # 20 pairs (15% of 24 prompts held out) in batches of 8


@pytest.mark.slow
def test_margins_and_ranked_lists_reach_the_trainer(tiny_run: Path, tmp_path: Path, here: Cli) -> None:
    rows = [{"prompt": f"number {n}: ", "responses": ["a good one", "fine", "bad"], "margin": 1.5} for n in range(8)]
    (tmp_path / "ranked.json").write_text(json.dumps(rows), encoding="utf-8")
    losses = []
    for name, margin in (("with", 1.5), ("without", 0.0)):
        for row in rows:
            row["margin"] = margin
        (tmp_path / "ranked.json").write_text(json.dumps(rows), encoding="utf-8")
        (tmp_path / "own.yaml").write_text(
            f"name: own\nmodel: {{path: {tiny_run / 'sft' / 'model'}}}\nlora: {{r: 4}}\n"
            "data: {preferences: {source: ranked.json, heldout: 0.25}}\n"
            "reward: {trainer: {num_train_epochs: 1, per_device_train_batch_size: 18, logging_steps: 1}}\n",
            encoding="utf-8",
        )
        run = tmp_path / name
        done = here("run", tmp_path / "own.yaml", "--run-dir", run)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "24 pairs of 8 rows" in " ".join((done.stdout + done.stderr).split())
        losses.append(manifest(run, "reward")["metrics"]["loss"])
    # One step: -log sigmoid(difference - 1.5) against -log sigmoid(difference), at the same weights.
    assert losses[0] > losses[1] + 0.5
