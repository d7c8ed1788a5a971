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
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.response_advantages import COMPARED, response_rewards


class Trace:
    """Record the per-token numbers of the first `episodes` episodes of one update."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        # episode -> epoch -> name -> one number per column
        self.epochs: dict[int, dict[int, dict[str, list[Any]]]] = {}
        self.minibatches: dict[tuple[int, int], int] = {}  # (episode, epoch) -> number of its minibatch

    def assign(self, epoch: int, minibatch: int, indices: Sequence[int]) -> None:
        """Record the minibatch in which `epoch` learns from the episodes `indices`: the losses are means over it."""
        self.minibatches.update({(index, epoch): minibatch for index in indices if index < self.episodes})

    def add(self, epoch: int, indices: Sequence[int], numbers: Mapping[str, Tensor]) -> None:
        """Record the numbers of one micro-batch in `epoch`, before its optimizer step: tensors (b, w) by name."""
        for position, index in enumerate(indices):
            if index < self.episodes:
                entry = self.epochs.setdefault(index, {}).setdefault(epoch, {})
                entry.update({name: table[position].tolist() for name, table in numbers.items()})

    def gather(self, processes: Processes) -> None:
        """Collect the numbers that other processes recorded; each episode is learned from by one process per epoch."""
        if processes.count == 1:
            return
        for own in processes.over(range(processes.count), lambda _: [self.epochs]):
            for index, epochs in own.items():
                for epoch, numbers in epochs.items():
                    self.epochs.setdefault(index, {}).setdefault(epoch, {}).update(numbers)

    def write(
        self, folder: Path, number: int, experience: Experience, tokenizer: PreTrainedTokenizerBase, section: Ppo
    ) -> None:
        """Write one JSON line per episode to `update-NNNNNN.jsonl`."""
        whitening = whitening_numbers(experience, section)
        lines = []
        for index in range(self.episodes):
            record = self._record(index, experience, tokenizer, section) | whitening
            epochs = self._epochs(index, len(record["ids"]), len(record["rewards"]))
            lines.append(json.dumps({"update": number, "episode": index} | record | {"epochs": epochs}))
        folder.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(folder / f"update-{number:06d}.jsonl", "\n".join(lines) + "\n")

    def _record(
        self, index: int, experience: Experience, tokenizer: PreTrainedTokenizerBase, section: Ppo
    ) -> dict[str, Any]:
        """Make the record of one episode. Without a critic, the critic's numbers are left out."""
        ids = experience.responses[index].ids
        tokens, states = len(ids), int(experience.value_mask[index].sum())
        rewards = experience.rewards[index, :states]
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
            "kept_logprobs": experience.kept[index, :tokens].tolist(),
            "kl": experience.kl[index, :tokens].tolist(),
            "rewards": rewards.tolist(),
        }
        if experience.extras:
            record["reward_extras"] = {name: values[index] for name, values in experience.extras.items()}
        if experience.values.numel():
            values = experience.values[index, :states]
            deltas = rewards + section.gamma * torch.cat([values[1:], values.new_zeros(1)]) - values
            record |= {"values": values.tolist(), "deltas": deltas.tolist()}
        if (compared := COMPARED.get(section.trains_by)) is not None:
            reward = response_rewards(experience)
            baselines, scales = compared(reward, experience, section)
            record |= {"response_reward": float(reward[index])}
            record |= {"baseline": float(baselines[index]), "scale": float(scales[index])}
        record["advantages"] = experience.advantages[index, :tokens].tolist()
        if section.normalize_scores is not None:
            centre = experience.moments.mean if section.normalize_scores == "running" else 0.0
            record |= {"score_mean": centre, "score_std": experience.moments.deviation}
        if experience.kl_coef is not None:
            record["kl_coef"] = experience.kl_coef
        weighted = experience.importance.numel() > 0
        record["importance"] = experience.importance[index, :tokens].tolist() if weighted else None
        if experience.returns.numel():
            record["returns"] = experience.returns[index, :states].tolist()
        return record

    def _epochs(self, index: int, tokens: int, states: int) -> list[dict[str, Any]]:
        """Make the records of one episode's PPO epochs, each as it stood before its optimizer step."""
        epochs = []
        for epoch, numbers in sorted(self.epochs[index].items()):
            cut: dict[str, Any] = {"minibatch": self.minibatches[index, epoch]}
            cut |= {name: numbers[name][:tokens] for name in ("logprobs", "ratio", "clipped")}
            epochs.append(cut | ({"values": numbers["values"][:states]} if "values" in numbers else {}))
        return epochs


def whitening_numbers(experience: Experience, section: Ppo) -> dict[str, float | None]:
    """Compute mean and deviation of the batch's rewards and advantages before whitening; None without whitening.

    With them the numbers of a single episode can be worked out, although whitening reads the whole batch.
    """
    rewards: tuple[float | None, float | None] = (None, None)
    advantages = rewards
    if section.whiten_rewards:
        plain = ppo_math.token_rewards(
            experience.kl,
            experience.scores,
            experience.lengths,
            experience.penalty(section),
            experience.response_mask,
        )
        rewards = _mean_and_std(plain, experience.value_mask)
    if section.whiten_advantages and experience.returns.numel():
        plain, _ = ppo_math.advantages_and_returns(
            experience.rewards, experience.values, experience.value_mask, section.gamma, section.lam
        )
        advantages = _mean_and_std(plain, experience.response_mask)
    return {
        "reward_mean": rewards[0],
        "reward_std": rewards[1],
        "advantage_mean": advantages[0],
        "advantage_std": advantages[1],
    }


def _mean_and_std(values: Tensor, mask: Tensor) -> tuple[float, float]:
    """Compute mean and standard deviation (n - 1 in the denominator, as in whitening) of `values` where `mask`."""
    kept = values[mask].double()
    return float(kept.mean()), float(kept.std()) if len(kept) > 1 else 0.0
