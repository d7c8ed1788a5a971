"""Word the messages about a faulty key or value, and suggest keys that were probably meant.

Reads the schema's fields. load.py adds the lines of files to these messages.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhfctl.recipe.schema import REFUSED_PPO_KEYS, Key, Recipe, owned_trainer_key
from rlhfctl.recipe.sections.base import keys_of
from rlhfctl.recipe.sections.endpoint import REFUSED_ENDPOINT_KEYS

LONGEST_SHOWN = 200  # characters of the user's text in a message
ALMOST = 0.9  # similarity from which a name counts as misspelt, even if another section has that key
NEAR = 0.65  # similarity from which a name is suggested

# Pydantic's errors in words.
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}

_REFUSED = {  # section -> key -> (problem, fix)
    "ppo": REFUSED_PPO_KEYS,
    **{f"{name}.endpoint": REFUSED_ENDPOINT_KEYS for name in ("compare", "label")},
}

_LIVING = {  # section -> what TRL calls it today, or did before -> the key
    "ppo": {
        "beta": "kl_coef", "epsilon": "cliprange", "num_iterations": "num_ppo_epochs",
        "max_completion_length": "response_length", "init_kl_coef": "kl_coef", "ppo_epochs": "num_ppo_epochs",
        "reward_weights": "rewards", "steps": "total_episodes", "reward_clip": "score_clip",
        "reward_clip_range": "score_clip", "target": "kl_target", "horizon": "kl_horizon", "ptx_coef": "ptx",
        "ema_beta": "ema_decay", "critic_warmup": "policy_starts_after", "freezing_actor_steps": "policy_starts_after",
    },
}  # fmt: skip

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def dotted(key: Key) -> str:
    """Write a key as text: ("compare", "judges", 1) is compare.judges[1]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def wrong_value(key: Key, details: list[Any]) -> str:
    """Explain what is wrong with a value, from pydantic's errors (one for each type that the value may have)."""
    kind, context, got = details[0]["type"], details[0].get("ctx", {}), describe(details[0]["input"])
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return f"must be {words} {context[limit]:.10g}, got {got.removeprefix('the number ')}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"must be letters, digits, '.', '_' and '-', the first a letter or a digit, got {got}"
    info = field_at(key)
    annotation = info.annotation if info else None
    if kind == "literal_error":
        names = [str(name) for name in _literal_names(annotation)]
        near = did_you_mean(str(details[0]["input"]), names)
        expected = ", ".join(names[:-1]) + " or " * (len(names) > 1) + names[-1]
    elif any(detail["type"] not in _EXPECTED for detail in details):
        return f"{details[0]['msg'].removeprefix('Input ')}, got {got}"
    else:
        near, expected = "", " or ".join(_EXPECTED[detail["type"]] for detail in details)
    nullable = " or null" if NoneType in get_args(annotation) else ""
    return f"expected {expected}{nullable}, got {got}{near}"


def _literal_names(annotation: Any) -> tuple[Any, ...]:
    """Return the values of the first Literal in a type, also within a list or a union."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((names for part in get_args(annotation) if (names := _literal_names(part))), ())


def describe(value: Any) -> str:
    """Describe a value in words, with its type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {shortened(repr(value))}"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else f"the number {value}"


def shortened(text: str, most: int = LONGEST_SHOWN) -> str:
    """Shorten a text to a length that fits into a message."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def unknown_key(key: Key) -> tuple[str, str | None, str | None]:
    """Return the problem of an unknown key, its fix, and the key of the same section that was probably meant."""
    section, name = dotted(tuple(part for part in key[:-1] if isinstance(part, str))), str(key[-1])
    if name in (refused := _REFUSED.get(section, {})):
        return (*refused[name], None)
    if (living := _LIVING.get(section, {}).get(name)) is not None:
        return f"unknown key; did you mean {living!r}?", f"write {living}: TRL's name {name} means it", living
    instead = owned_trainer_key(name) if section in ("sft", "reward", "ppo", "dpo") else None
    if instead is not None:
        return "rlhfctl sets this itself", instead, None
    names = dict(sections())[section]
    if nearly := difflib.get_close_matches(name, names, 1, ALMOST):  # one wrong letter, even if it is a key elsewhere
        return f"unknown key; did you mean {nearly[0]!r}?", None, nearly[0]
    # Sections in lists are left out: the data set itself has their keys.
    homes = [home for home, names in sections() if name in names and "source" not in home]
    has_trainer = "trainer" in names
    if has_trainer:
        homes = [home for home in homes if home.split(".")[0] not in ("ppo", "compare")]
    homes = [home for home in homes if home.startswith(f"{section}.") and section] or homes
    if homes:
        places = " or ".join(f"under {home}" if home else "at the top" for home in homes)
        return f"unknown key; it belongs {places}", None, None
    near = difflib.get_close_matches(name, names, 1, NEAR)
    if near:
        return f"unknown key; did you mean {near[0]!r}?", None, near[0]
    if has_trainer:
        return f"unknown key; trainer options go under {section}.trainer", f"write {section}.trainer.{name}", None
    return "unknown key", f"the keys {f'of {section}' if section else 'at the top'}: {', '.join(names)}", None


def sections(section: type[BaseModel] = Recipe, at: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each section's dotted name ("" for the top) with its keys."""
    yield at, [*keys_of(section), *([] if at else ["extends"])]
    for name, info in keys_of(section).items():
        inner = _section_of(info)
        if inner is not None:
            yield from sections(inner, f"{at}.{name}" if at else name)


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a key holds, also as the items of a list."""
    types = (info.annotation, *get_args(info.annotation))
    items = [item for listed in types if get_origin(listed) is list for item in get_args(listed)]
    for part in (*types, *items):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def field_at(key: Key) -> FieldInfo | None:
    """Return the declaration of a key of the schema; None for a key inside a value."""
    section: type[BaseModel] | None = Recipe
    info: FieldInfo | None = None
    for name in key:
        if isinstance(name, int):  # an item of the list before it
            continue
        info = keys_of(section).get(name) if section else None
        section = _section_of(info) if info else None
    return info


def help_of(key: Key) -> str:
    """Return a key's description in lower case, to follow a colon."""
    info = field_at(key)
    text = (info.description if info else None) or ""
    return text[:1].lower() + text[1:]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the most similar name, as the end of a message; empty if none is similar."""
    near = difflib.get_close_matches(name, list(names), 1, NEAR)
    return f"; did you mean {near[0]!r}?" if near else ""
