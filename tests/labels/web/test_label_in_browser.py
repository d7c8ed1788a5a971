"""The labelling page in a real browser: two people at once, keys, touch, reloads, races, text that gives orders."""

from __future__ import annotations

import functools
import http.server
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PATIENCE_MS, PHONE, open_browser
from label_server import NASTY, Running, events_of, plain_items, running
from playwright.sync_api import Browser, BrowserContext, Page, expect

from rlhfctl.labels.items import Item, make_item
from rlhfctl.labels.store import Event

REST_MS = 280  # a new question takes no answer in its first moment (page.js)
LONG = " ".join(f"Sentence {n} is here to make this text long." for n in range(200))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


class Annotator:
    """One person at the page. `console` and `elsewhere` hold what must not be: messages, requests to other hosts."""

    def __init__(self, context: BrowserContext, server: Running, name: str) -> None:
        self.context, self.server = context, server
        self.page: Page = context.new_page()
        self.console: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        self.page.on("request", self._requested)
        self.page.goto(server.address)
        assert self.page.url == f"{server.base}/"  # the token is out of the address
        self.page.get_by_label("Your name").fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator("#task").wait_for()
        cookies = context.cookies()
        assert len(cookies) == 2 and all(one["httpOnly"] and one["sameSite"] == "Strict" for one in cookies)
        self.rest()

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(f"{self.server.base}/"):
            self.elsewhere.append(request.url)

    def rest(self) -> None:
        self.page.wait_for_timeout(REST_MS)

    @property
    def key(self) -> str | None:
        found = self.page.locator("input[name=key]")
        return found.input_value() if found.count() else None

    def texts(self) -> list[str]:
        return self.page.locator(".response .text").all_inner_texts()

    def until_next(self, key: str | None) -> None:
        """Wait until another question, or none, is on the screen."""
        self.page.wait_for_function(
            "key => document.querySelector('input[name=key]')?.value !== key", arg=key, timeout=PATIENCE_MS
        )

    def press(self, key: str) -> None:
        """Press a key that answers, and wait for the next question."""
        before = self.key
        self.page.keyboard.press(key)
        self.until_next(before)
        self.rest()

    def click(self, name: str) -> None:
        before = self.key
        self.page.get_by_role("button", name=name).click()
        self.until_next(before)
        self.rest()

    def is_quiet(self) -> bool:
        assert self.console == [] and self.elsewhere == []
        return True


@contextmanager
def at_the_page(
    browser: Browser, server: Running, name: str = "ana", *, size: Any = DESKTOP, touch: bool = False
) -> Iterator[Annotator]:
    context = browser.new_context(viewport=size, has_touch=touch, is_mobile=touch)
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Annotator(context, server, name)
    finally:
        context.close()


@contextmanager
def labelling(
    browser: Browser, folder: Path, items: Sequence[Item], *arguments: str, **how: Any
) -> Iterator[tuple[Running, Annotator]]:
    with running(folder, items, *arguments) as server, at_the_page(browser, server, **how) as ana:
        yield server, ana


def on_screen(event: Event) -> list[int]:
    assert event.ranks is not None and event.shown is not None
    return [event.ranks[place] for place in event.shown]


# ---------------------------------------------------------------- two people, a hundred questions


@pytest.mark.ci
def test_two_annotators_at_once_judge_a_hundred_items_between_them(browser: Browser, tmp_path: Path) -> None:
    with (
        labelling(browser, tmp_path, plain_items(100)) as (server, ana),
        at_the_page(browser, server, "bo") as bo,
    ):
        keys = ["ArrowLeft", "ArrowRight", "t", "b"]
        preferred: dict[str, str] = {}
        for turn in range(50):
            assert ana.key != bo.key
            for one in (ana, bo):
                key, texts = one.key, one.texts()
                assert key is not None
                pressed = keys[turn % len(keys)]
                if pressed.startswith("Arrow"):
                    preferred[key.partition("-")[0]] = texts[pressed == "ArrowRight"]
                one.page.keyboard.press(pressed)
                one.until_next(key)
            ana.rest()
        expect(ana.page.locator("#task")).to_have_text("Finished. Thank you!")
        assert ana.is_quiet() and bo.is_quiet()
    events = events_of(tmp_path)
    assert len(events) == 100 and len({event.item for event in events}) == 100
    assert Counter(event.annotator for event in events) == {"ana": 50, "bo": 50}
    by_id = {item.id: item for item in plain_items(100)}
    assert len(preferred) == 52
    for event in events:
        if event.item in preferred:  # what stood on the preferred side is stored as the best
            assert event.ranks is not None
            assert by_id[event.item].responses[event.ranks.index(0)] == preferred[event.item]


def test_agreement_is_shown_where_two_judge_the_same(browser: Browser, tmp_path: Path) -> None:
    with (
        labelling(browser, tmp_path, plain_items(3), "--overlap", "1.0") as (server, ana),
        at_the_page(browser, server, "bo") as bo,
    ):
        ana.press("t")
        bo.press("t")
        expect(bo.page.locator(".far")).to_contain_text("agreement 100% (1 of 1)")
        assert "agreement" not in ana.page.locator(".far").inner_text()  # nobody had answered before


# ---------------------------------------------------------------- one person


def test_undo_and_a_reload_in_the_middle_of_an_item(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(4)) as (_, ana):
        first, texts = ana.key, ana.texts()
        ana.page.reload()
        assert (ana.key, ana.texts()) == (first, texts)
        ana.rest()
        ana.click("1 is better")
        second = ana.texts()
        ana.press("u")
        assert ana.texts() == texts and ana.key != first
        ana.page.reload()
        assert ana.texts() == texts
        ana.rest()
        ana.press("2")
        assert ana.texts() == second
        assert ana.is_quiet()
    events = events_of(tmp_path)
    assert [event.kind for event in events] == ["label", "undo", "label"]
    assert [on_screen(event) for event in events if event.kind == "label"] == [[0, 1], [1, 0]]


def test_all_can_be_done_by_keys_alone(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(7)) as (_, ana):
        for key in ("ArrowLeft", "ArrowRight", "1", "2", "t", "0"):
            ana.press(key)
        ana.press("u")
        ana.page.keyboard.press("n")
        expect(ana.page.get_by_label("Note on this question")).to_be_focused()
        ana.page.keyboard.type("both say 1 and b")  # letters of a note press no button
        ana.page.keyboard.press("Escape")
        expect(ana.page.locator("#said")).to_have_text("Note saved.")
        ana.press("b")
        ana.press("s")
        expect(ana.page.locator(".finished")).to_contain_text("You have answered 6 questions and skipped 1.")
        ana.press("u")
        for _ in range(30):  # the buttons can be reached by Tab too, and Enter presses the one with the focus
            ana.page.keyboard.press("Tab")
            if ana.page.evaluate("document.activeElement.textContent.trim().startsWith('Tie')"):
                break
        style = "getComputedStyle(document.activeElement)"
        assert ana.page.evaluate(f"{style}.outlineStyle") == "solid"
        assert ana.page.evaluate(f"parseFloat({style}.outlineWidth)") >= 2
        ana.press("Enter")
        assert ana.is_quiet()
    events = events_of(tmp_path)
    assert [on_screen(event) for event in events[:6]] == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 0], [0, 0]]
    assert [event.kind for event in events[6:]] == ["undo", "note", "bad", "skip", "undo", "label"]
    assert events[8].note == "both say 1 and b" and events[-1].ranks == (0, 0)


def test_what_is_saved_is_told_to_a_screen_reader(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(3)) as (_, ana):
        live = ana.page.locator("#said")
        assert live.get_attribute("aria-live") == "polite" and live.inner_text() == ""
        node = live.element_handle()
        ana.press("1")
        assert live.inner_text() == "Saved."
        assert node.evaluate("node => node.isConnected")  # a new element would be read by nobody
        expect(ana.page.locator("#task")).to_be_focused()
        for name in ("Prompt", "Response 1", "Response 2", "Your answer"):
            assert ana.page.locator(f"[aria-label='{name}']").count() == 1
        assert ana.page.get_by_role("progressbar").get_attribute("value") == "1"


# ---------------------------------------------------------------- several responses


def test_responses_are_ordered_by_clicks_the_best_first(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(3, 4)) as (_, ana):
        page = ana.page
        card = [page.locator(f".pick[data-place='{place}']") for place in range(4)]
        send = page.get_by_role("button", name="Send", exact=False).first
        for place in (2, 0, 1):
            card[place].click()
        card[0].click()  # taken back: those after it move up
        assert [one.locator(".rank").inner_text() for one in card] == ["choose", "2", "1", "choose"]
        expect(send).to_be_disabled()
        page.get_by_role("button", name="Next is as good").click()
        card[3].click()
        card[0].click()
        assert [one.locator(".rank").inner_text() for one in card] == ["3", "2", "1", "2"]
        ana.click("Send")
        for key in ("4", "=", "3", "1", "1", "2", "1"):
            page.keyboard.press(key)
        ana.press("Enter")
        ana.press("b")
        assert ana.is_quiet()
    first, second, third = events_of(tmp_path)
    assert on_screen(first) == [2, 1, 0, 1] and on_screen(second) == [2, 1, 0, 0] and third.kind == "bad"


# ---------------------------------------------------------------- phone


def test_on_a_phone_responses_are_stacked_and_touched(browser: Browser, tmp_path: Path) -> None:
    long = make_item("word" * 300 + LONG, [LONG + "x" * 500, "short"], ["a", "b"])
    with labelling(browser, tmp_path, [long, *plain_items(2, 3)], size=PHONE, touch=True) as (_, ana):
        page = ana.page
        assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [390, 390]
        cards = [one.bounding_box() for one in page.locator(".response").all()]
        assert cards[0] is not None and cards[1] is not None
        assert cards[0]["x"] == cards[1]["x"] and cards[1]["y"] >= cards[0]["y"] + cards[0]["height"]
        for scroll in page.locator(".card .scroll").all()[:1]:
            assert scroll.evaluate("one => one.scrollHeight > one.clientHeight + 100")  # a long text scrolls inside
        for button in page.locator(".answers button").all():
            box = button.bounding_box()
            assert box is not None and box["height"] >= 40 and box["y"] + box["height"] <= PHONE["height"]
        before = ana.key
        page.get_by_role("button", name="2 is better").tap()
        ana.until_next(before)
        ana.rest()
        for place in (1, 2, 0):
            page.locator(f".pick[data-place='{place}']").tap()
        before = ana.key
        page.get_by_role("button", name="Send", exact=False).first.tap()
        ana.until_next(before)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert ana.is_quiet()
    first, second = events_of(tmp_path)
    assert on_screen(first) == [1, 0] and on_screen(second) == [2, 0, 1]


@pytest.mark.parametrize("height", [900, 700])
def test_on_a_desktop_a_long_question_fits_and_scrolls_inside(browser: Browser, tmp_path: Path, height: int) -> None:
    item = make_item(LONG, [LONG, LONG + "."], ["a", "b"])
    size = {"width": 1280, "height": height}
    with labelling(browser, tmp_path, [item], size=size) as (_, ana):
        assert ana.page.evaluate("document.documentElement.scrollHeight") <= height
        for scroll in ana.page.locator(".scroll").all():
            found = scroll.evaluate("one => [one.scrollHeight, one.clientHeight]")
            assert found[0] > found[1] > 100


def test_the_last_message_of_a_long_conversation_is_in_view(browser: Browser, tmp_path: Path) -> None:
    def spoken(last: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": LONG},
            {"role": "assistant", "content": "?"},
            {"role": "user", "content": last},
        ]

    items = [make_item(spoken(last), ["a", "b"], ["a", "b"]) for last in ("short", "begin " + LONG, "third")]
    with labelling(browser, tmp_path, items) as (_, ana):
        where = "one => [one.getBoundingClientRect(), one.closest('.scroll').getBoundingClientRect()]"
        for _ in range(3):
            turn, box = ana.page.locator(".prompt .turn").last.evaluate(where)
            assert box["top"] - 1 <= turn["top"] < box["bottom"] - 20
            ana.press("1")


# ---------------------------------------------------------------- text that gives orders


def test_html_and_script_of_a_model_show_as_text_and_nothing_runs(browser: Browser, tmp_path: Path) -> None:
    spoken = [{"role": NASTY, "content": NASTY}, {"role": "user", "content": "line\n  two"}]
    items = [
        make_item(spoken, [NASTY, [{"role": "assistant", "content": NASTY + "."}]], ["a", "b"], tools=[{"x": NASTY}])
    ]
    with labelling(browser, tmp_path, items, name="<b>ana</b>") as (_, ana):
        page = ana.page
        assert NASTY in ana.texts() and NASTY + "." in ana.texts()
        assert page.locator(".prompt .text").last.inner_text() == "line\n  two"
        assert page.evaluate("window.ran") is None
        assert page.locator("iframe, img, .text *, .role *, .who b").count() == 0
        page.keyboard.press("n")
        page.keyboard.type(NASTY)
        page.keyboard.press("Escape")
        expect(page.locator("#said")).to_have_text("Note saved.")
        page.reload()
        assert page.get_by_label("Note on this question").input_value() == NASTY
        ana.rest()
        ana.press("1")
        assert page.evaluate("window.ran") is None and ana.is_quiet()
    assert events_of(tmp_path)[-1].annotator == "<b>ana</b>"


def test_the_policy_stops_what_would_run_if_escaping_failed(browser: Browser, tmp_path: Path) -> None:
    """The second wall: an inline script, a handler and a foreign picture put into the page do nothing."""
    with labelling(browser, tmp_path, plain_items(1)) as (_, ana):
        ana.page.evaluate(
            """() => { const one = document.createElement("script"); one.textContent = "window.ran = 1";
            document.body.append(one);
            document.querySelector("main").insertAdjacentHTML("beforeend", "<img src='x' onerror='window.ran = 2'>" +
            "<img src='http://localhost:9/x'><form action='http://localhost:9/'></form>"); }"""
        )
        ana.page.wait_for_timeout(200)
        assert ana.page.evaluate("window.ran") is None
        assert len([said for said in ana.console if "Content Security Policy" in said]) >= 3


# ---------------------------------------------------------------- races and failures


def test_a_double_click_answers_one_question(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(4)) as (_, ana):
        before = ana.key
        ana.page.get_by_role("button", name="1 is better").dblclick()
        ana.until_next(before)
        ana.rest()
        second = ana.key
        ana.page.evaluate(
            """() => { const one = document.querySelector(".answers button"); one.click(); one.click(); }"""
        )
        ana.until_next(second)
        ana.rest()
        third = ana.key
        # A click and a key in the first moment of a question that nobody has read, as soon as it would be sent.
        ana.page.evaluate(
            """() => document.addEventListener("htmx:afterSettle", () => {
                document.querySelector(".answers button").click();
                document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "2", bubbles: true }));
                window.clicked = true;
            }, { once: true })"""
        )
        ana.press("1")
        ana.page.wait_for_timeout(300)
        assert ana.page.evaluate("window.clicked") and ana.key not in (third, None)
        assert len(events_of(tmp_path)) == 3
        ana.press("1")  # it can be answered after that
        assert ana.is_quiet()
    assert len(events_of(tmp_path)) == 4


def test_two_windows_of_one_annotator_count_once(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(3)) as (server, ana), at_the_page(browser, server, "ana") as again:
        assert ana.key == again.key
        ana.press("1")
        before = again.key
        again.page.keyboard.press("2")
        expect(again.page.locator("#said")).to_contain_text("The first answer counts")
        again.until_next(before)
        assert again.key == ana.key
    (event,) = events_of(tmp_path)
    assert on_screen(event) == [0, 1]


def test_an_answer_that_did_not_arrive_is_told_and_can_be_sent_again(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(3)) as (_, ana):
        page, before = ana.page, ana.key
        page.route("**/answer", lambda route: route.abort())
        page.keyboard.press("2")
        failed = page.get_by_role("alert")
        expect(failed).to_contain_text("Not saved: the server does not answer.")
        assert ana.key == before and events_of(tmp_path) == []
        page.unroute("**/answer")
        page.get_by_role("button", name="Send again").click()
        ana.until_next(before)
        expect(failed).to_be_hidden()
    (event,) = events_of(tmp_path)
    assert on_screen(event) == [1, 0]


def test_an_answer_to_a_server_that_has_died_is_not_called_saved(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, plain_items(3)) as (server, ana):
        texts = ana.texts()
        server.kill()
        ana.page.keyboard.press("1")
        expect(ana.page.get_by_role("alert")).to_contain_text("Not saved")
        assert ana.page.locator("#said").inner_text() == "" and ana.texts() == texts
        with running(tmp_path, plain_items(3), "--port", str(server.port)) as second:
            ana.page.get_by_role("button", name="Send again").click()
            expect(ana.page.get_by_role("alert")).to_contain_text("the server was started again")
            ana.page.goto(second.address)
            assert ana.texts() == texts  # the name is known still, and the same question comes again
            ana.rest()
            ana.press("1")
    assert len(events_of(tmp_path)) == 1


# ---------------------------------------------------------------- other sites


def test_a_link_on_another_site_opens_the_page_and_a_form_there_saves_nothing(browser: Browser, tmp_path: Path) -> None:
    """Here localhost is another site than 127.0.0.1."""
    with labelling(browser, tmp_path, plain_items(2)) as (server, ana):
        key = ana.key
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "index.html").write_text(
            f"<a id=open href='{server.address}'>open</a><form method=post action='{server.base}/answer'>"
            f"<input name=key value='{key}'><input name=answer value='0 1'><button>send</button></form>"
            f"<iframe src='{server.base}/'></iframe>"
        )
        handler = functools.partial(Silent, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
            threading.Thread(target=other.serve_forever, daemon=True).start()
            page = ana.context.new_page()
            page.goto(f"http://localhost:{other.server_port}/index.html")
            assert page.frames[1].locator("#task").count() == 0  # it cannot be framed
            page.get_by_role("button", name="send").click()
            expect(page.locator("body")).to_contain_text("comes from another page")
            page.go_back()
            page.locator("#open").click()
            page.locator("#task").wait_for()
            assert page.url == f"{server.base}/"
            other.shutdown()
    assert events_of(tmp_path) == []


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *given: Any) -> None:
        pass
