"""The model card of each export: metadata that huggingface_hub reads back, and a page that hides nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from stages_of_a_run import publish, recipe_at

from rlhfctl.artifacts import Artifact, Source, load_artifact
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools.card_facts import Facts, collect
from rlhfctl.tools.model_card import page

SNIPPET = "from transformers import AutoTokenizer\n"


def written(run: Path, stage: str, *, adapter: bool = False) -> str:
    recipe, paths = load_recipe(run / "recipe.yaml").recipe, RunPaths(run)
    artifact = load_artifact(run / ("ppo" if stage == "critic" else stage))
    return page(collect(stage, artifact, recipe, paths), adapter=adapter, snippet=SNIPPET)


def data_of(text: str) -> Any:
    return ModelCard(text).data


@pytest.mark.parametrize(
    ("stage", "adapter", "task", "tags"),
    [
        ("sft", False, "text-generation", ["rlhfctl", "rlhf", "sft"]),
        ("reward", False, "text-classification", ["rlhfctl", "rlhf", "reward-model"]),
        ("reward", True, "text-classification", ["rlhfctl", "rlhf", "reward-model", "lora"]),
        ("ppo", False, "text-generation", ["rlhfctl", "rlhf", "ppo"]),
        ("ppo", True, "text-generation", ["rlhfctl", "rlhf", "ppo", "lora"]),
        ("critic", False, "text-classification", ["rlhfctl", "rlhf", "value-model"]),
    ],
)
def test_the_metadata_is_read_back(tiny_run: Path, stage: str, adapter: bool, task: str, tags: list[str]) -> None:
    text = written(tiny_run, stage, adapter=adapter)
    data = data_of(text)
    assert (data.library_name, data.pipeline_tag, data.tags) == ("peft" if adapter else "transformers", task, tags)
    assert data.license is None and data.base_model is None and data.datasets is None
    assert text == written(tiny_run, stage, adapter=adapter)  # the same run, the same page
    assert str(tiny_run.parent) not in text and not re.search(r"(^|[\s`('\"=])(~?/[\w.]+/)", text, re.MULTILINE)
    made = load_artifact(tiny_run / ("ppo" if stage == "critic" else stage))
    assert f"# tiny: {stage}\n" in text and made.fingerprint in text
    assert SNIPPET in text.partition("```python\n")[2]
    for heading in ("Data", "Lineage", "Settings", "Limits", "Use"):
        assert f"\n## {heading}\n" in text
    for table in tables(text):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def tables(text: str) -> list[list[str]]:
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]


def report_of(run: Path) -> Any:
    return json.loads((run / "compare" / "compare.json").read_text(encoding="utf-8"))


def test_the_win_rates_are_those_of_the_verdict(tiny_run: Path) -> None:
    report, text = report_of(tiny_run), written(tiny_run, "ppo")
    results = data_of(text).eval_results
    assert [result.metric_args["judge"] for result in results] == ["gold", "reward_model"]
    for result in results:
        values = report["judges"][result.metric_args["judge"]]
        assert (result.metric_type, result.metric_value) == ("win_rate", values["win_rate"])
        assert result.metric_args["interval_95"] == values["win_rate_ci95"]
        assert result.metric_args["independent"] is values["independent"]
        assert (result.metric_args["prompts"], result.dataset_split) == (12, "test")
        assert "builtin:reviews" in result.dataset_name and result.task_type == "text-generation"
    assert f"**{report['sentence']}**" in text
    rows = {line.split(" | ")[0].strip("| "): line for table in tables(text) for line in table}
    for row in report["controls"]:
        fair = row["kind"] in ("equal_temperature", "matched_entropy")
        assert rows[row["name"]].endswith(f" | {row['judges']['gold']['verdict']} | {'yes' if fair else 'no'} |")
    assert rows["`gold`"].endswith("| yes |") and rows["`reward_model`"].endswith("| no |")


def test_a_reward_models_accuracy_is_that_on_held_out_pairs(tiny_run: Path) -> None:
    metrics = load_artifact(tiny_run / "reward").manifest.metrics
    text = written(tiny_run, "reward")
    (result,) = data_of(text).eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", metrics["heldout_accuracy"])
    assert result.metric_args["interval_95"] == [metrics["heldout_accuracy_low"], metrics["heldout_accuracy_high"]]
    assert "- Accuracy on held-out pairs: 44% (95% interval 23% to 67%)." in text
    assert "Verdict" not in text and data_of(written(tiny_run, "sft")).eval_results is None


# ---------------------------------------------------------------- runs made up on disk


Make = Callable[..., Facts]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a run with a policy; `report` is the content of its compare.json, None without a comparison."""

    def facts(*changes: str, report: Any = None, notes: list[str] | None = None) -> Facts:
        run = tmp_path / "run"
        sft = publish(run / "sft", inputs={"model": "m" * 64}, section={"trainer": {"hub_token": "hf_secret"}})
        parents = {"base": Source.of(sft)}
        inputs = {"data.prompts": "q" * 64}
        policy = publish(run / "ppo", parents=parents, text="policy", notes=notes or [], inputs=inputs)
        if report is not None:
            (run / "compare").mkdir()
            (run / "compare" / "compare.json").write_text(json.dumps(report))
            publish(run / "compare", parents={"policy": Source.of(policy)}, layout={"compare": "compare.json"})
        judged = "compare={judges: [reward_model], primary_judge: reward_model}"
        return collect("ppo", policy, recipe_at(tmp_path, *changes, judged).recipe, RunPaths(run))

    return facts


def text_of(facts: Facts, **options: Any) -> str:
    return page(facts, **{"adapter": False, "snippet": SNIPPET} | options)


REPORT = {
    "verdict": "better", "sentence": "better: it is", "primary_judge": "reward_model", "independent": False,
    "prompts": 40, "temperature": None, "kl_mean": None, "controls": [],
    "judges": {"reward_model": {
        "win_rate": 0.75, "win_rate_ci95": [0.6, 0.9], "delta": 0.5, "delta_ci95": [0.25, 0.75], "p_value": 0.001,
        "independent": False, "verdict": "better",
    }},
}  # fmt: skip


def limits(text: str) -> list[str]:
    return text.split("\n## Limits\n\n")[1].split("\n\n")[0].splitlines()


def test_what_was_not_checked_and_what_a_verdict_lacks_is_said(make: Make) -> None:
    said = limits(text_of(make(report=REPORT, notes=["warning: weights are bfloat16", "/data/x/base has no manifest"])))
    for part in (
        "`reward_model`, is what PPO was trained against", "No controls were run", "rests on 40 test prompts.",
        "Safety", "One run with one seed (0)", "No license", "ppo: warning: weights are bfloat16",
        "ppo: base has no manifest",
    ):  # fmt: skip
        assert any(part in line for line in said), part


def test_without_a_comparison_nothing_is_claimed(make: Make) -> None:
    text = text_of(make())
    assert "nothing here shows that it is better" in text
    assert data_of(text).eval_results is None


def test_ids_on_the_hub_are_named_and_folders_are_not(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    given = f"data.prompts={{sources: [{{source: owner/prompts}}, {{source: {tmp_path}/mine.jsonl}}], test: 1}}"
    data = data_of(text_of(make("model={path: owner/base}", given, report=REPORT), adapter=True))
    assert (data.base_model, data.base_model_relation, data.datasets) == ("owner/base", "adapter", ["owner/prompts"])
    assert data.eval_results[0].dataset_type == "owner/prompts"
    assert data.eval_results[0].dataset_name == "owner/prompts, mine.jsonl (prompts)"


def test_a_local_base_model_is_named_by_its_folder_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "my-base").mkdir()
    (tmp_path / "my-base" / "config.json").write_text("{}")
    text = text_of(make(f"model={{path: {tmp_path / 'my-base'}}}"))
    assert "base model: `my-base` `mmmmmmmmmmmm`" in text
    assert data_of(text).base_model is None and str(tmp_path) not in text


def test_no_secret_of_the_trainer_is_written(make: Make) -> None:
    text = text_of(make())
    assert "hf_secret" not in text and "sft.trainer.hub_token=" in text


def test_the_verdict_over_seeds_stands_beside_that_of_one(make: Make) -> None:
    facts = make(report=REPORT)
    summary = {"verdict": "mixed", "sentence": "mixed: by seed", "seeds": [0, 1, 2]}
    text = text_of(replace(facts, seeds=summary))
    assert "Over 3 seeds: mixed: by seed" in text and "One run with one seed" not in text


CARD = {
    "calibration": {"ece": 0.0421}, "flags": [{"name": "length", "message": "it goes by length"}],
    "length": {"score_correlation": 0.71, "length_controlled_accuracy": 0.55},
    "optimization": {"peak": {"n": 16, "kl": 1.8351}},
}  # fmt: skip


def test_a_reward_models_card_is_told(make: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    facts = make()
    reward = publish(run / "reward", text="reward", metrics={"heldout_accuracy": 0.7})
    told: dict[bool, str] = {}
    for has_card in (False, True):
        card = CARD if has_card else None
        told[has_card] = text_of(replace(facts, stage="reward", artifact=reward, reward_card=card))
    assert "- Accuracy on held-out pairs: 70%.\n" in told[False] and "calibration" not in told[False]
    for line in (
        "- Expected calibration error: 0.0421.",
        "- Correlation of score and length: 0.71; accuracy at equal length: 55%.",
        "- Best of n: the held-out reward peaks at n = 16, 1.84 nats.", "- Flag `length`: it goes by length",
    ):  # fmt: skip
        assert f"{line}\n" in told[True]


def test_a_model_from_elsewhere_ends_the_lineage(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    outside = Source(str(tmp_path / "theirs"), "f" * 64)
    policy: Artifact = publish(tmp_path / "run" / "ppo", parents={"base": outside})
    facts = collect("ppo", policy, recipe_at(tmp_path).recipe, RunPaths(tmp_path / "run"))
    assert "  - base: `theirs` `ffffffffffff`" in text_of(facts)
