"""Chats with real models: what they say, what the reward gives for it, and what a person does about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_chats import Recorder, write_talker

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat.loop import WELCOME, talk
from rlhfctl.tools.chat.session import Session
from rlhfctl.tools.chat.stages import RunModels


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("talker"))


def opened(run: Path, **options: Any) -> tuple[Session, Recorder]:
    screen = Recorder()
    return Session.open(RunModels(run), screen, **options), screen


def texts(screen: Recorder) -> list[list[str]]:
    return [[answer.text for answer in answers] for answers in screen.answers]


@pytest.mark.parametrize("together", [True, False])
def test_a_chat_says_what_the_comparison_sampled_and_scored(tiny_run: Path, together: bool) -> None:
    """compare's first sample of prompt i has the random numbers of a chat's answer i, for policy and reference."""
    rows = [json.loads(line) for line in (tiny_run / "compare" / "samples.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["sample"] == 0][:4]
    screen = Recorder(*(row["prompt"] for row in first), together=together)
    talk(tiny_run, against="reference", temperature=1.0, seed=0, screen=screen)
    each = [answer for answers in screen.answers for answer in answers]
    drawn = [each[index : index + 2] for index in range(0, len(each), 2)]
    assert {len(answers) for answers in screen.answers} == {2 if together else 1}
    assert len(drawn) == 4
    for row, (policy, reference) in zip(first, drawn, strict=True):
        assert (policy.by, reference.by) == ("ppo", "reference")
        assert (policy.text, reference.text) == (row["policy"], row["reference"])
        assert (policy.ended, reference.ended) == (row["policy_ended"], row["reference_ended"])
        assert policy.score == pytest.approx(row["policy_scores"]["reward_model"], abs=1e-5)
        assert reference.score == pytest.approx(row["reference_scores"]["reward_model"], abs=1e-5)
    assert any(policy.text != reference.text for policy, reference in drawn)
    # Both answers grow, a token of each in turn where they stand side by side.
    begin = [index for index, _ in screen.grown[:6]]
    assert begin == ([0, 1] * 3 if together else [0] * 6)
    assert screen.notes[0].startswith(
        f"ppo beside reference of {tiny_run}, temperature 1, seed 0, up to 12 tokens. Each"
    )
    assert screen.notes[1] == WELCOME


def test_the_recipes_settings_hold_until_others_are_given(tiny_run: Path) -> None:
    session, _ = opened(tiny_run, stage="sft")
    assert (session.settings.temperature, session.settings.seed) == (1.0, 0)
    assert session.left.sampling.max_new_tokens == 12 and not session.conversation.roles
    assert session.left.name == "sft" and session.scorer is not None and session.scorer.name == "reward"
    greedy, screen = opened(tiny_run, temperature=0.0, seed=3, max_new_tokens=5)
    assert "greedy, seed 3, up to 5 tokens" in greedy.described()
    for _ in range(2):
        greedy.say("the tea is")
    assert texts(screen)[0] == texts(screen)[1] and screen.answers[0][0].tokens <= 5


def test_seeds_and_draws_decide_what_is_said(tiny_run: Path) -> None:
    session, screen = opened(tiny_run)
    for seed in (1, 1, 2):
        session.settings, session.draws = replace(session.settings, seed=seed), 0
        session.say("the tea is")
        session.again()
    each = [text for (text,) in texts(screen)]
    said = [each[index : index + 2] for index in (0, 2, 4)]
    assert said[0] == said[1] != said[2]
    assert said[0][0] != said[0][1]  # another draw


def test_conversations_grow_and_end_where_their_template_says(talker: Path, tmp_path: Path) -> None:
    session, screen = opened(talker, against="sft", temperature=1.0)
    assert session.conversation.roles and "reads the whole conversation" in session.described()
    session.conversation.set_system("be brief")
    session.say("ask me 1")
    session.say("ask me 2")
    prompt = session.conversation.last.prompt
    assert isinstance(prompt, list)
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
    assert prompt[2]["content"] == screen.answers[0][0].text
    tokenizer = session.left.base.tokenizer
    ids = session.left.begin(prompt, session.settings, 0).prompt_ids
    assert tokenizer.decode(ids) == (
        f"be brief\n\nHuman: ask me 1\n\nAssistant: {screen.answers[0][0].text}{tokenizer.eos_token}\n\n"
        "Human: ask me 2\n\nAssistant:"
    )
    answers = session.conversation.last.answers
    answers[1] = replace(answers[1], text="something else")  # both models may say the same
    session.conversation.last.prefer("right")
    session.conversation.save(tmp_path / "rows.jsonl")
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["prompt"] == prompt and (row["chosen_by"], row["rejected_by"]) == ("sft", "ppo")
    assert row["chosen"] == [{"role": "assistant", "content": "something else"}]
    assert row["rejected"] == [{"role": "assistant", "content": screen.answers[1][0].text}]


def test_a_single_models_earlier_answer_stands_beside_the_new_one(talker: Path) -> None:
    session, _ = opened(talker, temperature=1.0)
    session.say("ask me 1")
    earlier = session.conversation.last.answers[0]
    session.again()
    turn = session.conversation.last
    assert len(session.conversation.turns) == 1
    assert turn.answers[0] == earlier and turn.used == 1
    session.conversation.set_system("be brief")  # the prompt is another one now: no pair
    session.again()
    assert len(session.conversation.last.answers) == 1


def test_another_model_takes_over(talker: Path) -> None:
    session, screen = opened(talker)
    kept = session.left.base.model
    session.set_right(session.run.choose("ppo"))
    assert session.right is not None and session.right.base.model is kept  # loaded once
    session.set_left(session.run.choose("reference"))
    session.say("ask me 1")
    assert [answer.by for answer in screen.answers[0]] == ["reference", "ppo"]
    session.set_right(None)
    session.say("ask me 2")
    assert [answer.by for answer in screen.answers[1]] == ["reference"]


def test_no_room_and_little_room_in_the_context_are_told(talker: Path) -> None:
    """The model reads 96 tokens."""
    session, screen = opened(talker, max_new_tokens=90, temperature=1.0)
    session.say("ask me 1")
    context = session.left.context
    assert context == 96
    left = context - len(session.left.begin(session.conversation.last.prompt, session.settings, 0).prompt_ids)
    assert screen.notes == [f"ppo: {left} of the context's 96 tokens are left to answer"]
    assert screen.answers[0][0].tokens <= left
    with pytest.raises(RlhfctlError, match="the model reads 96: no room is left for an answer") as caught:
        session.say("word " * 200)
    assert "/undo" in str(caught.value)
    assert len(session.conversation.turns) == 1


def test_ctrl_c_stops_an_answer_and_not_the_chat(talker: Path) -> None:
    session, screen = opened(talker, against="sft", temperature=1.0)
    calls = Counter[str]()

    def interrupt() -> None:
        calls["show"] += 1
        if calls["show"] == 3:
            raise KeyboardInterrupt

    screen.on_show = interrupt
    session.say("ask me 1")
    left, right = screen.answers[0]
    assert left.stopped and right.stopped and left.score is None
    assert (left.tokens, right.tokens) == (2, 1)
    screen.on_show = lambda: None
    session.say("ask me 2")
    assert not screen.answers[1][0].stopped and screen.answers[1][0].score is not None
    quiet = Session(session.run, Recorder(interactive=False), session.left, session.settings, session.conversation)
    quiet.screen.on_show = interrupt  # type: ignore[attr-defined]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):  # a script is ended
        quiet.say("ask me 3")
    assert len(session.conversation.turns) == 2


def test_a_failed_redraw_leaves_the_turn(talker: Path) -> None:
    session, _ = opened(talker)
    session.say("ask me 1")
    kept = session.conversation.last
    session.left.context = 3
    with pytest.raises(RlhfctlError, match="no room"):
        session.again()
    assert session.conversation.last is kept


def test_a_reward_that_fails_is_told_once_and_answers_stay(talker: Path) -> None:
    session, screen = opened(talker)

    def fails(draft: object) -> float:
        raise RlhfctlError("no answer from the server", fix="try later")

    session.scorer.score = fails  # type: ignore[union-attr, method-assign, assignment]
    session.say("ask me 1")
    session.say("ask me 2")
    assert len(screen.errors) == 1 and "not scored any more: no answer from the server" in screen.errors[0]
    assert [answers[0].score for answers in screen.answers] == [None, None]
    assert len(session.conversation.turns) == 2


def test_texts_can_be_asked_where_conversations_are_usual(talker: Path, tiny_run: Path) -> None:
    session, _ = opened(talker, prompts="text")
    assert not session.conversation.roles
    session.say("Human:")
    assert session.conversation.last.prompt == "Human:"
    with pytest.raises(RlhfctlError, match="ppo has no chat template"):
        opened(tiny_run, prompts="conversation")


def test_a_model_without_a_template_does_not_join_a_conversation(talker: Path, tiny_run: Path) -> None:
    session, _ = opened(talker)
    with pytest.raises(RlhfctlError, match="has no chat template, and the prompts of this chat are conversations"):
        session.set_right(session.run.choose(str(tiny_run)))
    assert session.right is None


def test_a_model_with_another_tokenizer_is_scored_by_its_text(talker: Path, tiny_run: Path) -> None:
    session, screen = opened(tiny_run, against=str(talker), prompts="text", temperature=1.0)
    session.say("the tea is")
    left, right = screen.answers[0]
    assert right.by == f"{talker}/ppo" and right.score is not None and left.score is not None
    assert session.scorer is not None
    assert [type(scorer).__name__ for _, scorer in session.scorer.built] == ["ModelReward", "TextModelReward"]
    assert screen.errors == []
