"""`rlhfctl sample`: a labelling set from a run's models, mixed; the same after a kill; what does not fit is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from rlhfctl.generation import local
from rlhfctl.labels.items import read_items
from rlhfctl.stages import blocks
from rlhfctl.tools import sample
from rlhfctl.tools.sample import Wanted


def test_models_of_a_run_write_in_turn_and_the_set_can_be_asked(tiny_run: Path, tmp_path: Path, here: Cli) -> None:
    command = ("sample", tiny_run, "--n", 3, "--prompts", 5, "--from", "ppo", "--from", "reference")
    done = here(*command, "--out", "set.jsonl")
    assert done.returncode == 0, done.stderr
    assert "wrote 5 questions to set.jsonl" in done.stdout and not (tmp_path / "set.jsonl.work").exists()
    items = read_items(tmp_path / "set.jsonl")
    counts = Counter(origin for item in items for origin in item.origins)
    assert set(counts) == {"ppo", "reference"} and sum(counts.values()) == 15
    again = here(*command, "--out", "again.jsonl")
    assert again.returncode == 0 and (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "set.jsonl").read_bytes()
    other = here(*command, "--out", "other.jsonl", "--seed", 7)
    assert other.returncode == 0 and (tmp_path / "other.jsonl").read_bytes() != (tmp_path / "set.jsonl").read_bytes()
    tests = here("sample", tiny_run, "--split", "test", "--out", "tests.jsonl")
    assert tests.returncode == 0 and len(read_items(tmp_path / "tests.jsonl")) == 12
    assert {item.origins for item in read_items(tmp_path / "tests.jsonl")} == {("ppo", "ppo")}
    assert not {item.prompt for item in items} & {item.prompt for item in read_items(tmp_path / "tests.jsonl")}


class Killed(Exception):
    pass


def test_the_same_command_goes_on_after_a_kill(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    wanted = Wanted(responses=2, prompts=6)
    sample.sample(tiny_run, tmp_path / "whole.jsonl", [], wanted, lambda text: None, lambda event: None)
    calls: list[int] = []
    really = local.sample

    def dies(*arguments: Any, **more: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise Killed
        return really(*arguments, **more)

    monkeypatch.setattr(local, "sample", dies)
    out = tmp_path / "set.jsonl"
    with pytest.raises(Killed):
        sample.sample(tiny_run, out, [], wanted, lambda text: None, lambda event: None)
    assert (tmp_path / "set.jsonl.work").is_dir()
    with pytest.raises(Exception, match="another command is half way"):
        sample.sample(tiny_run, out, [], Wanted(responses=3, prompts=6), lambda text: None, lambda event: None)
    sample.sample(tiny_run, out, [], wanted, lambda text: None, lambda event: None)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and calls[:3] == [4, 4, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "nothing"), "there is no model 'nothing' in this run"),
        (("--from", "ppo", "--from", "ppo"), "a model is named twice"),
        (("--out", "there.jsonl"), "already exists"),
        (("--n", "17"), "less than or equal to 16"),
    ],
)
def test_what_cannot_be_sampled_is_told(
    options: tuple[str, ...], said: str, tiny_run: Path, tmp_path: Path, here: Cli
) -> None:
    (tmp_path / "there.jsonl").write_text(json.dumps({}))
    refused = here("sample", tiny_run, "--out", "set.jsonl", *options)
    assert refused.returncode != 0 and said in refused.stderr, refused.stderr
    assert not (tmp_path / "set.jsonl").exists()
