"""A server on 127.0.0.1 that speaks the chat-completions API, and can be slow, wrong, dead or unauthorized.

A test gives it a function from what was asked to what is said, and reads the requests that came.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlhfctl.recipe.sections.endpoint import Endpoint

KEY = "sk-secret-of-the-tests"
A, B, TIE = '{"choice": "A"}', '{"choice": "B"}', '{"choice": "tie"}'
_QUOTED = re.compile(
    r"^BEGIN (PROMPT|RESPONSE A|RESPONSE B) ([0-9a-f]{16})\n(.*?)\nEND \1 \2$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Asked:
    """One request: its body, its headers in lower case, and its number from 0."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    number: int

    @property
    def is_knock(self) -> bool:
        """Whether it is the short question that checks the server."""
        return len(self.body["messages"]) == 1

    @property
    def texts(self) -> dict[str, str]:
        """What the judge is shown as PROMPT, RESPONSE A and RESPONSE B."""
        shown = self.body["messages"][1]["content"]
        found = {name: text for name, _, text in _QUOTED.findall(shown)}
        assert len(found) == 3, shown
        return found


@dataclass(frozen=True)
class Said:
    """What the server does: an answer, or a status with an error; `raw` is sent as it is; `close`: the line is cut."""

    text: str | None = A
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    kind: str = "application/json"
    error: str | None = None
    code: str | None = None
    delay: float = 0.0
    close: bool = False
    model: str | None = None
    finish: str = "stop"
    usage: Mapping[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 5})

    def body(self, asked: Asked) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.error or "no", "code": self.code, "type": "x"}}).encode()
        message = {"role": "assistant", "content": self.text}
        return json.dumps({
            "id": "1", "object": "chat.completion", "created": 0, "model": self.model or asked.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish}], "usage": self.usage,
        }).encode()  # fmt: skip


Behave = Callable[[Asked], "Said | str"]


class FakeEndpoint:
    """The server's address, what it does, and the requests that it got."""

    def __init__(self, url: str, behave: Behave) -> None:
        self.url, self.behave = url, behave
        self.asked: list[Asked] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()

    @property
    def questions(self) -> list[Asked]:
        """The requests beside the short ones that check the server."""
        return [asked for asked in self.asked if not asked.is_knock]

    def section(self, **changes: Any) -> Endpoint:
        """The section of a recipe that names this server."""
        return Endpoint(**{"base_url": self.url, "model": "judge-1", "key_env": None} | changes)


@contextmanager
def serving(behave: Behave) -> Iterator[FakeEndpoint]:
    """Serve on a free port of 127.0.0.1 until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with fake.lock:
                asked = Asked(body, {name.lower(): value for name, value in self.headers.items()}, len(fake.asked))
                fake.asked.append(asked)
                fake.busy += 1
                fake.busiest = max(fake.busy, fake.busiest)
            assert self.path == "/v1/chat/completions", self.path
            said = fake.behave(asked)
            said = Said(said) if isinstance(said, str) else said
            time.sleep(said.delay)
            with fake.lock:
                fake.busy -= 1
            try:
                self._send(said, said.body(asked))
            except (BrokenPipeError, ConnectionResetError):  # the client has gone
                self.close_connection = True

        def _send(self, said: Said, content: bytes) -> None:
            self.send_response(said.status)
            for name, value in {"content-type": said.kind, "content-length": str(len(content)), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if said.close:  # in the middle of the answer
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeEndpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", behave)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


def longer_wins(asked: Asked) -> str:
    """An honest judge of a simple taste: it prefers the longer response."""
    first, second = (len(asked.texts[f"RESPONSE {name}"]) for name in "AB")
    return TIE if first == second else A if first > second else B
