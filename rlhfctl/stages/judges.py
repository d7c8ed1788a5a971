"""Build the judges of a comparison, and decide whether a judge is independent of the reward that PPO trained against.

Builds the judges with rewards/build.py, and passes it the gold scorer of the built-in task. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from rlhfctl.errors import HandoffError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Compare
from rlhfctl.recipe.sections.scorers import (
    ENDPOINT,
    HELDOUT,
    PASSES,
    PROMPTED,
    REWARD_FUNCTION,
    REWARD_MODEL,
    UNIT_TESTS,
)
from rlhfctl.rewards.build import Resources, build_scorer
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.rewards.unit_tests import UnitTestsReward
from rlhfctl.sandbox.pool import Outcome
from rlhfctl.stages import prompted
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import load_named_model

_ROLES = {REWARD_MODEL: "reward", HELDOUT: "heldout"}  # judges that are models -> their role among the parents


def build_judges(
    section: Compare, ctx: Context, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, RewardFunction]:
    """Build the recipe's judges of single responses by name; `tokenizer` is the policy's."""
    return build_scorers([name for name in section.judges if name != ENDPOINT], section, ctx, tokenizer)


def build_scorers(
    names: Sequence[str], section: Compare, ctx: Context, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, RewardFunction]:
    """Build scorers of single responses by name, for judges and metrics alike."""
    load = {
        role: partial(ctx.loader.load_scoring_model, ctx.parents[role], tokenizer)
        for role in _ROLES.values()
        if role in ctx.parents and tokenizer is not None
    }
    size = section.batch_size
    resources = replace(
        Resources.of(ctx.recipe),
        batch_size=size,
        function_batch_size=size,
        warn=ctx.warn,
        reward_model=load.get("reward"),
        heldout=load.get("heldout"),
        gold=_gold,
        prompted=prompted.loader_of(ctx, size),
        models=partial(load_named_model, ctx.loader, ctx.recipe, tokenizer),
    )
    return {name: build_scorer(name, resources) for name in names}


def _gold(episodes: Sequence[Episode], /) -> list[float]:
    from rlhfctl.world import gold

    return list(gold.score([e.prompt for e in episodes], [e.completion for e in episodes]))


def is_independent(judge: str, ctx: Context) -> bool:
    """Decide from the manifests whether a judge differs from the reward that the policy was trained against."""
    reward, ppo = ctx.recipe.reward, ctx.recipe.ppo
    if judge in _ROLES:
        against = _trained_against(ctx)
        return against is not None and ctx.parents[_ROLES[judge]].fingerprint not in against
    if ppo is not None and judge in (ppo.rewards or {}):
        return False
    return judge not in (REWARD_FUNCTION, UNIT_TESTS, PASSES, PROMPTED) and (reward is None or judge != reward.function)


def _trained_against(ctx: Context) -> set[str] | None:
    """Return fingerprints of the reward models that the policy, or the model it started from, was trained against.

    Returns None if that is unknown: samples and models from elsewhere have no manifest, and a parent may be gone.
    """
    source, fingerprints = ctx.parents.get("policy"), set()
    while source is not None and source.artifact is not None:
        parents = source.artifact.manifest.parents
        if "reward" in parents:
            fingerprints.add(parents["reward"].fingerprint)
        if "base" not in parents:
            return fingerprints
        try:
            source = source.artifact.parent("base")
        except HandoffError:
            return None
    return None


def dependence(judge: str, ctx: Context) -> str:
    """Explain why a judge that is not independent is no evidence."""
    no_evidence = "it is not independent evidence of improvement"
    if judge in _ROLES and _trained_against(ctx) is None:
        return f"the verdict rests on a reward model, and nothing shows that PPO did not train on it: {no_evidence}"
    what = "reward model" if judge in _ROLES else "tests" if judge in (UNIT_TESTS, PASSES) else "reward function"
    return f"the verdict rests on the {what} that PPO trained against: {no_evidence}"


def outcomes(built: Mapping[str, RewardFunction], episodes: Sequence[Sequence[Episode]]) -> list[list[Outcome]] | None:
    """Return how each program ended, by prompt and sample; None if no judge runs programs. Nothing runs twice."""
    tester = next((judge for judge in built.values() if isinstance(judge, UnitTestsReward)), None)
    if tester is None:
        return None
    return [[result.outcome for result in tester.results(samples)] for samples in episodes]


def score(name: str, judge: RewardFunction, episodes: Sequence[Sequence[Episode]]) -> list[list[float]]:
    """Score all episodes in one call; the result has the shape of `episodes`: prompt, sample."""
    with Work(f"judging with {name}"):
        flat = judge([episode for samples in episodes for episode in samples])
    scores, start = [], 0
    for samples in episodes:
        scores.append(list(flat[start : start + len(samples)]))
        start += len(samples)
    return scores
