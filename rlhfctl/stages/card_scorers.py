"""Build the scorers of the reward model's card, and tell whether the reward model builds on the policy's own base.

The scorers: the recipe's reward (the proxy), the held-out reward model where the run has one, and gold, the built-in
task's true preference, which is shown and decides nothing. One is loaded at a time. Reads manifests and configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from rlhfctl.artifacts import Artifact, Source
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import Work
from rlhfctl.models import adapter_folders, devices, loading, tokenizing
from rlhfctl.recipe.sections.scorers import REWARD, REWARD_MODEL
from rlhfctl.rewards.build import Resources, build_scorer
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.stages.context import Context

PROXY, HELDOUT, GOLD = "reward", "heldout", "gold"

Make = Callable[[], RewardFunction]
Score = Callable[[Sequence[Episode]], list[float]]


def model_scorers(ctx: Context, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> dict[str, Make]:
    """Return what builds the proxy and, where the run has one, the held-out reward model. `tokenizer`: base*'s."""
    resources = replace(Resources.of(ctx.recipe), batch_size=batch_size, function_batch_size=batch_size, warn=ctx.warn)

    def loading(role: str) -> Resources:
        load = partial(ctx.loader.load_scoring_model, ctx.parents[role], tokenizer) if role in ctx.parents else None
        return replace(resources, reward_model=load)

    found: dict[str, Make] = {PROXY: lambda: build_scorer(REWARD, loading(PROXY))}
    if HELDOUT in ctx.parents:
        found[HELDOUT] = lambda: build_scorer(REWARD_MODEL, loading(HELDOUT))
    return found


def score_gold(episodes: Sequence[Episode]) -> list[float]:
    """Score episodes of the built-in task by its true preference."""
    from rlhfctl.world import gold

    return list(gold.score([e.prompt for e in episodes], [e.completion for e in episodes]))


def scored(name: str, make: Make, parts: Sequence[Sequence[Episode]]) -> list[list[float]]:
    """Build a scorer, score all parts in one call, and free its memory; RlhfctlError for a score that is not finite."""
    scorer = make()
    with Work(f"scoring with {name}"):
        flat = scorer([episode for part in parts for episode in part])
    del scorer
    devices.release_memory()
    if bad := sum(not math.isfinite(value) for value in flat):
        raise RlhfctlError(
            f"{bad} of {len(flat)} scores of {name} are not finite",
            where="reward",
            fix="correct the reward: a score is a finite number",
        )
    scores, start = [], 0
    for part in parts:
        scores.append(flat[start : start + len(part)])
        start += len(part)
    return scores


# ---------------------------------------------------------------- lineage


def base_is_policys(ctx: Context, tokenizer: PreTrainedTokenizerBase) -> bool | None:
    """Tell whether the reward model builds on the model that the policy builds on; None if that cannot be known.

    Malik et al., RewardBench 2 (2025), figure 4: rewards from another base gain less in PPO. Yes, if manifests lead to
    the same base*, or to the same first weights. No, if the tokenizer or the shape of the weights differs. Two models
    of one shape may still be different ones.
    """
    reward, base = ctx.parents.get(PROXY), ctx.parents["base"]
    if reward is None:
        return None
    if reward.artifact is not None and _leads_to(reward.artifact, base):
        return True
    own = ctx.loader.own_tokenizer(reward)
    same_ids = tokenizing.tokenizer_fingerprint(own) == tokenizing.tokenizer_fingerprint(tokenizer)
    return None if same_ids and _shape(reward, ctx) == _shape(base, ctx) else False


def _leads_to(reward: Artifact, base: Source) -> bool:
    recorded = reward.manifest.parents.get("base")
    if recorded is not None and recorded.fingerprint == base.fingerprint:
        return True
    first = _origin(Source.of(reward))
    return first is not None and first == _origin(base)


def _origin(source: Source) -> tuple[str | None, int] | None:
    """Return what fixes the first weights of a stage's model: the `model` section and the seed; None: unknown."""
    if source.artifact is None:
        return None
    manifest = source.artifact.manifest
    if "base" not in manifest.parents:
        return manifest.inputs.get("model"), manifest.seed
    try:
        return _origin(source.artifact.parent("base"))
    except HandoffError:  # it is gone, or has changed since
        return None


def _shape(source: Source, ctx: Context) -> tuple[object, ...]:
    """Return what models of one base have in common: kind, layers and width."""
    if source.artifact is not None and not source.artifact.has("model"):
        return _shape(source.artifact.parent("base"), ctx)
    if source.artifact is not None:
        folder = str(source.artifact.part("model"))
    else:
        folder = adapter_folders.fetched(source.name)
        folder = adapter_folders.bases_of(folder)[-1] if adapter_folders.is_adapter(folder) else folder
    config = loading.read_config(folder, "model", trust_remote_code=ctx.recipe.model.trust_remote_code)
    return tuple(getattr(config, name, None) for name in ("model_type", "num_hidden_layers", "hidden_size"))
