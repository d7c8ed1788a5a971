"""Define the `sample` section: the responses that are written for people to compare."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlhfctl.recipe.sections.base import DataNeed, Rule, Stage, without

FEWEST_RESPONSES, MOST_RESPONSES = 2, 16  # of one question

Sampled = Literal["latest", "base"]


class Sample(Stage):
    """A labelling set: several responses to each of some training prompts, for the label stage."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (DataNeed("prompts", "to write responses to"),)

    prompts: int = Field(300, gt=0, description="Number of questions: training prompts, of all rounds together.")
    responses: int = Field(
        2,
        ge=FEWEST_RESPONSES,
        le=MOST_RESPONSES,
        description="Different responses per question, to compare or to rank.",
    )
    models: list[Sampled] = Field(
        ["latest"],
        min_length=1,
        description="Who writes them, in turn and blinded: latest (base* in the first round, then the policy of the "
        "round before) or base.",
    )
    temperature: float | None = Field(None, gt=0, description="Temperature of sampling (null: PPO's).")
    candidates: int = Field(
        1,
        ge=1,
        le=100,
        description="Questions drawn for each one that is asked, from the second round on: those are asked on which "
        "the members of the last round's reward ensemble differ most (Christiano et al. 2017: 10).",
    )
    batch_size: int = Field(64, gt=0, description="Number of responses sampled at once.")

    @model_serializer(mode="wrap")
    def _without_plain_candidates(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs that were made before this key existed stay unchanged.
        return without(handler(self), () if self.candidates > 1 else ("candidates",))

    @property
    def trains(self) -> bool:
        return False

    RULES: ClassVar[tuple[Rule[Sample], ...]] = (
        Rule(
            "models",
            "a model is listed more than once",
            "list each once",
            lambda sample: len(set(sample.models)) < len(sample.models),
        ),
    )
