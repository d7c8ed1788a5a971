"""Kill one of a run's processes at random moments: all end, the message names the cause, the same command resumes.

    python tests/campaigns/rank_kills.py RECIPE [--kills 5] [--seed 0] [--processes 2] [--machines 2 [--shared]]
                                                [--set a.b=c ...]

1. One undisturbed run in one process, for its numbers.
2. One undisturbed run in `--processes`, for how long the training stages take.
3. `--kills` runs in fresh folders. In each, one process of a stage, drawn at random, is killed (SIGKILL) at a moment
   drawn uniformly over the time of the run before; if no stage is being trained then, as soon as one is.
4. The same command again, to the end.

A run passes if everything that it started has ended within 30 seconds of the kill, the message says which process was
killed, and the second start ends with the metrics of the undisturbed run within 1e-4. With `--machines 2` the processes
are divided over two network namespaces (root needed), each with a run folder of its own unless `--shared` is given.
A process that is killed after its stage has given its result loses nothing: then the run must go on to its end.
Prints a line per kill and ends with "N passed, M failed".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kills import Tally
from namespaces import ADDRESSES, Machines, refused, two_machines

END_S = 30.0  # seconds after a kill in which all processes must have ended
CLOSE = 1e-4
MARK = "RLHFCTL_RANK_KILLS"  # a variable that every process of a run inherits
TIMED = (
    "rollout_s",
    "score_s",
    "update_s",
    "episodes_per_s",
    "reload_gap",
    "num_tokens",
)  # TRL counts tokens anew after a resume
_LOOK_EVERY_S = 0.02

Numbers = dict[tuple[str, int, str], dict[str, float]]


# ---------------------------------------------------------------- one run


@dataclass
class Started:
    """A run that is under way on one machine or on two."""

    processes: list[subprocess.Popen[str]]
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def all(self) -> dict[int, bytes]:
        """Every process of the run that is there now, with its command line: id -> words."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                        found[int(folder.name)] = (folder / "cmdline").read_bytes()
        return {number: words for number, words in found.items() if words}  # a zombie has no words

    def ranks(self) -> dict[int, int]:
        """The processes that share a stage: number -> process id."""
        found = {}
        for number, words in self.all().items():
            if b"rlhfctl.stage_process" in words and b"accelerate.commands.launch" not in words:
                with contextlib.suppress(OSError):
                    for one in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
                        if one.startswith(b"RANK="):
                            found[int(one[5:])] = number
        return found

    def wait(self, seconds: float | None = None) -> list[tuple[int, str]]:
        """Wait for the commands; the exit code and standard error of each."""
        until = None if seconds is None else time.monotonic() + seconds
        ended = []
        for one in self.processes:
            left = None if until is None else max(0.1, until - time.monotonic())
            _, said = one.communicate(timeout=left)
            ended.append((one.returncode, said))
        return ended

    def end(self) -> None:
        """Kill everything that is left."""
        for number in self.all():
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)


def begin(
    recipe: Path, run: Path, options: list[str], machines: Machines | None = None, shared: bool = False
) -> Started:
    """Start a run; on two `machines` the second one has a folder of its own unless it is `shared`."""
    started = Started([])
    line = [sys.executable, "-m", "rlhfctl", "run", str(recipe), *options]
    lines = [[*line, "--run-dir", str(run)]]
    if machines is not None:
        both = ["--num-machines", "2", "--main-process-ip", ADDRESSES[0]]
        other = run if shared else run.parent / f"{run.name}-other"
        lines = [
            [*machines.prefix(0), *lines[0], *both],
            [*machines.prefix(1), *line, "--run-dir", str(other), *both, "--machine-rank", "1"],
        ]
    for words in lines:
        started.processes.append(
            subprocess.Popen(
                words,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {MARK: started.mark},
            )
        )
    return started


def numbers(run: Path) -> Numbers:
    """The last metrics of each stage, step and split: after a kill some steps are said twice."""
    last: Numbers = {}
    for line in (run / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        event = json.loads(line)
        if event["event"] == "metrics":
            values = {name: value for name, value in event["values"].items() if name not in TIMED}
            last[event["stage"], event["step"], event["split"]] = values
    return last


def farthest(one: Numbers, other: Numbers) -> float:
    """Largest difference of two runs' metrics; infinite if one has a number that the other lacks."""
    if one.keys() != other.keys() or any(one[key].keys() != other[key].keys() for key in one):
        return float("inf")
    return max((abs(one[key][name] - other[key][name]) for key in one for name in one[key]), default=0.0)


def kill_one(started: Started, choose: Callable[[list[int]], int], after: float = 0.0) -> int | None:
    """Kill one of a stage's processes `after` seconds from now, or once there are some; None if the run is over."""
    time.sleep(after)
    while started.processes[0].poll() is None:
        ranks = started.ranks()
        if ranks:
            number = choose(sorted(ranks))
            with contextlib.suppress(ProcessLookupError):
                os.kill(ranks[number], signal.SIGKILL)
                return number
        time.sleep(_LOOK_EVERY_S)
    return None


def had_finished(run: Path) -> bool:
    """Tell whether no stage is under way: the killed process had done its work, and only had to end."""
    tasks = run.glob("*/work/process/task.json")
    return not any(not (task.parent / "result.json").is_file() for task in tasks)


def ended_well(started: Started, killed: int, since: float) -> list[str]:
    """What is wrong with how a run ended after one of its processes was killed at `since`; nothing if it is well."""
    try:
        said = started.wait(END_S - (time.monotonic() - since))
    except subprocess.TimeoutExpired:
        left = [words.replace(b"\0", b" ").decode()[:80] for words in started.all().values()]
        started.end()
        return [f"NOT ENDED after {END_S:.0f} s: {left}"]
    wrong = []
    code, first = said[0]
    if code == 0 or f"process {killed} of the" not in first or "was killed (SIGKILL)" not in first:
        wrong.append(f"OTHER CAUSE: exit {code}: {first.strip()[-400:]}")
    if first.count("error:") != 1 or "Traceback (most recent" in first:
        wrong.append(f"NOT ONE MESSAGE: {first.strip()[-400:]}")
    while started.all() and time.monotonic() - since < END_S:
        time.sleep(_LOOK_EVERY_S)
    if left := started.all():
        wrong.append(f"LEFT RUNNING: {sorted(left)}")
        started.end()
    return wrong


# ---------------------------------------------------------------- the campaign


def given() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--machines", type=int, choices=(1, 2), default=1)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    found = parser.parse_args()
    found.options = [part for override in found.overrides for part in ("--set", override)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return found


@contextlib.contextmanager
def places(count: int) -> Iterator[Machines | None]:
    """The machines of the campaign: two namespaces, or none for this machine alone."""
    if count == 1:
        yield None
        return
    if (why := refused()) is not None:
        sys.exit(why)
    with two_machines() as machines:
        yield machines


def main() -> int:
    options = given()
    draw = random.Random(options.seed)
    tally = Tally("ended with its cause, resumed, same metrics")
    several = [*options.options, "--num-processes", str(options.processes)]
    with tempfile.TemporaryDirectory() as name, places(options.machines) as machines:
        folder = Path(name)

        def start(run: str) -> Started:
            return begin(options.recipe, folder / run, several, machines, options.shared)

        plain = begin(options.recipe, folder / "one", options.options).wait()
        began = time.monotonic()
        undisturbed = start("several").wait()
        total = time.monotonic() - began
        for code, said in (*plain, *undisturbed):
            if code:
                print(said)
                return 1
        expected = numbers(folder / "one")
        print(f"undisturbed: {total:.1f} s; {options.processes} processes differ from one by at most "
              f"{farthest(numbers(folder / 'several'), expected):.2g}", flush=True)  # fmt: skip
        for number in range(1, options.kills + 1):
            run, moment = f"kill-{number}", draw.uniform(0.0, total)
            started = start(run)
            killed = kill_one(started, draw.choice, moment)
            since = time.monotonic()
            if killed is None:  # this run was quicker than the undisturbed one
                wrong = [said for code, said in started.wait() if code]
                tally.add(f"kill {number} at {moment:.1f} s (too late)", wrong)
                continue
            if had_finished(folder / run):  # then nothing is lost: the run goes on
                took, again = 0.0, started.wait()
                wrong = []
            else:
                wrong = ended_well(started, killed, since)
                took = time.monotonic() - since
                again = start(run).wait()
            wrong += [f"NOT RESUMED: exit {code}: {said.strip()[-400:]}" for code, said in again if code]
            if not wrong and farthest(numbers(folder / run), expected) > CLOSE:
                wrong.append("OTHER METRICS")
            how = f"ended after {took:.1f} s" if took else "its work was done"
            tally.add(f"kill {number} at {moment:.1f} s (process {killed}; {how})", wrong)
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
