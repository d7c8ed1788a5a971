"""Write the labelling page as HTML: one question, the finished screen, the form for a name.

Reads the templates in pages/. Text of prompts and responses is data throughout: Jinja escapes it, and the style keeps
its line breaks. Pure but for reading the templates; leaves out requests (app.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhfctl.data.types import Prompt
from rlhfctl.labels.desk import Progress, Question
from rlhfctl.labels.texts import Turn, turns_of

_HERE = Path(__file__).resolve().parent
STATIC = {  # name in the address -> file, and what it is
    "htmx.min.js": (_HERE / "vendor" / "htmx" / "htmx.min.js", "text/javascript; charset=utf-8"),
    "page.js": (_HERE / "pages" / "page.js", "text/javascript; charset=utf-8"),
    "style.css": (_HERE / "pages" / "style.css", "text/css; charset=utf-8"),
    "icon.svg": (_HERE / "pages" / "icon.svg", "image/svg+xml"),
}
_KINDS = {"user": "user", "human": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
_HTMX = {  # nothing that the Content-Security-Policy refuses, no texts kept in the browser, 409 is shown like 200
    "includeIndicatorStyles": False,
    "allowEval": False,
    "allowScriptTags": False,
    "selfRequestsOnly": True,
    "disableInheritance": True,
    "historyEnabled": False,
    "historyCacheSize": 0,
    "timeout": 20_000,
    "responseHandling": [
        {"code": "2..|409", "swap": True},
        {"code": "[345]..", "swap": False, "error": True},
    ],
}


@dataclass(frozen=True)
class View:
    """What one annotator sees: the question (None: there is none for now), how far it is, and what the last click did.

    `last`: key of the answer that undo takes back, empty without one. `note`: what the annotator noted on this item.
    `said`: a sentence for the live region. `held`: questions that are open on the screens of others. `needed`: answers
    that the set still needs from anybody.
    """

    annotator: str
    question: Question | None
    progress: Progress
    last: str = ""
    note: str = ""
    said: str = ""
    held: int = 0
    needed: int = 0


def whole(view: View) -> bytes:
    """Write the whole page."""
    return _render("page.html", view=view)


def part(view: View) -> bytes:
    """Write what a click changes: the question and, out of band, the live region."""
    return _render("part.html", view=view)


def said(text: str) -> bytes:
    """Write a sentence for the live region alone."""
    return _render("said.html", text=text)


def name_form(name: str, why: str = "", *, alone: bool = True) -> bytes:
    """Write the form that asks for a name. `why`: what is wrong with the one given. `alone`: as a whole page."""
    return _render("name.html" if alone else "name_form.html", name=name, why=why)


def _render(template: str, **context: Any) -> bytes:
    return writable(_templates().get_template(template).render(context))


def writable(text: str) -> bytes:
    """Encode a page. Half a pair of UTF-16, which JSON can hold and HTML cannot, is written as its number."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        static=static_address, htmx=json.dumps(_HTMX), turns_of=turns_of, is_bare=is_bare, kind_of=_kind_of,
        time_left=time_left, keys_of=_keys_of,
    )  # fmt: skip
    environment.filters.update(as_json=lambda value: json.dumps(value, ensure_ascii=False, indent=2))
    return environment


@cache
def static_bytes(name: str) -> bytes:
    """Read one of the files that every page loads."""
    return STATIC[name][0].read_bytes()


@cache
def static_address(name: str) -> str:
    """Return a file's address, which changes with its content: browsers may keep it."""
    return f"/static/{name}?v={hashlib.sha256(static_bytes(name)).hexdigest()[:12]}"


def is_bare(content: Prompt) -> bool:
    """Tell whether a response is one text, whose role says nothing: a plain text, or one message of the assistant."""
    turns = turns_of(content)
    return len(turns) == 1 and turns[0].role in ("", "assistant")


def _kind_of(turn: Turn) -> str:
    return _KINDS.get(turn.role.lower(), "other")


def _keys_of(place: int) -> str:
    """Return the key that chooses a response: 1 to 9, 0 for the tenth; none for those after it."""
    return str((place + 1) % 10) if place < 10 else ""


def time_left(seconds: float | None) -> str:
    """Say roughly how long the rest takes; empty if nobody knows yet."""
    if seconds is None:
        return ""
    if seconds < 60:
        return "under a minute left"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min left"
    return (
        f"about {minutes // 60} h {minutes % 60} min left" if minutes < 600 else f"about {round(minutes / 60)} h left"
    )
