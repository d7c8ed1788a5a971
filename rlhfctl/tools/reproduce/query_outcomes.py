"""Read the runs of `rlhfctl reproduce christiano`; judge whether active choice needs fewer labels than random order.

The accuracy of a reward model (the mean of its members) is the share of held-out pairs that it orders as gold does;
pairs that gold ties do not count.
How many labels an order needs for an accuracy is interpolated between the rounds, along the logarithm of the labels.
Both orders are compared at the highest accuracy that both reach, so that each of them needs a number of labels that is
known. Reads the items and rankings of the rounds, and the scores that queries.py wrote. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np

from rlhfctl.artifacts import load_artifact, read_json
from rlhfctl.data.text_files import read_jsonl
from rlhfctl.labels.items import Item, read_items
from rlhfctl.rewards.ensemble import aggregated, preference_variance
from rlhfctl.tools.reproduce.queries import (
    ACTIVE,
    ORDERS,
    RANDOM,
    SCORES,
    Sizes,
    heldout_file,
    stage_folder,
    texts,
)
from rlhfctl.tools.reproduce.statements import Statement, above, judged, statement, within
from rlhfctl.world import gold

SAME_SHARE = 5.0
"""Difference of two shares of questions, in percentage points, below which they are said to be equal."""


@dataclass(frozen=True)
class Asked:
    """What an order asked after the first round, and what it was told; shares of these questions.

    `tied`: gold is the same for both responses, so that the answer trains nothing. `wrong`: of those that gold does not
    tie, the share whose answer is against gold. `broken`: one response at least has the lowest gold, 0. `gap`: mean
    distance of the responses' gold, ties included. `repeated`: the prompt was asked before.
    """

    tied: float
    wrong: float
    broken: float
    gap: float
    repeated: float


@dataclass(frozen=True)
class Seed:
    """What one seed gave. `budgets`: questions asked after each round. `accuracy`: order -> held-out accuracy there.

    `finds`: order -> how well the members' disagreement finds wrongly ordered pairs there (see `finding`). `pairs`:
    held-out pairs that gold does not tie.
    """

    seed: int
    budgets: list[int]
    accuracy: dict[str, list[float]]
    finds: dict[str, list[float]]
    asked: dict[str, Asked]
    pairs: int

    @property
    def level(self) -> float:
        """The highest accuracy that both orders reach."""
        return min(max(self.accuracy[order]) for order in ORDERS)

    def needed(self, order: str) -> float:
        """The number of labels with which an order first reaches that accuracy."""
        return labels_needed(self.budgets, self.accuracy[order], self.level)

    @property
    def saved(self) -> float:
        """How many times random order needs twice the labels of active choice: log2 of the ratio, below 0 if fewer."""
        return math.log2(self.needed(RANDOM) / self.needed(ACTIVE))

    @property
    def gained(self) -> float:
        """Accuracy of active choice less that of random order, the mean over all rounds after the first."""
        return fmean(self.difference(place) for place in range(1, len(self.budgets)))

    def difference(self, place: int) -> float:
        """Accuracy of active choice less that of random order after a round, counted from 0."""
        return self.accuracy[ACTIVE][place] - self.accuracy[RANDOM][place]


def labels_needed(budgets: Sequence[int], accuracy: Sequence[float], level: float) -> float:
    """Interpolate the number of labels at which accuracy first reaches `level`, along the logarithm of the labels.

    It is the first budget if accuracy is there at once. ValueError if it never is.
    """
    for place, reached in enumerate(accuracy):
        if reached < level:
            continue
        if place == 0:
            return float(budgets[0])
        before = accuracy[place - 1]
        share = (level - before) / (reached - before)
        return float(budgets[place - 1] * (budgets[place] / budgets[place - 1]) ** share)
    raise ValueError(f"an accuracy of {level} is never reached: the highest is {max(accuracy)}")


def read_seed(seed: int, folder: Path, sizes: Sizes) -> Seed:
    """Read the complete runs of one seed; `folder`: that of the seed."""
    items = read_items(heldout_file(folder))
    true = _gold(items)
    scores = {order: read_json(folder / order / SCORES)["scores"] for order in ORDERS}
    sizes_of = [len(item.responses) for item in items]

    def by_round(number: Callable[[list[list[float]]], float]) -> dict[str, list[float]]:
        return {order: [number(members) for members in of_rounds] for order, of_rounds in scores.items()}

    return Seed(
        seed,
        sizes.budgets,
        by_round(lambda members: agreement(aggregated(members, "mean"), true, sizes_of)),
        by_round(lambda members: finding(members, true, sizes_of)),
        {order: _asked(folder, order, sizes) for order in ORDERS},
        sum(true[a] != true[b] for a, b in _pairs(sizes_of)),
    )


def agreement(scores: Sequence[float], true: Sequence[float], sizes: Sequence[int]) -> float:
    """Compute the share of pairs that two scorers order alike; a pair that `scores` ties counts half.

    `scores`, `true` (responses,): those to one prompt stand together, and `sizes` tells how many. Pairs that `true`
    ties do not count; at least one does.
    """
    found = [
        0.5 if scores[a] == scores[b] else float((scores[a] > scores[b]) == (true[a] > true[b]))
        for a, b in _pairs(sizes)
        if true[a] != true[b]
    ]
    return fmean(found)


def finding(members: Sequence[Sequence[float]], true: Sequence[float], sizes: Sequence[int]) -> float:
    """Compute how well disagreement finds mistakes: the chance that members differ more on a pair that is ordered
    wrongly than on one that is ordered rightly, by their mean. 0.5 says that it finds none; NaN without one of both.

    `members` (members, responses), `true` and `sizes` as in `agreement`. They differ by `preference_variance`, which
    active choice uses.
    """
    mean = aggregated(members, "mean")
    by_outcome: dict[bool, list[float]] = {True: [], False: []}
    for a, b in _pairs(sizes):
        if true[a] != true[b] and mean[a] != mean[b]:
            differ = preference_variance([[one[a], one[b]] for one in members])
            by_outcome[(mean[a] > mean[b]) == (true[a] > true[b])].append(differ)
    return area_under_curve(by_outcome[False], by_outcome[True])


def area_under_curve(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Compute the share of pairs of one of each in which that of `higher` is higher; an equal pair counts half."""
    if not higher or not lower:
        return math.nan
    array = np.sort(np.asarray(lower))
    below, up_to = (np.searchsorted(array, np.asarray(higher), side) for side in ("left", "right"))
    return float(np.mean(below + up_to) / (2 * array.size))


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """List the places of all pairs of responses to one prompt."""
    found, start = list[tuple[int, int]](), 0
    for size in sizes:
        found += combinations(range(start, start + size), 2)
        start += size
    return found


def _gold(items: Sequence[Item]) -> list[float]:
    pairs = texts(items)
    return list(gold.score([prompt for prompt, _ in pairs], [response for _, response in pairs]))


def _asked(folder: Path, order: str, sizes: Sizes) -> Asked:
    """Measure what one order asked after the first round."""
    rounds = range(1, len(sizes.questions) + 1)
    by_round = [read_items(load_artifact(stage_folder(folder, order, one, "sample")).part("items")) for one in rounds]
    last = load_artifact(stage_folder(folder, order, rounds[-1], "label"))
    answers = {row["item"]: row["ranks"] for row in read_jsonl(last.part("data"))[0]}
    first, later = by_round[0], [item for items in by_round[1:] for item in items]
    return describe(later, answers, {str(item.prompt) for item in first})


def describe(items: Sequence[Item], answers: dict[str, list[int]], before: set[str]) -> Asked:
    """Measure questions of two responses each. `answers`: ranks by item, 0 for the better; a tie has none.

    `before`: prompts that were asked earlier.
    """
    true, seen, repeated = _gold(items), set(before), 0
    gaps, wrong = [], []
    for place, item in enumerate(items):
        one, other = true[2 * place : 2 * place + 2]
        gaps.append(abs(one - other))
        if item.id in answers and one != other:
            first, second = answers[item.id]
            wrong.append(float((first < second) != (one > other)))
        repeated += str(item.prompt) in seen
        seen.add(str(item.prompt))
    broken = [min(true[2 * place : 2 * place + 2]) == 0 for place in range(len(items))]
    return Asked(
        tied=fmean(float(gap == 0) for gap in gaps),
        wrong=fmean(wrong) if wrong else math.nan,
        broken=fmean(map(float, broken)),
        gap=fmean(gaps),
        repeated=repeated / len(items),
    )


def check(seeds: Sequence[Seed]) -> list[Statement]:
    """Check the statements on at least two seeds; accuracies and shares are in percentage points."""

    def differ(number: Callable[[Asked], float]) -> list[float]:
        return [100 * (number(seed.asked[ACTIVE]) - number(seed.asked[RANDOM])) for seed in seeds]

    return [
        statement(
            "fewer labels",
            "active choice reaches the same held-out accuracy with fewer labels than random order",
            [
                judged(
                    "labels, random over active, in doublings",
                    [seed.saved for seed in seeds],
                    above(0),
                )
            ],
        ),
        statement(
            "more accuracy",
            "with the same number of labels active choice gives a more accurate reward model",
            [
                judged(
                    "points after the first round, active less random",
                    [100 * seed.gained for seed in seeds],
                    above(0),
                ),
                judged(
                    "points with all labels, active less random",
                    [100 * seed.difference(-1) for seed in seeds],
                    above(0),
                ),
            ],
        ),
        statement(
            "finds errors",
            "before the last round members differ more on pairs that they order wrongly",
            [
                judged(
                    f"a wrong pair differs more than a right one, {order}, %",
                    [100 * fmean(seed.finds[order][:-1]) for seed in seeds],
                    above(50),
                )
                for order in ORDERS
            ],
        ),
        statement(
            "not noisier",
            "what active choice asks is as often answered wrongly, or not at all, as what random order asks",
            [
                judged(
                    "points of wrong answers, active less random", differ(lambda one: one.wrong), within(SAME_SHARE)
                ),
                judged("points of ties, active less random", differ(lambda one: one.tied), within(SAME_SHARE)),
            ],
        ),
        statement(
            "closer",
            "active choice asks about responses that lie closer together in gold than those of random order",
            [
                judged(
                    "mean gap of gold in hundredths, random less active",
                    [-one for one in differ(lambda one: one.gap)],
                    above(0),
                )
            ],
        ),
    ]
