"""The metrics of a comparison: means over prompts by hand, and what a recipe with metrics leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from comparisons import invoke, jsonl, report_of

from rlhfctl.rewards.checked import Checked
from rlhfctl.rewards.episode import Episode
from rlhfctl.stages.measures import measured


def episode(score: float | None) -> Episode:
    return Episode([1], [2], "p", str(score), {"prompt": "p", "score": score})


class Given(Checked):
    """Give each row's own score."""

    def _called(self, batch: Sequence[Episode]) -> list[float | None]:
        return [one.row["score"] for one in batch]


def test_a_prompt_counts_once_and_rows_without_a_value_not_at_all() -> None:
    policy = [[episode(1.0), episode(3.0)], [episode(4.0), episode(None)], [episode(None), episode(None)]]
    reference = [[episode(0.0), episode(1.0)], [episode(2.0), episode(2.0)], [episode(9.0), episode(9.0)]]
    sides = {"policy": policy, "reference": reference}
    entry = measured({"m:given": Given("m:given")}, sides, seed=0, samples=100)["m:given"]
    assert (entry["prompts"], entry["policy_mean"], entry["reference_mean"], entry["delta"]) == (2, 3.0, 1.25, 1.75)
    assert entry["delta_ci95"][0] <= 1.75 <= entry["delta_ci95"][1]
    nothing = {"policy": policy[2:], "reference": reference[2:]}
    assert measured({"m:given": Given("m:given")}, nothing, seed=0, samples=100) == {"m:given": {"prompts": 0}}


def test_a_recipe_with_metrics_reports_them_of_both_sides(tiny_recipe: Path, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(6)]
    sides = {
        name: jsonl(
            tmp_path / f"{name}.jsonl",
            [{"prompt": prompt, "response": response, "reference": "a b c d"} for prompt in prompts],
        )
        for name, response in (("policy", "a b c d"), ("reference", "a a a"))
    }
    run = tmp_path / "run"
    result = invoke(
        "compare", tiny_recipe, "--policy-samples", sides["policy"], "--reference-samples", sides["reference"],
        "--run-dir", run, "--set", "compare.judges=[length]", "--set", "compare.metrics=[bleu, distinct1, length]",
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    metrics = report_of(run)["metrics"]
    assert list(metrics) == ["bleu", "distinct1", "length"]
    assert metrics["bleu"] == {
        "prompts": 6, "policy_mean": 1.0, "policy_ci95": [1.0, 1.0], "reference_mean": 0.0,
        "reference_ci95": [0.0, 0.0], "delta": 1.0, "delta_ci95": [1.0, 1.0],
    }  # fmt: skip
    assert metrics["distinct1"]["reference_mean"] == pytest.approx(1 / 3)
    assert (metrics["length"]["policy_mean"], metrics["length"]["reference_mean"]) == (4.0, 3.0)
    assert "metrics, policy against reference: bleu 1 against 0" in " ".join(result.output.split())


def test_the_corpus_score_of_sacrebleu_stands_beside_the_mean() -> None:
    pytest.importorskip("sacrebleu", reason="the extra `metrics` is not installed")
    from rlhfctl.rewards.metric import build_metric

    rows = [("a b c d e f", "a b c d e f"), ("x", "y z")]
    sides = {"policy": [[Episode([1], [2], "p", text, {"reference": reference})] for text, reference in rows]}
    sides["reference"] = sides["policy"]
    scorer = build_metric("sacrebleu", Path(), 8, print)
    entry = measured({"sacrebleu": scorer}, sides, seed=0, samples=100)["sacrebleu"]
    assert entry["policy_mean"] == pytest.approx(0.5, abs=0.01)  # 1 and nearly 0
    assert entry["policy_corpus"] == entry["reference_corpus"] > 0.6
