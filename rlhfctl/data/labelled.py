"""Read prompts as labelled examples of `reward.prompted_classifier`: their labels, a few per label, and label words.

Checks rows and words before anything trains (preflight.py), and for the stages that use them. Leaves out the model that
classifies (models/label_words.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.types import PromptSplit, Row
from rlhfctl.errors import DataError
from rlhfctl.recipe.sections.prompted_classifier import MASK, PromptedClassifier

_KEY = "reward.prompted_classifier"


def check_labelled(section: PromptedClassifier, split: PromptSplit, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise the DataError that a row without a known label, too few examples or a word of several tokens would raise.

    `tokenizer`: that of the frozen model; None: it is not known here.
    """
    for part in (split.train, split.eval, split.test):
        for row in part:
            label_of(row, section)
    few_shot(split.train, section)
    if tokenizer is not None:
        for label, word in section.verbalizers.items():
            token_of(tokenizer, section.template, label, word)


def label_of(row: Mapping[str, Any], section: PromptedClassifier) -> str:
    """Return the label of a row, a key of `verbalizers`; DataError if it has none of these."""
    labels = section.verbalizers
    if section.label in row and str(row[section.label]) in labels:
        return str(row[section.label])
    has = section.label in row
    said = f"the label {row[section.label]!r}" if has else f"no column {section.label!r} with a label"
    raise DataError(
        f"a row has {said}; the labels of the recipe are {', '.join(labels)}",
        where="data.prompts",
        fix=f"name the column of labels ({_KEY}.label), and give each label its word (verbalizers)",
    )


def few_shot(rows: Sequence[Row], section: PromptedClassifier) -> Sequence[int]:
    """Return the places of the first `shots` rows of each label; of all rows without `shots`.

    DataError if a label has fewer.
    """
    if section.shots is None:
        return range(len(rows))
    counts: Counter[str] = Counter()
    kept = []
    for place, row in enumerate(rows):
        label = label_of(row, section)
        counts[label] += 1
        if counts[label] <= section.shots:
            kept.append(place)
    for label in section.verbalizers:
        if counts[label] < section.shots:
            raise DataError(
                f"{counts[label]} training prompts have the label {label}, and shots asks for {section.shots}",
                where=f"{_KEY}.shots",
                fix="lower it, or give more prompts",
            )
    return kept


def token_of(tokenizer: PreTrainedTokenizerBase, template: str, label: str, word: str) -> int:
    """Return the one token of a label's word: as it follows a space if the template has one there, else by itself.

    DataError if the word is several tokens, or unknown.
    """
    spaced = template[: template.index(MASK)].endswith(" ")
    tried: list[list[int]] = []
    for text in (f" {word.strip()}", word.strip()) if spaced else (word.strip(),):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
        tried.append(ids)
    pieces = tokenizer.convert_ids_to_tokens(tried[0])
    raise DataError(
        f"the word {word!r} of the label {label} is {len(pieces)} tokens of the model ({', '.join(pieces)}), and "
        "must be one that it knows",
        where=f"{_KEY}.verbalizers",
        fix="choose a word that is one token",
    )
