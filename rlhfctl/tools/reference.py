"""`schema --format markdown`: the page that explains every key of a recipe, made from recipe/schema.py.

Keys, types, defaults and meanings come from the models; the rules between keys from the text of the `Conflict(...)`
calls beside them, in which what depends on the recipe at hand is shown by its name. Leaves out the fields of TRL's
configs.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from rlhfctl.recipe import schema
from rlhfctl.recipe.schema import (
    OWN_ENGINE_KEYS,
    OWNED_TRAINER_KEYS,
    REFUSED_PPO_KEYS,
    Compare,
    Controls,
    Data,
    Demonstrations,
    DemonstrationsPart,
    Init,
    Lora,
    Model,
    Ppo,
    PpoEval,
    Preferences,
    PreferencesPart,
    Prompts,
    PromptsPart,
    Recipe,
    Reward,
    Section,
    Sft,
    Source,
    Turns,
)
from rlhfctl.recipe.words import describe

COMMAND = "rlhfctl schema --format markdown --out docs/recipe.md"
FIRST_LINE = f"<!-- Made by `{COMMAND}` from rlhfctl/recipe/schema.py: change it there. -->"

# Heading -> (the section, whose keys are told elsewhere). Every section of a recipe is here (a test looks).
PAGES: dict[str, tuple[type[Section], type[Section] | None]] = {
    "The top level": (Recipe, None),
    "model": (Model, None),
    "model.init": (Init, None),
    "lora": (Lora, None),
    "data": (Data, None),
    "Every data source": (Source, None),
    "data.demonstrations": (Demonstrations, Source),
    "data.preferences": (Preferences, Source),
    "data.prompts": (Prompts, Source),
    "data.demonstrations.sources": (DemonstrationsPart, Source),
    "data.preferences.sources": (PreferencesPart, Source),
    "data.prompts.sources": (PromptsPart, Source),
    "turns": (Turns, None),
    "sft": (Sft, None),
    "reward": (Reward, None),
    "ppo": (Ppo, None),
    "ppo.eval": (PpoEval, None),
    "compare": (Compare, None),
    "compare.controls": (Controls, None),
}
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
    """Whether a file's text is a page made here, now or by an older version."""
    return text.startswith(FIRST_LINE.split(" from ")[0])


def page() -> str:
    """The whole page."""
    parts = [FIRST_LINE, _INTRODUCTION]
    for heading, (section, told) in PAGES.items():
        parts += [f"## {heading}\n", f"{_first_words(section)}\n"]
        if told is not None:
            parts.append("Takes the keys of [every data source](#every-data-source)" + _own(section, told))
        rows = [_row(name, info) for name, info in _fields(section, told)]
        if section is Recipe:
            rows.insert(0, "| `extends` | text |  | Another recipe, from which all is taken that is not stated here. |")
        if rows:
            parts.append("\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n")
        if section is Ppo:
            lacks = "TRL's PPOTrainer lacks or ignores these"
            parts.append(f"`engine: trl` refuses {_listed(OWN_ENGINE_KEYS)}: {lacks}.\n")
            parts.append("Not of `ppo`, though of TRL's PPOConfig:\n")
            refused = [f"- `{key}`: {what}; {fix}." for key, (what, fix) in REFUSED_PPO_KEYS.items()]
            parts.append("\n".join(refused) + "\n")
        if section is Reward:
            parts.append("Refused under `sft.trainer` and `reward.trainer`, because rlhfctl sets them itself:\n")
            listed = [f"- `{key}`: {instead}." for key, instead in OWNED_TRAINER_KEYS.items()]
            parts.append("\n".join([*listed, f"- `hub_...`: {OWNED_TRAINER_KEYS['push_to_hub']}."]) + "\n")
        if found := list(rules(section)) if told is None or "conflicts" in vars(section) else []:
            parts.append("Conflicts:\n")
            words = [(key, _in_italics(what), _in_italics(fix)) for key, what, fix in found]
            parts.append("\n".join(f"- `{key}`: {what}. Fix: {fix}." for key, what, fix in words) + "\n")
    return "\n".join(parts)


def _in_italics(words: str) -> str:
    return re.sub("<(.*?)>", r"*\1*", words)  # which Markdown would take for HTML


def _own(section: type[Section], told: type[Section]) -> str:
    return ", and:\n" if _fields(section, told) else ".\n"


def _fields(section: type[Section], told: type[Section] | None) -> list[tuple[str, FieldInfo]]:
    known = told.model_fields if told is not None else {}
    return [(name, info) for name, info in section.model_fields.items() if name not in known]


def _first_words(section: type[Section]) -> str:
    return inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _listed(keys: tuple[str, ...]) -> str:
    names = [f"`{key}`" for key in keys]
    return f"{', '.join(names[:-1])} and {names[-1]}"


# ---------------------------------------------------------------- a key


def _row(name: str, info: FieldInfo) -> str:
    cells = (f"`{name}`", _type(info), _default(info), info.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(info: FieldInfo) -> str:
    parts = [part for part in _alternatives(info.annotation) if part is not NoneType]
    words = " or ".join(_words(part) for part in parts)
    bounds = [
        f"{said} {getattr(m, name):.10g}" for m in info.metadata for name, said in _BOUNDS.items() if hasattr(m, name)
    ]
    nullable = [", or null" if bounds else " or null"] if NoneType in _alternatives(info.annotation) else []
    return "".join([words, *([" " + " and ".join(bounds)] if bounds else []), *nullable])


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _words(part: Any) -> str:
    if get_origin(part) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(part))
    if get_origin(part) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(part))
    if get_origin(part) is list:
        return f"list of {_words(get_args(part)[0])}"
    if get_origin(part) is dict:
        of = get_args(part)[1]
        return "mapping" if of is Any else f"mapping of {_words(of)}"
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

Names = dict[str, ast.expr]
_SPELLED_OUT = 8  # so many values of a key's placeholder are listed


def rules(section: type[Section]) -> Iterator[tuple[str, str, str]]:
    """(key, what is wrong, way out) of each Conflict that the section's own methods can find, in their order."""
    for method in vars(section).values():
        if inspect.isfunction(method):
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
            for call, names in _conflicts(tree, {}):
                key, what, fix = (_text(argument, names) for argument in call.args[:3])
                yield key or "the recipe", what, fix


def _conflicts(node: ast.AST, names: Names) -> Iterator[tuple[ast.Call, Names]]:
    """Each call of Conflict below `node`, with what the names around it stand for."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conflict":
        yield node, dict(names)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        names[node.targets[0].id] = node.value
    elif isinstance(node, ast.For):
        for bound in _rounds(node, names):
            inside = names | bound
            for statement in node.body:
                yield from _conflicts(statement, inside)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _conflicts(child, names)


def _rounds(loop: ast.For, names: Names) -> list[Names]:
    """What a loop's variables stand for in each round: one round where they cannot be told apart."""
    over = names.get(loop.iter.id, loop.iter) if isinstance(loop.iter, ast.Name) else loop.iter
    items = over.elts if isinstance(over, ast.Tuple | ast.List) else []
    if isinstance(loop.target, ast.Tuple) and all(isinstance(item, ast.Tuple) for item in items):
        targets = [target.id for target in loop.target.elts if isinstance(target, ast.Name)]
        return [dict(zip(targets, item.elts, strict=True)) for item in items if isinstance(item, ast.Tuple)]
    if isinstance(loop.target, ast.Name) and 0 < len(items) <= _SPELLED_OUT:
        alternatives = "/".join(str(item.value) for item in items if isinstance(item, ast.Constant))
        return [{loop.target.id: ast.Constant(alternatives)}] if alternatives else [{}]
    return [{}]


def _text(node: ast.expr, names: Names) -> str:
    """An argument of Conflict as words; what depends on the recipe is shown as <its name>."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, names) + _text(node.right, names)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(inner, ast.Name):
        told = names.get(inner.id)
        if isinstance(told, ast.IfExp):
            told = told.orelse  # what it is in general
        if isinstance(told, ast.JoinedStr) or (isinstance(told, ast.Constant) and isinstance(told.value, str)):
            return _text(told, names)
        value = getattr(schema, inner.id, None)
        return str(value) if isinstance(value, int | str) else _placeholder(inner.id)
    if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "join":
        return _joined(inner, names)
    return _placeholder(inner.attr) if isinstance(inner, ast.Attribute) else "..."


def _joined(call: ast.Call, names: Names) -> str:
    """`", ".join(NAMES)` of names that stand in the method or the module."""
    (of,) = call.args
    if not isinstance(of, ast.Name) or not isinstance(call.func, ast.Attribute):
        return "..."
    here = names.get(of.id)
    told = [_text(item, names) for item in here.elts] if isinstance(here, ast.Tuple) else getattr(schema, of.id, None)
    return _text(call.func.value, names).join(told) if told else "..."


def _placeholder(name: str) -> str:
    return {"at": "data.<set>"}.get(name, f"<{name.replace('_', ' ')}>")
