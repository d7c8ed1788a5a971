"""Traces read back: which there are, settings and logged numbers, rows per token, tokens as people read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.dashboard import traces
from rlhfctl.errors import RlhfctlError


def test_stages_and_updates_in_order(tmp_path: Path) -> None:
    for name in ("seed-10/ppo", "seed-2/ppo", "ppo", "superseded/ppo", "sft"):
        (tmp_path / name / "traces").mkdir(parents=True)
    for number in (20, 3, 100):
        (tmp_path / "ppo" / "traces" / f"update-{number:06d}.jsonl").touch()
    (tmp_path / "ppo" / "traces" / "notes.txt").touch()
    assert traces.ppo_stages(tmp_path) == ["ppo", "seed-2/ppo", "seed-10/ppo"]
    assert traces.traced_updates(tmp_path, "ppo") == [3, 20, 100]
    assert traces.traced_updates(tmp_path, "seed-2/ppo") == traces.traced_updates(tmp_path, "none") == []


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "ppo" / "traces").mkdir(parents=True)
    file = tmp_path / "ppo" / "traces" / "update-000005.jsonl"
    file.write_text(json.dumps({"ids": [1]}) + "\n" + '{"ids": [1', encoding="utf-8")
    with pytest.raises(RlhfctlError, match="line 2 of the trace is no record") as caught:
        traces.read_episodes(tmp_path, "ppo", 5)
    assert str(file) in str(caught.value)


def test_settings_of_a_stage_under_way_are_those_of_its_last_start(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"event": "started", "stage": "ppo", "settings": {"lam": 0.5}},
        {"event": "started", "stage": "sft", "settings": {"lam": 0.7}},
        {"event": "started", "stage": "ppo", "settings": {"lam": 0.9}},
        {"event": "metrics", "stage": "ppo", "step": 2, "split": "train", "values": {"policy_loss": 1.0}},
        {"event": "metrics", "stage": "ppo", "step": 2, "split": "train", "values": {"policy_loss": 2.0}},
        {"event": "metrics", "stage": "ppo", "step": 2, "split": "eval", "values": {"eval_score": 3.0}},
        {"event": "metrics", "stage": "ppo", "step": 3, "split": "train", "values": {"policy_loss": 4.0}},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    assert traces.stage_settings(tmp_path, "ppo") == {"lam": 0.9}
    assert traces.logged_metrics(tmp_path, "ppo", 2) == {"policy_loss": 2.0}
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "manifest.json").write_text('{"section": {"lam": 1.0}}', encoding="utf-8")
    assert traces.stage_settings(tmp_path, "ppo") == {"lam": 1.0}
    assert traces.stage_settings(tmp_path / "none", "ppo") == {}


def test_a_row_per_token_and_one_for_the_state_after_the_end() -> None:
    epoch = {"logprobs": [-1.0], "ratio": [1.1], "clipped": [True], "values": [0.1, 0.2]}
    record = {
        "tokens": ["<|end|>"], "response": "<|end|>", "ids": [0], "policy_logprobs": [-1.0],
        "reference_logprobs": [-2.0], "kl": [1.0], "rewards": [-0.1, 3.0], "values": [1.0, 2.0], "deltas": [0.9, 1.0],
        "advantages": [0.5], "returns": [1.5, 3.0], "epochs": [epoch],
    }  # fmt: skip
    first, last = traces.token_rows(record)
    assert (first.token, first.logprob, first.kl, first.reward, first.returned) == ("<|end|>", -1.0, 1.0, -0.1, 1.5)
    assert first.epochs == (traces.EpochNumbers(logprob=-1.0, ratio=1.1, clipped=True, value=0.1),)
    assert (last.token, last.text, last.logprob, last.advantage) == (None, "", None, None)
    assert (last.position, last.reward, last.value, last.delta, last.returned) == (1, 3.0, 2.0, 1.0, 3.0)
    assert last.epochs[0].value == 0.2 and last.epochs[0].ratio is None


def test_without_a_critic_its_numbers_are_none() -> None:
    record = {
        "tokens": ["a"], "response": "a", "policy_logprobs": [-1.0], "reference_logprobs": [-1.0], "kl": [0.0],
        "rewards": [1.0], "advantages": [0.5], "epochs": [],
    }  # fmt: skip
    (row,) = traces.token_rows(record)
    assert row.value is row.delta is row.returned is None and row.advantage == 0.5


@pytest.mark.parametrize(
    ("tokens", "response", "expected"),
    [
        (["a", "b"], "ab", ["a", "b"]),
        (
            ["It", "\u0120was", "\u010a", "<|endoftext|>"],
            "It was\n<|endoftext|>",
            ["It", " was", "\n", "<|endoftext|>"],
        ),
        (["caf", "\u00c3\u00a9"], "caf\u00e9", ["caf", "\u00e9"]),
        (["\u00c3", "\u00a9"], "\u00e9", ["\\xc3", "\\xa9"]),  # a letter in two tokens: its bytes
        (["\u2581It", "\u2581was"], "It was", [" It", " was"]),
        (["\u4f60", "\u597d"], "\u4f60\u597d", ["\u4f60", "\u597d"]),
        (["x", "##y"], "xy", ["x", "##y"]),  # not to be told: as the tokenizer writes them
    ],
)
def test_tokens_are_written_as_text_where_that_can_be_told(
    tokens: list[str], response: str, expected: list[str]
) -> None:
    assert traces.readable(tokens, response) == expected
