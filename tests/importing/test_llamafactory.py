"""LLaMA-Factory's arguments: batches, episodes, adapters and data sets, with numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.importing.findings import Draft, Fields, Job, Stage
from rlhfctl.importing.llamafactory import translate


def recipe(stage: Stage, **given: Any) -> dict[str, Any]:
    draft = Draft({"name": "x"})
    translate(Fields(Job("LLaMA-Factory", stage, {"model_name_or_path": "a/b", **given}, "x.yaml"), draft))
    return draft.recipe


def test_an_update_of_ppo_has_as_many_responses() -> None:
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "ppo_buffer_size": 3}
    made = recipe("ppo", **sizes, max_samples=1000, num_train_epochs=2.0, warmup_ratio=0.1, dataset="one,two")
    ppo = made["ppo"]
    assert ppo["per_device_train_batch_size"] * ppo["gradient_accumulation_steps"] == 2 * 4 * 3
    assert ppo["num_mini_batches"] == 3 and ppo["total_episodes"] == 2 * 1000 * 2
    assert ppo["warmup_steps"] == 17  # a tenth of 4000 // 24 = 166 updates
    assert (ppo["kl_coef"], ppo["top_k"], ppo["top_p"], ppo["temperature"]) == (0.2, 50, 0.7, 0.95)  # its defaults
    assert made["data"]["prompts"]["sources"] == [{"source": one, "limit": 1000} for one in ("one", "two")]


def test_rank_decides_on_alpha() -> None:
    assert recipe("sft", lora_rank=32)["sft"]["lora"]["lora_alpha"] == 64
    assert recipe("sft", lora_rank=32, lora_alpha=8)["sft"]["lora"]["lora_alpha"] == 8
    assert "lora" not in recipe("sft", finetuning_type="full", lora_rank=32)["sft"]


@pytest.mark.parametrize(
    ("stage", "entry", "source"),
    [
        ("sft", {"file_name": "a.json"},
         {"columns": {"prompt": ["instruction", "input"], "completion": "output"}, "as_conversations": True}),
        ("sft", {"file_name": "a.json", "formatting": "sharegpt"}, {"columns": {"messages": "conversations"}}),
        ("sft", {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}, {}),
        ("ppo", {"file_name": "a.json", "columns": {"prompt": "q", "query": ""}},
         {"columns": {"prompt": "q"}, "as_conversations": True}),
        ("reward", {"file_name": "a.json", "ranking": True, "columns": {"chosen": "good"}},
         {"columns": {"prompt": ["instruction", "input"], "chosen": "good"}, "as_conversations": True}),
    ],
)  # fmt: skip
def test_columns_come_from_dataset_info(
    tmp_path: Path, stage: Stage, entry: dict[str, Any], source: dict[str, Any]
) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    made = recipe(stage, dataset="mine", dataset_dir=str(tmp_path))
    (given,) = made["data"].values() if stage != "ppo" else [made["data"]["prompts"]]
    assert given == {"source": str(tmp_path / "a.json"), **source}


def test_the_share_of_held_out_pairs_stays_beside_the_source() -> None:
    assert recipe("reward", dataset="a/b", val_size=0.2)["data"]["preferences"] == {"heldout": 0.2, "source": "a/b"}
    assert recipe("sft", dataset="a/b", val_size=0.2)["data"]["demonstrations"] == {"heldout": 0.2, "source": "a/b"}
