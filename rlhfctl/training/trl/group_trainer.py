"""Train a reward model on whole preference groups with TRL's RewardTrainer: one forward per response.

A batch element is a group of K ranked responses to one prompt. TRL's own elements are pairs, so a response that is in
K - 1 pairs would be computed K - 1 times. Here the K responses of a group are K rows of the forward, and the loss
(preference_losses.py) reads their scores. Reports the metrics of TRL's trainer, over the comparisons of the groups.

Leaves out the plain loss on pairs (`bradley_terry` without a label error), which stays TRL's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer

from rlhfctl.data.encoding import EncodedGroup
from rlhfctl.models.tensors import at_least_float32
from rlhfctl.recipe.sections.reward import RewardLoss
from rlhfctl.training import preference_losses

COLUMNS = ("ids", "ranks", "comparisons", "margin")
GroupRow = dict[str, Any]  # COLUMNS: ids of each response, its rank, pairs (better, worse), the margin of the pairs


def group_rows(groups: Iterable[EncodedGroup]) -> list[GroupRow]:
    """Make one row per group, with the responses that are in a comparison.

    A pair that counts several times (a source's weight) makes further rows of its group.
    """
    return [_row(layer) for group in groups for layer in group.layers()]


def pair_rows(groups: Iterable[EncodedGroup]) -> list[GroupRow]:
    """Make one row per pair, as a group of two responses."""
    singles = [
        EncodedGroup(replace(one.group, comparisons=(pair,)), one.ids)
        for one in groups
        for pair in one.group.comparisons
    ]
    return [_row(single) for single in singles]


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


class GroupRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer on rows of `group_rows` or `pair_rows`, with a loss of preference_losses.py."""

    def __init__(self, *, loss: RewardLoss, label_error: float, args: Any, processing_class: Any, **given: Any) -> None:
        self.loss, self.label_error = loss, label_error
        collator = GroupCollator(processing_class.pad_token_id, args.pad_to_multiple_of)
        super().__init__(args=args, processing_class=processing_class, data_collator=collator, **given)

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
        """Compute the loss of a batch of the collator, and keep the metrics that TRL's trainer reports."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = at_least_float32(outputs.logits.squeeze(-1))
        loss = group_loss(scores, inputs, self.loss, self.label_error)
        chosen, rejected = scores[inputs["comparisons"][:, 0]], scores[inputs["comparisons"][:, 1]]
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        self._keep_metrics(inputs, scores.detach(), (chosen - rejected).detach())
        return (loss, outputs) if return_outputs else loss

    def _keep_metrics(self, inputs: dict[str, Tensor], scores: Tensor, differences: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        gather = self.accelerator.gather_for_metrics
        if mode == "train":
            self._total_train_tokens += gather(inputs["attention_mask"].sum()).sum().item()
        kept = self._metrics[mode]
        kept["num_tokens"] = [self._total_train_tokens]
        kept["min_reward"].append(scores.min().item())
        kept["mean_reward"].append(scores.mean().item())
        kept["max_reward"].append(scores.max().item())
        kept["accuracy"].append((differences > 0).float().mean().item())
        kept["margin"].append(differences.mean().item())
