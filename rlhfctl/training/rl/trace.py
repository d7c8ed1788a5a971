"""Write traces: a few episodes of one PPO update, with all numbers per token, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.training.rl.experience import Experience


class Trace:
    """Record the per-token numbers of the first `episodes` episodes of one update."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        # episode -> epoch -> name -> one number per column
        self.epochs: dict[int, dict[int, dict[str, list[Any]]]] = {}

    def add(self, epoch: int, indices: Sequence[int], numbers: Mapping[str, Tensor]) -> None:
        """Record the numbers of one micro-batch in `epoch`, before its optimizer step: tensors (b, w) by name."""
        for position, index in enumerate(indices):
            if index < self.episodes:
                entry = self.epochs.setdefault(index, {}).setdefault(epoch, {})
                entry.update({name: table[position].tolist() for name, table in numbers.items()})

    def write(
        self, folder: Path, number: int, experience: Experience, tokenizer: PreTrainedTokenizerBase, gamma: float
    ) -> None:
        """Write one JSON line per episode to `update-NNNNNN.jsonl`."""
        lines = [
            json.dumps({"update": number, "episode": index} | self._record(index, experience, tokenizer, gamma))
            for index in range(self.episodes)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(folder / f"update-{number:06d}.jsonl", "\n".join(lines) + "\n")

    def _record(
        self, index: int, experience: Experience, tokenizer: PreTrainedTokenizerBase, gamma: float
    ) -> dict[str, Any]:
        """Make the record of one episode. Without a critic, the critic's numbers are left out."""
        ids = experience.responses[index].ids
        tokens, states = len(ids), int(experience.value_mask[index].sum())
        rewards = experience.rewards[index, :states]
        epochs = []
        for _, numbers in sorted(self.epochs[index].items()):
            cut = {name: numbers[name][:tokens] for name in ("logprobs", "ratio", "clipped")}
            epochs.append(cut | ({"values": numbers["values"][:states]} if "values" in numbers else {}))
        record: dict[str, Any] = {
            "prompt": tokenizer.decode(experience.prompts[index]),
            "response": tokenizer.decode(ids),
            "tokens": tokenizer.convert_ids_to_tokens(ids),
            "ids": ids,
            "ended": bool(experience.ended[index]),
            "raw_score": float(experience.raw_scores[index]),
            "score": float(experience.scores[index]),
            "reward_parts": {name: part[index] for name, part in experience.parts.items()},
            "policy_logprobs": experience.logprobs[index, :tokens].tolist(),
            "reference_logprobs": experience.ref_logprobs[index, :tokens].tolist(),
            "kl": experience.kl[index, :tokens].tolist(),
            "rewards": rewards.tolist(),
        }
        if experience.values.numel():
            values = experience.values[index, :states]
            deltas = rewards + gamma * torch.cat([values[1:], values.new_zeros(1)]) - values
            record |= {"values": values.tolist(), "deltas": deltas.tolist()}
        record["advantages"] = experience.advantages[index, :tokens].tolist()
        if experience.returns.numel():
            record["returns"] = experience.returns[index, :states].tolist()
        return record | {"epochs": epochs}
