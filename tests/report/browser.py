"""A headless Chromium for tests of the page. Where it is absent tests are skipped, but in CI they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# A test machine may be slow; what is waited for comes in a second or two.
PATIENCE_MS = 60_000


def executable() -> str | None:
    """The browser: RLHFCTL_CHROMIUM, or the first of the usual names on the path."""
    named = os.environ.get("RLHFCTL_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium without a screen, a GPU or a network."""
    path = executable()
    if path is None:
        said = "no Chromium here: apt-get install chromium, or name one in RLHFCTL_CHROMIUM"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(said)
        pytest.skip(said)
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page that is open, with what it said and asked for."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def form(self, label: str, within: str = "#sample-table") -> Locator:
        """An element of a form by its label."""
        return self.page.locator(within).get_by_label(label)

    def rows(self) -> list[str]:
        """The rows of the samples' table."""
        return self.texts(".pairs tbody tr")

    def wide(self) -> tuple[int, int]:
        """Width of the content, and of the window."""
        found: list[int] = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        return found[0], found[1]


@contextmanager
def opened(browser: Browser, file: Path, *, size: Any = DESKTOP, scheme: Any = "light") -> Iterator[Opened]:
    """Open a file, with every request but that for the file itself refused, and wait until all charts are drawn."""
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.console.append(f"error: {error}"))
    address = file.resolve().as_uri()

    def route(one: Any) -> None:
        if one.request.url == address:
            one.continue_()
            return
        found.requests.append(one.request.url)
        one.abort()

    page.route("**/*", route)
    try:
        page.goto(address)
        page.wait_for_selector("body[data-drawn='all']")
        yield found
    finally:
        context.close()
