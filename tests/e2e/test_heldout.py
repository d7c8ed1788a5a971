"""A held-out reward model in a run: it is trained on other prompts, watches PPO, chooses its policy, and judges.

One run of the tiny recipe with `reward.heldout: true` is shared; it begins from the sft stage of the finished tiny run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, run_here
from safetensors.torch import load_file

from rlhfctl.artifacts import Source, load_artifact
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.models import scoring, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages.loader import Loader

ON = ("reward.heldout=true", "ppo.use=best", "compare.judges=[gold, reward_model, heldout]", "compare.controls=none")
TIMES = {"rollout_s", "score_s", "update_s", "episodes_per_s"}


def carry_out(folder: Path, *arguments: str, settings: tuple[str, ...]) -> Any:
    sets = [part for one in settings for part in ("--set", one)]
    return run_here(*arguments, "--run-dir", folder / "run", *sets, cwd=folder)


@pytest.fixture(scope="module")
def watched(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heldout")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "run").mkdir()
    shutil.copytree(tiny_run / "sft", folder / "run" / "sft")
    result = carry_out(folder, "run", "tiny.yaml", settings=ON)
    assert result.returncode == 0, result.stderr
    return folder


def events(folder: Path, event: str, stage: str, split: str = "") -> list[dict[str, Any]]:
    found = [one for one in read_events(folder / "run" / "events.jsonl") if one["event"] == event]
    return [one for one in found if one["stage"] == stage and (not split or one["split"] == split)]


def test_both_reward_models_are_trained_on_half_of_the_prompts(watched: Path) -> None:
    pairs = {stage: events(watched, "started", stage)[0]["settings"] for stage in ("reward", "heldout")}
    assert [pairs[stage]["pairs"] for stage in pairs] == [24, 24]  # 48 of 64 are not held out
    assert pairs["reward"]["heldout_pairs"] == pairs["heldout"]["heldout_pairs"] == 16
    artifacts = [load_artifact(watched / "run" / stage) for stage in pairs]
    own, other = (load_file(made.part("adapter") / "adapter_model.safetensors") for made in artifacts)
    head = next(name for name in own if name.endswith("score.weight"))
    assert not own[head].equal(other[head])
    rows = [json.loads(made.part("probes").read_text())["rows"] for made in artifacts]
    assert rows[0] == rows[1]  # measured on the same held-out pairs


def test_ppo_reports_it_and_uses_the_policy_that_it_prefers(watched: Path) -> None:
    evaluations = {one["step"]: one["values"] for one in events(watched, "metrics", "ppo", "eval")}
    heldout = {step: values["eval_heldout"] for step, values in evaluations.items()}
    assert len(set(heldout.values())) == 3 and all(values["eval_heldout_se"] > 0 for values in evaluations.values())
    made = load_artifact(watched / "run" / "ppo")
    assert made.manifest.parents["heldout"].path == "heldout"
    best = max(heldout, key=heldout.__getitem__)
    assert made.manifest.metrics["best_update"] == best
    assert made.manifest.metrics["eval_heldout"] == heldout[best]
    assert any("held-out reward" in note for note in made.manifest.notes)


def test_the_two_are_so_different_that_the_handover_notices_a_mix_up(watched: Path) -> None:
    """PPO scores the rows of heldout/probes.json before it begins, and refuses other scores than the recorded ones."""
    loader = Loader.of(load_recipe(watched / "run" / "recipe.yaml").recipe, note=[].append, warn=pytest.fail)
    tokenizer = tokenizing.load_tokenizer(str(watched / "run" / "sft" / "model"))
    scorers = {
        stage: loader.load_reward_model(Source.of(load_artifact(watched / "run" / stage)), tokenizer)
        for stage in ("reward", "heldout")
    }
    probes = json.loads((watched / "run" / "heldout" / "probes.json").read_text())
    own, other = (scoring.score_rows(scorers[stage], probes["rows"], tokenizer.pad_token_id) for stage in scorers)
    assert other == pytest.approx(probes["scores"], abs=1e-4)
    assert own != pytest.approx(probes["scores"], abs=1e-2)
    sample = events(watched, "sample", "ppo")[0]["scores"]
    assert sample["heldout"] != pytest.approx(sample["score"], abs=1e-3)


def test_it_judges_as_one_that_ppo_did_not_train_on(watched: Path) -> None:
    judges = json.loads((watched / "run" / "compare" / "compare.json").read_text())["judges"]
    assert (judges["heldout"]["independent"], judges["reward_model"]["independent"]) == (True, False)
    assert judges["heldout"]["policy_mean"] != judges["reward_model"]["policy_mean"]


def test_it_changes_nothing_of_training(watched: Path, tmp_path: Path) -> None:
    shutil.copytree(watched, tmp_path, dirs_exist_ok=True)
    result = carry_out(tmp_path, "ppo", "tiny.yaml", settings=("reward.heldout=true", "ppo.eval.every=0"))
    assert result.returncode == 0, result.stderr
    assert "heldout" not in load_artifact(tmp_path / "run" / "ppo").manifest.parents
    trained = events(tmp_path, "metrics", "ppo", "train")
    assert len(trained) == 4
    values = [{name: value for name, value in one["values"].items() if name not in TIMES} for one in trained]
    assert values[:2] == values[2:]


def test_one_that_was_altered_is_refused_before_ppo_begins(watched: Path, tmp_path: Path) -> None:
    shutil.copytree(watched, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "run" / "heldout" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    result = carry_out(tmp_path, "ppo", "tiny.yaml", "--force", settings=ON)
    assert result.returncode == 3 and "heldout" in result.stderr and "Traceback" not in result.stderr
    shutil.rmtree(tmp_path / "run" / "heldout")
    result = carry_out(tmp_path, "ppo", "tiny.yaml", "--force", settings=ON)
    assert result.returncode == 3 and "--until heldout" in result.stderr


def test_it_is_shown_and_exported_as_a_reward_model_is(watched: Path, tmp_path: Path) -> None:
    shown = run_here("show", watched / "run", cwd=tmp_path)
    assert "heldout  complete" in shown.stdout and "heldout: heldout" in shown.stdout
    done = run_here("export", watched / "run", "--stage", "heldout", "--to", tmp_path / "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "It prints" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.ci
def test_trls_engine_reports_it_too(watched: Path, tmp_path: Path) -> None:
    shutil.copytree(watched, tmp_path, dirs_exist_ok=True)
    result = carry_out(tmp_path, "ppo", "tiny.yaml", settings=(*ON[:2], "ppo.engine=trl"))
    assert result.returncode == 0, result.stderr
    ours, theirs = (one["values"]["eval_heldout"] for one in events(tmp_path, "metrics", "ppo", "eval")[:6:3])
    assert theirs == pytest.approx(ours, abs=1e-4)  # before the first update both sample the same responses
    made = load_artifact(tmp_path / "run" / "ppo").manifest
    assert "eval_heldout" in made.metrics and "best_update" in made.metrics
