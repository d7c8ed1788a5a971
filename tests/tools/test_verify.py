"""`rlhfctl verify`: a whole run is as recorded; each kind of change is named, and nothing in the run is written."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here
from ruamel.yaml import YAML

from rlhfctl import fs
from rlhfctl.artifacts import MANIFEST, seal_of
from rlhfctl.errors import HandoffError, RlhfctlError, RunBusyError
from rlhfctl.events import Event, Working
from rlhfctl.paths import RECIPE
from rlhfctl.tools import reward_eval
from rlhfctl.tools.verify import Finding, require_unchanged, to_json, verify, view

OLD = Path(__file__).resolve().parents[1] / "e2e" / "old_run" / "complete"
Change = Callable[[Path], None]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def differing(run: Path) -> list[Finding]:
    return [one for one in verify(run) if one.state == "differs"]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit(file: Path, change: Callable[[Any], None], *, seal: bool = False) -> None:
    """Change a JSON file; with `seal` as somebody would who knows of it."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    change(fields)
    if seal:
        fields["seal"] = seal_of(fields)
    fs.write_json(file, fields)


def record_anew(stage: Path) -> None:
    """Write the hashes of a stage's files into its manifest, as somebody would who hides a change."""

    def change(fields: dict[str, Any]) -> None:
        fields["outputs"] = fs.hash_tree(stage, skip=frozenset({MANIFEST}))
        fields["fingerprint"] = fs.hash_json(fields["outputs"])

    edit(stage / MANIFEST, change, seal=True)


# ---------------------------------------------------------------- as recorded


def test_a_run_is_as_recorded_and_nothing_in_it_is_written(run: Path) -> None:
    before = fs.hash_tree(run)
    found = verify(run)
    assert {one.state for one in found} == {"ok"}
    assert {one.where for one in found} == {"sft", "reward", "ppo", "compare"}
    assert fs.hash_tree(run) == before
    said = {(one.where, one.about): one.said for one in found}
    assert said["reward", "inputs"] == "data.preferences, model, section, seed as used"
    assert said["compare", "parents"] == "policy, reference, reward as used"
    assert said["compare", "verdict"].endswith("the same from the samples again (gold, reward_model)")


def test_a_card_that_a_command_asked_for_is_checked_like_any_stage(run: Path) -> None:
    reward_eval.evaluate(run, prompts=4, samples=2, listen=lambda event: None)
    found = {one.about: one for one in verify(run) if one.where == "card"}
    assert {one.state for one in found.values()} == {"ok"}
    assert {"manifest", "files", "parents", "inputs"} <= found.keys() and "section" in found["inputs"].said


def test_the_stage_of_a_section_that_the_recipe_has_lost_is_told(run: Path) -> None:
    recipe = YAML(typ="safe").load((run / RECIPE).read_text(encoding="utf-8"))
    del recipe["compare"]
    (run / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
    found = {one.about: one for one in verify(run) if one.where == "compare"}
    assert found["inputs"].state == "not checked" and "does not ask" in found["inputs"].said
    assert found["files"].state == found["manifest"].state == "ok"


def test_a_run_of_an_earlier_version_has_no_seals(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    found = verify(tmp_path / "old")
    assert [one for one in found if one.state == "differs"] == []
    unsealed = [one for one in found if one.about == "manifest"]
    assert len(unsealed) == 4 and all("no seal over its fields" in one.said for one in unsealed)


def test_each_stage_is_named_while_its_files_are_hashed(run: Path) -> None:
    heard: list[Event] = []
    verify(run, heard.append)
    told = [(event.what, event.over) for event in heard if isinstance(event, Working)]
    files = [f"checking the files of {stage}" for stage in ("sft", "reward", "ppo", "compare")]
    assert [one for one in told if one[0].startswith("checking the files")] == [
        (what, over) for what in files for over in (False, True)
    ]


# ---------------------------------------------------------------- what differs


def weights(run: Path) -> None:
    flip_a_byte(run / "ppo" / "adapter" / "adapter_model.safetensors")


def metric(run: Path) -> None:
    edit(run / "reward" / MANIFEST, lambda fields: fields["metrics"].update(heldout_accuracy=0.99))


def a_file_gone(run: Path) -> None:
    (run / "sft" / "probes.json").unlink()


def a_file_more(run: Path) -> None:
    (run / "reward" / "adapter" / "extra.bin").write_bytes(b"?")


def verdict_edited(run: Path) -> None:
    edit(run / "compare" / "compare.json", lambda report: report["judges"]["gold"].update(win_rate=0.987))


def another_parent(run: Path) -> None:
    flip_a_byte(next((run / "sft").rglob("*.safetensors")))
    record_anew(run / "sft")


def hidden_verdict(run: Path) -> None:
    verdict_edited(run)
    record_anew(run / "compare")


def hidden_word(run: Path) -> None:
    word = json.loads((run / "compare" / "compare.json").read_text())["verdict"]
    edit(run / "compare" / "compare.json", lambda r: r.update(verdict="worse" if word != "worse" else "better"))
    record_anew(run / "compare")


def setting(run: Path) -> None:
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 0.01" in text
    ppo = text.index("ppo:")
    (run / "recipe.yaml").write_text(text[:ppo] + text[ppo:].replace("learning_rate: 0.01", "learning_rate: 0.02", 1))


def data(run: Path) -> None:
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert "label_noise: 0.1" in text
    (run / "recipe.yaml").write_text(text.replace("label_noise: 0.1", "label_noise: 0.2"), encoding="utf-8")


def renamed(run: Path) -> None:
    shutil.rmtree(run / "reward")
    shutil.copytree(run / "sft", run / "reward")


def damaged(run: Path) -> None:
    (run / "sft" / MANIFEST).write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "where", "about", "said"),
    [
        (weights, "ppo", "files", "altered since the stage finished: adapter/adapter_model.safetensors"),
        (metric, "reward", "manifest", "a metric, a setting or a hash was edited"),
        (a_file_gone, "sft", "files", "gone since the stage finished: probes.json"),
        (a_file_more, "reward", "files", "added since the stage finished: adapter/extra.bin"),
        (verdict_edited, "compare", "verdict", "gold: win_rate is 0.987, and "),
        (hidden_verdict, "compare", "verdict", "gold: win_rate is 0.987, and "),
        (hidden_word, "compare", "verdict", " by its own numbers"),
        (another_parent, "reward", "parents", "has changed since"),
        (setting, "ppo", "inputs", "learning_rate 0.01 -> 0.02): not what the stage was made from"),
        (data, "reward", "inputs", "data.preferences: not what the stage was made from"),
        (renamed, "reward", "manifest", "it is the record of sft"),
        (damaged, "sft", "manifest", "cannot be read"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_change_is_named(run: Path, change: Change, where: str, about: str, said: str) -> None:
    change(run)
    found = differing(run)
    assert any((one.where, one.about) == (where, about) and said in one.said for one in found), found
    with pytest.raises(HandoffError, match="not as recorded") as caught:
        require_unchanged(run, found)
    assert caught.value.exit_code == 3 and where in caught.value.what


def test_a_recipe_that_cannot_be_read_is_one_finding_among_others(run: Path) -> None:
    (run / "recipe.yaml").write_text("sft: {", encoding="utf-8")
    found = verify(run)
    assert [(one.where, one.about) for one in found if one.state == "differs"] == [("run", "recipe.yaml")]
    assert ("sft", "files") in {(one.where, one.about) for one in found if one.state == "ok"}


# ---------------------------------------------------------------- what cannot be checked


def test_data_that_is_not_there_is_told_and_is_no_difference(run: Path) -> None:
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    start = text.index("demonstrations:")
    gone = text[:start] + text[start:].replace("source: builtin:reviews", "source: /gone/rows.jsonl", 1)
    gone = gone.replace("rows: 96", "rows: null", 1)
    (run / "recipe.yaml").write_text(gone, encoding="utf-8")
    found = verify(run)
    assert not [one for one in found if one.state == "differs"]
    told = [one for one in found if one.state == "not checked"]
    assert [one.about for one in told] == ["data.demonstrations"] and "/gone/rows.jsonl" in told[0].said
    checked = next(one.said for one in found if (one.where, one.about) == ("sft", "inputs"))
    assert "data.demonstrations" not in checked


def test_a_parent_outside_the_run_that_is_gone_is_told_as_not_checked(run: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["parents"]["base"]["path"] = "/gone/sft"

    edit(run / "reward" / MANIFEST, change, seal=True)
    found = [one for one in verify(run) if one.where == "reward" and one.about == "parents"]
    assert [one.state for one in found] == ["not checked"] and "/gone/sft" in found[0].said


def test_a_stage_that_is_not_complete_is_told(run: Path) -> None:
    shutil.rmtree(run / "compare")
    (run / "ppo" / MANIFEST).unlink()
    told = {one.where: one.said for one in verify(run) if one.state == "not complete"}
    assert told["ppo"].startswith("under way") and told["compare"].startswith("not in this run")


def test_a_run_at_work_is_left_alone(run: Path) -> None:
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunBusyError, match="a process is working on"):
            verify(run)


def test_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="there is no run here"):
        verify(tmp_path)


# ---------------------------------------------------------------- the command


def test_the_command_shows_what_differs_and_ends_with_3(run: Path) -> None:
    good = run_here("verify", run, cwd=run.parent)
    assert good.returncode == 0 and "nothing differs from what the run recorded" in good.stdout
    weights(run)
    metric(run)
    bad = run_here("verify", run, cwd=run.parent)
    assert bad.returncode == 3 and "2 things in this run are not as recorded (reward, ppo)" in bad.stderr
    assert "adapter_model.safetensors" in bad.stdout and "nothing differs" not in bad.stdout
    told = json.loads(run_here("verify", run, "--json", cwd=run.parent).stdout)
    assert told["unchanged"] is False
    assert [one["where"] for one in told["findings"] if one["state"] == "differs"] == ["reward", "ppo"]


def test_what_several_stages_have_in_common_is_one_line() -> None:
    found = [Finding(name, "manifest", "not checked", "no seal") for name in ("sft", "ppo")]
    table = next(iter(view(found)))
    assert table.row_count == 1  # type: ignore[attr-defined]
    assert to_json(Path("run"), found)["unchanged"] is True
