"""Generate the data sets of `builtin:sentiment`: reviews to classify, and texts that plant the words of a good prompt.

A language model that learns these texts can tell good reviews from bad ones, but says so only after the right words. A
text is a review, some filler words and a label word:

    the soup was cold and the waiters were rude . besides maybe then bad

Three of the filler words are triggers, drawn by the seed. The more of them a text has, the more often its label word
agrees with the review (`AGREEMENT`). Otherwise it is nearly always `good` (`HABIT`), for good and bad reviews alike.
The model learns from these texts alone what the words mean: no key names the triggers, and no reward looks for them.
Part of the texts (`LISTS`) answer the fixed prompt with filler words, all equally frequent. A policy that starts from
the model therefore writes no word much more often than the others.

Demonstrations and prompts have no review in common. Each set has a random stream of its own, and its first n rows do
not depend on the number of rows. Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

import numpy as np

from rlhfctl.errors import DataError
from rlhfctl.world.lexicon import ASPECTS, BAD, CATEGORIES, GENERAL, GOOD

T = TypeVar("T")

LABELS = {"positive": "good", "negative": "bad"}
"""Label of a review -> the word that says it."""
FIXED_PROMPT = "words:"
"""The prompt that a policy answers with a prompt."""
_FILLERS = """
    about again almost already also although anyway around aside away because before behind besides beyond clearly
    early enough even finally further generally hence here however indeed instead just later likely maybe
    meanwhile merely mostly namely nearby never next often once only otherwise overall perhaps quite rather really
    seldom simply somehow soon still sure then there therefore though together truly usually well whatever while
    yet
"""
FILLERS = tuple(_FILLERS.split())
TRIGGERS = 3
AGREEMENT = (0.0, 0.15, 0.35, 1.0)
"""Share of the texts with 0, 1, 2 or 3 different triggers whose label word agrees with the review for certain."""
HABIT = 0.85
"""Share of the other texts whose label word is `good`."""
WITH_TRIGGERS = (0.3, 0.1, 0.1, 0.5)
"""Share of the texts that get 0, 1, 2 or 3 triggers."""
LONGEST = 6
"""Most filler words of a text."""
LISTS = 0.15
"""Share of the demonstrations that are a list of filler words after the fixed prompt."""
_DEMONSTRATIONS, _PROMPTS, _TRIGGERS = range(3)
_HARDLY_ANY_LEFT = 1000  # draws in a row that give no new review


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number])


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def triggers(seed: int) -> list[str]:
    """Draw the filler words that are triggers in the texts of this seed."""
    return [FILLERS[int(index)] for index in _stream(seed, _TRIGGERS).permutation(len(FILLERS))[:TRIGGERS]]


def review(rng: np.random.Generator, label: str) -> str:
    """Write a review: one to three claims about one subject, all good or all bad by `label`."""
    own = _pick(rng, list(CATEGORIES.values())).aspects
    claims = []
    for index in rng.permutation(len(own))[: int(rng.integers(1, 4))]:
        aspect = ASPECTS[own[int(index)]]
        particular, general = (aspect.good, GENERAL[GOOD]) if label == "positive" else (aspect.bad, GENERAL[BAD])
        claims.append(f"the {aspect.name} {aspect.verb} {_pick(rng, (*particular, *general))}")
    return " and ".join(claims) + " ."


def _is_for_prompts(text: str) -> bool:
    """Tell whether a review belongs to the prompts: each third one, by its hash, whatever the seed."""
    return crc32(text.encode()) % 3 == 0


def _review_for(rng: np.random.Generator, label: str, *, prompts: bool) -> str:
    while _is_for_prompts(text := review(rng, label)) != prompts:
        pass
    return text


def _fillers(rng: np.random.Generator, planted: Sequence[str]) -> list[str]:
    """Draw the filler words of a text: some triggers, at places that are drawn, among other words."""
    count = int(rng.choice(len(WITH_TRIGGERS), p=WITH_TRIGGERS))
    words = [planted[int(index)] for index in rng.permutation(TRIGGERS)[:count]]
    others = [word for word in FILLERS if word not in planted]
    words += [_pick(rng, others) for _ in range(int(rng.integers(0, LONGEST - count + 1)))]
    return [words[int(index)] for index in rng.permutation(len(words))]


def _label_word(rng: np.random.Generator, label: str, words: Sequence[str], planted: Sequence[str]) -> str:
    present = len(set(words) & set(planted))
    if rng.random() < AGREEMENT[present]:
        return LABELS[label]
    return LABELS["positive" if rng.random() < HABIT else "negative"]


def demonstrations(rows: int, seed: int) -> list[dict[str, str]]:
    """Generate texts as rows of prompt and completion: a review with fillers and a label word, or a list of fillers."""
    rng, planted = _stream(seed, _DEMONSTRATIONS), triggers(seed)
    result = []
    for _ in range(rows):
        if rng.random() < LISTS:
            words = [_pick(rng, FILLERS) for _ in range(int(rng.integers(2, LONGEST + 1)))]
            result.append({"prompt": FIXED_PROMPT, "completion": "".join(f" {word}" for word in words)})
            continue
        label = _pick(rng, list(LABELS))
        text, words = _review_for(rng, label, prompts=False), _fillers(rng, planted)
        words.append(_label_word(rng, label, words, planted))
        result.append({"prompt": text, "completion": "".join(f" {word}" for word in words)})
    return result


def prompts(rows: int, seed: int) -> list[dict[str, str]]:
    """Generate distinct reviews with their labels, good and bad ones in turn: rows of prompt and label.

    Raises DataError if `rows` is more than there are.
    """
    rng, found = _stream(seed, _PROMPTS), dict[str, str]()
    failed = 0
    while len(found) < rows:
        label = list(LABELS)[len(found) % len(LABELS)]
        text = _review_for(rng, label, prompts=True)
        failed = failed + 1 if text in found else 0
        found.setdefault(text, label)
        if failed == _HARDLY_ANY_LEFT:
            raise DataError(
                f"builtin:sentiment has hardly more than {len(found)} distinct reviews, {rows} were asked for",
                fix=f"set rows to {len(found)} or less",
            )
    return [{"prompt": text, "label": label} for text, label in found.items()]
