"""What a written conversation amounts to: one demonstration, and labels that say what the person said and no more."""

from __future__ import annotations

import json

import pytest

from rlhfctl.tools.write.conversation import PERSON, Conversation, Suggestion, Turn, conversation_of


def offered(count: int = 3) -> list[Suggestion]:
    return [Suggestion(f" s{number}", "round-2/ppo", "2 tokens") for number in range(1, count + 1)]


def labelled(turn: Turn, *, roles: bool = False) -> list[tuple[list[object], tuple[str, ...], tuple[int, ...] | None]]:
    found = Conversation("id", roles, turns=[turn]).labels("ana")
    return [(list(item.responses), item.origins, event.ranks) for item, event in found]


def test_a_finished_conversation_is_a_row_of_messages_or_of_prompt_and_completion() -> None:
    turns = [Turn("hi", answer="hello"), Turn("well?", answer="well"), Turn("no answer yet")]
    said = Conversation("id", True, "be brief", turns).demonstration()
    assert said == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "well?"},
            {"role": "assistant", "content": "well"},
        ]
    }
    assert Conversation("id", False, turns=turns[:1]).demonstration() == {"prompt": "hi", "completion": "hello"}


def test_a_suggestion_that_is_taken_without_a_ranking_makes_no_label() -> None:
    assert labelled(Turn("q", offered(), answer=" s2")) == []
    assert labelled(Turn("q", answer="own, without suggestions")) == []
    assert labelled(Turn("q", offered(), ranked=[[0], [1]])) == []  # not answered yet


def test_ranked_suggestions_are_one_item_in_the_order_of_the_screen() -> None:
    turn = Turn("q", offered(), ranked=[[2], [0, 1]], answer=" s3", seconds=4.0)
    assert labelled(turn) == [([" s1", " s2", " s3"], ("round-2/ppo",) * 3, (1, 1, 0))]
    ((_, event),) = Conversation("id", False, turns=[turn]).labels("ana")
    assert (event.annotator, event.kind, event.judge, event.shown) == ("ana", "label", "people", (0, 1, 2))
    assert event.seconds == 4.0 and event.is_written
    assert labelled(Turn("q", offered(), ranked=[[2], [0]], answer=" s1")) == [([" s1", " s3"], ("round-2/ppo",) * 2,
                                                                             (1, 0))]  # fmt: skip


def test_an_own_answer_ranks_above_all_suggestions_and_says_nothing_of_their_order() -> None:
    by, own = "round-2/ppo", " own"
    whole = Turn("q", offered(), ranked=[[1], [0, 2]], answer=own)
    assert labelled(whole) == [([" s1", " s2", " s3", own], (by, by, by, PERSON), (2, 1, 2, 0))]
    unranked = Turn("q", offered(2), answer=own)
    assert labelled(unranked) == [([" s1", own], (by, PERSON), (1, 0)), ([" s2", own], (by, PERSON), (1, 0))]
    partly = Turn("q", offered(), ranked=[[2], [0]], answer=own)
    assert labelled(partly) == [
        ([" s1", " s3", own], (by, by, PERSON), (2, 1, 0)),
        ([" s2", own], (by, PERSON), (1, 0)),
    ]
    ((_, event),) = Conversation("id", False, turns=[whole]).labels("ana")
    assert event.shown is None  # the own answer was not on the screen


def test_prompts_of_later_turns_hold_the_conversation_so_far() -> None:
    turns = [Turn("hi", offered(2), [[0], [1]], " s2"), Turn("well?", offered(2), [[1], [0]], " s2")]
    (first, _), (second, _) = Conversation("id", True, turns=turns).labels("ana")
    assert first.prompt == [{"role": "user", "content": "hi"}]
    assert [message["content"] for message in second.prompt] == ["hi", " s2", "well?"]  # type: ignore[index]
    assert second.responses[0] == [{"role": "assistant", "content": " s1"}]


def test_labels_of_one_conversation_have_the_same_keys_each_time_and_others_have_others() -> None:
    turns = [Turn("q", offered(2), answer="own")]

    def keys(name: str) -> list[str]:
        return [event.key for _, event in Conversation(name, False, turns=turns).labels("ana")]

    assert keys("a") == keys("a") and len({*keys("a"), *keys("b")}) == 4


def test_a_conversation_comes_back_from_json_as_it_was() -> None:
    turns = [Turn("hi", offered(), [[0, 1], [2]], "x", 5, 1.5), Turn("and?", offered(1), draws=1)]
    before = Conversation("id", True, "be brief", turns)
    assert conversation_of(json.loads(json.dumps(before.as_dict()))) == before
    assert before.draws == 6 and before.waiting is turns[1]
    for broken in ({}, {"turns": [{"said": "x"}]}, {**before.as_dict(), "more": 1}):
        with pytest.raises((KeyError, TypeError)):
            conversation_of(broken)
