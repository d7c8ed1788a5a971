"""What scripts write into docs/ is what they would write today: the tables of metrics, the picture of the screen."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import make_metrics
import make_screen
import pytest

from rlhfctl.metrics import METRICS


def test_the_metrics_page_has_the_tables_of_today() -> None:
    page = make_metrics.PAGE.read_text(encoding="utf-8")
    assert page == make_metrics.with_tables(page), "write it again: python docs/make_metrics.py"
    for stage, metrics in METRICS.items():
        section = page.split(f"\n## {stage}\n")[1].split("\n## ")[0]
        assert all(f"`{metric.name}`" in section for metric in metrics), stage


def test_the_picture_is_of_the_screen_of_today() -> None:
    drawn = make_screen.picture(make_screen.EVENTS.read_text(encoding="utf-8").splitlines())
    kept = make_screen.PICTURE.read_text(encoding="utf-8")
    texts, shapes = re.compile(r"<text [^>]*>([^<]+)</text>"), re.compile(r'<path [^>]* d="([^"]+)"')
    assert texts.findall(kept) == texts.findall(drawn), "draw it again: python docs/make_screen.py"
    assert shapes.findall(kept) == shapes.findall(drawn), "draw it again: python docs/make_screen.py"
    words = " ".join(html.unescape(text).replace("\xa0", " ").strip() for text in texts.findall(kept))
    for part in ("rlhfctl run quickstart", "ppo", "compare", "update", "score", "policy", "reference", "no alarms"):
        assert part in words, part
    assert ElementTree.fromstring(kept).tag.endswith("svg")
    assert "http" not in kept.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")


def test_a_recording_ends_at_the_update_that_is_asked_for(tiny_run: Path) -> None:
    lines = make_screen.recorded(tiny_run / "events.jsonl", 2)
    reported = [event for event in map(json.loads, lines) if event["event"] == "metrics"]
    assert {event["stage"] for event in reported} == {"ppo"} and reported[-1]["step"] == 2
    assert "ppo" in make_screen.picture(lines)
    with pytest.raises(SystemExit, match="no update 99"):
        make_screen.recorded(tiny_run / "events.jsonl", 99)
