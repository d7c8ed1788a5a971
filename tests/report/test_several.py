"""The page of several runs: verdicts, what differs, and which comparisons are fair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import make_run, make_seeds
from schema import faults

from rlhfctl.report import several
from rlhfctl.report.content import Fold, Legend, Table, Text
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("several")
    return [
        gather(make_run(folder / "low", settings={"kl_coef": 0.05}, gain=0.2, prompts=40)),
        gather(make_run(folder / "high", settings={"kl_coef": 0.2, "learning_rate": 0.5}, gain=0.8, prompts=40)),
        gather(make_seeds(folder / "seeds")),
        gather(make_run(folder / "half", finished=False)),
    ]


def test_every_figure_is_vega_lite_with_a_name_of_its_own(runs: list[Run]) -> None:
    page = several.page_of_several(runs)
    names = [figure.name for figure in page.figures()]
    assert len(set(names)) == len(names) and "pareto" in names
    assert [fault for figure in page.figures() for fault in faults(figure.drawn())] == []


def test_the_surest_run_is_named(runs: list[Run]) -> None:
    page = several.page_of_several(runs[:2])
    assert page.title == "low and high" and page.headline.startswith("high is the surest to win: at least ")
    assert several.page_of_several(runs[3:] * 2).headline == "none of these runs has a verdict yet"
    assert several.page_of_several(runs).title == "4 runs"


def test_only_what_differs_is_listed(runs: list[Run]) -> None:
    rows = {row[0]: row[1:] for row in several.differences(runs[:2])}
    assert rows == {"ppo.learning_rate": ["0.01", "0.5"], "ppo.kl_coef": ["0.05", "0.2"]}
    assert several.differences([runs[0], runs[0]]) == []


def test_a_key_that_one_recipe_lacks_and_data_that_changed_are_listed(runs: list[Run]) -> None:
    other = replace(runs[0], recipe={**runs[0].recipe, "newer": {"key": 1}})
    assert several.differences([runs[0], other]) == [["newer.key", "not set", "1"]]
    stages = [
        replace(one, manifest=one.manifest.model_copy(update={"inputs": {"data.prompts": "f" * 64}}))
        if one.kind == "compare" and one.manifest is not None
        else one
        for one in runs[0].stages
    ]
    other = replace(runs[0], stages=stages)
    ((key, first, second),) = several.differences([runs[0], other])
    assert key == "data.prompts (content)" and first != second == "f" * 12
    checks = {check.title: check for check in several.page_of_several([runs[0], other]).checks}
    assert checks["Test prompts"].mark == "bad"


def test_unfair_comparisons_are_marked(runs: list[Run]) -> None:
    fair = {check.title: check.mark for check in several.page_of_several(runs[:2]).checks}
    assert fair == {
        "Test prompts": "good",
        "Judge": "good",
        "Temperature": "good",
        "Difference between runs": "unknown",
    }
    found = runs[1].comparison
    assert found is not None
    main = replace(found.judges["reward_model"], judge="reward_model")
    other = replace(
        runs[1], comparison=replace(found, primary="reward_model", judges={"reward_model": main}, temperature=0.5)
    )
    unfair = {check.title: check.mark for check in several.page_of_several([runs[0], other]).checks}
    assert unfair["Judge"] == unfair["Temperature"] == unfair["Independent judge"] == "bad"


def test_each_run_has_a_row_and_a_fold(runs: list[Run]) -> None:
    page = several.page_of_several(runs)
    parts = {section.name: section.parts for section in page.sections}
    (table,) = parts["verdicts"]
    assert isinstance(table, Table)
    assert [row[:2] for row in table.rows] == [
        ["low", runs[0].comparison.verdict], ["high", "better"], ["seeds", "better"], ["half", "unfinished"],  # type: ignore[union-attr]
    ]  # fmt: skip
    folds = [part for part in parts["runs"] if isinstance(part, Fold)]
    assert [fold.title for fold in folds] == ["low", "high", "seeds", "half"]
    assert isinstance(folds[0].parts[0], Text) and folds[0].parts[0].text == runs[0].comparison.sentence  # type: ignore[union-attr]


def test_curves_of_all_runs_share_a_legend(runs: list[Run]) -> None:
    page = several.page_of_several(runs)
    (curves,) = (section for section in page.sections if section.name == "curves")
    legend = curves.parts[0]
    assert isinstance(legend, Legend)
    assert legend.names == ["low", "high", "seeds", "half", "seeds, seed 0", "seeds, seed 1", "seeds, seed 2"]


def test_runs_of_the_same_name_are_told_apart(runs: list[Run]) -> None:
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/b/y/run")]
    assert several.labels([replace(runs[0], path=path) for path in paths]) == ["a/x/run", "b/x/run", "b/y/run"]
    assert several.labels(runs[:2]) == ["low", "high"]
    assert several.labels([runs[0], runs[0]])[1].endswith("low (2)")


def test_equal_recipes_are_said_to_be_equal(runs: list[Run]) -> None:
    page = several.page_of_several([runs[0], replace(runs[0], path=Path("/elsewhere/copy"))])
    (differs,) = (section for section in page.sections if section.name == "differences")
    assert [part.text for part in differs.parts if isinstance(part, Text)] == ["The recipes are equal."]
