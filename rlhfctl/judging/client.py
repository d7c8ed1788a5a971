"""Ask a model behind an OpenAI-compatible API, with patience for overload and faults, and none for wrong settings.

    429, 408, 409, 5xx, a lost connection, no answer in time, an answer that is no completion -> pause, try again
    401, 402, 403, 404, a used-up quota                                                       -> JudgeFailed at once
    400, 413, 422 and other refusals                                                          -> Refused: this question

Reads the key from the environment; it is sent to the server and is written nowhere, and taken out of every message.
Writes nothing. Leaves out what is asked (question.py) and what the answers mean (judge.py).
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any

from rlhfctl.errors import EngineError, JudgeFailed, RlhfctlError
from rlhfctl.judging.cache import Answer
from rlhfctl.judging.question import Message
from rlhfctl.recipe.sections.endpoint import Endpoint

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between tries, where the server names no time
LONGEST_WAIT_S = 600.0
"""Seconds: where the server asks for a longer pause, judging stops, and the same command goes on later."""

_REPEATED = (408, 409, 425, 429)  # and 500 or more
_READY: tuple[Message, ...] = ({"role": "user", "content": "Answer with the word ready."},)
_FEW_TOKENS = 16
_LONGEST_SAID = 300  # characters of a server's words in a message
_NO_KEY = "none"  # what is sent in place of a key to a server that needs none
_LOCAL = ("localhost", "127.0.0.1", "::1")
_GO_ON = "the same command goes on; answers that have come are kept"
_STOPS = {  # status -> what to check
    401: "check the key in {key}",
    402: "the account has no credit left: add some, or use another model; " + _GO_ON,
    403: "check that the key in {key} may use {model}, and that the server takes requests from this machine",
    404: "check compare.endpoint.base_url (it mostly ends in /v1) and compare.endpoint.model",
}


class Unanswered(Exception):
    """A question gets no answer, though others may. `kind` is the same for all questions of one fate."""

    def __init__(self, kind: str, why: str) -> None:
        self.kind, self.why = kind, why
        super().__init__(f"{kind}: {why}")


class Refused(Unanswered):
    """The server refuses this very question, for example because it is too long."""


class Lost(Unanswered):
    """No try to ask this question brought an answer, though the server answers others."""


def check(section: Endpoint) -> list[str]:
    """Check before any work what can be checked without asking: the library and the key. Returns warnings."""
    if find_spec("openai") is None:
        raise EngineError(
            "the judge `endpoint` needs the library openai, which is not installed",
            where="compare.endpoint",
            fix="pip install 'rlhfctl[judge]'",
        )
    key = _key(section)
    if key is None or section.encrypted or section.host in _LOCAL:
        return []
    return [
        f"compare.endpoint.base_url begins with http://: the key in {section.key_env} and all texts go to "
        f"{section.host} unencrypted; use https://, or key_env: null if the server needs no key"
    ]


def read_key(variable: str | None, server: str, where: str) -> str | None:
    """Read the key of a server from an environment variable; None without a variable: the server needs no key.

    `server` and `where` (the key of the recipe that names the variable) are for the RlhfctlError if it is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RlhfctlError(
            f"the environment variable {variable} is not set: it holds the key of {server}",
            where=where,
            fix=f"export {variable}=..., or write key_env: null for a server that needs no key",
        )
    return key


def _key(section: Endpoint) -> str | None:
    return read_key(section.key_env, section.host, "compare.endpoint.key_env")


def knock(section: Endpoint) -> list[str]:
    """Ask the server one short question before hours of work: JudgeFailed for wrong settings.

    Returns a warning where it does not answer: it may be started later. The question holds nothing of the data.
    """
    return asyncio.run(_knock(section))


async def _knock(section: Endpoint) -> list[str]:
    async with Client(section) as client:
        try:
            await client.try_once(_READY, min(section.max_tokens, _FEW_TOKENS))
        except client.faults as error:
            if client.refusal(error) is not None:
                raise JudgeFailed(
                    f"the judge {section.model} refuses a short question: {client.said(error)}",
                    where=section.base_url,
                    fix="change what it names: for example compare.endpoint.temperature: null for a model without one",
                ) from None
            return [f"the judge {section.model} at {section.base_url} does not answer now: {client.said(error)}"]
    return []


class Client:
    """Ask questions of one server: an asynchronous context manager, whose connections it closes."""

    def __init__(self, section: Endpoint) -> None:
        import openai

        self.section = section
        self.key = _key(section)
        self.library: Any = openai
        self.client: Any = openai.AsyncOpenAI(
            api_key=self.key or _NO_KEY, base_url=section.base_url, timeout=section.timeout, max_retries=0
        )
        # The library reads these from the environment; they are for OpenAI, and base_url may name any server.
        self.client.organization = self.client.project = self.client.admin_api_key = None
        self.limit_name = "max_tokens"  # newer models of OpenAI know it as max_completion_tokens
        self.last_answer = -math.inf  # time.monotonic() of the last completion

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """The exceptions of one try, beside JudgeFailed: of the library, no answer in time, no completion."""
        return (self.library.OpenAIError, TimeoutError, ValueError)

    async def ask(self, messages: Sequence[Message]) -> Answer:
        """Ask once, and again after faults; raise Refused, Lost, or JudgeFailed if no question can be answered."""
        began, why = time.monotonic(), ""
        for attempt in range(self.section.retries + 1):
            headers: Mapping[str, str] = {}
            try:
                return await self.try_once(messages, self.section.max_tokens)
            except self.faults as error:
                why = self.said(error)
                if (response := getattr(error, "response", None)) is not None:
                    headers = response.headers
                if (status := self.refusal(error)) is not None:
                    raise Refused(f"refused with status {status}", why) from None
            if attempt < self.section.retries:
                await asyncio.sleep(self._pause(attempt, headers, why))
        await self._require_alive(began, why)
        raise Lost("without an answer", why)

    def refusal(self, error: Any) -> int | None:
        """Return the status by which the server refuses a question; None for faults that a repetition may mend."""
        status: int | None = error.status_code if isinstance(error, self.library.APIStatusError) else None
        return None if status is None or status in _REPEATED or status >= 500 else status

    async def try_once(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        """Send a question once. Statuses that no repetition mends raise JudgeFailed, others one of `faults`."""
        while True:
            name = self.limit_name
            options: dict[str, Any] = {name: max_tokens}
            if self.section.temperature is not None:
                options["temperature"] = self.section.temperature
            create = self.client.chat.completions.create
            try:
                async with asyncio.timeout(self.section.timeout):  # the library's bounds each read, not the whole
                    answer = _answer_in(await create(model=self.section.model, messages=list(messages), **options))
            except self.library.APIStatusError as error:
                if error.status_code == 400 and name == "max_tokens" and "max_completion_tokens" in str(error):
                    self.limit_name = "max_completion_tokens"
                    continue
                self._stop_if_final(error)
                raise
            self.last_answer = time.monotonic()
            return answer

    def _stop_if_final(self, error: Any) -> None:
        """Raise JudgeFailed for a status that says that the settings or the account are at fault."""
        advice = _STOPS.get(error.status_code)
        if error.status_code == 429 and error.code == "insufficient_quota":
            advice = _STOPS[402]
        if advice is None:
            return
        key = f"the variable {self.section.key_env}" if self.section.key_env else "no variable: key_env is null"
        raise JudgeFailed(
            f"the judge {self.section.model} cannot be asked: {self.said(error)}",
            where=self.section.base_url,
            fix=advice.format(key=key, model=self.section.model),
        ) from None

    def _pause(self, attempt: int, headers: Mapping[str, str], why: str) -> float:
        """Return the seconds until the next try; JudgeFailed where the server asks for a very long pause."""
        asked = retry_after(headers)
        if asked is not None and asked > LONGEST_WAIT_S:
            raise JudgeFailed(
                f"the server asks to wait {asked:.0f} seconds: {why}",
                where=self.section.base_url,
                fix=f"wait that long, or lower compare.endpoint.concurrency; {_GO_ON}",
            )
        own = min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)  # not all at one moment
        return max(own, asked or 0.0)

    async def _require_alive(self, began: float, why: str) -> None:
        """Raise JudgeFailed if the server answers nothing at all: neither another question since, nor a short one."""
        if self.last_answer >= began:
            return
        try:
            await self.try_once(_READY, min(self.section.max_tokens, _FEW_TOKENS))
        except self.faults:
            tries = self.section.retries + 1
            raise JudgeFailed(
                f"the judge {self.section.model} does not answer after {tries} tries: {why}",
                where=self.section.base_url,
                fix="check that the server runs and compare.endpoint.base_url is right; where it is overloaded, lower "
                f"compare.endpoint.concurrency, or raise timeout or retries; {_GO_ON}",
            ) from None

    def said(self, error: Any) -> str:
        """Say what went wrong in one try, with the status and the server's own words, without the key."""
        if isinstance(error, self.library.APIStatusError):
            body = error.body
            inner = body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else body
            return self._cleaned(f"status {error.status_code}: {inner or error}")
        if isinstance(error, (TimeoutError, self.library.APITimeoutError)):
            return f"no answer in {self.section.timeout:g} seconds"
        if isinstance(error, self.library.APIConnectionError):
            return self._cleaned(f"no connection ({error.__cause__ or error})")
        return self._cleaned(f"an answer that is no chat completion ({error})")

    def _cleaned(self, text: str) -> str:
        """Take the key and line ends out of a text from outside, and shorten it."""
        text = " ".join((text.replace(self.key, "***") if self.key else text).split())
        return text if len(text) <= _LONGEST_SAID else f"{text[:_LONGEST_SAID]}..."


def _answer_in(completion: Any) -> Answer:
    """Read a completion; ValueError for an answer that is none, whatever it is."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
        raise ValueError("it has no choices")
    message: Any = choices[0].message
    content = getattr(message, "content", None)
    if content is not None and not isinstance(content, str):
        raise ValueError("its content is no text")
    finish, model = getattr(choices[0], "finish_reason", None), getattr(completion, "model", None)
    usage = getattr(completion, "usage", None)
    return Answer(
        text=content or "",
        finish=finish if isinstance(finish, str) else None,
        model=model if isinstance(model, str) else None,
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value >= 0 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read the seconds that a server asks to wait (RFC 9110, Retry-After: seconds or a date); None if it does not."""
    for name, seconds in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            value = float(text) * seconds
        except ValueError:
            try:
                value = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):  # no date, or one without a time zone
                continue
        if math.isfinite(value):
            return max(0.0, value)
    return None
