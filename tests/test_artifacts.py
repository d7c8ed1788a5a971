"""Manifests: published, loaded, verified; parents found again; what a path stands for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stages_of_a_run import publish

from rlhfctl import fs
from rlhfctl.artifacts import (
    Source,
    changed_inputs,
    find_artifact,
    load_artifact,
    read_json,
    resolve_source,
)
from rlhfctl.errors import HandoffError


def run_folder(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "recipe.yaml").write_text("name: x\n")
    return root


# ---------------------------------------------------------------- publish, load, verify


def test_what_is_published_is_loaded_and_verified(tmp_path: Path) -> None:
    made = publish(tmp_path / "sft", notes=["a note"], tokenizer="t", chat_template="c")
    loaded = load_artifact(tmp_path / "sft")
    assert loaded == made
    loaded.verify()
    manifest = loaded.manifest
    assert sorted(manifest.outputs) == ["model/config.json", "model/weights"]
    assert manifest.outputs["model/weights"] == fs.hash_bytes(b"weights")
    assert loaded.fingerprint == fs.hash_json(manifest.outputs)
    assert (manifest.stage, manifest.seed, manifest.metrics, manifest.notes) == ("sft", 0, {"loss": 0.25}, ["a note"])
    assert {"python", "torch", "trl"} <= manifest.versions.keys()
    assert find_artifact(tmp_path / "sft") == made


def test_publishing_again_gives_the_same_fingerprint_and_other_weights_another(tmp_path: Path) -> None:
    first = publish(tmp_path / "sft").fingerprint
    assert publish(tmp_path / "sft").fingerprint == first  # its own manifest is not among the outputs
    assert publish(tmp_path / "sft", text="other").fingerprint != first


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.write_text("Weights"), "the file model/weights was altered"),
        (lambda file: file.unlink(), "the file model/weights of a complete stage is gone"),
    ],
    ids=["altered", "missing"],
)
def test_an_altered_or_missing_file_is_found(tmp_path: Path, harm: Any, said: str) -> None:
    publish(tmp_path / "sft")
    harm(tmp_path / "sft" / "model" / "weights")
    with pytest.raises(HandoffError, match=said) as caught:
        load_artifact(tmp_path / "sft").verify()
    assert caught.value.exit_code == 3 and caught.value.where == str(tmp_path / "sft")
    assert caught.value.fix is not None and "--force" in caught.value.fix


def test_checkpoints_and_hidden_files_may_go(tmp_path: Path) -> None:
    publish(tmp_path / "sft")
    shutil.rmtree(tmp_path / "sft" / "work")
    (tmp_path / "sft" / ".model.partial").unlink()
    load_artifact(tmp_path / "sft").verify()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"format": 1, "sta', "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"format": 1}', "stage: Field required"),
        (b"[]", "Input should be an object"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(tmp_path: Path, text: bytes, said: str) -> None:
    publish(tmp_path / "sft")
    (tmp_path / "sft" / "manifest.json").write_bytes(text)
    with pytest.raises(HandoffError, match=f"the manifest cannot be read: {said}") as caught:
        load_artifact(tmp_path / "sft")
    assert caught.value.where == str(tmp_path / "sft" / "manifest.json")
    assert caught.value.fix == "run the stage again with --force"


def test_without_a_manifest_a_stage_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    assert find_artifact(tmp_path / "sft") is None
    with pytest.raises(HandoffError, match="is incomplete: it has no manifest") as caught:
        load_artifact(tmp_path / "sft")
    assert caught.value.fix is not None and caught.value.fix.startswith("run that stage first")
    with pytest.raises(HandoffError, match="does not exist"):
        load_artifact(tmp_path / "reward")


def test_an_unknown_key_in_a_manifest_is_refused(tmp_path: Path) -> None:
    publish(tmp_path / "sft")
    file = tmp_path / "sft" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"extra": 1}))
    with pytest.raises(HandoffError, match="extra"):
        load_artifact(tmp_path / "sft")


def test_a_metric_that_is_no_number_does_not_cost_the_stage(tmp_path: Path) -> None:
    metrics = {"loss": float("nan"), "kl": float("inf"), "score": 1}
    publish(tmp_path / "ppo", metrics=metrics, notes=["first"])
    manifest = load_artifact(tmp_path / "ppo").manifest
    assert manifest.metrics == {"score": 1.0}
    assert manifest.notes == [
        "first",
        "the metric loss was nan and is left out",
        "the metric kl was inf and is left out",
    ]


def test_parts_are_found_by_name(tmp_path: Path) -> None:
    artifact = publish(tmp_path / "sft")
    assert artifact.part("model") == tmp_path / "sft" / "model" and artifact.has("model")
    assert not artifact.has("head") and not artifact.has("adapter")
    for name in ("adapter", "head"):  # head is a mark, not a place
        with pytest.raises(HandoffError, match=f"the sft artifact holds no {name}") as caught:
            artifact.part(name)
        assert caught.value.fix == "it holds: model"


def test_broken_json_beside_a_manifest_is_a_handoff_error(tmp_path: Path) -> None:
    (tmp_path / "probes.json").write_text("{")
    for name in ("probes.json", "absent.json"):
        with pytest.raises(HandoffError, match="cannot be read") as caught:
            read_json(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


# ---------------------------------------------------------------- parents


def test_a_parent_is_found_and_a_changed_one_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    base = publish(run / "sft")
    reward = publish(run / "reward", parents={"base": Source.of(base)})
    assert reward.manifest.parents["base"].path == "sft"
    assert reward.parent("base").artifact == base
    publish(run / "sft", text="trained again")
    with pytest.raises(HandoffError, match=r"the base that .*/run/reward was made from has changed since") as caught:
        reward.parent("base")
    assert caught.value.fix == "run the reward stage again, or restore the base"
    with pytest.raises(HandoffError, match="the reward artifact records no policy"):
        reward.parent("policy")


def test_a_parent_that_is_gone_or_incomplete_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(tmp_path / "run")
    reward = publish(run / "reward", parents={"base": Source.of(publish(run / "sft"))})
    (run / "sft" / "manifest.json").unlink()
    with pytest.raises(HandoffError, match=r"the stage at .*/run/sft is incomplete"):
        reward.parent("base")
    shutil.rmtree(run / "sft")
    publish(tmp_path / "elsewhere" / "sft")
    monkeypatch.chdir(tmp_path / "elsewhere")  # a folder of that name where the command is given is not the parent
    with pytest.raises(HandoffError, match=r"the base that .*/run/reward was made from is gone") as caught:
        reward.parent("base")
    assert caught.value.where == str(run / "sft")


def test_a_moved_run_still_finds_its_parents(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    base = publish(run / "sft")
    publish(run / "reward", parents={"base": Source.of(base)})
    moved = tmp_path / "archive" / "renamed"
    moved.parent.mkdir()
    shutil.move(run, moved)
    parent = load_artifact(moved / "reward").parent("base")
    assert parent.artifact is not None and parent.artifact.path == moved / "sft"
    assert parent.fingerprint == base.fingerprint


def test_a_parent_from_elsewhere_is_found_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run_folder(tmp_path / "other") / "sft")
    (tmp_path / "scorer").mkdir()
    (tmp_path / "scorer" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    parents = {role: resolve_source(text, role) for role, text in (("base", "other/sft"), ("reward", "scorer"))}
    parents["reference"] = resolve_source("gpt2", "reference")
    ppo = publish(run_folder(tmp_path / "run") / "ppo", parents=parents)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    (tmp_path / "away" / "gpt2").mkdir()  # the Hub id is not this folder
    for role, source in parents.items():
        assert ppo.parent(role).fingerprint == source.fingerprint
    assert ppo.parent("reference").name == "gpt2"
    assert ppo.parent("reward").name == str(tmp_path / "scorer")
    (tmp_path / "scorer" / "config.json").write_text('{"a": 1}')
    with pytest.raises(HandoffError, match="has changed since"):
        ppo.parent("reward")


# ---------------------------------------------------------------- what a path stands for


def test_a_stage_stands_for_its_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = publish(run_folder(tmp_path / "run") / "sft")
    for text in (str(tmp_path / "run" / "sft"), f"{tmp_path}/run/sft/"):
        assert resolve_source(text, "policy") == Source.of(made)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_source("~/run/sft", "policy").artifact == made


def test_a_run_names_its_stages(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    with pytest.raises(HandoffError, match="none is complete yet"):
        resolve_source(str(run), "policy")
    publish(run / "sft")
    publish(run / "ppo")
    (run / "reward").mkdir()
    with pytest.raises(HandoffError, match=f"{run} is a run; the policy is one of its stages") as caught:
        resolve_source(f"{run}", "policy")
    assert caught.value.fix == f"name one: {run}/ppo, {run}/sft"


def test_a_stage_under_way_is_incomplete(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "ppo" / "work").mkdir(parents=True)
    with pytest.raises(HandoffError, match="is incomplete: it has no manifest"):
        resolve_source(str(run / "ppo"), "policy")


@pytest.mark.parametrize("mark", ["config.json", "adapter_config.json"])
def test_a_model_or_adapter_folder_is_known_by_its_content(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "model"
    (folder / "work").mkdir(parents=True)  # a name of ours means nothing outside a run
    (folder / mark).write_text("{}")
    source = resolve_source(str(folder), "policy")
    assert source.artifact is None and source.name == str(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert resolve_source(str(tmp_path / "copy"), "policy").fingerprint == source.fingerprint
    (folder / mark).write_text("{ }")
    assert resolve_source(str(folder), "policy").fingerprint != source.fingerprint


def test_a_folder_with_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(HandoffError, match="the reward model folder holds neither a model") as caught:
        resolve_source(str(tmp_path / "pictures"), "reward model")
    assert caught.value.where == str(tmp_path / "pictures") and "Hub id" in str(caught.value.fix)


def test_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    for text in ("model.safetensors", str(tmp_path / "model.safetensors")):
        with pytest.raises(HandoffError, match="the policy is a file, not a folder"):
            resolve_source(text, "policy")


@pytest.mark.parametrize("text", ["gpt2", "org/name"])
def test_a_hub_id_is_known_by_its_name(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = resolve_source(text, "policy")
    assert source == Source(text, fs.hash_json(["hub", text]), None)
    assert source.fingerprint != resolve_source("other", "policy").fingerprint


@pytest.mark.parametrize("text", ["./model", "/nowhere/model", "~/nowhere-at-all", "runs/quickstart/sft"])
def test_a_path_that_is_not_there_is_no_hub_id(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HandoffError, match="the policy folder does not exist") as caught:
        resolve_source(text, "policy")
    assert caught.value.where == text


def test_changed_inputs_are_those_that_differ_came_or_went() -> None:
    assert changed_inputs({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == []
    assert changed_inputs({"same": "1", "gone": "2", "old": "3"}, {"same": "1", "old": "4", "came": "5"}) == [
        "came",
        "gone",
        "old",
    ]


def test_a_stage_took_the_same_time_wherever_it_is_told(tiny_run: Path) -> None:
    events = [json.loads(line) for line in (tiny_run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    finished = {event["stage"]: event["seconds"] for event in events if event["event"] == "finished"}
    assert len(finished) == 4
    for stage, seconds in finished.items():
        assert seconds == json.loads((tiny_run / stage / "manifest.json").read_text(encoding="utf-8"))["seconds"] > 0
