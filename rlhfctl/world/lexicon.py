"""Define the words of the review world and the facts about them that generator and scorer share.

Holds subjects (named by prompts), the aspects of each category, the adjectives of each aspect, verdicts, and the one
conversion between words and text. Leaves out how good a text is (gold.py) and how often a text is generated
(reviews.py). Reads and writes no files; imports the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GOOD, MIDDLING, BAD = 1.0, 0.5, 0.0
"""Polarity of an adjective, a liking or a verdict."""


@dataclass(frozen=True)
class Aspect:
    """A part of a subject with the adjectives that fit it: `soup` can be warm but not sharp."""

    name: str
    plural: bool
    good: tuple[str, ...]
    bad: tuple[str, ...]

    @property
    def verb(self) -> str:
        """Return the form of `be` for the name: `was` or `were`."""
        return "were" if self.plural else "was"


@dataclass(frozen=True)
class Category:
    """Subjects of one kind: their nouns, the words that may stand before them, the activity and the aspects."""

    nouns: tuple[str, ...]
    modifiers: tuple[str, ...]
    done: str
    """The verb for the experience in the prompt: visited, used, seen, read."""
    again: str
    """The action of a satisfied person: come back, buy it again."""
    aspects: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """The subject of a review: the part of a prompt that decides which words fit."""

    noun: str
    company: str


def _aspect(name: str, good: str, bad: str, *, plural: bool = False) -> Aspect:
    return Aspect(name, plural, tuple(good.split()), tuple(bad.split()))


ASPECTS: dict[str, Aspect] = {
    aspect.name: aspect
    for aspect in (
        _aspect("soup", "warm tasty", "cold salty"),
        _aspect("coffee", "strong fresh", "weak bitter"),
        _aspect("cakes", "sweet fresh", "dry stale", plural=True),
        _aspect("waiters", "friendly quick", "rude slow", plural=True),
        _aspect("lens", "sharp clear", "blurry scratched"),
        _aspect("battery", "strong light", "weak heavy"),
        _aspect("screen", "sharp bright", "blurry dim"),
        _aspect("buttons", "firm smooth", "loose stiff", plural=True),
        _aspect("plot", "clever tense", "slow confusing"),
        _aspect("actors", "funny lively", "dull wooden", plural=True),
        _aspect("music", "lively gentle", "noisy dull"),
        _aspect("ending", "clever moving", "weak sudden"),
        _aspect("chapters", "short tense", "long slow", plural=True),
        _aspect("heroes", "funny brave", "dull boring", plural=True),
        _aspect("language", "clear gentle", "stiff confusing"),
        _aspect("pictures", "bright funny", "blurry faded", plural=True),
    )
}

_TOWN = ("harbour", "station", "market", "castle", "river", "forest", "corner", "village", "summer", "royal")
_MAKE = ("budget", "classic", "city", "travel", "junior", "winter", "sports", "premium", "vintage", "family")
_GENRE = ("space", "spy", "ghost", "island", "pirate", "wedding", "robot", "dragon", "desert", "school")

CATEGORIES: dict[str, Category] = {
    "cafe": Category(
        ("cafe", "diner", "tearoom"), _TOWN, "visited", "come back", ("soup", "coffee", "cakes", "waiters")
    ),
    "device": Category(
        ("camera", "phone", "tablet"), _MAKE, "used", "buy it again", ("lens", "battery", "screen", "buttons")
    ),
    "show": Category(
        ("film", "play", "musical"), _GENRE, "seen", "see it again", ("plot", "actors", "music", "ending")
    ),
    "book": Category(
        ("novel", "comic", "story"), _GENRE, "read", "read it again", ("chapters", "heroes", "language", "pictures")
    ),
}

NOUN_CATEGORY: dict[str, str] = {noun: name for name, category in CATEGORIES.items() for noun in category.nouns}

WEATHERS = ("rainy", "sunny", "windy", "snowy")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

COMPANIES: dict[str, tuple[str, ...]] = {
    "alone": ("i",),
    "with friends": ("my", "friends"),
    "with children": ("the", "children"),
    "with colleagues": ("my", "colleagues"),
}
"""The company in the prompt, and the words for it in a completion."""

GENERAL: dict[float, tuple[str, ...]] = {
    GOOD: ("lovely", "great", "excellent"),
    MIDDLING: ("fine", "ordinary"),
    BAD: ("poor", "awful"),
}
"""Adjectives that fit everything and give little information."""

GENERAL_POLARITY: dict[str, float] = {word: polarity for polarity, words in GENERAL.items() for word in words}
ADJECTIVES: frozenset[str] = frozenset(GENERAL_POLARITY) | {
    word for aspect in ASPECTS.values() for word in (*aspect.good, *aspect.bad)
}
LIKINGS: dict[str, float] = {"liked": GOOD, "loved": GOOD, "disliked": BAD, "hated": BAD}
INTENSIFIER = "very"


def article(word: str) -> str:
    """Return `a` or `an`, depending on the next word."""
    return "an" if word[0] in "aeiou" else "a"


def verdicts(category: Category) -> dict[tuple[str, ...], float]:
    """List every closing recommendation that fits the category: words -> polarity."""
    phrases = {
        "i can recommend it": GOOD,
        "i cannot recommend it": BAD,
        f"i would {category.again}": GOOD,
        f"i might {category.again}": MIDDLING,
        f"i would not {category.again}": BAD,
    }
    return {tuple(phrase.split()): polarity for phrase, polarity in phrases.items()}


def polarity_of(aspect: Aspect, adjective: str) -> float | None:
    """Return the polarity of an adjective for an aspect; None if the adjective does not fit it."""
    if adjective in aspect.good:
        return GOOD
    if adjective in aspect.bad:
        return BAD
    return GENERAL_POLARITY.get(adjective)


def prompt_count() -> int:
    """Count the distinct prompts."""
    subjects = sum(len(category.nouns) * len(category.modifiers) for category in CATEGORIES.values())
    return subjects * len(WEATHERS) * len(DAYS) * len(COMPANIES)


def prompt_at(index: int) -> str:
    """Return the prompt of this index, 0 <= index < prompt_count(): its digits in mixed radix choose the words."""
    index, company = divmod(index, len(COMPANIES))
    index, day = divmod(index, len(DAYS))
    index, weather = divmod(index, len(WEATHERS))
    for category in CATEGORIES.values():
        modifiers = len(category.modifiers)
        if index < len(category.nouns) * modifiers:
            noun, modifier = divmod(index, modifiers)
            return (
                f"review of the {category.modifiers[modifier]} {category.nouns[noun]}, {category.done} on a "
                f"{WEATHERS[weather]} {DAYS[day]} {list(COMPANIES)[company]}:"
            )
        index -= len(category.nouns) * modifiers
    raise IndexError(f"there are only {prompt_count()} prompts")


_PROMPT = re.compile(
    rf"review of the \w+ ({'|'.join(NOUN_CATEGORY)}), \w+ on a \w+ \w+ ({'|'.join(COMPANIES)})\b", re.IGNORECASE
)


def read_prompt(prompt: str) -> Subject | None:
    """Find the subject of a prompt, also inside other text such as a chat template; None if there is none."""
    match = _PROMPT.search(prompt)
    return Subject(match[1].lower(), match[2].lower()) if match else None


def to_text(words: Iterable[str]) -> str:
    """Join words and marks into a completion: it begins with a space, and no space stands before a mark."""
    return "".join(word if word in ".," else f" {word}" for word in words)


def to_words(text: str) -> list[str]:
    """Split any text into lower-case words; each `.` and `,` is a word of its own. Reverses to_text."""
    return re.findall(r"[.,]|[^\s.,]+", text.lower())


def split_sentences(words: Sequence[str]) -> tuple[list[list[str]], bool]:
    """Split words into sentences at each `.`; return them and whether the last one ended with `.`.

    Full stops and empty sentences are dropped.
    """
    sentences: list[list[str]] = [[]]
    for word in words:
        if word == ".":
            sentences.append([])
        else:
            sentences[-1].append(word)
    return [sentence for sentence in sentences if sentence], bool(words) and words[-1] == "."
