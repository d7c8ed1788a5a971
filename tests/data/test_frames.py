"""Frames of prompts: told where two data sets differ in theirs, and not where only their subjects differ."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlhfctl.data.frames import different_frames, frame, mixed_kinds
from rlhfctl.data.types import Rows
from rlhfctl.stages.door import data_warnings
from rlhfctl.world import reviews

SUBJECTS = [f"{word} {number}" for number in range(10) for word in ("tea", "coffee", "lunch")]


def rows(name: str, prompts: Sequence[object]) -> Rows:
    return Rows(name, [{"prompt": prompt} for prompt in prompts], "fingerprint")


def alpaca(subject: str) -> str:
    return f"### Instruction:\nWrite about {subject}.\n\n### Response:\n"


def told(demonstrations: Sequence[object], prompts: Sequence[object]) -> list[str]:
    return list(
        different_frames(
            {"demonstrations": rows("demonstrations", demonstrations), "prompts": rows("prompts", prompts)}
        )
    )


def test_a_frame_is_what_nearly_all_share() -> None:
    assert frame([alpaca(subject) for subject in SUBJECTS]) == (
        "### Instruction:\nWrite about ",
        ".\n\n### Response:\n",
    )
    odd = ["something else", *(f"Q: {subject}\nA:" for subject in SUBJECTS)]  # 30 of 31
    assert frame(odd) == ("Q: ", "\nA:")
    assert frame(SUBJECTS) == ("", "")
    assert frame(["same", "same"]) == ("same", "same")


@pytest.mark.parametrize("turned", [False, True])
def test_sets_in_different_frames_are_told_once(turned: bool) -> None:
    framed = [alpaca(subject) for subject in SUBJECTS]
    (said,) = told(SUBJECTS, framed) if turned else told(framed, SUBJECTS)
    assert said.startswith("the prompts of data.") and "are framed differently" in said
    assert "ends with '### Response:'" in said


def test_a_beginning_counts_too() -> None:
    (said,) = told([f"Summarize: {subject}" for subject in SUBJECTS], SUBJECTS)
    assert "nearly every prompt of data.demonstrations begins with 'Summarize:'" in said


@pytest.mark.parametrize(
    ("demonstrations", "prompts"),
    [
        (SUBJECTS, [subject.upper() for subject in SUBJECTS]),  # no frame at all
        ([f"{subject}?" for subject in SUBJECTS], [f"{subject}." for subject in SUBJECTS]),  # a mark is no frame
        ([alpaca(subject) for subject in SUBJECTS], [alpaca(subject.upper()) for subject in SUBJECTS]),
        ([alpaca("tea")] * 40, SUBJECTS),  # one prompt again and again
        ([[{"role": "user", "content": "### Hi:"}]] * 30, SUBJECTS),  # conversations
        ([f"Q: {subject}" for subject in SUBJECTS], [f"Q: {subject}" for subject in SUBJECTS[:15]] + SUBJECTS[15:]),
    ],
)
def test_other_sets_are_not_told(demonstrations: Sequence[object], prompts: Sequence[object]) -> None:
    assert told(demonstrations, prompts) == []


def test_texts_beside_conversations_are_told_with_a_way_out() -> None:
    talks = rows("demonstrations", [[{"role": "user", "content": "hello"}]])
    texts = {name: rows(name, ["hello"]) for name in ("preferences", "prompts")}
    (said,) = mixed_kinds({"demonstrations": talks, **texts})
    assert said.startswith("data.preferences and data.prompts hold texts, but data.demonstrations hold conversations:")
    assert "as_conversations: true" in said
    assert list(mixed_kinds(texts)) == []


def test_the_built_in_task_has_one_frame_and_a_changed_one_is_among_the_warnings() -> None:
    demonstrations = Rows("demonstrations", reviews.demonstrations(200, 0), "one")
    prompts = [row["prompt"] for row in reviews.prompts(200, 0)]
    assert data_warnings({"demonstrations": demonstrations, "prompts": rows("prompts", prompts)}) == []
    changed = rows("prompts", [f"Human: {prompt}\n\nAssistant:" for prompt in prompts])
    assert any(
        "framed differently" in said for said in data_warnings({"demonstrations": demonstrations, "prompts": changed})
    )
