"""Hold an ensemble of reward models: several scorers of the same tokens, and how their scores become one.

The members are adapters with a head on one model (heads.AdapterScorer), so the model is in memory once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhfctl.models import adapters, heads
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.sections.reward import Aggregate


class Ensemble(nn.Module):
    """The members of a reward ensemble, the first one first. It has no forward: rewards/ensemble.py asks each."""

    def __init__(self, members: Sequence[nn.Module], aggregate: Aggregate, coefficient: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.aggregate = aggregate
        self.coefficient = coefficient

    def __iter__(self) -> Any:
        return iter(self.members)


def member_name(first: str, number: int) -> str:
    """Return the name of a member's adapter on the shared model: that of `first`, then `first-1`, `first-2`, ..."""
    return first if number == 0 else f"{first}-{number}"


def members_on(model: PreTrainedModel, pad_token_id: int, folders: Sequence[Path]) -> list[AdapterScorer]:
    """Load the adapters and heads of `folders` onto one language model, frozen: each is a scorer."""
    wrapped = adapters.add_frozen(model, folders[0])
    plain = LanguageModel(wrapped, pad_token_id)
    found = []
    for number, folder in enumerate(folders):
        name = member_name(adapters.REWARD, number)
        head = heads.load_scorer_adapter(wrapped, name, folder)
        found.append(AdapterScorer(plain.with_adapter(name), head))
    adapters.drop_policy(wrapped)
    wrapped.requires_grad_(False).eval()
    return found
