"""Tables of results as text, at usual widths of terminals."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console, RenderableType

from rlhfctl.dashboard.terminal.tables import comparison_table, not_independent, runs_table, samples_view


def text(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    rendered = capture.get()
    assert all(len(line) <= width for line in rendered.splitlines())
    return "\n".join(line.rstrip() for line in rendered.splitlines())


def judge(**other: Any) -> dict[str, Any]:
    return {
        "policy_mean": 0.71,
        "reference_mean": 0.46,
        "delta": 0.25,
        "delta_ci95": [0.21, 0.29],
        "win_rate": 0.78,
        "win_rate_ci95": [0.72, 0.83],
        "ties": 12,
        "p_value": 1e-9,
        "independent": True,
        **other,
    }


def compare(**other: Any) -> dict[str, Any]:
    return {
        "verdict": "better",
        "primary_judge": "gold",
        "independent": True,
        "prompts": 300,
        "samples_per_prompt": 4,
        "temperature": 1.0,
        "judges": {
            "reward_model": judge(
                policy_mean=1.92, reference_mean=-0.31, delta=2.23, independent=False, p_value=0.0312
            ),
            "gold": judge(),
        },
        "kl_mean": 4.213,
        "length_policy_mean": 18.23,
        "length_reference_mean": 22.1,
        "end_rate_policy": 0.973,
        "end_rate_reference": 0.81,
        "distinct_2_policy": 0.412,
        "distinct_2_reference": 0.431,
        **other,
    }


def one_line(rendered: str) -> str:
    return " ".join(rendered.split())


def test_the_verdict_in_plain_words_comes_first() -> None:
    lines = text(comparison_table(compare()), 200).splitlines()
    assert lines[0] == (
        "better: gold prefers the policy on 78% of 300 prompts at temperature 1 (95% interval 72% to 83%);"
        " no controls were run: a lower temperature alone may explain it"
    )
    assert lines[1] == "mean 0.46 -> 0.71 (+0.25, 0.21 to 0.29)"


def judged(**other: Any) -> dict[str, Any]:
    """The block `endpoint` of a comparison."""
    return {
        "model": "judge-1", "pairs": 100, "identical": 0, "failed": 0, "calls": 200, "cached": 0, "input_tokens": 61234,
        "output_tokens": 1400, "cost": 0.0312, "position_bias": 0.12, "position_bias_ci95": [0.03, 0.2],
        "consistent": 0.84, "agreement": {"gold": 0.9, "mine:f": None}, "agreement_pairs": {"gold": 60, "mine:f": 0},
    } | other  # fmt: skip


def test_the_endpoint_says_what_it_did_and_cost() -> None:
    said = one_line(text(comparison_table(compare(endpoint=judged()))))
    assert said.endswith(
        "endpoint: judge-1 judged 100 of 100 pairs, 200 answers, 61,234 tokens read and 1,400 written, cost 0.0312, "
        "position bias +0.12 (95% interval +0.03 to +0.20), the same winner in both orders for 84%, "
        "agrees with gold on 90% of 60 pairs"
    )
    unknown = {"input_tokens": None, "output_tokens": None, "cost": None, "position_bias": None, "agreement": {}}
    said = one_line(text(comparison_table(compare(endpoint=judged(**unknown, identical=3, failed=2, cached=5)))))
    assert said.endswith(
        "endpoint: judge-1 judged 98 of 100 pairs (3 with equal responses; 2 without a usable answer are left out), "
        "200 answers and 5 from before, cost unknown"
    )
    assert "endpoint" not in text(comparison_table(compare()))


def test_a_judge_that_left_prompts_out_counts_its_own() -> None:
    lines = text(comparison_table(compare(judges={"gold": judge(prompts=288)})), 200).splitlines()
    assert "78% of 288 prompts" in lines[0]


def test_worse_is_told_from_the_references_side() -> None:
    gold = judge(win_rate=0.3, win_rate_ci95=[0.25, 0.36], delta=-0.2, delta_ci95=[-0.25, -0.15], policy_mean=0.26)
    rendered = text(comparison_table(compare(verdict="worse", judges={"gold": gold})))
    assert one_line(rendered).startswith(
        "worse: gold prefers the reference on 70% of 300 prompts at temperature 1 (95% interval 64% to 75%);"
    )
    assert "mean 0.46 -> 0.26 (-0.20, -0.25 to -0.15)" in rendered
    assert "30% [25, 36]" in rendered  # the table stays with the policy


def test_undecided_does_not_round_a_bound_onto_chance() -> None:
    gold = judge(win_rate=0.52, win_rate_ci95=[0.496, 0.55], delta=0.003, delta_ci95=[-0.001, 0.007])
    rendered = one_line(text(comparison_table(compare(verdict="undecided", judges={"gold": gold}))))
    wanted = "undecided: gold prefers the policy on 52% of 300 prompts at temperature 1 (95% interval 49.6% to 55%)"
    assert rendered.startswith(wanted)
    assert "(+0.003, -0.001 to 0.007)" in rendered


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_a_judge_primary_first_none_wrapped(width: int) -> None:
    lines = text(comparison_table(compare()), width).splitlines()
    gold = next(i for i, line in enumerate(lines) if line.startswith("gold "))
    assert one_line(lines[gold]) == "gold 0.46 -> 0.71 +0.25 [0.21, 0.29] 78% [72, 83] <0.001"
    assert lines[gold + 1].split()[:4] == ["reward_model*", "-0.31", "->", "1.92"]
    assert lines[gold + 1].split()[-1] == "0.031"
    other_first = text(comparison_table(compare(primary_judge="reward_model")), width)
    assert other_first.index("\nreward_model*") < other_first.index("\ngold ")


CONTROLLED = {"length_controlled_win_rate": 0.71, "length_controlled_win_rate_ci95": [0.65, 0.77]}
EQUALLY = "the win rate if both sides' responses were equally long"


@pytest.mark.parametrize(
    ("width", "cells", "note"),
    [
        (120, "78% [72, 83] 71% [65, 77] <0.001", f"LC: {EQUALLY}"),
        (80, "78% [72, 83] 71% <0.001", f"LC: {EQUALLY}"),
        (72, "78% [72, 83] <0.001", f"{EQUALLY}: gold 71% [65, 77]"),
    ],
)
def test_the_length_controlled_win_rate_has_a_column_where_there_is_room(width: int, cells: str, note: str) -> None:
    judges = {"reward_model": judge(independent=False, length_controlled_win_rate=None), "gold": judge(**CONTROLLED)}
    rendered = text(comparison_table(compare(judges=judges)), width)
    lines = [one_line(line) for line in rendered.splitlines()]
    assert f"gold 0.46 -> 0.71 +0.25 [0.21, 0.29] {cells}" in lines
    assert note in one_line(rendered)
    assert "LC" not in text(comparison_table(compare()), width)  # a comparison of an earlier version


def test_a_win_rate_at_equal_length_that_is_not_known_says_why() -> None:
    unknown = judge(length_controlled_win_rate=None, length_control_missing="nearly all are longer")
    rendered = text(comparison_table(compare(judges={"gold": unknown})))
    assert "no win rate at equal length: nearly all are longer" in rendered
    assert "LC" not in rendered


def test_a_win_that_length_explains_is_said_above_the_table() -> None:
    gold = judge(**CONTROLLED | {"length_controlled_win_rate": 0.41})
    rendered = one_line(text(comparison_table(compare(judges={"gold": gold}))))
    warning = "gold prefers the policy on 78% of the prompts, but at equal length the reference on 59%"
    assert rendered.index(warning) < rendered.index("ref -> policy")


def test_greedy_has_rows_of_its_own_and_may_lack_values() -> None:
    rendered = text(comparison_table(compare(greedy={"gold": {"delta": 0.3, "win_rate": 0.8}})))
    after = rendered[rendered.index("greedy:") :].splitlines()
    assert after[1].split() == ["gold", "-", "+0.30", "80%", "-"]
    assert "greedy" not in text(comparison_table(compare(greedy=None)))


def test_what_the_judges_do_not_see() -> None:
    rendered = [one_line(line) for line in text(comparison_table(compare())).splitlines()]
    assert "response length, tokens 18.2 22.1" in rendered
    assert "responses that end 97% 81%" in rendered
    assert "distinct 2-grams 41% 43%" in rendered
    assert "KL from the reference 4.21" in rendered
    assert "KL" not in text(comparison_table(compare(kl_mean=None)))


def test_a_verdict_that_is_not_independent_says_so() -> None:
    rest = {"primary_judge": "reward_model", "independent": False}
    assert not_independent("reward_model") in one_line(text(comparison_table(compare(**rest))))
    assert (
        "independent evidence"
        not in one_line(text(comparison_table(compare()))).replace("* what PPO trained", "")[:300]
    )
    by_judge = compare(primary_judge="reward_model")
    del by_judge["independent"]
    assert not_independent("reward_model") in one_line(text(comparison_table(by_judge)))


def test_a_reward_function_is_not_called_a_model() -> None:
    report = compare(primary_judge="reward_function", independent=False, judges={"reward_function": judge()})
    rendered = one_line(text(comparison_table(report)))
    assert "rests on the reward function that PPO trained against" in rendered
    assert "reward model" not in rendered


def test_names_of_judges_are_not_markup() -> None:
    rendered = text(comparison_table(compare(primary_judge="[red]g", judges={"[red]g": judge()})))
    assert rendered.startswith("better: [red]g prefers")
    assert rendered.count("[red]g") == 2


ROW = {
    "prompt": "a [red]lamp[/red]\nsecond line",
    "policy": "[bold]good\n\nlamp " + "word " * 20,
    "reference": "\x1b[31mbad :smile:",
    "policy_scores": {"gold": 0.9123, "[x]": 2.0},
    "reference_scores": {"gold": 0.3},
}


@pytest.mark.parametrize("width", [80, 120])
def test_samples_stand_side_by_side_and_literally(width: int) -> None:
    rendered = text(samples_view([ROW]), width)
    lines = rendered.splitlines()
    assert "a [red]lamp[/red]" in lines
    assert "second line" in lines
    body = next(line for line in lines if line.startswith("[bold]good"))
    assert body.index("\\x1b[31mbad :smile:") == pytest.approx(width // 2, abs=1)
    assert any(line.startswith("gold 0.912  [x] 2") and "gold 0.3" in line for line in lines)


def test_samples_stop_at_n_and_show_what_is_empty() -> None:
    rendered = text(samples_view([{"prompt": str(i), "policy": "", "reference": None} for i in range(6)], n=2))
    assert "prompt 2 of 2" in rendered
    assert "prompt 3" not in rendered
    assert rendered.count("(empty)") == 2
    assert rendered.count("(none)") == 2
    assert text(samples_view([])) == "no samples"


def test_runs_side_by_side() -> None:
    rows = [
        {
            "run": "[red]a",
            "verdict": "better",
            "primary_judge": "gold",
            "delta": 0.25,
            "win_rate": 0.78,
            "kl": 4.213,
            "control_win_rate": 0.66,
            "greedy_win_rate": 0.7,
            "length": 18.23,
        },
        {"run": "b", "verdict": "worse", "primary_judge": "rm", "delta": -2.5, "win_rate": 0.2, "independent": False},
        {"run": "c", "delta": 0.25, "delta_ci95": [0.21, 0.29], "win_rate": 0.6, "win_rate_ci95": [0.55, 0.65]},
    ]
    lines = [line.split() for line in text(runs_table(rows)).splitlines()]
    assert ["[red]a", "better", "gold", "+0.25", "78%", "66%", "70%", "4.21", "18.2"] in lines
    assert ["b", "worse", "rm*", "-2.50", "20%", "-", "-", "-", "-"] in lines
    assert ["c", "-", "-", "+0.25", "60%", "[55,", "65]", "-", "-", "-", "-"] in lines
    assert lines[-1][0] == "*"
    assert "*" not in text(runs_table(rows[:1]))


@pytest.mark.parametrize("width", [80, 120])
def test_no_row_breaks_however_long_its_numbers(width: int) -> None:
    tight = judge(policy_mean=-0.028, reference_mean=-0.007, delta=-0.021, delta_ci95=[-0.031, -0.012])
    control = {"kind": "equal_temperature", "name": "both at 0.8", "temperature": 0.8, "n": 1}
    matched = {"kind": "matched_entropy", "name": "matched entropy", "temperature": 0.7312, "n": 1}
    rows = [one | {"judges": {"reward_function": tight | {"verdict": "undecided"}}} for one in (control, matched)]
    report = compare(primary_judge="reward_function", judges={"reward_function": tight}, controls=rows)
    lines = text(comparison_table(report), width).splitlines()
    cells = "-0.021 [-0.031, -0.012] 78% [72, 83]"
    assert [one_line(line) for line in lines if cells in one_line(line)] == [
        f"reward_function -0.007 -> -0.028 {cells} <0.001",
        f"both at 0.8 {cells} undecided",
        f"matched entropy, ref at 0.73 {cells} undecided",
    ]
