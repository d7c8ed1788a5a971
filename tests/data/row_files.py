"""Helpers of tests that write rows to a file and read them as one of the data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhfctl.data.load import load_demonstrations, load_preferences, load_prompts
from rlhfctl.data.types import Rows
from rlhfctl.recipe.schema import Demonstrations, Preferences, Prompts


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


ASK, ANSWER, OTHER = message("user", "q"), message("assistant", "a"), message("assistant", "b")


def write(path: Path, *rows: object) -> str:
    """Write rows as JSONL; return the path as a source."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(kind: str, source: str, **options: Any) -> Rows:
    """Load the rows of one file as demonstrations, preferences or prompts."""
    if kind == "demonstrations":
        return load_demonstrations(Demonstrations(source=source, **options), 0)
    if kind == "preferences":
        return load_preferences(Preferences(source=source, **options), 0)
    return load_prompts(Prompts(source=source, **options), 0)
