"""The words of the review world and the few facts about them that both the writer and the scorer need.

Holds: subjects (what a prompt names), the aspects each category has, the adjectives each aspect can carry, verdicts,
and the one way in which words become text and text becomes words. Leaves out: which texts are good (gold.py) and how
often which text is written (reviews.py). Reads and writes no files; standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GOOD, MIDDLING, BAD = 1.0, 0.5, 0.0
"""Polarity of an adjective, a liking or a verdict."""


@dataclass(frozen=True)
class Aspect:
    """A part of a subject, with the adjectives that can be said of it: `soup` can be warm, never sharp."""

    name: str
    plural: bool
    good: tuple[str, ...]
    bad: tuple[str, ...]

    @property
    def verb(self) -> str:
        """The form of `be` that agrees with the name."""
        return "were" if self.plural else "was"


@dataclass(frozen=True)
class Category:
    """Subjects of one kind: their nouns, the words that may stand before them, what one does with them."""

    nouns: tuple[str, ...]
    modifiers: tuple[str, ...]
    done: str
    """How the prompt puts the experience: visited, used, seen, read."""
    again: str
    """What a satisfied person would do: come back, buy it again."""
    aspects: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """What a completion has to be about: the part of a prompt that decides which words fit."""

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
"""How the prompt names the company, and the words by which a completion may speak of it."""

GENERAL: dict[float, tuple[str, ...]] = {
    GOOD: ("lovely", "great", "excellent"),
    MIDDLING: ("fine", "ordinary"),
    BAD: ("poor", "awful"),
}
"""Adjectives that can be said of anything, and so say little."""

GENERAL_POLARITY: dict[str, float] = {word: polarity for polarity, words in GENERAL.items() for word in words}
ADJECTIVES: frozenset[str] = frozenset(GENERAL_POLARITY) | {
    word for aspect in ASPECTS.values() for word in (*aspect.good, *aspect.bad)
}
LIKINGS: dict[str, float] = {"liked": GOOD, "loved": GOOD, "disliked": BAD, "hated": BAD}
INTENSIFIER = "very"


def article(word: str) -> str:
    """`a` or `an`, as the word after it asks."""
    return "an" if word[0] in "aeiou" else "a"


def verdicts(category: Category) -> dict[tuple[str, ...], float]:
    """Every closing recommendation that suits the category, as words -> polarity."""
    phrases = {
        "i can recommend it": GOOD,
        "i cannot recommend it": BAD,
        f"i would {category.again}": GOOD,
        f"i might {category.again}": MIDDLING,
        f"i would not {category.again}": BAD,
    }
    return {tuple(phrase.split()): polarity for phrase, polarity in phrases.items()}


def polarity_of(aspect: Aspect, adjective: str) -> float | None:
    """Polarity of an adjective said of an aspect; None where it cannot be said of it."""
    if adjective in aspect.good:
        return GOOD
    if adjective in aspect.bad:
        return BAD
    return GENERAL_POLARITY.get(adjective)


def prompt_count() -> int:
    """How many distinct prompts there are."""
    subjects = sum(len(category.nouns) * len(category.modifiers) for category in CATEGORIES.values())
    return subjects * len(WEATHERS) * len(DAYS) * len(COMPANIES)


def prompt_at(index: int) -> str:
    """The prompt with this number, 0 <= index < prompt_count(): a mixed-radix reading of the index."""
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
    """What a prompt asks about, wherever it stands in the text (a chat template may surround it); None if nothing."""
    found = _PROMPT.search(prompt)
    return Subject(found[1].lower(), found[2].lower()) if found else None


def to_text(words: Iterable[str]) -> str:
    """Words and marks as a completion: it begins with a space, and marks cling to the word before them."""
    return "".join(word if word in ".," else f" {word}" for word in words)


def to_words(text: str) -> list[str]:
    """The reverse of to_text for any text: lower-cased words, with each `.` and `,` on its own."""
    return re.findall(r"[.,]|[^\s.,]+", text.lower())


def split_sentences(words: Sequence[str]) -> tuple[list[list[str]], bool]:
    """Cut at each `.` (which is dropped, as are empty sentences); the flag says whether the last one was ended."""
    sentences: list[list[str]] = [[]]
    for word in words:
        if word == ".":
            sentences.append([])
        else:
            sentences[-1].append(word)
    return [sentence for sentence in sentences if sentence], bool(words) and words[-1] == "."
