"""Build the four PPO roles on as few copies of base* as possible: policy, reference, critic, reward model.

    critic: adapter     base* has the adapters `default` (policy), `critic` and `reward`; the reference is base* with
                        all of them off. Two scalar heads stand beside it.
    critic: head        the value head reads the policy's own hidden states: one forward serves both.
    critic: reward      a value head reads the states of the frozen reward model; the head alone is trained.
    critic: model       the critic is a separate sequence-classification model, as in TRL.

A role is made active before each of its forwards, and stays active until its backward is done. The reasons: peft's
switch freezes the other adapters, and gradient checkpointing recomputes activations with the adapter that is active
*during the backward*. The training steps are in collect.py and learn.py, sampling is in generation/, and `RoleModels`
loads the models.

Longer than 400 lines because the roles' order of loading, which decides who shares what, is one story.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfctl.errors import EngineError, HandoffError
from rlhfctl.models import adapters, architecture, build, heads, sharding, special_tokens
from rlhfctl.models.adapters import CRITIC, POLICY, REWARD, is_adapter_parameter
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.ensembles import Ensemble, member_name
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences, hidden_states
from rlhfctl.models.tensors import at_least_float32
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl import masking


class Critic:
    """The value function of PPO. `shares_policy`: it reads the policy's own hidden states.

    `reads`: the frozen reward model whose states it reads, if it does; `scorer` is then its head on the same trunk.
    """

    def __init__(
        self, scorer: Any, *, shares_policy: bool = False, trains_trunk: bool = True, reads: Any = None
    ) -> None:
        self.scorer = scorer
        self.shares_policy = shares_policy
        self.trains_trunk = trains_trunk
        self.reads = reads

    @property
    def is_adapter(self) -> bool:
        """Tell whether it is a head on the policy's model, with or without an adapter, not a separate model."""
        return isinstance(self.scorer, AdapterScorer)

    @property
    def trains_only_head(self) -> bool:
        """Tell whether no weight of a trunk or adapter is trained for it alone."""
        return self.shares_policy or self.reads is not None

    def states(self, sequences: Sequences, at: Tensor | None = None) -> Tensor:
        """Compute hidden states (T, H) with the critic's own trunk, or (N, H) of the tokens `at` (N,)."""
        return hidden_states(architecture.backbone(self.scorer), sequences, at)

    def values(self, hidden: Tensor) -> Tensor:
        """Compute values (N,) from hidden states (N, H). Gradients reach the trunk only if the critic may train it."""
        if self.shares_policy and not self.trains_trunk:
            hidden = hidden.detach()
        values: Tensor = self.scorer.score(hidden.to(self.scorer.score.weight.dtype)).squeeze(-1)
        return at_least_float32(values)


# ---------------------------------------------------------------- all roles


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run `forward` with gradient checkpointing: the backward recomputes activations. It draws no random numbers."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@dataclass
class Roles:
    """Policy, reference and critic. `policy.model` is the module that is saved; `critic` is None if not needed.

    `masking`: an older copy of the policy, with algorithm nlpo: it says which tokens the policy may sample.
    """

    policy: LanguageModel
    reference: LanguageModel
    critic: Critic | None
    masking: LanguageModel | None = None

    def __post_init__(self) -> None:
        """Give all roles on one model the same AdapterSwitch, which knows the trained parameters."""
        others = [self.reference, *([] if self.masking is None else [self.masking])]
        if self.critic is not None and isinstance(self.critic.scorer, AdapterScorer):
            others.append(self.critic.scorer.backbone.shared)
        for role in others:
            if role.model is self.policy.model:
                role.switch = self.policy.switch

    def trainable(self) -> dict[str, nn.Parameter]:
        """Collect all trained parameters by name, each once."""
        sharding.settle()
        trained: dict[str, nn.Parameter] = {}
        if isinstance(self.policy.model, PeftModel):
            names = [POLICY]
            if self.critic is not None and self.critic.is_adapter and not self.critic.trains_only_head:
                names.append(CRITIC)
            for name, parameter in self.policy.model.named_parameters():
                if any(is_adapter_parameter(name, adapter) for adapter in names):
                    trained[f"policy.{name}"] = parameter
        else:
            trained |= {f"policy.{name}": parameter for name, parameter in self.policy.model.named_parameters()}
        if self.critic is None:
            return trained
        if self.critic.is_adapter or self.critic.trains_only_head:
            head = self.critic.scorer.score  # with a bias if it is the copy of a normalized reward
            trained |= {f"critic.score.{name}": parameter for name, parameter in head.named_parameters()}
        else:
            trained |= {f"critic.{name}": parameter for name, parameter in self.critic.scorer.named_parameters()}
        return trained

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """Collect the critic's trained parameters by name, a part of `trainable()`."""
        trained = self.trainable()
        return {n: p for n, p in trained.items() if n.startswith("critic.") or is_adapter_parameter(n, CRITIC)}

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """Collect the policy's trained parameters by name, the other part of `trainable()`."""
        critic = self.critic_parameters()
        return {name: parameter for name, parameter in self.trainable().items() if name not in critic}

    def sizes(self) -> dict[str, int]:
        """Count the trained parameters per role, and the parameters of all models (a shared one counts once)."""
        trained = self.trainable()
        critic = self.critic_parameters()
        policy = self.policy_parameters()
        every = {id(p): p.numel() for module in self.modules() for p in module.parameters()}
        return {
            "policy_trainable": sum(p.numel() for p in policy.values()),
            "critic_trainable": sum(trained[name].numel() for name in critic),
            "parameters": sum(every.values()),
        }

    def prepare(self) -> dict[str, nn.Parameter]:
        """Freeze everything except `trainable()`, turn dropout off, and return `trainable()`."""
        for module in self.modules():
            module.requires_grad_(False)
            module.eval()
        trained = self.trainable()
        for parameter in trained.values():
            parameter.requires_grad_(True)
        if self.policy.switch is not None:
            self.policy.switch.trains(list(trained.values()))
        self.policy.activate()
        return trained

    def modules(self) -> list[nn.Module]:
        """List the distinct models."""
        every = [self.policy.model, self.reference.model, *([] if self.critic is None else [self.critic.scorer])]
        every += [] if self.masking is None else [self.masking.model]
        return list({id(module): module for module in every}.values())

    def trunks(self) -> list[Any]:
        """List the distinct trunks, the modules that compute hidden states."""
        own = [] if self.critic is None or self.critic.is_adapter else [architecture.backbone(self.critic.scorer)]
        every = [self.policy.trunk, self.reference.trunk, *own]
        every += [] if self.masking is None else [self.masking.trunk]
        return list({id(trunk): trunk for trunk in every}.values())

    @contextmanager
    def recomputing(self, share: float) -> Iterator[None]:
        """Turn gradient checkpointing on inside the block, for a `share` of each model's layers, the first ones.

        0: for none; 1: for all. EngineError if a model has no such layers.
        transformers' own switch works in training mode only, and in that mode some layers (OPT's) apply dropout.
        """
        layers: dict[int, GradientCheckpointingLayer] = {}
        for trunk in self.trunks() if share else []:
            own_layers = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not own_layers:
                raise EngineError(
                    f"the architecture {type(trunk).__name__} has no layers whose activations can be computed again",
                    where="ppo.gradient_checkpointing",
                    fix="set it to false, and lower per_device_train_batch_size to save memory",
                )
            layers |= {id(layer): layer for layer in own_layers[: math.ceil(share * len(own_layers))]}
        # A quantized layer may already have a `forward` of its own in its __dict__: remember it.
        before = [(layer, vars(layer).get("forward")) for layer in layers.values()]
        for layer, _ in before:
            vars(layer)["forward"] = partial(_recomputed, layer.forward)
        try:
            yield
        finally:
            for layer, forward in before:
                vars(layer).pop("forward") if forward is None else vars(layer).update(forward=forward)

    def state(self) -> dict[str, Tensor]:
        """Copy what training changes to the CPU, by name: all trained parameters, and the masking policy's weights.

        Divided ones are gathered, which is collective.
        """
        changed = self.trainable() | masking.weights_of(self.masking)
        trained = {name: value.detach() for name, value in changed.items()}
        return {name: sharding.whole(value).to("cpu", copy=True).contiguous() for name, value in trained.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()` in place. HandoffError if it belongs to other roles."""
        trained = self.trainable() | masking.weights_of(self.masking)
        if trained.keys() != state.keys():
            raise HandoffError("the checkpoint holds other roles than the recipe's", fix="run the stage with --force")
        for name, value in state.items():
            sharding.overwrite(trained[name], value)


# ---------------------------------------------------------------- building the roles


class RoleModels(Protocol):
    """Loads the models and adapters that PPO's roles start from: from earlier stages, or from other folders."""

    @property
    def has_reward(self) -> bool:
        """Tell whether the reward is a model; otherwise it is a function."""

    def shared_reward_adapters(self) -> list[Path]:
        """Return the reward model's adapter if it was trained on the same base* that PPO starts from; else none.

        Of an ensemble those of all members, the first one first.
        """

    def ensemble(self, members: Sequence[AdapterScorer]) -> Ensemble:
        """Make the reward of several members, as the recipe combines their scores."""

    def check_shared_reward(self, scorer: AdapterScorer | Ensemble) -> None:
        """Raise unless the reward model on the shared base* gives the scores recorded when it was saved."""

    def classifier(self) -> Classifier | None:
        """Return the reward model if it is a text classifier."""

    def reward_model(self) -> tuple[PreTrainedModel | Ensemble, PreTrainedTokenizerBase | None]:
        """Load the reward model as a separate model, and its tokenizer if it differs from the policy's."""

    def critic_model(self) -> PreTrainedModel | None:
        """Load the initial critic as a separate model, if the recipe names one, or if the reward is an ensemble."""

    def critic_adapter(self) -> Path | None:
        """Return the folder of the initial critic as an adapter with a head, if the recipe names one."""

    def critic_head(self, scorer: Any, /) -> nn.Linear | None:
        """Load the head of the initial critic, if the recipe names one; it must read the states of `scorer`."""

    def start_adapter(self) -> Path | None:
        """Return the adapter of the policy that this one goes on from; None: it starts from base*."""

    def start_model(self) -> PreTrainedModel | None:
        """Load the policy that this one goes on from, where all weights are trained; None: it starts from base*."""

    def note(self, message: str, /) -> None:
        """Report a message, and keep it in the manifest of the new artifact."""


@dataclass(frozen=True)
class RewardModel:
    """A loaded reward model; all fields are None for a function. `tokenizer`: set if it differs from the policy's."""

    scorer: Any = None
    tokenizer: PreTrainedTokenizerBase | None = None
    classifier: Classifier | None = None


def build_roles(
    section: Ppo, base: PreTrainedModel, pad_token_id: int, models: RoleModels, *, seed: int, needs_critic: bool = True
) -> tuple[Roles, RewardModel]:
    """Make every role, on as few copies of base* as the recipe allows; the critic only if the algorithm needs one."""
    kind = section.critic_kind if needs_critic else None
    # Load the reward model first: a separate critic may start as a copy of it.
    shared = models.shared_reward_adapters() if section.lora and kind != "model" else []
    classifier = models.classifier() if models.has_reward else None
    scorer: Any = None
    own_tokenizer = None
    if models.has_reward and not shared and classifier is None:
        scorer, own_tokenizer = models.reward_model()
    critic = None
    if kind == "model":
        critic = Critic(_critic_model(base, scorer, own_tokenizer, models, seed=seed))

    policy, reference = _policy_and_reference(base, pad_token_id, section, models, seed=seed)
    if shared:
        members = [scorer_beside(policy, member_name(REWARD, number), folder) for number, folder in enumerate(shared)]
        scorer = members[0] if len(members) == 1 else models.ensemble(members)
        models.check_shared_reward(scorer)
    if kind == "head":
        scores = AdapterScorer(policy, heads.new_head(policy.model))
        critic = Critic(scores, shares_policy=True, trains_trunk=section.critic_trains_trunk)
    elif kind == "reward":
        critic = _critic_on_reward(scorer, own_tokenizer, models)
    elif kind == "adapter":
        head = _critic_adapter(policy.model, shared[0] if shared else None, section, models, seed=seed + 1)
        critic = Critic(AdapterScorer(policy.with_adapter(CRITIC), head))
    roles = Roles(
        policy, reference, critic, masking.make_masking(policy, section.lora) if section.algorithm == "nlpo" else None
    )
    return roles, RewardModel(scorer, own_tokenizer, classifier)


def shares_base(section: Ppo) -> bool:
    """Tell whether reward models that are adapters on base* share the policy's copy of it.

    A critic that is a separate model may start as a copy of the reward model, which is then a separate model, too.
    """
    return section.lora is not None and section.critic_kind != "model"


def scorer_beside(policy: LanguageModel, name: str, folder: Path) -> AdapterScorer:
    """Load the reward model whose adapter and head lie in `folder` onto the policy's model, as adapter `name`."""
    head = heads.load_scorer_adapter(policy.model, name, folder)
    return AdapterScorer(policy.with_adapter(name), head)


def _policy_and_reference(
    base: PreTrainedModel, pad: int, section: Ppo, models: RoleModels, *, seed: int
) -> tuple[LanguageModel, LanguageModel]:
    """Make the policy with pad masked, and the reference: a frozen copy, or the policy's model with its adapter off."""
    if section.lora is None:
        reference = build.copy_frozen(base)
        special_tokens.mask_pad(reference, pad)
        if (start := models.start_model()) is not None:
            base.load_state_dict(start.state_dict())
        special_tokens.mask_pad(base, pad)
        return LanguageModel(base, pad), LanguageModel(reference, pad)
    lora = section.lora
    if lora.lora_dropout:
        lora = lora.model_copy(update={"lora_dropout": 0.0})
        models.note("PPO runs without dropout: lora_dropout is 0 in this stage")
    model = adapters.add_lora(base, lora, TaskType.CAUSAL_LM, seed=seed)
    if (start := models.start_adapter()) is not None:
        adapters.load_weights(model, start, "ppo")
    special_tokens.mask_pad(model, pad)
    policy = LanguageModel(model, pad, POLICY)
    return policy, policy.with_adapter(None)


def _critic_model(
    base: PreTrainedModel,
    scorer: PreTrainedModel | Ensemble | None,
    own_tokenizer: Any,
    models: RoleModels,
    *,
    seed: int,
) -> PreTrainedModel:
    """Make a separate critic: the one named, a copy of the reward model, or (for a function) base* with a zero head."""
    critic = models.critic_model()
    if critic is None and isinstance(scorer, PreTrainedModel) and own_tokenizer is None:
        critic = build.copy_frozen(scorer)
    if critic is None:
        if scorer is not None:
            models.note(
                "the reward model reads other tokens than the policy: the critic starts from base* with a zero head"
            )
        return heads.scorer_on(base, seed=seed, zero_head=True)
    critic.requires_grad_(True)
    return critic


def _critic_on_reward(scorer: Any, own_tokenizer: Any, models: RoleModels) -> Critic:
    """Make a critic that reads the reward model's states; of an ensemble those of the first member.

    EngineError if there are no such states at the policy's tokens.
    """
    why = None
    if scorer is None:
        why = "a classifier" if models.has_reward else "no model"
    elif own_tokenizer is not None:
        why = "a model with another tokenizer"
    elif isinstance(scorer, Ensemble) and not isinstance(scorer.members[0], AdapterScorer):
        why = "an ensemble of separate models"
    if why is not None:
        raise EngineError(
            f"critic: reward reads the reward model's states at the policy's tokens, but the reward is {why}",
            where="ppo.critic",
            fix="use critic: adapter, head or model",
        )
    read = scorer.members[0] if isinstance(scorer, Ensemble) else scorer
    twin = heads.with_own_head(read)
    if (start := models.critic_head(read)) is not None:
        twin.score = start
    return Critic(twin, reads=read)


def _critic_adapter(
    policy: PeftModel, shared: Path | None, section: Ppo, models: RoleModels, *, seed: int
) -> nn.Linear:
    """Add the critic's adapter to `policy`: the one named, the reward model's, or a new one. Returns its head."""
    start = models.critic_adapter() or shared
    if start is not None:
        return heads.load_scorer_adapter(policy, CRITIC, start)
    if models.has_reward:
        models.note(
            "the reward model is no adapter on this base*: the critic starts as a fresh adapter with a zero head"
        )
    assert section.lora is not None
    adapters.add_adapter(policy, CRITIC, section.lora, seed=seed)
    return heads.new_head(policy)
