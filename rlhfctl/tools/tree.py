"""`rlhfctl tokens --tree`: grow the tree of all responses to one prompt, with policy and critic before and after PPO.

For worlds with so few tokens and such short responses that every response can be written out (tiny-chatgpt). At each
state it computes the policy's probabilities, the critic's value, and the true value: the expected return under that
policy, exactly, by summing over the tree. "Before" is the state in which PPO began (base* and the critic's start, built
again from the same seed); "after" are the saved models.

Reads the run's recipe, models and prompts, and calls the reward; writes nothing. Leaves out drawing (terminal/tree.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlhfctl.artifacts import Artifact, Source, find_artifact
from rlhfctl.dashboard.trees import Node, Side, Tree
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.data.load import check_all
from rlhfctl.data.types import PromptSplit
from rlhfctl.errors import RlhfctlError
from rlhfctl.generation.generator import Sampling, sampling_for
from rlhfctl.models import build, devices, loading
from rlhfctl.models.architecture import context_of
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.special_tokens import end_tokens
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Ppo, Recipe
from rlhfctl.rewards.build import Resources, build_reward
from rlhfctl.rewards.episode import make_episode
from rlhfctl.stages.context import Context
from rlhfctl.stages.ppo import ParentModels
from rlhfctl.stats import ppo_arithmetic as arithmetic
from rlhfctl.tools.tokens import Episode
from rlhfctl.training.rl.algorithms import ALGORITHMS
from rlhfctl.training.rl.roles import Critic, build_roles

MOST_RESPONSES = 20_000
"""Largest number of responses that are written out: a minute on a CPU with a model of tiny-chatgpt's size."""

_ROWS_AT_ONCE = 512

Ids = tuple[int, ...]


@dataclass(frozen=True)
class _Player:
    """Policy and critic at one time."""

    policy: LanguageModel
    critic: Critic | None


@dataclass(frozen=True)
class _World:
    """The rules of the episode: prompt, tokens that can be sampled, tokens that end a response, longest response."""

    prompt: list[int]
    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    longest: int

    @property
    def states(self) -> list[Ids]:
        """All beginnings at which a token is sampled, the shortest first."""
        going_on = [token for token in self.tokens if token not in self.ends]
        found: list[Ids] = [()]
        level = found
        for _ in range(self.longest - 1):
            level = [(*state, token) for state in level for token in going_on]
            found = found + level
        return found

    @property
    def responses(self) -> int:
        """Count the responses: those that end by themselves, and those that are cut off at the longest length."""
        going_on = len(self.tokens) - len(self.ends)
        states = sum(going_on**length for length in range(self.longest))
        return states * len(self.ends) + going_on**self.longest


def grow(episode: Episode) -> Tree:
    """Grow the tree of the episode's prompt. RlhfctlError where the stage is not complete or the world is too large."""
    artifact = find_artifact(episode.run / episode.stage)
    if artifact is None:
        raise RlhfctlError(
            "the tree needs the trained models, but the stage is not complete",
            where=str(episode.run / episode.stage),
            fix=f"complete it: rlhfctl run RECIPE --run-dir {episode.run} --until {episode.stage}",
        )
    recipe = load_recipe(RunPaths(episode.run).recipe).recipe
    section = Ppo.model_validate(artifact.manifest.section)
    with loading.silence_libraries():
        return _grown(episode, artifact, recipe, section)


def _grown(episode: Episode, artifact: Artifact, recipe: Recipe, section: Ppo) -> Tree:
    data = check_all(recipe.data, recipe.data_seed, ("prompts",))
    parents = {role: artifact.parent(role) for role in artifact.manifest.parents}
    context = Context(episode.stage, recipe, RunPaths(episode.run), parents, {}, data, emit=lambda event: None)
    base = context.loader.load_base(parents["base"], check=False, to_train=True)
    build.to_device(base.model)
    tokenizer = base.tokenizer
    sampling = sampling_for(section, tokenizer, seed=artifact.manifest.seed, stream=0)
    _refuse_other_sampling(sampling, episode)
    ends = end_tokens(base.model, tokenizer) if sampling.stop_ids is None else sampling.stop_ids
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    tokens = tuple(token for token in range(vocabulary) if token != tokenizer.pad_token_id)
    ends = tuple(token for token in ends if token in tokens)
    world = _World([], tokens, ends, section.response_length)
    _refuse_large(world, episode)

    split = data["prompts"].split
    assert isinstance(split, PromptSplit)
    room = (tokenizer, context_of(base.model.config), section.response_length, recipe.data, lambda sentence: None)
    rows, prompts = encode_prompts(split.train, *room)
    index = _prompt_index([tokenizer.decode(prompt) for prompt in prompts], episode)
    world = replace(world, prompt=prompts[index])

    needs_critic = "values" in episode.record
    models = ParentModels(context, section, tokenizer)
    roles, _ = build_roles(
        section, base.model, tokenizer.pad_token_id, models, seed=artifact.manifest.seed, needs_critic=needs_critic
    )
    before = _measure(_Player(roles.policy, roles.critic), world, section.temperature)
    after = _measure(_trained(artifact, context, needs_critic), world, section.temperature)
    scores = _scores(world, rows[index], context, section, tokenizer, sampling)
    sides = {
        "before": _with_expected(before, before, world, scores, section),
        "after": _with_expected(after, before, world, scores, section),
    }
    texts = {token: tokenizer.decode([token]) for token in tokens}
    nodes = [_node(ids, world, scores, sides, texts) for ids in [*world.states, *scores]]
    return Tree(
        stage=episode.stage,
        prompt=episode.record["prompt"],
        longest=world.longest,
        nodes=tuple(sorted(nodes, key=lambda node: node.ids)),
        best_policy="best_update" in artifact.manifest.metrics,
    )


def _trained(artifact: Artifact, context: Context, needs_critic: bool) -> _Player:
    source = Source.of(artifact)
    policy = context.loader.load_base(source, check=False)
    build.to_device(policy.model)
    critic = context.loader.load_critic(source).to(devices.device()) if needs_critic else None
    return _Player(
        LanguageModel(policy.model, policy.tokenizer.pad_token_id), None if critic is None else Critic(critic)
    )


# ---------------------------------------------------------------- refusals


def _refuse_other_sampling(sampling: Sampling, episode: Episode) -> None:
    """Raise RlhfctlError where responses are drawn from a part of the distribution, or end at a text."""
    what = "top_k or top_p" if sampling.truncates else "stop_strings" if sampling.stop_strings else ""
    if what:
        raise RlhfctlError(
            f"the tree follows the whole distribution up to an end token, but this stage samples with {what}",
            where=str(episode.run / episode.stage),
            fix="look at single episodes: leave out --tree",
        )


def _refuse_large(world: _World, episode: Episode) -> None:
    going_on = len(world.tokens) - len(world.ends)
    # The count itself can have thousands of digits: it is computed only where it can be small.
    few = going_on <= MOST_RESPONSES and (going_on < 2 or world.longest <= MOST_RESPONSES.bit_length())
    if few and world.responses <= MOST_RESPONSES:
        return
    raise RlhfctlError(
        f"the tree has too many responses: {len(world.tokens)} tokens, up to {world.longest} of them in a response; "
        f"at most {MOST_RESPONSES} responses are written out",
        where=str(episode.run / episode.stage),
        fix="--tree is for worlds like that of the recipe tiny-chatgpt; look at single episodes without it",
    )


def _prompt_index(prompts: Sequence[str], episode: Episode) -> int:
    if episode.record["prompt"] not in prompts:
        raise RlhfctlError(
            "the prompt of this episode is no longer among the recipe's prompts",
            where=str(episode.run / episode.stage),
            fix="put the file of prompts back as it was when the stage ran",
        )
    return prompts.index(episode.record["prompt"])


# ---------------------------------------------------------------- numbers at each state


@dataclass(frozen=True)
class _Measured:
    """Log-probabilities of the next token at each state, and the critic's values, also of states after an end."""

    logprobs: Mapping[Ids, Mapping[int, float]]
    values: Mapping[Ids, float]


def _measure(player: _Player, world: _World, temperature: float) -> _Measured:
    states = world.states
    logprobs: dict[Ids, Mapping[int, float]] = {}
    values: dict[Ids, float] = {}
    ended = [(*state, end) for state in states for end in world.ends if len(state) + 1 < world.longest]
    with evaluating(player.policy.model):
        for part in _pieces(states):
            sequences = _sequences(part, world, player.policy.device)
            hidden = player.policy.states(sequences)[sequences.last()]
            table = torch.log_softmax(player.policy.logits(hidden) / temperature, -1)[:, list(world.tokens)].tolist()
            logprobs |= {
                state: dict(zip(world.tokens, row, strict=True)) for state, row in zip(part, table, strict=True)
            }
        critic = player.critic
        for part in _pieces([*states, *ended]) if critic is not None else []:
            assert critic is not None
            sequences = _sequences(part, world, player.policy.device)
            trunk = player.policy if critic.shares_policy else critic
            found = critic.values(trunk.states(sequences)[sequences.last()]).tolist()
            values |= dict(zip(part, found, strict=True))
    return _Measured(logprobs, values)


def _sequences(states: Sequence[Ids], world: _World, device: torch.device) -> Sequences:
    return Sequences.of([[*world.prompt, *state] for state in states], [[] for _ in states], device)


def _pieces(states: Sequence[Ids]) -> list[Sequence[Ids]]:
    return [states[start : start + _ROWS_AT_ONCE] for start in range(0, len(states), _ROWS_AT_ONCE)]


def _scores(
    world: _World, row: dict[str, Any], context: Context, section: Ppo, tokenizer: Any, sampling: Sampling
) -> dict[Ids, float]:
    """Score every response, after what is due for a missing end."""
    responses = [
        (*state, token)
        for state in world.states
        for token in world.tokens
        if token in world.ends or len(state) + 1 == world.longest
    ]
    resources = replace(Resources.of(context.recipe), batch_size=section.local_rollout_forward_batch_size)
    if (model := context.parents.get("reward")) is not None:
        resources = replace(resources, reward_model=lambda: context.loader.load_scoring_model(model, tokenizer))
    reward = build_reward(section.rewards, resources)
    raw = reward([make_episode(tokenizer, row, world.prompt, ids, sampling.stop_strings) for ids in responses])
    penalty, fixed = section.missing_eos_penalty, section.missing_eos_score
    return {
        ids: arithmetic.final_score(
            arithmetic.scaled_score(score, 0.0, 1.0, section.score_clip), ids[-1] in world.ends, penalty, fixed
        )
        for ids, score in zip(responses, raw, strict=True)
    }


# ---------------------------------------------------------------- true values


@dataclass(frozen=True)
class _Valued:
    measured: _Measured
    expected: Mapping[Ids, float]


def _with_expected(
    measured: _Measured, reference: _Measured, world: _World, scores: Mapping[Ids, float], section: Ppo
) -> _Valued:
    """Compute the true value of each state: the expected discounted return under the policy, from the ends backwards.

    The reference is the policy before training. Whitened rewards, running
    normalization of scores and a KL coefficient that moves depend on each batch, so no value is the true one.
    """
    expected: dict[Ids, float] = {}
    coefficient = section.kl_coef if ALGORITHMS[section.trains_by].kl_in_reward else 0.0
    if section.whiten_rewards or section.normalize_scores is not None or section.kl_target is not None:
        return _Valued(measured, expected)
    for ids, score in scores.items():  # the state after an end has the score as its reward
        if ids[-1] in world.ends and len(ids) < world.longest:
            expected[ids] = score
    for state in reversed(world.states):
        logp, logq = measured.logprobs[state], reference.logprobs[state]
        p, q = ([row[token] for token in world.tokens] for row in (logp, logq))
        if section.kl_estimator == "exact":
            kl = [sum(math.exp(logp[token]) * (logp[token] - logq[token]) for token in world.tokens)] * len(p)
        else:
            kl = list(arithmetic.kl(p, q, [0.0] * len(p), section.kl_estimator))
        total = 0.0
        for token, chance, cost in zip(world.tokens, p, kl, strict=True):
            following = (*state, token)
            later = section.gamma * expected[following] if following in expected else scores[following]
            total += float(torch.tensor(chance).exp()) * (later - coefficient * float(cost))
        expected[state] = total
    return _Valued(measured, expected)


def _node(
    ids: Ids, world: _World, scores: Mapping[Ids, float], sides: Mapping[str, _Valued], texts: Mapping[int, str]
) -> Node:
    def side(name: str) -> Side:
        valued = sides[name]
        chance = valued.measured.logprobs[ids[:-1]][ids[-1]] if ids else 0.0
        return Side(
            probability=float(torch.tensor(chance, dtype=torch.float64).exp()),
            value=valued.measured.values.get(ids),
            expected=valued.expected.get(ids),
        )

    return Node(
        ids=ids,
        texts=tuple(texts[token] for token in ids),
        ended=bool(ids) and ids[-1] in world.ends,
        score=scores.get(ids),
        before=side("before"),
        after=side("after"),
    )
