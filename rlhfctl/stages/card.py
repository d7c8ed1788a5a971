"""Examine the reward before PPO trains against it: its card, with flags that say in sentences what is wrong.

    held-out pairs ──┬─▶ accuracy, calibration, margins, length ────────────────────────┐
                     └─▶ altered answers ─▶ probes ─────────────────────────────────────┼─▶ card.json ─▶ flags, gate
    base* ─▶ pool of samples of the eval prompts ─▶ best-of-n curves, agreement ────────┘

Reads base*, the reward (a model of this run, one from elsewhere, or a Python function), the held-out reward model where
there is one, the held-out pairs and the eval prompts; never a test prompt. Writes card.json and pool.jsonl. Trains
nothing. The true preference of the built-in task (gold) is shown, and decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhfctl import fs, reward_card
from rlhfctl.artifacts import Artifact
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.splits import prompt_key
from rlhfctl.data.types import PreferenceGroup
from rlhfctl.errors import DataError
from rlhfctl.events import Metrics, Work, transcript
from rlhfctl.models import build, devices, special_tokens
from rlhfctl.recipe.schema import Card
from rlhfctl.rewards.episode import Episode
from rlhfctl.stages import altered, card_numbers, card_scorers, pool
from rlhfctl.stages.card_numbers import PairScores
from rlhfctl.stages.card_scorers import GOLD, HELDOUT, PROXY
from rlhfctl.stages.context import Context, PublishedByFirst

PROBE_ROWS = 128  # chosen answers that are altered, one per prompt
_BATCH = 64  # responses per forward without a ppo section


def run(section: Card, ctx: Context) -> Artifact:
    """Sample, score, measure, and write the card."""
    if not ctx.first:
        raise PublishedByFirst  # one process is enough, and two would write the same blocks of the pool
    # 1. Pairs and altered answers as ids; the pool of samples.
    base = ctx.loader.load_base(ctx.parents["base"], to_train=True)  # quantized if PPO's is
    build.to_device(base.model)
    tokenizer = base.tokenizer
    special_tokens.mask_pad(base.model, tokenizer.pad_token_id)
    groups: list[PreferenceGroup] = ctx.data["preferences"].split.heldout
    pairs = Pairs.of(groups, Encoder(tokenizer))
    probes = _probes(pairs, Encoder(tokenizer), ctx)
    samples = pool.draw(section, base, ctx)
    del base
    devices.release_memory()

    # 2. Scores: scorer -> those of the pairs' responses, of the altered answers, of the pool.
    batch = ctx.recipe.ppo.local_rollout_forward_batch_size if ctx.recipe.ppo is not None else _BATCH
    makers = card_scorers.model_scorers(ctx, tokenizer, batch)
    parts = [pairs.episodes, *(probe.episodes for probe in probes.values())]
    of_proxy = card_scorers.scored(PROXY, makers[PROXY], [samples.flat, *parts])
    in_pool, in_pairs = {PROXY: of_proxy[0]}, {PROXY: of_proxy[1]}
    if HELDOUT in makers:
        in_pool[HELDOUT], in_pairs[HELDOUT] = card_scorers.scored(
            HELDOUT, makers[HELDOUT], [samples.flat, pairs.episodes]
        )
    if samples.source is not None and samples.source.has_gold:
        in_pool[GOLD] = card_scorers.score_gold(samples.flat)
    if (source := ctx.recipe.data.preferences) is not None and source.has_gold:
        in_pairs[GOLD] = card_scorers.score_gold(pairs.episodes)

    # 3. Numbers, then what they amount to.
    by_prompt = {name: np.asarray(scores).reshape(-1, section.samples) for name, scores in in_pool.items()}
    scored = {name: pairs.scored(scores) for name, scores in in_pairs.items()}
    seed, reward = ctx.recipe.seed, ctx.recipe.reward
    assert reward is not None
    report: dict[str, Any] = {
        "prompts": len({prompt_key(group.prompt) for group in groups}),
        "pairs": len(pairs.comparisons),
        "base_is_policys": card_scorers.base_is_policys(ctx, tokenizer),
        "accuracy": card_numbers.accuracy_of(scored[PROXY]),
        # The scores of a function are in no unit of which a sigmoid would make probabilities.
        "calibration": card_numbers.calibration_of(scored[PROXY]) if reward.has_model else None,
        "margins": card_numbers.margins_of(scored[PROXY], seed),
        "length": card_numbers.length_of(scored[PROXY]),
        "agreement": {
            name: card_numbers.agreement_of(scored[PROXY], scored.get(name), by_prompt[PROXY], by_prompt.get(name))
            for name in (HELDOUT, GOLD)
            if name in scored or name in by_prompt
        },
        "probes": [
            card_numbers.probe_of(name, [of_proxy[1][index] for index in probe.originals], scores)
            for (name, probe), scores in zip(probes.items(), of_proxy[2:], strict=True)
        ],
        "optimization": card_numbers.curves_of(by_prompt, PROXY, HELDOUT, GOLD, seed),
    }
    report["flags"] = reward_card.flags(report)
    report["gate"] = reward_card.decided(report, reward.gate)
    for flag in report["flags"]:
        ctx.warn(f"{flag['name']}: {flag['message']}")

    # 4. Write.
    rows = _pool_rows(samples, by_prompt)
    fs.write_atomic(ctx.folder / "pool.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    fs.write_json(ctx.folder / "card.json", report)
    metrics = card_numbers.metrics_of(report)
    ctx.emit(Metrics(stage=ctx.name, step=0, values=metrics, split="heldout"))
    return ctx.publish(section.model_dump(mode="json"), {"card": "card.json", "pool": "pool.jsonl"}, metrics=metrics)


# ---------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pairs:
    """The responses of held-out pairs, each once, and the pairs as (chosen, rejected) indices of them."""

    episodes: list[Episode]
    comparisons: list[tuple[int, int]]

    @classmethod
    def of(cls, groups: Sequence[PreferenceGroup], encoder: Encoder) -> Pairs:
        """Encode the responses that are compared as the reward model was trained on them."""
        episodes: list[Episode] = []
        comparisons: list[tuple[int, int]] = []
        for group in Work("encoding held-out pairs", len(groups), "row").through(groups):
            used = sorted({index for comparison in group.comparisons for index in comparison})
            place = {index: len(episodes) + number for number, index in enumerate(used)}
            episodes += [_episode(group, group.responses[index], encoder) for index in used]
            comparisons += [(place[better], place[worse]) for better, worse in group.comparisons]
        return cls(episodes, comparisons)

    def scored(self, scores: Sequence[float]) -> PairScores:
        """Sort the responses' scores and lengths into pairs."""
        values = np.asarray(scores, dtype=np.float64)
        better, worse = (np.array([pair[side] for pair in self.comparisons]) for side in (0, 1))
        prompts = [prompt_key(self.episodes[index].prompt) for index in better]
        texts = [transcript(episode.completion) for episode in self.episodes]
        units = {
            "tokens": [len(episode.response_ids) for episode in self.episodes],
            "words": [len(text.split()) for text in texts],
            "characters": [len(text) for text in texts],
        }
        lengths = {unit: np.asarray(counts, dtype=np.float64) for unit, counts in units.items()}
        sides = {unit: (counts[better], counts[worse]) for unit, counts in lengths.items()}
        return PairScores(prompts, values[better], values[worse], sides)


def _episode(group: PreferenceGroup, response: Any, encoder: Encoder) -> Episode:
    prompt_ids, response_ids = encoder.pair(group.prompt, response, group.tools)
    row = {"prompt": group.prompt} | ({} if group.tools is None else {"tools": group.tools})
    return Episode(prompt_ids, response_ids, group.prompt, response, row)


# ---------------------------------------------------------------- probes


@dataclass(frozen=True)
class Probe:
    """Altered answers, and the index of the original of each among the pairs' responses."""

    originals: list[int]
    episodes: list[Episode]


def _probes(pairs: Pairs, encoder: Encoder, ctx: Context) -> dict[str, Probe]:
    """Alter the chosen answer of each prompt. Rows that tokenizer or chat template refuse are left out, and counted."""
    first = {prompt_key(pairs.episodes[better].prompt): better for better, _ in reversed(pairs.comparisons)}
    chosen = sorted(first.values())[:PROBE_ROWS]
    found: dict[str, Probe] = {}
    for name in altered.PROBES:
        probe, refused = Probe([], []), 0
        for index in chosen:
            original = pairs.episodes[index]
            changed = altered.altered(original.prompt, original.completion, name)
            if changed is None:
                continue
            try:
                ids = encoder.pair(original.prompt, changed, original.row.get("tools"))
            except DataError:
                refused += 1
                continue
            probe.originals.append(index)
            probe.episodes.append(Episode(*ids, original.prompt, changed, original.row))
        if refused:
            ctx.warn(f"probe {name}: tokenizer or chat template refuse {refused} of {len(chosen)} altered answers")
        if probe.episodes:
            found[name] = probe
    return found


# ---------------------------------------------------------------- the pool


def _pool_rows(samples: pool.Pool, scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the rows of pool.jsonl: each response with its scores."""
    return [
        {
            "prompt": episode.prompt,
            "sample": number,
            "response": transcript(episode.completion),
            "length": len(episode.response_ids),
            "ended": samples.ended[index][number],
            "scores": {name: float(values[index, number]) for name, values in scores.items()},
        }
        for index, episodes in enumerate(samples.episodes)
        for number, episode in enumerate(episodes)
    ]
