"""A reward model as a scorer: the scalar head's value at the last token of prompt + response."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.rewards import Episode
from rlhfctl.training.encoding import Encoder
from rlhfctl.training.models import score_rows


class ModelReward:
    """Scores ids directly: the reward model must share the policy's tokenizer (checked at the hand-over)."""

    def __init__(self, model: nn.Module, pad_token_id: int, batch_size: int = 64) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        rows = [[*episode.prompt_ids, *episode.response_ids] for episode in episodes]
        return score_rows(self.model, rows, self.pad_token_id, batch_size=self.batch_size)


class TextModelReward:
    """Scores text: for a reward model with a tokenizer (and chat template) of its own.

    A response is read with the end token that this model was trained to read, whether the policy wrote its own or not.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        self.model = model
        self.encoder = Encoder(tokenizer)
        self.batch_size = batch_size

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        rows = []
        for episode in episodes:
            prompt, response = self.encoder.pair(episode.prompt, episode.completion)
            rows.append([*prompt, *response])
        pad = self.encoder.tokenizer.pad_token_id
        return score_rows(self.model, rows, pad if pad is not None else 0, batch_size=self.batch_size)
