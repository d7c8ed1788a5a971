"""The frozen model of a prompted classifier: a few examples per label, and recipes without one load nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_models import masked_model
from small_stage import context

from rlhfctl.artifacts import resolve_source
from rlhfctl.graph import FROZEN, STAGES
from rlhfctl.models.label_words import LabelWords
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier
from rlhfctl.stages.prompted import few_shot, loader_of

WORDS = {"a": "good", "b": "bad"}


def rows(labels: str) -> tuple[list[dict[str, Any]], list[list[int]]]:
    return [{"prompt": str(n), "label": label} for n, label in enumerate(labels)], [[n] for n in range(len(labels))]


def test_the_first_examples_of_each_label_are_kept() -> None:
    given = rows("aababb")
    section = PromptedClassifier(verbalizers=WORDS, shots=2)
    kept, ids = few_shot(*given, section)
    assert [row["label"] for row in kept] == ["a", "a", "b", "b"] and ids == [[0], [1], [2], [4]]
    assert few_shot(*given, None) == given
    assert few_shot(*given, PromptedClassifier(verbalizers=WORDS)) == given


def recipe_with(**section: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"path": "a/b"},
            "data": {"prompts": {"source": "builtin:sentiment", "rows": 300, "fixed_prompt": "words:"}},
            "reward": {"prompted_classifier": {"verbalizers": {"positive": "good", "negative": "bad"}} | section},
            "ppo": {"lora": None},
            "compare": {"judges": ["correct"]},
        }
    )


def test_ppo_and_compare_have_the_frozen_model_as_a_parent() -> None:
    for name in ("ppo", "compare"):
        parent = STAGES[name].parents[FROZEN]
        assert parent.makes == "base" and parent.used(recipe_with()) and parent.named(recipe_with()) is None
        assert parent.named(recipe_with(model="org/model")) == "org/model"
        plain = recipe_with().model_copy(update={"reward": None})
        assert not parent.used(plain)
        reads = STAGES[name].settings(recipe_with(shots=3, model="org/model"))["reward.prompted_classifier"]
        assert reads["shots"] == 3 and "model" not in reads


def test_a_masked_model_from_a_folder_is_loaded_once_and_when_asked(tmp_path: Path) -> None:
    model, tokenizer = masked_model(["the", "soup", "was", "cold", "so", "good", "bad"], 24)
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    said: list[Any] = []
    ctx = context(tmp_path / "run", "ppo", said)
    assert loader_of(ctx, 4) is None
    source = resolve_source(str(tmp_path / "bert"), "frozen language model")
    ctx = replace(ctx, recipe=recipe_with(), parents={FROZEN: source})
    load = loader_of(ctx, 4)
    assert load is not None
    scores = load()
    assert load() is scores and scores.words.masked and scores.words.batch_size == 4
    pairs = [("so", "the soup was cold")]
    expected = LabelWords(model, tokenizer, "{text} {prompt} {mask}", {"positive": "good", "negative": "bad"})(pairs)
    assert torch.tensor(scores.words(pairs)).allclose(torch.tensor(expected), atol=1e-6)
