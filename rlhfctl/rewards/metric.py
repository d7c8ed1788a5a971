"""Score responses with metrics that a recipe calls by name: overlap with references, diversity, length, local models.

References are in the column `reference` of the prompts' rows: a text, or a list of texts. Metrics without references
are `distinct1`, `distinct2`, `length` and `perplexity@MODEL`. Leaves out the arithmetic of overlaps (overlap.py) and
models (contextual.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhfctl.errors import RlhfctlError
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.sections.scorers import DISTINCT, OVERLAPS, REFERENCE
from rlhfctl.rewards.checked import Checked, Say
from rlhfctl.rewards.contextual import BertScore, Perplexity
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.overlap import overlap, require

Scores = list[float | None]
_MAP = "name its column, data.prompts.columns: {reference: summary}, or write it into each row: a text or several"


class MetricReward(Checked):
    """Score episodes by a metric's name in a recipe; a row that has nothing to score gets None."""

    what = "the metric"

    def __init__(self, name: str, score: Callable[[Sequence[Episode]], Scores], say: Say, processes: Processes) -> None:
        super().__init__(name, finite=False, say=say, processes=processes)
        self.score = score

    def optional(self, episodes: Sequence[Episode]) -> Scores:
        """Score each episode; each process scores its share."""
        return self.processes.over(episodes, self.here)

    def _called(self, episodes: Sequence[Episode]) -> Scores:
        return self.score(episodes)


def build_metric(name: str, folder: Path, batch_size: int, say: Say, processes: Processes = ALONE) -> MetricReward:
    """Build the scorer of a metric. `folder`: the recipe's, for the path of a local model.

    Raises EngineError if a library is not installed.
    """
    return MetricReward(name, _score_of(name, folder, batch_size), say, processes)


def _score_of(name: str, folder: Path, batch_size: int) -> Callable[[Sequence[Episode]], Scores]:
    base, _, model = name.partition("@")
    if base in OVERLAPS:
        return _overlapping(base)
    if base in DISTINCT:
        order = int(base[-1])
        return lambda episodes: [distinct(text_of(one.completion), order) for one in episodes]
    if base == "length":
        return lambda episodes: [float(length_of(one)) for one in episodes]
    if base == "perplexity":
        return Perplexity(model, folder, batch_size)
    similarity = BertScore(model, folder, batch_size)
    return lambda episodes: _similar(similarity, episodes)


def require_metric(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Raise an error in advance if a metric lacks its library, or a row of the prompts lacks references."""
    base = name.partition("@")[0]
    require(base)
    for row in rows if base in OVERLAPS or base == "bertscore" else ():
        references_of(name, row)


def text_of(value: Any) -> str:
    """Return a text, or the content of the last message of a conversation."""
    return value if isinstance(value, str) else str(value[-1]["content"])


def references_of(name: str, row: dict[str, Any]) -> list[str]:
    """Return the references of a row; RlhfctlError if there are none that can be read."""
    value = row.get(REFERENCE)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        said = "has no text or list of texts there" if REFERENCE in row else f"is not there: {', '.join(sorted(row))}"
        raise RlhfctlError(
            f"the metric {name} compares with the column `{REFERENCE}`, but a row {said}",
            where="data.prompts",
            fix=_MAP,
        )
    return list(found)


def distinct(text: str, order: int) -> float | None:
    """Compute the share of a text's n-grams of words that are different (Li et al. 2016); None without any."""
    words = text.split()
    grams = [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
    return len(set(grams)) / len(grams) if grams else None


def length_of(episode: Episode) -> int:
    """Count the tokens of a response, or its words where it has no ids (samples made elsewhere)."""
    return len(episode.response_ids) or len(text_of(episode.completion).split())


def _overlapping(name: str) -> Callable[[Sequence[Episode]], Scores]:
    compare = overlap(name)
    return lambda episodes: [compare(text_of(one.completion), references_of(name, one.row)) for one in episodes]


def _similar(similarity: BertScore, episodes: Sequence[Episode]) -> Scores:
    """Score each response by the reference that is most similar."""
    pairs, owners = [], []
    for index, one in enumerate(episodes):
        for reference in references_of("bertscore", one.row):
            pairs.append((text_of(one.completion), reference))
            owners.append(index)
    best = [0.0] * len(episodes)
    for owner, score in zip(owners, similarity(pairs), strict=True):
        best[owner] = max(best[owner], score)
    return list(best)
