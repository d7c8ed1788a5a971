"""Generate the three data sets of `builtin:reviews`: demonstrations, preference pairs, prompts.

Each set has a random stream of its own, fixed by the seed. Its first n rows do not depend on the number of rows. Each
set draws its prompts from a pool of its own.

Demonstrations are reviews as many different people might write them: mostly middling and vague, sometimes kind and
detailed, with or without a verdict, sometimes about the wrong thing. Kind and detailed reviews are preferred but rare.
A model that imitates the demonstrations writes them rarely at temperature 1 and never at a low one, so it must learn
them from preferences.

Preference pairs compare two such texts. Some are damaged as a weak language model damages text, so that the reward
model learns from such texts too. As in real data, no text is written to fool a reward model (e.g. long strings of
praise).

Reads and writes no files. Leaves out how good a text is (gold.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from rlhfctl.errors import DataError
from rlhfctl.world.lexicon import (
    ASPECTS,
    BAD,
    CATEGORIES,
    COMPANIES,
    GENERAL,
    GENERAL_POLARITY,
    GOOD,
    INTENSIFIER,
    LIKINGS,
    MIDDLING,
    NOUN_CATEGORY,
    Category,
    Subject,
    article,
    prompt_at,
    prompt_count,
    read_prompt,
    split_sentences,
    to_text,
    verdicts,
)

T = TypeVar("T")

_DEMONSTRATIONS, _PREFERENCES, _LABELS, _PROMPTS = range(4)
"""Numbers of the random streams. Labels have their own, so the noise level does not change the drawn pairs."""

POOLS = {_DEMONSTRATIONS: (0.0, 0.5), _PREFERENCES: (0.5, 0.75), _PROMPTS: (0.75, 1.0)}
"""The range of all prompts, as shares, that each data set uses: no stage trains on a prompt of the verdict."""

# The mixture. Each table maps an outcome to its probability.
MOODS = {GOOD: 0.28, MIDDLING: 0.52, BAD: 0.20}
DETAILS = {0: 0.20, 1: 0.45, 2: 0.27, 3: 0.08}
"""Number of aspects in a review."""
CLAIM_POLARITY: dict[float, dict[float, float]] = {
    GOOD: {GOOD: 0.94, MIDDLING: 0.04, BAD: 0.02},
    MIDDLING: {GOOD: 0.12, MIDDLING: 0.76, BAD: 0.12},
    BAD: {GOOD: 0.05, MIDDLING: 0.05, BAD: 0.90},
}
"""Polarity of one claim, given the mood of the review."""
VERDICTS = {"agreeing": 0.72, "absent": 0.22, "contrary": 0.06}
GENERAL_RATE = 0.18
"""Probability that an aspect has a general adjective."""
FOREIGN_RATE = 0.04
"""Probability that a claim is about an aspect of another category."""
INTENSE_RATE = 0.12
"""Probability that `very` stands before an aspect's own adjective."""
LIKING_RATE = 0.35
"""Probability that a single claim that is not middling is a liking and not a description."""
BARE_LIKING_RATE = 0.2
"""Probability that a liking has no adjective."""
LIST_RATE = 0.5
"""Probability that three claims of one polarity are one sentence and not two."""
OPENING_RATE = 0.5
"""Probability that a review of a single aspect begins with an impression of the whole."""
NOUN_RATE = 0.5
"""Probability that an impression names the subject: `it was a lovely cafe`, not `it was lovely`."""
DAMAGE_RATE = 0.5
"""Probability that a candidate of a preference pair is damaged; demonstrations are never damaged."""
MIN_GAP = 0.10
"""Minimum difference of the gold scores in a pair: people cannot rank texts of nearly equal quality."""

Words = list[str]


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number])


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _draw(rng: np.random.Generator, table: Mapping[T, float]) -> T:
    """Draw one key from a table of probabilities."""
    return list(table)[int(rng.choice(len(table), p=list(table.values())))]


def _category(subject: Subject) -> Category:
    return CATEGORIES[NOUN_CATEGORY[subject.noun]]


def _adjective(rng: np.random.Generator, aspect: str, polarity: float) -> str:
    """Draw an adjective for the aspect: its own or a general one; middling ones are always general."""
    if polarity == MIDDLING or rng.random() < GENERAL_RATE:
        return _pick(rng, GENERAL[polarity])
    return _pick(rng, ASPECTS[aspect].good if polarity == GOOD else ASPECTS[aspect].bad)


def _claim(rng: np.random.Generator, aspect: str, polarity: float) -> Words:
    """Write a claim: `the ASPECT was|were [very] ADJECTIVE`."""
    adjective = _adjective(rng, aspect, polarity)
    intense = adjective not in GENERAL_POLARITY and rng.random() < INTENSE_RATE
    return ["the", aspect, ASPECTS[aspect].verb, *([INTENSIFIER] if intense else []), adjective]


def _liking(rng: np.random.Generator, subject: Subject, aspect: str, polarity: float) -> Words:
    """Write a liking: `PERSON liked|loved|disliked|hated the [ADJECTIVE] ASPECT`."""
    person = _pick(rng, (COMPANIES["alone"], COMPANIES[subject.company]))
    verb = _pick(rng, [verb for verb, liked in LIKINGS.items() if liked == polarity])
    adjective = [] if rng.random() < BARE_LIKING_RATE else [_adjective(rng, aspect, polarity)]
    return [*person, verb, "the", *adjective, aspect]


def _impression(rng: np.random.Generator, subject: Subject, mood: float) -> Words:
    """Write an impression: `it was GENERAL | it was a|an GENERAL NOUN`."""
    word = _pick(rng, GENERAL[mood])
    return ["it", "was", article(word), word, subject.noun] if rng.random() < NOUN_RATE else ["it", "was", word]


def _detail(rng: np.random.Generator, subject: Subject, mood: float, count: int) -> list[Words]:
    """Write the sentences about `count` aspects, at most three.

    Three claims of one polarity may be a list: `CLAIM, CLAIM and CLAIM`. Otherwise the first two are joined, with any
    polarities: `CLAIM and CLAIM`. A single or third aspect has a sentence of its own: `CLAIM | LIKING`.
    """
    own = _category(subject).aspects
    aspects = [own[int(i)] for i in rng.permutation(len(own))[:count]]
    foreign = [name for name in ASPECTS if name not in own]
    aspects = [_pick(rng, foreign) if rng.random() < FOREIGN_RATE else name for name in aspects]
    polarities = [_draw(rng, CLAIM_POLARITY[mood]) for _ in aspects]
    opinions = list(zip(aspects, polarities, strict=True))
    if count == 3 and len(set(polarities)) == 1 and rng.random() < LIST_RATE:
        first, second, third = (_claim(rng, *pair) for pair in opinions)
        return [[*first, ",", *second, "and", *third]]
    sentences: list[Words] = []
    if count >= 2:
        sentences.append([*_claim(rng, *opinions[0]), "and", *_claim(rng, *opinions[1])])
        opinions = opinions[2:]
    for aspect, polarity in opinions:
        liked = polarity != MIDDLING and rng.random() < LIKING_RATE
        sentences.append(_liking(rng, subject, aspect, polarity) if liked else _claim(rng, aspect, polarity))
    return sentences


def _review(rng: np.random.Generator, subject: Subject) -> list[Words]:
    """Write one review, as sentences."""
    mood = _draw(rng, MOODS)
    count = _draw(rng, DETAILS)
    opens = count == 0 or (count == 1 and rng.random() < OPENING_RATE)
    sentences = [_impression(rng, subject, mood)] if opens else []
    sentences += _detail(rng, subject, mood, count)
    closing = _draw(rng, VERDICTS)
    if closing != "absent":
        wanted = mood if closing == "agreeing" else {GOOD: BAD, MIDDLING: BAD, BAD: GOOD}[mood]
        options = [words for words, polarity in verdicts(_category(subject)).items() if polarity == wanted]
        sentences.append(list(_pick(rng, options)))
    return sentences


def _flat(sentences: Sequence[Sequence[str]]) -> Words:
    return [word for sentence in sentences for word in (*sentence, ".")]


# Damage that a weak language model does to a review. Each function takes and returns words with full stops.


def _repeat_sentence(rng: np.random.Generator, words: Words) -> Words:
    sentences, _ = split_sentences(words)
    twice = int(rng.integers(len(sentences)))
    return _flat([*sentences[: twice + 1], *sentences[twice:]])


def _repeat_word(rng: np.random.Generator, words: Words) -> Words:
    index = int(rng.integers(len(words) - 1))
    return [*words[: index + 1], *words[index:]]


def _drop_word(rng: np.random.Generator, words: Words) -> Words:
    index = int(rng.integers(len(words) - 1))
    return [*words[:index], *words[index + 1 :]]


def _shuffle_sentence(rng: np.random.Generator, words: Words) -> Words:
    sentences, _ = split_sentences(words)
    index = int(rng.integers(len(sentences)))
    sentences[index] = [sentences[index][int(i)] for i in rng.permutation(len(sentences[index]))]
    return _flat(sentences)


def _cut_end(rng: np.random.Generator, words: Words) -> Words:
    return words[: int(rng.integers(len(words) // 2, len(words)))]


def _swap_aspect(rng: np.random.Generator, words: Words) -> Words:
    """Replace every aspect by a random other one: adjectives, agreement and topic may then be wrong."""
    return [_pick(rng, [name for name in ASPECTS if name != word]) if word in ASPECTS else word for word in words]


def _repeat_aspect(rng: np.random.Generator, words: Words) -> Words:
    """Replace one aspect by another one of the review; repeat a sentence if there are fewer than two aspects."""
    aspects = [index for index, word in enumerate(words) if word in ASPECTS]
    if len(aspects) < 2:
        return _repeat_sentence(rng, words)
    kept, lost = (int(i) for i in rng.permutation(len(aspects))[:2])
    return [words[aspects[kept]] if index == aspects[lost] else word for index, word in enumerate(words)]


DAMAGES: tuple[Callable[[np.random.Generator, Words], Words], ...] = (
    _repeat_aspect,
    _repeat_sentence,
    _repeat_word,
    _drop_word,
    _shuffle_sentence,
    _cut_end,
    _swap_aspect,
)


def _subject(prompt: str) -> Subject:
    subject = read_prompt(prompt)
    assert subject is not None, prompt
    return subject


def _pool(number: int) -> list[int]:
    """List the indices of the prompts that a data set may use: no prompt is in two sets."""
    order = np.random.default_rng(0).permutation(prompt_count())
    start, end = (round(share * prompt_count()) for share in POOLS[number])
    indices: list[int] = order[start:end].tolist()
    return indices


def _random_prompt(rng: np.random.Generator, pool: Sequence[int]) -> str:
    return prompt_at(_pick(rng, pool))


def _candidate(rng: np.random.Generator, subject: Subject) -> str:
    """Write a text for a preference pair: a review as in the demonstrations, sometimes damaged."""
    words = _flat(_review(rng, subject))
    if rng.random() < DAMAGE_RATE:
        words = _pick(rng, DAMAGES)(rng, words)
    return to_text(words)


def demonstrations(rows: int, seed: int) -> list[dict[str, str]]:
    """Generate reviews of mixed quality: rows of prompt and completion; a completion begins with a space."""
    rng = _stream(seed, _DEMONSTRATIONS)
    pool, result = _pool(_DEMONSTRATIONS), []
    for _ in range(rows):
        prompt = _random_prompt(rng, pool)
        result.append({"prompt": prompt, "completion": to_text(_flat(_review(rng, _subject(prompt))))})
    return result


def preferences(rows: int, seed: int, label_noise: float = 0.1) -> list[dict[str, str]]:
    """Generate pairs of completions to one prompt; the one with the higher gold score is chosen.

    The scores differ by at least MIN_GAP. Each label is flipped independently with probability label_noise; at 0.5
    the labels carry no information. The pairs are the same at every noise level.
    """
    # Imported here and not at the top: code that only reads prompts must not load the gold scorer.
    from rlhfctl.world import gold

    if not 0.0 <= label_noise <= 1.0:
        raise DataError(f"label_noise is {label_noise}, which is no probability", fix="set it between 0 and 0.5")
    rng, labels = _stream(seed, _PREFERENCES), _stream(seed, _LABELS)
    pool, result = _pool(_PREFERENCES), list[dict[str, str]]()
    while len(result) < rows:
        prompt = _random_prompt(rng, pool)
        pair = [_candidate(rng, _subject(prompt)) for _ in range(2)]
        first, second = gold.score([prompt, prompt], pair)
        if abs(first - second) < MIN_GAP:
            continue
        if second > first:
            pair.reverse()
        if labels.random() < label_noise:
            pair.reverse()
        result.append({"prompt": prompt, "chosen": pair[0], "rejected": pair[1]})
    return result


def prompts(rows: int, seed: int) -> list[dict[str, str]]:
    """Generate distinct prompts in random order; raise DataError if `rows` is more than there are."""
    pool = _pool(_PROMPTS)
    if not 0 <= rows <= len(pool):
        raise DataError(
            f"builtin:reviews has {len(pool)} distinct prompts, {rows} were asked for",
            fix=f"set rows between 0 and {len(pool)}",
        )
    order = _stream(seed, _PROMPTS).permutation(pool)[:rows]
    return [{"prompt": prompt_at(int(index))} for index in order]
