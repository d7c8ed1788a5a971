"""Kill a run again and again: it must go on with the same command and end as if nothing had happened.

    python tests/e2e/kills.py RECIPE [--kills 20] [--seed 0] [--publication] [--set a.b=c ...]

1. One undisturbed run: its duration, when each stage began and ended, and the hash of every weight file.
2. `--kills` runs in fresh folders, each killed once (SIGKILL) at a moment drawn uniformly over the undisturbed run's
   duration, at least four of them in each training stage; each is started again with the same command.
3. With --publication: one more run, killed before every file-system step of every publication (see killed_at.py).

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
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from rlhfctl import fs  # noqa: E402

TRAINING = ("sft", "reward", "ppo")
LEAST_IN_EACH = 4
SOONER = 0.9


def command(recipe: Path, run: Path, overrides: list[str]) -> list[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "rlhfctl", "run", str(recipe), "--run-dir", str(run), *sets]


def weights(run: Path) -> dict[str, str]:
    """Hash of every weight file that the training stages handed over, and of the verdict."""
    files = [path for stage in TRAINING for path in (run / stage).glob("*/*.safetensors")]
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
    for stage in TRAINING:
        begin, end = (lead + t for t in times[stage])
        inside = sum(begin <= moment <= end for moment in chosen)
        for _ in range(max(0, LEAST_IN_EACH - inside)):
            spare = [m for m in chosen if not any(lead + b <= m <= lead + e for b, e in (times[s] for s in TRAINING))]
            if spare:
                chosen.remove(draw.choice(spare))
            chosen.append(draw.uniform(begin, end))
    return sorted(chosen)


def kill_after(arguments: list[str], seconds: float) -> bool:
    """Start, kill after `seconds`; True if it was still running then."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def finish(arguments: list[str]) -> str | None:
    """Run to the end; what went wrong, or None."""
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"exit {result.returncode}: {result.stderr.strip()[-400:]}"


def publication_kills(recipe: Path, folder: Path, overrides: list[str], expected: dict[str, str]) -> bool:
    """One run killed before every step of every publication; whether it ended with the expected weights."""
    run = folder / "publication"
    arguments = [sys.executable, str(HERE / "killed_at.py"), str(recipe), str(run)]
    arguments += [part for override in overrides for part in ("--set", override)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    same = result.returncode == 0 and weights(run) == expected
    print(f"publication: {result.stdout.strip()}; {'same weights' if same else 'OTHER WEIGHTS'} {result.stderr[-400:]}")
    return same


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publication", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    draw = random.Random(options.seed)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = folder / "undisturbed"
        began, wall = time.monotonic(), time.time()
        if problem := finish(command(options.recipe, undisturbed, options.overrides)):
            print(problem)
            return 1
        total = time.monotonic() - began
        expected = weights(undisturbed)
        lead = json.loads((undisturbed / "events.jsonl").read_text().splitlines()[0])["time"] - wall
        times = stage_times(undisturbed)
        print(f"undisturbed: {total:.1f} s, {len(expected)} weight files, stages {times}", flush=True)
        for number, moment in enumerate(moments(times, total, lead, options.kills, draw), 1):
            run = folder / f"kill-{number}"
            arguments = command(options.recipe, run, options.overrides)
            while not kill_after(arguments, moment):  # this one was quicker than the undisturbed run: kill it sooner
                shutil.rmtree(run)
                moment *= SOONER
            where = next((s for s, (b, e) in times.items() if lead + b <= moment <= lead + e), "between stages")
            problem = finish(arguments)
            same = weights(run) == expected
            good = problem is None and same
            passed, failed = passed + good, failed + (not good)
            end = "same weights" if same else "OTHER WEIGHTS"
            print(f"kill {number} at {moment:.1f} s ({where}): {end} {problem or ''}", flush=True)
        if options.publication:
            good = publication_kills(options.recipe, folder, options.overrides, expected)
            passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
