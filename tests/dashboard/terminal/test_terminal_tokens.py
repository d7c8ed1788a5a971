"""A traced episode on a terminal: a table that fits 80 and 200 columns, coloured text and its marks, explanations."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from rlhfctl.dashboard.explain import Losses
from rlhfctl.dashboard.formulas import Step
from rlhfctl.dashboard.terminal import tokens as views
from rlhfctl.dashboard.terminal.draw import ASCII, UNICODE
from rlhfctl.dashboard.traces import TokenRow, token_rows


def rows(count: int = 3, epochs: int = 4) -> list[TokenRow]:
    texts = [f" word{index}" for index in range(count)]
    numbers = [index - 1.0 for index in range(count)]
    epoch = {"logprobs": numbers, "ratio": [1.25] * count, "clipped": [True] + [False] * (count - 1)}
    return token_rows(
        {
            "tokens": texts, "response": "".join(texts), "policy_logprobs": numbers, "reference_logprobs": numbers,
            "kl": [0.0, 0.1, 0.3][:count], "rewards": [*numbers, 2.0], "values": [*numbers, 1.0],
            "deltas": [*numbers, 1.0], "advantages": [-1.5, 0.1, 1.0][:count], "returns": [*numbers, 2.0],
            "epochs": [epoch | {"values": [*numbers, 1.0]}] * epochs,
        }
    )  # fmt: skip


def printed(part: RenderableType, width: int, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(part)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2), (40, 6)])
def test_the_table_goes_on_below_where_it_is_too_wide(width: int, tables: int) -> None:
    lines = printed(views.table(rows(), width, UNICODE), width)
    headings = [line for line in lines if line.startswith("t  token")]
    assert len(headings) == tables and all(len(line) <= width for line in lines)
    named = " ".join(headings).split()
    for name in ("p", "q", "KL", "reward", "V", "delta", "A", "return"):
        assert name in named
    assert [name for name in named if name.isdecimal()] == ["1", "2", "3", "4"]  # ratio 1 to 4
    first = [line for line in lines if line.startswith("0  \u00b7word0")]
    assert len(first) == tables and "..." not in "".join(lines)
    assert sum(line.count("1.250*") for line in first) == 4  # clipped in each epoch
    assert len([line for line in lines if "(after the end)" in line]) == tables


def test_a_table_in_ascii_and_without_a_critic() -> None:
    plain = [row for row in rows() if row.token is not None]
    without = [TokenRow(**(vars(row) | {"value": None, "delta": None, "returned": None})) for row in plain]
    text = "\n".join(printed(views.table(without, 200, ASCII), 200))
    assert text.isascii() and "_word0" in text and "delta" not in text and "critic" not in text


def test_markup_and_control_characters_of_a_token_are_shown_not_obeyed() -> None:
    row = TokenRow(**(vars(rows()[0]) | {"text": "[bold]\x1b[2J", "token": "x"}))
    text = "\n".join(printed(views.table([row], 200, UNICODE), 200))
    assert "[bold]\\x1b[2J" in text and "\x1b" not in text


def test_text_is_coloured_by_advantage_or_kl() -> None:
    by_advantage = printed(views.text(rows(), "advantage", 80, UNICODE, colours=True), 80, force_terminal=True,
                           color_system="truecolor")  # fmt: skip
    orange, blue = "48;2;230;97;0", "48;2;125;180;230"  # strongest below 0; two thirds above
    assert orange in by_advantage[0].split("word0")[0] and blue in by_advantage[0].split("word1")[1]
    by_kl = printed(views.text(rows(), "kl", 80, UNICODE, colours=True), 80, force_terminal=True,
                    color_system="truecolor")  # fmt: skip
    assert orange not in by_kl[0] and "48;2;61;139;212" in by_kl[0]
    assert "KL from 0 to 0.3" in by_kl[-1]


def test_without_colours_marks_stand_below_the_tokens() -> None:
    lines = printed(views.text(rows(), "advantage", 80, ASCII, colours=False), 80)
    assert lines[0] == " word0 word1 word2"
    assert lines[1] == " -3          +2"
    assert "thirds of the largest, 1.5" in lines[-1]
    narrow = printed(views.text(rows(), "kl", 8, ASCII, colours=False), 8)
    assert narrow[:6] == [" word0", "", " word1", " +1", " word2", " +3"]


def test_a_response_whose_numbers_are_all_0_has_no_marks() -> None:
    zero = [TokenRow(**(vars(row) | {"kl": 0.0})) for row in rows() if row.token is not None]
    lines = printed(views.text(zero, "kl", 80, ASCII, colours=False), 80)
    assert lines[1] == "" and "KL from 0 to 0" in lines[-1]


def test_an_explanation_says_what_agrees_and_what_does_not() -> None:
    steps = [
        Step("delta", "r - V", "3 - 1", 2.0, 2.0, "a paper, eq. 1"),
        Step("  if lam were 0", "delta", "2", 2.0, 2.0, "", "as delta"),
        Step("return", "A + V", "1 + 1", 2.0, 2.5, ""),
        Step("objective", "A", "1", 1.0, None, ""),
    ]
    lines = printed(views.explanation(rows()[0], steps), 100)
    assert lines[0] == "position 0: token ' word0'"
    text = "\n".join(lines)
    assert "delta = r - V\n    = 3 - 1 = 2   (as recorded)\n    a paper, eq. 1" in text
    assert "    = 2   (the same as delta)" in text
    assert "= 1 + 1 = 2   (recorded: 2.5, which differs)" in text
    assert text.endswith("objective = A\n    = 1")
    assert printed(views.explanation(rows()[-1], []), 100) == ["position 3: the state after the end"]


def test_losses_beside_the_logged_ones_or_why_there_are_none() -> None:
    computed = {"policy_loss": 0.5, "value_loss": 0.25, "ratio": 1.0}
    logged = {"policy_loss": 0.5, "value_loss": 0.3}
    found = Losses(2, 2, computed, logged, "policy_loss + 0.1 x value_loss (vf_coef)")
    lines = printed(views.losses(found), 100)
    assert [" ".join(line.split()) for line in lines[2:5]] == [
        "policy_loss 0.5 0.5 the same", "value_loss 0.25 0.3 differs", "ratio 1 not logged",
    ]  # fmt: skip
    assert lines[-1] == "each optimizer step lowers policy_loss + 0.1 x value_loss (vf_coef)"
    few = " ".join(" ".join(printed(views.losses(Losses(4, 64, {}, {}, "")), 100)).split())
    assert "4 of 64 episodes are traced" in few and "ppo.trace_episodes: 64" in few
    assert "an older version" in " ".join(printed(views.losses(Losses(4, 4, {}, {}, "")), 100))


def test_the_heading_says_which_episode_it_is_and_how_it_ended() -> None:
    record = {"update": 10, "episode": 2, "prompt": "a [b]", "ended": False, "score": 0.5, "raw_score": 1.5,
              "kl": [0.25, 0.5], "ids": [1, 2]}  # fmt: skip
    lines = printed(views.heading("seed-1/ppo", record, 4), 100)
    assert lines == [
        "seed-1/ppo, update 10, episode 2 (traced: 0 to 3)",
        "prompt a [b]",
        "2 tokens; was cut off; score 0.5 (the reward gave 1.5); KL 0.75 nats",
    ]


def test_the_list_has_a_row_per_update() -> None:
    found = [{"stage": "ppo", "update": 10, "episodes": 4, "score": 0.25, "kl": 1.5, "length": 12.0}]
    lines = printed(views.listing(found), 100)
    assert lines[1].split() == ["ppo", "10", "4", "0.25", "1.5", "12"]
