"""Estimate the memory of a stage without that memory: its steps run on tensors that have shapes and no numbers.

    config ─▶ skeleton (meta tensors) ─▶ the stage's forwards and backwards, ─▶ AllocationMeter ─▶ Moments ─▶ the peak
                                          on the longest rows that it has

Here: base, sft and reward, with TRL's losses; ppo and compare are in ppo_memory.py. A moment adds what lives through a
step (weights, optimizer) to what the meter saw come and go in it. Leaves out the libraries themselves and the rows
(`rlhfctl plan` adds both), and what an allocator wastes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhfctl.models import scoring
from rlhfctl.models.adapters import POLICY, add_lora, is_adapter_parameter
from rlhfctl.models.heads import new_scorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.tensors import at_least_float32
from rlhfctl.planning.meter import OPTIMIZER, WEIGHTS, AllocationMeter, on_meta_device
from rlhfctl.recipe.schema import Lora

BASE = "base*"
_LOSS_TOKENS = 256  # TRL's SFT loss makes the logits of so many tokens at a time
# Bytes a weight of a linear layer takes, its scales included: int8 with a scale a row; NF4 with one for 64 weights.
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}

Needs = dict[str, dict[str, int]]  # role -> kind -> bytes


@dataclass(frozen=True)
class Moment:
    """What is held at one time: bytes by role and kind."""

    what: str
    needs: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        return sum(sum(kinds.values()) for kinds in self.needs.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """A stage's moments, and its parameters."""

    moments: tuple[Moment, ...]
    trainable: int
    parameters: int

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)


@dataclass(frozen=True)
class ModelSpec:
    """What must be known of a model: its configuration, with as many embedding rows as the tokenizer needs."""

    config: PretrainedConfig
    dtype: torch.dtype
    quantization: str | None = None
    attention: str | None = None  # eager or sdpa, which takes what flash takes; None: transformers' choice


@dataclass(frozen=True)
class Training:
    """How a TRL trainer steps: `rows` sequences of `length` tokens at a time."""

    rows: int
    length: int
    lora: Lora | None
    accumulates: bool = False
    autocast: bool = False
    checkpointing: bool = False
    whole_logits: bool = False
    optimizer_bytes: Callable[[Tensor], int] = lambda weight: 2 * weight.nbytes  # AdamW: two moments
    tokens: tuple[int, ...] = ()  # whose rows of the embeddings are trained beside the adapter


# ---------------------------------------------------------------- what is held throughout a step


def language_model(shape: ModelSpec) -> Any:
    return AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype, attn_implementation=shape.attention)


def scorer_model(shape: ModelSpec) -> Any:
    shape.config.num_labels = 1
    if shape.config.pad_token_id is None:
        shape.config.pad_token_id = 0
    return new_scorer(shape.config, dtype=shape.dtype, attn_implementation=shape.attention)


def weight_bytes(model: nn.Module, quantization: str | None = None) -> tuple[int, int]:
    """(frozen or plain weights with buffers, adapters'), each storage once; linear layers but heads quantized."""
    heads = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    narrow = {
        id(module.weight)
        for name, module in model.named_modules()
        if quantization and isinstance(module, nn.Linear) and id(module) not in heads and not is_adapter_parameter(name)
        and not name.endswith("score")
    }  # fmt: skip
    found = Counter[str]()
    seen: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.untyped_storage()._cdata in seen:
            continue
        seen.add(tensor.untyped_storage()._cdata)
        size = tensor.nbytes
        if id(tensor) in narrow and quantization:
            size = int(tensor.numel() * _QUANTIZED_BYTES[quantization])
        found["adapter" if is_adapter_parameter(name) else "base"] += size
    return found["base"], found["adapter"]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def held_by(role: str, model: Any, quantization: str | None, optimizer: int = 0) -> Needs:
    """A model with or without an adapter that is trained, as roles."""
    base, adapter = weight_bytes(model, quantization)
    if adapter:
        return {BASE: {WEIGHTS: base}, role: {WEIGHTS: adapter, OPTIMIZER: optimizer}}
    return {role: {WEIGHTS: base, OPTIMIZER: optimizer}}


def with_seen(held: Needs, role: str, seen: Mapping[str, int]) -> Needs:
    """`held`, and in `role` what the meter saw."""
    return held | {role: dict(Counter(held.get(role, {})) + Counter(seen))}


def counted(*modules: nn.Module) -> tuple[int, int]:
    every = {id(p): p for module in modules for p in module.parameters()}.values()
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)


# ---------------------------------------------------------------- sft, reward, base


def base_outlook(shape: ModelSpec, probe_rows: int, probe_length: int) -> MemoryEstimate:
    """The model as it is: loaded, checked, saved."""
    with on_meta_device():
        model = language_model(shape)
        held = held_by("model", model, shape.quantization)
        _, parameters = counted(model)
        check = Moment("checking what it gives", checked(held, "model", model, probe_rows, probe_length))
    return MemoryEstimate((check,), 0, parameters)


def sft_outlook(shape: ModelSpec, training: Training, probe_rows: int, probe_length: int) -> MemoryEstimate:
    """TRL's SFTTrainer."""
    role = "adapter" if training.lora is not None else "model"
    with on_meta_device(autocast=training.autocast):
        model = language_model(shape)
        plain = held_by("model", model, None)
        if training.lora is not None:
            model = add_lora(model, training.lora, TaskType.CAUSAL_LM, seed=0, tokens=training.tokens)
        trunk_and_head = LanguageModel(model, 0, POLICY if training.lora is not None else None)

        def loss(ids: Tensor, mask: Tensor) -> Tensor:
            if training.whole_logits:
                whole: Tensor = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
                return whole
            return _chunked_loss(trunk_and_head, trunk_and_head.hidden(ids, attention_mask=mask))

        step, counts = _trainer_step(role, model, loss, training, shape, trunk_and_head.vocabulary)
        check = Moment("checking what was saved", checked(plain, "model", model, probe_rows, probe_length))
    moments = [step, check]
    if shape.quantization is not None:  # merged in full precision beside the quantized one
        moments.append(Moment("merging the adapter", {BASE: dict(step.needs[BASE]), **plain}))
    return MemoryEstimate(tuple(moments), *counts)


def reward_outlook(shape: ModelSpec, training: Training) -> MemoryEstimate:
    """TRL's RewardTrainer: `training.rows` counts chosen and rejected apart."""
    role = "adapter" if training.lora is not None else "reward model"
    with on_meta_device(autocast=training.autocast):
        before = held_by(BASE, language_model(shape), shape.quantization)
        model = scorer_model(shape)
        loading = [Moment("putting a head on base*", before | held_by("reward model", model, shape.quantization))]
        if training.lora is not None:
            model = add_lora(model, training.lora, TaskType.SEQ_CLS, seed=0)

        def loss(ids: Tensor, mask: Tensor) -> Tensor:
            chosen, rejected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).chunk(2)
            return -nn.functional.logsigmoid(chosen - rejected).mean()

        step, counts = _trainer_step(role, model, loss, training, shape, shape.config.vocab_size)
    return MemoryEstimate((*(loading if shape.quantization is None else []), step), *counts)


def _trainer_step(
    role: str,
    model: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    training: Training,
    shape: ModelSpec,
    vocabulary: int,
) -> tuple[Moment, tuple[int, int]]:
    model.train()
    if training.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = sum(training.optimizer_bytes(parameter) for parameter in _trained(model))
    held = held_by(role, model, shape.quantization, optimizer)
    meter = AllocationMeter(vocabulary)
    meter.knows(model)
    with meter:
        ids = torch.zeros((training.rows, training.length), dtype=torch.long)
        mask = torch.ones_like(ids)
        for _ in range(2 if training.accumulates else 1):
            value = loss(ids, mask)
            value.backward()
            del value
    return Moment("a training step", with_seen(held, role, meter.peak)), counted(model)


def _chunked_loss(model: LanguageModel, hidden: Tensor) -> Tensor:
    """TRL's `chunked_nll`: logits in float32 for 256 tokens at a time, made again in the backward pass."""

    def piece(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        everything = torch.log_softmax(states.float() @ weight.float().t(), -1)
        (everything.detach().exp() * everything.detach()).sum(-1)
        return nn.functional.nll_loss(everything, targets, reduction="sum")

    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    flat = flat[torch.zeros(len(flat), dtype=torch.long)]
    targets = torch.zeros(len(flat), dtype=torch.long)
    total = flat.new_zeros((), dtype=torch.float32)
    head = model.head.weight  # put together anew on each reading where single rows are trained
    for states, wanted in zip(flat.split(_LOSS_TOKENS), targets.split(_LOSS_TOKENS), strict=True):
        total = total + checkpoint(piece, states, head, wanted, use_reentrant=False)
    return total


def checked(held: Needs, role: str, model: Any, rows: int, length: int) -> Needs:
    """What scoring.sequence_logprobs takes on kept rows."""
    meter = AllocationMeter(LanguageModel(model, 0).vocabulary)
    meter.knows(model)
    with torch.no_grad(), meter:
        ids = torch.zeros((scoring.rows_at_once(model, rows, length), length), dtype=torch.long)
        logits = at_least_float32(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])
    return with_seen(held, role, meter.peak)
