"""Split rows by prompt, with no prompt on two sides: preferences in two, prompts into train, eval and test.

Test and eval prompts may come from separate sources; training prompts that are among them are then left out. Prompts
are equal here if their text is; leaks.py compares prompts across data sets.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlhfctl.data.leaks import leak_key
from rlhfctl.data.types import PreferenceGroup, PreferenceSplit, Prompt, PromptSplit, Row
from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Preferences, Prompts


def prompt_key(prompt: str | list[dict[str, Any]]) -> str:
    """Return the key by which two prompts are equal."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def split_preferences(
    section: Preferences, groups: Sequence[PreferenceGroup], seed: int, *, steady: bool = False
) -> PreferenceSplit:
    """Hold out all groups of a random `heldout` share of the distinct prompts, so that no prompt is on both sides.

    Training keeps pairs that a weight repeats; heldout has each once. `steady`: whether a prompt is held out depends on
    the prompt and the seed alone, not on the other prompts, so the share is met on average only.
    """
    keys = _shuffled_keys((group.prompt for group in groups), seed, "preferences")
    if len(keys) < 2:
        raise DataError(
            "one distinct prompt: none can be held out",
            where="data.preferences",
            fix="give pairs for at least two prompts",
        )
    if steady:
        aside = _steady_part(keys, section.heldout, seed, "preferences")
    else:
        aside = set(keys[: min(len(keys) - 1, max(1, round(section.heldout * len(keys))))])
    train = [group for group in groups if prompt_key(group.prompt) not in aside]
    heldout = [group for group in groups if prompt_key(group.prompt) in aside]
    return PreferenceSplit(train, [once for group in heldout for once in group.repeated(_only_the_first())])


def split_in_half(
    groups: Sequence[PreferenceGroup], seed: int, *, steady: bool = False
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Split groups into two halves of the distinct prompts: for the reward model, and for the held-out reward model.

    No prompt is on both sides. The order of the groups stays. `steady`: as in split_preferences.
    """
    keys = _shuffled_keys((group.prompt for group in groups), seed, "halves")
    if len(keys) < 2:
        raise DataError(
            "one distinct prompt to train on: two reward models cannot share it",
            where="reward.heldout",
            fix="give pairs for more prompts, or set reward.heldout: false",
        )
    first = _steady_part(keys, 0.5, seed, "halves") if steady else set(keys[: (len(keys) + 1) // 2])
    sides: tuple[list[PreferenceGroup], list[PreferenceGroup]] = [], []
    for group in groups:
        sides[prompt_key(group.prompt) not in first].append(group)
    return sides


def bootstrap(prompts: Sequence[Prompt], seed: int, number: int) -> list[int]:
    """Draw as many distinct prompts as there are, with replacement; return the places of all rows of each draw.

    `prompts`: that of each row; rows of one prompt stay together. The draw depends on `seed` and `number` (of the
    member of an ensemble that trains on it), and neither on the order of the rows nor on other members.
    """
    keys = sorted(set(map(prompt_key, prompts)))
    drawn = Counter(random.Random(f"bootstrap-{number}-{seed}").choices(keys, k=len(keys)))
    return [place for place, prompt in enumerate(prompts) for _ in range(drawn[prompt_key(prompt)])]


def _only_the_first() -> Callable[[Row], bool]:
    """Return a function that is true the first time it gets a row, and false afterwards."""
    seen: set[int] = set()

    def is_first(row: Row) -> bool:
        first = id(row) not in seen
        seen.add(id(row))
        return first

    return is_first


def split_prompts(
    section: Prompts,
    rows: Sequence[Row],
    seed: int,
    *,
    eval_rows: Sequence[Row] | None = None,
    test_rows: Sequence[Row] | None = None,
) -> PromptSplit:
    """Split prompts into three by distinct prompt: `test` for the comparison, `eval` for choosing, the rest for PPO.

    Test and eval hold each prompt once; training keeps repeated rows. `eval_rows` and `test_rows` come from separate
    sources: no training prompt is among them, and no eval prompt is among the test prompts.
    """
    test = None if test_rows is None else _chosen(test_rows, section.test, seed, "test")
    taken = _leak_keys(test or [])
    evaluation = None
    if eval_rows is not None:
        others = [row for row in eval_rows if leak_key(row["prompt"]) not in taken]
        evaluation = _chosen(others, section.eval, seed, "eval")
    taken |= _leak_keys(evaluation or [])
    rows = [row for row in rows if leak_key(row["prompt"]) not in taken] if taken else rows
    keys = _shuffled_keys((row["prompt"] for row in rows), seed, "prompts")
    wanted_test = 0 if test is not None else section.test or 0
    wanted_eval = 0 if evaluation is not None else section.eval or 0
    if wanted_test + wanted_eval >= len(keys):
        raise DataError(
            f"{len(keys)} distinct prompts: {wanted_test} for test and {wanted_eval} for eval leave none to train on",
            where="data.prompts",
            fix="lower data.prompts.test or data.prompts.eval, or give more prompts",
        )
    first = {prompt_key(row["prompt"]): row for row in reversed(rows)}
    aside = set(keys[: wanted_test + wanted_eval])
    return PromptSplit(
        train=[row for row in rows if prompt_key(row["prompt"]) not in aside],
        eval=[first[key] for key in keys[wanted_test : wanted_test + wanted_eval]]
        if evaluation is None
        else evaluation,
        test=[first[key] for key in keys[:wanted_test]] if test is None else test,
    )


def _chosen(rows: Sequence[Row], count: int | None, seed: int, part: str) -> list[Row]:
    """Return `count` distinct prompts of a separate source, or all of them, in the order of their file."""
    keys = _shuffled_keys((row["prompt"] for row in rows), seed, part)
    if count is not None and count > len(keys):
        raise DataError(
            f"data.prompts.{part} asks for {count} prompts, but the source holds {len(keys)} distinct ones",
            where=f"data.prompts.{part}_source",
            fix=f"lower data.prompts.{part}, or leave it out to use all of them",
        )
    kept = set(keys if count is None else keys[:count])
    first = {prompt_key(row["prompt"]): row for row in reversed(rows)}
    return [row for row in rows if first[prompt_key(row["prompt"])] is row and prompt_key(row["prompt"]) in kept]


def _leak_keys(rows: Sequence[Row]) -> set[str]:
    return {leak_key(row["prompt"]) for row in rows}


def _shuffled_keys(prompts: Iterable[Prompt], seed: int, salt: str) -> list[str]:
    keys = sorted(set(map(prompt_key, prompts)))
    random.Random(f"{salt}-{seed}").shuffle(keys)
    return keys


def _steady_part(keys: Sequence[str], share: float, seed: int, salt: str) -> set[str]:
    """Return the keys with a hash below `share`; at least one, the lowest, and all but one, the highest, at most."""
    place = {key: hashlib.sha256(f"{salt}-{seed}-{key}".encode()).digest() for key in keys}
    below = [key for key in keys if int.from_bytes(place[key][:8]) < share * 2**64]
    if len(below) == len(keys):
        below.remove(max(keys, key=place.__getitem__))
    return set(below or [min(keys, key=place.__getitem__)])


def prompts_of(groups: Sequence[PreferenceGroup]) -> list[Row]:
    """Return the distinct prompts of pairs, in order, as rows."""
    first = {prompt_key(group.prompt): group for group in reversed(groups)}
    kept = [first[key] for key in dict.fromkeys(prompt_key(group.prompt) for group in groups)]
    return [{"prompt": one.prompt} | ({} if one.tools is None else {"tools": one.tools}) for one in kept]
