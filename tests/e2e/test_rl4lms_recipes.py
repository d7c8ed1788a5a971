"""The recipes of RL4LMs' tasks: their data files from rows in the published columns, and whole runs on tiny models."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from rlhfctl import pipeline
from rlhfctl.artifacts import load_artifact
from rlhfctl.models import build, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init

RECIPES = ROOT / "recipes" / "rl4lms"
sys.path += [str(RECIPES), str(ROOT / "recipes")]
import increasing_numbers  # noqa: E402
import rl4lms_data  # noqa: E402

Row = dict[str, Any]


def table() -> list[list[Row]]:
    """A header that spans two columns, one column below each of them, and a row that begins with a header."""

    def cell(value: str, span: int = 1, header: bool = False) -> Row:
        return {"value": value, "column_span": span, "row_span": 1, "is_header": header}

    return [
        [cell("Year", header=True), cell("Medals", span=2, header=True)],
        [cell(""), cell("Gold", header=True), cell("Silver", header=True)],
        [cell("1999", header=True), cell("3"), cell("5")],
    ]


def rows(number: int) -> dict[str, Row]:
    """One row of each data set, in its columns."""
    turns = [f"Turn {turn} of {number}." for turn in range(7)]
    said = {"text": f"A story of number {number} and a dog."}
    return {
        "imdb": {"text": f"I saw film {number} and<br />it was fine as films go.", "label": number % 2},
        "cnn-dailymail": {"article": f"Number {number} has won the race. It was long.", "highlights": f"{number} won."},
        "iwslt-en-de": {"translation": {"en": f"Number {number}.", "de": f"Nummer {number}."}},
        "totto": {
            "table": table(),
            "table_page_title": f"Team {number}",
            "table_section_title": "Medals",
            "highlighted_cells": [[2, 1], [2, 2]],
            "sentence_annotations": {"final_sentence": [f"Team {number} won 3 gold.", f"{number} won five silver."]},
        },
        "common-gen": {"concepts": ["dog", f"run{number}"], "target": f"Dog {number} runs.", "references": []},
        "daily-dialog": {"dialog": turns, "act": [1] * 7, "emotion": [0] * 7},
        "narrative-qa": {
            "document": {"summary": said},
            "question": {"text": f"Who is in {number}?"},
            "answers": [{"text": "A Dog"}, {"text": " The dog "}],
        },
    }


TASKS = tuple(rows(0))


def test_every_task_has_a_recipe_and_a_way_to_make_its_files() -> None:
    assert {file.stem for file in RECIPES.glob("*.yaml")} == set(TASKS) == set(rl4lms_data.TASKS)


def test_prompts_are_worded_as_published() -> None:
    found = {task: list(rl4lms_data.TASKS[task][0](row)) for task, row in rows(7).items()}
    assert found["imdb"] == [{"prompt": "I saw film 7 and", "reference": ["it was fine as films go."]}]
    assert found["cnn-dailymail"][0]["prompt"].startswith("Summarize: Number 7 has won")
    assert found["iwslt-en-de"] == [
        {"prompt": "translate English to German: Number 7.\nGerman:", "reference": ["Nummer 7."]}
    ]
    assert found["common-gen"][0] == {
        "prompt": "generate a sentence with: dog run7.\nSentence:",
        "reference": ["Dog 7 runs."],
    }
    assert [row["reference"] for row in found["daily-dialog"]] == [["Turn 5 of 7."], ["Turn 6 of 7."]]
    assert found["daily-dialog"][1]["prompt"].startswith("Turn 1 of 7.<EOU>Turn 2")
    assert found["narrative-qa"][0]["prompt"].startswith("who is in 7? \n a story of number 7")
    assert found["narrative-qa"][0]["reference"] == ["a dog", "the dog"]


def test_a_tables_cells_have_the_headers_above_and_before_them() -> None:
    (row,) = rl4lms_data.totto(rows(1)["totto"])
    assert row["prompt"] == (
        "<page_title> Team 1 </page_title> <section_title> Medals </section_title> <table> "
        "<cell> 3 <col_header> Medals </col_header> <col_header> Gold </col_header> <row_header> 1999 </row_header> "
        "</cell> <cell> 5 <col_header> Medals </col_header> <col_header> Silver </col_header> <row_header> 1999 "
        "</row_header> </cell> </table>\nSentence:"
    )
    assert list(rl4lms_data.totto(rows(1)["totto"] | {"sentence_annotations": {"final_sentence": [""]}})) == []


def test_the_share_of_numbers_that_increase() -> None:
    texts = ["0 1 2 3 4 5 6 7 8 9 ", "3 5 4 6 ", "Lets 1 2 ", "", "now ", " ".join(map(str, range(12)))]
    assert increasing_numbers.increasing([""] * 6, texts) == [1.0, 0.2, 0.2, 0.0, 0.0, 1.0]


def test_the_page_names_every_task_and_its_commands_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "rl4lms.md").read_text(encoding="utf-8")
    for task, (_, source, *_) in rl4lms_data.TASKS.items():
        assert f"| `rl4lms/{task}` |" in text and f"| {source} |" in text
    (command,) = re.findall(r"^python recipes/rl4lms/rl4lms_data.py (.*)$", text, re.MULTILINE)
    asked: list[Any] = []

    def load(name: str, subset: str | None, split: str) -> list[Row]:
        asked.append((name, subset, split))
        return [rows(number)["common-gen"] for number in range(3)]

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr(sys, "argv", ["rl4lms_data.py", *command.split(), "--limit", "3"])
    monkeypatch.chdir(tmp_path)
    rl4lms_data.main()
    assert asked == [("GEM/common_gen", None, "train[:3]"), ("GEM/common_gen", None, "validation[:3]")]
    made = tmp_path / "rl4lms-data" / "common-gen"
    assert {file.name: len(file.read_text().splitlines()) for file in made.iterdir()} == {
        "demonstrations.jsonl": 3, "prompts.jsonl": 3, "test.jsonl": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data files of all tasks, a tiny causal model and a tiny classifier."""
    folder = tmp_path_factory.mktemp("rl4lms")
    for task in TASKS:
        sets = [[rows(number)[task] for number in numbers] for numbers in (range(60), range(60, 80))]
        rl4lms_data.make(task, *sets, folder / task)
    texts = [json.dumps(row) for row in rows(0).values()]
    init = Init(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=400, architecture="gpt2",
                max_position_embeddings=700)  # fmt: skip
    tokenizer = tokenizing.train_tokenizer(init, texts)
    model = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
    tokenizer.pad_token = None
    build.save_model(model, tokenizer, folder / "model")
    own = tokenizing.train_tokenizer(init, texts)
    size = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 1, "max_position_embeddings": 128}
    classifier = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=len(own), num_labels=2, **size))
    build.save_model(classifier, own, folder / "classifier")
    return folder


SMALLER = (
    "data.prompts.eval=2", "data.prompts.test=4", "ppo.total_episodes=16", "ppo.per_device_train_batch_size=8",
    "ppo.num_mini_batches=4", "ppo.response_length=6", "ppo.kl_target=0.5", "ppo.kl_horizon=80", "ppo.eval.every=1",
    "compare.bootstrap_samples=100",
)  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_whole_on_stand_ins(
    task: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHFCTL_RL4LMS", str(stand_ins))
    more = [f"reward.model={stand_ins / 'classifier'}"] if task == "imdb" else ["sft.trainer.num_train_epochs=1"]
    loaded = load_recipe(RECIPES / f"{task}.yaml", [f"model.path={stand_ins / 'model'}", *SMALLER, *more])
    (tmp_path / "run").mkdir()
    events: list[Any] = []
    pipeline.run(loaded, tmp_path / "run", pipeline.Request(), events.append)
    said = " ".join(getattr(event, "message", "") for event in events)
    assert "cannot be used" not in said
    made = load_artifact(tmp_path / "run" / "ppo")
    assert made.manifest.section["rewards"] == loaded.recipe.ppo.rewards and made.manifest.metrics["updates"] == 2
    found = json.loads((tmp_path / "run" / "compare" / "compare.json").read_text(encoding="utf-8"))
    assert loaded.recipe.compare is not None and len(found["judges"]) == 1
    assert set(found["metrics"]) == set(loaded.recipe.compare.metrics)
