"""Sections about training and the run itself: curves by seed, the card, alarms with causes, costs, lineage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_run import make_run, make_seeds

from rlhfctl.report import training_sections
from rlhfctl.report.content import Figures, Fold, Heading, Legend, Part, Section, Table, Text, Tokens
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.facts.records import Alarm, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gather(make_run(tmp_path_factory.mktemp("sections") / "one"))


def tables(section: Section) -> list[Table]:
    return [part for part in section.parts if isinstance(part, Table)]


def texts(parts: object) -> list[str]:
    return [part.text for part in parts if isinstance(part, Text)]  # type: ignore[attr-defined]


def test_each_stage_with_curves_has_a_heading_its_curves_and_the_rest_closed(run: Run) -> None:
    parts = training_sections.curves(run).parts
    assert [part.text for part in parts if isinstance(part, Heading)] == ["sft", "reward", "ppo"]
    (fold,) = (part for part in parts if isinstance(part, Fold))
    assert fold.title == "5 more curves of ppo"
    assert not any(isinstance(part, Legend) for part in parts)


def test_a_thinned_curve_says_so(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "long", updates=600))
    said = texts(training_sections.curves(run).parts)
    assert said and all(text.startswith("Each point is the mean of up to 3 neighbouring reports") for text in said)


def test_seeds_share_a_legend_and_a_shared_stage_has_one_curve(tmp_path: Path) -> None:
    parts = training_sections.curves(gather(make_seeds(tmp_path / "seeds"))).parts
    legend = parts[0]
    assert isinstance(legend, Legend) and legend.names == ["seed 0", "seed 1", "seed 2"]
    sft, ppo = (part.figures[0] for part in parts if isinstance(part, Figures))
    assert {row["series"] for row in sft.spec["data"]["values"]} == {"training"}
    assert {row["series"] for row in ppo.spec["data"]["values"]} == set(legend.names)


def test_over_optimization_is_said_before_it_is_drawn(run: Run) -> None:
    parts = training_sections.optimization(run).parts
    assert isinstance(parts[0], Text) and parts[0].strong and parts[0].text.startswith("PPO went too far")
    assert isinstance(parts[1], Figures) and parts[1].figures[0].name == "over-optimization-ppo"


def test_the_card_has_its_numbers_flags_and_gate(run: Run) -> None:
    section = training_sections.card(run)
    assert texts(section.parts) == [
        "The gate passed.",
        "Its base is not the policy's own: such reward models gain less in PPO (RewardBench 2).",
        "Flag flattery: a flattering phrase raises the score of 64% of the answers.",
    ]
    rows = {row[0]: row[1] for row in tables(section)[0].rows}
    assert rows["held-out accuracy"] == "74% [66%, 81%]" and rows["pairs"] == "120 of 90 prompts"
    assert rows["correlation of score with length"] == "0.21" and rows["accuracy where it is shorter"] == "65%"
    assert rows["agreement with heldout"] == "83% of pairs; rank correlation 0.77"


def test_what_another_scorer_cannot_tell_is_left_out_of_the_card(run: Run) -> None:
    assert run.card is not None
    agreement = {
        "heldout": {"pairs_same": None, "spearman": 0.5},
        "gold": {"pairs_same": 0.25, "spearman": None},
        "other": {"pairs_same": None, "spearman": None},
    }
    section = training_sections.card(replace(run, card={**run.card, "agreement": agreement, "calibration": None}))
    rows = {row[0]: row[1] for row in tables(section)[0].rows}
    assert rows["agreement with heldout"] == "rank correlation 0.50"
    assert rows["agreement with gold"] == "25% of pairs"
    assert "agreement with other" not in rows and "expected calibration error" not in rows


def test_a_gate_that_stopped_the_run_says_why(run: Run) -> None:
    card = {
        "accuracy": {"value": 0.5},
        "gate": {"passed": False, "reasons": ["accuracy is below 0.6", "too few pairs"]},
    }
    section = training_sections.card(replace(run, card=card))
    assert texts(section.parts)[0] == "The gate stopped the run: accuracy is below 0.6; too few pairs."
    assert training_sections.card(replace(run, card=None)).parts == []


def test_alarms_have_causes_and_steps(run: Run) -> None:
    (alarm, warning) = tables(training_sections.alarms(run))
    ((stage, sentence, causes, steps),) = alarm.rows
    assert stage == "ppo" and "far from the reference" in sentence and "a low kl_coef" in causes
    assert steps == "36 to 40, the end"  # KL rises by 0.3 per update: the median passes 10 there
    assert warning.rows == [["run", "the tokenizer has no pad token: one is added"]]
    past = replace(run, alarms=[Alarm("ppo", "new", 2, 7, False)], warnings=[])
    ((*_, causes, steps),) = tables(training_sections.alarms(past))[0].rows
    assert (causes, steps) == ("see docs/alarms.md", "2 to 7")


def test_no_alarm_is_said(run: Run) -> None:
    section = training_sections.alarms(replace(run, alarms=[], warnings=[]))
    assert texts(section.parts) == ["No alarm at any step."]


def test_costs_of_each_stage(run: Run) -> None:
    rows = {row[0]: row[1:] for row in tables(training_sections.costs(run))[0].rows}
    assert rows["sft"] == ["1 min 15 s", "0.60 GB", "5 thousand"]
    assert rows["ppo"] == ["1 min 15 s", "0.60 GB", "56 thousand"]
    assert rows["compare"] == ["1 min 15 s", "-", "-"]


def test_lineage_names_what_each_stage_was_made_from(run: Run) -> None:
    section = training_sections.lineage(run)
    rows = {row[0]: row for row in tables(section)[0].rows}
    sft = rows["sft"][1]
    assert len(sft) == 12 and rows["reward"][2] == f"base: sft {sft}"
    assert rows["ppo"][2] == f"base: sft {sft}, reward: reward {rows['reward'][1]}"
    assert rows["sft"][3].startswith("demonstrations ") and rows["sft"][2] == "-"
    assert texts(section.parts) == ["Versions: rlhfctl 0.1.0, torch 2.13.0, trl 1.12.0."]
    (fold,) = (part for part in section.parts if isinstance(part, Fold))
    assert fold.title == "1 note"


def test_traced_episodes_are_shown(run: Run) -> None:
    part, told = training_sections.tokens(run).parts
    assert isinstance(part, Tokens) and len(part.episodes) == 4
    assert isinstance(told, Text) and "--explain" in told.text
    nothing: list[Part] = []
    assert training_sections.tokens(replace(run, traces=[])).parts == nothing
