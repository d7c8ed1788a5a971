"""The controls of a comparison: which samples each row compares, and a run with all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhfctl.recipe.schema import Compare, Controls
from rlhfctl.stages.answers import Answers, Drawn
from rlhfctl.stages.controls import best_of_n_kl, control_rows, means
from rlhfctl.stats.paired import compare_paired, verdict
from rlhfctl.verdict import COLDER, FAIR, overall, sentence

PROMPTS = 3


def drawn(entropy: float | None) -> Drawn:
    return Drawn([[] for _ in range(PROMPTS)], [[] for _ in range(PROMPTS)], entropy)


def rows_of(section: Compare, policy: dict[float, Any], reference: dict[float, Any], **given: Any) -> dict[str, Any]:
    """The rows by name; each judge's entry is the two lists of values that were compared."""
    answers = Answers(
        {one: drawn(1.0) for one in policy},
        {one: drawn(2.0) for one in reference},
        1.0,
        given.get("matched"),
        None,
        None,
    )
    scorer = given.get("scorer")
    both = {"gold": policy, "proxy": policy}, {"gold": reference, "proxy": given.get("proxy", reference)}
    found = control_rows(section, answers, *both, scorer, lambda ours, theirs: {"pair": (ours, theirs)})  # type: ignore[arg-type]
    return {row["name"]: row for row in found}


def test_each_row_compares_what_its_name_says_on_equally_many_samples() -> None:
    section = Compare(
        samples_per_prompt=4,
        controls=Controls(temperatures=[0.6, 0.0], samples_per_prompt=2, best_of_n=0),
    )
    policy = {1.0: [[1, 2, 30, 40]] * PROMPTS, 0.6: [[5, 6]] * PROMPTS, 0.0: [[7]] * PROMPTS}
    reference = {
        1.0: [[8, 9, 80, 90]] * PROMPTS,
        0.6: [[10, 12]] * PROMPTS,
        0.0: [[13]] * PROMPTS,
        0.7: [[14, 18]] * PROMPTS,
    }
    rows = rows_of(section, policy, reference, matched=0.7)
    pairs = {name: tuple(side[0] for side in row["judges"]["gold"]["pair"]) for name, row in rows.items()}
    assert pairs == {
        "both at 0.6": (5.5, 11.0),
        "both greedy": (7, 13),
        "matched entropy": (1.5, 16.0),  # the policy's first two samples at temperature 1
        "reference at 0.6": (1.5, 11.0),
        "reference greedy": (1.5, 13),
    }
    assert (rows["matched entropy"]["entropy_policy"], rows["matched entropy"]["entropy_reference"]) == (1.0, 2.0)
    assert [row["temperature"] for row in rows.values()] == [0.6, 0.0, 0.7, 0.6, 0.0]


def test_best_of_n_is_chosen_by_what_ppo_trained_on_and_judged_by_all() -> None:
    section = Compare(samples_per_prompt=3, controls=Controls(temperatures=[], best_of_n=3))
    policy, reference = {1.0: [[1, 2, 3]] * PROMPTS}, {1.0: [[10, 20, 30], [1, 2, 3], [7, 8, 9]]}
    proxy = {1.0: [[5, 9, 1], [9, 5, 1], [1, 5, 9]]}
    row = rows_of(section, policy, reference, proxy=proxy, scorer="proxy")["reference, best of 3"]
    assert row["judges"]["gold"]["pair"] == ([2, 2, 2], [20, 1, 9])
    assert row["judges"]["proxy"]["pair"][1] == [9, 9, 9]
    assert row["kl"] == pytest.approx(math.log(3) - 2 / 3)
    assert (row["n"], row["scorer"]) == (3, "proxy")
    assert rows_of(section, policy, reference) == {}  # no scorer that PPO trained on, nothing else asked for


def test_best_of_n_kl_by_hand() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(0.193147, abs=1e-6)


def test_defaults_are_fitted_to_a_colder_or_smaller_comparison() -> None:
    small = Compare(temperature=0.7, samples_per_prompt=1).resolved_controls
    assert small == Controls(temperatures=[0.6, 0.0], samples_per_prompt=1, best_of_n=0)
    # 2 x (main + greedy), both at 0.6, the reference at matched entropy
    assert Compare(temperature=0.7, samples_per_prompt=1).responses_per_prompt == 2 * 2 + 2 + 1
    assert Compare(controls=None, samples_per_prompt=4).responses_per_prompt == 10


def test_the_run_of_the_whole_loop_has_all_controls(tiny_run: Path) -> None:
    report = json.loads((tiny_run / "compare" / "compare.json").read_text())
    rows = {row["name"]: row for row in report["controls"]}
    named = ["both at 0.8", "both at 0.6", "both greedy"]
    named += ["matched entropy"] if "matched entropy" in rows else []
    named += ["reference at 0.8", "reference at 0.6", "reference greedy"]
    assert list(rows) == [*named, "reference, best of 2"]
    assert report["verdict_basis"] == ["main", *named]
    for row in rows.values():
        assert set(row["judges"]) == {"gold", "reward_model"}
        assert {"name", "temperature", "n", "judges"} <= row.keys()
    if "matched entropy" in rows:
        matched = rows["matched entropy"]
        assert matched["entropy_reference"] == pytest.approx(matched["entropy_policy"], rel=0.11)
    assert {name: one["delta"] for name, one in report["greedy"].items()} == {
        name: one["delta"] for name, one in rows["both greedy"]["judges"].items()
    }
    assert report["sentence"].startswith(f"{report['verdict']}: ")
    events = [json.loads(line) for line in (tiny_run / "events.jsonl").read_text().splitlines()]
    said = [event for event in events if event["event"] == "verdict"]
    assert [(event["verdict"], event["sentence"]) for event in said] == [(report["verdict"], report["sentence"])]
    sampled = [event for event in events if event["event"] == "progress" and event["stage"] == "compare"]
    assert max(event["step"] for event in sampled) <= sampled[-1]["total"] == 12 * (2 * 3 + 2 * 2 * 2 + 2)


def test_a_gain_that_a_colder_reference_has_too_is_not_called_better() -> None:
    """Gold scores of a policy that was once announced as 85% better: a first world in which the reference's likeliest
    text was good already. At temperature 1 it wins; greedily it loses, and a colder reference beats it.
    """
    kept = json.loads((Path(__file__).parent / "data" / "old_world.json").read_text())
    sides = {side: {float(one): scores for one, scores in kept[side].items()} for side in ("policy", "reference")}
    section = Compare(judges=["gold"], primary_judge="gold", batch_size=300)

    def compared(ours: Any, theirs: Any) -> dict[str, Any]:
        result = compare_paired(ours, theirs, seed=0, samples=2_000)
        interval = [result.win_rate_ci95.low, result.win_rate_ci95.high]
        return {
            "win_rate": result.win_rate,
            "win_rate_ci95": interval,
            "delta": result.delta,
            "verdict": verdict(result),
        }

    answers = Answers(
        {one: drawn(1.0) for one in sides["policy"]}, {one: drawn(1.0) for one in sides["reference"]},
        1.0, kept["matched"], None, None,
    )  # fmt: skip
    gold = {side: {"gold": scores} for side, scores in sides.items()}
    rows = list(control_rows(section, answers, gold["policy"], gold["reference"], None, compared))  # type: ignore[arg-type]
    found = {row["name"]: row["judges"]["gold"]["verdict"] for row in rows}
    main = compared(means(sides["policy"][1.0]), means(sides["reference"][1.0]))
    assert main["verdict"] == "better" and main["win_rate"] > 0.75  # what used to be the whole verdict
    assert found == {
        "both at 0.8": "better",
        "both at 0.6": "better",
        "both greedy": "worse",
        "matched entropy": "better",
        "reference at 0.8": "undecided",
        "reference at 0.6": "worse",
        "reference greedy": "worse",
    }
    fair = [row["judges"]["gold"]["verdict"] for row in rows if row["kind"] in FAIR]
    colder = [row["judges"]["gold"]["verdict"] for row in rows if row["kind"] == COLDER]
    report = {"verdict": overall(main["verdict"], fair, colder), "primary_judge": "gold", "prompts": 300}
    report |= {"temperature": 1.0, "judges": {"gold": main}, "controls": rows}
    assert report["verdict"] == "mixed"
    assert "worse when both are greedy (39%)" in sentence(report)
    assert "no better than the reference at temperature 0.8" in sentence(report)
