"""A reward server on 127.0.0.1 that can be slow, wrong, dead or unauthorized; a test reads the requests that came."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "rk-secret-of-the-tests"


@dataclass(frozen=True)
class Request:
    """One request: path, body, headers in lower case, its number from 0, and when it came."""

    path: str
    body: Any
    headers: Mapping[str, str]
    number: int
    at: float


@dataclass(frozen=True)
class Answer:
    """What the server does: answers with a value, or a status; `raw` is sent as it is; `close`: the line is cut."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0
    close: bool = False


Behave = Callable[[Request], Answer]


@dataclass
class Running:
    """The server: its address, the requests so far, and how many were under way at once."""

    url: str
    asked: list[Request] = field(default_factory=list)
    at_once: int = 0


@contextmanager
def serving(behave: Behave) -> Iterator[Running]:
    """Run the server until the block ends."""
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                request = Request(self.path, body, headers, len(running.asked), time.monotonic())
                running.asked.append(request)
                under_way[0] += 1
                running.at_once = max(running.at_once, under_way[0])
            try:
                answer = behave(request)
                time.sleep(answer.delay)
                if answer.close:
                    self.close_connection = True
                    return
                text = answer.raw if answer.raw is not None else json.dumps(answer.value).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except BrokenPipeError:  # the client has given up
                pass
            finally:
                with lock:
                    under_way[0] -= 1

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running = Running(f"http://127.0.0.1:{server.server_address[1]}/score")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
