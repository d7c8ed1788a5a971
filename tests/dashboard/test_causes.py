"""Each alarm of docs/alarms.md has its usual causes on the page."""

from __future__ import annotations

import re

from conftest import ROOT

from rlhfctl.dashboard.causes import CAUSES, causes_of, key_of

PAGE = (ROOT / "docs" / "alarms.md").read_text(encoding="utf-8")
NO_ALARM = {"as far as this tells no better than a coin"}  # a warning of the reward stage


def test_every_alarm_of_the_page_has_causes() -> None:
    headings = set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE)) - NO_ALARM
    assert set(CAUSES) == headings


def test_numbers_do_not_make_another_alarm() -> None:
    first = "KL is 11.4 nats per response: the policy is far from the reference, and its text may get worse"
    second = "KL is 9.1e2 nats per response: the policy is far from the reference, and its text may get worse"
    assert key_of(first) == key_of(second)
    assert causes_of(first) == CAUSES[key_of(first)]


def test_an_alarm_that_is_not_known_has_no_causes_and_a_key_without_numbers() -> None:
    assert causes_of("something new at 0.5") == ""
    assert key_of("something new at 0.5, 30%") == key_of("something new at -1e-3, 7%") == "something new at # #"
