"""Train a reward model on whole preference groups with TRL's RewardTrainer: one forward per response.

A batch element is a group of K ranked responses to one prompt. TRL's own elements are pairs, so a response that is in
K - 1 pairs would be computed K - 1 times. Here the K responses of a group are K rows of the forward, and the loss
(preference_losses.py) reads their scores. Reports the metrics of TRL's trainer, over the comparisons of the groups.

Leaves out the plain loss on pairs (`bradley_terry` without a label error), which stays TRL's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer

from rlhfctl.data.encoding import EncodedGroup
from rlhfctl.models.tensors import at_least_float32
from rlhfctl.recipe.sections.reward import RewardLoss
from rlhfctl.training import preference_losses
from rlhfctl.training.trl.divided import DividedWeights
from rlhfctl.training.trl.shared_batches import SharedBatches

_BLANK = "blank"
COLUMNS = ("ids", "ranks", "comparisons", "margin")
GroupRow = dict[str, Any]  # COLUMNS: ids of each response, its rank, pairs (better, worse), the margin of the pairs


def group_rows(groups: Iterable[EncodedGroup]) -> Iterator[GroupRow]:
    """Yield one row per group, with the responses that are in a comparison.

    A pair that counts several times (a source's weight) makes further rows of its group.
    """
    return (_row(layer) for group in groups for layer in group.layers())


def pair_rows(groups: Iterable[EncodedGroup]) -> Iterator[GroupRow]:
    """Yield one row per pair, as a group of two responses."""
    return (
        _row(EncodedGroup(replace(one.group, comparisons=(pair,)), one.ids))
        for one in groups
        for pair in one.group.comparisons
    )


def _row(one: EncodedGroup) -> GroupRow:
    used = sorted({index for pair in one.group.comparisons for index in pair})
    place = {index: position for position, index in enumerate(used)}
    return {
        "ids": [one.ids[index] for index in used],
        "ranks": [one.group.ranks[index] for index in used],
        "comparisons": [[place[better], place[worse]] for better, worse in one.group.comparisons],
        "margin": one.group.margin or 0.0,
    }


@dataclass(frozen=True)
class GroupCollator:
    """Put G groups into one batch of N rows, K rows for a group of K responses, padded on the right.

    Gives `sizes` (G,): the K of each group; `input_ids` and `attention_mask` (N, L); `ranks` (N,); `counts` (G,): the
    number of comparisons of each group; `comparisons` (C, 2): rows of the batch; `margin` (G,).
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, groups: Sequence[GroupRow]) -> dict[str, Tensor]:
        rows = [ids for group in groups for ids in group["ids"]]
        sizes = [len(group["ids"]) for group in groups]
        width, multiple = max(map(len, rows)), self.pad_to_multiple_of or 1
        width = -(-width // multiple) * multiple
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        pairs = [
            [start + better, start + worse]
            for start, group in zip(starts, groups, strict=True)
            for better, worse in group["comparisons"]
        ]
        return {
            "sizes": torch.tensor(sizes),  # first: the trainer reads the size of the batch from the first tensor
            "input_ids": ids,
            "attention_mask": mask,
            "ranks": torch.tensor([rank for group in groups for rank in group["ranks"]]),
            "counts": torch.tensor([len(group["comparisons"]) for group in groups]),
            "comparisons": torch.tensor(pairs),
            "margin": torch.tensor([group["margin"] for group in groups], dtype=torch.float),
        }


def group_loss(scores: Tensor, batch: dict[str, Tensor], loss: RewardLoss, label_error: float) -> Tensor:
    """Compute the mean loss of the groups of a batch, in nats per group, from the scores (N,) of its rows."""
    sizes, counts = batch["sizes"].tolist(), batch["counts"].tolist()
    losses, first = [], 0
    parts = (scores.split(sizes), batch["ranks"].split(sizes), batch["comparisons"].split(counts), batch["margin"])
    for own, ranks, comparisons, margin in zip(*parts, strict=True):
        if loss == "plackett_luce":
            losses.append(preference_losses.plackett_luce(own, ranks))
        elif loss == "best_of_k":
            losses.append(preference_losses.best_of_k(own, ranks))
        else:  # bradley_terry has groups of two
            losses.append(preference_losses.k_wise(own, comparisons - first, margin, label_error))
        first += len(own)
    return torch.stack(losses).mean()


def _blanked(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make a batch count nothing."""
    return batch | {_BLANK: torch.tensor(True)}


class GroupRewardTrainer(SharedBatches, DividedWeights, RewardTrainer):
    """TRL's RewardTrainer on rows of `group_rows` or `pair_rows`, with a loss of preference_losses.py.

    Several processes divide each batch, and losses and metrics are means over all of it.
    """

    blanked = staticmethod(_blanked)

    def __init__(self, *, loss: RewardLoss, label_error: float, args: Any, processing_class: Any, **given: Any) -> None:
        self.loss, self.label_error = loss, label_error
        collator = GroupCollator(processing_class.pad_token_id, args.pad_to_multiple_of)
        super().__init__(args=args, processing_class=processing_class, data_collator=collator, **given)

    def get_train_dataloader(self) -> Any:
        return self.in_parts(super().get_train_dataloader())

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        """Return the rows unchanged: they are encoded, and the stage has left out those that are too long."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: list[str] = list(COLUMNS)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # TRL's trainer averages over the batch, too
    ) -> Any:
        """Compute the loss of a batch of the collator, and keep the metrics that TRL's trainer reports.

        accelerate averages gradients over the processes, so a mean over this process's part of a batch is weighted by
        how many times an equal share it is.
        """
        blank = bool(inputs.pop(_BLANK, False))
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = at_least_float32(outputs.logits.squeeze(-1))
        chosen, rejected = scores[inputs["comparisons"][:, 0]], scores[inputs["comparisons"][:, 1]]
        training = self.model.training
        groups, comparisons = (0, 0) if blank else (len(inputs["sizes"]), len(chosen))
        of_groups, of_comparisons = self._weights(groups, comparisons) if training else (1.0, 1.0)
        loss = group_loss(scores, inputs, self.loss, self.label_error) * of_groups
        if self.args.center_rewards_coefficient is not None:
            centered = ((chosen + rejected) ** 2).mean()
            loss = loss + self.args.center_rewards_coefficient * centered * of_comparisons
        self._keep_metrics(inputs, scores.detach(), (chosen - rejected).detach(), blank=blank)
        return (loss, outputs) if return_outputs else loss

    def _weights(self, *counts: int) -> list[float]:
        """Return how many times an equal share of a batch this process has, for its groups and its comparisons."""
        processes = self.processes
        if processes.count == 1:
            return [1.0 for _ in counts]
        totals = torch.tensor(counts, dtype=torch.float64)
        processes.sum_over([totals])
        return [count * processes.count / total for count, total in zip(counts, totals.tolist(), strict=True)]

    def _keep_metrics(self, inputs: dict[str, Tensor], scores: Tensor, differences: Tensor, *, blank: bool) -> None:
        """Keep the metrics of a batch, over all processes."""
        mode = "train" if self.model.training else "eval"
        own = _Batch.of(inputs["attention_mask"], scores, differences)
        every = self.processes.over(range(self.processes.count), lambda _: [None if blank else own])
        batch = _Batch.whole([one for one in every if one is not None])
        if mode == "train":
            self._total_train_tokens += batch.tokens
        kept = self._metrics[mode]
        kept["num_tokens"] = [self._total_train_tokens]
        kept["min_reward"].append(batch.lowest)
        kept["mean_reward"].append(batch.mean)
        kept["max_reward"].append(batch.highest)
        kept["accuracy"].append(batch.accuracy)
        kept["margin"].append(batch.margin)


@dataclass(frozen=True)
class _Batch:
    """What the metrics of a batch, or of a part of one, are made from; `mean` is over rows, two over comparisons."""

    rows: int
    tokens: int
    comparisons: int
    mean: float
    accuracy: float
    margin: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, mask: Tensor, scores: Tensor, differences: Tensor) -> _Batch:
        means = scores.mean().item(), (differences > 0).float().mean().item(), differences.mean().item()
        return cls(len(scores), int(mask.sum()), len(differences), *means, scores.min().item(), scores.max().item())

    @classmethod
    def whole(cls, parts: Sequence[_Batch]) -> _Batch:
        """Put the parts of a batch together."""
        if len(parts) == 1:
            return parts[0]
        rows, comparisons = sum(one.rows for one in parts), sum(one.comparisons for one in parts)
        return cls(
            rows,
            sum(one.tokens for one in parts),
            comparisons,
            sum(one.mean * one.rows for one in parts) / rows,
            sum(one.accuracy * one.comparisons for one in parts) / comparisons,
            sum(one.margin * one.comparisons for one in parts) / comparisons,
            min(one.lowest for one in parts),
            max(one.highest for one in parts),
        )
