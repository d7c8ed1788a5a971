"""Several sources with weights, eval and test prompts from sources of their own, the faults of all data sets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.data.load import check_all, mixed
from rlhfctl.data.types import PreferenceSplit, PromptSplit, Rows, examples
from rlhfctl.errors import DataError, RecipeError
from rlhfctl.inputs import section_without_sources
from rlhfctl.recipe.load import dump_recipe, load_recipe
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts, Recipe


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def demos(path: Path, name: str, count: int) -> str:
    return write(path / f"{name}.jsonl", *({"prompt": f"{name}{n}", "completion": " yes"} for n in range(count)))


def asked(path: Path, *numbers: int) -> str:
    return write(path, *({"prompt": f"question {n}"} for n in numbers))


def load(seed: int = 0, **sets: Any) -> dict[str, Rows]:
    return check_all(Data.model_validate(sets), seed)


def prompts_of(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["prompt"] for row in rows)


# ---------------------------------------------------------------- weights


def test_a_weight_is_how_often_each_row_is_used(tmp_path: Path) -> None:
    parts = [{"source": demos(tmp_path, "a", 4), "weight": 2.0}, {"source": demos(tmp_path, "b", 4), "weight": 2.5},
             {"source": demos(tmp_path, "c", 4), "weight": 0.25}, {"source": demos(tmp_path, "d", 4)}]  # fmt: skip
    rows = load(demonstrations=parts)["demonstrations"]
    times = prompts_of(rows.rows)
    assert [times[f"a{n}"] for n in range(4)] == [2] * 4
    assert sorted(times[f"b{n}"] for n in range(4)) == [2, 2, 3, 3]
    assert sorted(times[f"c{n}"] for n in range(4)) == [0, 0, 0, 1]
    assert [times[f"d{n}"] for n in range(4)] == [1] * 4
    assert [note for note in rows.notes if "of the mix" in note] == [
        "a.jsonl: 4 rows with weight 2 are 8 of the mix",
        "b.jsonl: 4 rows with weight 2.5 are 10 of the mix",
        "c.jsonl: 4 rows with weight 0.25 are 1 of the mix",
        "d.jsonl: 4 rows with weight 1 are 4 of the mix",
    ]
    assert all(place.rpartition(":")[2] == str(int(row["prompt"][1:]) + 1) for row, place in rows.located_rows)
    assert sorted(rows.left_out.values()) == ["not drawn"] * 3


def test_what_is_drawn_follows_the_data_seed(tmp_path: Path) -> None:
    parts = [{"source": demos(tmp_path, "a", 40), "weight": 0.5}, {"source": demos(tmp_path, "b", 1)}]
    drawn = [prompts_of(load(seed, demonstrations=parts)["demonstrations"].rows) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and {sum(one.values()) for one in drawn} == {21}


def test_the_fingerprint_tells_every_source_and_weight(tmp_path: Path) -> None:
    one, two = demos(tmp_path, "a", 3), demos(tmp_path, "b", 3)

    def print_of(*parts: tuple[str, float]) -> str:
        listed = [{"source": source, "weight": weight} for source, weight in parts]
        return load(demonstrations=listed)["demonstrations"].fingerprint

    base = print_of((one, 1.0), (two, 1.0))
    assert base == print_of((one, 1.0), (two, 1.0)) != print_of((one, 2.0), (two, 1.0)) != base
    demos(tmp_path, "b", 4)
    assert print_of((one, 1.0), (two, 1.0)) != base


def test_no_prompt_of_a_mix_is_on_both_sides_and_heldout_has_each_pair_once(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": f" a{n}", "rejected": " b"} for n in range(20)]
    parts = [
        {"source": write(tmp_path / "a.jsonl", *pairs), "weight": 3.0},
        {"source": write(tmp_path / "b.jsonl", *pairs)},
    ]
    split = load(preferences={"sources": parts, "heldout": 0.25})["preferences"].split
    assert isinstance(split, PreferenceSplit)
    train, heldout = prompts_of(examples(split.train)), prompts_of(examples(split.heldout))
    assert not train.keys() & heldout.keys()
    assert set(train.values()) == {4} and set(heldout.values()) == {2} and len(heldout) == 5


def test_kinds_of_rows_and_faults_of_each_source_are_told(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    one = write(tmp_path / "chat.jsonl", {"conversations": chat, "id": 3})
    two = write(tmp_path / "text.csv".replace(".csv", ".jsonl"), {"question": "q", "answer": " a"}, {"question": "q"})
    mapped = {"source": two, "columns": {"prompt": "question", "completion": "answer"}}
    with pytest.raises(DataError, match=r"1 of 2 rows of data\.demonstrations\.sources\[1\] cannot be used") as caught:
        load(demonstrations=[{"source": one}, mapped])
    assert "data.demonstrations.sources[1].bad_rows: drop" in str(caught.value)
    rows = load(demonstrations=[{"source": one}, mapped | {"bad_rows": "drop"}])["demonstrations"]
    assert len(rows.rows) == 2
    assert "chat.jsonl: not used: the columns id" in rows.notes
    assert any(note.startswith("text.jsonl: 1 of 2 rows cannot be used and are dropped") for note in rows.notes)


# ---------------------------------------------------------------- how a recipe says it


def recipe(folder: Path, text: str, *overrides: str) -> Recipe:
    for name in ("a", "b"):
        demos(folder, name, 3)
    asked(folder / "prompts.jsonl", *range(6))
    asked(folder / "test.jsonl", 7, 8)
    path = folder / "mine.yaml"
    path.write_text(f"name: mine\nmodel: {{path: gpt2}}\n{text}\n", encoding="utf-8")
    return load_recipe(path, overrides).recipe


def test_a_list_and_a_section_of_sources_say_the_same(tmp_path: Path) -> None:
    listed = recipe(tmp_path, "data: {demonstrations: [{source: a.jsonl, weight: 2}, {source: b.jsonl}]}\nsft: {}")
    named = recipe(
        tmp_path, "data: {demonstrations: {sources: [{source: a.jsonl, weight: 2}, {source: b.jsonl}]}}\nsft: {}"
    )
    by_option = recipe(
        tmp_path,
        "data: {demonstrations: {source: a.jsonl, limit: 3}}\nsft: {}",
        f"data.demonstrations=[{{source: {tmp_path}/a.jsonl, weight: 2}}, {{source: {tmp_path}/b.jsonl}}]",
    )
    assert listed.data == named.data == by_option.data
    assert listed.data.demonstrations is not None
    assert [part.source for part in listed.data.demonstrations.parts] == [str(tmp_path / f"{n}.jsonl") for n in "ab"]
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(listed), encoding="utf-8")
    assert load_recipe(resolved).recipe.data == listed.data
    one = recipe(
        tmp_path,
        "data: {demonstrations: [{source: a.jsonl}]}\nsft: {}",
        f"data.demonstrations.source={tmp_path}/a.jsonl",
    )
    assert one.data.demonstrations is not None and one.data.demonstrations.sources is None


def test_keys_beside_the_list_hold_for_each_that_does_not_say_otherwise(tmp_path: Path) -> None:
    listed = "sources: [{source: a.jsonl}, {source: b.jsonl, bad_rows: stop, columns: {prompt: ask}}]"
    text = f"data: {{preferences: {{columns: {{prompt: question}}, bad_rows: drop, {listed}}}}}\nreward: {{}}"
    section = recipe(tmp_path, text).data.preferences
    assert section is not None
    one, two = section.parts
    assert (one.columns, one.bad_rows) == ({"prompt": "question"}, "drop")
    assert (two.columns, two.bad_rows) == ({"prompt": "ask"}, "stop")


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("{sources: [{source: a.jsonl}], limit: 3}", "data.demonstrations.limit", "but sources lists them"),
        ("{sources: [{source: a.jsonl}], source: b.jsonl}", "data.demonstrations.source", "is of one source"),
        ("{sources: []}", "data.demonstrations.sources", "must not be empty"),
        ("[{source: c.jsonl}]", "data.demonstrations.sources[0].source", "there is no file"),
        ("[{source: a.jsonl, weight: 0}]", "data.demonstrations.sources[0].weight", "must be greater than 0, got 0"),
        ("[{source: a.jsonl, wieght: 2}]", "data.demonstrations.sources[0].wieght", "did you mean 'weight'?"),
        ("[{weight: 2}]", "data.demonstrations.sources[0].source", "missing"),
        ("[{source: a.jsonl, rows: 3}]", "data.demonstrations.sources.0.rows", "how many rows the built-in task"),
        ("{}", "data.demonstrations.source", "missing"),
        ("{source: a.jsonl, weight: 2}", "data.demonstrations.weight", "unknown key"),
        ("{source: a.jsonl, turns: {}, as_conversations: true}", "data.demonstrations.as_conversations", "turns finds"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_are_told_with_their_key(section: str, key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, f"data: {{demonstrations: {section}}}\nsft: {{}}")
    (problem,) = caught.value.problems
    assert problem.key.replace("[", ".").replace("]", "") == key.replace("[", ".").replace("]", "")
    assert said in problem.what and problem.where == f"{tmp_path}/mine.yaml:3"


# ---------------------------------------------------------------- eval and test from elsewhere


def test_test_and_eval_prompts_from_sources_of_their_own(tmp_path: Path) -> None:
    sources = {
        "source": asked(tmp_path / "train.jsonl", *range(10)),
        "eval_source": asked(tmp_path / "eval.jsonl", 3, 20, 21, 21),
        "test_source": asked(tmp_path / "test.jsonl", 4, 5, 20, 30),
    }
    loaded = load(prompts=sources)["prompts"]
    assert isinstance(loaded.split, PromptSplit)
    parts = {name: [row["prompt"].split()[1] for row in part] for name, part in vars(loaded.split).items()}
    assert parts == {"train": list("0126789"), "eval": ["3", "21"], "test": ["4", "5", "20", "30"]}
    assert loaded.notes == (
        "3 rows repeat a prompt that is kept for eval or test, and are left out",
        "eval_source: 2 of 4 rows are used: each prompt once, and none in two parts",
        "test_source: 4 of 4 rows are used: each prompt once, and none in two parts",
    )
    assert len(loaded.rows) == 13 and loaded.locations[loaded.places["test"][3]] == f"{tmp_path}/test.jsonl:4"


def test_counts_are_drawn_from_the_other_source(tmp_path: Path) -> None:
    sources = {"source": asked(tmp_path / "train.jsonl", *range(10)), "eval": 2, "test": 3,
               "test_source": asked(tmp_path / "test.jsonl", *range(20, 30))}  # fmt: skip
    tests = []
    for seed in (0, 0, 1):
        split = load(seed, prompts=sources)["prompts"].split
        assert isinstance(split, PromptSplit)
        assert (len(split.train), len(split.eval), len(split.test)) == (8, 2, 3)
        tests.append([row["prompt"] for row in split.test])
        assert all(int(prompt.split()[1]) >= 20 for prompt in tests[-1])
    assert tests[0] == tests[1] != tests[2]
    with pytest.raises(DataError, match=r"data\.prompts\.test asks for 11 prompts, but the source holds 10"):
        load(prompts=sources | {"test": 11})
    with pytest.raises(DataError, match="leave none to train on"):
        load(prompts=sources | {"eval": 10})


def test_a_name_alone_is_read_with_the_keys_beside_it(tmp_path: Path) -> None:
    train, test = (
        write(tmp_path / f"{name}.jsonl", *({"question": f"{name} {n}"} for n in range(3))) for name in ("a", "b")
    )
    section = {"source": train, "columns": {"prompt": "question"}, "limit": 2, "test_source": test}
    split = load(prompts=section)["prompts"].split
    assert isinstance(split, PromptSplit)
    assert len(split.train) == 2 and [row["prompt"] for row in split.test] == ["b 0", "b 1", "b 2"]
    with pytest.raises(DataError, match=r"rows of data\.prompts\.test_source cannot be used"):
        load(prompts=section | {"test_source": {"source": test}})


def test_the_same_prompt_as_text_and_as_a_turn_is_not_trained_on(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", {"prompt": [{"role": "user", "content": "Question 1"}]})
    split = load(prompts={"source": asked(tmp_path / "a.jsonl", 0, 1, 2), "test_source": test})["prompts"].split
    assert isinstance(split, PromptSplit)
    assert [row["prompt"] for row in split.train] == ["question 0", "question 2"]


def test_a_recipe_names_them_from_its_folder_and_a_change_is_noticed(tmp_path: Path) -> None:
    text = "data: {prompts: {source: prompts.jsonl, test_source: test.jsonl, eval_source: {source: a.jsonl}}}\n"
    text += (
        'reward: {function: "f:score"}\nppo: {total_episodes: 4, per_device_train_batch_size: 4, response_length: 4}'
    )
    loaded = recipe(tmp_path, text)
    section = loaded.data.prompts
    assert section is not None and section.test_source is not None and section.eval_source is not None
    assert section.test_source.source == str(tmp_path / "test.jsonl") and (section.test, section.eval) == (None, None)
    assert section.eval_source.source == str(tmp_path / "a.jsonl")
    before = check_all(loaded.data, 0)["prompts"].fingerprint
    asked(tmp_path / "test.jsonl", 7, 9)
    assert check_all(loaded.data, 0)["prompts"].fingerprint != before
    with pytest.raises(RecipeError, match="there is no file"):
        recipe(tmp_path, text.replace("test_source: test", "test_source: tset"))


def test_moving_the_files_of_a_mix_runs_nothing_again(tmp_path: Path) -> None:
    """A stage depends on what the sources hold, not on where they lie."""
    hashes = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        text = "data:\n  demonstrations: [{source: a.jsonl}, {source: b.jsonl}]\n"
        text += "  prompts: {source: prompts.jsonl, test_source: test.jsonl}\nsft: {}"
        folder.mkdir()
        loaded = recipe(folder, text)
        names = section_without_sources(loaded.data.demonstrations)
        hashes.append((names, section_without_sources(loaded.data.prompts)))
    assert hashes[0] == hashes[1] and "weight" in json.dumps(hashes[0])


# ---------------------------------------------------------------- faults of several sets


def test_the_faults_of_all_data_sets_are_told_together(tmp_path: Path) -> None:
    sets = {
        "demonstrations": Demonstrations(source=write(tmp_path / "d.jsonl", {"x": 1})),
        "preferences": Preferences(source=str(tmp_path / "none.jsonl")),
        "prompts": Prompts(source=asked(tmp_path / "p.jsonl", 0, 1), test=2),
    }
    with pytest.raises(DataError) as caught:
        check_all(Data(**sets), 0)  # type: ignore[arg-type]
    caught.value.place({"data.prompts": "mine.yaml:7"})
    said = str(caught.value)
    assert said.startswith("3 faults in the data:\n  - mine.yaml:7: data.prompts: 2 distinct prompts: 2 for test")
    assert f"{tmp_path}/d.jsonl:1: needs prompt and completion" in said and "the data file does not exist" in said
    assert said.count("fix: ") == 3 and caught.value.exit_code == 2
    del sets["prompts"], sets["preferences"]
    with pytest.raises(DataError, match=r"^1 of 1 rows of data\.demonstrations"):
        check_all(Data(**sets), 0)  # type: ignore[arg-type]


def test_a_mix_of_rows_made_elsewhere() -> None:
    """The function alone, on numbers that can be counted by hand."""
    rows = Rows("prompts", [{"prompt": str(n)} for n in range(10)], "f", locations=tuple(f"x:{n}" for n in range(10)))
    found = mixed("prompts", [(rows, "x", 1.5), (rows, "y", 0.5)], 0)
    assert len(found.rows) == 20 and len(found.locations) == 20
    with pytest.raises(DataError, match="the weights leave no row"):
        mixed("prompts", [(rows, "x", 0.01)], 0)
