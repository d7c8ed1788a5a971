"""What a stage needs in memory, found without that memory: its steps on tensors that have shapes and no numbers.

    config ─▶ skeleton (fake tensors) ─▶ the stage's forwards and backwards, ─▶ Meter ─▶ Moments ─▶ the peak
                                          on the longest rows that it has

Steps are those of the stages: TRL's losses for sft and reward, our engine's own functions for ppo and compare. A moment
adds what lives through a step (weights, optimizer) to what the meter saw come and go in it. Leaves out the libraries
themselves and the rows (`rlhfctl plan` adds both), and what an allocator wastes. TRL's PPO engine is not modelled.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhfctl.generation import generator, kl, local
from rlhfctl.models import adapters, architecture, scoring
from rlhfctl.models.adapters import POLICY, add_adapter, add_lora
from rlhfctl.models.fused import fused
from rlhfctl.models.heads import AdapterScorer, new_head, new_scorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import PACKED, Sequences, has_full_attention, hidden_states
from rlhfctl.models.tensors import at_least_float32
from rlhfctl.recipe.schema import Compare, Lora, Ppo
from rlhfctl.tools.planning.meter import OPTIMIZER, WEIGHTS, AllocationMeter, on_meta_device
from rlhfctl.training.rl.roles import Critic, Roles

BASE = "base*"
_LOSS_TOKENS = 256  # TRL's SFT loss makes the logits of so many tokens at a time
_KL_ROWS = 16  # rollout.exact_kl's batch
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


# ---------------------------------------------------------------- what is held throughout


def _language_model(shape: ModelSpec) -> Any:
    return AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype, attn_implementation=shape.attention)


def _scorer(shape: ModelSpec) -> Any:
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
        if quantization and isinstance(module, nn.Linear) and id(module) not in heads and "lora_" not in name
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
        found["adapter" if ".lora_" in name else "base"] += size
    return found["base"], found["adapter"]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _held(role: str, model: Any, quantization: str | None, optimizer: int = 0) -> Needs:
    """A model with or without an adapter that is trained, as roles."""
    base, adapter = weight_bytes(model, quantization)
    if adapter:
        return {BASE: {WEIGHTS: base}, role: {WEIGHTS: adapter, OPTIMIZER: optimizer}}
    return {role: {WEIGHTS: base, OPTIMIZER: optimizer}}


def _with(held: Needs, role: str, seen: Mapping[str, int]) -> Needs:
    """`held`, and in `role` what the meter saw."""
    return held | {role: dict(Counter(held.get(role, {})) + Counter(seen))}


def _counted(*modules: nn.Module) -> tuple[int, int]:
    every = {id(p): p for module in modules for p in module.parameters()}.values()
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)


# ---------------------------------------------------------------- sft, reward, base


def base_outlook(shape: ModelSpec, probe_rows: int, probe_length: int) -> MemoryEstimate:
    """The model as it is: loaded, checked, saved."""
    with on_meta_device():
        model = _language_model(shape)
        held = _held("model", model, shape.quantization)
        _, parameters = _counted(model)
        check = Moment("checking what it gives", _checked(held, "model", model, probe_rows, probe_length))
    return MemoryEstimate((check,), 0, parameters)


def sft_outlook(shape: ModelSpec, training: Training, probe_rows: int, probe_length: int) -> MemoryEstimate:
    """TRL's SFTTrainer."""
    role = "adapter" if training.lora is not None else "model"
    with on_meta_device(autocast=training.autocast):
        model = _language_model(shape)
        plain = _held("model", model, None)
        if training.lora is not None:
            model = add_lora(model, training.lora, TaskType.CAUSAL_LM, seed=0, tokens=training.tokens)
        language_model = LanguageModel(model, 0, "default" if training.lora is not None else None)

        def loss(ids: Tensor, mask: Tensor) -> Tensor:
            if training.whole_logits:
                whole: Tensor = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
                return whole
            return _chunked_loss(language_model, language_model.hidden(ids, attention_mask=mask))

        step, counts = _trainer_step(role, model, loss, training, shape, language_model.vocabulary)
        check = Moment("checking what was saved", _checked(plain, "model", model, probe_rows, probe_length))
    moments = [step, check]
    if shape.quantization is not None:  # merged in full precision beside the quantized one
        moments.append(Moment("merging the adapter", {BASE: dict(step.needs[BASE]), **plain}))
    return MemoryEstimate(tuple(moments), *counts)


def reward_outlook(shape: ModelSpec, training: Training) -> MemoryEstimate:
    """TRL's RewardTrainer: `training.rows` counts chosen and rejected apart."""
    role = "adapter" if training.lora is not None else "reward model"
    with on_meta_device(autocast=training.autocast):
        before = _held(BASE, _language_model(shape), shape.quantization)
        model = _scorer(shape)
        loading = [Moment("putting a head on base*", before | _held("reward model", model, shape.quantization))]
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
    held = _held(role, model, shape.quantization, optimizer)
    meter = AllocationMeter(vocabulary)
    meter.knows(model)
    with meter:
        ids = torch.zeros((training.rows, training.length), dtype=torch.long)
        mask = torch.ones_like(ids)
        for _ in range(2 if training.accumulates else 1):
            value = loss(ids, mask)
            value.backward()
            del value
    return Moment("a training step", _with(held, role, meter.peak)), _counted(model)


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


def _checked(held: Needs, role: str, model: Any, rows: int, length: int) -> Needs:
    """models.sequence_logprobs on kept rows."""
    meter = AllocationMeter(LanguageModel(model, 0).vocabulary)
    meter.knows(model)
    with torch.no_grad(), meter:
        ids = torch.zeros((scoring.rows_at_once(model, rows, length), length), dtype=torch.long)
        logits = at_least_float32(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        torch.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])
    return _with(held, role, meter.peak)


# ---------------------------------------------------------------- ppo


def ppo_outlook(
    shape: ModelSpec, section: Ppo, prompt: int, reward: ModelSpec | None, *, shared: bool, eval_prompts: int = 0
) -> MemoryEstimate:
    """Our engine, on prompts of `prompt` tokens.

    `reward`: the reward model (None: a function); `shared`: it is an adapter on the same base*.
    """
    lora = None if section.lora is None else section.lora.model_copy(update={"lora_dropout": 0.0})
    length = section.response_length
    with on_meta_device(autocast=section.bf16):
        policy = _language_model(shape)
        reference: Any = None if lora is not None else _language_model(shape)
        own = None if shared or reward is None else _scorer(reward)
        if lora is not None:
            policy = add_lora(policy, lora, TaskType.CAUSAL_LM, seed=0)
        acting = LanguageModel(policy, 0, POLICY if lora is not None else None)
        scorer = own
        if shared and lora is not None:
            add_adapter(policy, adapters.REWARD, lora, seed=0)
            scorer = AdapterScorer(LanguageModel(policy, 0, adapters.REWARD), new_head(policy))
        critic = _critic(policy, acting, section, lora, shape if reward is None or own is None else reward)
        plain = LanguageModel(policy if reference is None else reference, 0, None)
        everyone = Roles(acting, plain, critic)
        trained = everyone.prepare()
        for model in (policy, reference, own, critic.scorer):
            _lay_end_to_end(model)

        held = _cast(everyone, policy, reference, own, critic, shape, reward)
        extra = [module for module in (own,) if module is not None]
        inside = contextlib.ExitStack()
        with inside:
            for module in (*everyone.modules(), *extra):
                inside.enter_context(fused(module, try_numbers=False))
            moments = _ppo_moments(section, everyone, scorer, held, prompt, length, shape, eval_prompts)
        copies = sum(parameter.nbytes for parameter in trained.values())
        moments.append(Moment("writing a checkpoint", _with(held, "policy", {WEIGHTS: copies})))
        counts = _counted(*everyone.modules(), *extra)
    return MemoryEstimate(tuple(moments), *counts)


def _critic(policy: Any, acting: LanguageModel, section: Ppo, lora: Lora | None, scorer: ModelSpec) -> Critic:
    """`scorer`: the shape of a critic that is a model of its own."""
    if section.critic_kind == "model":
        return Critic(_scorer(scorer))
    if section.critic_kind == "head":
        head = AdapterScorer(acting, new_head(policy))
        return Critic(head, shares_policy=True, trains_trunk=section.critic_trains_trunk)
    assert lora is not None
    add_adapter(policy, adapters.CRITIC, lora, seed=0)
    return Critic(AdapterScorer(LanguageModel(policy, 0, adapters.CRITIC), new_head(policy)))


def _lay_end_to_end(model: Any) -> None:
    """As sequences.packed does where a model's numbers allow it."""
    config = getattr(model, "config", None)
    if isinstance(config, PretrainedConfig) and has_full_attention(config) and config._attn_implementation == "sdpa":
        config._attn_implementation = PACKED


def _cast(
    everyone: Roles, policy: Any, reference: Any, own: Any, critic: Critic, shape: ModelSpec, reward: ModelSpec | None
) -> Needs:
    """Weights and optimizer by role; a shared base* is a role of its own."""
    needs: Needs = {}
    base, _ = weight_bytes(policy, shape.quantization)
    low_rank: Counter[str] = Counter()
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            which = {adapters.CRITIC: "critic", adapters.REWARD: "reward model"}
            low_rank[next((role for key, role in which.items() if f".{key}." in name), "policy")] += parameter.nbytes
    if low_rank:
        needs = {BASE: {WEIGHTS: base}, **{role: {WEIGHTS: size} for role, size in low_rank.items()}}
    else:
        needs = {"policy": {WEIGHTS: base}, "reference": {WEIGHTS: weight_bytes(reference)[0]}}
    if own is not None and reward is not None:
        needs["reward model"] = {WEIGHTS: weight_bytes(own, reward.quantization)[0]}
    if not isinstance(critic.scorer, AdapterScorer):
        needs["critic"] = {WEIGHTS: weight_bytes(critic.scorer)[0]}
    for name, parameter in everyone.trainable().items():
        of_critic = name.startswith("critic.") or f".{adapters.CRITIC}." in name
        role = needs.setdefault("critic" if of_critic else "policy", {})
        role[OPTIMIZER] = role.get(OPTIMIZER, 0) + 2 * parameter.nbytes
    return needs


def _ppo_moments(
    section: Ppo,
    everyone: Roles,
    scorer: Any,
    held: Needs,
    prompt: int,
    length: int,
    shape: ModelSpec,
    eval_prompts: int,
) -> list[Moment]:
    policy, critic = everyone.policy, everyone.critic
    meter = AllocationMeter(policy.vocabulary)
    meter.knows(*everyone.modules(), *([scorer] if isinstance(scorer, nn.Module) else []))
    moments: list[Moment] = []
    at_once = min(section.local_rollout_forward_batch_size, section.batch_size)
    asked = (_rows(at_once, prompt, length), _rows(section.per_device_train_batch_size, prompt, length))

    def moment(what: str, role: str) -> None:
        moments.append(Moment(what, _with(held, role, meter.peak)))
        meter.restart()

    with meter:
        with torch.no_grad():
            _sample(meter, policy, at_once, prompt, length)
            moment("sampling", "policy")
            _logprobs(policy, *asked[0], section.temperature)
            moment("log-probabilities", "policy")
            if scorer is not None:
                _values(scorer, asked[0][0])
                moment("scoring", "reward model")
        with everyone.recomputing(section.gradient_checkpointing):
            if not critic.shares_policy:
                sequences, places, _ = asked[1]
                value = critic.values(critic.states(sequences)[places]).sum()
                value.backward()
                del value
                moment("the critic's step", "critic")
            sequences, places, tokens = asked[1]
            hidden = policy.states(sequences)
            taken, spread = policy.token_logprobs(
                hidden[places], tokens, section.temperature, with_entropy=section.entropy_coef > 0
            )
            loss = taken.sum() if spread is None else taken.sum() + spread.sum()
            if critic.shares_policy:
                loss = loss + critic.values(hidden[places]).sum()
            loss.backward()
            del loss, hidden, taken, spread
            moment("the policy's step", "policy")
        for module in everyone.modules():
            module.zero_grad(set_to_none=True)
        meter.restart()
        if eval_prompts and section.eval.every:
            with torch.no_grad():
                _kl(policy, everyone.reference, min(_KL_ROWS, eval_prompts), prompt, length)
            moment("evaluation", "policy")
    return moments


def _rows(rows: int, prompt: int, length: int) -> tuple[Sequences, Tensor, Tensor]:
    """Sequences as long as can be, the places that responses are drawn from, and the tokens: shapes of what is real."""
    with torch.device("cpu"):
        real = Sequences.of([[0] * prompt] * rows, [[0] * length] * rows, "cpu")
        places, tokens = real.before_tokens(), real.tokens()
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
    shapes = dataclasses.replace(real, **tensors)
    vars(shapes).update(groups=groups, positions=positions)
    return shapes, places.to("meta"), tokens.to("meta")


def _sample(meter: AllocationMeter, policy: LanguageModel, rows: int, prompt: int, length: int) -> None:
    """How a batch begins, its second token, and how it shrinks."""
    meter.room = prompt + length
    policy.decodes = True  # where its shape allows it; there are no numbers to try it on
    ids = torch.zeros((rows, prompt), dtype=torch.long)
    batch = local.make_forward(policy)(ids, torch.ones_like(ids), prompt + length)
    _draw(batch, rows)
    token = torch.zeros(rows, dtype=torch.long)
    batch.step(token)
    batch.keep(torch.zeros(int(rows * local.SHRINK_BELOW), dtype=torch.long))
    meter.room = 0


def _draw(batch: Any, rows: int) -> None:
    logp = torch.log_softmax(batch.logits(), dim=-1)
    probabilities = logp.exp()
    generator.inverse_cdf(probabilities, torch.zeros(rows))


def _logprobs(policy: LanguageModel, sequences: Sequences, places: Tensor, tokens: Tensor, temperature: float) -> None:
    policy.token_logprobs(policy.states(sequences)[places], tokens, temperature)


def _values(scorer: Any, sequences: Sequences) -> None:
    states = hidden_states(architecture.backbone(scorer), sequences)
    scorer.score(states[: len(sequences.totals)].to(scorer.score.weight.dtype))


def _kl(ours: LanguageModel, theirs: LanguageModel, rows: int, prompt: int, length: int) -> None:
    """rollout.exact_kl, with its largest piece of logits."""
    ids = torch.zeros((rows, prompt + length), dtype=torch.long)
    mask = torch.ones_like(ids)
    p, q = (side.hidden(ids, attention_mask=mask)[:, :length].reshape(rows * length, -1) for side in (ours, theirs))
    piece = max(1, kl.KL_ELEMENTS // ours.vocabulary)
    kl.kl_terms(ours.logits(p[:piece]), theirs.logits(q[:piece]))


# ---------------------------------------------------------------- compare


def compare_outlook(
    shape: ModelSpec, section: Compare, prompts: int, prompt: int, reward: ModelSpec | None
) -> MemoryEstimate:
    """Two policies answer, are compared token by token, and a reward model (None: no model) judges."""
    assert section.max_new_tokens is not None
    length = section.max_new_tokens
    whole = dataclasses.replace(shape, quantization=None)  # both are loaded in full precision
    with on_meta_device():
        sides = [LanguageModel(_language_model(whole), 0) for _ in range(2)]
        held: Needs = {
            role: {WEIGHTS: weight_bytes(side.model)[0]}
            for role, side in zip(("policy", "reference"), sides, strict=True)
        }
        counts = _counted(*(side.model for side in sides))
        probed = _checked(
            held, "reference", sides[1].model, scoring.PROBE_ROWS, min(scoring.PROBE_TOKENS, prompt + length)
        )
        moments = [Moment("checking what was loaded", probed)]
        meter = AllocationMeter(sides[0].vocabulary)
        meter.knows(*(side.model for side in sides))
        with torch.no_grad(), meter:
            _sample(meter, sides[0], min(section.batch_size, prompts), prompt, length)
            moments.append(Moment("sampling", _with(held, "policy", meter.peak)))
            meter.restart()
            _kl(sides[0], sides[1], min(_KL_ROWS, prompts), prompt, length)
            moments.append(Moment("comparing distributions", _with(held, "policy", meter.peak)))
        if reward is not None:
            judge = _scorer(reward)
            _lay_end_to_end(judge)
            needs = _held("reward model", judge, reward.quantization)
            copies = {} if reward.quantization else {BASE: {WEIGHTS: weight_bytes(_language_model(shape))[0]}}
            moments.append(Moment("loading the judge", needs | copies))
            sequences, _, _ = _rows(min(section.batch_size, prompts * section.samples_per_prompt), prompt, length)
            meter = AllocationMeter(sides[0].vocabulary)
            meter.knows(judge)
            with torch.no_grad(), meter:
                _values(judge, sequences)
            moments.append(Moment("judging", _with(needs, "reward model", meter.peak)))
    return MemoryEstimate(tuple(moments), 0, counts[1])
