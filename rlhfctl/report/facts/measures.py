"""Compute what the report shows beside recorded numbers: thinned curves, histograms, groups, effects of length, costs.

Pure functions of the records in records.py. Random ones (intervals by bootstrap) have a fixed seed. The unit of a
win rate is the prompt: a prompt's value is the mean over its samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlhfctl.report.facts.records import Pair, Point, Run, Stage
from rlhfctl.stats.correlation import spearman
from rlhfctl.stats.paired import paired_differences, win_rate
from rlhfctl.stats.resampling import bootstrap_mean_ci

MOST_POINTS = 250
"""Points of one curve on the page: more than a screen can show apart."""

BINS = 30
_LENGTH_BINS = 8
_RESAMPLES = 2000
_LEAST_OF_A_GROUP = 5  # prompts, for an interval that says something


# ---------------------------------------------------------------- curves


@dataclass(frozen=True)
class Thinned:
    """A point of a curve: the mean of `count` neighbouring reports, the last of them at `step`, and their range."""

    step: int
    mean: float
    low: float
    high: float
    count: int


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Thinned]:
    """Merge equally many neighbouring points until at most `most` are left; nothing is left out or smoothed away."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    each = -(-len(finite) // most) if finite else 1
    merged = []
    for start in range(0, len(finite), each):
        part = finite[start : start + each]
        values = [value for _, value in part]
        mean = values[0] + sum(value - values[0] for value in values) / len(values)
        merged.append(Thinned(part[-1][0], mean, min(values), max(values), len(part)))
    return merged


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Bin:
    """A range of scores, with the share of each side's responses in it."""

    low: float
    high: float
    policy: float
    reference: float


def score_bins(pairs: Iterable[Pair], judge: str) -> list[Bin]:
    """Count both sides' scores in equal bins over their common range; empty without scores."""
    scored = [pair for pair in pairs if pair.change(judge) is not None]
    policy = np.array([pair.policy_scores[judge] for pair in scored])
    reference = np.array([pair.reference_scores[judge] for pair in scored])
    if not scored:
        return []
    both = np.concatenate([policy, reference])
    values = np.unique(both)
    edges = np.histogram_bin_edges(both, bins=min(BINS, max(1, 2 * len(values) - 1)))
    first, second = (np.histogram(side, bins=edges)[0] / len(side) for side in (policy, reference))
    return [
        Bin(float(low), float(high), float(p), float(r))
        for low, high, p, r in zip(edges[:-1], edges[1:], first, second, strict=True)
    ]


@dataclass(frozen=True)
class PromptResult:
    """One prompt under one judge: mean scores over its samples."""

    prompt: str
    policy: float
    reference: float
    source: str

    @property
    def length(self) -> int:
        """Characters of the prompt: words cannot be counted alike in all languages."""
        return len(self.prompt)


def by_prompt(pairs: Iterable[Pair], judge: str) -> list[PromptResult]:
    """Average each prompt's samples; equal prompts of two seeds are two results."""
    groups: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.change(judge) is not None:
            groups[pair.seed, pair.prompt].append(pair)
    return [
        PromptResult(
            prompt,
            float(np.mean([pair.policy_scores[judge] for pair in group])),
            float(np.mean([pair.reference_scores[judge] for pair in group])),
            group[0].source,
        )
        for (_, prompt), group in groups.items()
    ]


@dataclass(frozen=True)
class Group:
    """The win rate on a group of prompts; the interval is None where the group is too small for one."""

    name: str
    prompts: int
    win_rate: float
    interval: tuple[float, float] | None


def prompt_groups(results: Sequence[PromptResult]) -> list[tuple[str, list[Group]]]:
    """Return win rates by data source and by prompt length, each under its heading; a single group is left out."""
    found = []
    sources = sorted({result.source for result in results})
    if len(sources) > 1:
        found.append(("data source", _groups(results, lambda result: result.source or "not named", None)))
    lengths = sorted(result.length for result in results)
    if lengths and lengths[0] != lengths[-1]:
        low, high = lengths[(len(lengths) - 1) // 3], lengths[2 * (len(lengths) - 1) // 3]
        names = (f"up to {low} characters", f"{low + 1} to {high} characters", f"more than {high} characters")

        def name_of(result: PromptResult) -> str:
            return names[0] if result.length <= low else names[1] if result.length <= high else names[2]

        groups = _groups(results, name_of, names)
        if len(groups) > 1:
            found.append(("length of the prompt", groups))
    return found


def _groups(
    results: Sequence[PromptResult], name_of: Callable[[PromptResult], str], order: Sequence[str] | None
) -> list[Group]:
    by_name: dict[str, list[PromptResult]] = defaultdict(list)
    for result in results:
        by_name[name_of(result)].append(result)
    names = [name for name in order or sorted(by_name) if name in by_name]
    return [_group(name, by_name[name]) for name in names]


def _group(name: str, results: Sequence[PromptResult]) -> Group:
    differences = paired_differences([one.policy for one in results], [one.reference for one in results])
    interval = None
    if len(results) >= _LEAST_OF_A_GROUP:
        wins = (np.sign(differences) + 1) / 2
        found = bootstrap_mean_ci(wins, samples=_RESAMPLES, seed=0)
        interval = (found.low, found.high)
    return Group(name, len(results), win_rate(differences), interval)


def changed_most(pairs: Iterable[Pair], judge: str, count: int) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs with the largest gains and with the largest losses, one per prompt, the largest first."""
    changes = sorted(((change, pair) for pair in pairs if (change := pair.change(judge))), key=lambda one: -one[0])
    gains = [pair for change, pair in changes if change > 0]
    losses = [pair for change, pair in reversed(changes) if change < 0]
    return _of_each_prompt(gains, count), _of_each_prompt(losses, count)


def _of_each_prompt(pairs: Iterable[Pair], count: int) -> list[Pair]:
    found: dict[str, Pair] = {}
    for pair in pairs:
        if len(found) == count:
            break
        found.setdefault(pair.prompt, pair)
    return list(found.values())


def share_below(pairs: Iterable[Pair], judge: str) -> float | None:
    """Return the share of the reference's responses that score below the policy's mean response."""
    scored = [pair for pair in pairs if pair.change(judge) is not None]
    if not scored:
        return None
    mean = np.mean([pair.policy_scores[judge] for pair in scored])
    return float(np.mean([pair.reference_scores[judge] < mean for pair in scored]))


def reference_std(pairs: Iterable[Pair], judge: str) -> float | None:
    """Return the standard deviation of the reference's scores: the unit in which scorers can be drawn together."""
    scores = [pair.reference_scores[judge] for pair in pairs if judge in pair.reference_scores]
    return float(np.std(scores)) or None if len(scores) > 1 else None


# ---------------------------------------------------------------- length


@dataclass(frozen=True)
class LengthEffect:
    """How a judge's scores go with length, and who wins where the policy's response is longer or shorter."""

    correlation: float | None  # Spearman's, over the reference's responses
    longer: Group | None
    shorter: Group | None
    curve: Sequence[tuple[str, float, float, int]]  # side, length, mean score, responses


def length_effect(pairs: Sequence[Pair], judge: str) -> LengthEffect | None:
    """Measure how scores go with length; None where no response has a score."""
    scored = [pair for pair in pairs if pair.change(judge) is not None]
    if not scored:
        return None
    curve = [
        (side, *point)
        for side, lengths, scores in (
            ("policy", [p.policy_length for p in scored], [p.policy_scores[judge] for p in scored]),
            ("reference", [p.reference_length for p in scored], [p.reference_scores[judge] for p in scored]),
        )
        for point in _mean_by_length(np.array(lengths), np.array(scores))
    ]
    lengths, scores = [p.reference_length for p in scored], [p.reference_scores[judge] for p in scored]
    longer = [pair for pair in scored if pair.policy_length > pair.reference_length]
    shorter = [pair for pair in scored if pair.policy_length < pair.reference_length]
    return LengthEffect(
        correlation=spearman(lengths, scores),
        longer=_group("policy's response is longer", by_prompt(longer, judge)) if longer else None,
        shorter=_group("policy's response is shorter", by_prompt(shorter, judge)) if shorter else None,
        curve=curve,
    )


def _mean_by_length(lengths: np.ndarray, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return mean length, mean score and count of up to `_LENGTH_BINS` groups of equally many responses."""
    order = np.argsort(lengths, kind="stable")
    parts = np.array_split(order, min(_LENGTH_BINS, len(np.unique(lengths))))
    return [(float(lengths[part].mean()), float(scores[part].mean()), len(part)) for part in parts if len(part)]


# ---------------------------------------------------------------- costs


@dataclass(frozen=True)
class Cost:
    """What a stage took; None where it is not known."""

    stage: str
    seconds: float | None
    peak_memory: int | None  # bytes
    tokens: float | None  # read in training, or sampled


def cost_of(stage: Stage) -> Cost:
    """Return the cost of one stage."""
    return Cost(stage.name, stage.seconds, stage.peak_memory, _tokens(stage))


def _tokens(stage: Stage) -> float | None:
    """Return the tokens that training read, or in PPO the tokens that the policy sampled for training."""
    if stage.kind == "ppo":
        updates, episodes = stage.settings.get("updates"), stage.settings.get("total_episodes")
        lengths = [value for _, value in stage.curves.get("length", ()) if math.isfinite(value)]
        return sum(lengths) * episodes / updates if updates and episodes and lengths else None
    counted = stage.curves.get("num_tokens")
    found = counted[-1][1] if counted else stage.manifest.metrics.get("num_tokens") if stage.manifest else None
    return found if found is not None and math.isfinite(found) else None


def seconds_of(run: Run) -> float | None:
    """Return the time of all complete stages together, in seconds."""
    known = [stage.seconds for stage in run.stages if stage.seconds is not None]
    return sum(known) if known else None


def tokens_sampled(run: Run) -> float | None:
    """Return how many tokens PPO sampled for training, over all rounds and seeds."""
    known = [tokens for stage in run.of_kind("ppo") if (tokens := _tokens(stage)) is not None]
    return sum(known) if known else None


def peak_memory(run: Run) -> int | None:
    """Return the most bytes that any stage held."""
    return max((stage.peak_memory for stage in run.stages if stage.peak_memory is not None), default=None)
