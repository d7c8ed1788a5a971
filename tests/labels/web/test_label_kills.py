"""A server that is killed right after it acknowledged a click has lost nothing: kill -9, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PATIENCE_MS, open_browser
from label_server import events_of, plain_items, running
from playwright.sync_api import Browser

REST_MS = 280  # a new question takes no answer in its first moment (page.js)
KEYS = ("1", "2", "t", "b", "s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.ci)])
def test_nothing_that_was_acknowledged_is_lost_when_the_server_is_killed(
    browser: Browser, tmp_path: Path, kills: int
) -> None:
    items = plain_items(2 * kills + 1)
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    acknowledged: list[tuple[str, str]] = []  # key of the question, key that was pressed
    for number in range(kills):
        with running(tmp_path, items) as server:
            page.goto(server.address)
            page.get_by_label("Your name").fill("ana")
            page.keyboard.press("Enter")
            page.locator("#task").wait_for()
            for press in range(2):
                page.wait_for_timeout(REST_MS)
                key = page.locator("input[name=key]").input_value()
                pressed = KEYS[(2 * number + press) % len(KEYS)]
                page.keyboard.press(pressed)
                # The very moment in which the page says so.
                page.wait_for_function(
                    "key => document.getElementById('said').textContent !== '' && "
                    "document.querySelector('input[name=key]').value !== key",
                    arg=key,
                    polling=1,
                )
                acknowledged.append((key, pressed))
            server.kill()
        stored = {event.key: event for event in events_of(tmp_path)}
        assert [key for key, _ in acknowledged if key not in stored] == []
        assert len(stored) == len(acknowledged)
    for key, pressed in acknowledged:
        event = stored[key]
        expected = {"1": "label", "2": "label", "t": "label", "b": "bad", "s": "skip"}[pressed]
        assert event.kind == expected
        if event.ranks is not None and event.shown is not None:
            on_screen = [event.ranks[place] for place in event.shown]
            assert on_screen == {"1": [0, 1], "2": [1, 0], "t": [0, 0]}[pressed]
    context.close()
