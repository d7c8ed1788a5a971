"""Write numbers, durations, settings and other people's text in a form that is safe and short to read."""

from __future__ import annotations

import json
import math
from typing import Any

_JOINERS = "\u200c\u200d"  # str.isprintable() refuses them, but Persian words and emoji need them


def work_left(done: int, total: int | None, seconds: float) -> float | None:
    """Return the seconds that work takes until its end at its pace so far, or None while that is unknown."""
    return seconds / done * max(0, total - done) if total is not None and done > 0 else None


def number(value: float, digits: int = 4) -> str:
    """Write a number with `digits` significant digits: 2.31, 9.1e-4, 1.235e6, 12800 (an integer keeps all digits)."""
    value = float(value)
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    if value.is_integer() and abs(value) < 1e7:
        return str(int(value))
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if -4 < int(exponent) < 6:
        decimals = max(0, digits - 1 - int(exponent))
        text = f"{value:.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def short(value: float) -> str:
    """Write a number for a narrow column: three significant digits, four from 10,000 on."""
    return number(value, 3 if abs(value) < 1e4 else 4)


def fixed(value: float, places: int, *, sign: bool = False) -> str:
    """Write a number with `places` decimals, so that numbers below each other line up."""
    if value and math.isfinite(value) and abs(value) >= 1e5:
        return number(value, 3)
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.lstrip("-+") if not float(text) else text  # no -0.00


def rounded_to(value: float, span: float) -> float:
    """Round the end of a range to a hundredth of the first digit of its span: more digits say nothing."""
    if not (span > 0 and math.isfinite(span)):
        return value
    return round(value, 2 - math.floor(math.log10(span))) + 0.0  # no -0


def counted(count: int, what: str) -> str:
    """Write a count with its noun: `no alarms`, `1 alarm`, `2 alarms`."""
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write seconds as 0:42, 12:05 or 1:02:03; a dash if they are not a number."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def setting(value: Any) -> str:
    """Write a setting as a recipe would spell it, on one line: null, true, 0.001, "two words", [1,2]."""
    if isinstance(value, str):
        plain = value != "" and not any(char in value for char in ' "=\\') and visible(value) == value
        return value if plain else quoted(value)
    return visible(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))


def visible(text: str, *, newlines: bool = False) -> str:
    """Spell out the characters that a terminal would obey rather than show: escapes, direction marks, line ends.

    With `newlines`, line ends and tabs stay as they are.
    """
    kept = _JOINERS + ("\n\t" if newlines else "")
    if newlines:
        text = text.replace("\r\n", "\n")
    return "".join(char if char.isprintable() or char in kept else _spelled(char) for char in text)


def one_line(message: str) -> str:
    """Join the lines of a message by a space."""
    return visible(" ".join(part for line in message.splitlines() if (part := line.strip())))


def quoted(text: str) -> str:
    r"""Write other people's text on one line, in quotes: `"a \"b\"\nc"`."""
    return '"' + visible(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
