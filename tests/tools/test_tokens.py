"""Find traced episodes of a run: defaults, and errors that say what there is instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools import tokens


def test_the_default_is_the_first_episode_of_the_last_traced_update(traced_run: Path) -> None:
    found = tokens.find(traced_run, None, None, None)
    assert (found.stage, found.record["update"], found.record["episode"], len(found.others)) == ("ppo", 3, 0, 8)
    assert found.settings["kl_coef"] == 0.2 and len(found.rows) >= len(found.record["ids"])
    chosen = tokens.find(traced_run, "ppo", 1, 5)
    assert (chosen.record["update"], chosen.record["episode"]) == (1, 5)


def test_the_first_seed_is_the_default_where_a_run_has_several(traced_run: Path, tmp_path: Path) -> None:
    shutil.copytree(traced_run / "ppo" / "traces", tmp_path / "seed-2" / "ppo" / "traces")
    shutil.copytree(traced_run / "ppo" / "traces", tmp_path / "seed-10" / "ppo" / "traces")
    shutil.copy(traced_run / "recipe.yaml", tmp_path)
    assert tokens.find(tmp_path, None, None, None).stage == "seed-2/ppo"
    assert tokens.find(tmp_path, "seed-10/ppo", None, None).stage == "seed-10/ppo"
    assert {row["stage"] for row in tokens.list_traces(tmp_path, None)} == {"seed-2/ppo", "seed-10/ppo"}
    assert {row["stage"] for row in tokens.list_traces(tmp_path, "seed-10/ppo")} == {"seed-10/ppo"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 7, None), "update 7 is not traced\n  fix: traced are: 1, 2, 3"),
        ((None, None, 8), "episode 8 of update 3 is not traced\n  fix: traced are: 0, 1, 2, 3, 4, 5, 6, 7"),
        (("sft", None, None), "there is no stage 'sft' that trains with PPO\n  fix: there are: ppo"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(arguments: Any, message: str, traced_run: Path) -> None:
    with pytest.raises(RlhfctlError) as caught:
        tokens.find(traced_run, *arguments)
    assert message in str(caught.value)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="there is no run here"):
        tokens.find(tmp_path, None, None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("", ""), "every 10 updates one is traced (ppo.trace_every), but the stage has only 2"),
        (("  eval: {every: 1}", "  trace_every: 0\n  eval: {every: 1}"), "ppo.trace_every is 0: nothing was traced"),
        (("total_episodes: 32", "total_episodes: 3200"), "the first trace is that of update 10"),
        (("  num_ppo_epochs: 2", "  engine: trl\n  num_ppo_epochs: 2"), "TRL's engine writes no traces"),
    ],
)
def test_why_there_is_no_trace(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY.replace(*change) if change[0] else TINY, encoding="utf-8")
    with pytest.raises(RlhfctlError, match="no stage of this run has trained with PPO yet"):
        tokens.find(tmp_path, None, None, None)
    (tmp_path / "ppo").mkdir()
    for call in (lambda: tokens.find(tmp_path, None, None, None), lambda: tokens.list_traces(tmp_path, None)):
        with pytest.raises(RlhfctlError) as caught:
            call()
        assert message in str(caught.value)


def test_the_list_has_means_over_the_traced_episodes(traced_run: Path) -> None:
    found = tokens.list_traces(traced_run, None)
    assert [row["update"] for row in found] == [1, 2, 3] and {row["episodes"] for row in found} == {8}
    lines = (traced_run / "ppo" / "traces" / "update-000002.jsonl").read_text(encoding="utf-8").splitlines()
    assert found[1]["score"] == pytest.approx(sum(json.loads(line)["score"] for line in lines) / 8)


def test_a_position_beyond_the_response_is_refused(traced_run: Path) -> None:
    found = tokens.find(traced_run, None, None, None)
    last = len(found.rows) - 1
    assert tokens.explained(found, None)[0].position == len(found.record["ids"]) - 1
    assert tokens.explained(found, last)[0].position == last
    with pytest.raises(RlhfctlError, match=f"positions are 0 to {last}"):
        tokens.explained(found, last + 1)


def test_without_a_critic_there_is_nothing_to_explain(traced_run: Path) -> None:
    found = tokens.find(traced_run, None, None, None)
    record = {name: value for name, value in found.record.items() if name not in ("values", "deltas", "returns")}
    with pytest.raises(RlhfctlError, match="neither a critic's values nor a baseline"):
        tokens.explained(tokens.Episode(found.run, found.stage, record, [record], found.settings), None)


def test_a_whole_run_gives_its_logged_losses_from_its_trace(traced_run: Path) -> None:
    for update in (1, 2, 3):
        added = tokens.losses(tokens.find(traced_run, None, update, None))
        assert added.computed.keys() == added.logged.keys() and len(added.logged) == 6
        assert added.computed == pytest.approx(dict(added.logged), abs=1e-5)


def test_json_for_scripts(traced_run: Path) -> None:
    found = tokens.find(traced_run, None, None, None)
    plain = tokens.to_json(found, None, with_explanation=False)
    assert plain["tokens"][0]["logprob"] == found.record["policy_logprobs"][0] and "explained" not in plain
    more = tokens.to_json(found, 0, with_explanation=True)
    assert more["explained"]["position"] == 0 and more["explained"]["steps"][0]["name"] == "KL (k1)"
    assert more["losses"]["traced"] == 8
    assert json.loads(json.dumps(more, allow_nan=False))["losses"]["computed"] == more["losses"]["computed"]
