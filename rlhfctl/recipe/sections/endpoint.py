"""Define `compare.endpoint`: a judge that a server with an OpenAI-compatible API runs.

The key of the server is no part of a recipe: `key_env` names the environment variable that holds it.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section

CRITERIA = (
    "The better response is the one that serves the writer of the prompt better: it does what the prompt asks, "
    "its content is right, and it is clear. A response is not better because it is longer, or because it stands first."
)
# Keys that change how the answers are fetched and counted, and not what is asked.
NOT_INPUTS = (
    "key_env", "concurrency", "timeout", "retries", "max_failed", "price_per_million_input", "price_per_million_output",
    "max_cost",
)  # fmt: skip
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
KEYS_STAY_OUT = "keys never stand in a recipe"
REFUSED_ENDPOINT_KEYS = dict.fromkeys(
    ("api_key", "key", "token", "api_token", "authorization", "headers"),
    (KEYS_STAY_OUT, "set the environment variable that compare.endpoint.key_env names (OPENAI_API_KEY)"),
)
"""Keys that people may look for, each with the reason why it does not exist and what to do."""


def address_parts(address: str) -> SplitResult | None:
    """Split an address into its parts; None if it is no address."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - raises ValueError for a port that is no number
    except ValueError:
        return None
    return parts


def _no_address(endpoint: Endpoint) -> bool:
    parts = address_parts(endpoint.base_url)
    return parts is None or parts.scheme not in ("http", "https") or not parts.hostname


def _more_than_an_address(endpoint: Endpoint) -> bool:
    parts = address_parts(endpoint.base_url)
    return parts is not None and ("@" in parts.netloc or bool(parts.query) or bool(parts.fragment))


class Endpoint(Section):
    """A judge over an OpenAI-compatible API: it is shown each pair of responses in both orders."""

    base_url: str = Field(
        min_length=1, description="Address of the API, up to and with `/v1`. Every prompt and response that is judged "
        "is sent there."
    )  # fmt: skip
    model: str = Field(min_length=1, description="Name of the model, as the server calls it.")
    key_env: str | None = Field(
        "OPENAI_API_KEY", description="Name of the environment variable that holds the key (null: the server needs "
        "none)."
    )  # fmt: skip
    criteria: str = Field(CRITERIA, min_length=1, description="Words that tell the judge which response is better.")
    samples: int = Field(1, gt=0, description="Pairs of responses per prompt that are judged, each in both orders.")
    concurrency: int = Field(4, gt=0, le=256, description="Number of questions that are under way at once.")
    timeout: float = Field(60.0, gt=0, description="Seconds after which an answer counts as lost.")
    retries: int = Field(
        5, ge=0, description="Number of further tries after an overload (429), a fault of the server or of the "
        "connection, or a lost answer; the pauses between them grow, or are those that the server asks for."
    )  # fmt: skip
    max_tokens: int = Field(512, gt=0, description="Maximum length of an answer in tokens.")
    temperature: float | None = Field(
        0.0, ge=0, description="Temperature at which the judge answers (null: the server's default)."
    )
    max_failed: float = Field(
        0.1, ge=0, le=1, description="Largest share of the pairs that may stay without a usable answer; with more the "
        "stage stops."
    )  # fmt: skip
    price_per_million_input: float | None = Field(
        None, ge=0, description="Price of a million tokens that the judge reads, in any currency (null: unknown)."
    )
    price_per_million_output: float | None = Field(
        None, ge=0, description="Price of a million tokens that the judge writes (null: unknown)."
    )
    max_cost: float | None = Field(
        None, gt=0, description="Maximum cost of a comparison: judging stops before a question could exceed it."
    )

    @property
    def host(self) -> str:
        """The host of the address, without port."""
        parts = address_parts(self.base_url)
        return (parts.hostname if parts is not None else None) or ""

    @property
    def encrypted(self) -> bool:
        return self.base_url.lower().startswith("https:")

    @property
    def priced(self) -> bool:
        return self.price_per_million_input is not None and self.price_per_million_output is not None

    RULES: ClassVar[tuple[Rule[Any], ...]] = (
        Rule(
            "base_url",
            "is no address of a server",
            "write it with http:// or https://, like https://api.openai.com/v1 or http://127.0.0.1:8000/v1",
            _no_address,
        ),
        Rule(
            "base_url",
            f"holds more than host, port and path (it is not shown: {KEYS_STAY_OUT})",
            "take out what stands before @ and after ?",
            _more_than_an_address,
        ),
        Rule(
            "key_env",
            f"is no name of an environment variable in capitals (it is not shown: {KEYS_STAY_OUT})",
            "write the variable's name, like OPENAI_API_KEY, and set that variable in the shell",
            lambda endpoint: endpoint.key_env is not None and not VARIABLE.fullmatch(endpoint.key_env),
        ),
        Rule(
            "price_per_million_output",
            "the two prices belong together",
            "set price_per_million_input and price_per_million_output, or neither",
            lambda endpoint: (endpoint.price_per_million_input is None) != (endpoint.price_per_million_output is None),
            about=("price_per_million_input",),
        ),
        Rule(
            "max_cost",
            "cannot be watched without prices",
            "set price_per_million_input and price_per_million_output, or take it out",
            lambda endpoint: endpoint.max_cost is not None and not endpoint.priced,
            about=("price_per_million_input", "price_per_million_output"),
        ),
    )
