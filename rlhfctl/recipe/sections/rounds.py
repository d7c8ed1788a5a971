"""Define the `rounds` section: how often sample, label, reward and ppo are repeated, and what changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlhfctl.recipe.sections.base import Rule, Section


class Rounds(Section):
    """Several rounds of sample, label, reward and ppo in one run; each policy goes on from the one before."""

    count: int = Field(ge=2, description="Number of rounds.")
    labels: Literal["equal", "annealed"] | list[Annotated[float, Field(gt=0)]] = Field(
        "equal",
        description="Questions per round: equal, annealed (fewer in each: round r gets a share in proportion to "
        "1 / (r + 1), so that of eight rounds the first gets a quarter), or the share of each round.",
    )
    reference: Literal["base", "last"] = Field(
        "base", description="What the KL of PPO is measured from: base* throughout, or the policy of the round before."
    )

    reward: Literal["base", "last"] = Field(
        "base", description="What each reward model starts from: base* and a new head, or the reward model of the "
        "round before (prompts then keep their side of the held-out split in all rounds)."
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """Rewrite a number of rounds as a section."""
        return value if isinstance(value, Mapping | Rounds) else {"count": value}

    def questions(self, total: int) -> list[int]:
        """Divide `total` questions among the rounds, by the largest remainder: the sum is `total`."""
        shares = self._shares()
        exact = [total * share / sum(shares) for share in shares]
        counts = [int(one) for one in exact]
        by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
        for place in by_remainder[: total - sum(counts)]:
            counts[place] += 1
        return counts

    def _shares(self) -> list[float]:
        if isinstance(self.labels, list):
            return self.labels
        if self.labels == "equal":
            return [1.0] * self.count
        # Christiano et al. 2017 lower the rate of labels over time as T / (t + T).
        return [1 / (number + 1) for number in range(1, self.count + 1)]

    RULES: ClassVar[tuple[Rule[Rounds], ...]] = (
        Rule(
            "labels",
            "there are {count} rounds, and another number of shares",
            "give one share per round",
            lambda rounds: isinstance(rounds.labels, list) and len(rounds.labels) != rounds.count,
        ),
    )
