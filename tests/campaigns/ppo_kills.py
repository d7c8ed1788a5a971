"""Kill PPO again and again: it must go on with the same command and end as if nothing had happened.

    python tests/campaigns/ppo_kills.py RECIPE [--kills 20] [--seed 0] [--publication] [--set a.b=c ...]

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

import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kills import Tally, command, finish, given, kill_after, publication_kills, sooner, start

from rlhfctl import fs

TIMED = ("rollout_s", "score_s", "update_s", "episodes_per_s")
LOOK_EVERY_S = 0.005

Metrics = dict[tuple[str, int], dict[str, float]]


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


def kill_in_ppo(arguments: list[str], run: Path, seconds: float) -> bool:
    """Start, kill `seconds` after the first event of ppo; True if the stage was still under way then."""
    process = start(arguments)
    while process.poll() is None and not ppo_events(run):
        time.sleep(LOOK_EVERY_S)
    return kill_after(process, seconds) and all(event["event"] != "finished" for event in ppo_events(run))


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


def main() -> int:
    options = given()
    draw = random.Random(options.seed)
    tally = Tally("same weights, traces and metrics")
    until = ["--until", "ppo", *options.options]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, undisturbed = folder / "before", folder / "undisturbed"
        problem = finish(command(options.recipe, before, ["--until", "reward", *options.options]))
        if not problem:
            shutil.copytree(before, undisturbed)
            problem = finish(command(options.recipe, undisturbed, until))
        if problem:
            print(problem)
            return 1
        events = ppo_events(undisturbed)
        lasts = events[-1]["time"] - events[0]["time"]
        steps, hashed = len(metrics(undisturbed)), len(files(undisturbed))
        print(f"undisturbed: ppo takes {lasts:.1f} s; {hashed} files, metrics at {steps} steps", flush=True)
        for number in range(1, options.kills + 1):
            run, drawn = folder / f"kill-{number}", draw.uniform(0.0, lasts)
            arguments = command(options.recipe, run, until)

            def kill(at: float, arguments: list[str] = arguments, run: Path = run) -> bool:
                return kill_in_ppo(arguments, run, at)

            moment = sooner(kill, drawn, run, lambda run=run: shutil.copytree(before, run))
            reached = max((step for split, step in metrics(run) if split == "train"), default=0)
            problem = finish(arguments)
            where = f"kill {number} at {moment:.1f} s, after update {reached}, went on from {resumed_from(run)}"
            tally.add(where, [problem] if problem else compared(run, undisturbed))
            shutil.rmtree(run)
        if options.publication:
            run = folder / "publication"
            shutil.copytree(before, run)
            problem = publication_kills(options.recipe, run, until)
            tally.add("publication", [problem] if problem else compared(run, undisturbed))
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
