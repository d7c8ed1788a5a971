"""A finished run whose prompts are conversations, and a screen that keeps what is drawn: for the tests of chat."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conftest import run_here

from rlhfctl.tools.chat.conversation import Answer

RECIPE = """\
name: talker
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 320, max_position_embeddings: 96}
  chat_template: human-assistant
lora: {r: 2, lora_alpha: 4}
data:
  demonstrations: {source: demos.jsonl}
  preferences: {source: pairs.jsonl, heldout: 0.25}
  prompts: {source: prompts.jsonl, test: 4}
sft: {lora: null, trainer: {max_steps: 1, per_device_train_batch_size: 4}}
reward: {trainer: {max_steps: 1, learning_rate: 1e-2, per_device_train_batch_size: 4}}
ppo: {total_episodes: 4, per_device_train_batch_size: 4, num_ppo_epochs: 1, learning_rate: 1e-2, response_length: 8}
"""


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def write_talker(folder: Path) -> Path:
    """Make the run (sft, reward, ppo) in a few seconds; return its folder."""
    demos = [{"messages": said("user", f"ask {n}") + said("assistant", f"the answer is {n}")} for n in range(8)]
    sides = [(said("assistant", f"it is {n}"), said("assistant", "no")) for n in range(8)]
    pairs = [
        {"prompt": said("user", f"ask {n}"), "chosen": better, "rejected": worse}
        for n, (better, worse) in enumerate(sides)
    ]
    prompts = [{"prompt": said("user", f"ask me {n}")} for n in range(12)]
    for name, rows in (("demos", demos), ("pairs", pairs), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "talker.yaml").write_text(RECIPE)
    done = run_here("run", "talker.yaml", "--run-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


class Recorder:
    """A screen for scripts: reads the lines that it is given, and keeps what is said and drawn."""

    def __init__(self, *lines: str, together: bool = True, interactive: bool = True) -> None:
        self.lines, self.together, self.interactive = list(lines), together, interactive
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.answers: list[list[Answer]] = []
        self.grown: list[tuple[int, str]] = []
        self.on_show: Callable[[], None] = lambda: None
        self.asked: list[tuple[str, str]] = []
        self.shown: list[str] = []

    def read(self, prompt: str = "", text: str = "") -> str:
        self.asked.append((prompt, text))
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def show(self, text: str) -> None:
        self.shown.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def error(self, text: str) -> None:
        self.errors.append(text)

    @contextlib.contextmanager
    def answering(self, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        def show(index: int, text: str) -> None:
            self.grown.append((index, text))
            self.on_show()

        yield show

    def answered(self, answers: Sequence[Answer]) -> None:
        self.answers.append(list(answers))
