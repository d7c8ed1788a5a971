"""What the labelling page says, as HTML: text of models is text, rankings and conversations have their form."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from label_server import NASTY, plain_items

from rlhfctl.labels.desk import Progress, Question
from rlhfctl.labels.items import make_item
from rlhfctl.labels.web import pages

ROOT = Path(__file__).resolve().parent.parent.parent.parent
VENDOR = Path(pages.__file__).parent / "vendor"
HALF = Progress(done=3, left=7, skipped=1, seconds_left=190.0, same=2, compared=3)


def page_of(question: Question | None, **more: object) -> str:
    return pages.whole(pages.View("ana", question, HALF, **more)).decode()  # type: ignore[arg-type]


def asked(prompt: object, responses: list[object], **more: object) -> str:
    item = make_item(prompt, responses, ["a"] * len(responses), **more)  # type: ignore[arg-type]
    return page_of(Question("key", item, tuple(range(len(responses))), "ana"))


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_text_of_models_adds_no_element_and_no_attribute() -> None:
    tools = [{"type": "function", "function": {"name": NASTY}}]
    plain = Elements(asked("p", ["a", [{"role": "user", "content": "b"}]], tools=tools[:0] or [{"name": "x"}]))
    nasty = Elements(asked(NASTY, [NASTY, [{"role": NASTY, "content": NASTY + " "}]], tools=tools))
    assert [tag for tag, _ in nasty.found] == [tag for tag, _ in plain.found]
    assert [set(attrs) for _, attrs in nasty.found] == [set(attrs) for _, attrs in plain.found]
    assert "{{ 7 * 7 }}" in asked(NASTY, ["a", "b"])


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for text in (asked("p", ["a", "b", "c"]), page_of(None), pages.name_form("ana").decode()):
        for tag, attrs in Elements(text).found:
            assert tag != "style" and "style" not in attrs
            assert not [name for name in attrs if name.startswith("on") or name.startswith("hx-on")]
            if tag == "script":
                assert (attrs["src"] or "").startswith("/static/")
        assert not re.search(r"(src|href|action|hx-\w+)=\"(?:\w+:)?//", text)


def test_text_that_html_cannot_hold_is_written_all_the_same() -> None:
    assert "nul \u2400<" in asked("p", ["nul \0", "b"])
    assert pages.writable("half \ud800 pair") == b"half \\ud800 pair"


def test_two_responses_have_keys_for_left_right_and_tie() -> None:
    buttons = [attrs for tag, attrs in Elements(asked("p", ["a", "b"])).found if "data-keys" in attrs]
    keys = {attrs["data-keys"]: attrs.get("value") for attrs in buttons}
    assert keys == {
        "ArrowLeft 1": "0 1", "t 0": "0 0", "b": "bad", "ArrowRight 2": "1 0", "s": "skip", "u": None, "n": None
    }  # fmt: skip


def test_sixteen_responses_can_all_be_chosen() -> None:
    question = Question("key", plain_items(1, 16)[0], tuple(range(16)), "ana")
    picks = [attrs for _, attrs in Elements(page_of(question)).found if attrs.get("class") == "pick"]
    assert [attrs["data-place"] for attrs in picks] == [str(place) for place in range(16)]
    assert [attrs["data-keys"] for attrs in picks] == [*"1234567890", *[""] * 6]


def test_a_conversation_shows_who_speaks_and_a_bare_response_does_not() -> None:
    prompt = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    found = asked(prompt, [[{"role": "assistant", "content": "hello"}], [{"role": "assistant", "content": " "}]])
    assert re.findall(r'<span class="role">(\w+)', found) == ["system", "user"]
    assert "2 messages, the last one in view" in found and "messages" not in asked("p", ["a", "b"])
    assert '<div class="turn system">' in found and '<div class="text none">(empty)</div>' in found


def test_progress_is_told() -> None:
    found = page_of(Question("key", plain_items(1)[0], (1, 0), "ana"))
    text = re.sub(r"<[^>]+>", "", found)
    assert "3 done" in text and "1 skipped" in text and "7 to go" in text and "about 3 min left" in text
    assert "agreement 67% (2 of 3)" in text and 'max="11" value="4"' in found
    assert found.index("Answer 1 to") < found.index("Answer 0 to")  # in the order of the desk


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (20, "under a minute left"), (61, "about 1 min left"), (5400, "about 1 h 30 min left"),
     (3590, "about 1 h 0 min left"), (40_000, "about 11 h left")],
)  # fmt: skip
def test_time_left_is_told_roughly(seconds: float | None, words: str) -> None:
    assert pages.time_left(seconds) == words


def test_htmx_is_told_to_do_nothing_that_the_policy_refuses() -> None:
    config = next(a["content"] for t, a in Elements(page_of(None)).found if a.get("name") == "htmx-config")
    found = json.loads(config or "")
    assert not found["allowEval"] and not found["includeIndicatorStyles"] and not found["allowScriptTags"]
    library = (VENDOR / "htmx" / "htmx.min.js").read_text()
    # An option that htmx does not know would have no effect.
    assert [name for name in found if f"{name}:" not in library] == []


def test_the_library_is_the_file_that_the_table_names() -> None:
    (row,) = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| `(\S+)` \| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.M
    )
    name, version, file, digest = row
    content = (VENDOR / file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest and version.encode() in content
    assert (VENDOR / name / "LICENSE").is_file()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"rlhfctl/labels/web/vendor/*/LICENSE"' in pyproject
    assert all(path.is_file() for path, _ in pages.STATIC.values())
