"""The table of metrics: one row shows a metric everywhere, and what is said of it holds."""

from __future__ import annotations

import io
import re

import pytest
from conftest import ROOT
from make_metrics import with_tables
from streams import until_ppo

from rlhfctl import metrics
from rlhfctl.dashboard.alarms import alarms
from rlhfctl.dashboard.series import Series
from rlhfctl.dashboard.terminal.draw import UNICODE
from rlhfctl.dashboard.terminal.plain import PlainPrinter
from rlhfctl.dashboard.terminal.screen import Screen
from rlhfctl.events import Metrics
from rlhfctl.metrics import METRICS, UP, Metric, kind, log_labels, ranked, step_name, trl_names

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
TOY = Metric("toy", "toys", "Toys per response.", UP, "toys", "how playful it is", log_label="t", screen=1, log=1)


def shown(values: dict[str, float]) -> tuple[str, str]:
    """The line of the plain log, and the screen, for an update with these values more."""
    log = io.StringIO()
    PlainPrinter(log)(Metrics(stage="ppo", step=1, values={"kl": 1.0, "score": 2.0} | values))
    screen, records = Screen(), until_ppo()
    for record in records:
        record["values"] = record.get("values", {}) | values
        screen.state.feed(record)
    return log.getvalue(), "\n".join(line.plain for line in screen.lines(80, 40, UNICODE, 1044.0))


def test_one_row_shows_a_new_metric_in_the_log_on_the_screen_and_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    log, screen = shown({"toy": 5.0})
    assert log == "[ppo] update 1 score=2 kl=1 toy=5\n" and "how playful" not in screen
    monkeypatch.setitem(metrics.METRICS, "ppo", (*METRICS["ppo"], TOY))
    log, screen = shown({"toy": 5.0})
    assert log == "[ppo] update 1 score=2 t=5 kl=1\n"
    assert re.search(r"^toys +5 .*\n  how playful it is", screen, re.MULTILINE)
    assert "| `toy` | toys | Toys per response. |" in with_tables(PAGE)


def test_a_metric_that_must_be_finite_raises_the_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    series = {"toy": Series()}
    series["toy"].add(1, float("nan"))
    assert alarms("ppo", series, {}) == []
    monkeypatch.setitem(metrics.METRICS, "ppo", (Metric("toy", "", "", finite=True),))
    assert alarms("ppo", series, {})[0].startswith("toy is not a number any more")


def test_the_kind_of_a_stage_decides_what_it_shows() -> None:
    assert [kind(stage) for stage in ("ppo", "round-2/ppo", "")] == ["ppo", "ppo", ""]
    assert ranked("round-2/ppo", "screen") == ranked("ppo", "screen") != []
    assert ranked("unheard of", "screen") == []
    assert [step_name(stage, "row") for stage in ("ppo", "round-2/ppo", "sft")] == ["update", "update", "row"]


def test_the_held_out_reward_model_reports_what_the_reward_model_does() -> None:
    assert ranked("seed-1/heldout", "show") == ranked("reward", "show") != []
    assert ranked("ninth", "show") == []


@pytest.mark.parametrize("stage", METRICS)
def test_names_and_ranks_are_unique(stage: str) -> None:
    names = [metric.name for metric in METRICS[stage]]
    assert len(set(names)) == len(names)
    for view in ("screen", "log", "show"):
        ranks = [getattr(metric, view) for metric in METRICS[stage] if getattr(metric, view)]
        assert len(set(ranks)) == len(ranks), view
    for metric in METRICS[stage]:
        assert metric.meaning.endswith(".") and not set(metric.unit + metric.meaning) & set("|\n"), metric.name


def test_names_elsewhere_are_unique() -> None:
    assert len(trl_names("ppo")) == len(set(trl_names("ppo").values())) == 16
    assert trl_names("sft") == {} and log_labels() == {"learning_rate": "lr"}
