"""The responses that compare judges: from models and from files of samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from comparisons import invoke, jsonl, report_of

from rlhfctl.artifacts import load_artifact
from rlhfctl.stages.answers import interpolated
from rlhfctl.world import reviews


def test_prompts_and_samples_that_do_not_pair_up_are_told(tiny_recipe: Path, tmp_path: Path) -> None:
    prompts = [row["prompt"] for row in reviews.prompts(3, 1)]
    a = jsonl(tmp_path / "a.jsonl", [{"prompt": p, "response": "good"} for p in [prompts[0], prompts[0], prompts[1]]])
    b = jsonl(tmp_path / "b.jsonl", [{"prompt": p, "response": "bad"} for p in [prompts[0], prompts[1], prompts[2]]])
    run = tmp_path / "run"
    common = ("--set", "compare.judges=[gold]", "--run-dir", run)
    result = invoke("compare", tiny_recipe, "--policy-samples", a, "--reference-samples", b, *common)
    assert result.exit_code == 0, result.output
    report = report_of(run)
    assert (report["prompts"], report["samples_per_prompt"]) == (2, 1)
    notes = " ".join(load_artifact(run / "compare").manifest.notes)
    assert "1 prompts stand in one file only" in notes
    assert "1 prompts have another number of samples" in notes
    rows = [json.loads(line) for line in (run / "compare" / "samples.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(prompts[0], 0), (prompts[1], 0)]
    strange = jsonl(tmp_path / "c.jsonl", [{"prompt": "another", "response": "x"}])
    failed = invoke("compare", tiny_recipe, "--policy-samples", a, "--reference-samples", strange, *common)
    assert "share no prompt" in str(failed.exception)
    broken = jsonl(tmp_path / "d.jsonl", [{"prompt": "another"}])
    failed = invoke("compare", tiny_recipe, "--policy-samples", a, "--reference-samples", broken, *common)
    assert "needs prompt and response" in str(failed.exception) and "d.jsonl:1" in str(failed.exception)
    failed = invoke("compare", tiny_recipe, "--policy-samples", a)
    assert "go together" in str(failed.exception)


def test_the_same_command_gives_the_same_samples(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    result = invoke("compare", tiny_run.parent / "tiny.yaml", "--run-dir", run, "--force")
    assert result.exit_code == 0, result.output
    assert (run / "compare" / "samples.jsonl").read_text() == (tiny_run / "compare" / "samples.jsonl").read_text()
    assert report_of(run) == report_of(tiny_run)


def test_a_prompt_that_one_side_has_no_room_for_is_left_out_for_both(tiny_run: Path, tmp_path: Path) -> None:
    """The reference's context is shorter than the policy's."""
    import torch

    from rlhfctl.models import build, tokenizing
    from rlhfctl.recipe.schema import Init

    tokenizer = tokenizing.load_tokenizer(str(tiny_run / "sft" / "model"))
    lengths = sorted(len(tokenizer(row["prompt"])["input_ids"]) for row in reviews.prompts(60, 0))
    context = lengths[len(lengths) // 2] + 12  # half of the prompts fit beside 12 tokens
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=context)
    build.save_model(build.build_model(init, tokenizer, seed=0, dtype=torch.float32), tokenizer, tmp_path / "short")
    run = tmp_path / "run"
    result = invoke(
        "compare", tiny_run.parent / "tiny.yaml", "--policy", tiny_run / "sft", "--reference", tmp_path / "short",
        "--run-dir", run, "--set", "compare.judges=[gold]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    notes = load_artifact(run / "compare").manifest.notes
    kept = report_of(run)["prompts"]
    assert 0 < kept < 12
    assert any(f"{12 - kept} of 12 test prompts leave no room for 12 tokens" in note for note in notes)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0.5, 0.3), (1.0, 0.6), (1.5, 0.8), (2.0, 1.0), (3.0, 1.4), (0.0, 0.0)],
)
def test_the_temperature_of_an_entropy_lies_on_straight_lines(wanted: float, expected: float) -> None:
    assert interpolated(wanted, {0.0: 0.0, 1.0: 2.0, 0.6: 1.0}) == pytest.approx(expected)
