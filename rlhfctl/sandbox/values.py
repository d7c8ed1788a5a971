"""Write a Python value as text, so that two values are equal if and only if their texts are.

A program's results leave the sandbox as such texts. The caller compares them with the text of the expected value, which
never enters the sandbox. Methods of the basic types are called, never those of a subclass, so a value cannot pretend to
be equal. Standard library only.
"""

from __future__ import annotations

from typing import Any

LONGEST = 1 << 16  # characters of a text


class TooLong(ValueError):
    """The text of a value would be longer than LONGEST."""


def as_text(value: Any) -> str:
    """Write numbers, strings, None and collections of them as text: equal values have equal texts.

    As in Python, 1, 1.0 and True are equal, a list and a tuple are not. A value of another type has a text that no
    expected value has. TooLong for a very long value; RecursionError for one that holds itself.
    """
    text = _text(value)
    if len(text) > LONGEST:
        raise TooLong(f"a value of {len(text)} characters")
    return text


def _text(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, bool | int):
        return "n" + int.__format__(value, "x")
    if isinstance(value, float):
        whole = float.is_integer(value)
        return "n" + int.__format__(float.__int__(value), "x") if whole else "f" + float.__repr__(value)
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, bytes):
        return bytes.__repr__(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_text, list.__iter__(value))) + "]"
    if isinstance(value, tuple):
        return "(" + ",".join(map(_text, tuple.__iter__(value))) + ")"
    if isinstance(value, set):
        return "{" + ",".join(sorted(map(_text, set.__iter__(value)))) + "}"
    if isinstance(value, frozenset):
        return "{" + ",".join(sorted(map(_text, frozenset.__iter__(value)))) + "}"
    if isinstance(value, dict):
        pairs = sorted((_text(key), _text(item)) for key, item in dict.items(value))
        return "d{" + ",".join(f"{key}:{item}" for key, item in pairs) + "}"
    return f"?{type(value).__name__}"
