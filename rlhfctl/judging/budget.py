"""Count what a judge's answers cost, and stop before a question could exceed the limit.

Before a question is sent, the most that it can cost is set aside: a token has at least one byte of text, and the answer
at most `max_tokens`. When the answer comes, the true number takes its place. Pure arithmetic; a price or a usage that
is unknown makes a cost unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhfctl.judging.question import Message
from rlhfctl.recipe.sections.endpoint import Endpoint

_MILLION = 1_000_000
_TEMPLATE_TOKENS = 32  # per message, for the marks that a chat template adds


def cost(section: Endpoint, input_tokens: int | None, output_tokens: int | None) -> float | None:
    """Compute the cost of tokens, in the currency of the prices; None if a price or a number is unknown."""
    prices = section.price_per_million_input, section.price_per_million_output
    if prices[0] is None or prices[1] is None or input_tokens is None or output_tokens is None:
        return None
    return (input_tokens * prices[0] + output_tokens * prices[1]) / _MILLION


def highest_cost(section: Endpoint, messages: Sequence[Message]) -> float:
    """Bound the cost of asking these messages from above; 0 without prices."""
    read = sum(len(message["content"].encode("utf-8")) + _TEMPLATE_TOKENS for message in messages)
    return cost(section, read, section.max_tokens) or 0.0


@dataclass
class Budget:
    """The money of one comparison: `spent` for answers, and `reserved` for questions that are under way."""

    limit: float | None
    spent: float = 0.0
    reserved: float = 0.0

    def reserve(self, highest: float) -> bool:
        """Set money aside for a question that costs at most `highest`; False if the limit could be exceeded."""
        if self.limit is not None and self.spent + self.reserved + highest > self.limit:
            return False
        self.reserved += highest
        return True

    def settle(self, highest: float, spent: float) -> None:
        """Give back what was set aside for a question, and count what it did cost."""
        self.reserved -= highest
        self.spent += spent
