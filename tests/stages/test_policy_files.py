"""A policy is saved with the outputs that later loads compute again."""

from __future__ import annotations

import json
from pathlib import Path

from rlhfctl.artifacts import load_artifact


def test_a_published_policy_has_its_weights_and_its_recorded_outputs(tiny_run: Path) -> None:
    made = load_artifact(tiny_run / "ppo")
    assert made.has("adapter") and (made.part("adapter") / "tokenizer_config.json").is_file()
    config = json.loads((made.part("adapter") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../sft/model"  # stays valid after the run is moved
    recorded = json.loads(made.part("probes").read_text())
    assert len(recorded["rows"]) == len(recorded["logprobs"]) > 1
    assert all(len(row) == len(values) + 1 for row, values in zip(recorded["rows"], recorded["logprobs"], strict=True))
