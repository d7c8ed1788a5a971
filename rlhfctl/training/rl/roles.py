"""Who plays in PPO, and what they share: policy, reference, critic and reward model on one copy of base*.

    critic: adapter     base* has the adapters `default` (policy), `critic` and `reward`; the reference is base* with
                        all of them off. Two scalar heads stand beside it.
    critic: head        the value head reads the policy's own hidden states: one forward serves both.
    critic: model       a sequence-classification model of its own, as TRL has it.

A role is made active before each of its forwards, and stays so until its backward is done: peft's switch freezes the
other adapters, and a recomputation under gradient checkpointing runs with whatever adapter is active *then*. Leaves
out the PPO steps (loop.py) and sampling (generation/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfctl.errors import EngineError, HandoffError
from rlhfctl.models import architecture
from rlhfctl.models.adapters import CRITIC, POLICY, AdapterSwitch, is_adapter_parameter
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences, hidden_states
from rlhfctl.models.tensors import at_least_float32


class Critic:
    """What gives states their values. `shares_policy` says that it reads the policy's own hidden states."""

    def __init__(self, scorer: Any, *, shares_policy: bool = False, trains_trunk: bool = True) -> None:
        self.scorer = scorer
        self.shares_policy = shares_policy
        self.trains_trunk = trains_trunk

    @property
    def is_adapter(self) -> bool:
        """Whether it is a head on the policy's model, with or without an adapter, and not a model of its own."""
        return isinstance(self.scorer, AdapterScorer)

    def states(self, sequences: Sequences) -> Tensor:
        """(T, H) of its own trunk."""
        return hidden_states(architecture.backbone(self.scorer), sequences)

    def values(self, hidden: Tensor) -> Tensor:
        """(N,) from the hidden states (N, H); detached from the trunk unless it is to be trained by them."""
        if self.shares_policy and not self.trains_trunk:
            hidden = hidden.detach()
        values: Tensor = self.scorer.score(hidden.to(self.scorer.score.weight.dtype)).squeeze(-1)
        return at_least_float32(values)


# ---------------------------------------------------------------- all of them


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`forward`, its activations computed again in the backward pass; nothing in it is random."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@dataclass
class Roles:
    """Policy, reference, critic. `policy.model` is the module that is handed on; an algorithm may need no critic."""

    policy: LanguageModel
    reference: LanguageModel
    critic: Critic | None

    def trainable(self) -> dict[str, nn.Parameter]:
        """name -> parameter of all that is trained, each once."""
        found: dict[str, nn.Parameter] = {}
        if isinstance(self.policy.model, PeftModel):
            names = [POLICY]
            if self.critic is not None and self.critic.is_adapter and not self.critic.shares_policy:
                names.append(CRITIC)
            for name, parameter in self.policy.model.named_parameters():
                if any(is_adapter_parameter(name, adapter) for adapter in names):
                    found[f"policy.{name}"] = parameter
        else:
            found |= {f"policy.{name}": parameter for name, parameter in self.policy.model.named_parameters()}
        if self.critic is None:
            return found
        if self.critic.is_adapter:
            found["critic.score.weight"] = self.critic.scorer.score.weight
        else:
            found |= {f"critic.{name}": parameter for name, parameter in self.critic.scorer.named_parameters()}
        return found

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """name -> parameter of the critic's part of `trainable()`."""
        found = self.trainable()
        return {n: p for n, p in found.items() if n.startswith("critic.") or is_adapter_parameter(n, CRITIC)}

    def sizes(self) -> dict[str, int]:
        """Parameters trained by role, and those of all models together (a shared one counts once)."""
        trained = self.trainable()
        critic = self.critic_parameters()
        every = {id(p): p.numel() for module in self.modules() for p in module.parameters()}
        return {
            "policy_trainable": sum(p.numel() for name, p in trained.items() if name not in critic),
            "critic_trainable": sum(trained[name].numel() for name in critic),
            "parameters": sum(every.values()),
        }

    def prepare(self) -> dict[str, nn.Parameter]:
        """Freeze all, then state what is trained; dropout off. Returns `trainable()`."""
        for module in self.modules():
            module.requires_grad_(False)
            module.eval()
        trained = self.trainable()
        for parameter in trained.values():
            parameter.requires_grad_(True)
        switch = AdapterSwitch.of(self.policy.model)
        if switch is not None:
            switch.trains(list(trained.values()))
        self.policy.activate()
        return trained

    def modules(self) -> list[nn.Module]:
        """Each model once."""
        every = [self.policy.model, self.reference.model, *([] if self.critic is None else [self.critic.scorer])]
        return list({id(module): module for module in every}.values())

    def trunks(self) -> list[Any]:
        """What gives hidden states, each model once."""
        own = [] if self.critic is None or self.critic.is_adapter else [architecture.backbone(self.critic.scorer)]
        every = [self.policy.trunk, self.reference.trunk, *own]
        return list({id(trunk): trunk for trunk in every}.values())

    @contextmanager
    def recomputing(self, on: bool) -> Iterator[None]:
        """Gradient checkpointing inside, on each model's layers. EngineError where a model has none that can.

        transformers' own switch acts in training mode only, in which some layers (OPT's) also drop states out.
        """
        layers: dict[int, GradientCheckpointingLayer] = {}
        for trunk in self.trunks() if on else []:
            found = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not found:
                raise EngineError(
                    f"the architecture {type(trunk).__name__} has no layers whose activations can be computed again",
                    where="ppo.gradient_checkpointing",
                    fix="set it to false, and lower per_device_train_batch_size to save memory",
                )
            layers |= {id(layer): layer for layer in found}
        own = [(layer, vars(layer).get("forward")) for layer in layers.values()]  # quantized ones may have one
        for layer, _ in own:
            vars(layer)["forward"] = partial(_recomputed, layer.forward)
        try:
            yield
        finally:
            for layer, forward in own:
                vars(layer).pop("forward") if forward is None else vars(layer).update(forward=forward)

    def state(self) -> dict[str, Tensor]:
        """A copy of everything trained, by name."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.trainable().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put `state()` back, in place. HandoffError if it is of other roles."""
        trained = self.trainable()
        if trained.keys() != state.keys():
            raise HandoffError("the checkpoint holds other roles than the recipe's", fix="run the stage with --force")
        with torch.no_grad():
            for name, value in state.items():
                trained[name].copy_(value)
