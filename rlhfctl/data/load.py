"""Load the rows of a run: read or generate them, check each one, remove duplicates and long rows, mix, split by prompt.

Reads the recipe's `data` section. Returns rows, and groups of preferences, with a fingerprint. Uses no model, no
tokenizer and no torch: all rows of a run are checked before anything heavy loads. The notes count every row that is
left out or changed. Leaves out reading files (sources.py), checking a row (rows.py) and making ids (encoding.py).

A *prompt* is a string or a list of messages ({"role", "content"}); a *completion* likewise. Formats are TRL's:
prompt+completion, messages, or text for demonstrations; prompt+chosen+rejected (and a margin), or a ranked list of
responses, for preferences; prompt alone, messages that end with the user's turn, or chosen+rejected that begin alike
for prompts. Other columns of prompts are kept for reward functions. Preferences are groups of ranked responses
(types.py); they are counted, dropped, limited and weighted in pairs.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rlhfctl import fs
from rlhfctl.data import columns, guess, sources, text_files
from rlhfctl.data.leaks import without_leaks
from rlhfctl.data.rows import CHECKS
from rlhfctl.data.sifting import Filter, Kept, first_rows, leave_out
from rlhfctl.data.splits import demonstration_places, preference_places, prompt_places
from rlhfctl.data.splits import prompt_key as prompt_key
from rlhfctl.data.store import Chained, Locations, Store, pick
from rlhfctl.data.tally import Tally
from rlhfctl.data.types import BadRow, DemonstrationSplit, Item, Row, Rows, count_examples, count_of, repeated
from rlhfctl.data.types import PreferenceSplit as PreferenceSplit
from rlhfctl.data.types import PromptSplit as PromptSplit
from rlhfctl.errors import DataError, DataFaults, Problem, RecipeError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import (
    PROGRAMS,
    REPLACED,
    SENTIMENT,
    Compared,
    Data,
    Demonstrations,
    Ppo,
    Preferences,
    Prompts,
    Source,
    looks_like_id,
)

# ---------------------------------------------------------------- loading


def load_demonstrations(section: Demonstrations, seed: int) -> Rows:
    """Load rows with prompt+completion, messages or text."""
    return _load("demonstrations", section, seed)


def load_preferences(section: Preferences, seed: int) -> Rows:
    """Load groups of ranked responses; a row with chosen and rejected is a group of two."""
    return _load("preferences", section, seed)


def load_prompts(section: Prompts, seed: int) -> Rows:
    """Load rows with a prompt, and with all other columns of the file, and split them into train, eval and test."""
    return _load("prompts", section, seed)


NAMES = ("demonstrations", "preferences", "pretraining", "prompts")


def check_all(data: Data, seed: int, names: Collection[str] = NAMES, *, steady: bool = False) -> dict[str, Rows]:
    """Load, check and split the recipe's data sets (only those in `names`). DataError with the faults of all of them.

    `seed` is the recipe's data_seed. With data.leaks: drop, rows that answer a test prompt are left out. `steady` is
    that of preference_places.
    """
    loaded: dict[str, Rows] = {}
    test: Sequence[Row] = []
    with _collect_errors() as trying:
        if data.prompts is not None and ("prompts" in names or data.leaks == "drop"):
            with trying:
                loaded["prompts"] = _split_prompts(data.prompts, seed)
                test = getattr(loaded["prompts"].split, "test", []) if data.leaks == "drop" else []
        if data.demonstrations is not None and "demonstrations" in names:
            with trying:
                rows = without_leaks(load_demonstrations(data.demonstrations, seed), test)
                loaded["demonstrations"] = _split_demonstrations(data.demonstrations, rows, seed)
        if data.pretraining is not None and "pretraining" in names:
            with trying:
                loaded["pretraining"] = without_leaks(_load("pretraining", data.pretraining, seed), test)
        if data.preferences is not None and "preferences" in names:
            with trying:
                groups = without_leaks(load_preferences(data.preferences, seed), test)
                places = preference_places(data.preferences, groups.groups, seed, steady=steady)
                split = PreferenceSplit.of(groups.groups, places)
                loaded["preferences"] = replace(groups, split=split, places=places)
    return {name: loaded[name] for name in NAMES if name in loaded and name in names}


class _ErrorCollector:
    """Collect the DataErrors of the blocks that it guards."""

    def __init__(self) -> None:
        self.errors: list[DataError] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, DataError):
            self.errors.append(error)
        return isinstance(error, DataError)


@contextmanager
def _collect_errors() -> Iterator[_ErrorCollector]:
    """Run several blocks even if one fails, and raise all their DataErrors in the end."""
    trying = _ErrorCollector()
    yield trying
    if len(trying.errors) == 1:
        raise trying.errors[0]
    if trying.errors:
        raise DataFaults(trying.errors)


def _load(name: str, section: Source, seed: int) -> Rows:
    """Load one source, or all sources of a list, each row as often as the weight of its source says."""
    parts = section.parts
    if parts == [section]:
        return _load_source(name, section, seed, f"data.{name}")
    loaded: list[Rows] = []
    with _collect_errors() as trying:
        for index, part in enumerate(parts):
            with trying:
                loaded.append(_load_source(name, part, seed, f"data.{name}.sources[{index}]"))
    weights = [getattr(part, "weight", 1.0) for part in parts]
    return mixed(name, list(zip(loaded, [part.source for part in parts], weights, strict=True)), seed)


def mixed(name: str, parts: Sequence[tuple[Rows, str, float]], seed: int) -> Rows:
    """Combine several sources: (rows, source, weight) each.

    A weight of 2.5 uses each row twice, and one half of them, drawn by `seed`, once more. For preferences it counts
    pairs.
    """
    mix = Kept()
    notes: list[str] = []
    left_out: dict[str, str] = {}
    for index, (rows, source, weight) in enumerate(parts):
        count, before = len(rows.rows), mix.count
        times = _times_by_weight(count, weight, random.Random(f"mix-{name}-{index}-{seed}"))
        for place, (item, location) in enumerate(rows.located):
            used = repeated(item, times)
            mix.add(used, location, droppable=bool(rows.droppable and rows.droppable[place]))
            if not used:
                leave_out(left_out, location, "not drawn")
        for location, reason in rows.left_out.items():
            leave_out(left_out, location, reason)
        shown = Path(source).name if sources.is_path(source) else source
        notes += [f"{shown}: {count} rows with weight {weight:g} are {mix.count - before} of the mix"]
        notes += [f"{shown}: {note}" for note in rows.notes]
    if not mix.count:
        raise DataError("the weights leave no row", where=f"data.{name}.sources", fix="raise a weight")
    fingerprint = fs.hash_json([[rows.fingerprint, weight] for rows, _, weight in parts])
    return mix.rows(name, fingerprint, notes, left_out)


def _times_by_weight(count: int, weight: float, draw: random.Random) -> Callable[[Row], int]:
    """Return a function that is asked of each of `count` rows, in order, and says how often it is used."""
    drawn = array("q", draw.sample(range(count), round((weight - int(weight)) * count)))
    more = bytearray(count)
    for place in drawn:
        more[place] = 1
    times = iter(more)
    return lambda row: int(weight) + next(times)


def _load_source(name: str, section: Source, seed: int, key: str) -> Rows:
    """Read, rename, reshape, check and filter the rows of one source, whose key in the recipe is `key`."""
    tally = Tally()
    rows, all_locations, fingerprint = _read(name, section, seed, key, tally)
    _require_columns(key, section, rows)
    kept, passes = Kept(), Filter(section, tally.dropped)
    sifts = section.deduplicate or section.max_chars is not None
    usable = filtered = 0  # rows, or pairs
    bad: list[str] = []
    left_out: dict[str, str] = {}
    for location, _ in tally.unreadable:
        leave_out(left_out, location, "cannot be read")
    for row, location in Work(f"checking {name}", len(rows)).through(zip(rows, all_locations, strict=True)):
        changes = Tally()
        try:
            items = CHECKS[name](columns.renamed(row, section.columns), section, changes)
        except BadRow as error:
            bad.append(f"{location}: {error}")
            leave_out(left_out, location, "cannot be used")
            continue
        tally.add(changes)
        if not items:
            leave_out(left_out, location, "ties")
        for item in items:
            count = count_of(item)
            passed = repeated(item, passes) if sifts else [item]
            left = count_examples(passed) if sifts else count
            usable, filtered = usable + count, filtered + left
            if left < count:
                leave_out(left_out, location, passes.why)
            room = left if section.limit is None else section.limit - kept.count
            if left > room:
                left_out.pop(location, None)
                leave_out(left_out, location, "beyond the limit")
                passed = [part for one in passed for part in first_rows(one, room)]
            kept.add(passed, location, droppable=section.bad_rows == "drop")
    if (bad or tally.unreadable) and (section.bad_rows == "stop" or not usable):
        raise _bad_rows(bad, rows, name, section, key, tally)
    if not filtered:
        reason = f" after {_listed(tally.dropped)} were dropped" if tally.dropped else ""
        raise DataError(f"{key} holds no rows{reason}", where=section.source, fix="name a source with usable rows")
    notes = [f"{usable} pairs of {len(rows)} rows"] if usable > len(rows) else []
    notes += tally.sentences()
    if not section.builtin:
        unused = columns.unused(rows, section.columns, tally, others=name != "prompts")
        notes += [f"not used: the columns {', '.join(unused)}"] if unused else []
    if lines := tally.unreadable:
        notes.append(f"{len(lines)} lines cannot be read and are dropped, the first: {': '.join(lines[0])}")
    if bad:
        notes.append(f"{len(bad)} of {len(rows)} rows cannot be used and are dropped, the first: {bad[0]}")
    if tally.dropped:
        notes.append(f"dropped: {_listed(tally.dropped)}")
    if filtered > kept.count:
        notes.append(f"the first {section.limit} of {filtered} are used")
    return kept.rows(name, fingerprint, notes, left_out)


def _read(name: str, section: Source, seed: int, key: str, tally: Tally) -> tuple[Sequence[Row], Sequence[str], str]:
    """Read the rows of a source, their locations and its fingerprint."""
    if section.builtin:
        with Work(f"making {name}"):
            rows = _generate(name, section, seed)
        places = Locations(f"{section.source} row {index + 1}" for index in range(len(rows)))
        return rows, places, fs.hash_json(rows)
    try:
        return sources.read(section, sources.TEXT_COLUMNS[name], tally)
    except DataError as error:
        if error.where == section.source and looks_like_id(section.source):  # no path: name the recipe's key
            error.what, error.where = f"{section.source}: {error.what}", f"{key}.source"
        raise


def _bad_rows(
    bad: Sequence[str], rows: Sequence[Row], name: str, section: Source, key_path: str, tally: Tally
) -> DataError:
    """Make one error about all lines that cannot be read and all rows that cannot be used."""
    drop = f"or leave them out: {key_path}.bad_rows: drop"
    lines = text_files.broken(tally.unreadable, tally.unreadable_fix) if tally.unreadable else None
    if lines is not None and not bad:
        return DataError(lines.what, fix=f"{lines.fix}; {drop}")
    guessed = None if section.columns else guess.section_line(name, section, rows)
    mapped = f"say which columns they are:\n    {guessed}\n  or " if guessed else ""
    if section.columns:
        known = ", ".join(f"{key} is {' + '.join(columns.names_of(names))}" for key, names in section.columns.items())
        ways = f"correct or remove these rows (by `columns` {known})"
    else:
        ways = "correct or remove these rows" + ("" if guessed else ", map the columns with `columns: {ours: theirs}`")
    what = f"{len(bad)} of {len(rows)} rows of {key_path} cannot be used:{text_files.first_of(bad)}"
    if lines is not None:
        what, ways = f"{lines.what}\n  and {what}", f"{ways}; lines: {lines.fix}"
    return DataError(what, fix=f"{mapped}{ways}, {drop}")


def _require_columns(key_path: str, section: Source, rows: Sequence[Row]) -> None:
    for key, column in ((key, column) for key, names in section.columns.items() for column in columns.names_of(names)):
        if not any(columns.value_at(row, column) is not None or column in row for row in rows):
            have = sorted({key for row in rows for key in row})
            raise DataError(
                f"no row has the column {column!r} that {key_path}.columns.{key} names",
                where=section.source,
                fix=f"the file's columns are: {', '.join(have) or 'none'}",
            )


def _listed(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(dropped.items()))


def _generate(name: str, section: Source, seed: int) -> list[Row]:
    from rlhfctl.world import programs, reviews, sentiment

    count = section.rows
    assert count is not None  # the schema requires it for a built-in source
    if section.source == PROGRAMS:
        return programs.prompts(count, seed) if name == "prompts" else list(programs.demonstrations(count, seed))
    if section.source == SENTIMENT:
        labelled: Sequence[Row] = (sentiment.prompts if name == "prompts" else sentiment.demonstrations)(count, seed)
        return list(labelled)
    if isinstance(section, Compared):
        return [dict(row) for row in reviews.preferences(count, seed, section.label_noise)]
    make = reviews.prompts if name == "prompts" else reviews.demonstrations
    return [dict(row) for row in make(count, seed)]


# ---------------------------------------------------------------- splitting


def _split_demonstrations(section: Demonstrations, rows: Rows, seed: int) -> Rows:
    """Hold out the share of the prompts that `section` states; without one the rows stay as they are."""
    if section.heldout is None:
        return rows
    places = demonstration_places(section.heldout, rows.rows, seed)
    return replace(rows, split=DemonstrationSplit.of(rows.items, places), places=places)


def _split_prompts(section: Prompts, seed: int) -> Rows:
    """Load the prompts, also from separate sources for eval and test, and split them; count prompts in no part."""
    loaded = load_prompts(section, seed)
    apart: dict[str, Rows] = {}
    with _collect_errors() as trying:
        for part in ("eval", "test"):
            source: Source | None = getattr(section, f"{part}_source")
            if source is not None:
                with trying:
                    apart[part] = _load_source("prompts", source, seed, f"data.prompts.{part}_source")
    sets = (loaded, *(apart[part] for part in ("eval", "test") if part in apart))
    places = prompt_places(section, loaded.rows, seed, **{f"{part}_rows": rows.rows for part, rows in apart.items()})
    used = bytearray(sum(len(rows.rows) for rows in sets))
    for part_places in places.values():
        for place in part_places:
            used[place] = 1
    notes = list(loaded.notes)
    if more := len(loaded.rows) - sum(used[: len(loaded.rows)]):
        notes.append(f"{more} rows repeat a prompt that is kept for eval or test, and are left out")
    begin = len(loaded.rows)
    for part, rows in apart.items():
        end = begin + len(rows.rows)
        notes += [f"{part}_source: {note}" for note in rows.notes]
        count = sum(used[begin:end])
        notes += [f"{part}_source: {count} of {end - begin} rows are used: each prompt once, and none in two parts"]
        begin = end
    left_out = {location: reason for rows in sets for location, reason in rows.left_out.items()}
    numbers = itertools.accumulate(used, initial=-1)  # the place that a used row gets
    moved = array("q", itertools.islice(numbers, 1, None))
    kept = array("q", (place for place, is_used in enumerate(used) if is_used))
    items, locations = Chained(*(rows.items for rows in sets)), Chained(*(rows.locations for rows in sets))
    for place, is_used in enumerate(used) if len(kept) < len(used) else ():
        if not is_used:
            leave_out(left_out, locations[place], "in no part")
    chosen = loaded.items if len(kept) == len(used) and not apart else pick(items, kept)
    if section.fixed_prompt is not None:
        chosen = _with_fixed_prompt(chosen, section.fixed_prompt)
    parts = {name: array("q", (moved[place] for place in part)) for name, part in places.items()}
    droppable = b"".join(bytes(rows.droppable) or bytes(len(rows.items)) for rows in sets)
    kept_locations = Locations(locations[place] for place in kept)
    for location in kept_locations if left_out else ():
        left_out.pop(location, None)
    return Rows(
        "prompts",
        chosen,
        fs.hash_json([rows.fingerprint for rows in sets]) if apart else loaded.fingerprint,
        tuple(notes),
        PromptSplit.of(chosen, parts),
        kept_locations,
        left_out,
        bytes(droppable[place] for place in kept) if any(droppable) else b"",
        parts,
    )


def _with_fixed_prompt(rows: Sequence[Item], fixed: str) -> Sequence[Item]:
    """Put one prompt in the place of every row's own, which moves to the column REPLACED: a text or messages."""
    kept: Store[Item] = Store()
    for row in rows:
        assert isinstance(row, dict)
        own = row["prompt"]
        prompt = fixed if isinstance(own, str) else [{"role": "user", "content": fixed}]
        kept.append({**row, "prompt": prompt, REPLACED: own})
    return kept.items()


def require_a_batch(prompts: int, section: Ppo) -> None:
    """Raise RecipeError if there are fewer training prompts than PPO needs for a batch."""
    if prompts * section.num_generations < section.batch_size:
        left = "prompt" if prompts == 1 else "prompts"
        what = f"{prompts} {left} left to train on: too few to fill one batch of {section.batch_size}"
        raise RecipeError([Problem("ppo.per_device_train_batch_size", what, fix="lower it, or give more prompts")])
