"""The page of a sweep: the table of settings, the plots, and how far the best setting can be trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_here
from made_sweep import setting, sweep_of
from schema import faults

from rlhfctl.report.content import Table
from rlhfctl.report.facts.sweep import Facts, choose, gather_sweep
from rlhfctl.report.markdown import markdown_of
from rlhfctl.report.sweep import headline, meaning, page_of_sweep
from rlhfctl.report.write import sweep_at_end


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return gather_sweep(sweep_of(tmp_path_factory.mktemp("sweep"), limit=10.0))


def test_the_best_is_named_with_how_many_were_tried(facts: Facts) -> None:
    page = page_of_sweep(facts)
    assert page.headline == (
        "kl_coef=0 has the highest held-out reward of 2 settings with a KL of at most 10: 1.5 on the eval prompts, "
        "at a KL of 9"
    )
    assert "that number is too high on average" in page.meaning and "The test prompts had no part" in page.meaning
    assert "The next, kl_coef=0.1, is 0.25 behind. One seed says nothing" in page.meaning
    checks = {check.title: check for check in page.checks}
    assert checks["Selection"].text == "The best of 2 settings: its number is optimistic."
    assert (checks["Every combination ran"].mark, checks["Seeds"].mark) == ("bad", "caution")
    assert "KL limit" not in checks


def test_every_setting_has_a_row(facts: Facts) -> None:
    table = next(section for section in page_of_sweep(facts).sections if section.name == "settings").parts[0]
    assert isinstance(table, Table)
    assert table.headings == ["ppo.kl_coef", "held-out reward", "reward", "gold", "KL", "win rate", "state"]
    assert [row[0] for row in table.rows] == ["0", "0.1", "1"]
    assert table.rows[0][1:5] == ["1.5", "2.5", "0.5", "9"] and "%" in table.rows[0][5]
    assert [row[-1] for row in table.rows] == ["complete *", "complete", "failed"]


def test_figures_are_vega_lite_and_the_limit_is_drawn(facts: Facts) -> None:
    figures = page_of_sweep(facts).figures()
    names = [figure.name for figure in figures]
    assert {"pareto-held-out-reward", "pareto-reward", "pareto-gold", "pareto"} <= set(names)
    assert len(set(names)) == len(names)
    assert [fault for figure in figures for fault in faults(figure.drawn())] == []
    gain = figures[names.index("pareto-held-out-reward")]
    assert "KL limit" in gain.caption and {"x": {"datum": 10.0}} in [layer["encoding"] for layer in gain.spec["layer"]]


def test_failures_are_listed(facts: Facts) -> None:
    text = markdown_of(page_of_sweep(facts))
    assert "## Failed" in text and "memory ran out" in text


def test_a_choice_by_the_trained_reward_is_marked(facts: Facts) -> None:
    settings = [setting("a", score=1.0, kl=1.0), setting("b", score=2.0, kl=1.0)]
    found = replace(facts, settings=settings, choice=choose(settings, None), sweep=replace(facts.sweep, kl_limit=None))
    checks = {check.title: check for check in page_of_sweep(found).checks}
    assert checks["Chosen by"].mark == "bad" and "over-optimization" in checks["Chosen by"].text
    assert "--kl-limit" in checks["KL limit"].text and "without a KL limit" in headline(found)
    assert "there was no KL limit" in markdown_of(page_of_sweep(found))


def test_seeds_that_do_not_tell_settings_apart_are_said(facts: Facts) -> None:
    near = choose(
        [setting("a", heldout={"0": 1.0, "1": 3.0}, kl=1.0), setting("b", heldout={"0": 2.0, "1": 1.0}, kl=1.0)], None
    )
    assert meaning(near).endswith("The seeds do not tell the two apart.")
    apart = choose(
        [setting("a", heldout={"0": 9.0, "1": 9.1}, kl=1.0), setting("b", heldout={"0": 1.0, "1": 1.1}, kl=1.0)], None
    )
    assert "do not tell" not in meaning(apart)


def test_no_choice_says_why(facts: Facts) -> None:
    found = replace(facts, choice=choose([], None))
    page = page_of_sweep(found)
    assert page.headline.startswith("no best setting: no setting was measured") and page.numbers == []


def test_the_page_is_written_into_the_sweeps_folder(facts: Facts, tmp_path: Path) -> None:
    said, file = sweep_at_end(facts.path)
    assert file == facts.path / "report.html" and "Sweep of tiny" in file.read_text() and said[0] == headline(facts)
    again = run_here("report", facts.path, "--format", "json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["headline"] == said[0] and len(found["runs"]) == 3
