"""Take the steps of TRPO: one natural-gradient step of the policy per batch, inside a trust region, and the critic's.

    advantages ─▶ gradient g ─▶ conjugate gradient: x = F^-1 g ─▶ sqrt(2 max_kl / x'Fx) x ─▶ line search ─▶ policy
                                        products F v (fisher.py)     the whole step           shorter and shorter

The policy moves once per batch, in the first call of `trust_region_step`. It moves only if the surrogate improves and
the exact KL from the policy that sampled stays within `max_kl`; otherwise it stays as it is. The critic takes an
optimizer step on every minibatch. Source: Schulman et al. 2015 (arXiv 1502.05477), appendix C.

Every sum is over micro-batches and over processes, so that all processes decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhfctl.generation.kl import KL_ELEMENTS, kl_terms
from rlhfctl.models.packing import Sequences
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import minibatch, ppo_math
from rlhfctl.training.rl.experience import Experience, PolicyPass, PolicyStep, pieces, spread
from rlhfctl.training.rl.fisher import fisher_product
from rlhfctl.training.rl.minibatch import Given, Learner, PolicyLoss
from rlhfctl.training.rl.natural_gradient import Trial, conjugate_gradient, dot, line_search, step_size
from rlhfctl.training.rl.ppo_math import PolicyTerms
from rlhfctl.training.rl.recovery import NonFiniteError
from rlhfctl.training.rl.trace import Trace


def importance_weighted(logprobs: Tensor, given: Given, section: Ppo) -> PolicyTerms:
    """Compute the negative of TRPO's surrogate, -ratio A: the mean over the tokens of the batch (1502.05477, eq. 14).

    Nothing is clipped: the trust region bounds the step.
    """
    mask, tokens = given.mask, given.tokens
    log_ratio = (logprobs - given.old_logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    with torch.no_grad():
        approx_kl = ppo_math.masked_sum(log_ratio**2, mask) / 2 / tokens
        ratio_mean = ppo_math.masked_sum(ratio, mask) / tokens
    loss = ppo_math.masked_sum(-given.advantages * ratio, mask) / tokens
    none = torch.zeros_like(mask)
    return PolicyTerms(loss, None, approx_kl, ratio_mean, ratio.detach(), none)


def trust_region_step(
    learner: Learner,
    experience: Experience,
    indices: Sequence[int],
    epoch: int,
    policy_loss: PolicyLoss,
    trace: Trace | None = None,
) -> dict[str, float]:
    """Take the critic's optimizer step on one minibatch; before the first of a batch, the policy's step on the batch.

    Returns the minibatch's mean metrics. Those of the policy are over the whole batch: as it sampled in the first
    epoch, as it is after its step in later ones. Raises NonFiniteError before a number that is not finite is applied.
    """
    if experience.policy_step is None:
        experience.policy_step = _PolicyStep(learner, experience, policy_loss).take()
    step = experience.policy_step
    policy = step.before if epoch == 0 else step.after
    if trace is not None:
        for part, traced in policy.traced:
            trace.add(epoch, part, traced)
    return policy.metrics | step.metrics | minibatch.critic_step(learner, experience, indices, epoch, trace)


@dataclass
class _Sums:
    """What a pass over the batch adds up. All numbers are this process's share until they are summed over all."""

    objective: float = 0.0  # the surrogate, and the entropy bonus
    kl: float = 0.0  # from the policy that sampled, summed over tokens
    shares: dict[str, float] = field(default_factory=dict)  # metric name -> mean over the batch's tokens
    traced: list[tuple[list[int], dict[str, Tensor]]] = field(default_factory=list)


class _PolicyStep:
    """The policy's step on one batch. Vectors are flat: the trained weights one after the other, (P,)."""

    def __init__(self, learner: Learner, experience: Experience, policy_loss: PolicyLoss) -> None:
        self.section, self.policy = learner.section, learner.roles.policy
        self.experience, self.processes, self.policy_loss = experience, experience.processes, policy_loss
        self.accelerator = learner.accelerator
        self.weights = {name.removeprefix("policy."): p for name, p in learner.roles.policy_parameters().items()}
        own = self.processes.share(range(len(experience.responses)))
        self.parts = [
            (part, experience.sequences(part)) for part in pieces(own, self.section.per_device_train_batch_size)
        ]
        self.tokens = experience.response_mask.sum()
        self.old_states: list[Tensor] = []  # (N, H) for each part
        self.old = self._flat(list(self.weights.values()))
        head = dict(self.policy.head.named_parameters())
        trained = {id(weight) for weight in self.weights.values()}
        # The old policy's logits are made again from its states, so its output layer is kept where it is trained.
        self.old_head = {name: p.detach().clone() for name, p in head.items() if id(p) in trained}

    def take(self) -> PolicyStep:
        """Move the policy if the line search accepts a step; return the metrics of the step."""
        trpo = self.section.trpo
        gradient, before = self._gradient()
        direction = conjugate_gradient(self._product, gradient, trpo.cg_max_steps, trpo.cg_damping)
        size = step_size(direction, self._product(direction), trpo.max_kl)
        if not math.isfinite(before.objective + size * dot(direction, gradient)):
            raise NonFiniteError("a loss or a gradient is not finite")
        sums: list[_Sums] = []

        def attempt(fraction: float) -> Trial:
            self._move(fraction * size * direction)
            sums.append(self._look())
            return Trial(sums[-1].objective, sums[-1].kl)

        most = trpo.line_search_max_iter if size > 0.0 else 0
        tried, fraction, found = line_search(
            attempt, before.objective, trpo.max_kl, trpo.line_search_shrinking_factor, most
        )
        if found is None:
            self._move(torch.zeros_like(direction))
        after = before if found is None else sums[-1]
        metrics = {
            "trust_kl": after.kl,
            "surrogate_gain": after.objective - before.objective,
            "step_fraction": fraction,
            "line_search_steps": float(tried),
            "step_refused": float(found is None),
        }
        return PolicyStep(metrics, PolicyPass(before.shares, before.traced), PolicyPass(after.shares, after.traced))

    # ------------------------------------------------------------ passes over the batch

    def _gradient(self) -> tuple[Tensor, _Sums]:
        """Compute the gradient (P,) of the objective at the old policy, and what the pass adds up."""
        weights = list(self.weights.values())
        total, sums = torch.zeros_like(self.old), _Sums()
        with self.processes.in_step():
            for part, sequences in self.parts:
                hidden, objective = self._forward(part, sequences, sums)
                self.old_states.append(hidden.detach())
                found = torch.autograd.grad(objective, weights, allow_unused=True)
                total += self._flat(
                    [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
                )
        self.processes.sum_over([total])
        return total, self._over_all(sums)

    @torch.no_grad()
    def _look(self) -> _Sums:
        """Compute objective and KL of the policy as it is now."""
        sums = _Sums()
        with self.processes.in_step():
            for (part, sequences), old in zip(self.parts, self.old_states, strict=True):
                hidden, _ = self._forward(part, sequences, sums)
                sums.kl += self._kl(old, hidden)
        return self._over_all(sums)

    def _forward(self, part: list[int], sequences: Sequences, sums: _Sums) -> tuple[Tensor, Tensor]:
        """Run the policy on one micro-batch; return its states (N, H) before the tokens and its share of the objective.

        What is added up goes into `sums`.
        """
        section, count = self.section, len(self.experience.responses)
        given = minibatch.given_for(self.experience, part, self.tokens, count)
        with self.accelerator.autocast():
            hidden = self.policy.states(sequences, sequences.before_tokens())
            flat, entropies = self.policy.token_logprobs(
                hidden, sequences.tokens(), section.temperature, with_entropy=section.entropy_coef > 0
            )
        logprobs = spread(flat, given.mask)
        terms = self.policy_loss(logprobs, given, section)
        objective = -terms.loss
        shares = {
            "policy_loss": terms.loss,
            "approx_kl": terms.approx_kl,
            "ratio": terms.ratio_mean,
        }
        if entropies is not None:
            shares["policy_entropy"] = entropies.sum() / self.tokens
            objective = objective + section.entropy_coef * shares["policy_entropy"]
        sums.objective += float(objective.detach())
        for name, share in shares.items():
            sums.shares[name] = sums.shares.get(name, 0.0) + float(share.detach())
        traced = {"logprobs": logprobs.detach(), "ratio": terms.ratio, "clipped": terms.clipped}
        sums.traced.append((part, traced))
        return hidden, objective

    def _kl(self, old: Tensor, new: Tensor) -> float:
        """Sum KL(old || new) over the vocabulary and over the states `old` and `new` (N, H), in nats."""
        positions, temperature = max(1, KL_ELEMENTS // self.policy.vocabulary), self.section.temperature
        total = 0.0
        for was, now in zip(old.split(positions), new.split(positions), strict=True):
            if self.old_head:
                logits = self.policy.finished(torch.func.functional_call(self.policy.head, self.old_head, (was,)))
            else:
                logits = self.policy.logits(was)
            total += float(kl_terms(logits / temperature, self.policy.logits(now) / temperature).double().sum())
        return total

    def _product(self, vector: Tensor) -> Tensor:
        """Multiply `vector` (P,) with the Fisher matrix: the mean over all tokens of the batch."""
        total = torch.zeros_like(vector)
        with self.processes.in_step():
            for _, sequences in self.parts:
                by_name = self._by_name(vector)
                found = fisher_product(self.policy, sequences, self.weights, by_name, self.section.temperature)
                total += self._flat(list(found.values()))
        self.processes.sum_over([total])
        return total / self.tokens

    def _over_all(self, sums: _Sums) -> _Sums:
        """Add up the numbers over the processes, and make the KL a mean over tokens."""
        table = torch.tensor([sums.objective, sums.kl, *sums.shares.values()], dtype=torch.float64)
        self.processes.sum_over([table])
        objective, kl, *shares = table.tolist()
        return _Sums(objective, kl / int(self.tokens), dict(zip(sums.shares, shares, strict=True)), sums.traced)

    # ------------------------------------------------------------ flat vectors

    @staticmethod
    def _flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([one.detach().reshape(-1) for one in tensors])

    def _by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector (P,) into tensors of the weights' shapes."""
        pieces_of = vector.split([weight.numel() for weight in self.weights.values()])
        return {
            name: piece.view_as(weight) for (name, weight), piece in zip(self.weights.items(), pieces_of, strict=True)
        }

    @torch.no_grad()
    def _move(self, step: Tensor) -> None:
        """Set the policy's weights to the old ones plus `step` (P,)."""
        for name, values in self._by_name(self.old + step).items():
            self.weights[name].copy_(values)
