"""Add a next-token loss on other text to each step of the policy: InstructGPT's PPO-ptx.

Ouyang et al. 2022 (arXiv 2203.02155), section 3.5: PPO's objective plus gamma x E_pretrain[log pi(x)]. Both gradients
are added before the optimizer step (appendix C.4). The loss is the mean over all learned tokens of the step's rows, at
temperature 1. The rows of a step depend on seed, update, epoch and minibatch alone. Reads rows of ids; loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhfctl.models import lower_trunk
from rlhfctl.models.packing import Sequences
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.ppo_details import Ptx
from rlhfctl.training.rl.experience import TextRow, pieces
from rlhfctl.training.rl.orders import Orders
from rlhfctl.training.rl.roles import Roles


@dataclass(frozen=True)
class Pretraining:
    """The rows of the next-token loss, and the loss itself."""

    section: Ppo
    ptx: Ptx
    rows: Sequence[TextRow]
    orders: Orders

    @property
    def rows_per_step(self) -> int:
        """Number of rows of an optimizer step."""
        return max(1, round(self.ptx.ratio * self.section.mini_batch_size))

    def chosen(self, update: int, epoch: int, minibatch: int) -> list[TextRow]:
        """Choose the rows of a step: each pass over all rows has an order of its own."""
        section = self.section
        step = ((update - 1) * section.passes + epoch) * section.num_mini_batches + minibatch
        count = self.rows_per_step
        return [self.rows[index] for index in self.orders.texts(step * count, count, len(self.rows))]

    def learn(
        self, rows: Sequence[TextRow], roles: Roles, processes: Processes, accelerator: Accelerator
    ) -> list[dict[str, Tensor]]:
        """Add the gradient of the loss of `rows` to the policy's; each process does its share of them.

        Returns shares of the metric `ptx_loss`, in nats per token, without the coefficient.
        """
        tokens = sum(len(row["ids"]) - row["start"] for row in rows)
        size = self.ptx.batch_size or self.section.per_device_train_batch_size
        device = roles.policy.device
        shares = [{"ptx_loss": torch.zeros((), device=device)}]  # a process may have no rows
        with processes.in_step(), lower_trunk.passing(roles.trunks()):
            for part in pieces(range(len(own := processes.share(rows))), size):
                chosen = [own[index] for index in part]
                sequences = Sequences.of(
                    [row["ids"][: row["start"]] for row in chosen],
                    [row["ids"][row["start"] :] for row in chosen],
                    device,
                )
                with accelerator.autocast():
                    logprobs = roles.policy.response_logprobs(sequences, 1.0)
                loss = -logprobs.sum() / tokens
                accelerator.backward(self.ptx.coef * loss)
                shares.append({"ptx_loss": loss.detach()})
        return shares
