"""Write a few episodes of one PPO update token by token: a trace."""

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
    """A few episodes of one update, token by token."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        self.epochs: dict[int, dict[int, dict[str, list[Any]]]] = {}  # row -> epoch -> name -> one entry a position

    def add(self, epoch: int, rows: Sequence[int], numbers: Mapping[str, Tensor]) -> None:
        """What an epoch gave for a micro-batch before its step: tensors (B, W) by name."""
        for place, row in enumerate(rows):
            if row < self.episodes:
                entry = self.epochs.setdefault(row, {}).setdefault(epoch, {})
                entry.update({name: table[place].tolist() for name, table in numbers.items()})

    def write(
        self, folder: Path, number: int, batch: Experience, tokenizer: PreTrainedTokenizerBase, gamma: float
    ) -> None:
        """One JSON line an episode: `update-NNNNNN.jsonl`."""
        lines = []
        for row in range(self.episodes):
            ids = batch.responses[row].ids
            tokens, states = len(ids), int(batch.value_mask[row].sum())
            values, rewards = batch.values[row, :states], batch.rewards[row, :states]
            deltas = (rewards + gamma * torch.cat([values[1:], values.new_zeros(1)]) - values).tolist()
            epochs = []
            for _, numbers in sorted(self.epochs[row].items()):
                cut = {name: numbers[name][:tokens] for name in ("logprobs", "ratio", "clipped")}
                epochs.append(cut | {"values": numbers["values"][:states]})
            record = {
                "update": number,
                "episode": row,
                "prompt": tokenizer.decode(batch.prompts[row]),
                "response": tokenizer.decode(ids),
                "tokens": tokenizer.convert_ids_to_tokens(ids),
                "ids": ids,
                "ended": bool(batch.ended[row]),
                "raw_score": float(batch.raw_scores[row]),
                "score": float(batch.scores[row]),
                "reward_parts": {name: part[row] for name, part in batch.parts.items()},
                "policy_logprobs": batch.logprobs[row, :tokens].tolist(),
                "reference_logprobs": batch.ref_logprobs[row, :tokens].tolist(),
                "kl": batch.kl[row, :tokens].tolist(),
                "rewards": rewards.tolist(),
                "values": values.tolist(),
                "deltas": deltas,
                "advantages": batch.advantages[row, :tokens].tolist(),
                "returns": batch.returns[row, :states].tolist(),
                "epochs": epochs,
            }
            lines.append(json.dumps(record))
        folder.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(folder / f"update-{number:06d}.jsonl", "\n".join(lines) + "\n")
