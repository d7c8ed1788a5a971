"""Labels exported and imported by the command line: nothing is overwritten, nothing is counted twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli
from test_tools_label import a_set, scripted


@pytest.fixture
def labelled(tmp_path: Path, here: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = a_set(tmp_path)
    monkeypatch.setattr("rlhfctl.labels.screen.start.label_in_terminal", scripted("a"))
    assert here("label", file, "--annotator", "ana").returncode == 0
    return file


@pytest.mark.parametrize("form", ["pairs", "rankings", "label-studio", "argilla"])
def test_labels_go_out_and_come_back(labelled: Path, form: str, tmp_path: Path, here: Cli) -> None:
    written = here("label", "export", labelled, "--to", "out.json", "--format", form)
    assert written.returncode == 0 and "wrote 6 labels to out.json" in written.stdout, written.stderr
    again = here("label", "export", labelled, "--to", "out.json", "--format", form)
    assert again.returncode != 0 and "already exists" in again.stderr
    if form == "label-studio":
        assert "Pairwise" in (tmp_path / "out-2.xml").read_text()
    fresh = here("label", "import", "fresh.jsonl", "out.json", "--annotator", "ana")
    assert fresh.returncode == 0, fresh.stderr
    assert "made the labelling set fresh.jsonl with 6 questions" in fresh.stdout
    assert "took in 6 labels" in fresh.stdout
    twice = here("label", "import", "fresh.jsonl", "out.json", "--annotator", "ana")
    assert "took in no labels" in twice.stdout and "6 labels were there already" in twice.stdout
    found = json.loads(here("label", "fresh.jsonl", "--stats", "--json").stdout)
    assert found["labels"] == 6 and found["open_answers"] == 0
    assert here("label", "export", "fresh.jsonl", "--to", "pairs.jsonl").returncode == 0
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert sorted(row["chosen"] for row in pairs) == [f"a{n}" for n in range(6)]


def test_questions_that_the_set_does_not_ask_are_left_out_and_told(labelled: Path, tmp_path: Path, here: Cli) -> None:
    rows = [{"prompt": "q0", "chosen": "b0", "rejected": "a0"}, {"prompt": "other", "chosen": "x", "rejected": "y"}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = here("label", "import", labelled, "more.jsonl", "--annotator", "bo")
    assert "took in 1 label" in taken.stdout and "left out 1 question of the file" in taken.stdout
    voted = here("label", "export", labelled, "--to", "vote.jsonl", "--combine", "majority")
    assert voted.returncode == 0
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "vote.jsonl").read_text().splitlines()]
    assert prompts == [f"q{n}" for n in range(1, 6)]  # ana and bo disagree about q0
    refused = here("label", "export", labelled, "--to", "x.json", "--format", "argilla", "--combine", "majority")
    assert refused.returncode != 0 and "keeps each annotator's label" in refused.stderr


def test_ties_alone_make_no_pairs_but_rankings(tmp_path: Path, here: Cli) -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 0], "annotator": "ana"}
    (tmp_path / "ties.jsonl").write_text(json.dumps(row) + "\n")
    assert here("label", "import", "set.jsonl", "ties.jsonl").returncode == 0
    refused = here("label", "export", "set.jsonl", "--to", "pairs.jsonl")
    assert refused.returncode != 0 and "all labels are ties" in refused.stderr
    assert here("label", "export", "set.jsonl", "--to", "r.jsonl", "--format", "rankings").returncode == 0
