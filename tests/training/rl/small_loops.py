"""Loops on models of two layers and twelve tokens, for the tests of collect, learn and the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import TaskType
from torch import Tensor

from rlhfctl.generation import local
from rlhfctl.generation.generator import Response
from rlhfctl.models import build, heads, sharding, tokenizing
from rlhfctl.models.adapters import CRITIC, POLICY, REWARD, add_adapter, add_lora
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Init, Lora, Ppo
from rlhfctl.recipe.sections.algorithm import AlgorithmName
from rlhfctl.rewards.episode import Episode
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.experience import Experience, TextRow
from rlhfctl.training.rl.loop import PpoLoop, Run, Watcher
from rlhfctl.training.rl.masking import make_masking
from rlhfctl.training.rl.minibatch import Learner
from rlhfctl.training.rl.orders import Orders
from rlhfctl.training.rl.pretraining import Pretraining
from rlhfctl.training.rl.roles import Critic, Roles

BATCH, LENGTH = 8, 6
A, B = 2, 3  # ids of "a" and "b"; 0 is the end, 1 the pad
PROMPTS = [[2, 3], [4], [5, 6, 2, 3], [7, 8], [6], [3, 3, 9], [10, 11], [9, 4, 2], [8], [11, 5]]
SECTION: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "num_ppo_epochs": 2,
    "learning_rate": 1e-2,
    "response_length": LENGTH,
    "temperature": 1.0,
    "trace_every": 0,
    "local_rollout_forward_batch_size": BATCH,
}
LOW_RANK = Lora(r=4, lora_alpha=8)
TIMED = ("rollout_s", "score_s", "update_s", "episodes_per_s")
KINDS = ("adapter", "head", "reward", "model")
KINDS_AND_LORA = [
    ("adapter", True), ("head", True), ("reward", True), ("model", True), ("head", False), ("reward", False),
    ("model", False),
]  # fmt: skip

Score = Callable[[Sequence[Episode]], list[float]]


def make_roles(
    kind: str | None = "adapter",
    lora: bool = True,
    dtype: torch.dtype = torch.float32,
    *,
    wide: bool = False,
    tied: bool = False,
    layers: list[int] | None = None,
) -> tuple[Any, Roles]:
    """(tokenizer, roles) on new weights; the same each time. `kind` of critic: None for no critic.

    `layers`: those that have adapters (None: both).
    """
    init = Init(
        hidden_size=64 if wide else 16,
        num_hidden_layers=2,
        tie_word_embeddings=tied,
        num_attention_heads=2,
        max_position_embeddings=32,
        tokens=list("abcdefghij"),
    )
    tokenizer = tokenizing.train_tokenizer(init, [])
    pad = tokenizer.pad_token_id
    base = build.build_model(init, tokenizer, seed=1, dtype=dtype)
    with torch.no_grad():
        base.lm_head.weight *= 8
    own = heads.scorer_on(base, seed=2, zero_head=kind == "model") if kind in ("model", "reward") else None
    low_rank = LOW_RANK.model_copy(update={"layers_to_transform": layers})
    reference = None if lora else LanguageModel(build.copy_frozen(base), pad)
    model: Any = add_lora(base, low_rank, TaskType.CAUSAL_LM, seed=3) if lora else base
    if lora and dtype == torch.float64:
        model.to(dtype)
    policy = LanguageModel(model, pad, POLICY if lora else None)
    critic = None
    if kind == "reward":
        scorer: Any = own
        if lora:
            add_adapter(model, REWARD, low_rank, seed=4)
            model.to(dtype)
            scorer = AdapterScorer(LanguageModel(model, pad, REWARD), heads.new_head(model))
        critic = Critic(heads.with_own_head(scorer), reads=scorer)
    elif own is not None:
        critic = Critic(own)
    elif kind == "head":
        critic = Critic(AdapterScorer(policy, heads.new_head(model)), shares_policy=True)
    elif kind == "adapter":
        add_adapter(model, CRITIC, low_rank, seed=4)
        model.to(dtype)
        critic = Critic(AdapterScorer(LanguageModel(model, pad, CRITIC), heads.new_head(model)))
    return tokenizer, Roles(policy, reference or LanguageModel(model, pad, None), critic)


def share_of_a(episodes: Sequence[Episode]) -> list[float]:
    return [list(episode.response_ids).count(A) / LENGTH for episode in episodes]


def nothing(episodes: Sequence[Episode]) -> list[float]:
    return [0.0] * len(episodes)


class Seen(PpoLoop):
    """Keeps each batch as it is before its first optimizer step; `change` may alter it then."""

    def __init__(self, *parts: Any, change: Callable[[Seen, Experience], None] | None = None, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.batches: list[Experience] = []
        take_step = self.algorithm.step

        def step(learner: Learner, experience: Experience, *rest: Any) -> dict[str, float]:
            if not self.batches or self.batches[-1] is not experience:
                self.batches.append(experience)
                if change is not None:
                    change(self, experience)
            return take_step(learner, experience, *rest)

        self.algorithm = dataclasses.replace(self.algorithm, step=step)


def loop_for(
    work: Path,
    updates: int = 1,
    *,
    kind: str | None = "adapter",
    lora: bool = True,
    dtype: torch.dtype = torch.float32,
    score: Score = share_of_a,
    run: dict[str, Any] | None = None,
    watcher: Watcher | None = None,
    change: Callable[[Seen, Experience], None] | None = None,
    algorithm: str = "ppo",
    sharded: bool = False,
    wide: bool = False,
    layers: list[int] | None = None,
    texts: Sequence[TextRow] = (),
    **options: Any,
) -> Seen:
    """A loop ready to train: `options` go into the recipe's section, `run` into the loop's Run, `texts` with `ptx`."""
    tokenizer, roles = make_roles(kind, lora, dtype, wide=wide, layers=layers)
    if sharded:
        roles.prepare()
        sharding.shard(roles.modules())
    values = SECTION | options | ({"algorithm": algorithm} if algorithm in get_args(AlgorithmName) else {})
    size = values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1)
    section = Ppo(engine="rlhfctl", total_episodes=size * updates, **values)
    rows = [{"prompt": tokenizer.decode(prompt)} for prompt in PROMPTS]
    data = PromptData(tokenizer, rows, PROMPTS)
    where = Run(seed=5, work=work / "work", **run or {})
    if algorithm == "nlpo":
        its = LOW_RANK.model_copy(update={"layers_to_transform": layers}) if lora else None
        roles = dataclasses.replace(roles, masking=make_masking(roles.policy, its))
    ptx = Pretraining(section, section.ptx, texts, Orders(5)) if section.ptx is not None else None
    return Seen(section, roles, score, data, where, watcher, algorithm=algorithm, change=change, pretraining=ptx)


def trained(work: Path, updates: int = 1, **options: Any) -> Seen:
    loop = loop_for(work, updates, **options)
    loop.train()
    return loop


def rounding(*given: Any, **more: Any) -> list[Response]:
    """A generator that gives log-probabilities as a sampler that rounds: 0.05 above and below, token by token."""
    return [
        dataclasses.replace(response, logprobs=[p + 0.05 * (-1) ** at for at, p in enumerate(response.logprobs)])
        for response in local.sample(*given, **more)
    ]


def trained_on_rounded_samples(work: Path, updates: int = 1, **options: Any) -> Seen:
    """A loop in bfloat16 whose sampler rounds differently than learning."""
    loop = loop_for(work, updates, bf16=True, **options)
    loop.collector = dataclasses.replace(loop.collector, generator=rounding)
    loop.train()
    return loop


def gap(one: dict[str, Tensor], other: dict[str, Tensor], part: str = "") -> float:
    """Largest difference of two states, in the tensors whose name holds `part`."""
    names = [name for name in one if part in name]
    assert names and one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def start(**options: Any) -> dict[str, Tensor]:
    return make_roles(**options)[1].state()


def column(loop: PpoLoop, name: str) -> list[float]:
    return [entry[name] for entry in loop.history]


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name not in TIMED} for entry in history]


def learns_and_goes_on_after_a_stop(folder: Path, **options: Any) -> tuple[Seen, Seen]:
    """Check that 40 updates without a critic raise the score, and that they end alike when stopped in the 26th.

    `options` must have a checkpoint every ten updates. Returns the whole loop and the one that went on.
    """
    whole = trained(folder / "whole", 40, **options)
    score = column(whole, "score")
    assert sum(score[-5:]) / 5 > sum(score[:5]) / 5 + 0.15, score
    assert gap(start(kind=None), whole.roles.state()) > 1e-2

    class Stop(Exception):
        """Stands for a kill."""

    def stop(late: Seen, _: Experience) -> None:
        if late.done == 25:
            raise Stop

    with pytest.raises(Stop):
        loop_for(folder / "stopped", 40, change=stop, **options).train()
    again = trained(folder / "stopped", 40, **options)
    assert len(again.batches) == 20 and again.done == 40
    assert gap(again.roles.state(), whole.roles.state()) == 0.0
    return whole, again
