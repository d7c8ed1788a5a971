"""Who scores the responses in a comparison, and whether a judge is independent of what PPO was trained against.

Reads reward models (through the hand-over) and reward functions. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhfctl.errors import HandoffError
from rlhfctl.events import Work
from rlhfctl.models import build
from rlhfctl.recipe.schema import Compare
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.model import ClassifierReward, ModelReward, TextModelReward
from rlhfctl.stages.context import Context

Judge = Callable[[Sequence[Episode]], list[float]]


def build_judges(section: Compare, ctx: Context, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Judge]:
    """The recipe's judges by name; `tokenizer` is the policy's."""
    judges: dict[str, Judge] = {}
    folder = Path(ctx.recipe.folder or ".")
    retries = ctx.recipe.reward.retries if ctx.recipe.reward is not None else 0
    for name in section.judges:
        if name == "gold":
            judges[name] = _gold
        elif name == "reward_model":
            if "reward" not in ctx.parents or tokenizer is None:
                raise HandoffError(
                    "the judge reward_model has no reward model to ask", fix="name one with --reward-model"
                )
            source = ctx.parents["reward"]
            if classifier := ctx.loader.load_classifier(source):
                judges[name] = ClassifierReward(classifier, section.batch_size)
                continue
            theirs = ctx.loader.other_tokenizer(source, tokenizer)
            model = build.to_device(ctx.loader.load_reward_model(source, theirs or tokenizer))
            size = section.batch_size
            own = TextModelReward(model, theirs, size) if theirs else None
            judges[name] = own or ModelReward(model, tokenizer.pad_token_id, size)
        elif name == "reward_function":
            assert ctx.recipe.reward is not None and ctx.recipe.reward.function is not None
            judges[name] = FunctionReward(ctx.recipe.reward.function, folder, retries=retries)
        else:
            judges[name] = FunctionReward(name, folder, retries=retries)
    return judges


def _gold(episodes: Sequence[Episode]) -> list[float]:
    from rlhfctl.world import gold

    return list(gold.score([e.prompt for e in episodes], [e.completion for e in episodes]))


def is_independent(judge: str, ctx: Context) -> bool:
    """Whether a judge is another than what the policy was trained against, as far as manifests tell."""
    reward, ppo = ctx.recipe.reward, ctx.recipe.ppo
    if judge == "reward_model":
        against = _trained_against(ctx)
        return against is not None and ctx.parents["reward"].fingerprint not in against
    if ppo is not None and judge in (ppo.rewards or {}):
        return False
    return judge != "reward_function" and (reward is None or judge != reward.function)


def _trained_against(ctx: Context) -> set[str] | None:
    """Fingerprints of the reward models that the policy, or what it started from, was trained against.

    None where that cannot be told: samples and models from elsewhere have no manifest, and a parent may be gone.
    """
    source, found = ctx.parents.get("policy"), set()
    while source is not None and source.artifact is not None:
        parents = source.artifact.manifest.parents
        if "reward" in parents:
            found.add(parents["reward"].fingerprint)
        if "base" not in parents:
            return found
        try:
            source = source.artifact.parent("base")
        except HandoffError:
            return None
    return None


def dependence(judge: str, ctx: Context) -> str:
    """Say why a judge that is not independent is no evidence."""
    no_evidence = "it is not independent evidence of improvement"
    if judge == "reward_model" and _trained_against(ctx) is None:
        return f"the verdict rests on a reward model, and nothing shows that PPO did not train on it: {no_evidence}"
    what = "reward model" if judge == "reward_model" else "reward function"
    return f"the verdict rests on the {what} that PPO trained against: {no_evidence}"


def score(name: str, judge: Judge, episodes: Sequence[Sequence[Episode]]) -> list[list[float]]:
    """Scores of all episodes in one call, in the shape that they came in: prompt, sample."""
    with Work(f"judging with {name}"):
        flat = judge([episode for samples in episodes for episode in samples])
    scores, start = [], 0
    for samples in episodes:
        scores.append(list(flat[start : start + len(samples)]))
        start += len(samples)
    return scores
