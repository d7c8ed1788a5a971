"""Kill PPO again and again: it must go on with the same command and end as if nothing had happened.

    python tests/e2e/ppo_kills.py RECIPE [--kills 20] [--seed 0] [--publication] [--set a.b=c ...]

1. Once: the recipe until its reward model; every run below is a copy of that folder, so only PPO is run again.
2. One undisturbed `--until ppo`.
3. `--kills` copies, each killed once (SIGKILL) at a moment drawn uniformly between the first and the last event of the
   ppo stage, and started again with the same command.
4. With --publication: one copy more, killed before every file-system step with which PPO publishes (see killed_at.py):
   each flush, rename and removal of each checkpoint, of the traces and of the result.

A copy passes if it ends well with the weight files (policy, critic) and traces of the undisturbed run and with its
metrics at every step, durations apart. Prints a line a kill and ends with "N passed, M failed".
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
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from rlhfctl import fs  # noqa: E402

TIMED = ("rollout_s", "score_s", "update_s", "episodes_per_s")
LOOK_EVERY_S = 0.005
SOONER = 0.9

Metrics = dict[tuple[str, int], dict[str, float]]


def command(recipe: Path, run: Path, until: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "rlhfctl", "run", str(recipe), "--run-dir", str(run), *options(until, overrides)]


def options(until: str, overrides: list[str]) -> list[str]:
    return ["--until", until, *(part for override in overrides for part in ("--set", override))]


def ppo_events(run: Path) -> list[dict[str, Any]]:
    """What the ppo stage has said by now; a line that is still being written is left out."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [event for event in map(json.loads, lines) if event["stage"] == "ppo"]


def metrics(run: Path) -> Metrics:
    """The last values said for each split and step: after a kill some steps are said twice."""
    last: Metrics = {}
    for event in ppo_events(run):
        if event["event"] == "metrics":
            values = {name: value for name, value in event["values"].items() if name not in TIMED}
            last[event["split"], event["step"]] = values
    return last


def files(run: Path) -> dict[str, str]:
    """Hash of every weight file and trace that PPO leaves."""
    found = [*(run / "ppo").rglob("*.safetensors"), *(run / "ppo").rglob("*.jsonl")]
    return {str(path.relative_to(run)): fs.hash_file(path) for path in sorted(found)}


def finish(arguments: list[str]) -> str | None:
    """Run to the end; what went wrong, or None."""
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"exit {result.returncode}: {result.stderr.strip()[-400:]}"


def kill_in_ppo(arguments: list[str], run: Path, seconds: float) -> bool:
    """Start, kill `seconds` after the first event of ppo; True if the stage was still under way then."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and not ppo_events(run):
            time.sleep(LOOK_EVERY_S)
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return all(event["event"] != "finished" for event in ppo_events(run))
    return False


def compared(run: Path, expected: Path) -> list[str]:
    """What differs between two finished runs, in words."""
    ours, theirs = files(run), files(expected)
    wrong = [f"OTHER {name}" for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    said, due = metrics(run), metrics(expected)
    steps = [
        f"{split} {step}"
        for split, step in sorted(said.keys() | due.keys())
        if said.get((split, step)) != due.get((split, step))
    ]
    return [*wrong, *([f"OTHER METRICS at {', '.join(steps)}"] if steps else [])]


def resumed_from(run: Path) -> Any:
    """The update that the last start of ppo went on from; None where it began anew."""
    return [event["resumed_from"] for event in ppo_events(run) if event["event"] == "started"][-1]


def publication_kills(recipe: Path, run: Path, overrides: list[str], expected: Path) -> list[str]:
    """One run killed before every step of every publication of PPO; what is wrong with its end."""
    arguments = [sys.executable, str(HERE / "killed_at.py"), str(recipe), str(run), *options("ppo", overrides)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    print(f"publication: {result.stdout.strip()}", flush=True)
    if result.returncode != 0:
        return [f"exit {result.returncode}: {result.stderr.strip()[-400:]}"]
    return compared(run, expected)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publication", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    draw = random.Random(given.seed)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, undisturbed = folder / "before", folder / "undisturbed"
        if problem := finish(command(given.recipe, before, "reward", given.overrides)):
            print(problem)
            return 1
        shutil.copytree(before, undisturbed)
        if problem := finish(command(given.recipe, undisturbed, "ppo", given.overrides)):
            print(problem)
            return 1
        events = ppo_events(undisturbed)
        lasts = events[-1]["time"] - events[0]["time"]
        steps, hashed = len(metrics(undisturbed)), len(files(undisturbed))
        print(f"undisturbed: ppo takes {lasts:.1f} s; {hashed} files, metrics at {steps} steps", flush=True)
        for number in range(1, given.kills + 1):
            run, moment = folder / f"kill-{number}", draw.uniform(0.0, lasts)
            arguments = command(given.recipe, run, "ppo", given.overrides)
            shutil.copytree(before, run)
            while not kill_in_ppo(arguments, run, moment):  # quicker than the undisturbed run: kill it sooner
                shutil.rmtree(run)
                shutil.copytree(before, run)
                moment *= SOONER
            reached = max((step for split, step in metrics(run) if split == "train"), default=0)
            problem = finish(arguments)
            wrong = [problem] if problem else compared(run, undisturbed)
            passed, failed = passed + (not wrong), failed + bool(wrong)
            where = f"kill {number} at {moment:.1f} s, after update {reached}, went on from {resumed_from(run)}"
            print(f"{where}: {'; '.join(wrong) or 'same weights, traces and metrics'}", flush=True)
            shutil.rmtree(run)
        if given.publication:
            shutil.copytree(before, folder / "publication")
            wrong = publication_kills(given.recipe, folder / "publication", given.overrides, undisturbed)
            passed, failed = passed + (not wrong), failed + bool(wrong)
            print(f"publication: {'; '.join(wrong) or 'same weights, traces and metrics'}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
