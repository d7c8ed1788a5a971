"""`label --write` with real models: equal seeds, files that a later run reads, exported labels, a killed process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli
from small_chats import Recorder, write_talker
from small_writers import compared, demonstrations, labels

from rlhfctl.data.load import check_all
from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.desk import Desk
from rlhfctl.labels.store import open_labels
from rlhfctl.recipe.schema import Data
from rlhfctl.stages.label import counts
from rlhfctl.tools import label
from rlhfctl.tools.write.start import write


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_written_texts_are_demonstrations_and_preferences_of_a_later_run(run: Path, here: Cli, tmp_path: Path) -> None:
    screen = Recorder("the tea is", "2>1", "", "the soup is", "1>2", " very good", "the cake is")
    write(run, annotator="ana", screen=screen)
    assert f"ppo of {run} suggests answers (seed 0)" in screen.notes[0]
    rows = demonstrations(run)
    assert [row["prompt"] for row in rows] == ["the tea is", "the soup is"] and rows[1]["completion"] == " very good"
    ranked, own = compared(run)
    assert ranked[0] == "the tea is" and ranked[2] == (1, 0) and rows[0]["completion"] == ranked[1][1]
    assert own[1][2] == " very good" and own[2] == (1, 2, 0)
    assert labels(run)[1][0].origins == ("ppo", "ppo", "person")

    asked = here("label", run)
    assert "the run has no questions to answer" in asked.stderr
    exported = here("label", "export", run, "--to", "pairs.jsonl")
    assert exported.returncode == 0 and "wrote 2 labels to pairs.jsonl" in exported.stdout, exported.stderr
    assert here("label", "export", run, "--to", "r.jsonl", "--format", "rankings").returncode == 0
    assert here("label", "export", run, "--to", "t.json", "--format", "label-studio").returncode == 0
    assert (tmp_path / "t-2.xml").is_file() and (tmp_path / "t-3.xml").is_file()
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 4 and {row["chosen"] for row in pairs[1:3]} == {" very good"}
    data = Data(
        demonstrations={"source": str(run / "demonstrations.jsonl")},  # type: ignore[arg-type]
        preferences={"source": str(tmp_path / "pairs.jsonl")},  # type: ignore[arg-type]
    )
    read = check_all(data, 0)
    assert [len(read[name].items) for name in ("demonstrations", "preferences")] == [2, 4]

    again = here("label", "import", "fresh.jsonl", "r.jsonl")
    assert "took in 2 labels" in again.stdout, again.stderr
    assert json.loads(here("label", "fresh.jsonl", "--stats", "--json").stdout)["labels"] == 2


def test_equal_seeds_give_equal_suggestions_and_other_seeds_others(run: Path, tmp_path: Path) -> None:
    shown = []
    for seed in (3, 3, 4):
        screen = Recorder("the tea is", "1")
        write(run, seed=seed, count=3, to=tmp_path / "x.jsonl", screen=screen)
        shown.append(screen.shown[:3])
    assert shown[0] == shown[1] != shown[2] and len(set(shown[0])) == 3
    assert len(demonstrations(tmp_path, "x.jsonl")) == 3


def test_conversations_grow_from_what_the_person_chose(talker: Path, tmp_path: Path) -> None:
    run = shutil.copytree(talker, tmp_path / "run")
    screen = Recorder("ask me 1", "be kind", "ask me 2", "1>2", "", "", together=False)
    write(run, stage="sft", temperature=1.0, turns=2, screen=screen)
    (row,) = demonstrations(run)
    assert [one["role"] for one in row["messages"]] == ["user", "assistant"] * 2
    assert row["messages"][1]["content"] == "be kind"
    item, event = labels(run)[-1]
    assert item.prompt == row["messages"][:3] and item.origins == ("sft", "sft") and event.ranks == (0, 1)
    assert item.responses[0] == row["messages"][3:]
    source = {"source": str(run / "demonstrations.jsonl")}
    read = check_all(Data(demonstrations=source), 0)  # type: ignore[arg-type]
    assert len(read["demonstrations"].items) == 1


def test_what_cannot_be_written_is_told(run: Path, here: Cli, tmp_path: Path) -> None:
    with pytest.raises(RlhfctlError, match="are plain texts"):
        write(run, turns=2, screen=Recorder())
    assert "no run here" in here("label", tmp_path, "--write").stderr
    for options, said in (
        (("--write", "--web"), "--web does nothing with --write"),
        (("--write", "--order", "file"), "--order does nothing with --write"),
        (("--n", "2"), "--n is for --write"),
        (("--to", "x.jsonl"), "--to is for --write"),
    ):
        refused = here("label", run, *options)
        assert refused.returncode == 2 and said in " ".join(refused.stderr.split()), refused.stderr


def test_labels_of_written_conversations_are_no_answers_to_questions(run: Path, tmp_path: Path) -> None:
    """A desk neither counts them nor lets undo take them back, though they are in its file."""
    write(run, annotator="ana", screen=Recorder("the tea is", "own"))
    from test_desk import items, prefer

    target = label.Target(items(2), run / "labels.sqlite", label.Settings())
    with open_labels(target.labels) as store:
        desk = Desk(target.items, store, accepts=lambda event: event.is_of_people)
        question = desk.next("ana")
        assert question is not None and desk.progress("ana").done == 0
        prefer(desk, question, 0)
    write(run, annotator="ana", screen=Recorder("the soup is", "own"))
    with label.open_desk(target) as desk:
        assert desk.progress("ana").done == 1
        assert desk.undo("ana") is not None and desk.progress("ana").done == 0
        prefer(desk, desk.next("ana"), 1)  # type: ignore[arg-type]
        asked, given = label.answered(target, desk.store)
        more, theirs = label.written(desk.store)
    assert (len(given), len(theirs)) == (1, 4) and {item.id for item in more} == {event.item for event in theirs}
    assert len(asked.items) == 2
    assert counts(given[0], None) and not any(counts(event, None) for event in theirs)  # of the label stage


@pytest.mark.ci
def test_a_killed_process_loses_the_line_that_is_typed_and_no_more(run: Path) -> None:
    """The process is killed while it waits for a line, after each step of the first conversation."""
    command = [sys.executable, "-m", "rlhfctl", "label", str(run), "--write", "--annotator", "ana"]

    def killed_after(*lines: str, until: str) -> None:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("".join(f"{line}\n" for line in lines) + "half a li")
        process.stdin.flush()
        while not (line := process.stdout.readline()).startswith(until):
            assert line, "it ended"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close(), process.stdout.close()

    killed_after("the tea is", until="[2]")
    before = json.loads((run / "writing.json").read_text())["conversation"]
    assert before["turns"][0]["said"] == "the tea is" and len(before["turns"][0]["suggestions"]) == 2
    killed_after("1>2", "", "the soup is", until="kept")
    assert [row["prompt"] for row in demonstrations(run)] == ["the tea is"]
    assert demonstrations(run)[0]["completion"] == before["turns"][0]["suggestions"][0]["text"]
    assert [ranks for _, _, ranks in compared(run)] == [(0, 1)]
