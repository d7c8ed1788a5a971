"""Spoil recipes and data at random: no traceback, no silent failure, no half-written stage.

    python tests/campaigns/fuzz.py [--recipes 300] [--data 300] [--seed 0] [--processes 6] [--only NAME]

A case is one mutation of a project that is right (tests/bad_project.py): of its recipe or its --set values, or of one
of its data files in one of the formats. Each goes through the command line into a fresh run folder: `validate`, `data`,
and what both accept through `run`, or the stage that reads the data. Commands are called in this process; those of
`--processes` cases once more in one of their own, and must say the same. Prints a table, then every fault; exit code 1
if there is one. A case is a function of seed and number: `--only recipe-17` repeats it alone, `--keep DIR` keeps it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import gzip
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from bad_project import (  # noqa: E402
    RECIPE,
    TEMPLATE,
    demonstrations,
    half_written,
    preferences,
    prompts,
    write_project,
)
from conftest import run_cli, run_here  # noqa: E402
from ruamel.yaml import YAML  # noqa: E402

# What errors.py and cli/ document: defects of ours are no part of it.
EXIT_CODES = (0, 1, 2, 3, 5)
TOO_LONG_S = 120
# A number above this where a stage counts with it is right, and would take hours.
MOST_TO_RUN = 100

FULL = RECIPE.replace(
    "ppo:\n",
    "lora: {r: 2, lora_alpha: 4, lora_dropout: 0.0, target_modules: all-linear}\nppo:\n  learning_rate: 1e-5\n"
    "  num_mini_batches: 2\n  temperature: 0.7\n  top_p: 1.0\n  stop_token: eos\n  eval: {every: 1}\n  use: last\n",
)


@dataclass
class Case:
    """One spoilt project: what was done to it, and what to call with it."""

    name: str
    mutation: str
    commands: list[list[str]]
    names: tuple[str, ...]  # one of these must be in an error's message
    overrides: list[str] = field(default_factory=list)
    outcome: str = ""
    seconds: float = 0.0
    said: str = ""  # what the last command refused with
    faults: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- values that nobody expects

LONG = "x" * 100_000
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 3, 1.5, 1e-300, 1e308, -1e308, 2**70, -(2**70), float("nan"), float("inf"),
    "", " ", "x",
    "null", "1", "-1", "nan", "yes", "é\u202e\u0000", "\ud7ff\U0001f642", LONG, "a.b.c", "module:name",
    "os:getcwd", "/",
    ".", "..", "/dev/null", "./model", "demos.jsonl", "org/name", "${HOME}", "${NO_SUCH_VARIABLE}", "${", "~", "%s",
    "{{ x }}", [], [None], ["x", 1], [[]], [["a"], {"b": 1}], {}, {"x": 1}, {"": ""}, {"a": {"b": {"c": []}}},
    "builtin:x",
    "builtin:reviews", "mine.yaml",
]  # fmt: skip


def junk(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(JUNK))


def misspelt(draw: random.Random, word: str) -> str:
    at = draw.randrange(len(word) + 1)
    letter = draw.choice("aeinrt_-. :é")
    return draw.choice(
        [word[:at] + letter + word[at:], word[: max(0, at - 1)] + word[at:], word[::-1], word.upper(), word + "s", ""]
    )


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and item below a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key)
        yield from paths(item, (*at, key))


def holder(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


# ---------------------------------------------------------------- recipes

Tree = dict[str, Any]


def drop_keys(draw: random.Random, tree: Tree) -> None:
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(paths(tree)))
        del holder(tree, path)[path[-1]]


def misspell_keys(draw: random.Random, tree: Tree) -> None:
    for _ in range(draw.randint(1, 2)):
        path = draw.choice([path for path in paths(tree) if isinstance(path[-1], str)])
        section = holder(tree, path)
        section[misspelt(draw, path[-1])] = section.pop(path[-1])


def values_of_another_type(draw: random.Random, tree: Tree) -> None:
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(paths(tree)))
        holder(tree, path)[path[-1]] = junk(draw)


def numbers(draw: random.Random, tree: Tree) -> None:
    """Huge, negative, zero, not a number."""

    def is_number(path: tuple[Any, ...]) -> bool:
        value = holder(tree, path)[path[-1]]
        return isinstance(value, int | float) and not isinstance(value, bool)

    for path in draw.sample([path for path in paths(tree) if is_number(path)], draw.randint(1, 3)):
        section = holder(tree, path)
        old = section[path[-1]]
        section[path[-1]] = draw.choice([-old, 0, old * 1e9, old + 0.5, 2**63, float("nan"), float("-inf"), 1e-30, -1])


def keys_elsewhere(draw: random.Random, tree: Tree) -> None:
    one, other = (draw.choice(list(paths(tree))) for _ in range(2))
    value = copy.deepcopy(holder(tree, one)[one[-1]])
    target = holder(tree, other)[other[-1]]
    if isinstance(target, dict):
        target[str(one[-1])] = value
    else:
        holder(tree, other)[other[-1]] = value


TRAINER_OPTIONS = [
    "learning_rate", "optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "adam_beta1", "adam_epsilon", "packing", "max_length", "num_train_epochs", "gradient_accumulation_steps",
    "per_device_train_batch_size", "bf16", "fp16", "eval_strategy", "logging_steps", "logging_strategy",
    "dataset_num_proc", "dataloader_num_workers", "label_smoothing_factor", "deepspeed", "fsdp", "optim_args",
    "lr_scheduler_kwargs", "eos_token", "pad_token", "neftune_noise_alpha", "group_by_length",
    "remove_unused_columns", "gradient_checkpointing_kwargs", "accelerator_config", "padding_free",
    "assistant_only_loss", "loss_type", "use_liger_kernel", "center_rewards_coefficient", "torch_compile",
    "ddp_backend", "full_determinism", "use_cpu",
]  # fmt: skip


def trainer_options(draw: random.Random, tree: Tree) -> None:
    section = tree[draw.choice(["sft", "reward"])]["trainer"]
    for _ in range(draw.randint(1, 2)):
        section[draw.choice(TRAINER_OPTIONS)] = junk(draw)


# Of the right type, and yet not what a training can use, or only beside other options.
ODD_VALUES: dict[str, list[Any]] = {
    "optim": ["sgd", "adafactor", "galore_adamw", "lomo"], "lr_scheduler_type": ["polynomial", "warmup_stable_decay"],
    "learning_rate": [0, 1e30], "warmup_steps": [0.5, 10**6], "adam_epsilon": [0], "weight_decay": [1e6],
    "max_length": [1, 9],
    "fp16": [True], "bf16": [True], "tf32": [True], "logging_steps": [0, 1.5], "optim_args": ["x", "x=1"],
    "fsdp": ["x"],
    "lr_scheduler_kwargs": [{"x": 1}], "accelerator_config": ["a.json", {"x": 1}], "deepspeed": ["a.json"],
    "eval_strategy": ["epoch"], "eval_on_start": [True], "use_liger_kernel": [True], "pad_to_multiple_of": [0, 8],
    "eos_token": ["<|nope|>"], "pad_token": ["<|nope|>"], "max_steps": [0, -1], "num_train_epochs": [1e-9],
    "neftune_noise_alpha": [5], "label_smoothing_factor": [0.5], "dataloader_drop_last": [True], "debug": ["x"],
    "per_device_train_batch_size": [99], "save_only_model": [True], "torch_empty_cache_steps": [0], "log_level": ["x"],
}  # fmt: skip


def odd_trainer_values(draw: random.Random, tree: Tree) -> None:
    name = draw.choice(list(ODD_VALUES))
    tree[draw.choice(["sft", "reward"])]["trainer"] |= {"max_steps": 2, name: draw.choice(ODD_VALUES[name])}


TREES = [odd_trainer_values, drop_keys, misspell_keys, values_of_another_type, numbers, keys_elsewhere, trainer_options]


def as_yaml(tree: Tree) -> bytes:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    text = io.StringIO()
    yaml.dump(tree, text)
    return text.getvalue().encode("utf-8", "surrogatepass")


def a_line(draw: random.Random, raw: bytes) -> tuple[list[bytes], int]:
    lines = raw.split(b"\n")
    return lines, draw.randrange(len(lines))


def doubled_keys(draw: random.Random, raw: bytes) -> bytes:
    lines, at = a_line(draw, raw)
    return b"\n".join([*lines[:at], lines[at], *lines[at:]])


def broken_yaml(draw: random.Random, raw: bytes) -> bytes:
    places = [at for at, byte in enumerate(raw) if byte in b"{}[]:,-"]
    at = draw.choice(places)
    return (
        raw[:at]
        + draw.choice([b"", b"{", b"]", b": :", b"'", b'"', b"\\", b"@", b"`", b"? ", b"|", b"%"])
        + raw[at + 1 :]
    )


def tabs_and_indents(draw: random.Random, raw: bytes) -> bytes:
    lines, at = a_line(draw, raw)
    lines[at] = draw.choice([b"\t", b" ", b"   ", b" \t "]) + lines[at].lstrip()
    return b"\n".join(lines)


def bad_encodings(draw: random.Random, raw: bytes) -> bytes:
    text = raw.decode()
    at = draw.randrange(len(raw))
    return draw.choice(
        [
            text.encode("utf-16"), b"\xef\xbb\xbf" + raw, raw[:at] + b"\xff" + raw[at:], raw[:at] + b"\x00" + raw[at:],
            raw.replace(b"\n", b"\r\n"), raw.replace(b"\n", b"\r"), raw[:at] + b"\xc3" + raw[at:],
            raw[:at] + b"\x1b[2J" + raw[at:],
            raw.replace(b"\n", "\u2028".encode()), raw[:at] + b"\xed\xa0\x80" + raw[at:],
        ]
    )  # fmt: skip


def anchors_and_tags(draw: random.Random, raw: bytes) -> bytes:
    lines, at = a_line(draw, raw)
    more = draw.choice(
        [
            b"x: &a [*a]", b"lora: *nothing", b"<<: {seed: 3}", b"<<: [1, 2]", b"extends: mine.yaml",
            b"extends: none.yaml",
            b"extends: [a, b]", b"name: !!python/object:os.system x", b"seed: !!int x", b"---", b"...", b"%YAML 9.9",
            b"? [a, b]\n: c", b"seed: !!binary aGk=", b"name: !!set {a}", b"1: 2", b"null: 1",
            b"model: &m\n  init: *m", b"- x",
            b"name: 2024-01-01", b"seed: 0o17", b"seed: 1_000", b"extends: /", b"extends: ${NO_SUCH}",
            b"data: {prompts: {columns: " + b"[" * 300 + b"]" * 300 + b"}}", b"x: " + b"{a: " * 2000 + b"}" * 2000,
        ]
    )  # fmt: skip
    return b"\n".join([*lines[:at], more, *lines[at:]])


def cut_or_mixed(draw: random.Random, raw: bytes) -> bytes:
    lines, at = a_line(draw, raw)
    shuffled = draw.sample(lines, len(lines))
    return draw.choice(
        [raw[: draw.randrange(len(raw))], b"\n".join(lines[:at]), b"\n".join(shuffled), b"", b"\n", b"null"]
    )


TEXTS = [doubled_keys, broken_yaml, tabs_and_indents, bad_encodings, anchors_and_tags, cut_or_mixed]


def set_values(draw: random.Random, tree: Tree) -> list[str]:
    """--set options."""
    given = []
    for _ in range(draw.randint(1, 3)):
        key = ".".join(str(part) for part in draw.choice(list(paths(tree))))
        value = junk(draw)
        text = value if isinstance(value, str) else json.dumps(value)
        text = draw.choice([text, "[1", "{a: ", "&a *a", "!!int x", "'", text]).replace("\x00", "\\0")[:5000]
        given.append(
            draw.choice(
                [f"{key}={text}", f"{key}.x={text}", key, f"={text}", f"{key}={text}", f"{misspelt(draw, key)}={text}"]
            )
        )
    return [part for one in given for part in ("--set", one)]


def recipe_case(number: int, seed: int, folder: Path) -> Case:
    draw = random.Random(f"recipe-{seed}-{number}")
    file = folder / "mine.yaml"
    raw = FULL.encode()
    tree: Tree = YAML(typ="safe", pure=True).load(FULL)
    overrides: list[str] = []
    mutation = [*TREES, *TEXTS, set_values][number % (len(TREES) + len(TEXTS) + 1)]
    if mutation in TREES:
        mutation(draw, tree)
        raw = as_yaml(tree)
    elif mutation is set_values:
        overrides = set_values(draw, tree)
    else:
        raw = mutation(draw, raw)  # type: ignore[assignment, arg-type]
    file.write_bytes(raw)
    commands = [[word, "mine.yaml", *overrides] for word in ("validate", "data")]
    commands.append(["run", "mine.yaml", "--run-dir", "run", *overrides])
    return Case(f"recipe-{number}", mutation.__name__, commands, ("mine.yaml", "--set"), overrides)


# ---------------------------------------------------------------- data

Rows = list[dict[str, Any]]
MESSAGES = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "three"}]
ROW_JUNK: list[Any] = [
    *JUNK, "\x00", "a\x00b", "\ud800", "<|endoftext|>", "<|pad|>", "\u202e\u200b", "\r\n", "\t", "🙂" * 50,
    "word " * 3000,
    MESSAGES, MESSAGES[:1], MESSAGES[1:], [*MESSAGES, *MESSAGES], [{"role": "user"}], [{"content": "x"}], [MESSAGES],
    [{"role": "robot", "content": "x"}], [{"role": "user", "content": None}], [{"role": "user", "content": ["x"]}],
    [{"role": "system", "content": ""}], {"role": "user", "content": "x"}, [{"role": ["user"], "content": "x"}], [None],
]  # fmt: skip


def other_values(draw: random.Random, rows: Rows) -> Rows:
    for row in draw.sample(rows, draw.randint(1, len(rows))):
        row[draw.choice(list(row))] = copy.deepcopy(draw.choice(ROW_JUNK))
    return rows


def a_column_of_another_type(draw: random.Random, rows: Rows) -> Rows:
    name, value = draw.choice(list(rows[0])), draw.choice(ROW_JUNK)
    return [row | {name: copy.deepcopy(value)} for row in rows]


def columns_renamed(draw: random.Random, rows: Rows) -> Rows:
    name = draw.choice(list(rows[0]))
    new = draw.choice([misspelt(draw, name), "text", "messages", "prompt", "tie", "responses", "margin", "scores"])
    some = draw.random() < 0.5
    return [
        {new if key == name and (not some or draw.random() < 0.5) else key: v for key, v in row.items()} for row in rows
    ]


def columns_dropped_or_added(draw: random.Random, rows: Rows) -> Rows:
    for row in draw.sample(rows, draw.randint(1, len(rows))):
        if draw.random() < 0.5:
            del row[draw.choice(list(row))]
        else:
            row[draw.choice(["margin", "tie", "responses", "scores", "messages", "text", "prompts", "x", "images"])] = (
                junk(draw)
            )
    return rows


def rows_dropped_or_doubled(draw: random.Random, rows: Rows) -> Rows:
    return draw.choice([rows[: draw.randrange(len(rows))], [rows[0]] * 9, rows * 3, [], [{}] * 4, draw.sample(rows, 3)])


def conversations(draw: random.Random, rows: Rows) -> Rows:
    def turns(text: str, role: str) -> Any:
        return [{"role": role, "content": text}] if draw.random() < 0.9 else text

    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return [{key: turns(value, roles[key]) for key, value in row.items()} for row in rows]


ROWS = [
    other_values,
    a_column_of_another_type,
    columns_renamed,
    columns_dropped_or_added,
    rows_dropped_or_doubled,
    conversations,
]


def bytes_flipped(draw: random.Random, raw: bytes) -> bytes:
    spoilt = bytearray(raw)
    for _ in range(draw.choice([1, 1, 3, 20])):
        spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def cut(draw: random.Random, raw: bytes) -> bytes:
    return raw[: draw.choice([draw.randrange(len(raw)), len(raw) - 1, 1, 0, len(raw) // 2])]


def bytes_inserted(draw: random.Random, raw: bytes) -> bytes:
    at = draw.choice([0, draw.randrange(len(raw)), len(raw)])
    more = draw.choice(
        [b"\xef\xbb\xbf", b"\x00", b"\x00" * 512, b"\r\n", b"\n\n\n", b"\xff\xfe", b"\x1b[2J", b"{", b"[",
         b"[" * 100_000, b'"', b"junk\n",
         b"{}\n", b"null\n", b"[1, 2]\n", b"3\n", b'{"a": NaN}\n', b"\xc3\x28", b"\x80" * 9, b"x" * 200_000, b",",
         b"\t"]
    )  # fmt: skip
    return raw[:at] + more + raw[at:]


def lines_mixed(draw: random.Random, raw: bytes) -> bytes:
    lines, at = a_line(draw, raw)
    joined = b"".join(lines)
    return draw.choice(
        [
            b"\n".join(lines[1:]), b"\n".join([*lines[:at], *lines[at + 1 :]]), b"\n".join([*lines, *lines]), joined,
            raw.replace(b"\n", b"\r\n"), raw.replace(b"\n", b"\r"), b"\n".join(draw.sample(lines, len(lines))),
            raw + raw,
        ]
    )  # fmt: skip


def other_encoding(draw: random.Random, raw: bytes) -> bytes:
    text = raw.decode("utf-8", "replace")
    return text.replace("number", "numéro").encode(
        draw.choice(["utf-16", "latin-1", "utf-32", "utf-7", "cp037"]), "replace"
    )


BYTES = [bytes_flipped, cut, bytes_inserted, lines_mixed, other_encoding]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".jsonl.gz", ".ndjson", ".csv.gz")


def written(rows: Rows, suffix: str) -> bytes:
    """The rows in a format; ones that it cannot hold as text in it."""
    kind = suffix.removesuffix(".gz")
    names = list(dict.fromkeys(key for row in rows for key in row)) or ["prompt"]
    if kind in (".jsonl", ".ndjson"):
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif kind == ".json":
        raw = json.dumps(rows).encode()
    elif kind in (".csv", ".tsv"):
        text = io.StringIO()
        table = csv.writer(text, delimiter="," if kind == ".csv" else "\t")
        table.writerows([names, *([as_cell(row.get(name)) for name in names] for row in rows)])
        raw = text.getvalue().encode("utf-8", "surrogatepass")
    elif kind == ".txt":
        raw = "\n".join(as_cell(row.get(names[0])) for row in rows).encode("utf-8", "surrogatepass")
    else:
        raw = as_table(rows, names, kind)
    return gzip.compress(raw, mtime=0) if suffix.endswith(".gz") else raw


def as_cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def as_table(rows: Rows, names: list[str], kind: str) -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # several types in one column
            cells = [as_cell(value).encode("utf-8", "replace").decode() for value in values]
            columns[name] = pa.array(cells)
    table, out = pa.table(columns), io.BytesIO()
    if kind == ".parquet":
        with contextlib.suppress(pa.ArrowException):  # structs without fields
            write_table(table, out)
        return out.getvalue() or b"PAR1"
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


ROWS_LEFT = "left to train on"
SOURCE_OPTIONS = (
    *("", "", ", bad_rows: drop", ", bad_rows: drop", ", bad_rows: drop"),
    *(", turns: {}", ", deduplicate: true", ", limit: 11", ", max_chars: 40"),
)
SETS: dict[str, tuple[Callable[[], Rows], str, list[str]]] = {
    "demonstrations": (demonstrations, "demos.jsonl", ["sft"]),
    "preferences": (preferences, "pairs.jsonl", ["reward", "--policy", "model"]),
    "prompts": (prompts, "prompts.jsonl", ["ppo", "--policy", "model", "--reward-model", "scorer"]),
}


def data_case(number: int, seed: int, folder: Path) -> Case:
    draw = random.Random(f"data-{seed}-{number}")
    name = list(SETS)[number % 3]
    make, usual, (command, *options) = SETS[name]
    suffix = SUFFIXES[number // 3 % len(SUFFIXES)]
    mutation = draw.choice([*ROWS, *BYTES, wrong_suffix])
    rows = mutation(draw, make()) if mutation in ROWS else make()  # type: ignore[arg-type]
    raw = written(rows, suffix)  # type: ignore[arg-type]
    if mutation in BYTES and raw:
        raw = mutation(draw, raw)  # type: ignore[arg-type, assignment]
    if mutation is wrong_suffix:
        suffix = wrong_suffix(draw, suffix)
    (folder / usual).unlink()
    file = folder / f"spoilt{suffix}"
    file.write_bytes(raw)
    options_of_source = draw.choice(SOURCE_OPTIONS)
    recipe = RECIPE.replace(f"{{source: {usual}", f"{{source: spoilt{suffix}{options_of_source}")
    if draw.random() < 0.5:
        (folder / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")
        recipe = recipe.replace("path: ./model", "path: ./model\n  chat_template: chat.jinja")
    (folder / "mine.yaml").write_text(recipe, encoding="utf-8")
    commands = [["validate", "mine.yaml"], ["data", "mine.yaml"], [command, "mine.yaml", "--run-dir", "run", *options]]
    return Case(
        f"data-{number}", f"{mutation.__name__} {suffix}", commands, (f"spoilt{suffix}", f"data.{name}", ROWS_LEFT)
    )


def wrong_suffix(draw: random.Random, suffix: str) -> str:
    return draw.choice([other for other in (*SUFFIXES, ".xlsx", "", ".jsonl.bak", ".gz", ".JSONL") if other != suffix])


# ---------------------------------------------------------------- one case


class TooLong(BaseException):
    """No library takes it for an error of its own."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def strike(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, strike)
    signal.alarm(TOO_LONG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def takes_hours(folder: Path, overrides: list[str]) -> bool:
    """Whether a recipe that is right counts with numbers for which nobody waits here."""
    from rlhfctl.recipe.load import load_recipe

    with contextlib.chdir(folder):
        recipe = load_recipe("mine.yaml", overrides[1::2]).recipe.model_dump(mode="json")
    counted = {path: holder(recipe, path)[path[-1]] for path in paths(recipe)}
    quick = ("bootstrap_samples", "seed", "lora_alpha", "max_chars", "limit", "total_episodes")
    return (
        any(isinstance(value, int) and value > MOST_TO_RUN and path[-1] not in quick for path, value in counted.items())
        or (recipe["ppo"] or {}).get("total_episodes", 0) > MOST_TO_RUN * 10
        or (recipe["compare"] or {}).get("bootstrap_samples", 0) > 10_000
    )


def examine(case: Case, folder: Path, *, run: bool, again: bool) -> bool:
    """Give the commands until one refuses; note every fault. Returns whether a stage was tried."""
    stage = False
    for command in case.commands:
        stage = command[0] not in ("validate", "data")
        if stage and (not run or takes_hours(folder, case.overrides)):
            case.outcome = "accepted"
            return False
        try:
            with limited():
                done = run_here(*command, cwd=folder)
        except TooLong:
            case.faults.append(f"{command}: not over after {TOO_LONG_S} s")
            return stage
        if done.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise KeyboardInterrupt
        said = done.stdout + done.stderr
        if "Traceback" in said:
            case.faults.append(f"{command}: traceback\n{said[said.index('Traceback') :][-1500:]}")
        elif done.returncode not in EXIT_CODES:
            case.faults.append(f"{command}: exit code {done.returncode}")
        elif done.returncode and not (
            done.stderr.startswith(("error: ", "Usage: ")) and len(done.stderr) > len("error: ") + 9
        ):
            case.faults.append(f"{command}: no message but {done.stderr!r}")
        elif done.returncode and not any(name in done.stderr for name in case.names):
            case.faults.append(f"{command}: the message does not say where: {done.stderr[:600]}")
        if left := half_written(folder / "run"):
            case.faults.append(f"{command}: left half-written: {', '.join(left)}")
        if again:
            theirs = run_cli(*command, cwd=folder)
            if not stage and (theirs.returncode, theirs.stderr) != (done.returncode, done.stderr):
                case.faults.append(f"{command}: in a process of its own {theirs.returncode}: {theirs.stderr[:600]}")
        case.said = done.stderr
        case.outcome = f"refused by {command[0]}" if done.returncode else "ran"
        if done.returncode or case.faults:
            break
    return stage


@dataclass
class Result:
    cases: list[Case]
    seconds: float

    @property
    def faults(self) -> list[str]:
        return [f"{case.name} ({case.mutation}): {fault}" for case in self.cases for fault in case.faults]

    def table(self) -> str:
        outcomes = sorted({case.outcome for case in self.cases})
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for case in self.cases:
            kind = case.name.split("-")[0]
            for row in (f"{kind}: {case.mutation.split()[0]}", f"{kind}: all"):
                counts[row][case.outcome] += 1
        lines = [f"{'':42}" + "".join(f"{outcome:>20}" for outcome in outcomes)]
        lines += [
            f"{row:42}" + "".join(f"{found[outcome] or '':>20}" for outcome in outcomes)
            for row, found in sorted(counts.items())
        ]
        return "\n".join([*lines, f"{len(self.cases)} cases in {self.seconds:.0f} s, {len(self.faults)} faults"])


def fuzz(
    recipes: int,
    data: int,
    seed: int,
    *,
    runs: int = 10**9,
    processes: int = 0,
    only: str | None = None,
    keep: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """The cases of a seed. `runs`: how many of the accepted ones are run through their stage."""
    began, cases = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        sound = Path(temporary) / "sound"
        write_project(sound)
        write_scorer(sound)
        makers = [(recipe_case, number) for number in range(recipes)] + [(data_case, number) for number in range(data)]
        apart = set(random.Random(seed).sample(range(len(makers)), min(processes, len(makers))))
        for index, (make, number) in enumerate(makers):
            folder = Path(temporary) / "project"
            shutil.copytree(sound, folder)
            case = make(number, seed, folder)
            if only in (None, case.name):
                start = time.monotonic()
                runs -= examine(case, folder, run=runs > 0, again=index in apart)
                case.seconds = time.monotonic() - start
                say(f"{case.name} ({case.mutation}): {case.outcome}, {case.seconds:.1f} s")
                cases.append(case)
                for fault in case.faults:
                    say(f"FAULT {case.name} ({case.mutation}): {fault}\n")
                if keep is not None:
                    shutil.copytree(folder, keep / case.name)
            shutil.rmtree(folder)
    return Result(cases, time.monotonic() - began)


def write_scorer(project: Path) -> None:
    import torch

    from rlhfctl.models import build, heads, loading, tokenizing

    base = loading.load_causal_lm(str(project / "model"), dtype=torch.float32)
    tokenizer = tokenizing.load_tokenizer(str(project / "model"))
    build.save_model(heads.scorer_on(base, seed=1), tokenizer, project / "scorer")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", type=int, default=300)
    parser.add_argument("--data", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=6, help="cases repeated in processes of their own")
    parser.add_argument("--only", help="one case by its name")
    parser.add_argument("--keep", type=Path, help="where to keep the spoilt projects")
    parser.add_argument("--messages", action="store_true", help="print what each case was refused with")
    given = parser.parse_args()
    result = fuzz(
        given.recipes, given.data, given.seed, processes=given.processes, only=given.only, keep=given.keep, say=print
    )
    print(result.table())
    if given.messages:
        for case in result.cases:
            print(f"\n{case.name} ({case.mutation}): {case.outcome}\n{case.said[:1000]}", end="")
    return bool(result.faults)


if __name__ == "__main__":
    sys.exit(main())
