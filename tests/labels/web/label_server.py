"""Help the tests of the labelling page: sets of items, the real server in a process of its own, and a plain client.

Run as a program it serves a labelling set until it is stopped, and prints its address:

    python tests/labels/web/label_server.py SET LABELS [--overlap 1.0] [--port 8000]
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import rlhfctl
from rlhfctl.labels.desk import Desk, Settings
from rlhfctl.labels.items import Item, make_item, read_items, write_items
from rlhfctl.labels.store import Event, open_labels
from rlhfctl.labels.web.serve import serve

ROOT = Path(rlhfctl.__file__).resolve().parent.parent

# What a model may write to take over the page. Nothing of it may run, load or change how the page looks.
NASTY = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><b>bold</b>"
    "<style>body{display:none}</style><a href=\"javascript:window.ran=3\" hx-get='http://127.0.0.1:9/x' "
    "hx-trigger=load>go</a></div></section><iframe src='http://127.0.0.1:9/'></iframe>{{ 7 * 7 }} &amp; \u202eend"
)


def plain_items(count: int, responses: int = 2) -> list[Item]:
    """Items whose texts tell their number."""
    return [
        make_item(
            f"What is the answer to question {n}?",
            [f"Answer {place} to question {n}, in a few words." for place in range(responses)],
            [f"model{place}" for place in range(responses)],
        )
        for n in range(count)
    ]


def main(arguments: Sequence[str]) -> None:
    """Serve a labelling set until Ctrl-C."""
    parser = argparse.ArgumentParser()
    parser.add_argument("set", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--overlap", type=float, default=0.0)
    parser.add_argument("--port", type=int)
    given = parser.parse_args(arguments)
    with open_labels(given.labels) as store:
        desk = Desk(read_items(given.set), store, Settings(overlap=given.overlap))
        serve(desk, port=given.port, announce=lambda line: print(line, flush=True))


@dataclass
class Running:
    """A server that runs. `address` holds the token, `base` does not."""

    process: subprocess.Popen[str]
    address: str

    @property
    def base(self) -> str:
        return self.address.partition("/?")[0]

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    def kill(self) -> None:
        """End it as a power cut would: no handler runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> str:
        """End it by Ctrl-C, and return what it said after its address."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=30)
        return rest


@contextmanager
def running(folder: Path, items: Sequence[Item], *arguments: str) -> Iterator[Running]:
    """Start the server on these items, with labels in the folder, and wait for its address."""
    write_items(folder / "set.jsonl", items)
    command = [sys.executable, __file__, str(folder / "set.jsonl"), str(folder / "labels.sqlite"), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"Open (https?://\S+)", said)):
            line = process.stdout.readline()
            assert line, f"the server ended: {said}"
            said += line
        yield Running(process, found.group(1))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def events_of(folder: Path) -> list[Event]:
    """Read all events of the labels in a folder."""
    with open_labels(folder / "labels.sqlite", create=False) as store:
        return store.events()


class Client:
    """An annotator without a browser, on one connection that is kept. Sends what a browser would."""

    def __init__(self, address: str, name: str) -> None:
        parts = urlsplit(address)
        self.base = f"{parts.scheme}://{parts.netloc}"
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        self.cookies: dict[str, str] = {}
        status, _ = self.get(f"/?{parts.query}")
        assert status == 303, status
        assert self.post("/name", name=name)[0] == 204

    def get(self, path: str) -> tuple[int, str]:
        return self._ask("GET", path, None)

    def post(self, path: str, **fields: str) -> tuple[int, str]:
        return self._ask("POST", path, urlencode(fields))

    def _ask(self, method: str, path: str, body: str | None) -> tuple[int, str]:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if body is not None:
            headers |= {"Origin": self.base, "Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        for name, value in answer.getheaders():
            if name.lower() == "set-cookie":
                key, _, content = value.partition(";")[0].partition("=")
                self.cookies[key] = content
        return answer.status, answer.read().decode("utf-8")

    def close(self) -> None:
        self._connection.close()


def key_of(page: str) -> str | None:
    """The key of the question on a page; None if there is no question."""
    found = re.search(r'name="key" value="([^"]+)"', page)
    return found.group(1) if found else None


if __name__ == "__main__":
    main(sys.argv[1:])
