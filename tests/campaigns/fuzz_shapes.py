"""Spoil rows of every shape of data at random: no traceback, and nothing is dropped in silence.

    python tests/campaigns/fuzz_shapes.py [--cases 300] [--seed 0] [--only SHAPE-NUMBER]

A case is one shape (as public data sets have it), one mutation of its rows and one format of file. Its rows are loaded
as a run loads them, and nothing is trained. Either a DataError says what is wrong and where, or each row of the file is
used or left out for a reason that the notes tell, and each column that nothing reads is named. Prints a table, then
every fault; exit code 1 if there is one.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import copy
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from fuzz import ROW_JUNK, ROWS, Rows, written

from rlhfctl.data import (
    load,
    sources,
    types,
)
from rlhfctl.data.tally import Tally
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Data, Demonstrations, Preferences, Prompts

COUNT = 14
SUFFIXES = (".jsonl", ".jsonl", ".json", ".parquet", ".csv", ".arrow")
SECTIONS = {"demonstrations": Demonstrations, "preferences": Preferences, "prompts": Prompts}
OPTIONS: list[dict[str, Any]] = [
    {}, {}, {}, {"deduplicate": True}, {"limit": 5}, {"max_chars": 40}, {"as_conversations": True}, {"turns": {}},
]  # fmt: skip
# Why a row is left out -> what its note says.
TOLD = {
    "cannot be used": "cannot be used and are dropped", "cannot be read": "cannot be read and are dropped",
    "ties": "ties", "duplicates": "duplicates",
    "longer than 40 characters": "longer than 40 characters", "beyond the limit": "are used",
    "in no part": "repeat a prompt that is kept",
}  # fmt: skip
NAMES = {
    "prompt", "completion", "messages", "text", "chosen", "rejected", "margin", "tie", "responses", "scores", "ratings",
    "ranks", "label", "system", "system_prompt", "conversations", "conversation", "answers", "score_chosen", "tools",
    "score_rejected", "Unnamed: 0",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One way to keep rows: which data set it is for, a row by its number, and what the recipe says of it."""

    name: str
    row: Callable[[int], dict[str, Any]]
    options: Mapping[str, Any]


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def asked(n: int) -> str:
    return f"is number {n} even?"


def chat(n: int, answer: str = "yes") -> list[dict[str, Any]]:
    return [turn("user", asked(n)), turn("assistant", f"{answer} {n}")]


def sharegpt(n: int) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": asked(n)}, {"from": "gpt", "value": "yes"}], "id": n}


def calls(n: int) -> dict[str, Any]:
    call = turn("assistant", None, tool_calls=[{"function": {"name": "even", "arguments": {"n": n}}}])
    parts = [{"type": "text", "text": "yes"}, {"type": "text", "text": "!"}]
    tools = [{"type": "function", "function": {"name": "even", "parameters": {"type": "object"}}}]
    return {"messages": [turn("user", asked(n)), call, turn("tool", "1"), turn("assistant", parts)], "tools": tools}


def nectar(n: int) -> dict[str, Any]:
    answers = [{"answer": f" {word} {n}", "rank": rank} for word, rank in (("no", 3), ("yes", 1), ("so", 2))]
    return {"prompt": asked(n), "answers": answers, "source": "x"}


def whole(n: int) -> dict[str, Any]:
    scores = {"score_chosen": 7.5, "score_rejected": float(n)}
    return {"prompt": asked(n), "chosen": chat(n), "rejected": chat(n, "no"), "messages": chat(n), **scores}


def two(n: int) -> dict[str, Any]:
    return {"question": asked(n), "response_0": f" yes {n}", "response_1": " no", "better": n % 2, "safe": True}


def arena(n: int) -> dict[str, Any]:
    winner = ("model_a", "model_b", "tie")[n % 3]
    return {"conversation_a": chat(n), "conversation_b": chat(n, "no"), "winner": winner, "turn": 1}


def strength(n: int) -> dict[str, Any]:
    return {"context": [turn("user", asked(n))], "response1": f"yes {n}", "response2": "no", "preference": n % 5 - 2}


PAIR = {"responses": ["response_0", "response_1"], "label": "better"}
SHAPES: dict[str, Shape] = {
    "sharegpt": Shape("demonstrations", sharegpt, {}),
    "tools": Shape("demonstrations", calls, {}),
    "messages": Shape("demonstrations", lambda n: {"messages": chat(n), "prompt": asked(n), "prompt_id": str(n)}, {}),
    "system": Shape(
        "demonstrations", lambda n: {"system": "Be brief.", "prompt": asked(n), "completion": f" yes {n}"}, {}
    ),
    "alpaca": Shape(
        "demonstrations",
        lambda n: {"instruction": asked(n), "input": "" if n % 2 else "so", "output": " yes"},
        {"columns": {"prompt": ["instruction", "input"], "completion": "output"}},
    ),
    "nested": Shape(
        "demonstrations",
        lambda n: {"data": {"prompt": asked(n), "answers": {"text": [" yes", " no"]}}, "id": n},
        {"columns": {"prompt": "data.prompt", "completion": "data.answers.text.0"}},
    ),
    "binarized": Shape("preferences", whole, {}),
    "label": Shape("preferences", two, {"columns": {"prompt": "question", **PAIR}}),
    "arena": Shape(
        "preferences", arena, {"columns": {"responses": ["conversation_a", "conversation_b"], "label": "winner"}}
    ),
    "strength": Shape(
        "preferences",
        strength,
        {
            "columns": {"prompt": "context", "responses": ["response1", "response2"], "label": "preference"},
            "label": {"first": [-2, -1], "second": [1, 2], "tie": 0},
        },
    ),
    "nectar": Shape("preferences", nectar, {}),
    "ratings": Shape(
        "preferences", lambda n: {"prompt": asked(n), "responses": [" a", " b", " c"], "ratings": [n, 2, 3]}, {}
    ),
    "answered prompts": Shape("prompts", lambda n: {"messages": chat(n), "level": n % 3}, {"test": 3}),
    "prompts of pairs": Shape("prompts", whole, {"test": 2, "eval": 1}),
    "prompts with system": Shape("prompts", lambda n: {"system": "Be brief.", "prompt": asked(n % 9)}, {"test": 3}),
}


# ---------------------------------------------------------------- mutations


def something_within(draw: random.Random, rows: Rows) -> Rows:
    """A value somewhere inside a row, in a message or an object of a list, becomes another."""
    for row in draw.sample(rows, draw.randint(1, len(rows))):
        at: Any = row
        while True:
            key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.2:
                at[key] = copy.deepcopy(draw.choice(ROW_JUNK))
                break
            at = at[key]
    return rows


def nothing(draw: random.Random, rows: Rows) -> Rows:
    return rows


MUTATIONS = [*ROWS[:-1], something_within, something_within, nothing]  # the last of ROWS makes other shapes


def section_of(shape: Shape, file: Path, draw: random.Random) -> Any:
    options = draw.choice(OPTIONS) | shape.options | ({"bad_rows": "drop"} if draw.random() < 0.7 else {})
    return SECTIONS[shape.name].model_validate({"source": str(file), **options})


def faults_of(name: str, number: int, seed: int, folder: Path) -> tuple[str, list[str]]:
    """(outcome, faults) of one case."""
    draw = random.Random(f"{name}-{seed}-{number}")
    shape = SHAPES[name]
    rows = draw.choice(MUTATIONS)(draw, [shape.row(n) for n in range(COUNT)])
    file = folder / f"rows{draw.choice(SUFFIXES)}"
    file.write_bytes(written(rows, file.suffix))
    section = section_of(shape, file, draw)
    try:
        loaded = load.check_all(Data(**{shape.name: section}), 0)[shape.name]
    except DataError as error:
        said = str(error)
        where = any(word in said for word in (str(file), f"data.{shape.name}"))
        return "refused", [] if where else [f"the message does not say where: {said}"]
    except Exception:  # noqa: BLE001 - whatever it is, it is a fault
        return "traceback", [traceback.format_exc()]
    finally:
        kept = file.read_bytes()
        file.unlink()
    file.write_bytes(kept)
    raw, places, _ = sources.read(section, "text", Tally())
    file.unlink()
    return "used", list(_silent(loaded, raw, places, section))


def _silent(loaded: types.Rows, raw: Rows, places: Sequence[str], section: Any) -> list[str]:
    """Rows and columns that went without a word."""
    notes = " | ".join(loaded.notes)
    used, left_out = set(loaded.locations), loaded.left_out
    found = []
    if missing := set(places) - used - left_out.keys():
        found.append(f"neither used nor left out: {sorted(missing)}; notes: {notes}")
    if used & left_out.keys():
        found.append(f"used and left out: {sorted(used & left_out.keys())}")
    for why, count in Counter(left_out.values()).items():
        if TOLD[why] not in notes:
            found.append(f"{count} rows are left out ({why}) without a note: {notes}")
    if loaded.name != "prompts":
        mapped = {part.partition(".")[0] for names in section.columns.values() for part in load.columns.names_of(names)}
        there = {key for row in raw for key, value in row.items() if value is not None}
        silent = {key for key in there - NAMES - mapped if key not in notes}
        found += [f"the columns {silent} are not named: {notes}"] if silent else []
    return found


@dataclass
class Result:
    outcomes: dict[str, Counter[str]]
    faults: list[str]

    def table(self) -> str:
        lines = [f"{name:22} " + ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
                 for name, found in self.outcomes.items()]  # fmt: skip
        cases = sum(sum(found.values()) for found in self.outcomes.values())
        return "\n".join([*lines, f"{cases} cases, {len(self.faults)} faults"])


def fuzz_shapes(cases: int, seed: int, only: str | None = None) -> Result:
    """So many cases of each shape."""
    result = Result({name: Counter() for name in SHAPES}, [])
    with tempfile.TemporaryDirectory(prefix="shapes-") as folder:
        for name in SHAPES:
            for number in range(cases):
                if only in (None, f"{name}-{number}"):
                    outcome, faults = faults_of(name, number, seed, Path(folder))
                    result.outcomes[name][outcome] += 1
                    result.faults += [f"{name}-{number}: {fault}" for fault in faults]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="of each shape")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case by its name")
    given = parser.parse_args()
    result = fuzz_shapes(given.cases, given.seed, given.only)
    print(result.table())
    for fault in result.faults:
        print(f"FAULT {fault}")
    return bool(result.faults)


if __name__ == "__main__":
    sys.exit(main())
