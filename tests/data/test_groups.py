"""Preference groups: ranked responses stay together from the file to the loss, and their pairs are a view of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import PreTrainedTokenizerBase

from rlhfctl.data import preflight
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.load import check_all, load_preferences
from rlhfctl.data.rows import preference_groups
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import PreferenceGroup, PreferenceSplit, Row, Rows, examples, pairs
from rlhfctl.errors import DataError
from rlhfctl.models import tokenizing
from rlhfctl.recipe.schema import Data, Init, Preferences, Recipe

ASKED = [{"role": "user", "content": "q"}]
TOOLS = [{"type": "function", "function": {"name": "look"}}]
INIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 300}
CHAT = (
    "{% for m in messages %}{% if 'refuse' in m.content %}{{ raise_exception('it is refused') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write(path: Path, *rows: Row) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(path: Path, *rows: Row, **options: Any) -> Rows:
    return load_preferences(Preferences(source=write(path / "rows.jsonl", *rows), **options), 0)


def sides(rows: list[Row]) -> list[tuple[Any, Any]]:
    return [(row["chosen"], row["rejected"]) for row in rows]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    made = tokenizing.train_tokenizer(Init(**INIT), ["[user]what is it?\n[assistant]a tiny text"])  # type: ignore[arg-type]
    made.chat_template = CHAT
    return made


# ---------------------------------------------------------------- what a row becomes


def test_chosen_and_rejected_are_a_group_of_two(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": "p", "chosen": " a", "rejected": " b", "margin": 2, "id": 7},
        {"prompt": ASKED, "chosen": said("a"), "rejected": said("b"), "tools": TOOLS},
    ]
    one, two = load(tmp_path, *rows).groups
    assert one == PreferenceGroup("p", (" a", " b"), (0, 1), ((0, 1),), margin=2.0)
    assert two == PreferenceGroup(ASKED, (said("a"), said("b")), (0, 1), ((0, 1),), tools=TOOLS)
    assert pairs(one) == [{"prompt": "p", "chosen": " a", "rejected": " b", "margin": 2.0}]
    assert pairs(two) == [{"prompt": ASKED, "chosen": said("a"), "rejected": said("b"), "tools": TOOLS}]


def test_four_responses_with_a_tie_are_one_group(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": [" a", " b", " c", " d"], "scores": [1, 7.5, 1, -2], "margin": 0.5}
    loaded = load(tmp_path, row)
    (group,) = loaded.groups
    assert group.responses == (" a", " b", " c", " d") and group.ranks == (1, 0, 1, 2)
    assert group.comparisons == ((1, 0), (0, 3), (1, 2), (1, 3), (2, 3))  # 0 and 2 are tied
    assert sides(pairs(group)) == [(" b", " a"), (" a", " d"), (" b", " c"), (" b", " d"), (" c", " d")]
    assert {row["margin"] for row in pairs(group)} == {0.5}
    assert loaded.rows == pairs(group) and loaded.notes == ("5 pairs of 1 rows", "dropped: 1 ties")


def test_conversations_are_one_group_with_the_prompt_that_they_repeat(tmp_path: Path) -> None:
    row = {"prompt": ASKED, "responses": [[*ASKED, *said(text)] for text in "abc"], "system": "Be kind", "tools": TOOLS}
    (group,) = load(tmp_path, row).groups
    assert group.prompt == [{"role": "system", "content": "Be kind"}, *ASKED] and group.tools == TOOLS
    assert group.responses == (said("a"), said("b"), said("c")) and group.ranks == (0, 1, 2)


def test_a_response_that_is_in_no_pair_is_in_no_group(tmp_path: Path) -> None:
    # The first has the text of the third and the rank of the second.
    row = {"prompt": "p", "responses": [" a", " b", " a"], "scores": [1, 1, 0]}
    (group,) = load(tmp_path, row, {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}).groups
    assert group == PreferenceGroup("p", (" b", " a"), (0, 1), ((0, 1),))


def test_responses_that_share_different_prompts_are_groups_of_their_own(tmp_path: Path) -> None:
    texts = ["the film was very good", "the film was very bad", "the film had no end"]
    loaded = load(tmp_path, {"responses": texts})
    assert [group.prompt for group in loaded.groups] == ["the film was very", "the film"]
    assert [group.responses for group in loaded.groups] == [
        (" good", " bad"),
        (" was very good", " was very bad", " had no end"),
    ]
    assert loaded.groups[1].comparisons == ((0, 2), (1, 2))
    assert [row["prompt"] + row["chosen"] for row in loaded.rows] == [texts[0], texts[0], texts[1]]
    assert [place.rpartition(":")[2] for _, place in loaded.located_rows] == ["1"] * 3


def former_pairs(row: Row) -> tuple[list[Row], int]:
    """Each two responses that are not tied as a row, by two plain loops; and the number of ties."""
    responses = row["responses"]
    scores = row.get("scores") or [-place for place in range(len(responses))]
    found, ties = [], 0
    for first, later in combinations(range(len(responses)), 2):
        if scores[first] == scores[later] or responses[first] == responses[later]:
            ties += 1
        elif scores[first] > scores[later]:
            found.append({"prompt": row["prompt"], "chosen": responses[first], "rejected": responses[later]})
        else:
            found.append({"prompt": row["prompt"], "chosen": responses[later], "rejected": responses[first]})
    return found, ties


@given(some.data())
def test_the_pairs_are_each_two_responses_that_are_not_tied(data: some.DataObject) -> None:
    responses = data.draw(some.lists(some.sampled_from([" a", " b", " c", " d", " e"]), min_size=2, max_size=6))
    row: Row = {"prompt": data.draw(some.sampled_from(["p", "q?"])), "responses": responses}
    if data.draw(some.booleans()):
        score = some.one_of(some.integers(-2, 2), some.sampled_from([0.5, -0.5]))
        row["scores"] = data.draw(some.lists(score, min_size=len(responses), max_size=len(responses)))
    tally = Tally()
    groups = preference_groups(row, Preferences(source="x"), tally)
    expected, ties = former_pairs(row)
    assert (examples(groups), tally.dropped["ties"]) == (expected, ties)
    assert len(groups) == bool(expected)
    for group in groups:
        assert len(group.responses) == len(group.ranks) >= 2 and min(group.ranks) == 0
        assert all(group.ranks[better] < group.ranks[worse] for better, worse in group.comparisons)


# ---------------------------------------------------------------- what is left out, weighed, held out


def test_a_limit_counts_pairs_and_leaves_the_group_whole(tmp_path: Path) -> None:
    rows = [{"prompt": str(n), "responses": [" a", " b", " c"]} for n in range(3)]
    loaded = load(tmp_path, *rows, limit=4)
    assert [group.comparisons for group in loaded.groups] == [((0, 1), (0, 2), (1, 2)), ((0, 1),)]
    assert [len(group.responses) for group in loaded.groups] == [3, 3]
    assert "the first 4 of 9 are used" in loaded.notes
    assert [place.rpartition(":")[2] for place in loaded.locations] == ["1", "2"]
    assert {place.rpartition(":")[2]: why for place, why in loaded.left_out.items()} == {"3": "beyond the limit"}


def test_long_and_repeated_pairs_leave_their_group(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "responses": [" a", " b", " long text"]}, {"prompt": "p", "responses": [" c", " a", " b"]}]
    loaded = load(tmp_path, *rows, max_chars=5, deduplicate=True)
    assert sides(loaded.rows) == [(" a", " b"), (" c", " a"), (" c", " b")]
    assert [group.comparisons for group in loaded.groups] == [((0, 1),), ((0, 1), (0, 2))]
    assert "dropped: 1 duplicates, 2 longer than 5 characters" in loaded.notes


def test_a_weight_repeats_each_pair_in_its_place_and_heldout_has_it_once(tmp_path: Path) -> None:
    ranked = [{"prompt": f"q{n}", "responses": [" a", " b", " c"]} for n in range(8)]
    parts = [
        {"source": write(tmp_path / "a.jsonl", *ranked), "weight": 2.0},
        {"source": write(tmp_path / "b.jsonl", {"prompt": "other", "chosen": " a", "rejected": " b"})},
    ]
    data = Data.model_validate({"preferences": {"sources": parts, "heldout": 0.3}})
    loaded = check_all(data, 0)["preferences"]
    assert sides(loaded.rows[:6]) == [pair for pair in combinations((" a", " b", " c"), 2) for _ in range(2)]
    assert len(loaded.rows) == 8 * 3 * 2 + 1 and len({id(row) for row in loaded.rows}) == 8 * 3 + 1
    split = loaded.split
    assert isinstance(split, PreferenceSplit)
    train, heldout = examples(split.train), examples(split.heldout)
    assert set(Counter(map(id, heldout)).values()) == {1}
    assert {id(row) for row in train + heldout} == {id(row) for row in loaded.rows}  # the very pairs
    assert not {group.prompt for group in split.train} & {group.prompt for group in split.heldout}  # type: ignore[comparison-overlap]


def test_pairs_that_the_chat_template_refuses_leave_their_group(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"q{n}"}], "responses": [said("a"), said("b"), said("c")]}
        for n in range(6)
    ]
    rows[3]["responses"][1] = said("I refuse")  # type: ignore[call-overload]
    preferences = {"source": write(tmp_path / "rows.jsonl", *rows), "heldout": 0.3}
    init = {name: size for name, size in INIT.items() if name != "vocab_size"} | {"tokens": ["a", "b"]}
    recipe = {"name": "t", "model": {"init": init, "chat_template": CHAT}, "reward": {}}
    stops = Recipe.model_validate(recipe | {"data": {"preferences": preferences}})
    with pytest.raises(DataError, match=r"2 of 18 rows of data\.preferences cannot be used"):
        preflight.check(stops, check_all(stops.data, 0), ("reward",), tokenizer)
    drops = Recipe.model_validate(recipe | {"data": {"preferences": preferences | {"bad_rows": "drop"}}})
    found = preflight.check(drops, check_all(drops.data, 0), ("reward",), tokenizer)["preferences"]
    assert [len(group.comparisons) for group in found.groups] == [3, 3, 3, 1, 3, 3]
    assert sides(pairs(found.groups[3])) == [(said("a"), said("c"))]
    split = found.split
    assert isinstance(split, PreferenceSplit)
    assert {id(row) for row in examples([*split.train, *split.heldout])} == {id(row) for row in found.rows}
    assert len(found.rows) == 16


# ---------------------------------------------------------------- as ids


def test_each_response_is_encoded_once_and_its_pairs_refer_to_it(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ("it", "a text", "tiny", "what is a tiny text?")
    group = PreferenceGroup(ASKED, tuple(said(text) for text in texts), (0, 1, 1, 2), ((0, 1), (0, 2), (0, 3), (1, 3)))
    encoder = CountingEncoder(tokenizer)
    encoded = encoder.preference(group)
    assert encoder.asked == [said(text) for text in texts]
    for pair, row in zip(encoded.pairs, pairs(group), strict=True):
        for side in ("chosen", "rejected"):
            prompt, response = Encoder(tokenizer).pair(ASKED, row[side])
            assert pair[f"{side}_ids"] == prompt + response
    assert encoded.pairs[0]["chosen_ids"] is encoded.pairs[1]["chosen_ids"] is encoded.ids[0]
    assert all(set(pair) == {"chosen_ids", "rejected_ids"} for pair in encoded.pairs)


class CountingEncoder(Encoder):
    """Notes each response that it is asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.asked: list[Any] = []

    def pair(self, prompt: Any, completion: Any, tools: Any = None) -> tuple[list[int], list[int]]:
        self.asked.append(completion)
        return super().pair(prompt, completion, tools)


def test_a_response_in_no_pair_is_not_encoded(tokenizer: PreTrainedTokenizerBase) -> None:
    group = PreferenceGroup(ASKED, (said("a"), said("I refuse"), said("b")), (0, 1, 2), ((0, 2),), margin=1.5)
    encoded = Encoder(tokenizer).preference(group)
    assert encoded.ids[1] == [] and encoded.ids[0] and [pair["margin"] for pair in encoded.pairs] == [1.5]


def test_merged_tokens_are_counted_by_the_sides_of_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    """The warning says of how many responses of pairs: with ranked lists as with the same pairs one by one."""
    group = PreferenceGroup("[us", ("er]what", "er]it", "x"), (0, 1, 2), ((0, 1), (0, 2), (1, 2)))
    whole, by_pair = Encoder(tokenizer), Encoder(tokenizer)
    whole.preference(group)
    for row in pairs(group):
        for side in ("chosen", "rejected"):
            by_pair.pair(row["prompt"], row[side])
    assert (whole.encoded, whole.boundary_mismatches) == (by_pair.encoded, by_pair.boundary_mismatches)
    assert whole.encoded == 6 and 0 < whole.boundary_mismatches < 6


def test_pairs_that_are_too_long_leave_the_encoded_group(tokenizer: PreTrainedTokenizerBase) -> None:
    group = PreferenceGroup("p", (" a", " a tiny text, and a tiny text", " b"), (0, 1, 2), ((0, 1), (0, 2), (1, 2)))
    encoded = Encoder(tokenizer).preference(group)
    limit = max(len(encoded.ids[0]), len(encoded.ids[2]))
    (short,) = encoded.within(limit)
    assert short.group.comparisons == ((0, 2),) and short.ids == encoded.ids
    assert encoded.within(len(encoded.ids[1])) == [encoded] and encoded.within(1) == []
