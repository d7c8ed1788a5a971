"""Rows that answer a test prompt: found in every shape, named, and left out where the recipe says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhfctl import pipeline
from rlhfctl.data.leaks import answered_keys, find_leaks, leak_key
from rlhfctl.data.load import check_all
from rlhfctl.data.types import PromptSplit, examples
from rlhfctl.errors import DataError
from rlhfctl.events import Warned
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts

TEST = 3


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation in which user and assistant take turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How are you?", " how  are\nyou? ", True),
        ("How are you?", "How are you", False),
        ("How are you?", turns("How are you?"), True),
        (turns("Hi", "Hello", "How?"), turns("hi ", "Hello", "how?"), True),
        (turns("Hi", "Hello", "How?"), turns("Hi", "Good day", "How?"), False),
        (turns("Hi", "Hello", "How?"), "How?", False),
    ],
)
def test_what_makes_two_prompts_the_same(one: Any, other: Any, same: bool) -> None:
    assert (leak_key(one) == leak_key(other)) is same


def test_a_conversation_answers_each_of_its_user_turns() -> None:
    row = {"messages": turns("a", "b", "c", "d")}
    assert answered_keys(row) == {leak_key("a"), leak_key(turns("a", "b", "c"))}
    pair = {"prompt": turns("a", "b", "c"), "chosen": turns("")[:1], "rejected": turns("")[:1]}
    assert answered_keys(pair) == {leak_key("a"), leak_key(turns("a", "b", "c"))}
    assert answered_keys({"text": "a"}) == set()


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Twelve prompts, and a demonstration and a pair for each of them."""
    asked = [f"question {number}" for number in range(12)]
    files: dict[str, list[dict[str, Any]]] = {
        "prompts": [{"prompt": text} for text in asked],
        "demonstrations": [{"messages": turns(text.upper(), "fine")} for text in asked],
        "preferences": [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in asked],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Data(
        demonstrations=Demonstrations(source=str(tmp_path / "demonstrations.jsonl")),
        preferences=Preferences(source=str(tmp_path / "preferences.jsonl")),
        prompts=Prompts(source=str(tmp_path / "prompts.jsonl"), test=TEST, eval=0),
    )


def test_leaks_are_named_for_each_data_set(data: Data) -> None:
    sentences = list(find_leaks(check_all(data, 0)))
    assert [sentence.split(", e.g.")[0] for sentence in sentences] == [
        "3 of 3 test prompts are in the demonstrations too",
        "3 of 3 test prompts are in the preferences too",
    ]


def test_a_run_warns_before_anything_trains(data: Data, tmp_path: Path) -> None:
    init = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 300}
    recipe = {"name": "leaks", "model": {"init": init}, "data": data.model_dump(mode="json"), "sft": {}}
    (tmp_path / "leaks.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    events: list[Any] = []

    class Enough(Exception):
        pass

    def emit(event: Any) -> None:
        events.append(event)
        if isinstance(event, Warned) and "test prompts" in event.message:
            raise Enough

    with pytest.raises(Enough):
        pipeline.run(load_recipe(tmp_path / "leaks.yaml"), tmp_path / "run", pipeline.Request(), emit)
    assert events[-1].message == (
        "3 of 3 test prompts are in the demonstrations too, e.g. 'question 1': the verdict would measure memory; leave "
        "these rows out with data.leaks: drop, or use other test prompts"
    )


def test_the_data_seed_alone_chooses_the_test_prompts(data: Data) -> None:
    def test_prompts(seed: int) -> list[str]:
        split = check_all(data, seed)["prompts"].split
        assert isinstance(split, PromptSplit)
        return [row["prompt"] for row in split.test]

    assert test_prompts(0) == test_prompts(0) != test_prompts(1)


def test_drop_leaves_out_exactly_the_rows_that_answer_a_test_prompt(data: Data) -> None:
    kept, dropped = check_all(data, 0), check_all(data.model_copy(update={"leaks": "drop"}), 0)
    assert list(find_leaks(dropped)) == []
    split = dropped["prompts"].split
    assert isinstance(split, PromptSplit)
    test = {leak_key(row["prompt"]) for row in split.test}
    for name in ("demonstrations", "preferences"):
        expected = [row for row in kept[name].rows if not answered_keys(row) & test]
        assert dropped[name].rows == expected
        assert len(expected) == 12 - TEST
        assert "3 of 12 rows answer a test prompt and are dropped (data.leaks: drop)" in dropped[name].notes
        assert dropped[name].fingerprint != kept[name].fingerprint  # what is trained on them is made again
    pairs = dropped["preferences"].split
    assert pairs is not None
    assert all(not answered_keys(row) & test for part in vars(pairs).values() for row in examples(part))


def test_a_single_stage_drops_the_same_rows(data: Data) -> None:
    data = data.model_copy(update={"leaks": "drop"})
    alone = check_all(data, 0, {"demonstrations"})
    assert list(alone) == ["demonstrations"]
    assert alone["demonstrations"] == check_all(data, 0)["demonstrations"]


def test_nothing_left_is_an_error(data: Data, tmp_path: Path) -> None:
    (tmp_path / "demonstrations.jsonl").write_text('{"prompt": "question 0", "completion": "x"}\n', encoding="utf-8")
    seed = next(
        seed
        for seed in range(99)
        if "question 0" in str(check_all(data, seed, {"prompts"})["prompts"].split.test)  # type: ignore[union-attr]
    )
    with pytest.raises(DataError, match=r"all 1 rows answer a test prompt") as error:
        check_all(data.model_copy(update={"leaks": "drop"}), seed)
    assert error.value.where == "data.demonstrations"
