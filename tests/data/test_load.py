"""Rows: every accepted shape, what is said of each kind of bad one, and splits that share no prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data.load import check_all, load_demonstrations, load_preferences, load_prompts
from rlhfctl.data.splits import prompt_key, split_preferences, split_prompts
from rlhfctl.data.text_files import read_jsonl
from rlhfctl.data.types import PreferenceGroup, PromptSplit, Row, Rows, examples
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


ASK, ANSWER, OTHER = message("user", "q"), message("assistant", "a"), message("assistant", "b")


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(kind: str, source: str, **options: Any) -> Rows:
    """The rows of one file as demonstrations, preferences or prompts."""
    if kind == "demonstrations":
        return load_demonstrations(Demonstrations(source=source, **options), 0)
    if kind == "preferences":
        return load_preferences(Preferences(source=source, **options), 0)
    return load_prompts(Prompts(source=source, **options), 0)


# ---------------------------------------------------------------- shapes that are taken


@pytest.mark.parametrize(
    ("kind", "row", "taken"),
    [
        ("demonstrations", {"prompt": "q", "completion": " a"}, ...),
        ("demonstrations", {"prompt": [ASK], "completion": [ANSWER]}, ...),
        ("demonstrations", {"messages": [message("system", ""), ASK, ANSWER, ASK, OTHER]}, ...),
        ("demonstrations", {"text": "once"}, ...),
        ("demonstrations", {"text": "once", "url": 1}, {"text": "once"}),
        ("demonstrations", {"prompt": None, "completion": None, "messages": None, "text": "t"}, {"text": "t"}),
        ("demonstrations", {"messages": None, "prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b"}, ...),
        ("preferences", {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER]}, ...),
        ("preferences", {"prompt": [ASK], "chosen": [ANSWER, ASK, ANSWER], "rejected": [OTHER]}, ...),
        (
            "preferences",
            {"prompt": "q", "chosen": "a", "rejected": "b", "id": 1},
            {"prompt": "q", "chosen": "a", "rejected": "b"},
        ),
        ("prompts", {"prompt": "q"}, ...),
        ("prompts", {"prompt": "q", "answer": 4, "hint": None}, ...),
        ("prompts", {"prompt": [message("system", "s"), ASK]}, ...),
        ("prompts", {"prompt": [ASK, message("tool", "42")]}, ...),
        ("prompts", {"messages": [ASK], "answer": 4}, {"prompt": [ASK], "answer": 4}),
        ("prompts", {"prompt": None, "messages": [ASK]}, {"prompt": [ASK]}),
        ("prompts", {"prompt": "q", "messages": None}, ...),
        (
            "prompts",
            {"chosen": [ASK, ANSWER], "rejected": [ASK, OTHER], "id": 1},
            {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER], "id": 1},
        ),
        ("prompts", {"prompt": "q", "chosen": "qa", "rejected": "qb"}, ...),
    ],
)
def test_each_shape_is_taken(tmp_path: Path, kind: str, row: Row, taken: Any) -> None:
    rows = load(kind, write(tmp_path / "d.jsonl", row))
    assert rows.rows == [row if taken is ... else taken] and rows.name == kind


# ---------------------------------------------------------------- rows that are refused


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("demonstrations", {"answer": "a"}, "needs prompt and completion, or messages, or text; it has answer"),
        ("demonstrations", {}, "needs prompt and completion, or messages, or text; it has no columns"),
        ("demonstrations", {"prompt": "q"}, "has no completion; it has prompt"),
        ("demonstrations", {"completion": "a", "id": 1}, "has no prompt; it has completion, id"),
        ("demonstrations", {"prompt": " \n", "completion": "a"}, "prompt is empty"),
        ("demonstrations", {"prompt": "q", "completion": " "}, "completion is empty"),
        ("demonstrations", {"prompt": 3, "completion": "a"}, "expected a string or a list of messages, got a number"),
        ("demonstrations", {"prompt": True, "completion": "a"}, "messages, got true/false"),
        ("demonstrations", {"prompt": "q", "completion": [OTHER, "a"]}, "completion[1]: a message needs role and"),
        ("demonstrations", {"prompt": "q", "completion": [ASK, ANSWER, ASK]}, "must end with a message of"),
        ("demonstrations", {"prompt": [ASK], "completion": ANSWER}, "expected a list of messages, got an object"),
        ("demonstrations", {"prompt": [ASK], "completion": [ASK]}, "completion must end with a message of the"),
        ("demonstrations", {"prompt": [ASK, ANSWER], "completion": [ANSWER]}, "prompt ends with the assistant's turn"),
        ("demonstrations", {"messages": "q"}, "messages: expected a list of messages, got a string"),
        ("demonstrations", {"messages": []}, "messages: expected a list of messages, got a list"),
        ("demonstrations", {"messages": [ASK, "a"]}, "messages[1]: a message needs role and content, both strings"),
        ("demonstrations", {"messages": [ASK, {"role": "assistant", "content": None}]}, "messages[1]: a message needs"),
        ("demonstrations", {"messages": [message("narrator", "q"), ANSWER]}, "messages[0]: unknown role 'narrator'"),
        ("demonstrations", {"messages": [{"content": "q"}, ANSWER]}, "messages[0]: unknown role None"),
        ("demonstrations", {"messages": [ANSWER, ASK]}, "must end with a message of the assistant, not of the user"),
        ("demonstrations", {"messages": [ASK, message("assistant", " ")]}, "messages: the last message is empty"),
        ("demonstrations", {"text": ""}, "text is empty"),
        ("demonstrations", {"text": ["t"]}, "text: expected a string, got a list"),
        ("preferences", {"prompt": "q", "chosen": "a"}, "has no rejected; it has chosen, prompt"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": None}, "has no rejected"),
        ("preferences", {"question": "q"}, "has no prompt and no chosen and no rejected; it has question"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ("preferences", {"prompt": "q", "chosen": "", "rejected": "a"}, "chosen is empty"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": [OTHER]}, "rejected is a list but prompt is"),
        ("preferences", {"prompt": [ASK], "chosen": [ANSWER], "rejected": [ASK]}, "rejected must end with"),
        ("prompts", {"question": "q"}, "has no prompt; it has question"),
        ("prompts", {"prompt": ""}, "prompt is empty"),
        ("prompts", {"prompt": {"a": 1}}, "messages, got an object"),
        ("prompts", {"prompt": [ANSWER]}, "prompt ends with the assistant's turn; the response comes next"),
        ("prompts", {"chosen": "a", "rejected": "b"}, "chosen and rejected begin differently, so none can be told"),
        ("prompts", {"prompt": [message("user", " ")]}, "prompt: the last message is empty"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_row_is_named_with_its_line(tmp_path: Path, kind: str, row: Row, said: str) -> None:
    good = {
        "demonstrations": {"prompt": "q", "completion": "a"},
        "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "prompts": {"prompt": "q"},
    }[kind]
    source = write(tmp_path / "d.jsonl", good, row, good)
    with pytest.raises(DataError) as caught:
        load(kind, source)
    head, line, fix = str(caught.value).splitlines()
    assert head == f"1 of 3 rows of data.{kind} cannot be used:"
    assert line.startswith(f"    {source}:2: ") and said in line
    assert "columns" in fix and caught.value.exit_code == 2


def test_of_many_bad_rows_five_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "q"}\n\n' + '{"promt": "q"}\n' * 7)
    with pytest.raises(DataError) as caught:
        load("prompts", str(path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 8 rows of data.prompts cannot be used:"
    assert lines[1:6] == [f"    {path}:{number}: has no prompt; it has promt" for number in range(3, 8)]
    assert lines[6] == "    and 2 more"
    write(path, *[{"promt": "q"}] * 5)
    with pytest.raises(DataError) as caught:
        load("prompts", str(path))
    assert "more" not in str(caught.value)


# ---------------------------------------------------------------- files that are refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8 text"),
        (b'{"prompt": "q"', "not a JSON object (Expecting ',' delimiter at character 15)"),
        (b"{'prompt': 'q'}", "not a JSON object"),
        (b'["q"]', "expected a JSON object, got a list"),
        (b'"q"', "expected a JSON object, got a string"),
        (b"3", "expected a JSON object, got a number"),
        (b"null", "expected a JSON object, got null"),
        (b'{"prompt": "\\ud83d"}', "\\ud83d is half a surrogate pair, not a character"),
        (b'{"prompt": "\\uDE00 x"}', "\\ude00 is half a surrogate pair"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "q"}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    head, shown, fix = str(caught.value).splitlines()
    assert head == "1 line cannot be read:" and shown.startswith(f"    {path}:2: {said}")
    assert fix.startswith(
        "  fix: convert it: iconv" if "UTF-8" in said else "  fix: one JSON object per line, in UTF-8"
    )


def test_of_many_broken_lines_five_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("{\n" * 8)
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "8 lines cannot be read:" and len(lines) == 8
    assert [line.split(": ")[0] for line in lines[1:6]] == [f"    {path}:{number}" for number in range(1, 6)]
    assert lines[6] == "    and 3 more"


def test_what_editors_leave_in_files_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9 \\ud83d\\ude00"}\r\n\n  \n{"prompt": "last"}')
    rows, places = read_jsonl(path)
    assert rows == [{"prompt": "café 😀"}, {"prompt": "last"}]
    assert places == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="the data file is empty") as caught:
        read_jsonl(path)
    assert caught.value.where == str(path)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data file does not exist") as caught:
        read_jsonl(tmp_path / "nowhere" / "d.jsonl")
    assert caught.value.fix == "check the path; it is read relative to the recipe"
    for name in ("train.jsonl", "test.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError) as caught:
        read_jsonl(tmp_path / "tran.jsonl")
    assert caught.value.where == str(tmp_path / "tran.jsonl")
    assert caught.value.fix == "in that folder: test.jsonl, train.jsonl"


# ---------------------------------------------------------------- columns and limit


def test_columns_are_renamed(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"question": "q", "good": "a", "bad": "b", "prompt": "not this one"})
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert load("preferences", source, columns=columns).rows == [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    source = write(tmp_path / "p.jsonl", {"question": "q", "level": 3})
    assert load("prompts", source, columns={"prompt": "question"}).rows == [{"prompt": "q", "level": 3}]
    both = {"prompt": "question", "asked": "question"}
    assert load("prompts", source, columns=both).rows == [{"prompt": "q", "asked": "q", "level": 3}]


def test_a_row_that_lacks_the_named_column_is_not_read_from_another(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"question": "q"}, {"prompt": "p", "id": 1})
    with pytest.raises(DataError, match=r"d\.jsonl:2: has no prompt; it has id"):
        load("prompts", source, columns={"prompt": "question"})


def test_two_columns_can_be_swapped(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"prompt": "q", "chosen": "worse", "rejected": "better"})
    rows = load("preferences", source, columns={"chosen": "rejected", "rejected": "chosen"}).rows
    assert rows == [{"prompt": "q", "chosen": "better", "rejected": "worse"}]


def test_a_column_that_no_row_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"prompt": "q", "answer": 1}, {"prompt": "r", "level": 2})
    with pytest.raises(DataError, match=r"no row has the column 'anwser' that data\.prompts\.columns\.gold names") as e:
        load("prompts", source, columns={"gold": "anwser"})
    assert e.value.fix == "the file's columns are: answer, level, prompt"
    rows = load("prompts", source, columns={"gold": "answer"}).rows  # in some rows is enough for a column of one's own
    assert rows == [{"prompt": "q", "gold": 1}, {"prompt": "r", "level": 2}]


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", *({"prompt": str(i)} for i in range(5)))
    assert [row["prompt"] for row in load("prompts", source, limit=2).rows] == ["0", "1"]
    assert len(load("prompts", source, limit=9).rows) == 5


def test_each_row_has_its_location_after_sifting_and_splitting(tmp_path: Path) -> None:
    numbers = [0, 1, 1, 2, 3, 4, 99999, 5]  # a copy in line 3, a long row in line 7
    source = write(tmp_path / "d.jsonl", *({"prompt": f"question {n}", "n": n} for n in numbers))
    prompts = Prompts(source=source, deduplicate=True, max_chars=12, limit=5, eval=1, test=2)
    loaded = check_all(Data(prompts=prompts), 0)["prompts"]
    assert [(row["n"], loaded.location_of(row)) for row in loaded.rows] == [
        (n, f"{source}:{line}") for n, line in ((0, 1), (1, 2), (2, 4), (3, 5), (4, 6))
    ]
    assert loaded.locations == tuple(f"{source}:{line}" for line in (1, 2, 4, 5, 6))
    assert isinstance(loaded.split, PromptSplit)
    lines = [loaded.location_of(row) for rows in vars(loaded.split).values() for row in rows]
    assert sorted(lines) == sorted(loaded.locations)


def test_all_pairs_of_a_ranked_list_come_from_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": str(n), "responses": ["a", "b", "c"]} for n in range(2)]
    loaded = load("preferences", write(tmp_path / "d.jsonl", *rows))
    assert [loaded.location_of(row).rpartition(":")[2] for row in loaded.rows] == ["1"] * 3 + ["2"] * 3


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", {"prompt": "q"}), write(tmp_path / "b.jsonl", {"prompt": "q"})
    assert load("prompts", one).fingerprint == load("prompts", two).fingerprint
    write(tmp_path / "b.jsonl", {"prompt": "r"})
    assert load("prompts", one).fingerprint != load("prompts", two).fingerprint


# ---------------------------------------------------------------- the built-in task


def builtin(kind: str, seed: int = 0, rows: int = 30, **options: Any) -> Rows:
    loaders: dict[str, Callable[..., Rows]] = {
        "demonstrations": load_demonstrations,
        "preferences": load_preferences,
        "prompts": load_prompts,
    }
    sections = {"demonstrations": Demonstrations, "preferences": Preferences, "prompts": Prompts}
    return loaders[kind](sections[kind](source="builtin:reviews", rows=rows, **options), seed)


@pytest.mark.parametrize("kind", ["demonstrations", "preferences", "prompts"])
def test_the_fingerprint_of_the_built_in_task_tells_its_rows(kind: str) -> None:
    base = builtin(kind)
    assert len(base.rows) == 30 and builtin(kind) == base
    others = [builtin(kind, seed=1), builtin(kind, rows=31)]
    if kind == "preferences":
        others.append(builtin(kind, label_noise=0.5))
    prints = [rows.fingerprint for rows in (base, *others)]
    assert len(set(prints)) == len(prints)
    assert others[1].rows[:30] == base.rows
    assert builtin(kind, limit=7).rows == base.rows[:7]


def test_the_sets_of_the_built_in_task_differ() -> None:
    assert set(builtin("demonstrations").rows[0]) == {"prompt", "completion"}
    assert set(builtin("preferences").rows[0]) == {"prompt", "chosen", "rejected"}
    assert set(builtin("prompts").rows[0]) == {"prompt"}


# ---------------------------------------------------------------- splits


def text_prompt(number: int) -> str:
    return f"prompt {number}"


def conversation(number: int) -> list[dict[str, Any]]:
    return [message("system", "same"), message("user", f"prompt {number}")]


def as_rows(make: Callable[[int], Any], distinct: int, copies: int) -> list[Row]:
    """`copies` rows of each prompt, far apart; each row has a number of its own."""
    return [{"prompt": make(n % distinct), "chosen": str(n), "rejected": "x"} for n in range(distinct * copies)]


def as_groups(make: Callable[[int], Any], distinct: int, copies: int) -> list[PreferenceGroup]:
    """The same rows as groups of two."""
    rows = as_rows(make, distinct, copies)
    return [PreferenceGroup(row["prompt"], (row["chosen"], row["rejected"]), (0, 1), ((0, 1),)) for row in rows]


def keys(rows: list[Row]) -> list[str]:
    return [prompt_key(row["prompt"]) for row in rows]


@pytest.mark.parametrize("make", [text_prompt, conversation])
@pytest.mark.parametrize("copies", [1, 3])
def test_held_out_pairs_share_no_prompt_with_the_others(make: Callable[[int], Any], copies: int) -> None:
    groups = as_groups(make, 40, copies)
    split = split_preferences(Preferences(source="d", heldout=0.25), groups, 0)
    train, heldout = examples(split.train), examples(split.heldout)
    assert not set(keys(train)) & set(keys(heldout))
    assert len(split.heldout) == 10 * copies and len(split.train) == 30 * copies
    assert sorted(split.train + split.heldout, key=groups.index) == groups


@pytest.mark.parametrize(("heldout", "distinct", "expected"), [(0.01, 10, 1), (0.9, 2, 1), (0.9, 10, 9), (0.5, 5, 2)])
def test_neither_side_is_ever_empty(heldout: float, distinct: int, expected: int) -> None:
    split = split_preferences(Preferences(source="d", heldout=heldout), as_groups(text_prompt, distinct, 2), 0)
    assert len(split.heldout) == 2 * expected and split.train


def test_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="one distinct prompt: none can be held out"):
        split_preferences(Preferences(source="d"), as_groups(text_prompt, 1, 9), 0)


@pytest.mark.parametrize("make", [text_prompt, conversation])
def test_prompts_are_split_three_ways_without_a_leak(make: Callable[[int], Any]) -> None:
    rows = as_rows(make, 20, 3)
    split = split_prompts(Prompts(source="d", eval=4, test=6), rows, 0)
    train, evaluation, test = (Counter(keys(part)) for part in (split.train, split.eval, split.test))
    assert (len(train), len(evaluation), len(test)) == (10, 4, 6)
    assert not train.keys() & evaluation.keys() and not train.keys() & test.keys()
    assert not evaluation.keys() & test.keys()
    assert set(train.values()) == {3}  # a prompt that is there three times is trained on three times
    assert set(evaluation.values()) == set(test.values()) == {1}
    assert all(int(row["chosen"]) < 20 for row in split.eval + split.test)  # the first row of each


def test_the_test_prompts_do_not_depend_on_how_many_are_for_evaluation() -> None:
    rows = as_rows(text_prompt, 20, 1)
    one, two = (split_prompts(Prompts(source="d", eval=n, test=6), rows, 0) for n in (0, 5))
    assert one.test == two.test and one.eval == [] and len(one.train) == 14


def test_splits_follow_the_seed_and_not_the_order_of_rows() -> None:
    rows = as_rows(text_prompt, 30, 2)
    section, prompts = Preferences(source="d", heldout=0.3), Prompts(source="d", eval=5, test=5)
    groups = as_groups(text_prompt, 30, 2)
    held = [set(keys(examples(split_preferences(section, groups, seed).heldout))) for seed in (0, 0, 1, 2)]
    assert held[0] == held[1] and len({frozenset(part) for part in held}) == 3
    tests = [keys(split_prompts(prompts, rows, seed).test) for seed in (0, 0, 1, 2)]
    assert tests[0] == tests[1] and len({tuple(part) for part in tests}) == 3
    assert keys(split_prompts(prompts, rows[::-1], 0).test) == tests[0]
    assert set(keys(examples(split_preferences(section, groups[::-1], 0).heldout))) == held[0]


def test_splits_are_the_same_in_every_process() -> None:
    """Python's own hash of a string differs from process to process; the split must not depend on it."""
    code = (
        "from rlhfctl.data.splits import split_prompts\n"
        "from rlhfctl.recipe.schema import Prompts\n"
        "rows = [{'prompt': f'prompt {n}'} for n in range(30)]\n"
        "print([row['prompt'] for row in split_prompts(Prompts(source='d', test=5), rows, 0).test])\n"
        "import sys; assert 'torch' not in sys.modules\n"
    )
    rows = as_rows(text_prompt, 30, 1)
    here = [row["prompt"] for row in split_prompts(Prompts(source="d", test=5), rows, 0).test]
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize(("evaluation", "test"), [(0, 10), (5, 5), (9, 3)])
def test_too_few_distinct_prompts_are_refused(evaluation: int, test: int) -> None:
    rows = as_rows(text_prompt, 10, 5)
    with pytest.raises(DataError, match=r"data\.prompts: 10 distinct prompts") as caught:
        split_prompts(Prompts(source="d", eval=evaluation, test=test), rows, 0)
    assert "leave none to train on" in str(caught.value)
    assert len(split_prompts(Prompts(source="d", eval=4, test=5), rows, 0).train) == 5


def test_conversations_are_the_same_prompt_whatever_the_order_of_keys() -> None:
    assert prompt_key([{"role": "user", "content": "q"}]) == prompt_key([{"content": "q", "role": "user"}])
    assert prompt_key([message("user", "q")]) != prompt_key([message("system", "q")])


# ---------------------------------------------------------------- all of a recipe's data


def test_all_data_sets_are_checked_and_so_are_their_splits(tmp_path: Path) -> None:
    demonstrations = Demonstrations(source=write(tmp_path / "d.jsonl", {"text": "t"}))
    pairs = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("q", "r")]
    preferences = Preferences(source=write(tmp_path / "p.jsonl", *pairs))
    prompts = Prompts(source=write(tmp_path / "q.jsonl", {"prompt": "q"}, {"prompt": "r"}), test=1)
    data = Data(demonstrations=demonstrations, preferences=preferences, prompts=prompts)
    loaded = check_all(data, 0)
    assert list(loaded) == ["demonstrations", "preferences", "prompts"]
    assert [len(rows.rows) for rows in loaded.values()] == [1, 2, 2]
    assert check_all(Data(), 0) == {}
    write(tmp_path / "p.jsonl", pairs[0])
    with pytest.raises(DataError, match="none can be held out"):
        check_all(data, 0)
    with pytest.raises(DataError, match="leave none to train on"):
        check_all(Data(prompts=Prompts(source=prompts.source, test=2)), 0)


# ---------------------------------------------------------------- texts as turns, and the space between them


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("demonstrations", {"prompt": " q ", "completion": " a"}, {"prompt": [ASK], "completion": [ANSWER]}),
        (
            "preferences",
            {"prompt": "q", "chosen": "a", "rejected": "b "},
            {"prompt": [ASK], "chosen": [ANSWER], "rejected": [OTHER]},
        ),
        ("preferences", {"prompt": [ASK], "chosen": "a", "rejected": "b"}, {"prompt": [ASK], "chosen": [ANSWER]}),
        ("prompts", {"prompt": "q", "level": 3}, {"prompt": [ASK], "level": 3}),
        ("demonstrations", {"messages": [ASK, ANSWER]}, {"messages": [ASK, ANSWER]}),  # they are turns already
        (
            "demonstrations",
            {"system": "s", "prompt": "q", "completion": "a"},
            {"prompt": [message("system", "s"), ASK]},
        ),
    ],
)
def test_as_conversations_makes_turns_of_texts(
    kind: str, row: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    options = {"test": 1} if kind == "prompts" else {}
    (found,) = load(kind, write(tmp_path / "rows.jsonl", row), as_conversations=True, **options).rows
    assert {name: found[name] for name in expected} == expected


def test_as_conversations_cannot_take_a_text_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="as_conversations cannot tell the prompt from the response in one text"):
        load("demonstrations", write(tmp_path / "rows.jsonl", {"text": "q a"}), as_conversations=True)


@pytest.mark.parametrize(
    ("prompt", "response", "prefix", "expected"),
    [
        ("the tea is", "good", " ", " good"),
        ("the tea is", " good", " ", " good"),  # a space is there
        ("the tea is\n", "good", " ", "good"),
        ("the tea is", "good", "", "good"),
        ("Q: tea?", "good", "\nA: ", "\nA: good"),
    ],
)
def test_response_prefix_stands_where_no_white_space_does(
    prompt: str, response: str, prefix: str, expected: str, tmp_path: Path
) -> None:
    row = {"prompt": prompt, "completion": response}
    loaded = load("demonstrations", write(tmp_path / "rows.jsonl", row), response_prefix=prefix)
    assert loaded.rows == [{"prompt": prompt, "completion": expected}]
    joined = any("response_prefix: ' ' puts one there" in note for note in loaded.notes)
    assert joined is (expected == "good" and not prompt.endswith("\n"))
    pair = {"prompt": prompt, "chosen": response, "rejected": "so so"}
    (found,) = load("preferences", write(tmp_path / "pairs.jsonl", pair), response_prefix=prefix).rows
    assert found["chosen"] == expected
