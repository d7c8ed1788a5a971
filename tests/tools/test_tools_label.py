"""`rlhfctl label`: what is asked of a run or a file, by whom, and what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.desk import Desk
from rlhfctl.labels.items import make_item, write_items
from rlhfctl.tools import label


def a_set(folder: Path, count: int = 6) -> Path:
    write_items(folder / "set.jsonl", [make_item(f"q{n}", [f"a{n}", f"b{n}"], ["m", "n"]) for n in range(count)])
    return folder / "set.jsonl"


def scripted(best: str) -> Any:
    """A person who prefers the response that begins with this letter, in place of the screen."""

    def answers(desk: Desk, annotator: str) -> int:
        given = 0
        while (question := desk.next(annotator)) is not None:
            ranks = [int(not str(response).startswith(best)) for response in question.shown]
            desk.answer(annotator, question.key, "label", ranks, seconds=2.0)
            given += 1
        return given

    return answers


def test_a_labelling_set_is_asked_in_the_terminal_and_its_labels_lie_beside_it(
    tmp_path: Path, here: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_set(tmp_path)
    monkeypatch.setattr("rlhfctl.labels.screen.start.label_in_terminal", scripted("a"))
    done = here("label", file, "--annotator", "ana", "--overlap", 1)
    assert done.returncode == 0, done.stderr
    assert "6 labels given" in done.stdout and "6 of 12 answers are there" in done.stdout
    assert "rlhfctl label export" in done.stdout and (tmp_path / "set.jsonl.labels.sqlite").is_file()
    monkeypatch.setattr("rlhfctl.labels.screen.start.label_in_terminal", scripted("b"))
    assert "12 of 12 answers" in here("label", "ask", file, "--annotator", "bo", "--overlap", 1).stdout
    found = json.loads(here("label", file, "--stats", "--json").stdout)
    assert found["judged_by_several"] == 6 and found["agreement"]["percent"]["value"] == 0
    assert set(found["annotators"]) == {"ana", "bo"} and found["all"]["median_seconds"] == 2.0
    shown = " ".join(here("label", file, "--stats").stdout.split())
    assert "Krippendorff's alpha" in shown and "Cohen's kappa, ana and bo" in shown and "ana 6 0 0 2.0 s" in shown


def test_a_file_of_pairs_is_judged_anew(tmp_path: Path, here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(4)]
    rows.append({"prompt": "same", "chosen": "x", "rejected": "x"})
    (tmp_path / "pairs.csv").write_text(
        "prompt,chosen,rejected\n" + "".join(f"{r['prompt']},{r['chosen']},{r['rejected']}\n" for r in rows)
    )
    monkeypatch.setattr("rlhfctl.labels.screen.start.label_in_terminal", scripted("b"))
    done = here("label", "pairs.csv")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 answers" in done.stdout and "1 of 5 rows" in done.stdout
    written = here("label", "export", "pairs.csv", "--to", "new.jsonl")
    assert written.returncode == 0, written.stderr
    found = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in found] == ["b0", "b1", "b2", "b3"]


def test_gold_questions_come_from_pairs_whose_answer_is_known(
    tmp_path: Path, here: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_set(tmp_path)
    known = [{"prompt": f"g{n}", "chosen": f"{'ab'[n % 2]}", "rejected": f"{'ba'[n % 2]}"} for n in range(4)]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    monkeypatch.setattr("rlhfctl.labels.screen.start.label_in_terminal", scripted("a"))
    assert here("label", file, "--gold", 0.4, "--gold-from", "known.jsonl", "--annotator", "ana").returncode == 0
    found = json.loads(here("label", file, "--stats", "--json").stdout)
    assert found["questions"] == 6 and found["labels"] == 10
    assert found["annotators"]["ana"]["gold"]["asked"] == 4 and found["annotators"]["ana"]["gold"]["right"] == 2
    assert "2 of 4" in here("label", file, "--stats").stdout
    refused = here("label", file, "--gold", 0.4)
    assert refused.returncode != 0 and "--gold-from FILE" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("label", "nothing.jsonl"), "there is no such run or file"),
        (("label", "."), "recipe.yaml is missing"),
        (("label", "set.jsonl", "--order", "active"), "say nothing of how far reward models disagree"),
        (("label", "set.jsonl", "--stats"), "no labels yet"),
        (("label", "export", "set.jsonl", "--to", "x.jsonl"), "no labels yet"),
        (("label", "broken.jsonl"), "not a JSON object"),
        (("label", "import", "set.jsonl", "nothing.json"), "cannot be read"),
        (("label", "import", "set.jsonl", "broken.jsonl"), "these are no labels"),
        (("label", "import", "new.txt", "pairs.jsonl"), "no such run or labelling set"),
    ],
)
def test_what_cannot_be_labelled_is_told(arguments: tuple[str, ...], said: str, tmp_path: Path, here: Cli) -> None:
    a_set(tmp_path)
    (tmp_path / "broken.jsonl").write_text("no json\n")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    refused = here(*arguments)
    assert refused.returncode not in (0, 1) or "Traceback" not in refused.stderr
    assert said in refused.stderr, refused.stderr
    assert not (tmp_path / "x.jsonl").exists()


def test_a_run_without_questions_says_how_to_have_them(tiny_run: Path) -> None:
    with pytest.raises(RlhfctlError, match="no questions to answer") as told:
        label.find(tiny_run)
    assert "sample: {}" in str(told.value)
