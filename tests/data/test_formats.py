"""Transcripts, implicit prompts, ranked lists, margins and ties become pairs of prompt, chosen and rejected."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data import formats, types
from rlhfctl.data.load import load_demonstrations, load_preferences, load_prompts
from rlhfctl.data.sifting import characters
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Demonstrations, Preferences, Prompts, Turns

HH = {
    "chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: I see. Because: of this.",
    "rejected": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: I see nothing.",
}
ASKED = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def load(section: Any, *rows: Any, path: Path) -> types.Rows:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaders = {"Preferences": load_preferences, "Demonstrations": load_demonstrations}
    return loaders.get(type(section).__name__, load_prompts)(section.model_copy(update={"source": str(path)}), 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


# ---------------------------------------------------------------- implicit prompts


def test_a_public_preference_set_needs_no_prompt_column(path: Path) -> None:
    found = load(Preferences(source="x"), HH, path=path).rows
    assert found == [
        {
            "prompt": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:",
            "chosen": " I see. Because: of this.",
            "rejected": " I see nothing.",
        }
    ]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("the film is good", "the film is bad", "the film is"),
        ("the film is good", "the film isn't", "the film"),  # the prompt ends with a whole word
        ("one two", "one two three", "one"),  # one is the other's beginning: each keeps a word of its own
        ("a\nb", "a\nc", "a"),
    ],
)
def test_the_shared_beginning_is_the_prompt(chosen: str, rejected: str, prompt: str) -> None:
    row = formats.with_prompt({"chosen": chosen, "rejected": rejected, "id": 7})
    assert row["prompt"] == prompt and row["prompt"] + row["chosen"] == chosen and row["id"] == 7
    assert row["prompt"] + row["rejected"] == rejected and row["chosen"].strip() and row["rejected"].strip()


def test_shared_messages_are_the_prompt() -> None:
    row = formats.with_prompt({"chosen": [*ASKED, *said("a")], "rejected": [*ASKED, *said("b")]})
    assert row == {"prompt": ASKED, "chosen": said("a"), "rejected": said("b")}


def test_without_a_shared_beginning_it_is_said(path: Path) -> None:
    with pytest.raises(DataError, match="begin differently, so none can be told"):
        load(Preferences(source="x"), {"chosen": "good film", "rejected": "bad film"}, path=path)


# ---------------------------------------------------------------- transcripts


def test_transcripts_become_conversations_where_the_recipe_says_so(path: Path) -> None:
    found = load(Preferences(source="x", turns=Turns()), HH, path=path).rows
    assert found == [{"prompt": ASKED, "chosen": said("I see. Because: of this."), "rejected": said("I see nothing.")}]


def test_other_words_begin_turns_too() -> None:
    turns = Turns(user="### Q", assistant="### A", system="### S")
    text = "### S be kind\n### Q what?\nsecond line\n### A that\n### Q and?\n### A"
    assert formats.conversation(text, turns) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "what?\nsecond line"},
        {"role": "assistant", "content": "that"},
        {"role": "user", "content": "and?"},
    ]
    # A word in the middle of a line begins nothing.
    whole = formats.conversation("Human: say Human: twice\nAssistant: no", Turns())
    assert [message["content"] for message in whole] == ["say Human: twice", "no"]


def test_prompts_and_demonstrations_are_transcripts_too(path: Path) -> None:
    found = load(Prompts(source="x", turns=Turns()), {"prompt": "Human: a\n\nAssistant:", "tag": 1}, path=path).rows
    assert found == [{"prompt": [{"role": "user", "content": "a"}], "tag": 1}]
    texts = [{"text": "Human: a\nAssistant: b"}, {"prompt": "Human: a\nAssistant:", "completion": " b"}]
    rows = load(Demonstrations(source="x", turns=Turns()), *texts, path=path).rows
    assert rows[0] == {"messages": [{"role": "user", "content": "a"}, *said("b")]}
    assert rows[1] == {"prompt": [{"role": "user", "content": "a"}], "completion": said("b")}


def test_a_text_without_turns_is_said(path: Path) -> None:
    with pytest.raises(DataError, match="prompt: begins with no turn: 'Human:' or 'Assistant:'"):
        load(Prompts(source="x", turns=Turns()), {"prompt": "just text"}, path=path)


# ---------------------------------------------------------------- ranked lists, ties, margins


def test_a_ranked_list_is_a_pair_for_each_two() -> None:
    dropped: Counter[str] = Counter()
    found = formats.comparisons_of({"prompt": "p", "responses": ["a", "b", "c", "d"]}, dropped)
    assert len(found) == 6 and not dropped
    assert [comparison for comparison, _ in found] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    pairs = [pair for _, pair in found]
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert all(set(pair) == {"prompt", "chosen", "rejected"} for pair in pairs)


def test_scores_rank_and_equal_ones_are_ties(path: Path) -> None:
    row = {"prompt": "p", "responses": [" a", " b", " c"], "scores": [1, 3.5, 1]}
    found = load(
        Preferences(source="x"), row, {"prompt": "q", "chosen": " a", "rejected": " b", "tie": True}, path=path
    )
    assert [(pair["chosen"], pair["rejected"]) for pair in found.rows] == [(" b", " a"), (" b", " c")]
    assert found.notes == ("dropped: 2 ties",)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"responses": ["a"]}, "at least two"),
        ({"responses": "ab"}, "at least two"),
        ({"responses": ["a", "b"], "scores": [1]}, "expected 2 numbers"),
        ({"responses": ["a", "b"], "scores": [1, "best"]}, "expected numbers"),
        ({"responses": ["a", "b"], "scores": [1, float("nan")]}, "expected numbers"),
        ({"responses": ["a", " "]}, "rejected is empty"),
        ({"chosen": "a", "rejected": "b", "margin": "wide"}, "margin: expected a number"),
    ],
)
def test_what_is_wrong_with_a_list_or_a_margin_is_said(more: dict[str, Any], problem: str, path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        load(Preferences(source="x"), {"prompt": "p"} | more, path=path)


def test_a_margin_is_kept(path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2},
        {"prompt": "p", "chosen": "a", "rejected": "c"},
    ]
    found = load(Preferences(source="x"), *rows, path=path).rows
    assert found[0]["margin"] == 2 and "margin" not in found[1]


def test_margins_and_ties_in_the_cells_of_a_table(tmp_path: Path) -> None:
    """Cells are text: a margin is its number, and a tie is one however a spreadsheet writes it."""
    path = tmp_path / "pairs.csv"
    ties = ("", "FALSE", "0", "TRUE", "1", "true")
    lines = [f"p{n}, a, b,0.5,{tie}" for n, tie in enumerate(ties)]
    path.write_text("prompt,chosen,rejected,margin,tie\n" + "\n".join(lines) + "\n")
    found = load_preferences(Preferences(source=str(path)), 0)
    assert [(row["prompt"], row["margin"]) for row in found.rows] == [("p0", 0.5), ("p1", 0.5), ("p2", 0.5)]
    assert found.notes == ("dropped: 3 ties",)
    path.write_text("prompt,chosen,rejected,margin\np,a,b,nan\n")
    with pytest.raises(DataError, match="margin: expected a number"):
        load_preferences(Preferences(source=str(path)), 0)


# ---------------------------------------------------------------- what is left out, and said


def test_everything_dropped_is_counted(path: Path) -> None:
    rows = [{"prompt": "p" * n} for n in (1, 1, 2, 9, 3, 4)] + [{"prompt": ""}]
    section = Prompts(source="x", deduplicate=True, max_chars=5, limit=3, bad_rows="drop")
    found = load(section, *rows, path=path)
    assert [row["prompt"] for row in found.rows] == ["p", "pp", "ppp"]
    assert found.notes == (
        f"1 of 7 rows cannot be used and are dropped, the first: {path}:7: prompt is empty",
        "dropped: 1 duplicates, 1 longer than 5 characters",
        "the first 3 of 4 are used",
    )
    with pytest.raises(DataError, match="1 of 7 rows") as caught:
        load(section.model_copy(update={"bad_rows": "stop"}), *rows, path=path)
    assert "bad_rows: drop" in str(caught.value.fix)


def test_length_is_that_of_prompt_and_longest_response(path: Path) -> None:
    rows = [{"prompt": "pp", "chosen": " bc", "rejected": "-"}, {"prompt": "pp", "chosen": "-", "rejected": " bcd"}]
    found = load(Preferences(source="x", max_chars=5), *rows, path=path)
    assert len(found.rows) == 1 and found.notes == ("dropped: 1 longer than 5 characters",)
    messages = {"messages": [{"role": "user", "content": "aaa"}, *said("bbb")]}
    assert characters(messages) == 6


def test_rows_that_can_none_be_used_stop_even_where_bad_ones_are_dropped(path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 rows"):
        load(Prompts(source="x", bad_rows="drop"), {"prompt": ""}, {"question": "a"}, path=path)
    with pytest.raises(DataError, match="holds no rows after 1 longer than 2 characters were dropped"):
        load(Prompts(source="x", max_chars=2), {"prompt": "long"}, path=path)
