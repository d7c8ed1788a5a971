"""Hold figures to the JSON Schema of Vega-Lite, which lies here as the npm package has it."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

SCHEMA = Path(__file__).with_name("vega-lite-schema.json.gz")


@cache
def validator() -> Draft7Validator:
    return Draft7Validator(json.loads(gzip.decompress(SCHEMA.read_bytes())))


def faults(spec: dict[str, Any]) -> list[str]:
    """What the schema says against a specification. Of data the first row stands for all."""
    return [error.message[:300] for error in validator().iter_errors(_with_one_row(spec))]


def _with_one_row(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: inner[:1] if key == "values" and isinstance(inner, list) else _with_one_row(inner)
            for key, inner in value.items()
        }
    return [_with_one_row(inner) for inner in value] if isinstance(value, list) else value


def rows_of(spec: dict[str, Any], layer: int | None = None) -> list[dict[str, Any]]:
    """The rows of a figure, or of one of its layers that has rows of its own."""
    holder = spec if layer is None else spec["layer"][layer]
    rows: list[dict[str, Any]] = holder["data"]["values"]
    return rows
