"""A reward server on this machine that is slow, wrong, overloaded, dead or locked, and the requests that reach it."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from reward_server import KEY, Answer, Behave, Request, serving
from small_episodes import episodes

from rlhfctl.errors import RewardFailed, RlhfctlError
from rlhfctl.recipe.sections.server import Server
from rlhfctl.rewards import server as module
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.server import ServerReward


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)


def lengths(asked: Request) -> Answer:
    return Answer([len(text) for text in asked.body["completions"]])


def first_then(*faults: Answer, last: Behave = lengths) -> Behave:
    """Behave as `faults` say, one after the other, then as `last`."""
    return lambda asked: faults[asked.number] if asked.number < len(faults) else last(asked)


# ---------------------------------------------------------------- what it is given, and what it may answer


def test_a_batch_is_posted_with_its_columns() -> None:
    with serving(lengths) as server:
        assert ServerReward(server.url)(episodes("a", "bcd", answer=[3, None])) == [1.0, 3.0]
    (asked,) = server.asked
    assert asked.body == {
        "prompts": ["prompt 0", "prompt 1"], "completions": ["a", "bcd"], "columns": {"answer": [3, None]},
    }  # fmt: skip
    assert asked.path == "/score" and asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers


def test_conversations_are_posted_as_messages() -> None:
    prompt, answer = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "é"}]
    with serving(lambda asked: Answer([0.5])) as server:
        assert ServerReward(server.url)([Episode([1], [2], prompt, answer, {"prompt": prompt})]) == [0.5]
    assert server.asked[0].body["prompts"] == [prompt] and server.asked[0].body["completions"] == [answer]


@pytest.mark.parametrize("given", [[1, None], {"rewards": [1, None]}, {"scores": [1, None], "model": "m"}])
def test_null_is_a_row_that_is_not_scored(given: Any) -> None:
    said: list[str] = []
    with serving(lambda asked: Answer(given)) as server:
        reward = ServerReward(server.url, say=said.append)
        assert reward.optional(episodes("a", "b")) == [1.0, None]
        assert reward(episodes("a", "b")) == [1.0, 0.0] and len(said) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        ({"value": 1}, "not a list"),
        ([1.0, "x"], "returned 'x' for completion 'b'"),
        ([1.0, True], "returned True for completion 'b'"),
        ([1.0, float("nan")], "returned nan for completion 'b'"),
    ],
)
def test_another_answer_stops_the_run_at_once(given: Any, said: str) -> None:
    with serving(lambda asked: Answer(given)) as server, pytest.raises(RewardFailed, match=said) as caught:
        ServerReward(server.url)(episodes("a", "b"))
    assert len(server.asked) == 1 and caught.value.where == server.url


def test_responses_are_sent_in_batches_several_at_once_and_come_back_in_order() -> None:
    with serving(lambda asked: Answer(lengths(asked).value, delay=0.2)) as server:
        reward = ServerReward(server.url, Server(batch_size=2, concurrency=4))
        began = time.monotonic()
        assert reward(episodes(*("x" * n for n in range(1, 8)))) == [1, 2, 3, 4, 5, 6, 7]
        took = time.monotonic() - began
    assert sorted(len(asked.body["prompts"]) for asked in server.asked) == [1, 2, 2, 2]
    assert server.at_once > 1 and took < 4 * 0.2  # one after the other they would take this long


def test_requests_keep_their_distance() -> None:
    with serving(lengths) as server:
        ServerReward(server.url, Server(batch_size=1, concurrency=8, requests_per_second=20))(episodes(*"abcde"))
    moments = sorted(asked.at for asked in server.asked)
    assert moments[-1] - moments[0] >= 0.9 * 4 / 20


# ---------------------------------------------------------------- patience, and its end

FAULTS = {
    "overloaded": Answer(status=429),
    "broken": Answer(status=500),
    "away": Answer(status=503, raw=b"<html>gateway</html>"),
    "no JSON": Answer(raw=b'{"rewards": [1'),
    "cut": Answer(close=True),
    "slow": Answer([1], delay=0.8),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_only_a_pause(fault: str) -> None:
    with serving(first_then(FAULTS[fault], FAULTS[fault])) as server:
        assert ServerReward(server.url, Server(retries=2, timeout=0.4))(episodes("abc")) == [3.0]
    assert len(server.asked) == 3


def test_the_servers_own_pause_is_kept() -> None:
    with serving(first_then(Answer(status=429, headers={"Retry-After": "0.3"}))) as server:
        ServerReward(server.url)(episodes("abc"))
    assert server.asked[1].at - server.asked[0].at >= 0.3


def test_after_the_last_try_the_run_stops_with_one_message() -> None:
    with serving(lambda asked: Answer(status=503)) as server, pytest.raises(RewardFailed) as caught:
        ServerReward(server.url, Server(retries=2))(episodes("abc"))
    assert len(server.asked) == 3
    first, fix = str(caught.value).splitlines()
    assert first.startswith(f"{server.url}: the reward server gave no answer after 3 tries: status 503")
    assert "the same command resumes from the last complete checkpoint" in fix


def test_in_all_a_batch_takes_no_longer_than_allowed() -> None:
    with serving(lambda asked: Answer(status=503)) as server:
        reward = ServerReward(server.url, Server(retries=10_000, give_up_after=0.5, batch_size=1, concurrency=2))
        began = time.monotonic()
        with pytest.raises(RewardFailed, match=r"gave no answer within 0\.5 seconds: status 503"):
            reward(episodes(*"abcdef"))
        assert time.monotonic() - began < 3
    hours = first_then(Answer(status=429, headers={"Retry-After": "3600"}))
    with serving(hours) as server, pytest.raises(RewardFailed, match="within 600 seconds: status 429"):
        ServerReward(server.url)(episodes("a"))


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    with pytest.raises(RewardFailed, match="no connection"):
        ServerReward(address, Server(retries=1))(episodes("a"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_repeated(status: int) -> None:
    said = f"refuses: status {status}: it is so"
    refuse = Answer(status=status, raw=b"it is so")
    with serving(lambda asked: refuse) as server, pytest.raises(RewardFailed, match=said):
        ServerReward(server.url)(episodes("a"))
    assert len(server.asked) == 1


# ---------------------------------------------------------------- the key


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", KEY)
    refuse = Answer(status=401, raw=f"bad key {KEY}".encode())
    with serving(lambda asked: refuse) as server, pytest.raises(RewardFailed) as caught:
        ServerReward(server.url, Server(key_env="REWARD_KEY"))(episodes("a"))
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) and "bad key ***" in str(caught.value)
    monkeypatch.delenv("REWARD_KEY")
    with pytest.raises(RlhfctlError, match="the environment variable REWARD_KEY is not set"):
        ServerReward(server.url, Server(key_env="REWARD_KEY"))
