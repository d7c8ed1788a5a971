"""Define the rules on PPO's algorithms, PPO-ptx and the outcome critic beside the other sections of a recipe, as data.

Rules about the keys of `ppo` alone are in its section (sections/). rules.py puts these among the others. Keys and
placeholders here are paths from the top of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlhfctl.recipe.sections.base import Rule
from rlhfctl.recipe.sections.whole import Broken, Sections, divides, quantized


def _ptx_without_rows(recipe: Sections) -> list[Mapping[str, str]]:
    ptx = recipe.ppo.ptx if recipe.ppo is not None else None
    return [] if ptx is None or getattr(recipe.data, ptx.data) is not None else [{"rows": ptx.data}]


def _unused_pretraining(recipe: Sections) -> bool:
    ptx = recipe.ppo.ptx if recipe.ppo is not None else None
    return recipe.data.pretraining is not None and (ptx is None or ptx.data != "pretraining")


PTX: tuple[Rule[Sections], ...] = (
    Rule(
        "ppo.ptx",
        "needs data.{rows} for its loss",
        "add it, or name the other data set in ppo.ptx.data",
        _ptx_without_rows,
        about=("data.demonstrations", "data.pretraining"),
    ),
    Rule(
        "data.pretraining",
        "is not used: only ppo.ptx with data: pretraining reads it",
        "set ppo.ptx.data: pretraining, or remove it",
        _unused_pretraining,
        about=("ppo", "ppo.ptx"),
    ),
)


OUTCOME_CRITIC: tuple[Rule[Sections], ...] = (
    Rule(
        "ppo.outcome_critic",
        "predicts the outcomes of programs, but reward.unit_tests is not set",
        "set it, or remove ppo.outcome_critic",
        lambda recipe: (
            recipe.ppo is not None
            and recipe.ppo.outcome_critic is not None
            and (recipe.reward is None or recipe.reward.unit_tests is None)
        ),
        about=("reward", "reward.unit_tests"),
    ),
    Rule(
        "ppo.outcome_critic",
        "is a whole model to train, but the base is quantized",
        "remove it, or model.quantization",
        lambda recipe: recipe.ppo is not None and recipe.ppo.outcome_critic is not None and quantized(recipe),
        about=("model.quantization",),
    ),
    Rule(
        "compare.critic_sampling",
        "goes by the policy's outcome critic, but there is no ppo.outcome_critic",
        "add it, or remove compare.critic_sampling",
        lambda recipe: (
            recipe.compare is not None
            and recipe.compare.critic_sampling is not None
            and (recipe.ppo is None or recipe.ppo.outcome_critic is None)
        ),
        about=("ppo", "ppo.outcome_critic"),
    ),
)


def _with(algorithm: str, broken: Broken) -> Broken:
    return lambda recipe: recipe.ppo is not None and recipe.ppo.algorithm == algorithm and broken(recipe)


ALGORITHMS: tuple[Rule[Sections], ...] = (
    Rule(
        "ppo.algorithm",
        "rounding to {model.dtype} is coarser than the KL that trpo bounds",
        "use model.dtype: float32, or another algorithm",
        _with("trpo", lambda recipe: recipe.model.dtype != "float32"),
        about=("model.dtype",),
    ),
    Rule(
        "ppo.algorithm",
        "layers in few bits ({model.quantization}) have no forward-mode derivatives, which trpo takes",
        "remove model.quantization, or use another algorithm",
        _with("trpo", lambda recipe: recipe.model.quantization is not None),
        about=("model.quantization",),
    ),
    Rule(
        "ppo.algorithm",
        "trpo works on all trained weights as one vector, which launch.shard divides",
        "leave launch.shard out, or use another algorithm",
        _with("trpo", divides),
        about=("launch.shard",),
    ),
    Rule(
        "ppo.algorithm",
        "the masking policy of nlpo cannot be divided over processes by launch.shard",
        "leave launch.shard out, or use another algorithm",
        _with("nlpo", divides),
        about=("launch.shard",),
    ),
)
