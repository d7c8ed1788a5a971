"""Prepare the PPO loop: make its accelerator, refuse what cannot work, and detect low precision."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rlhfctl.errors import EngineError
from rlhfctl.models import loading
from rlhfctl.models.packing import max_stable_rope_length
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.roles import Roles


def make_accelerator(section: Ppo) -> Accelerator:
    """Make a new accelerator in the section's precision."""
    # A process keeps the precision of its first accelerator, for example that of the sft stage's trainer.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="bf16" if section.bf16 else "no")


def require_enough_episodes(section: Ppo, processes: Processes) -> None:
    """Raise EngineError if a process would have no part of a minibatch: every process takes part in every step."""
    if section.mini_batch_size < processes.count:
        raise EngineError(
            f"a minibatch of {section.mini_batch_size} episodes has no part for each of {processes.count} processes",
            where="ppo.num_mini_batches",
            fix="lower num_mini_batches, raise per_device_train_batch_size, or take fewer processes (--num-processes)",
        )


def require_steady_positions(section: Ppo, roles: Roles, data: PromptData) -> None:
    """Raise EngineError if sampling would use other rotary angles than the training forward."""
    steady, longest = max_stable_rope_length(roles.policy.config), max(map(len, data.prompts), default=0)
    if steady is not None and longest + section.response_length > steady:
        raise EngineError(
            f"this model's rotary embeddings change when a sequence grows beyond {steady} tokens: what was sampled "
            "before would no longer be what the policy gives",
            where="ppo.engine: rlhfctl",
            fix=f"keep data.max_prompt_length + ppo.response_length at {steady} or less",
        )


def has_low_precision(section: Ppo, roles: Roles, trained: dict[str, Any]) -> bool:
    """Tell whether sampling and learning may round differently: 16-bit numbers, or quantized weights."""
    widths = (roles.policy.head.weight.dtype.itemsize, next(iter(trained.values())).dtype.itemsize)
    return section.bf16 or min(widths) < 4 or loading.is_quantized(roles.policy.model)
