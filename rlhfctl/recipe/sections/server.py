"""Define `reward.server`: how servers are asked that the recipe names by their address, http://... or https://...

The address itself stands where a function would: in `reward.function`, `ppo.rewards` or `compare.judges`. The key of a
server is no part of a recipe: `key_env` names the environment variable that holds it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section
from rlhfctl.recipe.sections.endpoint import KEYS_STAY_OUT, VARIABLE, address_parts
from rlhfctl.recipe.sections.scorers import is_address

UNFIT = f"an address of a server is host, port and path alone (it is not shown: {KEYS_STAY_OUT})"
UNFIT_FIX = "take out what stands before @ and after ?, or write it like http://127.0.0.1:8000/score"


def unfit(name: str) -> bool:
    """Tell whether a name is an address that a recipe must not hold: without a host, or with a user or a query."""
    if not is_address(name):
        return False
    parts = address_parts(name)
    return parts is None or not parts.hostname or "@" in parts.netloc or bool(parts.query) or bool(parts.fragment)


class Server(Section):
    """How reward servers are asked: responses per request, requests at once, patience, speed, and the key."""

    batch_size: int = Field(16, gt=0, description="Number of responses in one request.")
    concurrency: int = Field(4, gt=0, le=256, description="Number of requests that are under way at once.")
    timeout: float = Field(60.0, gt=0, description="Seconds after which a request counts as lost.")
    retries: int = Field(
        5, ge=0, description="Number of further tries of a request after an overload (429), a fault of the server or "
        "of the connection, or a lost answer; the pauses between them grow, or are those that the server asks for."
    )  # fmt: skip
    give_up_after: float = Field(
        600.0, gt=0, description="Seconds in all that one batch of responses may take: then the run stops at a "
        "checkpoint, and the same command resumes it."
    )  # fmt: skip
    requests_per_second: float | None = Field(
        None, gt=0, description="Largest number of requests per second (null: no limit)."
    )
    key_env: str | None = Field(
        None, description="Name of the environment variable that holds the key, sent as a bearer token (null: none)."
    )

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        Rule(
            "key_env",
            f"is no name of an environment variable in capitals (it is not shown: {KEYS_STAY_OUT})",
            "write the variable's name, like REWARD_KEY, and set that variable in the shell",
            lambda server: server.key_env is not None and not VARIABLE.fullmatch(server.key_env),
        ),
    )
