"""Suggest changed settings for a stage that does not fit into memory.

Each change is tried on the predicted memory, the one that costs least first. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from trl import DPOConfig, RewardConfig, SFTConfig

from rlhfctl.errors import RlhfctlError
from rlhfctl.graph import STAGES
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.planning.stages import StagePlan, facts, trainer_config
from rlhfctl.recipe.load import LoadedRecipe
from rlhfctl.recipe.schema import Recipe

TIGHT = 0.9  # share of the memory; above it the verdict is "tight", because allocators waste an unknown part
_SHORTEST = 64  # tokens: no advice sets max_length lower

Fit = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class Advice:
    """Settings with which the stage fits, and the bytes that it then needs."""

    stage: str
    settings: tuple[str, ...]
    total: int


def fit(total: int | None, limit: int | None) -> Fit | None:
    """Compare the needed bytes with the limit; None if one of them is unknown."""
    if total is None or limit is None:
        return None
    return "fits" if total <= TIGHT * limit else "tight" if total <= limit else "does not fit"


def advise(
    stage: StagePlan, load: Callable[[Sequence[str]], LoadedRecipe], lengths: Lengths, overhead: int, limit: int
) -> Advice | None:
    """Find the first single change with which the stage fits, else the first combination; None if nothing helps."""
    recipe = load(()).recipe
    scale = 1.0
    if stage.measured is not None and stage.outlook is not None:
        scale = stage.measured / (overhead + stage.outlook.peak.total)

    def needs(settings: Sequence[str]) -> int | None:
        try:
            changed = load(settings).recipe
            outlook = facts(stage.name, changed, lengths).outlook
        except RlhfctlError:  # the change clashes with another setting
            return None
        return None if outlook is None else int(scale * (overhead + outlook.peak.total))

    tried = list(_changes(stage.name, recipe, lengths))
    for settings in tried:
        total = needs(settings)
        if fit(total, limit) in ("fits", "tight"):
            return Advice(stage.name, settings, total or 0)
    together: dict[str, str] = {}
    for settings in tried:
        together |= {setting.split("=")[0]: setting for setting in settings}
        total = needs(tuple(together.values()))
        if fit(total, limit) in ("fits", "tight"):
            return Advice(stage.name, tuple(together.values()), total or 0)
    return None


def _changes(name: str, recipe: Recipe, lengths: Lengths) -> Iterator[tuple[str, ...]]:
    """Yield the possible changes of settings, the one that costs least first."""
    key = STAGES[name].section
    if name in ("sft", "reward", "heldout", "dpo"):
        kinds = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}
        kind, section = kinds[key], getattr(recipe, key)
        config = trainer_config(kind, recipe, section.trainer)
        size, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
        yield from _smaller(f"{key}.trainer", size, steps)
        if not config.gradient_checkpointing:
            yield (f"{key}.trainer.gradient_checkpointing=true",)
        if section.lora is None:
            yield (f"{key}.lora={{r: 16}}",)
        longest = max(lengths.sft if key == "sft" else (*lengths.chosen, *lengths.rejected))
        shorter = min(config.max_length or longest, longest) // 2
        if shorter >= _SHORTEST:
            yield (f"{key}.trainer.max_length={shorter}",)
    elif name == "ppo" and recipe.ppo is not None:
        ppo = recipe.ppo
        if ppo.local_rollout_forward_batch_size > 8:
            yield ("ppo.local_rollout_forward_batch_size=8",)
        yield from _smaller("ppo", ppo.per_device_train_batch_size, ppo.gradient_accumulation_steps)
        if not ppo.gradient_checkpointing:
            yield ("ppo.gradient_checkpointing=true",)
        if ppo.lora is None:
            yield ("ppo.lora={r: 16}",)
    elif name == "card" and recipe.ppo is not None and recipe.ppo.local_rollout_forward_batch_size > 8:
        yield ("ppo.local_rollout_forward_batch_size=8",)
    elif name == "compare" and recipe.compare is not None and recipe.compare.batch_size > 8:
        yield ("compare.batch_size=8",)
    if recipe.model.dtype == "float32":
        yield ("model.dtype=bfloat16",)
    if recipe.model.path is not None and recipe.model.quantization is None and name not in ("base", "compare"):
        trained = getattr(recipe, key)
        if trained.lora is not None:
            yield ("model.quantization=4bit",)


def _smaller(section: str, size: int, steps: int) -> Iterator[tuple[str, ...]]:
    """Yield settings for the same batch in smaller micro-batches."""
    while size > 1 and size % 2 == 0:
        size, steps = size // 2, steps * 2
        yield (f"{section}.per_device_train_batch_size={size}", f"{section}.gradient_accumulation_steps={steps}")
