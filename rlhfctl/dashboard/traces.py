"""Read a run's traces: which updates are traced, the episodes of one, and their numbers as rows, one per token.

Reads `STAGE/traces/*.jsonl`, and for the settings and logged losses `STAGE/manifest.json` and `events.jsonl`; JSON
alone, no model. Writes nothing. The terminal (terminal/tokens.py) and the report draw the rows; explain.py explains
each number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.errors import RlhfctlError
from rlhfctl.paths import EVENTS

PPO = "ppo"
TRACES = "traces"
_FILE = re.compile(r"update-(\d+)\.jsonl")
_BYTES_SHOWN_AS_THEY_ARE = (range(33, 127), range(161, 173), range(174, 256))

Record = Mapping[str, Any]  # one line of a trace: docs/run-folder.md names its fields


# ---------------------------------------------------------------- which traces there are


def ppo_stages(run: Path) -> list[str]:
    """List the stages of a run that train with PPO, by their folders: `ppo`, or `seed-1/ppo` and the like."""
    folders = [*run.glob(PPO), *run.glob(f"*/{PPO}")]
    names = [folder.relative_to(run).as_posix() for folder in folders if folder.is_dir()]
    return sorted((name for name in names if not name.startswith("superseded/")), key=_natural)


def traced_updates(run: Path, stage: str) -> list[int]:
    """List the updates of a stage that are traced, in order."""
    folder = run / stage / TRACES
    found = (_FILE.fullmatch(file.name) for file in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def read_episodes(run: Path, stage: str, update: int) -> list[dict[str, Any]]:
    """Read the traced episodes of one update. RlhfctlError for a line that is no record."""
    file = run / stage / TRACES / f"update-{update:06d}.jsonl"
    episodes = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "ids" not in record:
            raise RlhfctlError(
                f"line {number} of the trace is no record of an episode",
                where=str(file),
                fix="look at another update (--update), or run the ppo stage again with --force",
            )
        episodes.append(record)
    return episodes


def stage_settings(run: Path, stage: str) -> dict[str, Any]:
    """Return the settings that a ppo stage trained with: of its manifest, else as it reported them when it started."""
    manifest = run / stage / "manifest.json"
    if manifest.is_file():
        section: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["section"]
        return section
    settings: dict[str, Any] = {}
    for event in _events(run, stage, "started"):
        settings = event.get("settings") or {}
    return settings


def logged_metrics(run: Path, stage: str, update: int) -> dict[str, float]:
    """Return the metrics that training logged for one update; the last ones where it was done twice."""
    found: dict[str, float] = {}
    for event in _events(run, stage, "metrics"):
        if event.get("step") == update and event.get("split", "train") == "train":
            found = event["values"]
    return found


def _events(run: Path, stage: str, name: str) -> Iterator[dict[str, Any]]:
    if not (run / EVENTS).is_file():
        return
    for event in read_events(run / EVENTS):
        if event.get("event") == name and event.get("stage") == stage:
            yield event


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort seed-10 after seed-9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


# ---------------------------------------------------------------- one row per token


@dataclass(frozen=True)
class EpochNumbers:
    """The numbers of one token in one PPO epoch, before its step. None where there is none (no critic, no token)."""

    logprob: float | None
    ratio: float | None
    clipped: bool | None
    value: float | None


@dataclass(frozen=True)
class TokenRow:
    """The numbers of one token, or (`token` None) of the state after the end, which has a reward and a value alone."""

    position: int
    token: str | None  # as the tokenizer writes it
    text: str  # as people read it
    logprob: float | None
    reference_logprob: float | None
    kl: float | None
    reward: float | None
    value: float | None
    delta: float | None
    advantage: float | None
    returned: float | None
    epochs: tuple[EpochNumbers, ...]


def token_rows(record: Record) -> list[TokenRow]:
    """Make the rows of one traced episode: one per token, and one for the state after the end where it has a value."""
    tokens = record["tokens"]
    texts = readable(tokens, record["response"])
    return [
        TokenRow(
            position=index,
            token=_at(tokens, index),
            text=texts[index] if index < len(texts) else "",
            logprob=_at(record["policy_logprobs"], index),
            reference_logprob=_at(record["reference_logprobs"], index),
            kl=_at(record["kl"], index),
            reward=_at(record["rewards"], index),
            value=_at(record.get("values", ()), index),
            delta=_at(record.get("deltas", ()), index),
            advantage=_at(record["advantages"], index),
            returned=_at(record.get("returns", ()), index),
            epochs=tuple(_epoch(epoch, index) for epoch in record["epochs"]),
        )
        for index in range(max(len(tokens), len(record["rewards"])))
    ]


def _epoch(epoch: Record, index: int) -> EpochNumbers:
    return EpochNumbers(
        logprob=_at(epoch["logprobs"], index),
        ratio=_at(epoch["ratio"], index),
        clipped=_at(epoch["clipped"], index),
        value=_at(epoch.get("values", ()), index),
    )


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


# ---------------------------------------------------------------- tokens as people read them


def readable(tokens: Sequence[str], response: str) -> list[str]:
    """Write tokens as the text that they stand for; as the tokenizer writes them where that cannot be told.

    Byte-level tokenizers write a space as `Ġ` and other bytes as other letters; SentencePiece writes a space as `▁`.
    """
    written = [_text_of_bytes(token) for token in tokens]
    if None not in written:
        known = [part for part in written if part is not None]
        if b"".join(known).decode("utf-8", "replace") == response:
            return [part.decode("utf-8", "backslashreplace") for part in known]
    spaced = [token.replace("\u2581", " ") for token in tokens]
    return spaced if "".join(spaced).strip() == response.strip() else list(tokens)


def _text_of_bytes(token: str) -> bytes | None:
    """Turn a token of a byte-level tokenizer into its bytes; None for a token with other letters."""
    found = [_BYTE_OF.get(char) for char in token]
    return None if None in found else bytes(value for value in found if value is not None)


def _bytes_of_letters() -> dict[str, int]:
    """Make GPT-2's table: bytes that can be printed stand for themselves, the others for letters from U+0100 on."""
    plain = [value for part in _BYTES_SHOWN_AS_THEY_ARE for value in part]
    table = {chr(value): value for value in plain}
    others = (value for value in range(256) if value not in plain)
    return table | {chr(256 + number): value for number, value in enumerate(others)}


_BYTE_OF = _bytes_of_letters()
