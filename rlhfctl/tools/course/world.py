"""The small language of the course's exercises: its prompts, answers and data files, and what is good in an answer.

Answers are sentences such as " the tea was lovely." to prompts such as "about tea here:". `files` makes the data files
in recipes/course (python recipes/course/make_files.py writes them); the checks measure answers by the functions here,
not by the rewards of the exercises, which a learner may change. Reads and writes nothing.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

THINGS = ("tea", "soup", "cake", "room")
PLACES = ("here", "there", "inside", "outside", "downstairs", "upstairs", "today", "yesterday")
OTHER_PLACES = (
    "now", "then", "first", "last", "early", "late", "nearby", "abroad", "again", "tonight", "ahead", "behind",
)  # fmt: skip
WORDS = {"lovely": 1.0, "good": 1.0, "fine": 0.0, "cold": -1.0, "bad": -1.0}
ANSWERED = tuple(f"about {thing} {place}:" for place in PLACES for thing in THINGS)
"""Prompts of the demonstrations and of the preference pairs."""

PROMPTS = tuple(f"about {thing} {place}:" for place in OTHER_PLACES for thing in THINGS)
"""Prompts of PPO and of the verdict."""

_SENTENCE = rf" ?the ({'|'.join(THINGS)}) was ({'|'.join(WORDS)})\."
_PROPER = re.compile(rf"({_SENTENCE})+")
_OFF_TOPIC = 0.1  # share of sentences about another thing
_SEED, _HIDDEN_SEED = 13, 2029
_DEMONSTRATIONS_EACH, _PAIRS = 10, 320
_LEAST_GAP = 0.4  # in quality, between the two answers of a pair


# ---------------------------------------------------------------- what is good in an answer


def is_proper(text: str) -> bool:
    """Tell whether an answer consists of whole sentences of the language."""
    return _PROPER.fullmatch(text) is not None


def sentences(text: str) -> int:
    """Count the sentences of an answer."""
    return text.count(".")


def share_of_sentences(text: str, words: Sequence[str]) -> float:
    """Compute the share of an answer's sentences that are proper and say one of `words`."""
    found = [match[2] in words for match in re.finditer(_SENTENCE, text)]
    return sum(found) / max(1, sentences(text))


def quality(prompt: str, text: str) -> float:
    """Compute the mean kindness of an answer's sentences; those about another thing count as 0."""
    about = prompt.split()[1]
    found = [WORDS[match[2]] * (match[1] == about) for match in re.finditer(_SENTENCE, text)]
    return sum(found) / max(1, len(found))


# ---------------------------------------------------------------- data


def answer(rng: random.Random, prompt: str) -> str:
    """Write an answer of one to three sentences, kind or not."""
    return "".join(_sentence(rng, prompt) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))


def _sentence(rng: random.Random, prompt: str) -> str:
    about = prompt.split()[1]
    others = [thing for thing in THINGS if thing != about]
    thing = rng.choice(others) if rng.random() < _OFF_TOPIC else about
    return f" the {thing} was {rng.choices(list(WORDS), (2, 3, 4, 3, 3))[0]}."


def pair(rng: random.Random) -> tuple[str, str, str]:
    """Draw a prompt, a better and a worse answer to it."""
    while True:
        prompt = rng.choice(ANSWERED)
        one, two = answer(rng, prompt), answer(rng, prompt)
        gap = quality(prompt, one) - quality(prompt, two)
        if abs(gap) > _LEAST_GAP:
            return (prompt, one, two) if gap > 0 else (prompt, two, one)


def hidden_pairs(count: int) -> list[dict[str, str]]:
    """Make preference pairs that no file of the course holds, for the check of a reward model."""
    rng = random.Random(_HIDDEN_SEED)
    drawn = (pair(rng) for _ in range(count))
    return [{"prompt": prompt, "chosen": better, "rejected": worse} for prompt, better, worse in drawn]


def files() -> dict[str, list[dict[str, Any]]]:
    """Make the rows of each data file of the course, by the file's name."""
    rng = random.Random(_SEED)
    demos = [{"prompt": prompt, "completion": answer(rng, prompt)} for prompt in ANSWERED * _DEMONSTRATIONS_EACH]
    pairs = []
    for prompt, better, worse in [pair(rng) for _ in range(_PAIRS)]:
        first = rng.choice((1, 2))  # the position of the better one
        one, two = (better, worse) if first == 1 else (worse, better)
        pairs.append({"prompt": prompt, "one": one, "two": two, "better": first})
    chats = [
        {
            "messages": [
                {"role": "user", "content": demo["prompt"]},
                {"role": "assistant", "content": demo["completion"].strip()},
            ]
        }
        for demo in demos
    ]
    return {
        "demos.jsonl": demos,
        "pairs.jsonl": pairs,
        "chats.jsonl": chats,
        "prompts.jsonl": [{"prompt": prompt} for prompt in PROMPTS],
        "asked.jsonl": [{"prompt": prompt} for prompt in rng.sample([*rng.sample(ANSWERED, 24), *PROMPTS], 72)],
        "letters.jsonl": [{"prompt": "".join(letters)} for letters in itertools.product("abcd", repeat=4)],
    }
