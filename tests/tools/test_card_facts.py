"""What a model card is made from: the right comparison and card, texts without machine paths, no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages_of_a_run import publish, recipe_at

from rlhfctl.artifacts import Artifact, Source
from rlhfctl.paths import RunPaths
from rlhfctl.tools.card_facts import HIDDEN, collect, data_sets, flat, hub_id, parents_of, sources, without_paths


def judged(run: Path, stage: str, policy: Artifact, word: str) -> Artifact:
    folder = run / stage
    folder.mkdir(parents=True)
    (folder / "compare.json").write_text(json.dumps({"verdict": word}))
    layout = {"compare": "compare.json"}
    return publish(folder, parents={"policy": Source.of(policy)}, layout=layout, notes=[f"note of {word}"])


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Artifact]:
    run = tmp_path / "run"
    made: dict[str, Artifact] = {}
    inputs = {"data.demonstrations": "d" * 64, "model": "m" * 64}
    made["sft"] = publish(run / "sft", inputs=inputs)
    base = {"base": Source.of(made["sft"])}
    made["reward"] = publish(run / "reward", text="reward", parents=base, inputs={"data.preferences": "p" * 64})
    both = base | {"reward": Source.of(made["reward"])}
    made["ppo"] = publish(run / "ppo", parents=both, text="policy", inputs={"data.prompts": "q" * 64})
    return made


def test_the_verdict_is_that_of_this_policy(tmp_path: Path, run: dict[str, Artifact]) -> None:
    recipe, paths = recipe_at(tmp_path).recipe, RunPaths(tmp_path / "run")
    assert collect("ppo", run["ppo"], recipe, paths).verdict is None
    made = judged(paths.root, "compare", run["ppo"], "better")
    facts = collect("ppo", run["ppo"], recipe, paths)
    assert facts.verdict == {"verdict": "better"} and facts.verdict_notes == ["note of better"]
    assert collect("critic", run["ppo"], recipe, paths).verdict is None
    assert collect("sft", run["sft"], recipe, paths).verdict is None
    publish(made.path, parents={"policy": Source.of(run["sft"])}, layout={"compare": "compare.json"})
    assert collect("ppo", run["ppo"], recipe, paths).verdict is None  # it is about another model


def test_the_ancestors_are_named_once_and_gone_parents_are_not_followed(tmp_path: Path, run: Any) -> None:
    facts = collect("ppo", run["ppo"], recipe_at(tmp_path).recipe, RunPaths(tmp_path / "run"))
    assert [one.manifest.stage for one in facts.ancestors] == ["ppo", "sft", "reward"]
    assert [(name, parent and parent.manifest.stage) for name, parent in parents_of(run["ppo"])] == [
        ("base", "sft"), ("reward", "reward"),
    ]  # fmt: skip
    assert [(name, stages) for name, _, _, stages in data_sets(facts)] == [
        ("preferences", ["reward"]), ("demonstrations", ["sft"]), ("prompts", ["ppo"]),
    ]  # fmt: skip
    publish(tmp_path / "run" / "reward", text="other")
    assert parents_of(run["ppo"])[1] == ("reward", None)


def test_files_are_named_without_their_folders(tmp_path: Path, run: dict[str, Artifact]) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    change = f"data.prompts={{sources: [{{source: {tmp_path}/mine.jsonl}}, {{source: owner/set}}], test: 1}}"
    recipe = recipe_at(tmp_path, change, "compare=null").recipe
    facts = collect("ppo", run["ppo"], recipe, RunPaths(tmp_path / "run"))
    assert sources(facts, "prompts") == ["mine.jsonl", "owner/set"]
    assert (hub_id("owner/set"), hub_id(f"{tmp_path}/mine.jsonl"), hub_id("builtin:reviews"), hub_id(None)) == (
        "owner/set", None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/data/alice/rows.jsonl:3: has no prompt", "rows.jsonl:3: has no prompt"),
        ("see '/data/alice/rows.jsonl', or \"/x/y/\"", "see 'rows.jsonl', or \"y\""),
        ("in ~/secret/place/model (merged)", "in model (merged)"),
        ("the run /work/my run/here/sft/model", "the run sft/model"),
        *((text, text) for text in ("read/write, 1/2 of owner/name", "https://host/a/b and ./model/x", "/prefer left")),
    ],
)  # fmt: skip
def test_machine_paths_are_taken_out(text: str, clean: str) -> None:
    assert without_paths(text, [Path("/work/my run/here"), Path("/")]) == clean


def test_the_home_folder_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert without_paths("/home/alice/models/big one/x", []) == "big one/x"


def test_values_that_look_like_secrets_are_hidden() -> None:
    section = {
        "trainer": {"hub_token": "hf_abc", "optim": "adamw", "max_steps": 3, "include_num_input_tokens_seen": True},
        "stop_token": "eos", "lora": {}, "api_key": "k", "some_token": None,
    }  # fmt: skip
    assert dict(flat(section, "sft.")) == {
        "sft.trainer.hub_token": HIDDEN, "sft.trainer.optim": "adamw", "sft.trainer.max_steps": 3,
        "sft.trainer.include_num_input_tokens_seen": True, "sft.stop_token": "eos", "sft.lora": {},
        "sft.api_key": HIDDEN, "sft.some_token": None,
    }  # fmt: skip
