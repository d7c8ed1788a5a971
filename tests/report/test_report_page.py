"""The page as one file: nothing from outside, a strict policy with right hashes, and text that cannot be markup.

Its behaviour in a browser is tested in test_page_in_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT
from made_run import NASTY, make_run

from rlhfctl.report import page as pages
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.page import html_of
from rlhfctl.report.sections import page_of

VENDOR = ROOT / "rlhfctl" / "report" / "vendor"


class Reader(HTMLParser):
    """Collects elements, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": [], "json": []}
        self._into = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._into = "json" if dict(attrs).get("type") == "application/json" else tag
            self.raw[self._into].append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = "" if tag in ("script", "style") else self._into

    def handle_data(self, data: str) -> None:
        if self._into:
            self.raw[self._into][-1] += data


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = gather(make_run(tmp_path_factory.mktemp("page") / "one", nasty=True))
    return html_of(page_of(run), "runs/<one>")


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    return Reader(text)


def test_nothing_is_loaded_from_outside(read: Reader) -> None:
    links = [
        value
        for _, attributes in read.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action")
    ]
    assert links and all(value is not None and (value.startswith("#") or value == "data:,") for value in links)
    assert not {tag for tag, _ in read.elements} & {"iframe", "object", "embed", "base", "img"}
    assert "sourceMappingURL" not in "".join(read.raw["script"])


def test_the_policy_allows_exactly_these_scripts_and_this_style(read: Reader) -> None:
    policies = [
        a["content"] for tag, a in read.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in str(policies[0]).split("; "))
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in read.raw["script"]
    ]
    assert len(hashes) == 4 and rules["script-src"] == " ".join(hashes)
    assert len(read.raw["style"]) == 1
    assert (
        rules["style-src"]
        == f"'sha256-{base64.b64encode(hashlib.sha256(read.raw['style'][0].encode()).digest()).decode()}'"
    )
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in str(policies[0])


def test_no_attribute_holds_style_or_script(read: Reader) -> None:
    names = {name for _, attributes in read.elements for name in attributes}
    assert "style" not in names and not [name for name in names if name.startswith("on")]


def test_text_of_models_is_text(text: str, read: Reader) -> None:
    assert NASTY not in text and "taken over" in text
    assert "&lt;script&gt;window.ran" in text and "\\u003cscript\\u003ewindow.ran" in text
    assert "runs/&lt;one&gt;" in text and "{{ 7 * 7 }}" in text
    for one in read.raw["json"]:
        assert "<" not in one
    samples = next(json.loads(one) for one in read.raw["json"] if '"rows"' in one)
    assert NASTY in [row[2] for row in samples["rows"]]


def test_every_chart_has_its_data_and_words(read: Reader) -> None:
    figures = next(json.loads(one) for one in read.raw["json"] if '"win-rates"' in one)
    places = [attributes for _, attributes in read.elements if attributes.get("class") == "chart"]
    assert [place["data-figure"] for place in places] == list(figures)
    assert all(place["role"] == "img" and place["aria-label"] for place in places)


def test_headings_go_down_one_level_at_a_time_and_names_are_given_once(read: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(levels))
    names = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    targets = [str(a["href"])[1:] for tag, a in read.elements if tag == "a"]
    assert targets and set(targets) <= set(names)


def test_json_cannot_end_its_element() -> None:
    written = pages._json({"a": "</script><!--<script>&\u2028\ud800"})
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {"a": "</script><!--<script>&\u2028\ud800"}


def test_the_libraries_are_the_files_that_the_table_names() -> None:
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| `(\S+)` \| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.M
    )
    assert [name for name, *_ in rows] == list(pages._LIBRARIES)
    for name, version, file, digest in rows:
        content = (VENDOR / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert version.encode() in content and (VENDOR / name / "LICENSE").is_file()


def test_a_token_of_a_trace_is_written_as_people_read_it(read: Reader) -> None:
    episodes = next(json.loads(one) for one in read.raw["json"] if '"tokens"' in one)
    assert episodes[0]["tokens"] == [" the", " room", " <b>", "<eos>"]
    assert list(episodes[0]["columns"])[:3] == ["advantage", "KL", "reward"]


def test_a_whole_page_is_small(text: str) -> None:
    assert 800_000 < len(text.encode()) < 1_500_000


def test_the_package_holds_what_the_page_needs() -> None:
    folder = Path(pages.__file__).parent
    for file in ("page/page.html", "page/parts.html", "page/style.css", "page/script.js"):
        assert (folder / file).is_file()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["rlhfctl"]' in pyproject and '"rlhfctl/report/vendor/*/LICENSE"' in pyproject
