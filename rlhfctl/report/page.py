"""Write a report as one HTML file that needs no network: style, data, charts and their library inside.

Reads the templates in page/ and the libraries in vendor/. A strict Content-Security-Policy allows this file's own
scripts and style alone, by their hashes; Vega runs with its interpreter and makes no code from text. Text of prompts
and responses is data throughout: Jinja escapes it, and the script puts it into the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import rlhfctl
from rlhfctl.dashboard.text import number
from rlhfctl.report.content import Page, Samples, Tokens
from rlhfctl.report.facts.records import Pair
from rlhfctl.report.figures.spec import PAGE, config

_HERE = Path(__file__).resolve().parent
_LIBRARIES = ("vega", "vega-lite", "vega-embed")
_MARKS = {"good": ("✓", "good"), "caution": ("!", "caution"), "bad": ("✕", "bad"), "unknown": ("?", "not known")}

MOST_TOKENS = 1000
"""Tokens of one traced episode on the page."""

TOKEN_COLUMNS = {  # column on the page -> field of a trace
    "advantage": "advantages",
    "KL": "kl",
    "reward": "rewards",
    "value": "values",
    "delta": "deltas",
    "return": "returns",
    "policy logprob": "policy_logprobs",
    "reference logprob": "reference_logprobs",
}
_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})  # how tokenizers write them


def html_of(page: Page, source: str) -> str:
    """Write the page. `source` names what it was made from."""
    scripts = [*_libraries(), _file("script.js")]
    style = _file("style.css")
    environment = Environment(
        loader=FileSystemLoader(_HERE / "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        kind_of=lambda part: type(part).__name__,
        samples_json=lambda part: _json(_samples(part)),
        tokens_json=lambda part: _json(_episodes(part)),
        score=lambda value: number(value, 3),
        signed=lambda value: f"{'+' if value > 0 else ''}{number(value, 3)}",
    )
    return environment.get_template("page.html").render(
        page=page,
        policy=_policy(scripts, style),
        version=rlhfctl.__version__,
        source=source,
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        figures=_json({figure.name: figure.drawn() for figure in page.figures()}),
        config=_json(config(PAGE)),
        marks=_MARKS,
    )


def _policy(scripts: list[str], style: str) -> str:
    """Write the Content-Security-Policy: nothing is loaded, and nothing runs but the given scripts."""
    allowed = " ".join(_source(script) for script in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": allowed,
        "style-src": _source(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


@cache
def _libraries() -> tuple[str, ...]:
    """Read the charts' libraries, without the comments that name a map for debuggers (a file that is not there)."""
    texts = [(_HERE / "vendor" / name / f"{name}.min.js").read_text(encoding="utf-8") for name in _LIBRARIES]
    return tuple(re.sub(r"\n?//# sourceMappingURL=\S+\s*$", "\n", text) for text in texts)


@cache
def _file(name: str) -> str:
    return (_HERE / "page" / name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """Write JSON for a script element: no character in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _samples(part: Samples) -> dict[str, Any]:
    """Return the pairs in columns, each prompt once."""
    prompts = {prompt: index for index, prompt in enumerate(dict.fromkeys(pair.prompt for pair in part.pairs))}
    return {
        "judges": list(part.judges),
        "primary": list(part.judges).index(part.primary),
        "several": any(pair.sample for pair in part.pairs),
        "prompts": list(prompts),
        "rows": [_row(pair, prompts[pair.prompt], part.judges) for pair in part.pairs],
    }


def _row(pair: Pair, prompt: int, judges: Any) -> list[Any]:
    def scores(found: Mapping[str, float]) -> list[float | None]:
        return [_short(found[judge]) if judge in found else None for judge in judges]

    return [
        prompt, pair.sample, pair.policy, pair.reference, scores(pair.policy_scores), scores(pair.reference_scores),
        pair.policy_length, pair.reference_length, pair.policy_ended, pair.reference_ended, pair.source, pair.seed,
    ]  # fmt: skip


def _episodes(part: Tokens) -> list[dict[str, Any]]:
    return [
        {
            "update": one.get("update"),
            "episode": one.get("episode"),
            "score": one.get("score"),
            "prompt": one.get("prompt", ""),
            "tokens": [str(token).translate(_SPACES) for token in one.get("tokens", ())][:MOST_TOKENS],
            "columns": {
                name: [_short(value) for value in one[field][:MOST_TOKENS]]
                for name, field in TOKEN_COLUMNS.items()
                if one.get(field)
            },
        }
        for one in part.episodes
    ]


def _short(value: Any) -> float | None:
    """Round to five significant digits; the page shows three."""
    return float(f"{value:.5g}") if isinstance(value, int | float) else None
