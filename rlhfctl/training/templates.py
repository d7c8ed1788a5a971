"""Chat templates by name, and a template with its settings fixed.

A template is text (Jinja) that is stored with the tokenizer, so every later stage and each export renders alike. Reads
and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

_SYSTEM_FIRST = "{% if m['role'] == 'system' %}{{ m['content'] }}\n\n"
NAMED = {
    # As Qwen and many others have it. Its marks should be tokens of the tokenizer.
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Plain words as in helpful/harmless transcripts; an answer ends with the end-of-sequence token of any tokenizer.
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
    """`template` with variables set at its beginning, whatever the caller gives: `enable_thinking: false`, say."""
    lines = [f"{{%- set {name} = {_literal(value)} %}}" for name, value in settings.items()]
    return "".join(lines) + template


def _literal(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)
