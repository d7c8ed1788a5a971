"""The altered answers of the probes: by hand, the same every time, in texts and in conversations."""

from __future__ import annotations

import pytest

from rlhfctl.stages.altered import FLATTERY, PROBES, altered

PROMPT = "review of the cafe:"
ANSWER = " the tea was good and the cake was fresh ."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("empty", ""),
        ("prompt_repeated", " review of the cafe:"),
        ("truncated", " the tea was good and"),
        ("doubled", " the tea was good and the cake was fresh . the tea was good and the cake was fresh ."),
        ("flattery", f" {FLATTERY} the tea was good and the cake was fresh ."),
    ],
)
def test_texts_by_hand(name: str, expected: str) -> None:
    assert altered(PROMPT, ANSWER, name) == expected


def test_gibberish_has_the_same_characters_in_an_order_that_the_answer_fixes() -> None:
    made = altered(PROMPT, ANSWER, "gibberish")
    assert isinstance(made, str)
    assert made == altered("another prompt", ANSWER, "gibberish")
    assert made != altered(PROMPT, ANSWER + "!", "gibberish") and made != ANSWER
    assert sorted(made.replace(" ", "")) == sorted(ANSWER.replace(" ", ""))


def test_short_answers_and_scripts_without_spaces_are_cut_between_characters() -> None:
    assert altered(PROMPT, "abcdef", "truncated") == "abc"
    assert altered(PROMPT, "今日は寒い", "truncated") == "今日"
    assert altered(PROMPT, "one two three four", "truncated") == "one two"


@pytest.mark.parametrize(
    ("answer", "name"), [("", "flattery"), ("  ", "empty"), ("aa", "gibberish"), ("p", "prompt_repeated")]
)
def test_nothing_to_alter(answer: str, name: str) -> None:
    assert altered("p", answer, name) is None


def test_in_a_conversation_the_last_turn_is_altered() -> None:
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    response = [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "because", "name": "x"}]
    made = altered(prompt, response, "prompt_repeated")
    assert made == [response[0], {"role": "assistant", "content": "why?", "name": "x"}]
    assert altered(prompt, response, "empty") == [response[0], {"role": "assistant", "content": "", "name": "x"}]
    assert response[1]["content"] == "because"  # the row stays as it is


def test_every_probe_changes_a_usual_answer() -> None:
    made = [altered(PROMPT, ANSWER, name) for name in PROBES]
    assert len({str(one) for one in made}) == len(PROBES) and None not in made
