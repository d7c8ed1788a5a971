"""Fifty annotators at once, by script: no label is lost or doubled, and an answer takes some milliseconds."""

from __future__ import annotations

import random
import statistics
import threading
import time
from pathlib import Path

import pytest
from label_server import Client, events_of, key_of, plain_items, running

ANNOTATORS = 50
LONGEST_MEDIAN_S = 0.050
PAUSE_S = 1.0  # mean time that an annotator of the test thinks: quicker than people judge


class Worker(threading.Thread):
    """One annotator: looks, thinks for a moment, answers, and keeps what was acknowledged."""

    def __init__(self, address: str, name: str, until: float, pause_s: float) -> None:
        super().__init__()
        self.client, self.annotator, self.until, self.pause_s = Client(address, name), name, until, pause_s
        self.rng = random.Random(name)
        self.acknowledged: list[str] = []
        self.seconds: list[float] = []
        self.faults: list[str] = []

    def run(self) -> None:
        try:
            self.work()
        except OSError as error:  # the thread must not end unseen
            self.faults.append(repr(error))

    def work(self) -> None:
        """Answer until the time is over."""
        _, page = self.client.get("/")
        while (key := key_of(page)) is not None and time.monotonic() < self.until:
            time.sleep(self.rng.expovariate(1 / self.pause_s) if self.pause_s else 0.0)
            answer = self.rng.choice(["0 1", "1 0", "0 0", "bad", "skip"])
            begun = time.perf_counter()
            status, page = self.client.post("/answer", key=key, answer=answer)
            self.seconds.append(time.perf_counter() - begun)
            if status == 200 and ("Saved." in page or "Skipped." in page):
                self.acknowledged.append(key)
            else:
                self.faults.append(f"{status} {page[:200]}")
        self.client.close()


def label_together(folder: Path, seconds: float, items: int, pause_s: float) -> list[Worker]:
    with running(folder, plain_items(items), "--overlap", "0.2") as server:
        until = time.monotonic() + seconds + 1
        workers = [Worker(server.address, f"person {n}", until, pause_s) for n in range(ANNOTATORS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return workers


@pytest.mark.parametrize(
    ("seconds", "items"), [pytest.param(5, 1000, marks=pytest.mark.ci), pytest.param(60, 5000, marks=pytest.mark.slow)]
)
def test_fifty_annotators_lose_and_double_nothing_and_do_not_wait(tmp_path: Path, seconds: float, items: int) -> None:
    workers = label_together(tmp_path, seconds, items, PAUSE_S)
    assert [fault for worker in workers for fault in worker.faults] == []
    events = events_of(tmp_path)
    acknowledged = sorted(key for worker in workers for key in worker.acknowledged)
    assert sorted(event.key for event in events) == acknowledged
    assert all(worker.acknowledged for worker in workers)
    assert len(acknowledged) > 0.6 * ANNOTATORS * seconds / PAUSE_S
    given = [(event.annotator, event.item) for event in events]
    assert len(set(given)) == len(given)  # nobody was asked twice
    took = [one for worker in workers for one in worker.seconds]
    found = [f"{1000 * value:.1f} ms" for value in (statistics.median(took), statistics.quantiles(took, n=100)[94])]
    print(f"{len(events)} labels, median {found[0]}, 95% under {found[1]}")
    assert statistics.median(took) < LONGEST_MEDIAN_S
