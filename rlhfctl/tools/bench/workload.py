"""What `rlhfctl bench ppo` measures: a model, PPO's settings, and what both engines can make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.load import find_recipe, load_recipe
from rlhfctl.recipe.schema import Init, Lora, Model, Ppo

OURS, THEIRS = "rlhfctl", "trl"
SEED = 0
WARM_UP = 1  # updates that are not counted: first allocations, and our engine's check of its own rollout
PHASES = ("rollout_s", "score_s", "update_s")
MB = 1e6
_LEARNING_RATE = 1e-5  # so small that the lengths of responses stay as they were planted


@dataclass(frozen=True)
class Workload:
    """What is measured: a model and PPO's settings."""

    name: str
    model: Model
    ppo: Ppo
    updates: int  # measured in each round


def reference_workload(size: str) -> Workload:
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
    return Workload(recipe.name, recipe.model, recipe.ppo, reference_workload("small").updates)


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
        "learning_rate": _LEARNING_RATE,
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
