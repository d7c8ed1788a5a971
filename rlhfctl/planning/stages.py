"""Predict the rows, steps, tokens, parameters, memory and disk of each stage.

The prediction is made from the lengths of the rows and the model's configuration. Loads the tokenizer, no weights.

Longer than 400 lines because the stages' predictions share what they know of trainers, disks and prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import AutoConfig
from trl import DPOConfig, RewardConfig, SFTConfig

from rlhfctl.artifacts import MANIFEST, model_at
from rlhfctl.data.fitting import fit_lengths, longest_row
from rlhfctl.errors import RlhfctlError
from rlhfctl.graph import STAGES, data_of_kind, section_of
from rlhfctl.models import devices, loading, scoring
from rlhfctl.models.architecture import context_of
from rlhfctl.pipeline import Forecast
from rlhfctl.planning import compare_memory, memory, ppo_memory
from rlhfctl.planning.choice_memory import with_candidates
from rlhfctl.planning.frozen import frozen_model
from rlhfctl.planning.memory import BASE, MemoryEstimate, ModelSpec, Training
from rlhfctl.planning.meter import WEIGHTS
from rlhfctl.planning.row_lengths import GroupLengths, Lengths
from rlhfctl.recipe.made_data import made_data, source_stages
from rlhfctl.recipe.schema import Choose, Ppo, Recipe
from rlhfctl.recipe.sections.scorers import HELDOUT, HELDOUT_LOSS, REWARD_MODEL, model_in
from rlhfctl.training import checkpoints
from rlhfctl.training.trl import callback, options

_SMALL_FILES = 25_000  # bytes of configurations, random states and manifest
_NUMBER = 22  # bytes per number in JSON
_CHARS = 4  # characters per token, about
_ID = 7  # bytes per token id in a list of JSON


@dataclass(frozen=True)
class Disk:
    """Disk use of a stage in bytes: `highest` while it runs, with checkpoints; `kept` after it."""

    highest: int
    kept: int


@dataclass(frozen=True)
class StagePlan:
    """The prediction for one stage. `outlook` is None if its memory cannot be predicted; `note` says why."""

    name: str
    action: Literal["run", "continue", "wait", "skip"]
    why: str
    rows: str
    steps: int
    tokens: int
    outlook: MemoryEstimate | None
    disk: Disk
    note: str | None = None
    measured: int | None = None  # bytes, measured by --probe


# ---------------------------------------------------------------- one stage


def stage_plan(forecast: Forecast, recipe: Recipe, lengths: Lengths, read: Collection[str]) -> StagePlan:
    """Predict a stage, and add whether the run would run, resume or skip it. A skipped stage has no numbers.

    `read`: the names of the data sets that are read. A data set that a later stage makes is not read yet.
    """
    name = forecast.stage.name
    unread = [data for data in data_of_kind(name, recipe) if data in made_data(recipe.data) and data not in read]
    if forecast.action == "skip":
        result = _unknown(name)
    elif unread:
        made_by = ", ".join(source_stages(unread, recipe.data))
        result = _unknown(name, f"not known before {made_by} has made data.{', data.'.join(unread)}")
    else:
        result = facts(name, recipe, lengths)
    return replace(result, name=str(forecast.stage), action=forecast.action, why=forecast.why)


def facts(name: str, recipe: Recipe, lengths: Lengths) -> StagePlan:
    """Predict the stage `name` of `recipe`."""
    unknown = "loads no model" if STAGES[name].gathers else "its memory is not modelled: --probe measures it"
    found = _FACTS[name](recipe, lengths) if name in _FACTS else _unknown(name, unknown)
    launch = recipe.launch
    if launch is None or not launch.shard or not STAGES[name].shared or found.outlook is None:
        return found
    each = memory.divided(
        found.outlook,
        launch.num_processes,
        whole=_whole_roles(name, recipe, lengths),
        gathered=memory.gathered_bytes(_shape(recipe, lengths)),
        loads_here=devices.device().type == "cpu",
    )
    return replace(found, outlook=each, rows=f"{found.rows}; weights divided over {launch.num_processes} processes")


def _whole_roles(name: str, recipe: Recipe, lengths: Lengths) -> set[str]:
    """Return the roles of a stage that are adapters or heads on a base*: each process holds them whole."""
    section = recipe.ppo
    if name != "ppo" or section is None:
        return {"adapter"}
    whole = {"policy"} if section.lora is not None else set()
    if section.critic_kind not in ("model", None):
        whole.add("critic")
    if _scorer(recipe, lengths)[1]:
        whole |= {memory.REWARD_ROLE, memory.HELDOUT_ROLE}
    return whole


def _unknown(name: str, note: str | None = None) -> StagePlan:
    return StagePlan(name, "run", "", "", 0, 0, None, Disk(0, 0), note)


def _shape(recipe: Recipe, lengths: Lengths) -> ModelSpec:
    config = type(lengths.config).from_dict(lengths.config.to_dict())
    section = recipe.model
    attention = "sdpa" if section.attn_implementation == "flash_attention_2" else section.attn_implementation
    return ModelSpec(config, loading.torch_dtype(section.dtype), section.quantization, attention)


def _base(recipe: Recipe, lengths: Lengths) -> StagePlan:
    longest = max(lengths.prompts, default=2)
    outlook = memory.base_outlook(replace(_shape(recipe, lengths), quantization=None), scoring.PROBE_ROWS, longest)
    kept = _weights_on_disk(outlook, recipe) + lengths.tokenizer_bytes + _probes(scoring.PROBE_ROWS, longest)
    return StagePlan("base", "run", "", "", 0, 0, outlook, Disk(kept, kept))


def _sft(recipe: Recipe, lengths: Lengths) -> StagePlan:
    section = recipe.sft
    assert section is not None
    config = trainer_config(SFTConfig, recipe, section.trainer)
    config.max_length, _ = longest_row(config.max_length, context_of(lengths.config))
    counts = [min(length, config.max_length or length) for length in lengths.sft]
    rows, longest, what = len(counts), max(counts), f"{len(counts)} demonstrations"
    if config.packing and config.max_length:
        rows, longest = math.ceil(sum(lengths.sft) / config.max_length), config.max_length
        what += f", packed into {rows} rows"
    steps, epochs = _steps(rows, config)
    training = _training(config, section.lora, config.per_device_train_batch_size, longest, recipe)
    outlook = memory.sft_outlook(
        _shape(recipe, lengths),
        replace(training, whole_logits=config.loss_type != "chunked_nll", tokens=lengths.added),
        scoring.PROBE_ROWS,
        min(longest, scoring.PROBE_TOKENS),
    )
    whole = _weights_on_disk(outlook, recipe)
    adapter = _adapter_bytes(outlook)
    kept = whole + lengths.tokenizer_bytes + _probes(scoring.PROBE_ROWS, min(longest, scoring.PROBE_TOKENS))
    if section.lora is not None:
        kept += adapter + lengths.tokenizer_bytes
    disk = _trainer_disk(kept, adapter or whole, outlook, lengths, steps, section.checkpoint_steps)
    tokens = int(sum(counts) * epochs)
    if section.choose is not None:
        disk = Disk(disk.highest + 2 * (adapter or whole), disk.kept)  # the best weights, and those that replace them
        what += f", the best weights by {section.choose.by}"
        if section.choose.by != HELDOUT_LOSS:
            outlook = _with_candidates(outlook, section.choose, recipe, lengths)
    return StagePlan("sft", "run", "", what, steps, tokens, outlook, disk)


def _with_candidates(outlook: MemoryEstimate, choose: Choose, recipe: Recipe, lengths: Lengths) -> MemoryEstimate:
    length = choose.max_new_tokens or (recipe.ppo or Ppo()).response_length
    prompts, spec = _fitting_prompts(lengths.prompts, recipe, lengths, length), _shape(recipe, lengths)
    name, scorer = model_in(choose.by), None
    if name is not None:
        found = model_at(name, Path(recipe.folder or "."))
        scorer = spec if (Path(found) / MANIFEST).is_file() else _ready_model(found, recipe)
    return with_candidates(outlook, spec, min(choose.batch_size, lengths.eval), max(prompts), length, scorer)


def _reward(recipe: Recipe, lengths: Lengths, *, other_half: bool = False) -> StagePlan:
    section = recipe.reward
    assert section is not None
    config = trainer_config(RewardConfig, recipe, section.trainer)
    limit, name = longest_row(config.max_length, context_of(lengths.config))
    pairs = [
        pair
        for index, pair in enumerate(zip(lengths.chosen, lengths.rejected, strict=True))
        if max(pair) <= (limit or math.inf) and (index in lengths.other_half) == other_half
    ]  # longer ones are dropped
    if not pairs:
        raise RlhfctlError(
            f"no pair fits into {name} tokens", where="reward.trainer.max_length", fix="raise it, or give shorter rows"
        )
    elements, size = [list(pair) for pair in pairs], 2  # lengths of the rows of each batch element, and their number
    if section.on_groups:
        elements = _responses(lengths.other_groups if other_half else lengths.groups, limit)
        size = max(map(len, elements))
    steps, epochs = _steps(len(elements), config)
    training = _training(config, section.lora, config.per_device_train_batch_size, max(map(max, pairs)), recipe, size)
    outlook = memory.reward_outlook(_shape(recipe, lengths), training)
    adapter, whole = _adapter_bytes(outlook), _weights_on_disk(outlook, recipe)
    kept = (adapter or whole) + lengths.tokenizer_bytes + _probes(32, max(map(max, pairs)))
    disk = _trainer_disk(kept, adapter or whole, outlook, lengths, steps, section.checkpoint_steps)
    members = 1 if other_half else section.members
    if members > 1:  # one trains at a time; the finished ones are kept, and copied to their places at the end
        disk = Disk(max(disk.highest + (members - 1) * kept, 2 * members * kept), members * kept)
    groups = f" in {len(elements)} groups of up to {size} responses" if section.on_groups else ""
    what = f"{len(pairs)} pairs{groups}, {lengths.heldout} held out"
    what += f", {members} members on a bootstrap each" if members > 1 else ""
    tokens = int(sum(map(sum, elements)) * epochs) * members
    return StagePlan("reward", "run", "", what, steps * members, tokens, outlook, disk)


def _dpo(recipe: Recipe, lengths: Lengths) -> StagePlan:
    section = recipe.dpo
    assert section is not None
    config = trainer_config(DPOConfig, recipe, section.trainer)
    limit, name = longest_row(config.max_length, context_of(lengths.config))
    pairs = [
        pair for pair in zip(lengths.chosen, lengths.rejected, strict=True) if max(pair) <= (limit or math.inf)
    ]  # longer ones are dropped
    if not pairs:
        raise RlhfctlError(
            f"no pair fits into {name} tokens", where="dpo.trainer.max_length", fix="raise it, or give shorter rows"
        )
    steps, epochs = _steps(len(pairs), config)
    longest = max(map(max, pairs))
    training = replace(
        _training(config, section.lora, config.per_device_train_batch_size, longest, recipe),
        rows=2 * config.per_device_train_batch_size,  # one process trains, whatever `launch` says
        exchanges=False,
    )
    outlook = memory.dpo_outlook(_shape(recipe, lengths), training, scoring.PROBE_ROWS, longest)
    adapter, whole = _adapter_bytes(outlook), _weights_on_disk(outlook, recipe)
    kept = (adapter or whole) + lengths.tokenizer_bytes + _probes(scoring.PROBE_ROWS, longest)
    disk = _trainer_disk(kept, adapter or whole, outlook, lengths, steps, section.checkpoint_steps)
    what = f"{len(pairs)} pairs, {lengths.heldout} held out"
    return StagePlan("dpo", "run", "", what, steps, int(sum(map(sum, pairs)) * epochs), outlook, disk)


def _responses(groups: Sequence[GroupLengths], limit: int | None) -> list[list[int]]:
    """List the lengths of each group's responses, one per response, without pairs that are longer than `limit`."""
    fitting = ([pair for pair in group if max(length for _, length in pair) <= (limit or math.inf)] for group in groups)
    return [[length for _, length in sorted({side for pair in kept for side in pair})] for kept in fitting if kept]


def _card(recipe: Recipe, lengths: Lengths) -> StagePlan:
    section, ppo = section_of("card", recipe), recipe.ppo or Ppo()
    count = min(section.prompts, lengths.eval or lengths.heldout)
    prompts = _fitting_prompts(lengths.prompts or (max(lengths.chosen),), recipe, lengths, ppo.response_length)
    answers, longest, pair = count * section.samples, max(prompts), max((*lengths.chosen, *lengths.rejected))
    spec, tokens = _shape(recipe, lengths), answers * ppo.response_length
    outlook = compare_memory.card_outlook(spec, answers, ppo, longest, pair, _scorer(recipe, lengths)[0])
    kept = answers * (_CHARS * (longest + ppo.response_length) + 6 * _NUMBER) + _SMALL_FILES
    disk = Disk(kept + tokens * _ID, kept)  # blocks of ids lie in work/ while it samples
    what = f"{count} prompts x {section.samples} responses, {lengths.heldout} held-out pairs"
    return StagePlan("card", "run", "", what, answers, tokens, outlook, disk)


def _ppo(recipe: Recipe, lengths: Lengths) -> StagePlan:
    section = recipe.ppo
    assert section is not None
    updates = section.updates
    prompts = _fitting_prompts(lengths.prompts, recipe, lengths, section.response_length)
    what = f"{len(prompts)} prompts, {section.total_episodes} episodes"
    tokens = updates * section.batch_size * section.response_length
    scorer, shared = _scorer(recipe, lengths)
    note, outlook = None, None
    if section.engine == "trl":
        note = "TRL's PPOTrainer is not modelled: --probe measures it"
    elif recipe.reward is not None and recipe.reward.model is not None and scorer is None:
        note = "the reward model's config.json cannot be read here: --probe measures it"
    else:
        outlook = ppo_memory.ppo_outlook(
            _shape(recipe, lengths),
            section,
            max(prompts),
            scorer,
            shared=shared,
            heldout=recipe.reward is not None and recipe.reward.heldout,
            members=recipe.reward.members if recipe.reward is not None else 1,
            eval_prompts=lengths.eval,
            processes=recipe.launch.num_processes if recipe.launch is not None else 1,
            text=lengths.text,
            frozen=frozen_model(recipe, lengths, _shape(recipe, lengths), section.response_length),
        )
    return StagePlan("ppo", "run", "", what, updates, tokens, outlook, _ppo_disk(recipe, lengths, outlook), note)


def _scorer(recipe: Recipe, lengths: Lengths) -> tuple[ModelSpec | None, bool]:
    """Describe the reward model (None: there is none, or it is unknown), and tell whether PPO has it as an adapter."""
    reward, ppo = recipe.reward, recipe.ppo
    if reward is None or not reward.has_model:
        return None, False
    if reward.kind == "trained":
        on_base = reward.lora is not None and ppo is not None and ppo.lora is not None
        return _shape(recipe, lengths), on_base and ppo is not None and ppo.critic_kind != "model"
    return None if reward.model is None else _ready_model(reward.model, recipe), False


def _ready_model(name: str, recipe: Recipe) -> ModelSpec | None:
    """Describe a reward model from elsewhere; None if its configuration cannot be read here."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):
        return None
    return ModelSpec(config, loading.torch_dtype(recipe.model.dtype))


def _fitting_prompts(prompts: Sequence[int], recipe: Recipe, lengths: Lengths, response: int) -> list[int]:
    fitting = fit_lengths(prompts, context_of(lengths.config), response, recipe.data)
    if not fitting:
        raise RlhfctlError("no prompt fits", where="data.max_prompt_length", fix="raise it, or lower response_length")
    return fitting


def _compare(recipe: Recipe, lengths: Lengths) -> StagePlan:
    section = recipe.compare
    assert section is not None and section.max_new_tokens is not None
    models = {REWARD_MODEL, HELDOUT} & set(section.judges)
    judge = _scorer(recipe, lengths)[0] if models else None
    answers = len(lengths.test) * section.responses_per_prompt
    sizes = (len(lengths.test), max(lengths.test))
    spec = _shape(recipe, lengths)
    frozen = frozen_model(recipe, lengths, spec, section.max_new_tokens)
    outlook = compare_memory.compare_outlook(spec, section, *sizes, judge, two_judges=len(models) > 1, frozen=frozen)
    text = _CHARS * (max(lengths.test) + 2 * section.max_new_tokens)
    kept = len(lengths.test) * section.samples_per_prompt * (text + 12 * _NUMBER) + _SMALL_FILES
    plain = 2 * (section.samples_per_prompt + 1)
    what = f"{len(lengths.test)} prompts x {plain} responses (policy and reference, one of each greedy)"
    if more := section.responses_per_prompt - plain:
        what += f" + {more} for controls (compare.controls: none leaves them out)"
    if (endpoint := section.endpoint) is not None:
        questions = len(lengths.test) * section.questions_per_prompt
        what += f"; up to {questions:,} questions to {endpoint.model} at {endpoint.host}"
    tokens = answers * section.max_new_tokens
    return StagePlan("compare", "run", "", what, answers, tokens, outlook, Disk(kept, kept))


_FACTS: dict[str, Callable[[Recipe, Lengths], StagePlan]] = {
    "base": _base,
    "sft": _sft,
    "reward": _reward,
    "heldout": lambda recipe, lengths: replace(_reward(recipe, lengths, other_half=True), name="heldout"),
    "card": _card,
    "dpo": _dpo,
    "ppo": _ppo,
    "compare": _compare,
}


# ---------------------------------------------------------------- trainers


def trainer_config(kind: Any, recipe: Recipe, given: Mapping[str, Any]) -> Any:
    """Make the SFTConfig or RewardConfig that the stage uses."""
    arguments = options.trainer_arguments(Path(), recipe.model.dtype, given, seed=recipe.seed)
    return kind(**arguments)


def _steps(rows: int, config: Any) -> tuple[int, float]:
    """Count the optimizer steps and the epochs of the whole training, as transformers does."""
    size = config.per_device_train_batch_size
    batches = rows // size if config.dataloader_drop_last else math.ceil(rows / size)
    steps_per_epoch = max(1, math.ceil(batches / config.gradient_accumulation_steps))
    if config.max_steps > 0:
        return config.max_steps, config.max_steps / steps_per_epoch
    return math.ceil(config.num_train_epochs * steps_per_epoch), config.num_train_epochs


def _training(config: Any, lora: Any, rows: int, longest: int, recipe: Recipe, each: int = 1) -> Training:
    """Describe a trainer's step in one process: its share of `rows` batch elements of `each` sequences."""
    processes = recipe.launch.num_processes if recipe.launch is not None else 1
    return Training(
        each * math.ceil(rows / processes),
        longest,
        lora,
        accumulates=config.gradient_accumulation_steps > 1,
        exchanges=processes > 1,
        autocast=bool(config.bf16 or config.fp16),
        checkpointing=bool(config.gradient_checkpointing),
        optimizer_bytes=optimizer_state(str(getattr(config.optim, "value", config.optim))),
    )


def optimizer_state(name: str) -> Callable[[Tensor], int]:
    """Choose the function from a weight to the bytes of its optimizer state, by transformers' name of the optimizer."""
    moments = 1 if any(part in name for part in ("lion", "momentum", "adagrad", "rmsprop")) else 2
    if name == "sgd" or "adafactor" in name:
        return lambda weight: 0  # adafactor keeps one row and one column, which is next to nothing
    if "8bit" in name:
        return lambda weight: moments * weight.numel()
    return lambda weight: moments * weight.nbytes


def _trainer_disk(
    kept: int, weights: int, outlook: MemoryEstimate, lengths: Lengths, steps: int, every: int | None
) -> Disk:
    """Predict the disk of a trainer: transformers keeps two checkpoints, and writes the third before it removes one."""
    each = every or checkpoints.interval(steps)
    written = math.ceil(steps / each)
    optimizer = sum(kinds.get("optimizer", 0) for kinds in outlook.peak.needs.values())
    checkpoint = weights + optimizer + lengths.tokenizer_bytes + _SMALL_FILES
    most, last = min(written, callback.KEPT_CHECKPOINTS + 1), min(written, callback.KEPT_CHECKPOINTS)
    return Disk(max(most * checkpoint, last * checkpoint + kept), kept)


def _ppo_disk(recipe: Recipe, lengths: Lengths, outlook: MemoryEstimate | None) -> Disk:
    section = recipe.ppo
    assert section is not None
    if outlook is None:
        return Disk(0, 0)
    needs = outlook.peak.needs
    optimizer = sum(kinds.get("optimizer", 0) for kinds in needs.values())
    trained = optimizer // 2
    whole = sum(kinds.get(WEIGHTS, 0) for role, kinds in needs.items() if role == "policy")
    policy = whole if BASE in needs else _first(needs, "policy")
    critic = (_first(needs, "critic") or whole) + lengths.tokenizer_bytes if section.critic_kind is not None else 0
    checkpoint = trained + optimizer + _SMALL_FILES
    updates = section.updates
    each = section.checkpoint_steps or checkpoints.interval(updates)
    written, most = math.ceil(updates / each), section.keep_checkpoints
    first = trained + _SMALL_FILES if written <= most else 0  # before the first update there is no optimizer yet
    best = policy * 2 if section.use == "best" else 0
    traces = updates // section.trace_every if section.trace_every else 0
    one_trace = min(section.trace_episodes, section.batch_size) * section.response_length * 16 * _NUMBER
    probes = _probes(scoring.PROBE_ROWS, max(lengths.prompts))
    kept = policy + critic + lengths.tokenizer_bytes + traces * one_trace + probes + _SMALL_FILES
    transient = min(written, most + 1) * checkpoint + first
    highest = max(transient, min(written, most) * checkpoint + kept) + best
    return Disk(highest, kept)


def _first(needs: Mapping[str, Mapping[str, int]], role: str) -> int:
    return needs.get(role, {}).get(WEIGHTS, 0)


def _weights_on_disk(outlook: MemoryEstimate, recipe: Recipe) -> int:
    """Count the bytes of the merged model in full precision."""
    size = loading.torch_dtype(recipe.model.dtype).itemsize
    adapter = outlook.trainable if outlook.trainable < outlook.parameters else 0
    return (outlook.parameters - adapter) * size


def _adapter_bytes(outlook: MemoryEstimate) -> int:
    """Count the bytes of the trained adapter; 0 if all weights are trained."""
    needs = outlook.peak.needs
    return _first(needs, "adapter") if BASE in needs else 0


def _probes(rows: int, tokens: int) -> int:
    return rows * tokens * (_NUMBER + 6)
