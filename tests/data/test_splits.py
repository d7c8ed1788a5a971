"""Splits by prompt: no prompt is on two sides, and the split depends on the seed alone."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_files import message

from rlhfctl.data.splits import (
    bootstrap,
    demonstration_places,
    preference_places,
    prompt_key,
    prompt_places,
    prompts_of,
    split_in_half,
)
from rlhfctl.data.types import PreferenceGroup, PreferenceSplit, PromptSplit, Row, examples
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Preferences, Prompts


def split_preferences(
    section: Preferences, groups: list[PreferenceGroup], seed: int, *, steady: bool = False
) -> PreferenceSplit:
    return PreferenceSplit.of(groups, preference_places(section, groups, seed, steady=steady))


def split_prompts(section: Prompts, rows: list[Row], seed: int) -> PromptSplit:
    return PromptSplit.of(rows, prompt_places(section, rows, seed))


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


@pytest.mark.parametrize("make", [text_prompt, conversation])
@pytest.mark.parametrize(("distinct", "copies", "sizes"), [(40, 1, (20, 20)), (7, 3, (12, 9)), (2, 5, (5, 5))])
def test_two_reward_models_share_no_prompt(
    make: Callable[[int], Any], distinct: int, copies: int, sizes: tuple[int, int]
) -> None:
    groups = as_groups(make, distinct, copies)
    own, other = split_in_half(groups, 0)
    assert not set(keys(examples(own))) & set(keys(examples(other)))
    assert (len(own), len(other)) == sizes
    assert sorted(own + other, key=groups.index) == groups  # each on one side, in the order of the file
    assert own == [group for group in groups if group in own]


def test_halves_depend_on_the_seed_alone_and_one_prompt_has_none() -> None:
    groups = as_groups(text_prompt, 40, 1)
    first = {str(group.prompt) for group in split_in_half(groups, 0)[0]}
    assert first == {str(group.prompt) for group in split_in_half(groups[::-1], 0)[0]}
    assert first != {str(group.prompt) for group in split_in_half(groups, 1)[0]}
    with pytest.raises(DataError, match="two reward models cannot share it") as caught:
        split_in_half(as_groups(text_prompt, 1, 4), 0)
    assert caught.value.where == "reward.heldout"


def answered(make: Callable[[int], Any], number: int) -> Row:
    """A demonstration in one of three forms, for prompt `number` of 10."""
    prompt = make(number % 10)
    if number >= 20:
        return {"text": f"a text {number % 10}"}
    return (
        {"prompt": prompt, "completion": str(number)}
        if isinstance(prompt, str)
        else {"messages": [*prompt, message("assistant", str(number)), message("user", str(number))]}
    )


@pytest.mark.parametrize("make", [text_prompt, conversation])
def test_held_out_demonstrations_answer_no_prompt_of_the_others(make: Callable[[int], Any]) -> None:
    rows = [answered(make, number) for number in range(40)]  # 20 prompts, two rows each
    places = demonstration_places(0.25, rows, seed=0)
    assert sorted([*places["train"], *places["heldout"]]) == list(range(40)) and len(places["heldout"]) == 10
    sides = [{number % 10 + 10 * (number >= 20) for number in places[part]} for part in ("train", "heldout")]
    assert not sides[0] & sides[1] and len(sides[1]) == 5
    assert demonstration_places(0.25, rows, seed=1)["heldout"] != places["heldout"]
    backwards = demonstration_places(0.25, rows[::-1], seed=0)["heldout"]
    assert sorted(39 - place for place in backwards) == list(places["heldout"])


def test_demonstrations_of_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="one distinct prompt: none can be held out"):
        demonstration_places(0.5, [answered(text_prompt, 0)] * 3, seed=0)


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
        "from rlhfctl.data.splits import prompt_places\n"
        "from rlhfctl.recipe.schema import Prompts\n"
        "rows = [{'prompt': f'prompt {n}'} for n in range(30)]\n"
        "print([rows[n]['prompt'] for n in prompt_places(Prompts(source='d', test=5), rows, 0)['test']])\n"
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


def test_prompts_of_pairs_are_taken_once_with_their_tools() -> None:
    groups = [
        PreferenceGroup(prompt, ("x", "y"), (0, 1), ((0, 1),), tools=tools)
        for prompt, tools in (("a", None), ("b", [{"name": "f"}]), ("a", None))
    ]
    assert prompts_of(groups) == [{"prompt": "a"}, {"prompt": "b", "tools": [{"name": "f"}]}]


def test_a_bootstrap_draws_prompts_with_all_their_rows() -> None:
    prompts = [text_prompt(n % 50) for n in range(100)]  # two rows of each of 50 prompts
    drawn = bootstrap(prompts, 0, 0)
    assert len(drawn) == 100 and drawn == sorted(drawn)
    times = Counter(drawn)
    assert all(times[n] == times[n + 50] for n in range(50))  # both rows of a prompt, as often
    assert 0.5 < len(set(drawn)) / 100 < 0.77  # 1 - 1/e of the prompts, on average
    assert bootstrap(prompts, 0, 0) == drawn
    others = [bootstrap(prompts, seed, number) for seed, number in ((0, 1), (0, 2), (1, 0))]
    assert all(other != drawn for other in others)
    backwards = bootstrap(prompts[::-1], 0, 0)  # the same prompts, whatever the order of the rows
    assert Counter(prompts[place] for place in drawn) == Counter(prompts[::-1][place] for place in backwards)


@given(first=st.integers(2, 30), more=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_steady_split_moves_no_prompt_to_the_held_out_side(first: int, more: int, seed: int) -> None:
    """A reward model that goes on has trained on the earlier prompts: none of them may be held out later."""
    section = Preferences(source="d", heldout=0.3)
    sides = []
    for count in (first, first + more):
        split = split_preferences(section, as_groups(text_prompt, count, 1), seed, steady=True)
        sides.append((set(keys(examples(split.train))), set(keys(examples(split.heldout)))))
        assert all(sides[-1]) and not sides[-1][0] & sides[-1][1] and len(set.union(*sides[-1])) == count
    assert first < 8 or not sides[0][0] & sides[1][1]  # of very few prompts the last one left to train on may move


def test_steady_shares_are_met_on_average_and_halves_stay_apart() -> None:
    groups = as_groups(text_prompt, 2000, 1)
    split = split_preferences(Preferences(source="d", heldout=0.1), groups, 0, steady=True)
    assert len(split.heldout) == pytest.approx(200, abs=4 * (2000 * 0.1 * 0.9) ** 0.5)
    few = [set(keys(examples(half))) for half in split_in_half(groups[:1000], 0, steady=True)]
    whole = [set(keys(examples(half))) for half in split_in_half(groups, 0, steady=True)]
    assert few[0] < whole[0] and few[1] < whole[1] and not whole[0] & whole[1]
    assert len(whole[0]) == pytest.approx(1000, abs=4 * 500**0.5)
