"""`rlhfctl schema`: make the JSON Schema of a recipe, for editors that complete keys and mark mistakes.

Made from the sections in recipe/, where each key's description is written once. The schema is as strict as the loader
about single keys: names, types, bounds, keys that rlhfctl owns under `trainer:`. Leaves out rules about several keys
and the fields of TRL's configs (`validate` checks both). Writes one file, and overwrites only an older file that this
command made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.schema import OWNED_TRAINER_KEYS, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"  # the dialect that pydantic writes
TITLE = "rlhfctl recipe"
_ABOUT = "One RLHF run: model, data, and the stages in order. `rlhfctl validate` also checks what is between keys."
_FILE = {"type": "string", "minLength": 1}
_EXTENDS = {
    "description": "Another recipe file, from which everything is taken that is not stated here.",
    "anyOf": [_FILE, {"type": "array", "items": _FILE, "minItems": 1, "maxItems": 1}],
}
_NOT_OWNED = {"not": {"anyOf": [{"enum": sorted(OWNED_TRAINER_KEYS)}, {"pattern": "^hub_"}]}}


def recipe_schema() -> dict[str, Any]:
    """Build the JSON Schema. Keys that are required, at any depth, are required only in a recipe without `extends`."""
    made = Recipe.model_json_schema()
    sections: dict[str, Any] = made["$defs"]
    required = _required(made, sections)
    for section in (made, *sections.values()):
        section.pop("required", None)
        section.pop("title", None)
        for value in section["properties"].values():
            value.pop("title", None)  # pydantic's titles repeat the key
    for name, part in (
        ("demonstrations", "DemonstrationsPart"),
        ("preferences", "PreferencesPart"),
        ("pretraining", "DemonstrationsPart"),
        ("prompts", "PromptsPart"),
    ):
        listed = {"type": "array", "items": {"$ref": f"#/$defs/{part}"}, "minItems": 1}
        sections["Data"]["properties"][name]["anyOf"].append(listed)
    made["properties"]["seeds"]["anyOf"] += sections["Seeds"]["properties"]["values"]["anyOf"]
    for name in ("eval_source", "test_source"):
        sections["Prompts"]["properties"][name]["anyOf"].append({"type": "string"})
    for section in sections.values():
        if "trainer" in section["properties"]:
            section["properties"]["trainer"]["propertyNames"] = _NOT_OWNED
    return {
        "$schema": DIALECT,
        "title": TITLE,
        "description": _ABOUT,
        "type": "object",
        "properties": {"extends": _EXTENDS, **made["properties"]},
        "additionalProperties": False,
        "if": {"required": ["extends"]},
        "else": required,
        "$defs": sections,
    }


def text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def write(out: Path, content: str, replaceable: Callable[[str], bool]) -> None:
    """Write `content` to `out`. An existing file is overwritten only if `replaceable(its text)` is true.

    Otherwise raises RlhfctlError.
    """
    fix = "name another file"
    if not out.exists():
        fs.write_new(out, content, fix=fix)
    elif out.is_file() and replaceable(out.read_text(encoding="utf-8", errors="replace")):
        fs.write_atomic(out, content)
    else:
        raise RlhfctlError("already exists and was not made by this command", where=str(out), fix=fix)


def _required(section: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Build the schema of the required keys: the section's own, and those of each section inside it that is present."""
    found: dict[str, Any] = {"required": section["required"]} if section.get("required") else {}
    within: dict[str, Any] = {}
    for key, value in section["properties"].items():
        for part in (value, *value.get("anyOf", ()), *value.get("allOf", ())):
            element = part.get("items", {}) if part.get("type") == "array" else part
            if "$ref" in element and (needs := _required(sections[element["$ref"].rpartition("/")[2]], sections)):
                within[key] = needs if element is part else {"items": needs}
    return found | ({"properties": within} if within else {})


def is_schema(text: str) -> bool:
    """Tell whether a file's text is a JSON Schema that this command made."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("title") == TITLE
