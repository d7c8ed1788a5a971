"""Score responses with a server: POST a batch as JSON, read a list of numbers, with patience for overload and faults.

    request  {"prompts": [...], "completions": [...], "columns": {"answer": [...], ...}}
    answer   [1.5, null, ...], or {"rewards": [...]} or {"scores": [...]}

Prompts and completions are strings, or lists of messages if the prompts are conversations; `columns` holds every other
column of the prompts' rows. null means that the server does not score this row.

    429, 408, 409, 425, 5xx, a lost connection, no answer in time, no JSON -> pause, try again
    other statuses                                                         -> RewardFailed at once
    the time of `give_up_after` is over, or no try is left                 -> RewardFailed; the run resumes later

Reads the key from the environment; it is sent to the server, and taken out of every message. Writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from rlhfctl import fs
from rlhfctl.errors import RewardFailed
from rlhfctl.judging.client import FIRST_PAUSE_S, LONGEST_PAUSE_S, read_key, retry_after
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.sections.server import Server
from rlhfctl.rewards.checked import Checked, Say, columns_of
from rlhfctl.rewards.episode import Episode

RESUMES = "the same command resumes from the last complete checkpoint"
LISTS = ("rewards", "scores")
"""Keys under which an answer may hold its list of numbers."""
_REPEATED = (408, 409, 425, 429)  # and 500 or more
_CHUNK, _LARGEST = 1 << 16, 64 << 20  # bytes of an answer
_LONGEST_SAID = 300  # characters of a server's words in a message
_CHECK = {
    401: "check the key in the variable that reward.server.key_env names",
    403: "check the key in the variable that reward.server.key_env names, and that the server takes requests from here",
    404: "check the address: its path is sent as it stands",
    413: "lower reward.server.batch_size",
}


class _Fault(Exception):
    """One try failed, and another may not. `headers`: those of the server's answer, if there was one."""

    def __init__(self, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.headers = headers or {}


class _Pace:
    """Hand out moments that are at least 1 / `rate` seconds apart (rate None: at once)."""

    def __init__(self, rate: float | None) -> None:
        self.gap = 1.0 / rate if rate else 0.0
        self.lock = threading.Lock()
        self.next = 0.0

    def wait_s(self) -> float:
        """Reserve the next moment; return the seconds until then."""
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next)
            self.next = at + self.gap
            return at - now


class ServerReward(Checked):
    """Ask a server for scores: several requests of `batch_size` responses at once, each tried again after faults."""

    what = "the reward server"
    waits = True

    def __init__(
        self,
        address: str,
        server: Server | None = None,
        *,
        finite: bool = True,
        retries: int | None = None,
        say: Say = lambda sentence: None,
        processes: Processes = ALONE,
    ) -> None:
        self.server = server or Server()
        super().__init__(address, finite=finite, batch_size=self.server.batch_size, say=say, processes=processes)
        self.tries = 1 + (self.server.retries if retries is None else retries)
        self.key = read_key(self.server.key_env, "the reward server", "reward.server.key_env")
        self.pace = _Pace(self.server.requests_per_second)
        self._stop = threading.Event()
        self._deadline = float("inf")

    def here(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Score each episode; None if the server does not score it. RewardFailed after `give_up_after` seconds."""
        batches = self._batches(episodes)
        self._stop, self._deadline = threading.Event(), time.monotonic() + self.server.give_up_after
        pool = ThreadPoolExecutor(max(1, min(self.server.concurrency, len(batches))), thread_name_prefix="reward")
        try:
            asked = [pool.submit(self._checked, batch) for batch in batches]
            return [value for one in asked for value in one.result()]
        finally:
            self._stop.set()  # after a failure the others need not go on
            pool.shutdown(wait=False, cancel_futures=True)

    def _called(self, episodes: Sequence[Episode]) -> Any:
        """Ask once, and again after faults."""
        body = fs.json_line(
            {
                "prompts": [episode.prompt for episode in episodes],
                "completions": [episode.completion for episode in episodes],
                "columns": _plain(columns_of(episodes, {"prompt", "completion"})),
            }
        ).encode("utf-8", "backslashreplace")
        why = "it was not asked"
        for attempt in range(self.tries):
            self._sleep(self.pace.wait_s(), why)
            try:
                return self._once(body)
            except _Fault as fault:
                why = str(fault)
                if attempt + 1 < self.tries:
                    self._sleep(_pause(attempt, fault.headers), why)
        raise self._silent(why, f"after {self.tries} tries")

    def _sleep(self, seconds: float, why: str) -> None:
        """Wait; RewardFailed if the time for a batch of responses would be over, or another request failed."""
        if time.monotonic() + seconds > self._deadline:
            raise self._silent(why, f"within {self.server.give_up_after:g} seconds")
        if self._stop.wait(seconds):
            raise self._silent(why, "before another request failed")

    def _once(self, body: bytes) -> Any:
        """Send a batch once; return the list of its answer. _Fault if another try may help, else RewardFailed."""
        left = min(self.server.timeout, self._deadline - time.monotonic())
        if left <= 0:
            raise self._silent("no time is left", f"within {self.server.give_up_after:g} seconds")
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rlhfctl"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.spec, body, headers, method="POST")
        try:
            text = _read(request, left)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError:
            raise _Fault(f"no answer in {left:g} seconds") from None
        except (OSError, HTTPException) as error:
            raise _Fault(self._cleaned(f"no connection ({getattr(error, 'reason', None) or error!r})")) from None
        try:
            answer = json.loads(text)
        except ValueError:
            raise _Fault(self._cleaned(f"an answer that is no JSON: {text[:80]!r}")) from None
        if isinstance(answer, dict):
            return next((answer[name] for name in LISTS if name in answer), answer)
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """Return what a status amounts to: _Fault if a repetition may help, else RewardFailed."""
        said = ""
        with contextlib.suppress(OSError, HTTPException):
            said = error.read(_CHUNK).decode("utf-8", "replace")
        why = self._cleaned(f"status {error.code}: {said or error.reason}")
        if error.code in _REPEATED or error.code >= 500:
            return _Fault(why, {name.lower(): value for name, value in error.headers.items()})
        advice = _CHECK.get(error.code, "its words say what it refuses")
        return self._failed(f"refuses: {why}", f"{advice}; {RESUMES}")

    def _silent(self, why: str, how_long: str) -> RewardFailed:
        return self._failed(
            f"gave no answer {how_long}: {why}",
            f"check that it runs and that the address is right; where it is slow, lower reward.server.concurrency or "
            f"raise reward.server.timeout or give_up_after; {RESUMES}",
        )

    def _cleaned(self, text: str) -> str:
        """Take the key and line ends out of a text from outside, and shorten it."""
        text = " ".join((text.replace(self.key, "***") if self.key else text).split())
        return text if len(text) <= _LONGEST_SAID else f"{text[:_LONGEST_SAID]}..."


def _read(request: urllib.request.Request, seconds: float) -> str:
    """Send a request and read the whole answer in `seconds`; TimeoutError after that."""
    deadline = time.monotonic() + seconds
    parts, size = [], 0
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            while part := answer.read1(_CHUNK):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if size > _LARGEST:
                    raise OSError(f"an answer of more than {_LARGEST >> 20} MB")
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError from error
        raise
    return b"".join(parts).decode("utf-8", "replace")


def _pause(attempt: int, headers: Mapping[str, str]) -> float:
    """Return the seconds until the next try: growing, not at one moment for all, or what the server asks for."""
    own = min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)
    return max(own, retry_after(headers) or 0.0)


def _plain(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Turn values that JSON does not know, such as dates, into text."""
    return dict(json.loads(json.dumps(columns, default=str)))
