"""`rlhfctl bench ppo`: what one PPO update costs, with this engine and, in the same run, with TRL's PPOTrainer.

    parent    prepares one model, one reward model and prompts in a temporary folder; measures the matrix product
    workers   ours, TRL's, ours, TRL's, ...: each in a process of its own, each leaves a JSON file
    parent    medians over all updates, a table, a JSON report

Both engines get the same model, prompts, lengths, epochs and precision. What differs is what each engine makes of
them: TRL's side is a LoRA policy with a whole critic and a whole reward model; ours puts the reward model (the same,
as an adapter and a head) and the critic on the policy's base. Reads a recipe's `model` and `ppo` sections, if one is
named; leaves out its data: prompts are random tokens, and lengths are planted (`plant_lengths`). Writes no run.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

import rlhfctl
from rlhfctl import fs
from rlhfctl.errors import EngineError, RlhfctlError
from rlhfctl.events import Event, Metrics
from rlhfctl.recipe.load import find_recipe, load_recipe
from rlhfctl.recipe.schema import Init, Lora, Model, Ppo
from rlhfctl.rewards import Episode
from rlhfctl.rewards.model import ModelReward
from rlhfctl.training import loading, models, ppo_trl, roles, tokenizing
from rlhfctl.training.hf_events import quiet_libraries
from rlhfctl.training.ppo_loop import PpoLoop
from rlhfctl.training.roles import AdapterScorer, Critic, LanguageModel, Roles

OURS, THEIRS = "rlhfctl", "trl"
SEED = 0
WARM_UP = 1  # updates that are not counted: first allocations, and our engine's check of its own rollout
LEARNING_RATE = 1e-5  # so small that the lengths of responses stay as they were planted
SHORTEST_PROMPT, LONGEST_PROMPT, PROMPTS = 16, 64, 512
MEAN_SHARE = 30 / 64  # mean length after which a response ends by itself, of response_length
_LEAD = 3  # tokens before which no response ends, where response_length allows
_MARGIN = 8.0  # nats: how much likelier each token that may come next is than each that may not
_UNEQUAL = 0.2  # mean lengths further apart than this are not the same work
_MB = 1e6
PHASES = ("rollout_s", "score_s", "update_s")


@dataclass(frozen=True)
class Workload:
    """What is measured: a model and PPO's settings."""

    name: str
    model: Model
    ppo: Ppo
    updates: int  # measured in each round


def workload(size: str) -> Workload:
    """The reference workloads: `small` for speed, `large` for memory."""
    layers, width, heads, batch, updates = {"small": (6, 256, 4, 32, 6), "large": (12, 768, 12, 8, 2)}[size]
    init = Init(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=4096,
        max_position_embeddings=256,
    )
    ppo = Ppo(
        lora=Lora(r=16),
        per_device_train_batch_size=batch,
        local_rollout_forward_batch_size=batch,
        num_mini_batches=1,
        num_ppo_epochs=2,
        response_length=64,
        temperature=1.0,
    )
    return Workload(size, Model(init=init), ppo, updates)


def recipe_workload(name: str) -> Workload:
    """The model and PPO sizes of a recipe."""
    recipe = load_recipe(find_recipe(name)).recipe
    if recipe.ppo is None:
        raise RlhfctlError("the recipe has no ppo section to measure", where=name, fix="name one with `ppo:`")
    return Workload(recipe.name, recipe.model, recipe.ppo, workload("small").updates)


def comparable(ppo: Ppo, updates: int, critic: str | None) -> Ppo:
    """`ppo` as both engines can do it: one micro-batch a minibatch, no mixed precision or recomputation, no traces."""
    kind = critic or ppo.critic_kind
    if ppo.lora is None and kind == "adapter":
        raise RlhfctlError("a critic as adapter needs LoRA", where="--critic", fix="use --critic model or head")
    changes: dict[str, Any] = {
        "engine": OURS,
        "critic": kind,
        "critic_from": None,
        "rewards": None,
        "lora": ppo.lora and ppo.lora.model_copy(update={"lora_dropout": 0.0}),
        "per_device_train_batch_size": ppo.batch_size,
        "gradient_accumulation_steps": 1,
        "num_generations": 1,
        "total_episodes": ppo.batch_size * (updates + WARM_UP),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "top_k": 0,
        "top_p": 1.0,
        "stop_token": "eos",
        "stop_strings": [],
        "target_kl": None,
        "entropy_coef": 0.0,
        "trace_every": 0,
        "checkpoint_steps": updates + WARM_UP,
    }
    return ppo.model_copy(update=changes)


# ---------------------------------------------------------------- the parent


def bench_ppo(
    work: Workload,
    *,
    against: str | None = None,
    critic: str | None = None,
    updates: int | None = None,
    rounds: int = 2,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Measure and return the report: `engines.<name>`, `ratio`, and what was measured on what."""
    count = updates or work.updates
    section = comparable(work.ppo, count, critic)
    engines = [OURS, THEIRS] if against else [OURS]
    with tempfile.TemporaryDirectory(prefix="rlhfctl-bench-") as temporary:
        folder = Path(temporary)
        with quiet_libraries(folder / "libraries.log"):
            if against is not None:
                ppo_trl.require()
            notes = prepare(work, section, folder)
        rate = matmul_rate()
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
        for turn in range(rounds):
            for name in engines:
                say(f"round {turn + 1} of {rounds}: {name}, {count} updates of {section.batch_size} episodes")
                results[name].append(_in_a_process(name, folder))
    found = {name: summarise(runs, rate) for name, runs in results.items()}
    report: dict[str, Any] = {
        "workload": {
            "name": work.name,
            "model": work.model.model_dump(mode="json", exclude={"init": {"tokens"}}),
            "ppo": section.model_dump(mode="json", exclude={"eval"}),
            "critic": section.critic_kind,
            "rounds": rounds,
            "updates": count,
            "warm_up": WARM_UP,
        },
        "machine": {
            "matmul_gflops_per_s": rate / 1e9,
            "cpus": os.cpu_count(),
            "threads": results[OURS][0]["threads"],
            "device": results[OURS][0]["device"],
            "platform": platform.platform(),
        },
        "versions": {"rlhfctl": rlhfctl.__version__}
        | {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        "engines": found,
        "ratio": {},
        "notes": notes,
    }
    if against:
        ours, theirs = found[OURS], found[THEIRS]
        report["ratio"] = {key: ours[key] / theirs[key] for key in ("episodes_per_s", "peak_rss_mb")}
        report["ratio"] |= {
            key: ours[key] / theirs[key] for key in ("tokens_per_s", "update_seconds", *PHASES, "weights_mb")
        }
        if abs(ours["mean_length"] / theirs["mean_length"] - 1) > _UNEQUAL:
            notes.append(
                "the engines' responses differ in mean length: their work is not the same, measure more updates"
            )
    return report


def _in_a_process(engine: str, folder: Path) -> dict[str, Any]:
    """One engine's updates in a process of its own. EngineError with the end of its output where it fails."""
    out = folder / f"{engine}.json"
    command = [sys.executable, "-m", "rlhfctl.tools.bench", engine, str(folder), str(out)]
    environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"the worker stopped with code {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}",
            where=f"bench ppo: {engine}",
            fix="if memory ran out, use --workload small or a smaller per_device_train_batch_size",
        )
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def summarise(runs: Sequence[dict[str, Any]], rate: float) -> dict[str, Any]:
    """One engine's rounds as one: medians over all counted updates; the highest memory of any round."""
    entries = [entry for run in runs for entry in run["updates"]]
    speeds = sorted(entry["episodes"] / entry["seconds"] for entry in entries)
    spread = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else [speeds[0]] * 3
    lengths = [length for run in runs for length in run["lengths"]]
    flops, seconds = sum(entry["flops"] for entry in entries), sum(entry["seconds"] for entry in entries)
    tokens = sum(entry["prompt_tokens"] + entry["response_tokens"] for entry in entries)
    found: dict[str, Any] = {
        "episodes_per_s": spread[1],
        "episodes_per_s_quartiles": [spread[0], spread[2]],
        "tokens_per_s": tokens / seconds,
        "update_seconds": statistics.median(entry["seconds"] for entry in entries),
        **{name: statistics.median(entry[name] for entry in entries) for name in PHASES},
        "flops_utilisation": flops / (seconds * rate),
        "flops_per_update": flops / len(entries),
        "mean_length": statistics.fmean(lengths),
        "min_length": min(lengths),
        "max_length": max(lengths),
        "stdev_length": statistics.pstdev(lengths),
        "mean_prompt_length": statistics.fmean(entry["prompt_tokens"] / entry["episodes"] for entry in entries),
        "updates": len(entries),
    }
    for name in ("peak_rss_mb", "baseline_rss_mb", "weights_mb", "base_models", "peak_device_mb"):
        values = [run[name] for run in runs if run.get(name) is not None]
        found |= {name: max(values)} if values else {}
    if "recomputes" in runs[0]:
        found["recomputes"] = any(run["recomputes"] for run in runs)
    return found


# ---------------------------------------------------------------- the same work for both


def prepare(work: Workload, section: Ppo, folder: Path) -> list[str]:
    """Leave in `folder` what every worker loads: base/, reward/ (adapter), reward-model/ (the same, merged), job.json.

    Returns sentences about what is not as in the recipe.
    """
    notes: list[str] = []
    if work.model.init is not None:
        changes: dict[str, Any] = {"tie_word_embeddings": False}
        if work.model.init.tokens is None:
            names = [f"w{index} " for index in range(work.model.init.vocab_size - 2)]
            changes["tokens"] = names
        if work.model.init.tie_word_embeddings:
            notes.append("input and output embeddings are separate here, so that lengths can be planted")
        model = work.model.model_copy(
            update={"init": work.model.init.model_copy(update=changes), "chat_template": None}
        )
    else:
        model = work.model
        notes.append("the weights are pretrained: responses end where the model ends them")
    if work.model.quantization is not None:
        notes.append("the base is not quantized here: TRL's side could not have it so")
    base, tokenizer, _ = models.base_from_recipe(model, [], seed=SEED, dtype=loading.torch_dtype(model.dtype))
    prompt_ids = [index for index in range(len(tokenizer)) if index not in tokenizer.all_special_ids]
    if work.model.init is not None:
        prompt_ids = plant_lengths(base, tokenizer, section.response_length)
    models.save_model(base, tokenizer, folder / "base")

    context = getattr(base.config, "max_position_embeddings", LONGEST_PROMPT + section.response_length)
    longest = min(LONGEST_PROMPT, context - section.response_length)
    if longest < 1:
        raise RlhfctlError("responses fill the whole context", where="ppo.response_length", fix="lower it")
    draw = random.Random(SEED)
    lengths = [draw.randint(min(SHORTEST_PROMPT, longest), longest) for _ in range(max(PROMPTS, section.batch_size))]
    prompts = [draw.choices(prompt_ids, k=length) for length in lengths]

    _save_reward(base, tokenizer, section.lora or Lora(), folder)
    fs.write_json(folder / "job.json", {"ppo": section.model_dump(mode="json"), "prompts": prompts})
    return notes


def _save_reward(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: Lora, folder: Path) -> None:
    """A reward model drawn at random: as an adapter with a head, and merged into a model of its own."""
    adapted = models.add_lora(copy.deepcopy(base), lora, TaskType.CAUSAL_LM, seed=SEED + 1)
    generator = torch.Generator().manual_seed(SEED + 1)
    head = roles.new_head(adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * head.weight.shape[1] ** -0.5)
    roles.save_scorer_adapter(adapted, "default", head, folder / "reward", str(folder / "base"))
    scorer = models.scorer_on(models.merged(adapted), seed=SEED)
    scorer.score.load_state_dict(head.state_dict())
    models.save_model(scorer, tokenizer, folder / "reward-model")


def plant_lengths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, response_length: int) -> list[int]:
    """Make new weights end their responses at spread lengths, by construction: no training, the same on every machine.

    Tokens fall into classes: those of prompts, up to three that lead a response in, and those of its rest. A token's
    embedding gets a large part that says its class, and survives all blocks; the output head reads from it the class
    of the next token, and, in the rest, an end with a constant probability. So lengths are 3 + geometric, cut at
    `response_length`. Needs separate input and output embeddings. Returns the ids that prompts are made of.
    """
    lead = min(_LEAD, response_length // 8)
    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(len(tokenizer)) if index not in special]
    classes = [ids[first :: lead + 2] for first in range(lead + 2)]  # prompts, lead..., rest
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    width = inputs.shape[1]
    # Orthogonal directions that add up to 0 over the width: a layer norm's centring leaves them alone.
    noise = torch.randn(width, len(classes), generator=torch.Generator().manual_seed(SEED))
    directions = torch.linalg.qr(noise - noise.mean(0)).Q.T.to(inputs)
    read = _MARGIN * width**-0.5  # after the last norm a state is about sqrt(width) long
    end = 1 / max(2.0, response_length * MEAN_SHARE)
    rest = len(classes) - 1
    odds = torch.tensor(len(classes[rest]) * end / (1 - end)).log().item()
    with torch.no_grad():
        outputs[tokenizer.eos_token_id] = 0
        for number, members in enumerate(classes):
            inputs[members] += width / 4 * directions[number]
            following = min(number + 1, rest)
            outputs[classes[following]] += read * directions[number]
        for number in range(max(0, rest - 1), rest + 1):
            outputs[tokenizer.eos_token_id] += (read + odds * width**-0.5) * directions[number]
    return classes[0]


# ---------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Matrices:
    """How many numbers stand in the matrices that a token is multiplied with.

    `trunk`: all blocks. `head`: the output head. `adapter`: one LoRA adapter on the trunk (0: the trunk is trained).
    """

    trunk: int
    head: int
    adapter: int

    @classmethod
    def of(cls, policy: Any) -> Matrices:
        """Counted in a model or peft model; embeddings are looked up, not multiplied with."""
        inner = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        embedded = {
            id(p) for module in inner.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
        }
        head = inner.get_output_embeddings().weight
        trunk = adapter = 0
        for name, parameter in inner.named_parameters():
            if ".lora_" in name:
                adapter += parameter.numel() if ".default." in name else 0
            elif parameter.dim() >= 2 and parameter is not head and id(parameter) not in embedded:
                trunk += parameter.numel()
        return cls(trunk, head.numel(), adapter)


def useful_flops(prompt_tokens: int, response_tokens: int, sizes: Matrices, epochs: int, critic: str) -> int:
    """Floating-point operations that one update needs, for real tokens (no padding), each model on each token once.

    A forward costs 2 operations a matrix entry a token. A backward costs the same again for the gradient of the
    activations, and once more for the gradient of those matrices that are trained (frozen ones have none). The output
    head is needed at response tokens only. Attention's own products, norms and softmaxes are left out.

        rollout, reference    a forward of the language model, each token once (the cache keeps the rest)
        reward model          a forward of a trunk (its adapter, if any, could be merged: not counted)
        critic                a forward of its trunk: `adapter` base and adapter, `model` a trained one, `head` none
        PPO epochs            forward and backward of policy and critic, each epoch
    """
    tokens = prompt_tokens + response_tokens
    trunk, adapter = 2 * sizes.trunk * tokens, 2 * sizes.adapter * tokens
    head = 2 * sizes.head * response_tokens
    policy = trunk + adapter + head
    policy_weights = adapter if sizes.adapter else trunk + head
    values = {"adapter": trunk + adapter, "model": trunk, "head": 0}[critic]
    values_weights = {"adapter": adapter, "model": trunk, "head": 0}[critic]
    once = policy + (trunk + head) + trunk + values
    return once + epochs * (2 * policy + policy_weights + 2 * values + values_weights)


def matmul_rate(times: int = 20) -> float:
    """Operations a second of the float32 matrix product here: 1024 cubed (4096 on an accelerator), best of `times`."""
    at = loading.device()
    size = 1024 if at.type == "cpu" else 4096
    left, right = torch.randn(size, size, device=at), torch.randn(size, size, device=at)
    best = float("inf")
    for _ in range(times):
        _wait()
        began = time.perf_counter()
        left @ right
        _wait()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _wait() -> None:
    """Until the accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------- memory


def peak_rss_mb() -> float:
    """This process's largest resident memory.

    From VmHWM where there is one: Linux lets a child's ru_maxrss begin at its parent's, whatever it runs.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB


def rss_mb() -> float:
    """This process's resident memory now (where the system does not say: its largest)."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return peak_rss_mb()
    return int(statm.read_text(encoding="utf-8").split()[1]) * resource.getpagesize() / _MB


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Of all tensors, shared storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def weights_bytes(modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Weights of all modules, gradients of those that are trained, and the optimizer's state."""
    trained = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    weights = [p for module in modules for p in module.parameters()]
    state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
    return _bytes(weights) + sum(p.numel() * p.element_size() for p in trained.values()) + _bytes(state)


# ---------------------------------------------------------------- the workers


class Meter:
    """Notes the time at the end of each update, the lengths of its episodes and the seconds of its phases."""

    def __init__(self) -> None:
        self.prompts: list[int] = []  # tokens of each episode since the last update ended
        self.responses: list[int] = []
        self.lengths: list[int] = []  # of all counted responses
        self.entries: list[dict[str, Any]] = []
        self.ended: float | None = None

    def episode(self, prompt_tokens: int, response_tokens: int) -> None:
        self.prompts.append(prompt_tokens)
        self.responses.append(response_tokens)

    def end_update(self, rollout_s: float, score_s: float) -> None:
        """The rest of the time since the last update is this update's learning; the first has no beginning."""
        _wait()
        now = time.perf_counter()
        if self.ended is not None:
            seconds = now - self.ended
            entry = {"rollout_s": rollout_s, "score_s": score_s, "update_s": seconds - rollout_s - score_s}
            tokens = {"prompt_tokens": sum(self.prompts), "response_tokens": sum(self.responses)}
            self.entries.append({"episodes": len(self.responses), "seconds": seconds} | entry | tokens)
            self.lengths += self.responses
        self.prompts, self.responses = [], []
        self.ended = now


@dataclass(frozen=True)
class Job:
    """What a worker loads."""

    section: Ppo
    prompts: list[list[int]]
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    policy: Any
    reference: PreTrainedModel | None
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Job:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        section = Ppo.model_validate_json(json.dumps(job["ppo"]))
        tokenizer = tokenizing.load_tokenizer(str(folder / "base"))
        config = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
        dtype = loading.torch_dtype(config.get("dtype") or config.get("torch_dtype") or "float32")
        base = loading.load_causal_lm(str(folder / "base"), dtype=dtype).to(loading.device())
        models.set_token_ids(base, tokenizer)
        if section.lora is None:
            policy, reference = base, models.copy_frozen(base)
            models.mask_pad(reference, tokenizer.pad_token_id)
        else:
            policy, reference = models.add_lora(base, section.lora, TaskType.CAUSAL_LM, seed=SEED), None
        models.mask_pad(policy, tokenizer.pad_token_id)
        return cls(section, job["prompts"], base, tokenizer, policy, reference, folder)

    def scorer(self) -> PreTrainedModel:
        """The reward model as a model of its own; the critic starts as a copy of it too."""
        return loading.load_scorer(str(self.folder / "reward-model"), dtype=self.base.dtype).to(loading.device())


def run_ours(job: Job) -> dict[str, Any]:
    """This engine: policy, reference, critic and reward model on one base where there is LoRA."""
    section, policy, pad = job.section, job.policy, job.tokenizer.pad_token_id
    acting = LanguageModel(policy, pad, roles.POLICY if section.lora else None)
    reference = LanguageModel(job.reference or policy, pad, None)
    scorer: Any
    if section.lora:
        head = roles.load_scorer_adapter(policy, roles.REWARD, job.folder / "reward")
        scorer = AdapterScorer(LanguageModel(policy, pad, roles.REWARD), head)
    else:
        scorer = job.scorer()
    if section.critic_kind == "adapter":
        head = roles.load_scorer_adapter(policy, roles.CRITIC, job.folder / "reward")
        critic = Critic(AdapterScorer(LanguageModel(policy, pad, roles.CRITIC), head))
    elif section.critic_kind == "head":
        head = roles.new_head(policy)
        critic = Critic(AdapterScorer(acting, head), shares_policy=True, trains_trunk=section.critic_trains_trunk)
    else:
        critic = Critic(job.scorer())
    scorer.requires_grad_(False).eval()

    meter = Meter()
    scoring = ModelReward(scorer, pad, section.local_rollout_forward_batch_size)

    def reward(episodes: Sequence[Episode], /) -> list[float]:
        for episode in episodes:
            meter.episode(len(episode.prompt_ids), len(episode.response_ids))
        return scoring(episodes)

    def emit(event: Event) -> None:
        if isinstance(event, Metrics):
            meter.end_update(event.values["rollout_s"], event.values["score_s"])

    everyone = Roles(acting, reference, critic)
    rows = [{"prompt": ""} for _ in job.prompts]
    with tempfile.TemporaryDirectory(dir=job.folder) as fresh:
        work = Path(fresh) / "ppo"
        loop = PpoLoop(section, everyone, reward, job.tokenizer, rows, job.prompts, seed=SEED, work=work, emit=emit)
        before = rss_mb()
        loop.train()
    modules = [*everyone.modules(), scorer]
    result = _result(job, meter, before, modules, loop.optimizer, section.critic_kind)
    return result | {"recomputes": loop.recomputes}


def run_trl(job: Job) -> dict[str, Any]:
    """TRL's PPOTrainer, with its phases timed at the functions that it calls when one ends and the next begins."""
    from datasets import Dataset
    from trl.experimental.ppo import ppo_trainer

    trainer_class, _ = ppo_trl.require()
    section, pad, eos = job.section, job.tokenizer.pad_token_id, job.tokenizer.eos_token_id
    reward_model, critic = job.scorer(), job.scorer()
    reward_model.requires_grad_(False)
    meter = Meter()
    clock = {"rollout_s": 0.0, "sampled": 0.0, "score_s": 0.0}

    generate = ppo_trainer.batch_generation

    def timed_generation(model: nn.Module, queries: Tensor, *arguments: Any) -> Any:
        _wait()
        began = time.perf_counter()
        answers, logits = generate(model, queries, *arguments)
        _wait()
        clock.update(sampled=time.perf_counter(), rollout_s=time.perf_counter() - began, score_s=0.0)
        for row in answers.tolist():
            prompt, response = row[: queries.shape[1]], row[queries.shape[1] :]
            length = response.index(eos) + 1 if eos in response else len(response)
            meter.episode(sum(token != pad for token in prompt), length)
        return answers, logits

    class Watched:
        """NumPy as TRL's module sees it: its only use is the permutation with which each PPO epoch begins."""

        random: Any

        def __init__(self, numpy: Any) -> None:
            self.random, self._permutation = self, numpy.random.permutation

        def permutation(self, count: int) -> Any:
            if not clock["score_s"]:  # the first epoch
                _wait()
                clock["score_s"] = time.perf_counter() - clock["sampled"]
            return self._permutation(count)

    class EndOfUpdate(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end_update(clock["rollout_s"], clock["score_s"])

    with tempfile.TemporaryDirectory(dir=job.folder) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            args=ppo_trl.config_for(section, Path(work), seed=SEED, report_to=[]),
            processing_class=job.tokenizer,
            model=job.policy,
            ref_model=job.reference,
            reward_model=reward_model,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": job.prompts, "row": list(range(len(job.prompts)))}),
            data_collator=lambda features: ppo_trl.collate(features, pad),
            callbacks=[EndOfUpdate()],
        )
        trainer.remove_callback(PrinterCallback)
        ppo_trainer.batch_generation = timed_generation
        ppo_trainer.np = Watched(ppo_trainer.np)
        gc.freeze()  # as the ppo stage does: TRL collects garbage twice an update
        before = rss_mb()
        trainer.train()
    modules = [module for module in (job.policy, job.reference, critic, reward_model) if module is not None]
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return _result(job, meter, before, modules, optimizer, "model")


def _result(
    job: Job, meter: Meter, before: float, modules: list[nn.Module], optimizer: torch.optim.Optimizer, critic: str
) -> dict[str, Any]:
    peak = peak_rss_mb()
    sizes = Matrices.of(job.policy)
    for entry in meter.entries:
        entry["flops"] = useful_flops(
            entry["prompt_tokens"], entry["response_tokens"], sizes, job.section.num_ppo_epochs, critic
        )
    weights = weights_bytes(modules, optimizer)
    base = _bytes([p for name, p in job.base.named_parameters() if ".lora_" not in name])
    return {
        "updates": meter.entries,
        "lengths": meter.lengths,
        "peak_rss_mb": peak,
        "baseline_rss_mb": before,
        "weights_mb": weights / _MB,
        "base_models": weights / base,
        "peak_device_mb": torch.cuda.max_memory_allocated() / _MB if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "device": str(loading.device()),
    }


# ---------------------------------------------------------------- for people


def table(report: dict[str, Any]) -> RenderableType:
    """The report as a table, a column an engine, with what was measured above it and remarks below."""
    engines, setup, machine = report["engines"], report["workload"], report["machine"]
    ppo = setup["ppo"]
    head = (
        f"{setup['name']}: batch {ppo['per_device_train_batch_size']}, {ppo['num_ppo_epochs']} PPO epochs, responses "
        f"of at most {ppo['response_length']} tokens, critic {setup['critic']}; {machine['device']}, "
        f"{machine['threads']} threads, matrix product {machine['matmul_gflops_per_s']:.0f} GFLOP/s"
    )
    grid = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("")
    for name in engines:
        grid.add_column(name, justify="right")
    compared = bool(report["ratio"])
    if compared:
        grid.add_column("ratio", justify="right")

    def add(label: str, show: Callable[[dict[str, Any]], str], ratio: str | None = None) -> None:
        cells = [show(engine) for engine in engines.values()]
        if compared:
            cells.append(f"{report['ratio'][ratio]:.2f}" if ratio in report["ratio"] else "")
        grid.add_row(label, *cells)

    add("episodes/s, median", lambda e: f"{e['episodes_per_s']:.2f}", "episodes_per_s")
    add("  quartiles", lambda e: " to ".join(f"{speed:.2f}" for speed in e["episodes_per_s_quartiles"]))
    add("tokens/s, prompts and responses", lambda e: f"{e['tokens_per_s']:.0f}", "tokens_per_s")
    add("seconds an update", lambda e: f"{e['update_seconds']:.2f}", "update_seconds")
    add("  rollout", lambda e: f"{e['rollout_s']:.2f}", "rollout_s")
    add("  score", lambda e: f"{e['score_s']:.2f}", "score_s")
    add("  update", lambda e: f"{e['update_s']:.2f}", "update_s")
    add("share of matrix product", lambda e: f"{e['flops_utilisation']:.1%}")
    add("peak memory, MB", lambda e: f"{e['peak_rss_mb']:.0f}", "peak_rss_mb")
    add("  before training", lambda e: f"{e['baseline_rss_mb']:.0f}")
    if all("peak_device_mb" in engine for engine in engines.values()):
        add("peak on the device, MB", lambda e: f"{e['peak_device_mb']:.0f}")
    add("weights and optimizer, MB", lambda e: f"{e['weights_mb']:.1f}", "weights_mb")
    add("  as multiples of the model", lambda e: f"{e['base_models']:.2f}")
    add("response length, mean", lambda e: f"{e['mean_length']:.1f}")
    add("  from, to", lambda e: f"{e['min_length']} to {e['max_length']}")
    parts: list[RenderableType] = [Text(head), Text(), grid]
    if compared:
        parts += [Text(), Text("ratio: rlhfctl over trl", "dim")]
    parts += [Text(note, "dim") for note in report["notes"]]
    return Group(*parts)


def main(engine: str, folder: str, out: str) -> None:
    """A worker: measure one engine on what `prepare` left in `folder`."""
    job = Job.load(Path(folder))
    fs.write_json(Path(out), {OURS: run_ours, THEIRS: run_trl}[engine](job))


if __name__ == "__main__":
    main(*sys.argv[1:])
