"""`show`: states, metrics and notes of a run, and the lineage of its artifacts."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli
from rich.console import Console

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, Source, publish_manifest
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools import show


def shown(run: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in show.describe(run):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_show_gives_the_verdict_and_the_lineage(tiny_run: Path, cli: Cli) -> None:
    result = cli("show", tiny_run)
    assert result.returncode == 0, result.stderr
    sentence = json.loads((tiny_run / "compare" / "compare.json").read_text(encoding="utf-8"))["sentence"]
    assert sentence in " ".join(result.stdout.split())
    for word in ("lineage", "policy: ppo", "reference: sft", "data.demonstrations", "base model (new weights)"):
        assert word in result.stdout


def publish(run: Path, stage: str, **record: Any) -> Artifact:
    """Complete a stage without its training: one file and a manifest."""
    folder = run / stage
    folder.mkdir(parents=True)
    (folder / "weights").write_text(stage)
    given: dict[str, Any] = {"inputs": {}, "parents": {}, "section": {}, "layout": {}, "metrics": {}, "seed": 0}
    return publish_manifest(folder, stage=stage, seconds=65.0, **(given | record))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose sft and reward stages are complete and whose ppo stage has begun."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(TINY, encoding="utf-8")
    sft = publish(folder, "sft", inputs={"data.demonstrations": "d" * 64, "model": "m" * 64}, metrics={"loss": 2.25})
    publish(folder, "reward", parents={"base": Source.of(sft)}, notes=["no pad token: one was added"], seed=7)
    (folder / "ppo").mkdir()
    return folder


def test_each_stage_has_its_state_time_and_metrics(run: Path) -> None:
    lines = [line.split() for line in shown(run).splitlines()]
    assert lines[0] == ["tiny", "in", str(run)]
    assert ["sft", "complete", "1:05", "loss", "2.25"] in lines
    assert ["ppo", "under", "way"] in lines and ["compare", "not", "started"] in lines


def test_the_lineage_goes_back_to_data_and_model_and_names_what_differs(run: Path) -> None:
    lineage = shown(run).partition("\nlineage\n")[2]
    root, parent, *leaves = lineage.strip().splitlines()
    assert root.startswith("reward  ") and "seed 7" in root
    assert parent.startswith("└── base: sft  ") and "seed 0" in parent
    assert "torch" in root and "torch" not in parent  # the same versions are not said twice
    assert "data.demonstrations  dddddddddddd" in leaves[0]
    assert "base model (new weights)  mmmmmmmmmmmm" in leaves[1]


def test_a_parent_that_changed_or_is_gone_ends_the_lineage(run: Path) -> None:
    (run / "sft" / "manifest.json").unlink()
    (run / "sft" / "weights").write_text("other")
    publish_manifest(
        run / "sft", stage="sft", inputs={}, parents={}, section={}, layout={}, seed=0, seconds=1.0, metrics={}
    )
    assert "(changed since)" in shown(run)
    (run / "sft" / "manifest.json").unlink()
    assert "changed since" not in shown(run) and "base: sft" in shown(run)


def test_notes_name_the_stage_and_settings_that_differ_from_the_recipe(run: Path) -> None:
    section = load_recipe(run / "recipe.yaml").recipe.sft
    assert section is not None
    used = section.model_dump(mode="json") | {"checkpoint_steps": 5}
    shutil.rmtree(run / "sft")
    publish(run, "sft", section=used, inputs={"section": fs.hash_json(used)})
    notes = shown(run).partition("\nnotes\n")[2]
    assert "reward: no pad token: one was added" in notes
    assert "sft: was made with other settings than recipe.yaml states now (stated -> used): checkpoint_steps" in notes


def test_json_has_each_stage_with_its_manifest(run: Path) -> None:
    found = show.to_json(run)
    assert (found["name"], found["run"]) == ("tiny", str(run))
    assert {name: stage["state"] for name, stage in found["stages"].items()} == {
        "sft": "complete", "reward": "complete", "ppo": "under way", "compare": "not started",
    }  # fmt: skip
    assert found["stages"]["sft"]["manifest"] == json.loads((run / "sft" / "manifest.json").read_text())
    assert found["stages"]["ppo"]["manifest"] is None


def test_a_folder_that_is_no_run_names_the_runs_beside_it(run: Path) -> None:
    with pytest.raises(RlhfctlError, match=r"recipe\.yaml is missing") as caught:
        show.to_json(run.parent / "other")
    assert caught.value.fix == "runs beside it: mine"
    with pytest.raises(RlhfctlError) as caught:
        show.to_json(run.parent / "none" / "other")
    assert caught.value.fix == "start one: rlhfctl run quickstart"


def test_the_card_is_shown_and_said_to_be_old_after_another_reward_model(carded_run: Path, tmp_path: Path) -> None:
    run_copy = tmp_path / "run"
    shutil.copytree(carded_run, run_copy)
    said = " ".join(shown(run_copy).split())
    names = ", ".join(flag["name"] for flag in json.loads((run_copy / "card" / "card.json").read_text())["flags"])
    assert f"reward model's card: {names} (rlhfctl reward-eval {run_copy})" in said
    assert "accuracy 0.4" in said and "the card is of an earlier reward model" not in said
    assert "settings than recipe.yaml states" not in said  # its sizes are the command's
    manifest = json.loads((run_copy / "card" / "manifest.json").read_text())
    manifest["parents"]["reward"]["fingerprint"] = "0" * 64
    (run_copy / "card" / "manifest.json").write_text(json.dumps(manifest))
    assert "the card is of an earlier reward model" in shown(run_copy)
