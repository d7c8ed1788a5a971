"""Estimate the memory of base, sft and reward by running their steps on meta tensors (shapes without numbers).

    config ─▶ skeleton (meta tensors) ─▶ the stage's forwards and backwards, ─▶ AllocationMeter ─▶ Moments ─▶ the peak
                                          on the longest rows that it has

The losses are TRL's; ppo is in ppo_memory.py, compare and card in compare_memory.py. A moment is the sum of the memory
that stays for the whole step (weights, optimizer) and of the memory that the meter counted during the step. Libraries
and data rows are not included (`rlhfctl plan` adds both), nor is memory wasted by an allocator on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from rlhfctl.models import scoring
from rlhfctl.models.adapters import POLICY, add_lora, is_adapter_parameter
from rlhfctl.models.heads import new_scorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.tensors import at_least_float32
from rlhfctl.planning.meter import GATHERED, GRADIENTS, OPTIMIZER, WEIGHTS, AllocationMeter, on_meta_device
from rlhfctl.recipe.schema import Lora

BASE = "base*"
REWARD_ROLE, HELDOUT_ROLE = "reward model", "held-out reward model"  # in ppo, compare and card
_LOSS_TOKENS = 256  # tokens per piece of logits in TRL's SFT loss
# Bytes per weight of a quantized linear layer, with scales: int8 has one scale per row, NF4 one per 64 weights.
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}

Needs = dict[str, dict[str, int]]  # role -> kind -> bytes


@dataclass(frozen=True)
class Moment:
    """The memory in use at one time: bytes by role and kind."""

    what: str
    needs: Mapping[str, Mapping[str, int]]
    trains: bool = True  # False: before or after training, where the weights are whole even if training divides them

    @property
    def total(self) -> int:
        return sum(sum(kinds.values()) for kinds in self.needs.values())


@dataclass(frozen=True)
class MemoryEstimate:
    """The moments of a stage, and its numbers of parameters. The largest moment is the peak."""

    moments: tuple[Moment, ...]
    trainable: int
    parameters: int

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)


@dataclass(frozen=True)
class ModelSpec:
    """The configuration of a model (with enough embedding rows for the tokenizer) and its number format."""

    config: PretrainedConfig
    dtype: torch.dtype
    quantization: str | None = None
    attention: str | None = None  # eager or sdpa (same memory as flash); None: transformers' choice


@dataclass(frozen=True)
class Training:
    """Settings of a TRL trainer's step: `rows` sequences of `length` tokens per micro-batch.

    `exchanges`: several processes add up their gradients, which torch copies into buffers for that.
    """

    rows: int
    length: int
    lora: Lora | None
    accumulates: bool = False
    exchanges: bool = False
    autocast: bool = False
    checkpointing: bool = False
    whole_logits: bool = False
    optimizer_bytes: Callable[[Tensor], int] = lambda weight: 2 * weight.nbytes  # AdamW: two numbers per weight
    tokens: tuple[int, ...] = ()  # ids whose embedding rows are trained with the adapter


# ---------------------------------------------------------------- memory that stays for a whole step


def language_model(shape: ModelSpec) -> Any:
    """Make a causal language model from its configuration."""
    return AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype, attn_implementation=shape.attention)


def scorer_model(shape: ModelSpec) -> Any:
    """Make a reward model or critic (one score per sequence) from its configuration."""
    shape.config.num_labels = 1
    if shape.config.pad_token_id is None:
        shape.config.pad_token_id = 0
    return new_scorer(shape.config, dtype=shape.dtype, attn_implementation=shape.attention)


def weight_bytes(model: nn.Module, quantization: str | None = None) -> tuple[int, int]:
    """Count bytes of (plain weights with buffers, adapter weights), each storage once.

    With `quantization`, linear layers except heads and adapters are counted in few bits.
    """
    heads = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    narrow = {
        id(module.weight)
        for name, module in model.named_modules()
        if quantization and isinstance(module, nn.Linear) and id(module) not in heads and not is_adapter_parameter(name)
        and not name.endswith("score")
    }  # fmt: skip
    sizes = Counter[str]()
    seen: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.untyped_storage()._cdata in seen:
            continue
        seen.add(tensor.untyped_storage()._cdata)
        size = tensor.nbytes
        if id(tensor) in narrow and quantization:
            size = int(tensor.numel() * _QUANTIZED_BYTES[quantization])
        sizes["adapter" if is_adapter_parameter(name) else "base"] += size
    return sizes["base"], sizes["adapter"]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def held_by(role: str, model: Any, quantization: str | None, optimizer: int = 0) -> Needs:
    """Divide a model's weights and optimizer state into roles: base* and the adapter, or the whole model."""
    base, adapter = weight_bytes(model, quantization)
    if adapter:
        return {BASE: {WEIGHTS: base}, role: {WEIGHTS: adapter, OPTIMIZER: optimizer}}
    return {role: {WEIGHTS: base, OPTIMIZER: optimizer}}


def with_seen(held: Needs, role: str, seen: Mapping[str, int]) -> Needs:
    """Add the bytes that the meter counted to `role` of `held`."""
    return held | {role: dict(Counter(held.get(role, {})) + Counter(seen))}


def counted(*modules: nn.Module) -> tuple[int, int]:
    """Count (trained, all) parameters, each once."""
    parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


# ---------------------------------------------------------------- weights divided over processes


def gathered_bytes(shape: ModelSpec) -> int:
    """Count the bytes that a process gathers from the others while a divided model runs (models/sharding.py).

    They are embeddings and output layer, and two layers: the one that runs and, in the backward pass, the next.
    """
    with on_meta_device():
        model = language_model(shape)
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        of_layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in layers]
        return weight_bytes(model)[0] - sum(of_layers) + 2 * max(of_layers, default=0)


def divided(
    estimate: MemoryEstimate, processes: int, *, whole: Collection[str], gathered: int, loads_here: bool
) -> MemoryEstimate:
    """Estimate what each of `processes` needs where they divide the weights.

    `whole`: the roles whose weights are adapters or heads, which are not divided. `gathered`: as of `gathered_bytes`.
    `loads_here`: whether the memory in question also holds the whole model before and after training, as on a CPU; on
    a GPU it does not.
    """
    moments = [
        Moment(moment.what, _divided(moment.needs, processes, whole, gathered)) if moment.trains else moment
        for moment in estimate.moments
        if moment.trains or loads_here
    ]
    if loads_here:
        roles = estimate.peak.needs.items()
        loaded = {role: {WEIGHTS: kinds.get(WEIGHTS, 0)} for role, kinds in roles}
        moments.append(Moment("loading and saving", loaded, trains=False))
    return MemoryEstimate(tuple(moments), estimate.trainable, estimate.parameters)


def _divided(needs: Mapping[str, Mapping[str, int]], processes: int, whole: Collection[str], gathered: int) -> Needs:
    shares = {WEIGHTS: processes, GRADIENTS: processes, OPTIMIZER: processes}
    result = {
        role: {kind: size if role in whole else -(-size // shares.get(kind, 1)) for kind, size in kinds.items()}
        for role, kinds in needs.items()
    }
    first = next(role for role in result if role not in whole)
    return result | {first: result[first] | {GATHERED: gathered}}


# ---------------------------------------------------------------- sft, reward, base


def base_outlook(shape: ModelSpec, probe_rows: int, probe_length: int) -> MemoryEstimate:
    """Estimate the memory of the base stage: it loads, checks and saves the model."""
    with on_meta_device():
        model = language_model(shape)
        held = held_by("model", model, shape.quantization)
        _, parameters = counted(model)
        check = Moment("checking what it gives", checked(held, "model", model, probe_rows, probe_length), trains=False)
    return MemoryEstimate((check,), 0, parameters)


def sft_outlook(shape: ModelSpec, training: Training, probe_rows: int, probe_length: int) -> MemoryEstimate:
    """Estimate the memory of the sft stage, which uses TRL's SFTTrainer."""
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
        check = Moment(
            "checking what was saved", checked(plain, "model", model, probe_rows, probe_length), trains=False
        )
    moments = [step, check]
    if shape.quantization is not None:  # the quantized model is still loaded while the full one is merged
        moments.append(Moment("merging the adapter", {BASE: dict(step.needs[BASE]), **plain}))
    return MemoryEstimate(tuple(moments), *counts)


def reward_outlook(shape: ModelSpec, training: Training) -> MemoryEstimate:
    """Estimate the memory of the reward stage, which uses TRL's RewardTrainer.

    `training.rows` counts chosen and rejected responses separately.
    """
    role = "adapter" if training.lora is not None else "reward model"
    with on_meta_device(autocast=training.autocast):
        before = held_by(BASE, language_model(shape), shape.quantization)
        model = scorer_model(shape)
        both = before | held_by("reward model", model, shape.quantization)
        loading = [Moment("putting a head on base*", both, trains=False)]
        if training.lora is not None:
            model = add_lora(model, training.lora, TaskType.SEQ_CLS, seed=0)

        def loss(ids: Tensor, mask: Tensor) -> Tensor:
            chosen, rejected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).chunk(2)
            return -nn.functional.logsigmoid(chosen - rejected).mean()

        step, counts = _trainer_step(role, model, loss, training, shape, shape.config.vocab_size)
    return MemoryEstimate((*(loading if shape.quantization is None else []), step), *counts)


def dpo_outlook(shape: ModelSpec, training: Training, rows: int, length: int) -> MemoryEstimate:
    """Estimate the memory of the dpo stage, which uses TRL's DPOTrainer.

    `training.rows` counts chosen and rejected responses separately. Without LoRA the reference is a second model.
    `rows` sequences of `length` tokens are read at a time before and after training, for the held-out pairs.
    """
    role, base = ("adapter", BASE) if training.lora is not None else ("policy", "policy")
    with on_meta_device(autocast=training.autocast):
        model = language_model(shape)
        reference = language_model(shape) if training.lora is None else model
        beside = held_by("reference", reference, shape.quantization) if training.lora is None else {}
        read = checked(held_by(base, model, shape.quantization), base, reference, rows, length)
        if training.lora is not None:
            reference = model = add_lora(model, training.lora, TaskType.CAUSAL_LM, seed=0)

        def logprobs(one: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            logits = one(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            return logits, selective_log_softmax(logits, ids[:, 1:]).sum(1)

        def loss(ids: Tensor, mask: Tensor) -> Tensor:
            logits, ours = logprobs(model, ids, mask)
            with torch.no_grad(), model.disable_adapter() if training.lora is not None else nullcontext():
                kept, theirs = logprobs(reference, ids, mask)  # TRL holds these logits until the loss is there
            chosen, rejected = (ours - theirs).chunk(2)
            value = -nn.functional.logsigmoid(chosen - rejected).mean()
            entropy_from_logits(logits.detach())
            del kept
            return value

        step, counts = _trainer_step(role, model, loss, training, shape, shape.config.vocab_size)
    reading = Moment("log-probabilities of the held-out pairs", {**read, **beside}, trains=False)
    return MemoryEstimate((reading, replace(step, needs={**step.needs, **beside})), *counts)


def _trainer_step(
    role: str,
    model: Any,
    loss: Callable[[Tensor, Tensor], Tensor],
    training: Training,
    shape: ModelSpec,
    vocabulary: int,
) -> tuple[Moment, tuple[int, int]]:
    """Run one training step (two micro-batches with accumulation) and measure it; also count parameters."""
    model.train()
    if training.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = sum(training.optimizer_bytes(parameter) for parameter in _trained(model))
    held = held_by(role, model, shape.quantization, optimizer)
    if training.exchanges:
        held = with_seen(held, role, {GRADIENTS: sum(parameter.nbytes for parameter in _trained(model))})
    meter = AllocationMeter(vocabulary)
    meter.ignore_weights(model)
    with meter:
        ids = torch.zeros((training.rows, training.length), dtype=torch.long)
        mask = torch.ones_like(ids)
        for _ in range(2 if training.accumulates else 1):
            value = loss(ids, mask)
            value.backward()
            del value
    return Moment("a training step", with_seen(held, role, meter.peak)), counted(model)


def _chunked_loss(model: LanguageModel, hidden: Tensor) -> Tensor:
    """Repeat TRL's `chunked_nll` loss: float32 logits for 256 tokens at a time, recomputed in the backward pass."""

    def piece(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs = torch.log_softmax(states.float() @ weight.float().t(), -1)
        (logprobs.detach().exp() * logprobs.detach()).sum(-1)
        return nn.functional.nll_loss(logprobs, targets, reduction="sum")

    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    flat = flat[torch.zeros(len(flat), dtype=torch.long)]
    targets = torch.zeros(len(flat), dtype=torch.long)
    total = flat.new_zeros((), dtype=torch.float32)
    head = model.head.weight  # read once: with trained rows, each access builds the matrix anew
    for states, wanted in zip(flat.split(_LOSS_TOKENS), targets.split(_LOSS_TOKENS), strict=True):
        total = total + checkpoint(piece, states, head, wanted, use_reentrant=False)
    return total


def checked(held: Needs, role: str, model: Any, rows: int, length: int) -> Needs:
    """Measure scoring.sequence_logprobs on the recorded check rows."""
    meter = AllocationMeter(LanguageModel(model, 0).vocabulary)
    meter.ignore_weights(model)
    with torch.no_grad(), meter:
        ids = torch.zeros((scoring.rows_at_once(model, rows, length), length), dtype=torch.long)
        logits = at_least_float32(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])
    return with_seen(held, role, meter.peak)
