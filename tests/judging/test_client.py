"""The client against a real server on this machine that is slow, wrong, overloaded, dead or locked."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import util

import pytest
from fake_endpoint import KEY, A, Asked, Behave, Said, serving

from rlhfctl.errors import EngineError, JudgeFailed, RlhfctlError
from rlhfctl.judging import client
from rlhfctl.judging.cache import Answer
from rlhfctl.judging.client import Client, Lost, Refused, check, knock, retry_after
from rlhfctl.recipe.sections.endpoint import Endpoint

QUESTION = [{"role": "system", "content": "judge"}, {"role": "user", "content": "which?"}]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)


def ask(section: Endpoint) -> Answer:
    async def once() -> Answer:
        async with Client(section) as asking:
            return await asking.ask(QUESTION)

    return asyncio.run(once())


def first_then(*faults: Said, last: Said | str = A) -> Behave:
    """Behave as `faults` say, one after the other, then well."""
    return lambda asked: faults[asked.number] if asked.number < len(faults) else last


def test_an_answer_has_text_tokens_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda asked: Said(A, model="judge-1-2026")) as server:
        answer = ask(server.section(key_env="JUDGE_KEY", max_tokens=77, temperature=0.25))
    assert answer == Answer(A, "stop", "judge-1-2026", 1, 100, 5)
    (asked,) = server.asked
    assert asked.body == {"model": "judge-1", "messages": QUESTION, "max_tokens": 77, "temperature": 0.25}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, f"{KEY}-{name}")
    with serving(lambda asked: A) as server:
        ask(server.section(temperature=None))
    assert KEY not in str(server.asked[0]) and "temperature" not in server.asked[0].body


FAULTS = {
    "overloaded": Said(status=429, error="slow down"),
    "broken": Said(status=500, error="oops"),
    "away": Said(status=503, raw=b"<html>gateway</html>", kind="text/html"),
    "no JSON": Said(raw=b'{"choices": [{"mess'),
    "a page": Said(raw=b"<html>hello</html>", kind="text/html"),
    "no choices": Said(raw=b'{"id": "1", "choices": []}'),
    "null choices": Said(raw=b'{"id": "1", "choices": null}'),
    "another JSON": Said(raw=b'[1, 2]'),
    "a wrong message": Said(raw=b'{"choices": [{"message": {"content": [1]}}]}'),
    "cut": Said(close=True),
    "slow": Said(delay=0.6),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_only_a_pause(fault: str) -> None:
    with serving(first_then(FAULTS[fault], FAULTS[fault])) as server:
        assert ask(server.section(retries=2, timeout=0.3)).text == A
    assert len(server.asked) == 3


def test_a_server_that_sends_byte_by_byte_is_too_slow() -> None:
    """The bound is on the whole answer, not on each piece of it."""

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        line.recv(65536)
        line.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
        try:
            for _ in range(100):
                line.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    section = Endpoint(
        base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="m", key_env=None, timeout=0.3, retries=0
    )
    began = time.monotonic()
    with pytest.raises(JudgeFailed, match=r"no answer in 0\.3 seconds"):
        ask(section)
    assert time.monotonic() - began < 2
    listener.close()


def test_a_dead_server_is_given_up_with_a_way_out() -> None:
    with serving(lambda asked: A) as server:
        section = server.section(retries=1)
    with pytest.raises(JudgeFailed, match="does not answer after 2 tries: no connection") as caught:
        ask(section)
    assert caught.value.where == section.base_url and "the same command goes on" in str(caught.value.fix)


def test_a_question_that_alone_breaks_the_server_is_lost_and_others_are_not() -> None:
    with serving(lambda asked: A if asked.is_knock else Said(status=500, error="this text")) as server:
        with pytest.raises(Lost, match="status 500: this text"):
            ask(server.section(retries=1))
        assert len(server.questions) == 2 and len(server.asked) == 3


def test_the_pause_is_at_least_the_one_that_the_server_asks_for() -> None:
    with serving(first_then(Said(status=429, headers={"retry-after": "1"}))) as server:
        began = time.monotonic()
        ask(server.section(retries=1))
        assert time.monotonic() - began >= 1.0


def test_a_very_long_pause_is_left_to_people() -> None:
    with serving(lambda asked: Said(status=429, headers={"retry-after": "3600"}, error="daily limit")) as server:
        with pytest.raises(JudgeFailed, match=r"asks to wait 3600 seconds: status 429: daily limit"):
            ask(server.section())
        assert len(server.asked) == 1


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def note(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(client, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(client.asyncio, "sleep", note)
    with serving(first_then(*[Said(status=500)] * 7)) as server:
        ask(server.section(retries=7))
    for pause, full in zip(slept, [1, 2, 4, 8, 16, 30, 30], strict=True):
        assert 0.75 * full <= pause <= full


def test_how_long_to_wait_is_read_in_all_its_forms() -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": format_datetime(later, usegmt=True)}) == pytest.approx(90, abs=2)
    assert retry_after({"retry-after": format_datetime(later - timedelta(hours=1), usegmt=True)}) == 0.0
    assert retry_after({"retry-after": "nan"}) is None and retry_after({"retry-after": "-3"}) == 0.0


@pytest.mark.parametrize(
    ("said", "what", "fix"),
    [
        (Said(status=401, error=f"Incorrect API key: {KEY}"), r"status 401: Incorrect API key: \*\*\*", "JUDGE_KEY"),
        (Said(status=402, error="pay"), "status 402: pay", "no credit left"),
        (Said(status=403, error="not you"), "status 403: not you", "may use judge-1"),
        (Said(status=404, error="no such model"), "status 404: no such model", "ends in /v1"),
        (Said(status=404, raw=b"Not Found", kind="text/plain"), "status 404: .*Not Found", "ends in /v1"),
        (Said(status=429, error="quota", code="insufficient_quota"), "status 429: quota", "no credit left"),
    ],
)
def test_wrong_settings_stop_at_once(monkeypatch: pytest.MonkeyPatch, said: Said, what: str, fix: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(lambda asked: said) as server:
        section = server.section(key_env="JUDGE_KEY")
        for asking in (ask, knock):
            with pytest.raises(JudgeFailed, match=what) as caught:
                asking(section)
            assert caught.value.where == server.url and fix in str(caught.value.fix)
            assert KEY not in str(caught.value) and caught.value.__cause__ is None
    assert len(server.asked) == 2


def test_a_refused_question_is_not_repeated() -> None:
    with serving(lambda asked: Said(status=400, error="too long")) as server:
        with pytest.raises(Refused, match="refused with status 400: status 400: too long"):
            ask(server.section())
        assert len(server.asked) == 1
        with pytest.raises(JudgeFailed, match="refuses a short question: status 400: too long"):
            knock(server.section())


def test_newer_models_get_the_limit_under_its_newer_name() -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def newer(asked: Asked) -> Said | str:
        return Said(status=400, error=words) if "max_tokens" in asked.body else A

    with serving(newer) as server:
        assert ask(server.section(max_tokens=9)).text == A
    assert [asked.body.get("max_completion_tokens") for asked in server.asked] == [None, 9]


def test_a_knock_holds_no_text_and_warns_of_a_server_that_is_not_there_yet() -> None:
    with serving(lambda asked: A) as server:
        section = server.section()
        assert knock(section) == []
        (asked,) = server.asked
        assert asked.is_knock and asked.body["max_tokens"] == 16
    (warning,) = knock(section)
    assert f"judge-1 at {section.base_url} does not answer now: no connection" in warning


def test_library_and_key_are_checked_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Endpoint(base_url="https://judge.example/v1", model="m")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RlhfctlError, match=r"OPENAI_API_KEY is not set: it holds the key of judge\.example") as caught:
        check(section)
    assert caught.value.where == "compare.endpoint.key_env" and "key_env: null" in str(caught.value.fix)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert check(section) == []
    (warning,) = check(section.model_copy(update={"base_url": "http://judge.example/v1"}))
    assert "judge.example unencrypted" in warning and KEY not in warning
    assert check(section.model_copy(update={"base_url": "http://127.0.0.1:8000/v1"})) == []
    assert check(section.model_copy(update={"base_url": "http://judge.example/v1", "key_env": None})) == []
    monkeypatch.setattr(client, "find_spec", lambda name: None if name == "openai" else util.find_spec(name))
    with pytest.raises(EngineError, match=r"needs the library openai") as missing:
        check(section)
    assert missing.value.fix == "pip install 'rlhfctl[judge]'"
