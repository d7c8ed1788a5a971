"""Make streams of event records for the tests of the dashboard: a healthy run, several rounds, random records."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]
STAGES = ("sft", "reward", "ppo", "compare")
SAMPLE = {
    "prompt": "review of the school play:",
    "response": " the music was gentle. i loved the great plot.",
    "reference": " it was a play.",
    "scores": {"score": 0.735},
    "reference_scores": {"score": 0.581},
}
ODD_TEXTS = (
    "",
    " ",
    "plain words " * 30,
    "x" * 500,
    "音楽は優しくて、物語は素晴らしい。" * 9,
    "🎬👨‍👩‍👧 ❤️ 🇩🇪 é\u0301 \u202eabc",
    "\x1b[31mred\x07\t\r\nsecond\u2028line\ud800\x00",
    "[bold]markup[/bold] :smile: [/]",
    "a\n" * 50,
)
ODD_VALUES = (0.0, -1.5, 1e-9, 1e300, -1e300, 123456789.0, 10**400, None, math.nan, math.inf, "text", True, [], {})


def ppo_values(step: int, **changed: float | None) -> dict[str, float | None]:
    """Make the metrics of one update of a healthy run."""
    values: dict[str, float | None] = {
        "score": 0.1 + 0.02 * step,
        "kl": min(2.0, 0.1 * step),
        "length": 18.0 + step % 2,
        "eos_rate": 0.98,
        "repetition": 0.03,
        "token_entropy": 0.8 - 0.002 * step,
        "explained_variance": -0.2 if step < 3 else 0.4,
        "clip_fraction": 0.01,
        "value_loss": 0.3 / (1 + step),
        "policy_loss": -0.01,
        "grad_norm": 0.2,
        "raw_score_std": 0.4,
        "episodes_per_s": 34.0,
    }
    return values | changed


def ppo(
    updates: int, *, first: int = 1, total: int = 40, start: float = 1000.0, **changed: float | None
) -> Iterator[Record]:
    """Yield progress and metrics of the updates `first` to `updates`, two seconds per update."""
    for step in range(first, updates + 1):
        common = {
            "stage": "ppo",
            "time": start + 2.0 * step,
            "step": step,
            "total": total,
            "eta_s": 2.0 * (total - step),
        }
        yield {"event": "progress", "unit": "step", **common}
        yield {"event": "metrics", "split": "train", "values": ppo_values(step, **changed), **common}


def started(stage: str, time: float, total: int | None, resumed_from: int | None = None, **settings: Any) -> Record:
    return {
        "event": "started",
        "stage": stage,
        "time": time,
        "total_steps": total,
        "resumed_from": resumed_from,
        "settings": settings,
    }


def finished(stage: str, time: float, seconds: float, *, skipped: bool = False) -> Record:
    return {
        "event": "finished",
        "stage": stage,
        "time": time,
        "path": f"runs/x/{stage}",
        "seconds": seconds,
        "metrics": {},
        "skipped": skipped,
    }


def run_started(time: float = 0.0, stages: tuple[str, ...] = STAGES) -> Record:
    return {"event": "run_started", "stage": "run", "time": time, "name": "quickstart", "stages": list(stages)}


def until_ppo(updates: int = 22, *, settings: dict[str, Any] | None = None) -> list[Record]:
    """Make a run in the middle of PPO, at 1000 + 2 x `updates` seconds."""
    records = [run_started(), started("sft", 10.0, 100)]
    for step in range(1, 101):
        common = {"stage": "sft", "time": 10.0 + step, "step": step, "total": 100, "eta_s": 100.0 - step}
        records.append({"event": "progress", "unit": "step", **common})
        if step % 10 == 0:
            records.append({"event": "metrics", "split": "train", "values": {"loss": 50.0 / step}, **common})
    records += [finished("sft", 111.0, 101.0), started("reward", 112.0, 50), finished("reward", 900.0, 65.0)]
    records.append(started("ppo", 1000.0, 40, **(settings or {"kl_coef": 0.05, "stop_token": "eos"})))
    records += ppo(updates)
    records.append({"event": "sample", "stage": "ppo", "time": 1000.0 + 2.0 * updates, "step": 20, **SAMPLE})
    return records


def whole() -> list[Record]:
    """Make a run from its first event to its last."""
    records = until_ppo(40)
    records += [finished("ppo", 1081.0, 81.0), started("compare", 1082.0, 300)]
    for step in range(0, 301, 50):
        progress = {"event": "progress", "stage": "compare", "time": 1082.0 + step / 50, "step": step, "total": 300}
        records.append({**progress, "unit": "response", "eta_s": None})
    measured = {"event": "metrics", "stage": "compare", "time": 1090.0, "step": 0, "split": "test", "total": None}
    records.append({**measured, "eta_s": None, "values": {"win_rate": 0.72, "delta": 0.09, "length": 21.0, "kl": 2.3}})
    records.append({"event": "sample", "stage": "compare", "time": 1090.0, "step": 0, **SAMPLE})
    return [*records, finished("compare", 1090.0, 8.0)]


def rounds(count: int, *, until: str | None = None) -> list[Record]:
    """Make rounds of four stages, `sft`, ..., `round-2/sft`, ..., one hour per round.

    With `until`, the last of them is in the middle of this stage, and two more rounds are due.
    """
    due = count + (2 if until else 0)
    prefixes = ["", *(f"round-{number}/" for number in range(2, due + 1))]
    names = tuple(prefix + stage for prefix in prefixes for stage in STAGES)
    records = [run_started(0.0, names)]
    for number, prefix in enumerate(prefixes[:count]):
        start = 3600.0 * number
        for stage, took in zip(STAGES, (60.0, 30.0, 81.0, 8.0), strict=True):
            name = prefix + stage
            records.append(started(name, start, 40))
            partly = stage == until and number == count - 1
            if stage == "ppo":
                records += [{**record, "stage": name} for record in ppo(22 if partly else 40, start=start)]
            if partly:
                return records
            start += 100.0
            records.append(finished(name, start, took))
    return records


def random_stream(seed: int, count: int = 120) -> list[Record]:
    """Make records in any order with values of any kind, which a screen must survive."""
    draw = random.Random(seed)
    kinds = ("run_started", "run_stopped", "started", "progress", "metrics", "sample", "warning", "note", "checkpoint")
    kinds += ("finished", "from a later version", "working")
    names = (*STAGES, "base", "a stage with a long name 音楽")
    metrics = ("score", "kl", "length", "eos_rate", "token_entropy", "eval_score", "loss", "win_rate", "音", "x" * 60)

    def odd() -> Any:
        return draw.choice(ODD_VALUES) if draw.random() < 0.2 else draw.uniform(-3, 300)

    records: list[Record] = []
    for index in range(count):
        kind = draw.choice(kinds)
        record: Record = {"event": kind, "stage": draw.choice(names), "time": 1e9 + 7.0 * index}
        if draw.random() < 0.02:
            record["time"] = odd()
        if kind == "run_started":
            record |= {"name": draw.choice(ODD_TEXTS), "stages": draw.sample(names, draw.randrange(len(names)))}
        record |= {"reason": draw.choice(ODD_TEXTS), "message": draw.choice(ODD_TEXTS), "seconds": odd()}
        record |= {"step": odd(), "total": odd(), "total_steps": odd(), "resumed_from": draw.choice((None, 3, odd()))}
        record |= {"what": draw.choice(ODD_TEXTS), "done": odd(), "over": draw.random() < 0.2}
        record |= {"eta_s": odd(), "unit": draw.choice(("step", "response", None)), "skipped": draw.random() < 0.3}
        record |= {
            "split": draw.choice(("train", "eval", "test")),
            "settings": draw.choice(({"kl_coef": 0.1}, {}, None)),
        }
        record |= {"values": {name: odd() for name in draw.sample(metrics, 5)}}
        record |= {"prompt": draw.choice(ODD_TEXTS), "response": draw.choice((*ODD_TEXTS, None, 3))}
        record |= {"reference": draw.choice((*ODD_TEXTS, None)), "scores": draw.choice(({"score": odd()}, None, {}))}
        records.append(record)
    return records
