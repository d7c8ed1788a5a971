"""A reward model as a scorer: the scalar head's value at the last token of prompt + response."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rlhfctl.rewards import Episode
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
