"""Score responses with reward models: a scalar head on the policy's ids or on text, or a classifier's log-odds.

A text that is longer than the reward model's context loses its beginning, so that the response is read whole. A warning
says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder
from rlhfctl.models.architecture import backbone, context_of
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.processes import Processes
from rlhfctl.models.scoring import score_rows
from rlhfctl.rewards.episode import Episode, RewardFunction

Say = Callable[[str], None]


def _quiet(sentence: str) -> None:
    pass


class _Context:
    """Cut the beginning of sequences that are longer than a model's context, and warn the first time."""

    def __init__(self, model: nn.Module, say: Say) -> None:
        self.limit = context_of(backbone(model).config)
        self.say = say
        self.warned = False

    def fitted(self, rows: list[list[int]]) -> list[list[int]]:
        limit = self.limit
        if limit is None or all(len(row) <= limit for row in rows):
            return rows
        if not self.warned:
            self.warned = True
            long = [len(row) for row in rows if len(row) > limit]
            self.say(
                f"{len(long)} of {len(rows)} texts are longer than the {limit} tokens that the reward model reads "
                f"(longest: {max(long)}): their beginning is cut"
            )
        return [row[-limit:] for row in rows]


def in_shares(scorer: RewardFunction, processes: Processes) -> RewardFunction:
    """Divide the episodes of each call over the processes; all get every score. `scorer` itself with one process."""
    if processes.count == 1:
        return scorer
    return lambda episodes: processes.over(episodes, scorer)


class ModelReward:
    """Score the policy's ids: the reward model must share the policy's tokenizer, which the hand-over checks."""

    def __init__(self, model: nn.Module, pad_token_id: int, batch_size: int = 64, say: Say = _quiet) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size
        self.context = _Context(model, say)

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        rows = self.context.fitted([[*episode.prompt_ids, *episode.response_ids] for episode in episodes])
        return score_rows(self.model, rows, self.pad_token_id, batch_size=self.batch_size)


class TextModelReward:
    """Score text: for a reward model that has its own tokenizer (and chat template).

    Each response ends with the end token that this model was trained on, whether or not the policy ended it.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64, say: Say = _quiet
    ) -> None:
        self.model = model
        self.encoder = Encoder(tokenizer)
        self.batch_size = batch_size
        self.context = _Context(model, say)

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        rows = []
        for episode in episodes:
            prompt, response = self.encoder.pair(episode.prompt, episode.completion, episode.row.get("tools"))
            rows.append([*prompt, *response])
        pad = self.encoder.tokenizer.pad_token_id
        fitted = self.context.fitted(rows)
        return score_rows(self.model, fitted, pad if pad is not None else 0, batch_size=self.batch_size)


class ClassifierReward:
    """Score text with a sequence classifier, which has its own tokenizer."""

    def __init__(self, classifier: Classifier, batch_size: int = 64) -> None:
        self.classifier = classifier
        self.batch_size = batch_size

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        pairs = [(episode.prompt, episode.completion) for episode in episodes]
        return self.classifier.scores(pairs, self.batch_size)
