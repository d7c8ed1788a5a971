"""Score a response as a prompt: a frozen language model classifies labelled examples with it.

The reward of a prompt z on an example (x, c) is RLPrompt's (Deng et al. 2022, "RLPrompt: Optimizing Discrete Text
Prompts with Reinforcement Learning", arXiv 2205.12548, section 3.1): with the gap

    Gap = P_z(c | x) - max over c' != c of P_z(c' | x)

it is Gap times `correct_coef` (their lambda_2, 200) where the gap is positive, and Gap times `incorrect_coef` (their
lambda_1, 180) elsewhere. PPO may train on its z-score per example over the batch's prompts (their section 2.3).

Every (prompt, example) is asked once and kept. In PPO a prompt is asked together with all examples of its batch, in an
order of their own: a resumed run, whose memory is empty, and several processes then get the same bits. Leaves out the
model and its template (models/label_words.py).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rlhfctl.data.labelled import label_of
from rlhfctl.data.splits import prompt_key
from rlhfctl.events import Work
from rlhfctl.models.label_words import LabelWords
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import REPLACED
from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.rewards.metric import text_of
from rlhfctl.rewards.weighted import WeightedReward

K = TypeVar("K")
V = TypeVar("V")
Example = tuple[str, int]
"""The text of an example, and the number of its label."""
KEPT = 1 << 20  # (prompt, example) pairs whose probabilities are kept, the newest ones
_EPSILON = 1e-4  # beside the standard deviation of a z-score, as in the paper's code


def piecewise(gap: float, correct_coef: float, incorrect_coef: float) -> float:
    """Compute RLPrompt's reward of one example from its gap."""
    return gap * (correct_coef if gap > 0 else incorrect_coef)


def zscores(rewards: Sequence[float]) -> list[float]:
    """Compute the z-scores of one example's rewards over the prompts of a batch; 0 where all prompts are equal."""
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(reward - mean) / (spread + _EPSILON) for reward in rewards]


class PromptScores:
    """Compute and keep the gap of each (prompt, example) under a frozen model.

    `section`: how an example's row is read, and the factors of the reward. `words`: the model. `processes`: those that
    ask for the same pairs; they divide the pairs that are not known yet, and all get every answer.
    """

    def __init__(self, section: PromptedClassifier, words: LabelWords, processes: Processes = ALONE) -> None:
        self.section = section
        self.words = words
        self.processes = processes
        self._known: dict[tuple[str, str], Sequence[float]] = {}
        self._rows: dict[tuple[str, tuple[str, ...]], dict[str, Sequence[float]]] = {}

    def example_of(self, row: Mapping[str, Any]) -> Example:
        """Read the example of a row: its own prompt, and its label. DataError if it has no label that is known."""
        return text_of(row.get(REPLACED, row["prompt"])), self.words.labels.index(label_of(row, self.section))

    def gaps(self, pairs: Sequence[tuple[str, Example]]) -> list[float]:
        """Compute the gap of each (prompt, example): from -1 to 1, positive where the model is right."""
        asked = dict.fromkeys((prompt, text) for prompt, (text, _) in pairs)
        missing = [pair for pair in asked if pair not in self._known]
        found = self.processes.over(missing, self.words)
        here = {pair: self._known[pair] for pair in asked if pair in self._known}
        here |= dict(zip(missing, found, strict=True))
        _remember(self._known, here, KEPT)
        return [_gap(here[prompt, text], label) for prompt, (text, label) in pairs]

    def rewards(self, pairs: Sequence[tuple[str, Example]]) -> list[float]:
        """Compute the reward of each (prompt, example)."""
        factors = self.section.correct_coef, self.section.incorrect_coef
        return [piecewise(gap, *factors) for gap in self.gaps(pairs)]

    def grids(self, groups: Sequence[tuple[Sequence[str], Sequence[Example]]]) -> list[list[list[float]]]:
        """Compute, for each group, the rewards (prompts, examples) of each of its prompts with each of its examples."""
        texts = [tuple(sorted({text for text, _ in examples})) for _, examples in groups]
        asked = dict.fromkeys(
            (prompt, of) for (prompts, _), of in zip(groups, texts, strict=True) for prompt in prompts
        )
        missing = [row for row in asked if row not in self._rows]
        found = self.processes.over(missing, self._ask)
        here = {row: self._rows[row] for row in asked if row in self._rows} | dict(zip(missing, found, strict=True))
        _remember(self._rows, here, max(1, KEPT // max(map(len, texts), default=1)))
        factors = self.section.correct_coef, self.section.incorrect_coef
        return [
            [
                [piecewise(_gap(here[prompt, of][text], label), *factors) for text, label in examples]
                for prompt in prompts
            ]
            for (prompts, examples), of in zip(groups, texts, strict=True)
        ]

    def _ask(self, rows: Sequence[tuple[str, tuple[str, ...]]]) -> list[dict[str, Sequence[float]]]:
        """Ask the model about each prompt with its texts, one prompt after the other."""
        asked = Work("asking the frozen model", len(rows), "prompt").through(rows)
        return [dict(zip(texts, self.words([(one, text) for text in texts]), strict=True)) for one, texts in asked]


def _remember(known: dict[K, V], new: Mapping[K, V], most: int) -> None:
    """Add new answers, and forget the oldest of more than `most`."""
    known |= new
    for old in list(itertools.islice(known, max(0, len(known) - most))):
        del known[old]


def _gap(probabilities: Sequence[float], label: int) -> float:
    return probabilities[label] - max(one for index, one in enumerate(probabilities) if index != label)


class PromptedClassifierReward:
    """Score each prompt by its mean reward over the batch's examples.

    Episodes whose prompts for the policy are equal (all, with `data.prompts.fixed_prompt`) share their rows' examples.
    `zscore`: whether each example's rewards are z-scored over these episodes first. `logged`, of the last call:
    `accuracy`, the share of the examples that each prompt classifies rightly, and `prompt_reward`, its mean reward
    without z-scores.
    """

    def __init__(self, scores: PromptScores, *, zscore: bool) -> None:
        self.scores = scores
        self.zscore = zscore
        self.logged: dict[str, list[float]] = {}

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        groups: dict[str, list[int]] = {}
        for place, episode in enumerate(episodes):
            groups.setdefault(prompt_key(episode.prompt), []).append(place)
        grids = self.scores.grids([self._group([episodes[place] for place in places]) for places in groups.values()])
        scores, right, plain = ([0.0] * len(episodes) for _ in range(3))
        for places, rewards in zip(groups.values(), grids, strict=True):
            for place, row in zip(places, rewards, strict=True):
                right[place], plain[place] = statistics.fmean(reward > 0 for reward in row), statistics.fmean(row)
            if self.zscore:
                rewards = list(zip(*map(zscores, zip(*rewards, strict=True)), strict=True))  # type: ignore[arg-type]
            for place, row in zip(places, rewards, strict=True):
                scores[place] = statistics.fmean(row)
        self.logged = {"accuracy": right, "prompt_reward": plain}
        return scores

    def _group(self, episodes: Sequence[Episode]) -> tuple[list[str], list[Example]]:
        """Return the prompt of each episode, and the different examples of their rows."""
        examples = list(dict.fromkeys(self.scores.example_of(episode.row) for episode in episodes))
        return [prompt_of(episode) for episode in episodes], examples


class OwnExample:
    """Judge a prompt by the example of its own row alone: its reward, or with `correct` 1 if it is classified rightly.

    The mean of `correct` over rows is the accuracy.
    """

    def __init__(self, scores: PromptScores, *, correct: bool) -> None:
        self.scores = scores
        self.correct = correct

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        rewards = self.scores.rewards([(prompt_of(one), self.scores.example_of(one.row)) for one in episodes])
        return [float(reward > 0) for reward in rewards] if self.correct else rewards


def prompt_of(episode: Episode) -> str:
    """Return the prompt that a response is: its text without the white space around it."""
    return text_of(episode.completion).strip()


def unnormalized(reward: RewardFunction) -> RewardFunction:
    """Return the same reward without z-scores, which compare the prompts of one batch: for evaluations."""
    if isinstance(reward, PromptedClassifierReward):
        return PromptedClassifierReward(reward.scores, zscore=False)
    scorers = reward.scorers if isinstance(reward, WeightedReward) else {}
    if any(isinstance(scorer, PromptedClassifierReward) for scorer, _ in scorers.values()):
        assert isinstance(reward, WeightedReward)
        plain = {name: (unnormalized(scorer), weight) for name, (scorer, weight) in scorers.items()}
        return WeightedReward(plain, reward.unscored.say)
    return reward


def scores_in(scorers: Mapping[str, RewardFunction]) -> PromptScores | None:
    """Find the prompted classifier among the judges of a comparison; None without one."""
    judges = (scorer for scorer in scorers.values() if isinstance(scorer, OwnExample))
    return next((judge.scores for judge in judges), None)
