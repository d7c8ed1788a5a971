"""Compute the true preference of the review world: how good a completion is for its prompt, in [0, 1].

    score = product over the parts of  floor + (1 - floor) * part

Each part is in [0, 1] (see `explain`). A good part cannot make up for a bad one: kind words in random order score 0, a
well-formed review without kind words scores 0, and a kind review about the wrong things scores little. FLOORS is the
share of the score that is left if a part is 0.

Reads the prompt and the completion only, and no files. Leaves out style beyond the grammar of this world: a sentence
outside of the grammar counts as ill-formed, even in good English. Only compare, evaluation logging and the generator of
preference pairs import this file; the labels of those pairs are this score with noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhfctl.errors import DataError
from rlhfctl.world.lexicon import (
    ADJECTIVES,
    ASPECTS,
    CATEGORIES,
    COMPANIES,
    GENERAL_POLARITY,
    INTENSIFIER,
    LIKINGS,
    MIDDLING,
    NOUN_CATEGORY,
    Subject,
    article,
    polarity_of,
    read_prompt,
    split_sentences,
    to_words,
    verdicts,
)

FLOORS = {
    "form": 0.0,
    "fresh": 0.2,
    "length": 0.2,
    "ended": 0.5,
    "fitting": 0.4,
    "kind": 0.0,
    "specific": 0.4,
    "coherent": 0.6,
}
"""The share of the score that is left if the part is 0. If a part with floor 0 (form, kind) is 0, the score is 0."""

FULL_DETAIL = 2.0
"""Sum of credits that makes `specific` 1: two aspects, each with an adjective of its own."""
OWN_CREDIT, GENERAL_CREDIT = 1.0, 0.5
"""Credits of a fitting aspect: with an adjective of its own, and with a general adjective or none."""
REPEATED_ADJECTIVE = 0.5
"""Weight of a repeated adjective: half a repeated statement."""
NO_VERDICT = 0.5
"""Agreement (see `coherent`) of a text without a verdict."""
SHORTEST, LONGEST, TOO_LONG = 9, 24, 40
"""Numbers of words: `length` rises to 1 at SHORTEST, stays 1 up to LONGEST, and falls to 0 at TOO_LONG."""

_VERDICTS = {name: verdicts(category) for name, category in CATEGORIES.items()}


@dataclass(frozen=True)
class Claim:
    """One statement of opinion about an aspect, or about the whole subject (topic `it`)."""

    topic: str
    adjective: str | None
    polarity: float
    fits: bool
    credit: float


@dataclass(frozen=True)
class Sentence:
    """One parsed sentence. `consistent`: whether the adjective of a liking agrees with it; None without either."""

    claims: tuple[Claim, ...] = ()
    consistent: bool | None = None
    verdict: float | None = None
    verdict_fits: bool = True


def _aspect_claim(subject: Subject, name: str, adjective: str | None, liking: float | None = None) -> Claim:
    """Make a claim about an aspect, with the polarity of the liking if given, else of the adjective."""
    polarity = MIDDLING if adjective is None else polarity_of(ASPECTS[name], adjective)
    belongs = name in CATEGORIES[NOUN_CATEGORY[subject.noun]].aspects
    fits = belongs and polarity is not None
    own = adjective is not None and adjective not in GENERAL_POLARITY
    credit = (OWN_CREDIT if own else GENERAL_CREDIT) if fits else 0.0
    stated = polarity if liking is None else liking
    return Claim(name, adjective, MIDDLING if stated is None else stated, fits, credit)


def _read_claim(subject: Subject, words: Sequence[str]) -> Claim | None:
    """Parse a claim: `the ASPECT was|were [very] ADJECTIVE`."""
    if len(words) == 5 and words[3] == INTENSIFIER:
        words = [*words[:3], words[4]]
    if len(words) != 4 or words[0] != "the" or words[1] not in ASPECTS or words[3] not in ADJECTIVES:
        return None
    return _aspect_claim(subject, words[1], words[3]) if words[2] == ASPECTS[words[1]].verb else None


def _read_claims(subject: Subject, words: Sequence[str]) -> Sentence | None:
    """Parse one to three claims of any polarity: `CLAIM | CLAIM and CLAIM | CLAIM, CLAIM and CLAIM`."""
    links = [word for word in words if word in {",", "and"}]
    if links not in ([], ["and"], [",", "and"]):
        return None
    parts: list[list[str]] = [[]]
    for word in words:
        if word in links:
            parts.append([])
        else:
            parts[-1].append(word)
    claims = [claim for part in parts if (claim := _read_claim(subject, part)) is not None]
    return Sentence(tuple(claims)) if len(claims) == len(parts) else None


def _read_liking(subject: Subject, words: Sequence[str]) -> Sentence | None:
    """Parse a liking: `PERSON liked|loved|disliked|hated the [ADJECTIVE] ASPECT`."""
    for company, person in COMPANIES.items():
        start = len(person)
        if tuple(words[:start]) != person or len(words) - start not in {3, 4} or words[start + 1] != "the":
            continue
        liking, adjective, name = LIKINGS.get(words[start]), None, words[-1]
        if len(words) - start == 4:
            adjective = words[-2]
        if liking is None or name not in ASPECTS or (adjective is not None and adjective not in ADJECTIVES):
            return None
        claim = _aspect_claim(subject, name, adjective, liking)
        if person != ("i",) and company != subject.company:
            claim = Claim(name, adjective, liking, False, 0.0)
        described = None if adjective is None else polarity_of(ASPECTS[name], adjective)
        return Sentence((claim,), consistent=None if described is None else described == liking)
    return None


def _read_impression(subject: Subject, words: Sequence[str]) -> Sentence | None:
    """Parse an impression: `it was GENERAL | it was a|an GENERAL NOUN`."""
    if tuple(words[:2]) != ("it", "was"):
        return None
    rest = words[2:]
    if len(rest) == 1 and rest[0] in GENERAL_POLARITY:
        return Sentence((Claim("it", rest[0], GENERAL_POLARITY[rest[0]], True, 0.0),))
    if len(rest) == 3 and rest[1] in GENERAL_POLARITY and rest[2] in NOUN_CATEGORY and rest[0] == article(rest[1]):
        return Sentence((Claim("it", rest[1], GENERAL_POLARITY[rest[1]], rest[2] == subject.noun, 0.0),))
    return None


def _read_verdict(subject: Subject, words: Sequence[str]) -> Sentence | None:
    """Parse a verdict: `i would [not] AGAIN | i might AGAIN | i can|cannot recommend it`."""
    own = _VERDICTS[NOUN_CATEGORY[subject.noun]]
    for table in (own, *_VERDICTS.values()):
        polarity = table.get(tuple(words))
        if polarity is not None:
            return Sentence(verdict=polarity, verdict_fits=table is own)
    return None


def _read_sentence(subject: Subject, words: Sequence[str]) -> Sentence | None:
    """Parse a sentence; None if it is outside of the grammar."""
    for read in (_read_claims, _read_liking, _read_impression, _read_verdict):
        sentence = read(subject, words)
        if sentence is not None:
            return sentence
    return None


def _mean(values: Sequence[float], empty: float) -> float:
    return sum(values) / len(values) if values else empty


def _freshness(claims: Sequence[Claim], verdict_count: int) -> float:
    """Compute `fresh`: (1 - repeats / statements)^2.

    Repeats are topics mentioned before, verdicts after the first, and, at half weight, adjectives used before on new
    topics.
    """
    statements = len(claims) + verdict_count
    if not statements:
        return 0.0
    first = {claim.topic: claim for claim in reversed(claims)}
    adjectives = [claim.adjective for claim in first.values() if claim.adjective is not None]
    repeated = len(claims) - len(first) + max(0, verdict_count - 1)
    repeated_adjectives = len(adjectives) - len(set(adjectives))
    return (1.0 - (repeated + REPEATED_ADJECTIVE * repeated_adjectives) / statements) ** 2


def _length(words: int) -> float:
    """Compute `length`: min(1, words / SHORTEST) up to LONGEST, then linear down to 0 at TOO_LONG."""
    if words <= LONGEST:
        return min(1.0, words / SHORTEST)
    return max(0.0, (TOO_LONG - words) / (TOO_LONG - LONGEST))


def explain(prompt: str, completion: str) -> dict[str, float]:
    """Compute the parts of the score, each in [0, 1], and `score` itself.

    form      (words in sentences that parse / all words)^2
    fresh     (1 - repeats / statements)^2; repeated topics and verdicts count 1, repeated adjectives count half
    length    1 from SHORTEST to LONGEST words, less outside
    ended     1 if the text ends with a full stop
    fitting   share of statements that fit this subject: its aspects, its noun, its company, its verdict, and
              adjectives that fit the aspect
    kind      (mean polarity of the claims)^2: a middling claim counts a quarter
    specific  credits of distinct fitting aspects / FULL_DETAIL, at most 1
    coherent  agreement * share of likings that agree with their adjective ("i loved the cold soup" does not); likings
              without a fitting adjective are not counted; agreement = 1 - |mean verdict - mean polarity of the
              claims|, or NO_VERDICT without a verdict

    Raises DataError for a prompt that is not of this world: its completions cannot be scored.
    """
    subject = read_prompt(prompt)
    if subject is None:
        raise DataError(
            f"the gold scorer cannot read this prompt: {prompt!r}",
            fix="use the gold judge only with prompts from builtin:reviews",
        )
    words = to_words(completion)
    sentences, ended = split_sentences(words)
    readings = [(len([w for w in s if w != ","]), _read_sentence(subject, s)) for s in sentences]
    word_count = sum(count for count, _ in readings)
    parsed = [sentence for _, sentence in readings if sentence is not None]
    claims = [claim for sentence in parsed for claim in sentence.claims]
    judged = [(s.verdict, s.verdict_fits) for s in parsed if s.verdict is not None]
    kind = _mean([claim.polarity for claim in claims], empty=0.0)
    agreement = 1.0 - abs(_mean([v for v, _ in judged], empty=0.0) - kind) if judged else NO_VERDICT
    detail: dict[str, float] = {}
    for claim in claims:
        detail[claim.topic] = max(claim.credit, detail.get(claim.topic, 0.0))
    parts = {
        "form": (sum(n for n, s in readings if s is not None) / word_count) ** 2 if word_count else 0.0,
        "fresh": _freshness(claims, len(judged)),
        "length": _length(word_count),
        "ended": float(ended),
        "fitting": _mean([float(c.fits) for c in claims] + [float(fits) for _, fits in judged], empty=0.0),
        "kind": kind**2,
        "specific": min(1.0, sum(detail.values()) / FULL_DETAIL),
        "coherent": agreement * _mean([float(s.consistent) for s in parsed if s.consistent is not None], empty=1.0),
    }
    score = 1.0
    for name, floor in FLOORS.items():
        score *= floor + (1.0 - floor) * parts[name]
    return {**parts, "score": score}


def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Compute the gold score of each completion for the prompt of the same index."""
    return [explain(prompt, completion)["score"] for prompt, completion in zip(prompts, completions, strict=True)]
