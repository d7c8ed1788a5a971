"""Define the `seeds` section: the seeds of a run that repeats its later stages, and the stage from which it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rlhfctl.recipe.sections.base import Rule, Section

LARGEST_SEED = 2**32 - 1  # NumPy's limit
LEAST_SEEDS = 2


class Seeds(Section):
    """Several seeds in one run: stages that depend on the seed run once per seed, the others run once."""

    values: int | list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        description="The seeds, or how many: 3 means `seed`, `seed` + 1 and `seed` + 2."
    )
    start: str | None = Field(
        None,
        alias="from",  # a word of Python
        description="First stage that runs once per seed; stages before it are shared (null: the stage after sft or "
        "base).",
    )

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """Rewrite a number or a list of seeds as a section."""
        return value if isinstance(value, Mapping | Seeds) else {"values": value}

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"from" if key == "start" else key: value for key, value in handler(self).items()}

    @property
    def listed(self) -> list[int]:
        """The seeds, in order. Only of a resolved recipe."""
        if isinstance(self.values, int):
            raise TypeError("the seeds are counted, not listed yet: the recipe is not resolved")
        return self.values

    def resolved(self, first: int) -> Seeds:
        """Return this section with its seeds listed; `first` is the recipe's `seed`."""
        count = self.values
        return self.model_copy(update={"values": [*range(first, first + count)]}) if isinstance(count, int) else self

    RULES: ClassVar[tuple[Rule[Seeds], ...]] = (
        Rule(
            "values",
            f"at least {LEAST_SEEDS} seeds are needed: one seed does not show how much a result depends on it",
            "use more, or leave {at} out and set `seed`",
            lambda seeds: (seeds.values if isinstance(seeds.values, int) else len(seeds.values)) < LEAST_SEEDS,
        ),
        Rule(
            "values",
            "a seed is listed more than once",
            "list each seed once",
            lambda seeds: isinstance(seeds.values, list) and len(set(seeds.values)) < len(seeds.values),
        ),
    )
