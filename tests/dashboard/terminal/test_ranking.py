"""The view of a ranking as text, at 80 characters."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rlhfctl.dashboard.terminal.ranking import ranking_view


def text(ranking: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(ranking_view(ranking))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert all(len(line) <= width for line in lines)
    return lines


def ranking(count: int, **other: Any) -> dict[str, Any]:
    """A ranking of `count` policies; the one in front always wins 75%, and p is 0.0125 everywhere."""
    places = range(count)
    return {
        "judge": "gold",
        "prompts": 300,
        "ranking": [
            {"name": f"runs/[red]{i}", "kind": "policy", "strength": 0.5 - i, "strength_ci95": [0.25 - i, 0.75 - i]}
            for i in places
        ],
        "win_rates": [[None if i == j else 0.75 if i < j else 0.25 for j in places] for i in places],
        "p_adjusted": [[None if i == j else 0.0125 for j in places] for i in places],
        "pairs": [{}] * (count * (count - 1) // 2),
        "notes": ["one note"],
        **other,
    }


def test_strengths_come_first_then_who_beats_whom() -> None:
    lines = text(ranking(3))
    assert lines[0] == "by gold, on 300 prompts"
    rows = [line.split() for line in lines]
    assert ["1", "runs/[red]0", "+0.50", "[0.25,", "0.75]"] in rows
    assert ["3", "runs/[red]2", "-1.50", "[-1.75,", "-1.25]"] in rows
    assert rows.index(["1", "runs/[red]0", "+0.50", "[0.25,", "0.75]"]) < rows.index(["1", "-", "75%", "75%"])
    assert rows[rows.index(["2", "25%", "-", "75%"]) + 1] == ["0.013", "0.013"]
    assert any("corrected for 3 pairs (Holm)" in line for line in lines)
    assert lines[-1] == "one note"


def test_small_p_and_pairs_that_did_not_meet() -> None:
    unmet = ranking(2, win_rates=[[None, None], [None, None]], p_adjusted=[[None, None], [None, None]])
    assert ["1", "-", "-"] in [line.split() for line in text(unmet)]
    sure = ranking(2, p_adjusted=[[None, 0.0004], [0.0004, None]])
    assert [line.split() for line in text(sure)].count(["<0.001"]) == 2


def test_many_policies_fit_a_terminal() -> None:
    lines = text(ranking(17))
    headings = [line.split() for line in lines if line.split() and all(word.isdigit() for word in line.split())]
    assert headings == [[str(i) for i in range(1, 9)], [str(i) for i in range(9, 17)], ["17"]]
