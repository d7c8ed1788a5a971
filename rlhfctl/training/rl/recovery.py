"""Recover from an update with NaN or infinite numbers: save its batch, and stop after three failures in a row.

The loop itself returns to its last checkpoint and samples with other random numbers. A reward function that fails is
handled in loop.py: the loop saves the finished updates before it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.errors import EngineError
from rlhfctl.training.rl.experience import Experience

FAILURES_IN_A_ROW = 3
_CHECKED = ("raw_scores", "logprobs", "ref_logprobs", "values", "advantages")
_KEPT = ("raw_scores", "logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")


class NonFiniteError(Exception):
    """A reward, a loss or a gradient is NaN or infinite."""


def require_finite(experience: Experience) -> None:
    """Raise NonFiniteError with the name of the first tensor that holds a non-finite number."""
    for name in _CHECKED:
        if not bool(torch.isfinite(getattr(experience, name)).all()):
            raise NonFiniteError(f"{name} are not finite")


class Recovery:
    """Save the batches of failed updates under `folder`, and count the failures in a row."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.say = say
        self.failures = 0  # since the last checkpoint

    def file(self, number: int, attempt: int) -> Path:
        """Return the path for the batch of a failed update."""
        return self.folder / f"update-{number:06d}-attempt-{attempt}.jsonl"

    def keep(self, experience: Experience, number: int, attempt: int) -> None:
        """Write the batch as JSON, one line per episode, so that the cause of the failure can be found."""
        lines = []
        for index, response in enumerate(experience.responses):
            numbers = {
                name: getattr(experience, name)[index].tolist() for name in _KEPT if getattr(experience, name).numel()
            }
            numbers["reward_parts"] = {name: part[index] for name, part in experience.parts.items()}
            if experience.extras:
                numbers["reward_extras"] = {name: values[index] for name, values in experience.extras.items()}
            record = {
                "prompt": self.tokenizer.decode(experience.prompts[index]),
                "response": self.tokenizer.decode(response.ids),
                "response_ids": response.ids,
            }
            lines.append(fs.json_line(record | numbers))
        file = self.file(number, attempt)
        file.parent.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(file, "\n".join(lines) + "\n")

    def go_back(self, number: int, attempt: int, reason: str, resume: Callable[[], int]) -> None:
        """Count a failure and return to the last checkpoint.

        `resume` loads the checkpoint and returns the number of updates done there. EngineError after three failures in
        a row.
        """
        self.failures += 1
        kept = self.file(number, attempt)
        if self.failures >= FAILURES_IN_A_ROW:
            raise EngineError(
                f"update {number} failed {self.failures} times in a row: {reason}",
                where=str(kept),
                fix="look at the batch kept there; a lower learning_rate, a max_grad_norm or float32 often helps",
            )
        done = resume()
        self.say(
            f"update {number}: {reason}; it was not applied, the batch is kept in {kept}; training goes on from update "
            f"{done} with other samples"
        )
