"""Prompts as labelled examples: labels, a few per label, label words, and all of it before anything trains."""

from __future__ import annotations

from typing import Any

import pytest

from rlhfctl.data import preflight
from rlhfctl.data.labelled import check_labelled, few_shot, label_of, token_of
from rlhfctl.data.load import check_all
from rlhfctl.data.types import PromptSplit
from rlhfctl.errors import DataError
from rlhfctl.models import tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init
from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier
from rlhfctl.recipe.shipped import shipped_recipes

WORDS = {"a": "good", "b": "bad"}
INIT = Init(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["good", " good", " bad", "bad", "soup", " "]
)


def rows(labels: str) -> list[dict[str, Any]]:
    return [{"prompt": str(number), "label": label} for number, label in enumerate(labels)]


def test_a_label_is_a_key_of_the_words_whatever_its_column_and_type() -> None:
    assert label_of({"label": "b"}, PromptedClassifier(verbalizers=WORDS)) == "b"
    numbered = PromptedClassifier(verbalizers={"0": "bad", "1": "good"}, label="class")
    assert label_of({"class": 1, "label": "b"}, numbered) == "1"


@pytest.mark.parametrize(
    ("row", "what"),
    [({"prompt": "x"}, "no column 'label' with a label"), ({"prompt": "x", "label": "d"}, "the label 'd'")],
)
def test_rows_without_a_known_label_are_refused(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        label_of(row, PromptedClassifier(verbalizers=WORDS))
    assert caught.value.fix is not None and "reward.prompted_classifier.label" in caught.value.fix


def test_the_first_examples_of_each_label_are_chosen() -> None:
    assert list(few_shot(rows("aababb"), PromptedClassifier(verbalizers=WORDS, shots=2))) == [0, 1, 2, 4]
    assert list(few_shot(rows("aab"), PromptedClassifier(verbalizers=WORDS))) == [0, 1, 2]
    with pytest.raises(DataError, match="1 training prompts have the label b, and shots asks for 2"):
        few_shot(rows("aab"), PromptedClassifier(verbalizers=WORDS, shots=2))


def test_the_token_of_a_word_depends_on_the_space_before_it() -> None:
    tokenizer = tokenizing.train_tokenizer(INIT, [])
    for template, token in (("{text} {prompt} {mask}", " good"), ("{text} {prompt}{mask}", "good")):
        assert tokenizer.convert_ids_to_tokens([token_of(tokenizer, template, "a", " good ")]) == [token]
    with pytest.raises(DataError, match="the word 'good soup' of the label a is 3 tokens"):
        token_of(tokenizer, "{text} {prompt} {mask}", "a", "good soup")


def test_rows_examples_and_words_are_checked_in_every_part() -> None:
    section, tokenizer = PromptedClassifier(verbalizers=WORDS, shots=1), tokenizing.train_tokenizer(INIT, [])
    good = rows("ab")
    check_labelled(section, PromptSplit(good, good, good), tokenizer)
    for parts in ((rows("a"), good, good), (good, rows("c"), good), (good, good, rows("c"))):
        with pytest.raises(DataError):
            check_labelled(section, PromptSplit(*parts), None)
    long = PromptedClassifier(verbalizers={"a": "good soup", "b": "bad"})
    check_labelled(long, PromptSplit(good, good, good), None)
    with pytest.raises(DataError, match="one that it knows"):
        check_labelled(long, PromptSplit(good, good, good), tokenizer)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ("reward.prompted_classifier.label=class", "no column 'class' with a label"),
        ("reward.prompted_classifier.shots=60", "and shots asks for 60"),
        ("reward.prompted_classifier.verbalizers.negative=marvellous", "one that it knows"),
    ],
)
def test_faults_are_told_before_the_first_stage_trains(changed: str, what: str) -> None:
    overrides = ["data.demonstrations.rows=200", "model.init.vocab_size=300", changed]
    recipe = load_recipe(shipped_recipes()["rlprompt"], overrides).recipe
    loaded = check_all(recipe.data, 0)
    tokenizer = tokenizing.prepare(recipe, loaded).tokenizer
    with pytest.raises(DataError, match=what):
        preflight.check(recipe, loaded, ["sft", "ppo"], tokenizer)
