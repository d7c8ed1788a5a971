"""Who plays in PPO, and what they share: policy, reference, critic and reward model on one copy of base*.

    critic: adapter     base* has the adapters `default` (policy), `critic` and `reward`; the reference is base* with
                        all of them off. Two scalar heads stand beside it.
    critic: head        the value head reads the policy's own hidden states: one forward serves both.
    critic: model       a sequence-classification model of its own, as TRL has it.

A role is made active before each of its forwards, and stays so until its backward is done: peft's switch freezes the
other adapters, and a recomputation under gradient checkpointing runs with whatever adapter is active *then*. Leaves
out the PPO steps (ppo_loop.py) and sampling (rollout.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfctl.errors import EngineError, HandoffError
from rlhfctl.recipe.schema import Lora
from rlhfctl.training import models, tokenizing
from rlhfctl.training.models import PAD_LOGIT
from rlhfctl.training.ppo_math import entropy
from rlhfctl.training.sequences import Sequences, hidden_states

POLICY, CRITIC, REWARD = (
    "default",
    "critic",
    "reward",
)  # adapter names; peft saves `default` without a folder of its own
HEAD_ELEMENTS = 1 << 24  # logits worked on at a time: 64 MB in float32
_CHECK_TOLERANCE = 1e-4
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM


# ---------------------------------------------------------------- a language model taken apart


class LanguageModel:
    """A causal language model as trunk and head, so that the head runs only where it is needed.

    `adapter`: the name of the adapter that acts, None for none (the plain weights).
    """

    def __init__(self, model: Any, pad_token_id: int, adapter: str | None = None) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.adapter = adapter
        self._switch = AdapterSwitch.of(model)
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        self.trunk = models.backbone(inner)
        self.head = inner.get_output_embeddings()
        self.config = inner.config
        self.vocabulary = self.head.weight.shape[0]
        self._pad_mask: Tensor | None = None
        self.decodes: bool | None = None  # whether decode.py computes what this model does; None: not tried

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def activate(self) -> None:
        """Let this role's adapter act, until another role is activated."""
        if self._switch is not None:
            self._switch.to(self.adapter)

    def hidden(self, ids: Tensor, **inputs: Any) -> Tensor:
        """(B, L, H) last hidden states of `ids` (B, L)."""
        self.activate()
        states: Tensor = self.trunk(input_ids=ids, use_cache=False, **inputs).last_hidden_state
        return states

    def states(self, sequences: Sequences) -> Tensor:
        """(T, H) last hidden states of all tokens of `sequences`."""
        self.activate()
        return hidden_states(self.trunk, sequences)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) in float32 (float64 stays), pad masked, from hidden states (..., H)."""
        return self.finished(self.head(hidden))

    def finished(self, logits: Tensor) -> Tensor:
        """Logits as the head gives them, with what the architecture and the pad mask do to them."""
        if soft_cap := next((cap for name in _SOFT_CAPS if (cap := getattr(self.config, name, None))), None):
            logits = torch.tanh(logits / soft_cap) * soft_cap
        if scale := getattr(self.config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        logits = models.at_least_float32(logits)
        if self._pad_mask is None or self._pad_mask.device != logits.device:
            self._pad_mask = torch.zeros(self.vocabulary, dtype=torch.bool, device=logits.device)
            self._pad_mask[self.pad_token_id] = True
        return logits.masked_fill(self._pad_mask, PAD_LOGIT)

    def token_logprobs(
        self, hidden: Tensor, tokens: Tensor, temperature: float, *, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability of each of `tokens` (N,) from `hidden` (N, H), and the entropies (N,) if asked for.

        Worked through in pieces, so that the logits of all N x V are never held at once; under autograd the pieces
        are recomputed in the backward pass.
        """
        if not with_entropy and self._plain_frozen_head(hidden):
            chosen: Tensor = _FrozenHead.apply(hidden, tokens, self.head, self.pad_token_id, temperature)
            return chosen, None

        def piece(part: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.logits(part) / temperature
            taken = torch.log_softmax(logits, dim=-1).gather(-1, chosen[:, None]).squeeze(-1)
            spread = entropy(logits) if with_entropy else taken.detach()
            return taken, spread

        rows = max(1, HEAD_ELEMENTS // self.vocabulary)
        parts = list(zip(hidden.split(rows), tokens.split(rows), strict=True))
        if len(parts) > 1 and torch.is_grad_enabled() and hidden.requires_grad:
            done = [checkpoint(piece, *part, use_reentrant=False) for part in parts]
        else:
            done = [piece(*part) for part in parts]
        logprobs = torch.cat([logprob for logprob, _ in done])
        return logprobs, torch.cat([spread for _, spread in done]) if with_entropy else None

    def _plain_frozen_head(self, hidden: Tensor) -> bool:
        special = (*_SOFT_CAPS, "logit_scale", "logits_scaling")
        return (
            type(self.head) is nn.Linear
            and not any(parameter.requires_grad for parameter in self.head.parameters())
            and not any(getattr(self.config, name, None) for name in special)
            and hidden.dtype == self.head.weight.dtype
            and hidden.dtype.itemsize >= 4
            and not torch.is_autocast_enabled(hidden.device.type)
        )

    def check_head(self, rows: Sequence[Sequence[int]], tolerance: float = _CHECK_TOLERANCE) -> None:
        """EngineError unless trunk + head give the logits of the model's own forward on `rows` (fewer, where those
        would be large).
        """
        if not rows:  # every prompt is a single token
            return
        rows = rows[: models.rows_at_once(self.model, len(rows), max(map(len, rows)))]
        ids, _ = models.pad_right(rows, self.pad_token_id, self.device)
        with torch.no_grad():
            theirs = self.model(input_ids=ids, use_cache=False).logits
            try:
                ours = self.logits(self.hidden(ids))
            except RuntimeError:  # the output layer reads something of another width
                ours = torch.full_like(theirs, torch.inf)
            theirs = theirs.to(ours.dtype)
        ours[..., self.pad_token_id] = theirs[..., self.pad_token_id] = 0.0
        gap = float((ours - theirs).abs().max())
        if not gap <= tolerance * max(1.0, float(theirs.abs().max())):
            raise EngineError(
                f"the architecture {type(self.model).__name__} computes its logits in a way that this engine does not "
                f"know: off by {gap:.3g}",
                where="ppo.engine: rlhfctl",
                fix="use engine: trl, and please report the architecture",
            )


class _FrozenHead(torch.autograd.Function):
    """Token log-probabilities through a linear head that is not trained, and nothing of size N x V kept.

    d log p(token) / d hidden = (w_token - sum_v p(v) w_v) / temperature does not depend on what comes after, so it is
    taken in the forward pass, piece by piece; the backward pass only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, head: nn.Linear, pad_token_id: int, temperature: float
    ) -> Tensor:
        weight = head.weight
        needed = ctx.needs_input_grad[0]
        logprobs = torch.empty_like(hidden[:, 0])
        directions = torch.empty_like(hidden) if needed else None
        rows = max(1, HEAD_ELEMENTS // weight.shape[0])
        for start in range(0, len(tokens), rows):
            piece = slice(start, start + rows)
            logits = nn.functional.linear(hidden[piece], weight, head.bias)
            logits[:, pad_token_id] = PAD_LOGIT
            if temperature != 1.0:
                logits /= temperature
            everything = torch.log_softmax(logits, dim=-1)
            logprobs[piece] = everything.gather(-1, tokens[piece, None]).squeeze(-1)
            if directions is not None:
                directions[piece] = (weight[tokens[piece]] - everything.exp_() @ weight) / temperature
        ctx.save_for_backward(directions)
        return logprobs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (directions,) = ctx.saved_tensors
        return gradient[:, None] * directions, None, None, None, None


class AdapterSwitch:
    """Which adapter of a peft model acts. What may be trained is stated after each switch, because peft's undoes it."""

    def __init__(self, model: PeftModel) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.active: str | None = "?"  # anything may be active before the first switch

    @classmethod
    def of(cls, model: Any) -> AdapterSwitch | None:
        if not isinstance(model, PeftModel):
            return None
        found: AdapterSwitch | None = model.__dict__.get("_rlhfctl_switch")
        if found is None:
            found = cls(model)
            model.__dict__["_rlhfctl_switch"] = found
        return found

    def to(self, adapter: str | None) -> None:
        if adapter == self.active and self._as_left(adapter):
            return
        for layer in self.layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter([adapter], inference_mode=True)
                layer._disable_adapters = False
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.active = adapter

    def _as_left(self, adapter: str | None) -> bool:
        """Whether nobody switched since: peft's own methods treat all layers alike, so one shows it."""
        layer = self.layers[0]
        acting = None if layer.disable_adapters else layer.active_adapters
        return acting == (None if adapter is None else [adapter]) and all(p.requires_grad for p in self.trained[:1])

    def trains(self, parameters: Sequence[nn.Parameter]) -> None:
        """These, and no others, are trained."""
        self.trained = list(parameters)


# ---------------------------------------------------------------- a scorer: reward model or critic


class AdapterScorer(nn.Module):
    """A scalar head on a trunk that it shares: an adapter of the policy's model. Shaped like a model of its own."""

    base_model_prefix = "backbone"

    def __init__(self, language_model: LanguageModel, head: nn.Module) -> None:
        super().__init__()
        self.score = head
        self.backbone = _Backbone(language_model)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
        """As a SEQ_CLS adapter with its head, which plain peft loads onto base*."""
        language_model = self.backbone.shared
        save_scorer_adapter(language_model.model, str(language_model.adapter), self.score, folder, base)
        tokenizing.save_tokenizer(tokenizer, folder)


class _Backbone(nn.Module):
    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.__dict__["shared"] = language_model  # not a submodule: it belongs to the policy

    shared: LanguageModel

    @property
    def config(self) -> Any:
        return self.shared.trunk.config

    def forward(self, **inputs: Any) -> Any:
        self.shared.activate()
        return self.shared.trunk(**inputs)


def save_scorer_adapter(model: PeftModel, adapter: str, head: nn.Module, folder: Path, base: str) -> None:
    """Write one adapter and a scalar head as peft saves a SEQ_CLS adapter."""
    marker = f".{adapter}.weight"
    tensors = {
        name.replace(marker, ".weight"): value.detach().to("cpu").contiguous()
        for name, value in model.state_dict().items()
        if name.endswith(marker) and ".lora_" in name
    }
    tensors["base_model.model.score.weight"] = head.weight.detach().to("cpu").contiguous()
    config = copy.deepcopy(model.peft_config[adapter])
    config.task_type = TaskType.SEQ_CLS
    config.modules_to_save = ["score"]
    config.inference_mode = True
    config.base_model_name_or_path = base
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_scorer_adapter(model: PeftModel, name: str, folder: Path) -> nn.Linear:
    """Put the SEQ_CLS adapter of `folder` onto `model` under `name`, frozen; returns its scalar head.

    HandoffError where the file's tensors are not those that this model needs, or the head is not there.
    """
    tensors = load_file(folder / "adapter_model.safetensors")
    heads = [key for key in tensors if key.endswith((".score.weight", ".score.modules_to_save.weight"))]
    if len(heads) != 1:
        raise HandoffError("the adapter holds no scalar head: its scores would be noise", where=str(folder))
    weight = tensors.pop(heads[0])
    config = LoraConfig.from_pretrained(str(folder))
    config.task_type = TaskType.CAUSAL_LM
    config.modules_to_save = None
    config.inference_mode = False
    config.lora_dropout = 0.0
    try:
        model.add_adapter(name, config)
    except ValueError as error:
        raise HandoffError(
            f"the adapter does not fit this base: {str(error).splitlines()[0]}",
            where=str(folder),
            fix="use the base model that the adapter was trained on",
        ) from error
    wanted = {key: value for key, value in model.state_dict().items() if f".{name}.weight" in key and ".lora_" in key}
    given = {key.removesuffix(".weight") + f".{name}.weight": value for key, value in tensors.items()}
    if wanted.keys() != given.keys() or any(wanted[key].shape != given[key].shape for key in wanted):
        odd = sorted(wanted.keys() ^ given.keys())
        raise HandoffError(
            f"the adapter does not fit this base: {', '.join(odd[:3]) or 'shapes differ'}",
            where=str(folder),
            fix="use the base model that the adapter was trained on",
        )
    with torch.no_grad():
        for key, value in given.items():
            wanted[key].copy_(value)
    head = new_head(model, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def new_head(model: Any, dtype: torch.dtype | None = None) -> nn.Linear:
    """A scalar head of zeros for the hidden states of `model`, in float32 at least: it is trained."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    embedding = inner.get_input_embeddings().weight
    width = inner.get_output_embeddings().weight.shape[1]
    kind = torch.promote_types(dtype or embedding.dtype, torch.float32)
    head = nn.Linear(width, 1, bias=False, dtype=kind, device=embedding.device)
    nn.init.zeros_(head.weight)
    return head


def add_adapter(model: PeftModel, name: str, lora: Lora, *, seed: int) -> None:
    """A fresh adapter (B = 0) beside the policy's."""
    set_seed(seed)
    model.add_adapter(name, models.lora_config(lora, TaskType.CAUSAL_LM, model.get_base_model()))


# ---------------------------------------------------------------- the critic


class Critic:
    """What gives states their values. `shares_policy` says that it reads the policy's own hidden states."""

    def __init__(self, scorer: Any, *, shares_policy: bool = False, trains_trunk: bool = True) -> None:
        self.scorer = scorer
        self.shares_policy = shares_policy
        self.trains_trunk = trains_trunk

    def states(self, sequences: Sequences) -> Tensor:
        """(T, H) of its own trunk."""
        return hidden_states(models.backbone(self.scorer), sequences)

    def values(self, hidden: Tensor) -> Tensor:
        """(N,) from the hidden states (N, H); detached from the trunk unless it is to be trained by them."""
        if self.shares_policy and not self.trains_trunk:
            hidden = hidden.detach()
        values: Tensor = self.scorer.score(hidden.to(self.scorer.score.weight.dtype)).squeeze(-1)
        return models.at_least_float32(values)


# ---------------------------------------------------------------- all of them


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`forward`, its activations computed again in the backward pass; nothing in it is random."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@dataclass
class Roles:
    """Policy, reference, critic. `policy.model` is the module that is handed on."""

    policy: LanguageModel
    reference: LanguageModel
    critic: Critic

    def trainable(self) -> dict[str, nn.Parameter]:
        """name -> parameter of all that is trained, each once."""
        found: dict[str, nn.Parameter] = {}
        if isinstance(self.policy.model, PeftModel):
            names = {POLICY}
            if isinstance(self.critic.scorer, AdapterScorer) and not self.critic.shares_policy:
                names.add(CRITIC)
            for name, parameter in self.policy.model.named_parameters():
                if ".lora_" in name and any(f".{adapter}." in name for adapter in names):
                    found[f"policy.{name}"] = parameter
        else:
            found |= {f"policy.{name}": parameter for name, parameter in self.policy.model.named_parameters()}
        if isinstance(self.critic.scorer, AdapterScorer):
            found["critic.score.weight"] = self.critic.scorer.score.weight
        else:
            found |= {f"critic.{name}": parameter for name, parameter in self.critic.scorer.named_parameters()}
        return found

    def sizes(self) -> dict[str, int]:
        """Parameters trained by role, and those of all models together (a shared one counts once)."""
        trained = self.trainable()
        critic = [name for name in trained if name.startswith("critic.") or f".{CRITIC}." in name]
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
        every = [self.policy.model, self.reference.model, self.critic.scorer]
        return list({id(module): module for module in every}.values())

    def trunks(self) -> list[Any]:
        """What gives hidden states, each model once."""
        own = [] if isinstance(self.critic.scorer, AdapterScorer) else [models.backbone(self.critic.scorer)]
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
