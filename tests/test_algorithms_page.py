"""docs/algorithms.md: its table of keys is that of the code, and every algorithm is described and measured."""

from __future__ import annotations

import os
import re

from conftest import ROOT

from rlhfctl.recipe.sections.algorithm import NAMES, USED_BY

PAGE = ROOT / "docs" / "algorithms.md"


def table() -> str:
    rows = ["| key | " + " | ".join(f"`{name}`" for name in NAMES) + " |", "| --- |" + " --- |" * len(NAMES)]
    for key, users in USED_BY.items():
        rows.append(f"| `{key}` | " + " | ".join("yes" if name in users else "" for name in NAMES) + " |")
    return "\n".join(rows).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def test_the_table_of_keys_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("RLHFCTL_WRITE_GOLDEN"):
        text = re.sub(r"^\| key \|.*?\n\n", table() + "\n", text, flags=re.MULTILINE | re.DOTALL)
        PAGE.write_text(text, encoding="utf-8")
    assert table() in text


def test_every_algorithm_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"\n**`{name}`.** " not in text] == []
    assert re.findall(r"^\*\*`(\w+)`\.\*\*", text, re.MULTILINE) == list(NAMES)
