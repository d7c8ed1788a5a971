"""Define the `label` section: who judges the questions of a labelling set, how often, and which labels count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Stage
from rlhfctl.recipe.sections.endpoint import NOT_INPUTS, Endpoint
from rlhfctl.recipe.sections.scorers import ENDPOINT, FUNCTION_NAME

PEOPLE, BUILTIN = "people", "builtin"
JUDGES = (PEOPLE, BUILTIN, ENDPOINT)


def _without_people(key: str) -> Callable[[Label], bool]:
    default = {"overlap": 0.0, "annotators": 2, "order": "file", "enough": 1.0, "combine": "all"}[key]
    return lambda label: label.by != PEOPLE and getattr(label, key) != default


class Label(Stage):
    """Judgements of the questions that the sample stage wrote: preferences for the reward stage (stage:label)."""

    by: str = Field(
        PEOPLE,
        description="Who judges: people (`rlhfctl label RUN`; run waits for them), builtin (the built-in task's true "
        "preference, with noise), endpoint (a model behind an API: label.endpoint) or module:name (a Python function).",
    )
    endpoint: Endpoint | None = Field(
        None, description="With endpoint: the model behind an OpenAI-compatible API that judges; it sees each pair in "
        "both orders."
    )  # fmt: skip
    noise: float = Field(0.1, ge=0, le=1, description="With builtin: fraction of the questions judged the wrong way.")
    overlap: float = Field(0.0, ge=0, le=1, description="Share of the questions that several people judge.")
    annotators: int = Field(2, ge=2, description="Number of different people who judge each of these.")
    order: Literal["file", "random"] = Field("file", description="Order in which questions are asked.")
    enough: float = Field(
        1.0, gt=0, le=1, description="Share of the wanted answers with which the run goes on without the others."
    )
    combine: Literal["all", "majority"] = Field(
        "all", description="Whether each label is a row of its own, or the annotators of a question vote."
    )
    old: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the labels of the round before that is kept in each round: 1 keeps all labels of all "
        "rounds, 0 uses those of the last round alone.",
    )

    @property
    def trains(self) -> bool:
        return False

    @property
    def is_function(self) -> bool:
        """Tell whether a Python function judges."""
        return self.by not in JUDGES

    def as_input(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"endpoint": set(NOT_INPUTS)})

    RULES: ClassVar[tuple[Rule[Label], ...]] = (
        Rule(
            "by",
            "{by!r} is nobody who judges",
            f"use {', '.join(JUDGES)} or a Python function (module:name)",
            lambda label: label.is_function and not FUNCTION_NAME.fullmatch(label.by),
        ),
        *(
            Rule(
                key, "is for people, but {at}.by is {by}", f"remove {{key}}, or set by: {PEOPLE}", _without_people(key)
            )
            for key in ("overlap", "annotators", "order", "enough", "combine")
        ),
        Rule(
            "by",
            "endpoint needs {at}.endpoint: the address and the model to ask",
            "add it",
            lambda label: label.by == ENDPOINT and label.endpoint is None,
            about=("endpoint",),
        ),
        Rule(
            "endpoint",
            "is not used: {at}.by is {by}",
            f"remove it, or set by: {ENDPOINT}",
            lambda label: label.by != ENDPOINT and label.endpoint is not None,
            about=("by",),
        ),
        Rule(
            "noise",
            f"is for the judge {BUILTIN}, but {{at}}.by is {{by}}",
            "remove it",
            lambda label: label.by != BUILTIN and label.noise != 0.1,
        ),
    )
