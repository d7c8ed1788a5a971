"""Pairs in both orders against a real server on this machine: values, failures, the budget, the cache, a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_endpoint import TIE, A, Asked, B, Said, longer_wins, serving

from rlhfctl.errors import JudgeFailed
from rlhfctl.events import Event, Working, report_progress_to
from rlhfctl.judging import client
from rlhfctl.judging.cache import Answer
from rlhfctl.judging.judge import CUT, FILTERED, UNREADABLE, Judgement, Pair, Reply, judge

PAIRS = [Pair(f"prompt {n}", f"ours {n}" + "!" * (n % 3), f"theirs {n}") for n in range(8)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)


def test_values_of_both_orders_by_hand() -> None:
    def judged(first: str | None, second: str | None) -> tuple[float | None, float | None]:
        one = Judgement((Reply(first), Reply(second)))  # type: ignore[arg-type]
        return one.value, one.for_first

    assert judged("A", "B") == (1.0, 0.0)  # the policy wins in both orders
    assert judged("B", "A") == (0.0, 0.0)
    assert judged("A", "A") == (0.5, 1.0)  # whoever stands first wins
    assert judged("B", "B") == (0.5, -1.0)
    assert judged("tie", "tie") == (0.5, 0.0)
    assert judged("A", "tie") == (0.75, 0.5)
    assert judged("tie", "A") == (0.25, 0.5)
    assert judged("A", None) == judged(None, "B") == (None, None)
    assert (Judgement(None).value, Judgement(None).for_first) == (0.5, None)


def test_each_pair_is_asked_about_in_both_orders_and_equal_responses_not_at_all(tmp_path: Path) -> None:
    pairs = [Pair("p", "long answer", "short"), Pair("p", "a", "bbb"), Pair("p", "same", "same")]
    with serving(longer_wins) as server:
        judged = judge(server.section(), tmp_path / "c.sqlite", {"main": pairs, "again": pairs[:1]})
    assert [one.value for one in judged.comparisons["main"]] == [1.0, 0.0, 0.5]
    assert [one.value for one in judged.comparisons["again"]] == [1.0]
    shown = {(asked.texts["RESPONSE A"], asked.texts["RESPONSE B"]) for asked in server.asked}
    assert shown == {("long answer", "short"), ("short", "long answer"), ("a", "bbb"), ("bbb", "a")}
    assert judged.calls == len(server.asked) == len(judged.replies) == 4


def test_questions_go_out_side_by_side(tmp_path: Path) -> None:
    with serving(lambda asked: Said(TIE, delay=0.1)) as server:
        judge(server.section(concurrency=3), tmp_path / "c.sqlite", {"main": PAIRS})
        assert server.busiest == 3


def test_an_answer_that_cannot_be_read_is_asked_for_once_more(tmp_path: Path) -> None:
    def hesitant(asked: Asked) -> str:
        return longer_wins(asked) if len(asked.body["messages"]) == 4 else "Both have their merits."

    with serving(hesitant) as server:
        judged = judge(server.section(), tmp_path / "c.sqlite", {"main": [Pair("p", "longer", "short")]})
    (one,) = judged.comparisons["main"]
    assert one.value == 1.0 and len(server.asked) == 4
    assert one.replies is not None
    assert one.replies[0].answer == Answer(A, "stop", "judge-1", 2, 200, 10)  # the tokens of both tries


FAILURES = {
    UNREADABLE: Said("I would say A, or B."),
    CUT: Said("Let me think", finish="length"),
    FILTERED: Said("", finish="content_filter"),
    "refused with status 400": Said(status=400, error="too long"),
    "without an answer": Said(status=500),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_pairs_without_an_answer_in_one_order_have_failed(tmp_path: Path, kind: str) -> None:
    """One order of two of eight pairs: both pairs are failed, the others are judged."""

    def partly(asked: Asked) -> Said | str:
        if asked.is_knock:
            return A
        bad = asked.texts["PROMPT"] in ("prompt 0", "prompt 5") and asked.texts["RESPONSE A"].startswith("ours")
        return FAILURES[kind] if bad else longer_wins(asked)

    with serving(partly) as server:
        section = server.section(max_failed=0.25, retries=1)
        judged = judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
        values = [one.value for one in judged.comparisons["main"]]
        assert [index for index, value in enumerate(values) if value is None] == [0, 5]
        assert [reply.failure for reply in judged.replies if reply.failure] == [kind] * 2
        with pytest.raises(JudgeFailed, match=r"about \d of the 8 pairs .*'main', and .*max_failed is 0\.2:") as caught:
            judge(section.model_copy(update={"max_failed": 0.2}), tmp_path / "c.sqlite", {"main": PAIRS})
    assert kind in str(caught.value) and "or raise compare.endpoint.max_failed" in str(caught.value.fix)


def test_too_many_failures_stop_before_all_are_asked(tmp_path: Path) -> None:
    pairs = [Pair(f"{n}", "a", "b") for n in range(100)]
    with serving(lambda asked: "hm") as server:
        with pytest.raises(JudgeFailed, match="for example 'hm'"):
            judge(server.section(concurrency=2), tmp_path / "c.sqlite", {"main": pairs})
        assert len(server.asked) < 60  # of 400; 11 pairs are too many


def test_a_comparison_without_one_judged_pair_is_none_whatever_the_recipe_allows(tmp_path: Path) -> None:
    def partly(asked: Asked) -> str:
        return A if asked.texts["PROMPT"] == "good" else "hm"

    comparisons = {"main": [Pair("good", "a", "b")], "both greedy": [Pair("bad", "a", "b")]}
    with (
        serving(partly) as server,
        pytest.raises(JudgeFailed, match=r"1 of the 1 pairs .*'both greedy'"),
    ):
        judge(server.section(max_failed=1.0), tmp_path / "c.sqlite", comparisons)


def test_a_server_that_refuses_everything_is_left_early(tmp_path: Path) -> None:
    pairs = [Pair(f"{n}", "a", "b") for n in range(1000)]
    with serving(lambda asked: Said(status=400, error="temperature must be 1")) as server:
        with pytest.raises(JudgeFailed, match="refuses each of the first 5 questions: status 400: temperature"):
            judge(server.section(concurrency=1), tmp_path / "c.sqlite", {"main": pairs})
        assert len(server.asked) == 5


def test_a_broken_server_is_left_and_its_answers_are_kept(tmp_path: Path) -> None:
    """It dies after 6 answers; what was said stays, and the same command asks the rest."""
    with serving(lambda asked: longer_wins(asked) if asked.number < 6 else Said(status=503)) as server:
        section = server.section(retries=1, concurrency=1)
        with pytest.raises(JudgeFailed, match="does not answer after 2 tries: status 503"):
            judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
        server.behave = longer_wins
        before = len(server.questions)
        judged = judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
    assert judged.calls == len(server.questions) - before == 16 - 6
    assert sum(reply.cached for reply in judged.replies) == 6
    assert all(one.value is not None for one in judged.comparisons["main"])


def test_nothing_is_asked_twice_and_only_what_is_new_is_asked(tmp_path: Path) -> None:
    with serving(longer_wins) as server:
        section = server.section()
        first = judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
        again = judge(section, tmp_path / "c.sqlite", {"main": [*PAIRS, Pair("new", "a", "bb")]})
        assert (first.calls, again.calls) == (16, 2)
        assert [one.value for one in again.comparisons["main"]][:8] == [one.value for one in first.comparisons["main"]]
        other = judge(section.model_copy(update={"criteria": "Another taste."}), tmp_path / "c.sqlite", {"m": PAIRS})
        assert other.calls == 16


PRICES = {"price_per_million_input": 1000.0, "price_per_million_output": 1000.0}  # 0.105 an answer: 100 + 5 tokens


def test_judging_stops_before_the_limit_of_its_cost(tmp_path: Path) -> None:
    with serving(longer_wins) as server:
        section = server.section(max_cost=2.5, max_tokens=10, concurrency=4, **PRICES)
        with pytest.raises(JudgeFailed, match="could cost more") as caught:
            judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
        asked = len(server.asked)
        assert asked > 0 and asked * 0.105 <= 2.5
        assert f"{asked * 0.105:.4g} of 2.5 is spent, and {asked} of 16 questions are answered" in str(caught.value)
        # What was answered counts again, and is not asked again: with more money the rest is.
        judged = judge(section.model_copy(update={"max_cost": 100.0}), tmp_path / "c.sqlite", {"main": PAIRS})
        assert judged.calls == 16 - asked == len(server.asked) - asked


def test_money_spent_before_counts(tmp_path: Path) -> None:
    with serving(longer_wins) as server:
        section = server.section(max_tokens=10, **PRICES)
        judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
        less = section.model_copy(update={"max_cost": 16 * 0.105})
        assert judge(less, tmp_path / "c.sqlite", {"main": PAIRS}).calls == 0
        with pytest.raises(JudgeFailed, match="max_cost"):
            judge(less, tmp_path / "c.sqlite", {"main": [*PAIRS, Pair("new", "a", "b")]})
        assert len(server.asked) == 16


def test_without_a_count_of_tokens_the_most_that_it_can_cost_is_spent(tmp_path: Path) -> None:
    with serving(lambda asked: Said(TIE, usage=None)) as server:
        section = server.section(max_cost=10.0, max_tokens=1000, concurrency=1, **PRICES)
        with pytest.raises(JudgeFailed, match="max_cost"):
            judge(section, tmp_path / "c.sqlite", {"main": PAIRS})
        assert 1 <= len(server.asked) <= 9  # each may have cost 1 and more


def test_a_killed_judging_continues_without_asking_again(tmp_path: Path) -> None:
    """The process is killed with SIGKILL in the middle of its questions."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom rlhfctl.judging.judge import Pair, judge\n"
        "from rlhfctl.recipe.sections.endpoint import Endpoint\n"
        "section = Endpoint(base_url=sys.argv[1], model='judge-1', key_env=None, concurrency=2)\n"
        "pairs = [Pair(f'{n}', 'a', 'bb') for n in range(20)]\n"
        "print(judge(section, Path(sys.argv[2]), {'main': pairs}).calls)\n"
    )
    command = [sys.executable, "-c", program]
    with serving(lambda asked: Said(longer_wins(asked), delay=0.02)) as server:
        arguments = [server.url, str(tmp_path / "c.sqlite")]
        process = subprocess.Popen([*command, *arguments], env=os.environ)
        until = time.monotonic() + 60
        while len(server.asked) < 10 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked = len(server.asked)
        assert 10 <= asked < 40
        done = subprocess.run([*command, *arguments], env=os.environ, capture_output=True, text=True, check=True)
    # The two questions that were under way at the kill may be asked again.
    assert 40 - asked <= int(done.stdout) <= 40 - asked + 2


def test_an_interrupted_judging_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(asked: Asked) -> Said:
        if asked.number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return Said(TIE, delay=0.0 if asked.number < 3 else 20.0)

    with serving(interrupt) as server:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            judge(server.section(), tmp_path / "c.sqlite", {"main": PAIRS})
        assert time.monotonic() - began < 10
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhfctl.events.WORK_QUIET_S", 0.0)
    monkeypatch.setattr("rlhfctl.events.WORK_EVERY_S", 0.0)
    events: list[Event] = []
    with serving(longer_wins) as server, report_progress_to(events.append, "compare"):
        judge(server.section(), tmp_path / "c.sqlite", {"main": PAIRS})
    told = [event for event in events if isinstance(event, Working)]
    assert {(one.stage, one.what, one.total, one.unit) for one in told} == {
        ("compare", "judging with judge-1", 16, "question")
    }
    assert [one.done for one in told] == [*range(1, 17), 16] and told[-1].over


def test_a_judge_that_says_b_gives_the_second_the_win(tmp_path: Path) -> None:
    with serving(lambda asked: B) as server:
        (one,) = judge(server.section(), tmp_path / "c.sqlite", {"main": PAIRS[:1]}).comparisons["main"]
    assert (one.value, one.for_first) == (0.5, -1.0)
