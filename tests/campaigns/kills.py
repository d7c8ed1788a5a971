"""Kill a run again and again: it must go on with the same command and end as if nothing had happened.

    python tests/campaigns/kills.py RECIPE [--kills 20] [--seed 0] [--publication] [--set a.b=c ...]

1. One undisturbed run: its duration, when each stage began and ended, and the hash of every weight file.
2. `--kills` runs in fresh folders, each killed once (SIGKILL) at a moment drawn uniformly over the undisturbed run's
   duration, at least four of them in each training stage; each is started again with the same command.
3. With --publication: one more run, killed before every file-system step of every publication (see killed_at.py).

With `--set seeds=2` the training stages of each seed are hit in the same way, and the summary must be the same, too.

A run passes if the second start ends well and the weight files of sft and reward (and, as everything is seeded, of ppo)
have the hashes of the undisturbed run. Prints a line a kill and ends with "N passed, M failed".
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from rlhfctl import fs  # noqa: E402

TRAINING = ("sft", "reward", "ppo")
LEAST_IN_EACH = 4
SOONER = 0.9


# ---------------------------------------------------------------- shared with ppo_kills.py


def given() -> argparse.Namespace:
    """The options of the command line: recipe, kills, seed, publication, options (for `rlhfctl run`)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publication", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    found = parser.parse_args()
    found.options = [part for override in found.overrides for part in ("--set", override)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return found


def command(recipe: Path, run: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "rlhfctl", "run", str(recipe), "--run-dir", str(run), *options]


def finish(arguments: list[str]) -> str | None:
    """Run to the end; what went wrong, or None."""
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"exit {result.returncode}: {result.stderr.strip()[-400:]}"


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill after `seconds`; True if it was still running then."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def sooner(kill: Callable[[float], bool], moment: float, run: Path, begin: Callable[[], object]) -> float:
    """Kill at `moment`; if the run was over by then (quicker than the undisturbed one), begin anew and kill sooner."""
    begin()
    while not kill(moment):
        shutil.rmtree(run)
        begin()
        moment *= SOONER
    return moment


def publication_kills(recipe: Path, run: Path, options: list[str]) -> str | None:
    """One run killed before every step of every publication; what went wrong, or None."""
    arguments = [sys.executable, str(HERE / "killed_at.py"), str(recipe), str(run), *options]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    print(f"publication: {result.stdout.strip()}", flush=True)
    return None if result.returncode == 0 else f"exit {result.returncode}: {result.stderr.strip()[-400:]}"


class Tally:
    """Prints how each run ended and counts those that ended well."""

    def __init__(self, well: str) -> None:
        self.well = well
        self.passed = self.failed = 0

    def add(self, where: str, wrong: list[str]) -> None:
        self.passed, self.failed = self.passed + (not wrong), self.failed + bool(wrong)
        print(f"{where}: {'; '.join(wrong) or self.well}", flush=True)

    def close(self) -> int:
        """The last line; the exit code."""
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0


# ---------------------------------------------------------------- a whole run


def weights(run: Path) -> dict[str, str]:
    """Hash of every weight file that the training stages handed over, and of the verdict over several seeds."""
    patterns = [f"{group}{stage}/*/*.safetensors" for stage in TRAINING for group in ("", "seed-*/")]
    files = [path for pattern in (*patterns, "summary/summary.json") for path in run.glob(pattern)]
    return {str(path.relative_to(run)): fs.hash_file(path) for path in sorted(files)}


def stage_times(run: Path) -> dict[str, tuple[float, float]]:
    """Seconds since the first event at which each stage began training and finished."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    start = events[0]["time"]
    times: dict[str, list[float]] = {}
    for event in events:
        if event["event"] in ("started", "finished"):
            times.setdefault(event["stage"], []).append(event["time"] - start)
    return {stage: (values[0], values[-1]) for stage, values in times.items()}


def moments(
    times: dict[str, tuple[float, float]], total: float, lead: float, kills: int, draw: random.Random
) -> list[float]:
    """Uniform over the run, then as many moved into each training stage as it lacks."""
    chosen = sorted(draw.uniform(0.0, total) for _ in range(kills))
    training = [stage for stage in times if stage.rpartition("/")[2] in TRAINING]
    for stage in training:
        begin, end = (lead + t for t in times[stage])
        inside = sum(begin <= moment <= end for moment in chosen)
        for _ in range(max(0, LEAST_IN_EACH - inside)):
            spare = [m for m in chosen if not any(lead + b <= m <= lead + e for b, e in (times[s] for s in training))]
            if spare:
                chosen.remove(draw.choice(spare))
            chosen.append(draw.uniform(begin, end))
    return sorted(chosen)


def compared(run: Path, expected: dict[str, str]) -> list[str]:
    return [] if weights(run) == expected else ["OTHER WEIGHTS"]


def main() -> int:
    options = given()
    draw = random.Random(options.seed)
    tally = Tally("same weights")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = folder / "undisturbed"
        began, wall = time.monotonic(), time.time()
        if problem := finish(command(options.recipe, undisturbed, options.options)):
            print(problem)
            return 1
        total = time.monotonic() - began
        expected = weights(undisturbed)
        lead = json.loads((undisturbed / "events.jsonl").read_text().splitlines()[0])["time"] - wall
        times = stage_times(undisturbed)
        print(f"undisturbed: {total:.1f} s, {len(expected)} weight files, stages {times}", flush=True)
        for number, drawn in enumerate(moments(times, total, lead, options.kills, draw), 1):
            run = folder / f"kill-{number}"
            arguments = command(options.recipe, run, options.options)
            moment = sooner(lambda at, what=arguments: kill_after(start(what), at), drawn, run, lambda: None)
            where = next((s for s, (b, e) in times.items() if lead + b <= moment <= lead + e), "between stages")
            problem = finish(arguments)
            wrong = [*([problem] if problem else []), *compared(run, expected)]
            tally.add(f"kill {number} at {moment:.1f} s ({where})", wrong)
        if options.publication:
            run = folder / "publication"
            problem = publication_kills(options.recipe, run, options.options)
            tally.add("publication", [problem] if problem else compared(run, expected))
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
