"""Define the workloads of `rlhfctl bench ppo`: a model and PPO settings that both engines support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhfctl.errors import RlhfctlError
from rlhfctl.recipe.load import find_recipe, load_recipe
from rlhfctl.recipe.schema import Init, Lora, Model, Ppo

RLHFCTL, TRL = "rlhfctl", "trl"
SEED = 0
WARM_UP = 1  # updates that are not counted: first allocations, and the rlhfctl engine's check of its rollout
PHASES = ("rollout_s", "score_s", "update_s")
MB = 1e6
_LEARNING_RATE = 1e-5  # small enough to leave the planted lengths of responses unchanged


@dataclass(frozen=True)
class Workload:
    """A workload to measure: a model and PPO settings.

    `prompts`: the shortest and the longest prompt in tokens. `ends`: whether responses end by themselves; otherwise all
    have the longest length.
    """

    name: str
    model: Model
    ppo: Ppo
    updates: int  # per round
    prompts: tuple[int, int] = (16, 64)
    ends: bool = True


def reference_workload(size: str) -> Workload:
    """Make a reference workload: `small` for speed, `large` for memory."""
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
    """Make a workload from the model and PPO sizes of a recipe."""
    recipe = load_recipe(find_recipe(name)).recipe
    if recipe.ppo is None:
        raise RlhfctlError("the recipe has no ppo section to measure", where=name, fix="name one with `ppo:`")
    return Workload(recipe.name, recipe.model, recipe.ppo, reference_workload("small").updates)


def comparable(ppo: Ppo, updates: int, critic: str | None, *, ends: bool = True) -> Ppo:
    """Change `ppo` to settings that both engines support: one micro-batch per minibatch, plain precision, no traces."""
    ppo = ppo.model_copy(update={"algorithm": "ppo", "outcome_critic": None})  # the one that both engines have
    kind = critic or ppo.critic_kind
    if ppo.lora is None and kind == "adapter":
        raise RlhfctlError("a critic as adapter needs LoRA", where="--critic", fix="use --critic model or head")
    changes: dict[str, Any] = {
        "engine": RLHFCTL,
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
        "checkpointed_share": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "stop_token": "eos" if ends else None,
        "stop_strings": [],
        "target_kl": None,
        "entropy_coef": 0.0,
        "trace_every": 0,
        "checkpoint_steps": updates + WARM_UP,
    }
    return ppo.model_copy(update=changes)
