"""The real page in a real browser: charts, tooltips, search, filter, text that gives orders, widths, light and dark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PHONE, Opened, open_browser, opened
from made_run import NASTY, make_run, make_seeds
from playwright.sync_api import Browser

from rlhfctl.report.write import report, report_at_end

LARGEST_BYTES, LONGEST_S = 10_000_000, 2.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_at_end(make_run(tmp_path_factory.mktemp("browser") / "one", nasty=True, updates=24))


@pytest.fixture(scope="module")
def desktop(browser: Browser, file: Path) -> Iterator[Opened]:
    with opened(browser, file) as found:
        yield found


def is_quiet(found: Opened) -> bool:
    assert found.console == [] and found.requests == []
    return True


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_an_absent_browser_fails_in_ci_and_is_skipped_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("RLHFCTL_CHROMIUM", raising=False)
    with pytest.raises(outcome, match="apt-get install chromium"), open_browser():
        pass


# ---------------------------------------------------------------- charts


def test_every_open_chart_is_drawn_and_nothing_is_asked_for(desktop: Opened) -> None:
    page = desktop.page
    assert page.locator(".chart:visible").count() == page.locator(".chart:visible svg").count() > 20
    assert page.locator(".chart:visible svg path, .chart:visible svg text").count() > 300
    assert is_quiet(desktop)


def test_a_closed_part_draws_its_charts_when_it_is_opened(desktop: Opened) -> None:
    fold = desktop.page.locator("#curves details")
    assert fold.locator("svg").count() == 0
    fold.locator("summary").click()
    fold.locator("svg").first.wait_for()
    assert fold.locator(".chart").count() == 5
    fold.locator("summary").click()
    assert is_quiet(desktop)


def test_a_tooltip_shows_the_numbers_under_the_pointer(desktop: Opened) -> None:
    chart = desktop.page.locator("[data-figure='ppo-score']")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    desktop.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    desktop.page.mouse.move(box["x"] + box["width"] * 0.62, box["y"] + box["height"] * 0.5)
    tooltip = desktop.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "update" in tooltip.inner_text() and "score" in tooltip.inner_text()
    assert is_quiet(desktop)


def test_charts_have_words_for_a_screen_reader(desktop: Opened) -> None:
    named = desktop.page.get_by_role("img", name="Win rates with 95% intervals: gold")
    assert named.count() >= 1
    assert desktop.page.get_by_role("img", name="caution").count() >= 1  # a mark of "Can I trust it?"


# ---------------------------------------------------------------- samples


def test_the_table_shows_pages(desktop: Opened) -> None:
    page = desktop.page
    assert len(desktop.rows()) == 10 and desktop.texts("#samples .count") == ["1 to 10 of 48 pairs"]
    page.get_by_role("button", name="Next").click()
    assert desktop.texts("#samples .count") == ["11 to 20 of 48 pairs"]
    desktop.form("Rows").select_option("25")
    assert len(desktop.rows()) == 25 and desktop.texts(".pager span") == ["page 1 of 2"]
    desktop.form("Rows").select_option("10")
    assert page.get_by_role("button", name="Previous").is_disabled()
    assert is_quiet(desktop)


def changes(found: Opened) -> list[float]:
    return [float(text) for text in found.texts(".pairs tbody tr td:last-child")]


def test_rows_are_sorted_by_select_and_by_heading(desktop: Opened) -> None:
    page = desktop.page
    assert changes(desktop) == sorted(changes(desktop), reverse=True)
    assert page.locator("th[aria-sort='descending']").inner_text() == "Change"
    page.get_by_role("button", name="Change").click()
    assert changes(desktop) == sorted(changes(desktop)) and changes(desktop)[0] < -8
    assert desktop.form("Sort by").input_value() == "change"
    desktop.form("Sort by").select_option("-change")


def test_rows_are_filtered_by_who_wins_and_by_judge(desktop: Opened) -> None:
    desktop.form("Show").select_option("loss")
    lost = changes(desktop)
    assert lost and max(lost) < 0
    desktop.form("Judge").select_option("reward_model")
    other = changes(desktop)
    assert max(other) < 0 and other != lost  # that judge's scores change twice as much
    desktop.form("Judge").select_option("gold")
    desktop.form("Show").select_option("cut")
    assert all("cut off" in row for row in desktop.rows())
    desktop.form("Show").select_option("all")


def test_search_finds_words_in_prompt_and_answers(desktop: Opened) -> None:
    page = desktop.page
    search = page.get_by_role("searchbox")
    search.fill("PROMPT 7:")
    assert len(desktop.rows()) == 2 and all("prompt 7:" in row for row in desktop.rows())
    assert page.locator(".pairs mark").first.inner_text() == "prompt 7:"
    search.fill("no such words anywhere")
    assert desktop.rows() == [] and desktop.texts("#samples .count") == ["0 to 0 of 0 pairs"]
    search.fill("")
    assert desktop.texts("#samples .count") == ["1 to 10 of 48 pairs"]
    search.press("Enter")  # sends no form
    assert is_quiet(desktop)


# ---------------------------------------------------------------- text that gives orders


def test_a_response_that_holds_script_and_html_shows_as_text(desktop: Opened) -> None:
    page = desktop.page
    assert page.evaluate("window.ran") is None and page.title() == "one: undecided"
    assert page.locator("#changed b, #samples b").all_inner_texts() != []
    assert not [text for text in desktop.texts("b") if text == "bold"]
    assert page.locator("img").count() == 0
    page.get_by_role("searchbox").fill("<script>")
    shown = page.locator(".pairs tbody td[data-name='policy'] .clip").first.inner_text()
    assert shown == NASTY
    page.get_by_role("searchbox").fill("")
    assert NASTY in "\n".join(desktop.texts(".example .after"))
    assert is_quiet(desktop)


def test_a_script_that_got_in_would_not_run(browser: Browser, file: Path, tmp_path: Path) -> None:
    """The policy of the page stops what slips through: a script, a handler, a request."""
    planted = tmp_path / "planted.html"
    evil = "<script>window.ran = 1</script><img src='https://example.com/x.png' onerror='window.ran = 2'>"
    planted.write_text(
        file.read_text(encoding="utf-8").replace('<main id="main">', f'<main id="main">{evil}'), encoding="utf-8"
    )
    with opened(browser, planted) as found:
        assert found.page.evaluate("window.ran") is None and found.requests == []
        assert any("Content Security Policy" in line for line in found.console)


# ---------------------------------------------------------------- tokens and copying


def test_a_token_shows_its_numbers(desktop: Opened) -> None:
    page = desktop.page
    tokens = page.locator("#episodes .tokens span")
    assert tokens.all_text_contents() == [" the", " room", " <b>", "<eos>"]
    tokens.nth(2).hover()
    assert page.locator(".token-numbers").inner_text().startswith('" <b>": advantage ')
    desktop.form("Colour by", "#episodes").select_option("KL")
    page.locator("[name='episode']").select_option("3")
    assert page.locator("#episodes tbody tr").count() == 4
    assert is_quiet(desktop)


def test_the_recipe_can_be_copied(desktop: Opened) -> None:
    desktop.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = desktop.page.locator(".code", has_text="recipe").last.get_by_role("button")
    button.click()
    button.filter(has_text="Copied").wait_for()
    assert desktop.page.evaluate("navigator.clipboard.readText()").startswith("name: one\n")


# ---------------------------------------------------------------- widths, colours, print


def luminance(colour: str) -> float:
    parts = [float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(parts) / 3


def paper_and_ink(found: Opened) -> tuple[float, float]:
    """How light the page is, and the texts of its charts."""
    paper: str = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink: str = found.page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    return luminance(paper), luminance(ink)


CUT_OFF = """[...document.querySelectorAll('.chart svg text, caption span')].filter(
  text => text.getBoundingClientRect().right > innerWidth + 1).map(text => text.textContent)"""
"""Texts of charts and below tables that reach beyond the screen's right edge."""


def test_a_phone_scrolls_down_only_in_light_and_in_dark(browser: Browser, file: Path) -> None:
    with opened(browser, file, size=PHONE) as found:
        assert found.page.locator(".chart:visible svg").count() > 20
        wide = "[...document.querySelectorAll('.chart svg')].filter(s => s.getBoundingClientRect().right > 391).length"
        for scheme in ("light", "dark"):
            found.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert found.wide() == (390, 390) and found.page.evaluate(wide) == 0
            assert found.page.evaluate(CUT_OFF) == []
            paper, ink = paper_and_ink(found)
            assert (paper > ink) is (scheme == "light") and abs(paper - ink) > 100
        assert is_quiet(found)


def test_paper_is_white_and_shows_no_controls(desktop: Opened) -> None:
    page = desktop.page
    page.emulate_media(media="print", color_scheme="dark")
    paper, ink = paper_and_ink(desktop)
    assert paper == 255 and ink < 130
    assert not page.locator(".controls").first.is_visible() and not page.locator(".contents").is_visible()
    assert page.locator(".chart:visible").count() == page.locator(".chart:visible svg").count()
    page.emulate_media(media="screen", color_scheme="light")


# ---------------------------------------------------------------- other pages


@pytest.mark.ci
def test_pages_of_several_runs_of_seeds_and_of_unfinished_runs_are_drawn(browser: Browser, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "low", gain=0.1),
        make_seeds(tmp_path / "seeds"),
        make_run(tmp_path / "half", finished=False),
    ]
    report(runs, out=tmp_path / "runs.html")
    for file in (tmp_path / "runs.html", report_at_end(runs[1]), report_at_end(runs[2])):
        with opened(browser, file, size=PHONE) as found:
            assert found.wide() == (390, 390), file
            assert found.page.locator(".chart:visible").count() == found.page.locator(".chart:visible svg").count() > 5
            assert is_quiet(found)


def test_a_page_of_a_run_of_the_program_is_drawn(browser: Browser, tiny_run: Path) -> None:
    with opened(browser, tiny_run / "report.html") as found:
        assert found.page.locator(".chart:visible svg").count() > 10
        assert len(found.rows()) == 10
        assert is_quiet(found)


@pytest.mark.slow
def test_a_large_run_is_a_small_page_that_opens_at_once(browser: Browser, tmp_path: Path) -> None:
    """2,000 updates and 5,000 samples of about 250 characters."""
    file = report_at_end(make_run(tmp_path / "large", updates=2000, prompts=1250, samples=4, words=80))
    assert file.stat().st_size < LARGEST_BYTES
    took = []
    for _ in range(3):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.monotonic()
        page.goto(file.resolve().as_uri())
        page.locator(".pairs tbody tr").nth(9).wait_for(state="attached")
        took.append(time.monotonic() - began)
        page.get_by_role("searchbox").fill("breakfast")
        assert "of 5,000" not in page.locator("#samples .count").inner_text()
        page.close()
    assert min(took) < LONGEST_S, took
