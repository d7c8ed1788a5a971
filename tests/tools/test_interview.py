"""The questions of `init`: each answer is checked, and stated as the recipe needs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.interview import NEW, Answers, ask_questions


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    for name in ("demos", "pairs", "prompts"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"p{index}"}) + "\n" for index in range(100)))


def interview(*answers: str, file: str | None = "mine.yaml") -> tuple[Path, Answers]:
    """Answer the questions in order; an empty answer takes the default. A refused answer raises."""
    given = iter(answers)

    def ask(question: str, default: str | None, check: Callable[[str], str]) -> str:
        text = next(given) or default
        assert text is not None, question
        return check(text)

    path, found = ask_questions(None if file is None else Path(file), ask)
    assert next(given, None) is None, "a question was not asked"
    return path, found


def test_defaults_are_the_builtin_task_under_the_files_name() -> None:
    assert interview("", "", "") == (Path("mine.yaml"), Answers("mine"))
    assert interview("", "", "", file=None) == (Path("my-rlhf.yaml"), Answers("my-rlhf"))
    assert interview("x", "", "all", file="1 odd name.yaml") == (Path("1 odd name.yaml"), Answers("x", lora=False))
    assert Answers("x").model == NEW


def test_answers_are_stated_as_the_recipe_needs_them() -> None:
    answers = ("", "base", "demos.jsonl", "pairs.jsonl", "prompts.jsonl", "", "gpu")
    _, found = interview(*answers, file="deep/r.yaml")
    assert (found.model, found.demonstrations) == ("../base", "../demos.jsonl")
    assert (found.scorer, found.scored_by) == ("../pairs.jsonl", "preferences")
    assert (found.prompts, found.prompts_rows) == ("../prompts.jsonl", 100)
    assert found.lora and found.gpu
    _, found = interview(*answers)
    assert found.model == "./base" and found.prompts == "prompts.jsonl"  # ./: a folder, not an id on the Hub


@pytest.mark.parametrize(
    ("scorer", "kind"),
    [("pairs.jsonl", "preferences"), ("base", "model"), ("org/reward", "model"), ("my_rewards:score", "function")],
)
def test_the_kind_of_scorer_follows_from_the_answer(scorer: str, kind: str) -> None:
    _, found = interview("", "base", "none", scorer, "prompts.jsonl", "", "cpu")
    assert found.scored_by == kind and found.demonstrations is None


def test_absolute_paths_and_variables_are_stated_as_given(tmp_path: Path) -> None:
    absolute, variable = str(tmp_path / "prompts.jsonl"), "${HERE}/prompts.jsonl"
    _, found = interview("", "org/base", "none", "f:f", absolute, "", "cpu", file="deep/r.yaml")
    assert (found.prompts, found.prompts_rows) == (absolute, 100)
    _, found = interview("", "org/base", "none", "f:f", variable, "", "cpu", file="deep/r.yaml")
    assert (found.prompts, found.prompts_rows) == (variable, None)  # on another machine it may be another file


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (("no good",), "the first a letter or a digit"),
        (("", "./none"), "there is no folder ./none"),
        (("", "a/b/c"), "there is no folder a/b/c"),
        (("", "demos.jsonl"), "demos.jsonl is a file"),
        (("", "", "perhaps"), "answer lora or all"),
        (("", "base", "none.jsonl"), "there is no file none.jsonl"),
        (("", "base", "none", "nothing"), "a Hub id is owner/name"),
        (("", "base", "none", "f:f", "two.jsonl"), "two.jsonl holds 2 prompts"),
    ],
)
def test_a_wrong_answer_is_refused_with_the_reason(answers: tuple[str, ...], message: str) -> None:
    Path("two.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    with pytest.raises(RlhfctlError, match=message):
        interview(*answers)


def test_an_existing_file_is_refused_before_the_first_question() -> None:
    Path("mine.yaml").touch()
    with pytest.raises(RlhfctlError, match="already exists"):
        ask_questions(Path("mine.yaml"), lambda *_: pytest.fail("a question was asked"))
    with pytest.raises(RlhfctlError, match=r"mine\.yaml: already exists"):
        interview("mine", file=None)
