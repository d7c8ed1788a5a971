"""The prompts that PPO found: chosen on the examples seen, measured on the test, beside searches without learning."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier, PromptSearch
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.prompted_classifier import PromptScores
from rlhfctl.stages.answers import Answers, Drawn
from rlhfctl.stages.found_prompts import examples_of, report, sentence

WORTH = {"on": 0.1, "yes": 0.2, "no": -0.3, "test": 0.0}


class Words:
    """A frozen model that leans to the label of a text by the words of the prompt; `fooled` is only right when seen."""

    labels = ["a", "b"]  # noqa: RUF012 -- as LabelWords has it

    def __call__(self, pairs: Any) -> list[list[float]]:
        found = []
        for prompt, text in pairs:
            lean = sum(WORTH.get(word, 0.0) for word in set(prompt.split())) - 0.15
            if "fooled" in prompt:
                lean = 0.4 if text.startswith("seen") else -0.4
            right = 0.5 + lean
            found.append([right, 1 - right] if text.endswith("a") else [1 - right, right])
        return found


class Tokenizer:
    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return {1: " on", 2: " yes", 3: " no", 4: " test", 5: "\ufffd", 6: " "}[ids[0]]


def row(text: str) -> dict[str, Any]:
    return {"prompt": "words:", "replaced_prompt": text, "label": text[-1]}


def drawn(*prompts: str, ids: Any = (1, 2)) -> Drawn:
    episodes = [[Episode([9], ids, "words:", prompt, row("test-a"))] for prompt in prompts]
    return Drawn(episodes, [[True] for _ in prompts], None)


@pytest.fixture
def scores() -> PromptScores:
    return PromptScores(PromptedClassifier(verbalizers={"a": "good", "b": "bad"}, shots=1), Words())  # type: ignore[arg-type]


@pytest.fixture
def ctx() -> Any:
    split = SimpleNamespace(
        train=[row(f"seen{n}-{label}") for n in range(3) for label in "ab"],
        eval=[row("seen8-a"), row("seen9-b")],
        test=[row(f"test{n}-{label}") for n in range(2) for label in "ab"],
    )
    return SimpleNamespace(data={"prompts": SimpleNamespace(split=split)}, recipe=SimpleNamespace(seed=0))


def answers(**policy: Any) -> Answers:
    sides = {1.0: drawn("on yes", "on yes", "on", "fooled"), 0.0: drawn("yes")}
    reference = {1.0: drawn("on", "no", ids=(1, 2, 3, 4, 5, 6)), 0.0: drawn("no")}
    return Answers(sides, reference, 1.0, None, None, Tokenizer())  # type: ignore[arg-type]


def test_prompts_are_chosen_on_what_was_seen_and_measured_on_the_test(scores: PromptScores, ctx: Any) -> None:
    seen, test = examples_of(scores, ctx)
    assert [text for text, _ in seen] == ["seen0-a", "seen0-b", "seen8-a", "seen9-b"] and len(test) == 4
    found = report(scores, answers(), None, ctx)
    assert found["examples"] == {"chosen_on": 4, "test": 4} and "search" not in found
    assert [one["prompt"] for one in found["policy"]] == ["fooled", "on yes", "yes", "on"]
    best = {one["prompt"]: one for one in found["policy"]}
    assert (best["fooled"]["chosen_on_accuracy"], best["fooled"]["accuracy"]) == (1.0, 0.0)
    assert best["on yes"]["accuracy"] == 1.0 and best["on yes"]["reward"] == pytest.approx(200 * 0.3)
    assert [one["share"] for one in found["policy"]] == [0.25, 0.5, 0.0, 0.25]
    assert [one["greedy"] for one in found["policy"]] == [False, False, True, False]
    assert found["empty"]["accuracy"] == 0.0 and found["empty"]["reward"] == pytest.approx(180 * -0.3)
    assert [one["prompt"] for one in found["reference"]] == ["on", "no"] and found["reference_tried"] == 2
    assert "'fooled', accuracy 0.00 on 4 test examples; the empty prompt's is 0.00" in sentence(found)


def test_a_search_uses_the_words_of_the_reference_and_stops_where_no_word_helps(scores: PromptScores, ctx: Any) -> None:
    found = report(scores, answers(), PromptSearch(random=200), ctx)["search"]
    assert found["words"] == 4
    assert found["random"]["tried"] == 16  # all pairs of four words, each once
    assert set(found["random"]["prompt"].split()) == {"on", "yes"} and found["random"]["accuracy"] == 1.0
    assert found["greedy"]["prompt"] == "yes on" and found["greedy"]["tried"] == 8
    alone = report(scores, answers(), PromptSearch(random=0), ctx)["search"]
    assert set(alone) == {"words", "greedy"}
    assert set(report(scores, answers(), PromptSearch(greedy=False, random=3), ctx)["search"]) == {"words", "random"}
