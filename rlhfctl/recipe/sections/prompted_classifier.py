"""Define `reward.prompted_classifier`: the response is a prompt, and a frozen language model classifies with it.

The reward is that of RLPrompt (Deng et al. 2022, "RLPrompt: Optimizing Discrete Text Prompts with Reinforcement
Learning", EMNLP 2022, arXiv 2205.12548, section 3.1 of the experiments, and equation 4 for the z-score).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section

TEXT, PROMPT, MASK = "{text}", "{prompt}", "{mask}"  # what `template` holds, each once


class PromptedClassifier(Section):
    """A frozen language model that reads the response as a prompt and says the label of an example by one word."""

    model: str | None = Field(
        None,
        min_length=1,
        description="The frozen language model, causal or masked: a local folder or a Hub id (null: base*).",
    )
    template: str = Field(
        f"{TEXT} {PROMPT} {MASK}",
        description=f"What the model reads: {TEXT} is the example, {PROMPT} the response, {MASK} the place of the "
        "label's word, which stands last for a causal model.",
    )
    verbalizers: dict[str, str] = Field(
        description="Word of each label, one token of the model: {positive: good, negative: bad}."
    )
    label: str = Field("label", min_length=1, description="Column of the prompts that holds the label of an example.")
    shots: int | None = Field(
        None, gt=0, description="Training examples per label that are used, the first ones (null: all)."
    )
    zscore: bool = Field(
        True,
        description="Whether PPO trains on the z-score of each example's reward over the batch's responses; "
        "evaluations and judges never do.",
    )
    correct_coef: float = Field(200.0, gt=0, description="Factor of the gap where the model is right.")
    incorrect_coef: float = Field(180.0, gt=0, description="Factor of the gap where it is wrong.")

    @property
    def repeated_words(self) -> list[str]:
        """List the words that stand for more than one label, sorted."""
        counts = Counter(word.strip() for word in self.verbalizers.values())
        return sorted(word for word, count in counts.items() if count > 1)

    def as_input(self) -> dict[str, Any]:
        """Return the keys that decide on the scores: the model's files are an input of their own."""
        return self.model_dump(mode="json", exclude={"model"})

    RULES: ClassVar[tuple[Rule[PromptedClassifier], ...]] = (
        Rule(
            "template",
            "holds {{text}}, {{prompt}} and {{mask}} once each",
            'write it as "{{text}} {{prompt}} {{mask}}", with words around them',
            lambda section: any(section.template.count(part) != 1 for part in (TEXT, PROMPT, MASK)),
        ),
        Rule(
            "verbalizers",
            "a classifier has at least two labels",
            "give each label its word, such as good for positive",
            lambda section: len(section.verbalizers) < 2,
        ),
        Rule(
            "verbalizers",
            "the same word stands for several labels: {repeated_words}",
            "give each label a word of its own",
            lambda section: bool(section.repeated_words),
        ),
    )


class PromptSearch(Section):
    """Searches without learning, beside the prompts that PPO found: with words that the reference writes."""

    random: int = Field(
        1000, ge=0, description="Random prompts of the responses' length, of which the best is reported (0: none)."
    )
    greedy: bool = Field(
        True, description="Whether to build a prompt word by word, each the best one of all at its place."
    )

    RULES: ClassVar[tuple[Rule[PromptSearch], ...]] = (
        Rule(
            "random",
            "nothing is searched: it is 0, and greedy is false",
            "set one of the two, or remove {at}",
            lambda search: search.random == 0 and not search.greedy,
            about=("greedy",),
        ),
    )
