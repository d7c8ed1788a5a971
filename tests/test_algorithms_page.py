"""docs/algorithms.md: its table of keys is that of the code, every algorithm is described, and its snippet counts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from conftest import ROOT, function_of_page

from rlhfctl.recipe.sections.algorithm import NAMES, USED_BY

PAGE = ROOT / "docs" / "algorithms.md"


def table() -> str:
    rows = ["| key | " + " | ".join(f"`{name}`" for name in NAMES) + " |", "| --- |" + " --- |" * len(NAMES)]
    for key, users in USED_BY.items():
        rows.append(f"| `{key}` | " + " | ".join("yes" if name in users else "" for name in NAMES) + " |")
    return "\n".join(rows).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def test_the_table_of_keys_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("RLHFCTL_WRITE_GOLDEN"):
        text = re.sub(r"^\| key \|.*?\n\n", table() + "\n", text, flags=re.MULTILINE | re.DOTALL)
        PAGE.write_text(text, encoding="utf-8")
    assert table() in text


def test_every_algorithm_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"\n**`{name}`.** " not in text] == []
    assert re.findall(r"^\*\*`(\w+)`\.\*\*", text, re.MULTILINE) == list(NAMES)


def write_run(run: Path, scores: list[float], again: dict[int, float]) -> None:
    """Write what the snippet reads of a run with batches of 8 x 2; `again` are steps that are said twice."""
    (run / "ppo").mkdir(parents=True)
    section = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    (run / "ppo" / "manifest.json").write_text(json.dumps({"section": section}))

    def line(step: int, score: float, **more: str) -> str:
        event = {"event": "metrics", "stage": "ppo", "split": "train", "step": step, "values": {"raw_score": score}}
        return json.dumps(event | more)

    lines = ['{"event": "started", "stage": "ppo"}', line(0, 1.0, split="eval"), line(3, 1.0, stage="sft")]
    lines += [line(step, score) for step, score in [*again.items(), *enumerate(scores, start=1)]]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")


def test_the_snippet_counts_the_responses_until_the_mean_reward_is_reached(tmp_path: Path) -> None:
    responses_until = function_of_page("algorithms.md", "responses_until")
    write_run(tmp_path / "run", [0.5, 1.0, 0.7, 1.0, 1.0, 0.0], again={1: 1.0, 2: 1.0})
    # Means of two updates of 16: 0.75, 0.85, 0.85, 1.0, 0.5; of four: 0.8, 0.925, 0.675. Step 1 is the later 0.5.
    assert responses_until(tmp_path / "run", goal=0.85, last=32) == 3 * 16
    assert responses_until(tmp_path / "run", last=32) == 5 * 16
    assert responses_until(tmp_path / "run", last=64) == 5 * 16
    assert responses_until(tmp_path / "run", goal=0.93, last=64) is None
    assert responses_until(tmp_path / "run") is None  # fewer than 640 responses
