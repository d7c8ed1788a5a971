"""The page of one run: its sections in order, each with a way to read it, and nothing where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_here
from made_run import make_run, make_seeds
from schema import faults

from rlhfctl.report import sections
from rlhfctl.report.content import Code, Figures, Page, Part, Samples, Section, Table, Text
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Pair, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gather(make_run(tmp_path_factory.mktemp("sections") / "one", prompts=30, gain=0.6))


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return sections.page_of(run)


def section(page: Page, name: str) -> Section:
    return next(one for one in page.sections if one.name == name)


def only(section: Section, kind: type[Part]) -> list[Part]:  # type: ignore[valid-type]
    return [part for part in section.parts if isinstance(part, kind)]


def test_a_whole_run_has_every_section_in_order(page: Page) -> None:
    assert [one.name for one in page.sections] == [
        "win-rates", "curves", "optimization", "card", "scores", "length", "groups", "samples", "tokens", "alarms",
        "costs", "lineage", "reproduce",
    ]  # fmt: skip


def test_each_section_has_one_sentence_on_how_to_read_it(page: Page) -> None:
    for one in page.sections:
        assert one.how_to_read.endswith(".") and 20 < len(one.how_to_read) < 140, one.name


def test_every_figure_is_vega_lite_with_a_name_of_its_own_and_words_for_it(page: Page) -> None:
    figures = page.figures()
    assert len({figure.name for figure in figures}) == len(figures) > 25
    for figure in figures:
        assert faults(figure.drawn()) == [], figure.name
        assert figure.drawn()["description"] == figure.alt and figure.alt and figure.caption, figure.name


def test_a_run_of_the_program_has_valid_figures(tiny_run: Path) -> None:
    page = sections.page_of(gather(tiny_run))
    assert [fault for figure in page.figures() for fault in faults(figure.drawn())] == []
    assert {"win-rates", "curves", "scores", "samples", "costs", "lineage"} <= {one.name for one in page.sections}


def test_an_unfinished_run_leaves_out_what_it_has_not(tmp_path: Path) -> None:
    page = sections.page_of(gather(make_run(tmp_path / "half", finished=False)))
    assert [one.name for one in page.sections] == ["curves", "optimization", "alarms", "costs", "lineage", "reproduce"]
    assert page.word == "" and page.sentence == "" and page.gains == []
    assert "2 of 4 stages complete" in page.subtitle


def test_a_run_that_has_only_a_recipe_is_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    (folder / "events.jsonl").unlink()
    run = gather(folder)
    page = sections.page_of(replace(run, stages=[], comparison=None, pairs=[], card=None, traces=[]))
    assert [one.name for one in page.sections] == ["reproduce"]


def test_the_samples_that_changed_most_are_shown(run: Run, page: Page) -> None:
    changes = {pair.prompt: pair.change("gold") for pair in run.pairs}
    assert len(page.gains) == 3 and page.judge == "gold"
    assert page.gains[0].change == max(pair.change("gold") or 0 for pair in run.pairs)
    assert page.losses[0].change == min(pair.change("gold") or 0 for pair in run.pairs)
    assert len({example.pair.prompt for example in page.gains}) == 3 and set(changes) >= {page.gains[0].pair.prompt}


def test_judges_stand_in_a_table_with_what_is_known_of_them(run: Run, page: Page) -> None:
    (judges, facts) = only(section(page, "win-rates"), Table)
    assert isinstance(judges, Table) and isinstance(facts, Table)
    assert [row[0] for row in judges.rows] == ["gold", "reward_model *"]
    assert "length-controlled win rate" in judges.headings and "70% [60%, 80%]" in judges.rows[0]
    assert "p, corrected" in judges.headings and "prompts to settle it" not in judges.headings
    assert facts.rows[0] == ["response length", "22", "20"] and facts.rows[1] == ["responses that end", "90%", "100%"]


def test_an_endpoints_judge_has_its_costs(run: Run) -> None:
    assert run.comparison is not None
    endpoint = {"calls": 48, "model": "m", "cost": None, "position_bias": 0.031, "agreement": {"gold": 0.8}}
    page = sections.page_of(replace(run, comparison=replace(run.comparison, endpoint=endpoint)))
    table = only(section(page, "win-rates"), Table)[-1]
    assert isinstance(table, Table)
    assert table.rows == [["calls", "48"], ["model", "m"], ["position bias", "0.031"], ["agreement with gold", "0.8"]]


def test_seeds_come_first(tmp_path: Path) -> None:
    run = gather(make_seeds(tmp_path / "seeds"))
    page = sections.page_of(run)
    assert page.sentence == "better: gold prefers the policy over three seeds"
    first = section(page, "win-rates").parts[0]
    assert isinstance(first, Figures) and first.figures[0].name == "seeds"
    table = only(section(page, "win-rates"), Table)[0]
    assert isinstance(table, Table) and [row[0] for row in table.rows] == ["seed 0", "seed 1", "seed 2"]
    names = [figure.name for figure in page.figures()]
    assert {f"over-optimization-seed-{n}-ppo" for n in range(3)} <= set(names) and len(set(names)) == len(names)
    assert [fault for figure in page.figures() for fault in faults(figure.drawn())] == []


def pair(number: int, size: int) -> Pair:
    return Pair(f"p{number}", 0, "x" * size, "y", {"gold": 1.0}, {"gold": 0.0}, 1, 1)


def test_samples_that_do_not_fit_are_thinned_evenly_and_the_page_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [pair(number, 1000) for number in range(100)]
    assert sections.fitting(pairs) == pairs
    assert [one.prompt for one in sections.fitting(pairs, most=34_000)] == [f"p{number}" for number in range(0, 100, 3)]
    monkeypatch.setattr(sections, "fitting", lambda given: given[::3])
    parts = section(sections.page_of(replace(run, pairs=pairs)), "samples").parts
    assert isinstance(parts[0], Text) and parts[0].text.startswith("34 of 100 pairs fit on this page")
    assert isinstance(parts[1], Samples) and parts[1].left_out == 66


def test_a_very_long_text_is_cut_and_says_by_how_much() -> None:
    short = sections.cut(pair(0, 10))
    assert short == pair(0, 10)
    cut = sections.cut(pair(0, sections.LONGEST_TEXT + 1234))
    assert cut.policy.startswith("x" * sections.LONGEST_TEXT) and cut.policy.endswith(
        "[1,234 more characters in samples.jsonl]"
    )


def test_the_recipe_and_the_commands_can_be_copied(run: Run, page: Page) -> None:
    commands, recipe = section(page, "reproduce").parts
    assert isinstance(commands, Code) and isinstance(recipe, Code)
    assert recipe.text == (run.path / "recipe.yaml").read_text(encoding="utf-8")
    assert "rlhfctl run one.yaml --run-dir runs/one\n" in commands.text
    assert "pip install torch==2.13.0 trl==1.12.0\n" in commands.text


def test_the_commands_are_those_of_the_program(run: Run, tmp_path: Path) -> None:
    lines = [line.split() for line in sections.commands(run).splitlines() if line.startswith("rlhfctl")]
    assert [line[1] for line in lines] == ["run", "compare", "report", "export"]
    for line in lines:
        helped = run_here(line[1], "--help", cwd=tmp_path)
        assert helped.returncode == 0
        assert all(word in helped.stdout for word in line if word.startswith("--"))


def test_a_name_that_a_shell_would_read_is_quoted(run: Run) -> None:
    assert "--run-dir 'runs/a; b'" in sections.commands(replace(run, name="a; b"))


def test_a_local_build_of_torch_is_named_as_pip_finds_it(run: Run) -> None:
    stages = [
        replace(one, manifest=one.manifest.model_copy(update={"versions": {"torch": "2.13.0+cpu"}}))
        for one in run.stages
        if one.manifest is not None
    ]
    assert "pip install torch==2.13.0\n" in sections.commands(replace(run, stages=stages))
