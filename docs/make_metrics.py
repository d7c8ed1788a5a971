"""Write the tables of docs/metrics.md from the table of metrics: `python docs/make_metrics.py`.

Only what stands between the markers `<!-- metrics: STAGE -->` and `<!-- end -->` is written.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from rlhfctl.metrics import METRICS

PAGE = Path(__file__).resolve().parent / "metrics.md"


def table(stage: str) -> str:
    """The metrics of a stage as a Markdown table; metrics beside each other with one meaning share a row."""
    lines = ["| metric | unit | what it says |", "| --- | --- | --- |"]
    for (unit, meaning), group in itertools.groupby(METRICS[stage], key=lambda metric: (metric.unit, metric.meaning)):
        names = ", ".join(f"`{metric.name}`" for metric in group)
        lines.append(f"| {names} |{f' {unit}' if unit else ''} | {meaning} |")
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """The page with the table of each stage between its markers."""
    marked = re.compile(r"(?<=<!-- metrics: )(\w+)( -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
    return marked.sub(lambda found: found[1] + found[2] + table(found[1]), page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
