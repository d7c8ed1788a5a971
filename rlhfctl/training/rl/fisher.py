"""Multiply vectors with the Fisher matrix of a policy, without ever making the matrix.

The Fisher matrix at the policy's weights is the Hessian of KL(old || new) there. Its Gauss-Newton form is exact at this
point, because the KL's gradient in the logits is zero there (Schulman et al. 2015, arXiv 1502.05477, appendix C.1):

    F v = mean over tokens of J' S J v      J: derivative of a token's logits by the weights
                                            S = diag(p) - p p': the KL's Hessian in the logits

J v comes from one forward pass with dual numbers (forward-mode differentiation), J' from one ordinary backward pass. A
double backward of the KL would give the same numbers, but it needs attention and LoRA layers that can be differentiated
twice in the backward pass, too, and it keeps the activations of both. Here the backward pass is the one that PPO uses:
packed rows, fused layers and gradient checkpointing go on working.

The pass with dual numbers keeps nothing for a backward pass. It needs layers whose every operation has a forward-mode
derivative. The policy therefore runs on a plain path in it: peft's own LoRA layers and norms, padded groups, no kept
lower layers, and attention in plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from rlhfctl.models.fused import unfused
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences, all_states, in_plain_operations
from rlhfctl.models.tensors import LOGITS_AT_ONCE


def fisher_product(
    policy: LanguageModel,
    sequences: Sequences,
    weights: Mapping[str, nn.Parameter],
    vector: Mapping[str, Tensor],
    temperature: float,
) -> dict[str, Tensor]:
    """Compute F v, summed over the response tokens of `sequences`, not averaged: a tensor for each of `weights`.

    `weights`: the trained parameters by their names in `policy.model`. `vector`: v, a tensor of each one's shape.
    `temperature` divides the logits, as in sampling.
    """
    policy.activate()
    given, chosen = list(weights.values()), sequences.before_tokens()
    change = partial(_change, policy, weights, vector)
    moved = change(lambda: all_states(policy.trunk, sequences)[chosen])  # (N, H)
    sums = [torch.zeros_like(weight) for weight in given]
    pulls = []
    rows = max(1, LOGITS_AT_ONCE // policy.vocabulary)
    with torch.enable_grad():
        hidden = policy.states(sequences, chosen)
        for piece, its_change in zip(hidden.detach().split(rows), moved.split(rows), strict=True):
            leaf = piece.requires_grad_()
            logits = policy.logits(leaf) / temperature
            pull = _pull(logits.detach(), change(partial(_logits, policy, piece.detach(), its_change)) / temperature)
            first, *others = torch.autograd.grad(logits, [leaf, *given], pull, allow_unused=True)
            pulls.append(first)
            _add(sums, others)
        if hidden.requires_grad:  # or the output layer alone is trained
            _add(sums, torch.autograd.grad(hidden, given, torch.cat(pulls), allow_unused=True))
    return dict(zip(weights, sums, strict=True))


def _pull(logits: Tensor, change: Tensor) -> Tensor:
    """Compute S u (n, V) for the distributions of `logits` (n, V) and u = `change` (n, V): p u - p (p'u)."""
    p = logits.softmax(-1)
    weighted = p * change
    return weighted - p * weighted.sum(-1, keepdim=True)


def _logits(policy: LanguageModel, hidden: Tensor, change: Tensor) -> Tensor:
    """Compute the logits (n, V) of states (n, H) that move by `change` (n, H)."""
    return policy.logits(forward_ad.make_dual(hidden, change))


# ---------------------------------------------------------------- forward-mode derivatives


@torch.no_grad()
def _change(
    policy: LanguageModel,
    weights: Mapping[str, nn.Parameter],
    vector: Mapping[str, Tensor],
    forward: Callable[[], Tensor],
) -> Tensor:
    """Compute how fast the result of `forward` changes as the weights move along `vector`; a tensor of its shape."""
    with _plain_path(policy), forward_ad.dual_level():
        duals = {
            f"model.{name}": forward_ad.make_dual(weight.detach(), vector[name]) for name, weight in weights.items()
        }
        result = forward_ad.unpack_dual(torch.func.functional_call(_Call(policy.model, forward), duals, ()))
        return torch.zeros_like(result.primal) if result.tangent is None else result.tangent.clone()


@contextmanager
def _plain_path(policy: LanguageModel) -> Iterator[None]:
    """Let the policy run by operations that have forward-mode derivatives, inside the block."""
    with ExitStack() as inside:
        inside.enter_context(unfused(policy.model))
        inside.enter_context(in_plain_operations(policy.trunk))
        yield


class _Call(nn.Module):
    """A function as a module's forward, so that torch can put dual numbers in the place of the model's weights."""

    def __init__(self, model: nn.Module, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Tensor:
        return self.function()


def _add(sums: list[Tensor], more: Sequence[Tensor | None]) -> None:
    """Add gradients to `sums` in place; None stands for 0."""
    for total, part in zip(sums, more, strict=True):
        if part is not None:
            total += part
