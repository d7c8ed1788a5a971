"""`rlhfctl schema --format markdown`: make the reference page that explains every key of a recipe (docs/recipe.md).

Reads the sections in rlhfctl/recipe/: keys, types, defaults and meanings come from their fields, and conflicts between
keys from their rules, with each placeholder shown as its name. Writes nothing itself. Leaves out the fields of TRL's
configs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import groupby
from string import Formatter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rlhfctl.recipe.schema import (
    OWNED_TRAINER_KEYS,
    REFUSED_PPO_KEYS,
    Data,
    Demonstrations,
    DemonstrationsPart,
    Init,
    Launch,
    Lora,
    Model,
    Ppo,
    Preferences,
    PreferencesPart,
    Prompts,
    PromptsPart,
    Recipe,
    Reward,
    Rounds,
    Rule,
    Section,
    Seeds,
    Source,
    Turns,
    stage_sections,
)
from rlhfctl.recipe.sections.base import keys_of
from rlhfctl.recipe.sections.data import Pretraining
from rlhfctl.recipe.words import describe

COMMAND = "rlhfctl schema --format markdown --out docs/recipe.md"
FIRST_LINE = f"<!-- Made by `{COMMAND}` from rlhfctl/recipe/: change it there. -->"


def _union_members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _stage_pages() -> dict[str, tuple[type[Section], None]]:
    """A chapter for each stage's section, then for each section in it; `lora` has one for all stages."""
    found: dict[str, tuple[type[Section], None]] = {}

    def add(name: str, section: type[Section]) -> None:
        found[name] = (section, None)
        for key, info in section.model_fields.items():
            for part in _union_members(info.annotation):
                if isinstance(part, type) and issubclass(part, Section) and part is not Lora:
                    add(f"{name}.{key}", part)

    for name, section in stage_sections().items():
        add(name, section)
    return found


# Heading -> (section, base section whose keys have a chapter of their own). Every section of a recipe is here (a test
# looks).
PAGES: dict[str, tuple[type[Section], type[Section] | None]] = {
    "The top level": (Recipe, None),
    "seeds": (Seeds, None),
    "rounds": (Rounds, None),
    "launch": (Launch, None),
    "model": (Model, None),
    "model.init": (Init, None),
    "lora": (Lora, None),
    "data": (Data, None),
    "Every data source": (Source, None),
    "data.demonstrations": (Demonstrations, Source),
    "data.preferences": (Preferences, Source),
    "data.pretraining": (Pretraining, Source),
    "data.prompts": (Prompts, Source),
    "data.demonstrations.sources": (DemonstrationsPart, Source),
    "data.preferences.sources": (PreferencesPart, Source),
    "data.prompts.sources": (PromptsPart, Source),
    "turns": (Turns, None),
    **_stage_pages(),
}
# Heading -> the section's path in a recipe, where it differs from the heading.
PATHS = {"The top level": "", "Every data source": "data.<set>"}
_INTRODUCTION = """\
# The recipe

One YAML 1.2 file. Values come from the defaults below, then from the file that `extends:` names, then from the file
itself, then from `--set a.b=c`. Paths are relative to the file that states them (after `--set`: to the current folder),
`~` and `${VARIABLE}` are expanded. A key that is not listed here is refused, and so is a value of another type: all
faults come in one message, each with its line. Numbers may be written `5e-4`. A stage without a section is not run;
`sft: {}` is a section, with all defaults.

`rlhfctl validate RECIPE` checks what this page says, `rlhfctl validate RECIPE --deep` also the options under
`trainer:`, the data rows, functions and the engine. In an editor, `rlhfctl schema --out recipe.schema.json` gives
completion and these descriptions.
"""
_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}

FieldInfo = Any  # pydantic's declaration of a key


def is_page(text: str) -> bool:
    """Tell whether a file's text is a page made by this command, in this version or an older one."""
    return text.startswith(FIRST_LINE.split(" from ")[0])


def page() -> str:
    """Make the whole page as Markdown."""
    parts = [FIRST_LINE, _INTRODUCTION]
    for heading, (section, base) in PAGES.items():
        parts += [f"## {heading}\n", f"{_first_words(section)}\n"]
        if base is not None:
            parts.append("Takes the keys of [every data source](#every-data-source)" + _own(section, base))
        rows = [_row(name, info) for name, info in _fields(section, base)]
        if section is Recipe:
            rows.insert(0, "| `extends` | text |  | Another recipe, from which all is taken that is not stated here. |")
        if rows:
            parts.append("\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n")
        if section is Ppo:
            parts.append("Keys of TRL's PPOConfig that `ppo` refuses:\n")
            refused = [f"- `{key}`: {what}; {fix}." for key, (what, fix) in REFUSED_PPO_KEYS.items()]
            parts.append("\n".join(refused) + "\n")
        if section is Reward:
            parts.append("Refused under `sft.trainer` and `reward.trainer`, because rlhfctl sets them itself:\n")
            listed = [f"- `{key}`: {instead}." for key, instead in OWNED_TRAINER_KEYS.items()]
            parts.append("\n".join([*listed, f"- `hub_...`: {OWNED_TRAINER_KEYS['push_to_hub']}."]) + "\n")
        if found := list(rules(section)):
            path = PATHS.get(heading, heading)
            parts.append("Conflicts:\n")
            parts.append("\n".join(_rule(keys, rule, path) for keys, rule in found) + "\n")
    return "\n".join(parts)


def _own(section: type[Section], base: type[Section]) -> str:
    return ", and:\n" if _fields(section, base) else ".\n"


def _fields(section: type[Section], base: type[Section] | None) -> list[tuple[str, FieldInfo]]:
    known = base.model_fields if base is not None else {}
    return [(name, info) for name, info in keys_of(section).items() if name not in known]


def _first_words(section: type[Section]) -> str:
    return inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")


# ---------------------------------------------------------------- a key


def _row(name: str, info: FieldInfo) -> str:
    cells = (f"`{name}`", _type(info), _default(info), info.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(info: FieldInfo) -> str:
    parts = [part for part in _union_members(info.annotation) if part is not NoneType]
    words = " or ".join(_words(part) for part in parts)
    bounds = [
        f"{word} {getattr(m, name):.10g}" for m in info.metadata for name, word in _BOUNDS.items() if hasattr(m, name)
    ]
    nullable = [", or null" if bounds else " or null"] if NoneType in _union_members(info.annotation) else []
    return "".join([words, *([" " + " and ".join(bounds)] if bounds else []), *nullable])


def _words(part: Any) -> str:
    if get_origin(part) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(part))
    if get_origin(part) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(part))
    if get_origin(part) is list:
        item = get_args(part)[0]
        return f"list of {_words(get_args(item)[0] if get_origin(item) is Annotated else item)}"
    if get_origin(part) is dict:
        value_type = get_args(part)[1]
        return "mapping" if value_type is Any else f"mapping of {_words(value_type)}"
    if isinstance(part, type) and issubclass(part, Section):
        heading = next(heading for heading, (section, _) in PAGES.items() if section is part)
        return f"[section](#{heading.lower().replace(' ', '-').replace('.', '')})"
    return _TYPES[part]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value == "":
        return "none"
    if isinstance(value, Section):
        return "its defaults"
    return f"`{describe(value)}`" if value is None or isinstance(value, bool) else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list):
        return f"[{', '.join(str(one) for one in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- rules between keys


def rules(section: type[Section]) -> Iterator[tuple[list[str], Rule[Any]]]:
    """Yield the section's own rules in order. Neighbouring rules with the same words become one with all keys."""
    own: tuple[Rule[Any], ...] = vars(section).get("RULES", ())
    for _, same in groupby(own, key=lambda rule: (rule.what, rule.fix)):
        alike = list(same)
        yield [rule.key for rule in alike], alike[0]


def _rule(keys: list[str], rule: Rule[Any], path: str) -> str:
    """Write one line of the list of conflicts, for a section at `path`."""
    whole = [".".join(part for part in (path, key) if part) or "the recipe" for key in keys]
    shown = ", ".join(f"`{key.replace('{', '<').replace('}', '>')}`" for key in whole)
    return f"- {shown}: {_sentence(rule.what, path)}. Fix: {_sentence(rule.fix, path)}."


def _sentence(template: str, path: str) -> str:
    """Fill a rule's sentence: {at} becomes `path`, each other placeholder its name in italics."""
    words = ""
    for text, name, _, _ in Formatter().parse(template):
        words += text + (path if name == "at" else f"*{name}*" if name else "")
    return words
