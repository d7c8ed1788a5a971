"""The JSON Schema: as strict as the loader about keys and values, except in recipes that extend another."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from ruamel.yaml import YAML
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.shipped import shipped_recipes
from rlhfctl.recipe.words import field_at, sections
from rlhfctl.tools import reference, schema

SHIPPED = ROOT / "recipes" / "recipe.schema.json"
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
MADE = schema.recipe_schema()


def faults(value: Any, rule: dict[str, Any], at: str = "") -> list[str]:
    """List the faults of a value under the schema. A keyword that our schema does not use fails the test."""
    found: list[str] = []
    for word, given in rule.items():
        match word:
            case "$ref":
                found += faults(value, MADE["$defs"][given.rpartition("/")[2]], at)
            case "type":
                kind = (int, float) if given == "number" else TYPES[given]
                ok = isinstance(value, kind) and (isinstance(value, bool) == (given == "boolean"))
                found += [] if ok else [f"{at}: not {given}"]
            case "anyOf":
                found += [] if any(not faults(value, part, at) for part in given) else [f"{at}: none of anyOf"]
            case "not":
                found += [] if faults(value, given, at) else [f"{at}: forbidden"]
            case "enum":
                found += [] if value in given else [f"{at}: not of the enum"]
            case "const":
                found += [] if value == given else [f"{at}: not the constant"]
            case "pattern" if isinstance(value, str):
                found += [] if re.search(given, value) else [f"{at}: pattern"]
            case "properties" if isinstance(value, dict):
                for key, part in given.items():
                    found += faults(value[key], part, f"{at}.{key}") if key in value else []
            case "additionalProperties" if isinstance(value, dict) and given is not True:
                for key in value.keys() - rule.get("properties", {}).keys():
                    found += [f"{at}.{key}: unknown"] if given is False else faults(value[key], given, f"{at}.{key}")
            case "propertyNames" if isinstance(value, dict):
                found += [fault for key in value for fault in faults(key, given, f"{at}.{key}")]
            case "required" if isinstance(value, dict):
                found += [f"{at}.{key}: missing" for key in given if key not in value]
            case "items" if isinstance(value, list):
                found += [fault for index, item in enumerate(value) for fault in faults(item, given, f"{at}[{index}]")]
            case "if":
                branch = "else" if faults(value, given, at) else "then"
                found += faults(value, rule.get(branch, {}), at)
            case "minLength" | "minItems" | "minProperties" if isinstance(value, str | list | dict):
                found += [] if len(value) >= given else [f"{at}: {word}"]
            case "maxItems" if isinstance(value, list):
                found += [] if len(value) <= given else [f"{at}: {word}"]
            case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum" if isinstance(value, int | float):
                low = value >= given if word == "minimum" else value > given
                high = value <= given if word == "maximum" else value < given
                found += [] if (low if "inimum" in word else high) else [f"{at}: {word}"]
            case _:
                assert word in (
                    "$schema", "$defs", "title", "description", "default", "else", "then", "properties", "required",
                    "additionalProperties", "propertyNames", "items", "minLength", "minItems", "minProperties",
                    "maxItems", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
                ), word  # fmt: skip
    return found


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_fit(name: str) -> None:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    assert faults(read(text), MADE) == []
    (line,) = re.findall(r"\A# yaml-language-server: \$schema=(.*)$", text, re.MULTILINE)
    assert (shipped_recipes()[name].parent / line).resolve() == SHIPPED


def test_the_shipped_schema_is_up_to_date() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == schema.text(), "rlhfctl schema --out recipes/recipe.schema.json"


def test_the_wheel_carries_it(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed here")
    (wheel,) = build.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert "rlhfctl/recipes_data/recipe.schema.json" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ""),
        ("sede: 1", ".sede: unknown"),
        ("seed: -1", ".seed: minimum"),
        ("seed: one", ".seed: not integer"),
        ("ppo: {learning_rat: 1e-5}", ".ppo: none of anyOf"),
        ("ppo: {learning_rate: 0.0}", ".ppo: none of anyOf"),
        ("ppo: {learning_rate: 1e-5, critic: heads}", ".ppo: none of anyOf"),
        ("ppo: null", ""),
        ("sft: {trainer: {learning_rate: 1e-5}}", ""),
        ("sft: {trainer: {output_dir: x}}", ".sft: none of anyOf"),
        ("reward: {trainer: {hub_token: x}}", ".reward: none of anyOf"),
        ("data: {prompts: {sources: [{limit: 3}]}}", ".data.prompts.sources[0].source: missing"),
        ("data: {prompts: [{source: a.jsonl, weight: 2}, {source: b.jsonl}]}", ""),
        ("data: {prompts: [{source: a.jsonl, weight: 0}]}", ".data.prompts: none of anyOf"),
        ("data: {prompts: {source: a.jsonl, test_source: b.jsonl}}", ""),
        ("data: {prompts: {source: a.jsonl, test_source: {source: b.jsonl, limit: 3}}}", ""),
        ("data: {prompts: {source: a.jsonl, test_source: 3}}", ".data.prompts: none of anyOf"),
        ("extends: other.yaml\ndata: {prompts: {limit: 3}}", ""),
        ("extends: [other.yaml]", ""),
        ("extends: [other.yaml, second.yaml]", ".extends: none of anyOf"),
        ("extends: other.yaml\nsede: 1", ".sede: unknown"),
    ],
)
def test_it_is_as_strict_as_the_loader(text: str, fault: str) -> None:
    whole = text if text.startswith("extends") else f"name: x\nmodel: {{path: y}}\n{text}\n"
    assert faults(read(whole), MADE) == ([fault] if fault else [])


def test_what_is_required_is_required_at_every_depth() -> None:
    recipe = read(TINY)
    assert faults(recipe, MADE) == []
    del recipe["model"]["init"]["hidden_size"], recipe["name"]
    assert faults(recipe, MADE) == [".name: missing", ".model.init.hidden_size: missing"]
    assert faults({"extends": "x.yaml", **recipe}, MADE) == []


def described(rule: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each key with its description, following references."""
    for key, value in rule["properties"].items():
        sections = [
            MADE["$defs"][part["$ref"].rpartition("/")[2]]
            for part in (value, *(inner.get("items", inner) for inner in value.get("anyOf", ())))
            if "$ref" in part and not (len(at) == 1 and part["$ref"].endswith("Part"))  # a list in place of a section
        ]
        yield (*at, key), value.get("description") or sections[0]["description"]  # pydantic says the same thing once
        for section in sections:
            yield from described(section, (*at, key))


def test_every_key_is_there_with_its_description() -> None:
    listed = dict(described(MADE))
    assert listed.pop(("extends",))
    expected = {(*at.split("."), name) if at else (name,) for at, names in sections() for name in names}
    assert listed.keys() == expected - {("extends",)}
    for key, description in listed.items():
        info = field_at(key)
        assert info is not None and description == info.description


def test_recipes_of_the_schema_are_recipes() -> None:
    """The loader accepts a recipe that `faults` accepts: a guard on the check above."""
    assert Recipe.model_validate(read(TINY)).name == "tiny"


@pytest.mark.parametrize("how", ["json", "markdown"])
def test_the_command_writes_over_its_own_and_nothing_else(how: str, tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["schema", "--format", how]).output
    out = tmp_path / "new" / "recipe.json"
    for _ in range(2):
        result = CliRunner().invoke(app, ["schema", "--format", how, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert ("$schema=recipe.json" in result.output) == (how == "json")
        assert out.read_text(encoding="utf-8") == printed
    other = schema.text() if how == "markdown" else reference.page()
    for text in ("[1]", "not json", '{"title": "else"}', "# The recipe\n", other):
        out.write_text(text, encoding="utf-8")
        result = CliRunner().invoke(app, ["schema", "--format", how, "--out", str(out)])
        assert isinstance(result.exception, RlhfctlError)
        assert "was not made by this command" in str(result.exception)
        assert out.read_text(encoding="utf-8") == text
    out.unlink()
    out.mkdir()
    assert "was not made by this command" in str(
        CliRunner().invoke(app, ["schema", "--format", how, "--out", str(out)]).exception
    )
