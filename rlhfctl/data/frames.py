"""Find data sets whose formats differ, so that the model is asked in a format that it was not taught.

Either one set holds conversations and another texts, or prompts stand in different frames: `### Instruction: ...` in
one, the bare question in another. Conversations get their frame from the chat template, so only texts are compared.
Pure functions of loaded rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from rlhfctl.data.types import Rows

FRAMED = 0.95
"""Share of a set's distinct prompts that must have a beginning or an end in common before it counts as their frame."""
UNFRAMED = 0.05
"""Largest share of the other set's prompts that may have it if the two sets are to be called different."""
SHORTEST = 4
"""Characters, without spaces around them, of the shortest frame: `?` or `:` alone is none."""
FEWEST = 20
"""Distinct prompts from which on a set is judged."""
LOOKED_AT = 1_000
_SHOWN = 40  # characters


def format_warnings(loaded: Mapping[str, Rows]) -> list[str]:
    """Return what sets the formats of the data sets apart, as sentences."""
    return [*mixed_kinds(loaded), *different_frames(loaded)]


def mixed_kinds(loaded: Mapping[str, Rows]) -> Iterator[str]:
    """Report data sets that mix conversations and texts: a stage would meet a format that it was not taught."""
    kinds: dict[str, list[str]] = {"conversations": [], "texts": []}
    for name, rows in loaded.items():
        row = rows.rows[0]
        talks = "messages" in row or isinstance(row.get("prompt"), list)
        kinds["conversations" if talks else "texts"].append(name)
    if kinds["conversations"] and kinds["texts"]:
        texts, chats = (" and ".join(f"data.{name}" for name in kinds[kind]) for kind in ("texts", "conversations"))
        yield (
            f"{texts} hold texts, but {chats} hold conversations: the chat template is written around some rows and "
            f"not around others, so the stages read different languages. Set as_conversations: true for {texts}, or "
            "give texts everywhere"
        )


def different_frames(loaded: Mapping[str, Rows]) -> Iterator[str]:
    """Report pairs of data sets whose text prompts are framed differently: the policy was not taught that format."""
    prompts = {name: texts for name, rows in loaded.items() if len(texts := _text_prompts(rows)) >= FEWEST}
    for one, other in combinations(prompts, 2):
        for framed, bare in ((one, other), (other, one)):
            told = _difference(framed, prompts[framed], bare, prompts[bare])
            if told:
                yield told
                break


def frame(texts: Sequence[str]) -> tuple[str, str]:
    """Return the longest beginning and the longest end that FRAMED of the texts share."""
    return _shared(texts), _shared([text[::-1] for text in texts])[::-1]


def _shared(texts: Sequence[str]) -> str:
    left, place, found = list(texts), 0, ""
    while left:
        letters = Counter(text[place] for text in left if len(text) > place)
        letter, count = letters.most_common(1)[0] if letters else ("", 0)
        if count < FRAMED * len(texts):
            break
        left = [text for text in left if len(text) > place and text[place] == letter]
        found, place = found + letter, place + 1
    return found


def _difference(framed: str, texts: Sequence[str], bare: str, others: Sequence[str]) -> str:
    begin, end = frame(texts)
    for words, verb, has in (
        (end, "ends", lambda text: text.endswith(end)),
        (begin, "begins", lambda text: text.startswith(begin)),
    ):
        share = sum(map(has, others)) / len(others)
        if len(words.strip()) >= SHORTEST and share <= UNFRAMED:
            lines = words.strip().splitlines()
            shown = lines[-1][-_SHOWN:] if verb == "ends" else lines[0][:_SHOWN]
            return (
                f"the prompts of data.{framed} and data.{bare} are framed differently: nearly every prompt of "
                f"data.{framed} {verb} with {shown!r}, and hardly any of data.{bare}. The model would be asked in a "
                "format that it was not taught: give both the same frame"
            )
    return ""


def _text_prompts(rows: Rows) -> list[str]:
    """Return distinct prompts that are texts, at most LOOKED_AT; none for a set of conversations or of bare texts."""
    found = (row.get("prompt") for row in rows.rows[: 10 * LOOKED_AT])
    texts = dict.fromkeys(prompt for prompt in found if isinstance(prompt, str) and prompt.strip())
    return list(texts)[:LOOKED_AT]
