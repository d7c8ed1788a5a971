"""Define chat templates by name, and fix a template's settings or its clock.

A template is text (Jinja) that is stored with the tokenizer; every later stage and each export renders alike. Reads and
writes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date, datetime, time

_SYSTEM_FIRST = "{% if m['role'] == 'system' %}{{ m['content'] }}\n\n"
NAMED = {
    # The template of Qwen and many others. Its marks should be tokens of the tokenizer.
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Plain words, as in helpful/harmless transcripts; an answer ends with the end-of-sequence token of any tokenizer.
    "human-assistant": (
        "{% for m in messages %}"
        f"{_SYSTEM_FIRST}"
        "{% elif m['role'] == 'assistant' %}Assistant: {{ m['content'] }}{{ eos_token }}\n\n"
        "{% else %}Human: {{ m['content'] }}\n\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    # Marks in angle brackets, written as text; each turn ends with the end-of-sequence token of any tokenizer.
    "zephyr": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
"""What `model.chat_template` may name."""


def with_settings(template: str, settings: Mapping[str, bool | int | float | str]) -> str:
    """Fix variables at the beginning of `template`, such as `enable_thinking: false`; callers cannot change them."""
    lines = [f"{{%- set {name} = {_literal(value)} %}}" for name, value in settings.items()]
    return "".join(lines) + template


def _literal(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


# ---------------------------------------------------------------- marks

_BAR = "\N{FULLWIDTH VERTICAL LINE}"  # in DeepSeek's marks
_MARK = re.compile(rf"<\|[^\s<>|]+\|>|<{_BAR}[^\s<>{_BAR}]+{_BAR}>|<(?:start|end)_of_(?:turn|text|message)>|</?s>")


def marks_in(text: str) -> list[str]:
    """List the marks of a chat template in `text`, each once, such as <|im_end|>, <end_of_turn>, </s>."""
    return list(dict.fromkeys(_MARK.findall(text)))


# ---------------------------------------------------------------- the clock

_CLOCK = re.compile(r"\bstrftime_now\s*\(")
_PINNED = re.compile(r"\{#- the day is fixed -#\}.*?\{#- end of the fixed day -#\}", re.DOTALL)
_PARTS = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdDefFGhHIjmMpRSTuUVwWxXyYzZ")  # date directives, after a %


def reads_clock(template: str) -> bool:
    """Tell whether `template` writes the day or the hour at which it is rendered."""
    return _CLOCK.search(template) is not None and _PINNED.match(template) is None


def with_day(template: str, day: date) -> str:
    """Return `template` with its clock stopped at the first moment of `day`; unchanged if it reads no clock."""
    if not reads_clock(template):
        return template
    moment = datetime.combine(day, time())
    filled = "".join(f" | replace('%{part}', {json.dumps(moment.strftime(f'%{part}'))})" for part in _PARTS)
    stopped = f"{{%- macro strftime_now(format) -%}}{{{{ format{filled} }}}}{{%- endmacro -%}}"
    return f"{{#- the day is fixed -#}}{stopped}{{#- end of the fixed day -#}}{template}"


def without_day(template: str) -> str:
    """Return `template` as it was before `with_day`."""
    return _PINNED.sub("", template, count=1)


# ---------------------------------------------------------------- what libraries mark in a template

_GENERATION = re.compile(r"\{#.*?#\}|\{%(-?)\s*(?:end)?generation\s*(-?)%\}", re.DOTALL)  # comments stay


def without_generation_marks(template: str) -> str:
    """Return `template` without {% generation %} and {% endgeneration %}, which only some libraries know.

    It renders the same text.
    """
    return _GENERATION.sub(lambda found: found[0] if found[0][1] == "#" else f"{{#{found[1]} {found[2]}#}}", template)
