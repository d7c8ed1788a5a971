"""Loading of data sets: columns, limits, locations, fingerprints, and all sets of a recipe together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from row_files import load, message, write

from rlhfctl.data.leaks import find_leaks
from rlhfctl.data.load import check_all, load_demonstrations, load_preferences, load_prompts
from rlhfctl.data.types import PromptSplit, Rows
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts

# ---------------------------------------------------------------- rows that are refused


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
    assert [(row["n"], place) for row, place in loaded.located_rows] == [
        (n, f"{source}:{line}") for n, line in ((0, 1), (1, 2), (2, 4), (3, 5), (4, 6))
    ]
    assert loaded.locations == tuple(f"{source}:{line}" for line in (1, 2, 4, 5, 6))
    assert isinstance(loaded.split, PromptSplit)
    lines = [loaded.locations[place] for places in loaded.places.values() for place in places]
    assert [[loaded.rows[place] for place in loaded.places[name]] for name in ("train", "eval", "test")] == [
        loaded.split.train, loaded.split.eval, loaded.split.test
    ]  # fmt: skip
    assert sorted(lines) == sorted(loaded.locations)


def test_all_pairs_of_a_ranked_list_come_from_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": str(n), "responses": ["a", "b", "c"]} for n in range(2)]
    loaded = load("preferences", write(tmp_path / "d.jsonl", *rows))
    assert [place.rpartition(":")[2] for _, place in loaded.located_rows] == ["1"] * 3 + ["2"] * 3


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


def test_a_fixed_prompt_takes_the_place_of_each_prompt_after_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]
    write(tmp_path / "texts.jsonl", *rows)
    source = {"source": str(tmp_path / "texts.jsonl"), "eval": 2, "test": 3}
    plain, fixed = (
        check_all(Data.model_validate({"prompts": source | more}), 0)["prompts"]
        for more in ({}, {"fixed_prompt": "words:"})
    )
    for part in ("train", "eval", "test"):
        before, after = getattr(plain.split, part), getattr(fixed.split, part)
        assert [row["prompt"] for row in before] == [row["replaced_prompt"] for row in after]
        assert {row["prompt"] for row in after} == {"words:"}
        assert [row["label"] for row in before] == [row["label"] for row in after]
    assert list(plain.locations) == list(fixed.locations)
    assert not list(find_leaks({"prompts": fixed}))


def test_conversations_have_a_fixed_prompt_as_a_users_turn(tmp_path: Path) -> None:
    write(tmp_path / "chat.jsonl", *({"prompt": [message("user", f"text {n}")]} for n in range(5)))
    source = {"source": str(tmp_path / "chat.jsonl"), "eval": 1, "test": 1, "fixed_prompt": "words:"}
    split = check_all(Data.model_validate({"prompts": source}), 0)["prompts"].split
    assert isinstance(split, PromptSplit) and split.train[0]["prompt"] == [message("user", "words:")]
    assert split.train[0]["replaced_prompt"][0]["content"].startswith("text")


def test_demonstrations_that_answer_the_replaced_prompt_of_a_test_row_are_leaks(tmp_path: Path) -> None:
    write(tmp_path / "texts.jsonl", *({"prompt": f"text {n}"} for n in range(8)))
    shown = [{"prompt": f"Text  {n}", "completion": " yes"} for n in range(8)]
    write(tmp_path / "shown.jsonl", *shown, {"prompt": "words:", "completion": " yes"})
    sets: dict[str, Any] = {
        "demonstrations": {"source": str(tmp_path / "shown.jsonl")},
        "prompts": {"source": str(tmp_path / "texts.jsonl"), "eval": 0, "test": 3, "fixed_prompt": "words:"},
    }
    (sentence,) = find_leaks(check_all(Data.model_validate(sets), 0))
    assert "3 of 3 test prompts are in the demonstrations" in sentence
    assert len(check_all(Data.model_validate(sets | {"leaks": "drop"}), 0)["demonstrations"].rows) == 6
