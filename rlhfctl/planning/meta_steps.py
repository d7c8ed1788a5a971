"""Run the steps of sampling, packing and the exact KL on meta tensors, with what needs numbers replaced.

Tokens are not drawn and positions are those of the longest sequences: what a step allocates depends on shapes alone.
The functions that are run are in generation/local.py, generation/kl.py and models/packing.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from rlhfctl.generation import generator, kl, local, static_decoder
from rlhfctl.models import architecture, last_block
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import PACKED, Sequences, has_full_attention
from rlhfctl.planning.meter import AllocationMeter


def lay_end_to_end(model: Any) -> None:
    """Turn packed attention on, as packing.packed does after its check of the model's numbers."""
    config = getattr(model, "config", None)
    if isinstance(config, PretrainedConfig) and has_full_attention(config) and config._attn_implementation == "sdpa":
        config._attn_implementation = PACKED
        trunk = architecture.backbone(model)
        last_block.allow(trunk, last_block.has_shape(trunk))


class _LongSequences(Sequences):
    """Sequences on the meta device; the positions of response tokens were computed on the CPU before."""

    chosen: Tensor  # (N,) positions before each token; for responses of full length these also have the values
    targets: Tensor  # (N,)

    def before_tokens(self) -> Tensor:
        return self.chosen

    def states(self, response_length: int) -> Tensor:
        return self.chosen

    def before_tokens_in_states(self, response_length: int) -> Tensor:
        return torch.arange(len(self.chosen))

    def tokens(self) -> Tensor:
        return self.targets


def longest(rows: int, prompt: int, length: int) -> Sequences:
    """Make `rows` sequences of the longest possible length on the meta device, with the shapes of real ones."""
    with torch.device("cpu"):
        real = Sequences.of([[0] * prompt] * rows, [[0] * length] * rows, "cpu")
        chosen, targets = real.before_tokens(), real.tokens()
        groups = tuple(
            dataclasses.replace(
                group,
                token_of_cell=group.token_of_cell.to("meta"),
                cell_of_token=group.cell_of_token.to("meta"),
                pad_cells=group.pad_cells.to("meta"),
            )
            for group in real.groups
        )
        positions = real.positions.to("meta")
    tensors = {name: getattr(real, name).to("meta") for name in ("ids", "starts", "prompt_lengths", "lengths")}
    shapes = _LongSequences(**tensors, totals=real.totals)
    vars(shapes).update(groups=groups, positions=positions, chosen=chosen.to("meta"), targets=targets.to("meta"))
    return shapes


def sample(
    meter: AllocationMeter,
    policy: LanguageModel,
    rows: int,
    prompt: int,
    length: int,
    *,
    masking: LanguageModel | None = None,
    slots: bool = False,
) -> None:
    """Run the parts of sampling that need most memory: the prompt, the second token, and the shrinking of a batch."""
    policy.decodes_in_slots = True  # if its configuration fits: there are no numbers to compare
    if slots and static_decoder.supports(policy):
        decoder = static_decoder.StaticDecoder(policy, rows, prompt + length)
        meter.room = decoder.place.columns
        decoder.admit(range(rows), [[0] * prompt] * rows)
        decoder.step(torch.zeros(rows, dtype=torch.long), prompt + length - 1)
        _draw(policy.logits(decoder.states), rows)
        decoder.keep(range(-(-rows // 2)))
        meter.room = 0
        return
    meter.room = prompt + length
    ids = torch.zeros((rows, prompt), dtype=torch.long)
    batches = []
    for one in (policy, *([] if masking is None else [masking])):
        one.decodes = True  # if its layers fit: there are no numbers to compare
        batches.append(local.make_forward(one)(ids, torch.ones_like(ids), prompt + length))
    _draw(batches[0].logits(), rows)
    token = torch.zeros(rows, dtype=torch.long)
    for batch in batches:
        batch.step(token)
    for batch in batches:
        batch.keep(torch.zeros(int(rows * local.SHRINK_BELOW), dtype=torch.long))
    meter.room = 0


def _draw(logits: Tensor, rows: int) -> None:
    logp = torch.log_softmax(logits, dim=-1)
    probabilities = logp.exp()
    generator.inverse_cdf(probabilities, torch.zeros(rows))


def exact_kl(policy: LanguageModel, reference: LanguageModel, rows: int, prompt: int, length: int) -> None:
    """Run kl.exact_kl with its largest piece of logits."""
    ids = torch.zeros((rows, prompt + length), dtype=torch.long)
    mask = torch.ones_like(ids)
    p, q = (
        side.hidden(ids, attention_mask=mask)[:, :length].reshape(rows * length, -1) for side in (policy, reference)
    )
    piece = max(1, kl.KL_ELEMENTS // policy.vocabulary)
    kl.kl_terms(policy.logits(p[:piece]), reference.logits(q[:piece]))
