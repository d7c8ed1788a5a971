"""Split rows by prompt, with no prompt on two sides: preferences in two, prompts into train, eval and test.

Test and eval prompts may come from separate sources; training prompts that are among them are then left out. Prompts
are equal here if their text is; leaks.py compares prompts across data sets.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlhfctl.data.leaks import leak_key
from rlhfctl.data.store import digest, in_order, pick
from rlhfctl.data.types import PreferenceGroup, Prompt, Row
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Preferences, Prompts

Places = npt.NDArray[np.int64]  # of rows in their data set


def prompt_key(prompt: str | list[dict[str, Any]]) -> str:
    """Return the key by which two prompts are equal."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def preference_places(
    section: Preferences, groups: Sequence[PreferenceGroup], seed: int, *, steady: bool = False
) -> dict[str, Sequence[int]]:
    """Hold out all groups of a random `heldout` share of the distinct prompts, so that no prompt is on both sides.

    Returns the places of both parts in `groups`. `steady`: whether a prompt is held out depends on the prompt and the
    seed alone, not on the other prompts, so the share is met on average only.
    """
    ranks, order = _shuffled((group.prompt for group in groups), seed, "preferences")
    if len(order) < 2:
        raise DataError(
            "one distinct prompt: none can be held out",
            where="data.preferences",
            fix="give pairs for at least two prompts",
        )
    if steady:
        aside = _steady_part((group.prompt for group in groups), len(order), section.heldout, seed, "preferences")
    else:
        aside = _marked(order[: min(len(order) - 1, max(1, round(section.heldout * len(order))))], len(order))
    held = aside[ranks]
    return {"train": _places(np.flatnonzero(~held)), "heldout": _places(np.flatnonzero(held))}


def demonstration_places(share: float, rows: Sequence[Row], seed: int) -> dict[str, Sequence[int]]:
    """Hold out all rows of a random `share` of the distinct prompts, so that no prompt is on both sides.

    The prompt of a conversation is what stands before its first answer; a plain text is its own. Returns the places of
    both parts in `rows`.
    """
    ranks, order = _shuffled(map(_answered, rows), seed, "demonstrations")
    if len(order) < 2:
        raise DataError(
            "one distinct prompt: none can be held out",
            where="data.demonstrations",
            fix="give demonstrations for at least two prompts, or remove data.demonstrations.heldout",
        )
    held = _marked(order[: min(len(order) - 1, max(1, round(share * len(order))))], len(order))[ranks]
    return {"train": _places(np.flatnonzero(~held)), "heldout": _places(np.flatnonzero(held))}


def _answered(row: Row) -> Prompt:
    """Return the first prompt that a demonstration answers."""
    if "messages" not in row:
        prompt: Prompt = row["prompt"] if row.get("prompt") is not None else row["text"]
        return prompt
    messages = row["messages"]
    first = next((place for place, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return list(messages[:first] or messages)


def split_in_half(
    groups: Sequence[PreferenceGroup], seed: int, *, steady: bool = False
) -> tuple[Sequence[PreferenceGroup], Sequence[PreferenceGroup]]:
    """Split groups into two halves of the distinct prompts: for the reward model, and for the held-out reward model.

    No prompt is on both sides. The order of the groups stays. `steady`: as in preference_places.
    """
    ranks, order = _shuffled((group.prompt for group in groups), seed, "halves")
    if len(order) < 2:
        raise DataError(
            "one distinct prompt to train on: two reward models cannot share it",
            where="reward.heldout",
            fix="give pairs for more prompts, or set reward.heldout: false",
        )
    if steady:
        first = _steady_part((group.prompt for group in groups), len(order), 0.5, seed, "halves")[ranks]
    else:
        first = _marked(order[: (len(order) + 1) // 2], len(order))[ranks]
    return pick(groups, _places(np.flatnonzero(first))), pick(groups, _places(np.flatnonzero(~first)))


def bootstrap(prompts: Sequence[Prompt], seed: int, number: int) -> list[int]:
    """Draw as many distinct prompts as there are, with replacement; return the places of all rows of each draw.

    `prompts`: that of each row; rows of one prompt stay together. The draw depends on `seed` and `number` (of the
    member of an ensemble that trains on it), and neither on the order of the rows nor on other members.
    """
    keys = sorted(set(map(prompt_key, prompts)))
    drawn = Counter(random.Random(f"bootstrap-{number}-{seed}").choices(keys, k=len(keys)))
    return [place for place, prompt in enumerate(prompts) for _ in range(drawn[prompt_key(prompt)])]


def prompt_places(
    section: Prompts,
    rows: Sequence[Row],
    seed: int,
    *,
    eval_rows: Sequence[Row] | None = None,
    test_rows: Sequence[Row] | None = None,
) -> dict[str, Sequence[int]]:
    """Split prompts into three by distinct prompt: `test` for the comparison, `eval` for choosing, the rest for PPO.

    Test and eval hold each prompt once; training keeps repeated rows. `eval_rows` and `test_rows` come from separate
    sources: no training prompt is among them, and no eval prompt is among the test prompts. Returns the places of the
    parts in `rows`, `eval_rows` and `test_rows`, one after the other.
    """
    parts: dict[str, Places] = {}
    taken: set[bytes] = set()  # of prompts that no later part may have
    before = len(rows) + len(eval_rows or ())
    if test_rows is not None:
        chosen = _chosen(test_rows, np.arange(len(test_rows)), section.test, seed, "test")
        taken |= {_leak_digest(test_rows[place]) for place in chosen}
        parts["test"] = before + chosen
    if eval_rows is not None:
        chosen = _chosen(eval_rows, _without(eval_rows, taken), section.eval, seed, "eval")
        taken |= {_leak_digest(eval_rows[place]) for place in chosen}
        parts["eval"] = len(rows) + chosen
    left = _without(rows, taken)
    ranks, order = _shuffled((row["prompt"] for row in _at(rows, left)), seed, "prompts")
    wanted_test = 0 if "test" in parts else section.test or 0
    wanted_eval = 0 if "eval" in parts else section.eval or 0
    wanted = wanted_test + wanted_eval
    if wanted >= len(order):
        raise DataError(
            f"{len(order)} distinct prompts: {wanted_test} for test and {wanted_eval} for eval leave none to train on",
            where="data.prompts",
            fix="lower data.prompts.test or data.prompts.eval, or give more prompts",
        )
    first = left[_first_places(ranks, len(order))]
    train = left[~_marked(order[:wanted], len(order))[ranks]]
    drawn = {"train": train, "eval": first[order[wanted_test:wanted]], "test": first[order[:wanted_test]]}
    return {name: _places(places) for name, places in (drawn | parts).items()}


def _chosen(rows: Sequence[Row], left: Places, count: int | None, seed: int, part: str) -> Places:
    """Return the places of `count` distinct prompts of a separate source, or of all, in the order of their file.

    `left`: the places that may be chosen.
    """
    ranks, order = _shuffled((row["prompt"] for row in _at(rows, left)), seed, part)
    if count is not None and count > len(order):
        raise DataError(
            f"data.prompts.{part} asks for {count} prompts, but the source holds {len(order)} distinct ones",
            where=f"data.prompts.{part}_source",
            fix=f"lower data.prompts.{part}, or leave it out to use all of them",
        )
    first = _first_places(ranks, len(order))
    return np.asarray(left[np.sort(first[order[:count]])])


def _without(rows: Sequence[Row], taken: set[bytes]) -> Places:
    """Return the places of the rows whose prompts are not `taken`."""
    if not taken:
        return np.arange(len(rows))
    return np.flatnonzero(np.fromiter((_leak_digest(row) not in taken for row in rows), dtype=bool, count=len(rows)))


def _at(rows: Sequence[Row], places: Places) -> Iterable[Row]:
    return rows if len(places) == len(rows) else pick(rows, _places(places))


def _leak_digest(row: Row) -> bytes:
    """Return 16 bytes that stand for the prompt of a row, as leaks.py compares prompts."""
    return digest(leak_key(row["prompt"]))


def _shuffled(prompts: Iterable[Prompt], seed: int, salt: str) -> tuple[Places, Places]:
    """Return the rank of each prompt among the distinct ones in the order of their keys, and the ranks shuffled.

    The draw depends on the seed and the distinct prompts, not on the order of the rows.
    """
    places, ranks = array("q"), array("q")
    last, rank = None, -1
    for key, place in in_order(map(prompt_key, prompts)):
        if key != last:
            last, rank = key, rank + 1
        places.append(place)
        ranks.append(rank)
    of_place = np.empty(len(places), dtype=np.int64)
    of_place[np.asarray(places, dtype=np.int64)] = np.asarray(ranks, dtype=np.int64)
    order = list(range(rank + 1))
    random.Random(f"{salt}-{seed}").shuffle(order)
    return of_place, np.asarray(order, dtype=np.int64)


def _first_places(ranks: Places, count: int) -> Places:
    """Return the first place of each of `count` ranks."""
    first = np.empty(count, dtype=np.int64)
    first[ranks[::-1]] = np.arange(len(ranks))[::-1]  # of equal indices the last one assigned stays
    return first


def _marked(ranks: Places, count: int) -> Any:
    """Return `count` flags, true at `ranks`."""
    marks = np.zeros(count, dtype=bool)
    marks[ranks] = True
    return marks


def _places(places: Places) -> Sequence[int]:
    return array("q", np.asarray(places, dtype=np.int64).tobytes())


def _steady_part(prompts: Iterable[Prompt], count: int, share: float, seed: int, salt: str) -> Any:
    """Return a flag for each of `count` distinct prompts, in the order of their keys: is its hash below `share`?

    At least one, the lowest, has it, and all but one, the highest, at most.
    """
    marks = np.zeros(count, dtype=bool)
    hashes: list[tuple[bytes, int]] = []  # the lowest and the highest, with their ranks
    last, rank = None, -1
    for key, _ in in_order(map(prompt_key, prompts)):
        if key != last:
            last, rank = key, rank + 1
            place = hashlib.sha256(f"{salt}-{seed}-{key}".encode()).digest()
            marks[rank] = int.from_bytes(place[:8]) < share * 2**64
            hashes = [min([*hashes, (place, rank)]), max([*hashes, (place, rank)])]
    if marks.all():
        marks[hashes[1][1]] = False
    if not marks.any():
        marks[hashes[0][1]] = True
    return marks


def prompts_of(groups: Sequence[PreferenceGroup]) -> list[Row]:
    """Return the distinct prompts of pairs, in order, as rows."""
    first = {prompt_key(group.prompt): group for group in reversed(groups)}
    kept = [first[key] for key in dict.fromkeys(prompt_key(group.prompt) for group in groups)]
    return [{"prompt": one.prompt} | ({} if one.tools is None else {"tools": one.tools}) for one in kept]
