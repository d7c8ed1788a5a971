"""`rlhfctl data`: report what a recipe's data sets hold, as the stages will read them, before anything is trained.

Loads the rows as a run does, and the tokenizer; counts tokens with the encoder that the stages use. Reports dropped
rows, token lengths, duplicates, examples, and test prompts that also stand in the training data. Loads no weights and
writes nothing.
"""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rlhfctl.dashboard.text import visible
from rlhfctl.data import load, preflight, types
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import IGNORED, Encoder, any_conversation
from rlhfctl.data.fitting import longest_prompt, longest_row
from rlhfctl.data.frames import format_warnings
from rlhfctl.data.leaks import find_leaks
from rlhfctl.data.splits import prompt_key
from rlhfctl.data.store import Digests
from rlhfctl.data.types import Row, Rows
from rlhfctl.events import Work
from rlhfctl.graph import stages_of
from rlhfctl.models import loading, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.made_data import data_at_start
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stage_order import require_sources

_BINS = 24
_LONGEST, _EXAMPLES = 3, 5
_SHOWN = 72
_EXAMPLE_CHARS = 300
MAX_LENGTH = 1024  # tokens: the default of max_length in TRL's trainers
_STYLES = {"prompt": "", "rejected": "magenta"}
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Lengths:
    """Token counts of one part of the rows (prompt, chosen, ...): one count per row."""

    part: str
    counts: Sequence[int]

    def summary(self) -> dict[str, Any]:
        """Return the minimum, median, 95th percentile, maximum and histogram of the counts."""
        ordered = sorted(self.counts)

        def quantile(share: float) -> int:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return {
            "min": ordered[0],
            "median": quantile(0.5),
            "p95": quantile(0.95),
            "max": ordered[-1],
            "histogram": self.histogram(),
        }

    def histogram(self) -> list[int]:
        """Count the rows in each of 24 bins of equal width from 0 to the longest."""
        longest = max(1, *self.counts)
        bins = Counter(min(_BINS - 1, count * _BINS // longest) for count in self.counts)
        return [bins[index] for index in range(_BINS)]


@dataclass(frozen=True)
class SetReport:
    """Report on one data set: demonstrations, preferences or prompts."""

    name: str
    rows: int
    source: str
    splits: dict[str, int]
    notes: tuple[str, ...]
    prompts: int  # distinct ones
    duplicates: int  # rows equal to an earlier row
    lengths: tuple[Lengths, ...]
    fits: tuple[str, ...]  # one sentence per stage that reads them: how many rows fit, or are cut or dropped
    longest: tuple[tuple[int, int, str], ...]  # (row number, tokens, beginning of its text)
    examples: tuple[tuple[tuple[str, str], ...], ...]  # each in parts: (part's name, decoded text)


@dataclass(frozen=True)
class Report:
    """Report on all data sets of a recipe, and on prompts that leak from training into the test."""

    sets: tuple[SetReport, ...]
    leaks: tuple[str, ...]
    warnings: tuple[str, ...] = ()  # about the data sets together, and about the chat template
    notes: tuple[str, ...] = ()  # changes made to the model's tokenizer

    def to_json(self) -> dict[str, Any]:
        """Convert the report into the JSON that `data --json` writes."""
        return {
            "sets": {
                one.name: {
                    "source": one.source,
                    "rows": one.rows,
                    "splits": one.splits,
                    "notes": list(one.notes),
                    "distinct_prompts": one.prompts,
                    "duplicates": one.duplicates,
                    "fits": list(one.fits),
                    "tokens": {lengths.part: lengths.summary() for lengths in one.lengths},
                }
                for one in self.sets
            },
            "leaks": list(self.leaks),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


@loading.silence_libraries()
def examine(recipe: Recipe) -> Report:
    """Load and measure all data sets of `recipe`."""
    require_sources(recipe)
    loaded = load.check_all(data_at_start(recipe.data), recipe.data_seed)
    prepared = tokenizing.prepare(recipe, loaded)
    tokenizer = prepared.tokenizer
    loaded = preflight.check(recipe, loaded, (), tokenizer)
    context = _context(recipe, tokenizer)
    sets = tuple(_examine(rows, recipe, tokenizer, context) for rows in loaded.values())
    template = template_warnings(tokenizer) if any_conversation(loaded) else ()
    return Report(sets, tuple(find_leaks(loaded)), (*format_warnings(loaded), *template), prepared.notes)


def _context(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest context, in tokens, that the configuration of the recipe's model states."""
    if recipe.model.init is not None:
        return recipe.model.init.max_position_embeddings
    return context_of(loading.load_config(recipe.model))


def _examine(rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: int | None) -> SetReport:
    section = getattr(recipe.data, rows.name)
    encoder = Encoder(tokenizer)
    parts: dict[str, array[int]] = {}  # those of the first row, and the lengths of all rows that have them
    totals, longest_side, prompt_lengths = array("i"), array("i"), array("i")
    examples: list[dict[str, list[int]]] = []
    keys, prompts = Digests(), Digests()
    for row in Work(f"measuring {rows.name}", len(rows.rows)).through(rows.rows):
        ids = _parts(row, rows.name, encoder)
        parts = parts or {name: array("i") for name in ids}
        for name in parts.keys() & ids.keys():
            parts[name].append(len(ids[name]))
        totals.append(sum(map(len, ids.values())))
        prompt_lengths.append(len(ids.get("prompt", ())))
        longest_side.append(max((len(side) for name, side in ids.items() if name != "prompt"), default=0))
        if len(examples) < _EXAMPLES:
            examples.append(ids)
        keys.add(json.dumps(row, sort_keys=True, default=str))
        if "prompt" in row:
            prompts.add(prompt_key(row["prompt"]))
    order = heapq.nsmallest(_LONGEST, range(len(totals)), key=lambda index: -totals[index])
    longest = [_parts(rows.rows[index], rows.name, encoder) for index in order]
    return SetReport(
        name=rows.name,
        rows=len(rows.rows),
        source=", ".join(part.source for part in section.parts),
        splits=_splits(rows),
        notes=rows.notes,
        prompts=prompts.distinct(),
        duplicates=len(totals) - keys.distinct(),
        lengths=tuple(Lengths(name, counts) for name, counts in parts.items()),
        fits=tuple(_fits(rows, prompt_lengths, longest_side, recipe, context)),
        longest=tuple(
            (index + 1, totals[index], _begin(ids, tokenizer)) for index, ids in zip(order, longest, strict=True)
        ),
        examples=tuple(tuple((name, tokenizer.decode(ids)) for name, ids in row.items()) for row in examples),
    )


def _fits(
    rows: Rows, prompts: Sequence[int], sides: Sequence[int], recipe: Recipe, context: int | None
) -> Iterator[str]:
    """Yield sentences about rows that a stage will cut or drop because they are too long.

    `prompts` and `sides`: per row the tokens of its prompt, and of its longest side after it.
    """
    if rows.name == "prompts":
        yield from _prompts_fit(rows, prompts, recipe, context)
        return
    if rows.name == "pretraining":
        if recipe.ppo is not None and recipe.ppo.ptx is not None:
            limit, name = longest_row(recipe.ppo.ptx.max_length, context)
            over = sum(prompt + side > limit for prompt, side in zip(prompts, sides, strict=True)) if limit else 0
            yield _sentence("ppo.ptx", over, len(sides), "cuts", "rows", f"{name} tokens")
        return
    stage, section = ("sft", recipe.sft) if rows.name == "demonstrations" else ("reward", recipe.reward)
    if section is None or stage not in stages_of(recipe) or section.trainer.get("packing"):
        return
    stated = section.trainer.get("max_length", MAX_LENGTH)
    limit, name = longest_row(stated if isinstance(stated, int) else None, context)
    if limit is None:
        return
    done = "cuts" if stage == "sft" else "drops"
    over = sum(prompt + side > limit for prompt, side in zip(prompts, sides, strict=True))
    yield _sentence(stage, over, len(sides), done, "rows", f"{name} tokens")


def _prompts_fit(rows: Rows, counts: Sequence[int], recipe: Recipe, context: int | None) -> Iterator[str]:
    places = rows.places
    done = "cuts" if recipe.data.overlong_prompts == "truncate" else "drops"
    for stage, used, response in (
        ("ppo", ("train", "eval"), recipe.ppo.response_length if recipe.ppo else None),
        ("compare", ("test",), recipe.compare.max_new_tokens if recipe.compare else None),
    ):
        limit = longest_prompt(recipe.data.max_prompt_length, context, response or 0)
        if response is not None and limit is not None:
            over = sum(counts[place] > limit for part in used for place in places[part])
            yield _sentence(stage, over, sum(len(places[part]) for part in used), done, "prompts", f"{limit} tokens")


def _sentence(stage: str, over: int, count: int, done: str, what: str, limit: str) -> str:
    if not over:
        return f"{stage}: all {count} {what} fit into {limit}"
    return f"{stage}: {done} {over} of {count} {what}, which are longer than {limit}"


def _parts(row: Row, name: str, encoder: Encoder) -> dict[str, list[int]]:
    """Encode one row into its parts (name -> token ids), as its stage reads them."""
    if name == "prompts":
        return {"prompt": encoder.prompt(row["prompt"], row.get("tools"))}
    if name == "preferences":
        prompt, chosen = encoder.pair(row["prompt"], row["chosen"], row.get("tools"))
        return {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": encoder.pair(row["prompt"], row["rejected"], row.get("tools"))[1],
        }
    encoded = encoder.demonstration(row)
    learned = sum(label != IGNORED for label in encoded["labels"])
    before = len(encoded["input_ids"]) - learned
    ids = encoded["input_ids"]
    return {"prompt": ids[:before], "completion": ids[before:]} if before else {"text": ids}


def _splits(rows: Rows) -> dict[str, int]:
    parts = {"train": rows.rows} if rows.split is None else vars(rows.split)
    return {name: types.count_examples(part) for name, part in parts.items()}


def _begin(parts: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase) -> str:
    ids = [token for part in parts.values() for token in part]
    return tokenizer.decode(ids[:_SHOWN])


# ---------------------------------------------------------------- for people


def describe(report: Report, *, unicode: bool = True) -> Iterator[RenderableType]:
    """Yield the report as rich renderables, one data set after the other."""
    for one in report.sets:
        yield Text(f"{one.name}: {one.rows} rows from {one.source}", style="bold")
        if len(one.splits) > 1:
            yield Text("  " + ", ".join(f"{count} {name}" for name, count in one.splits.items()))
        for sentence in one.notes:
            yield Text(f"  {sentence}")
        if one.prompts:
            yield Text(f"  {one.prompts} distinct prompts, {one.duplicates} rows equal to an earlier one")
        for sentence in one.fits:
            yield Text(f"  {sentence}")
        yield _length_table(one.lengths, unicode=unicode)
        yield Text("  the longest, prompt and responses together:")
        for row, tokens, begin in one.longest:
            text = visible(begin)
            shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
            yield Text(f"  row {row} has {tokens} tokens: {shown}", style="dim")
        yield Text(f"  the first {len(one.examples)}, as the model reads them:")
        yield _example_table(one.examples)
        yield Text()
    for sentence in report.notes:
        yield Text(sentence)
    for sentence in (*report.warnings, *report.leaks):
        yield Text(f"warning: {sentence}", style="yellow")
    if not report.leaks:
        yield Text("no test prompt is in the demonstrations or preferences")


def _example_table(examples: Sequence[Sequence[tuple[str, str]]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for number, example in enumerate(examples):
        if number:
            table.add_row()
        for part, text in example:
            table.add_row(part, Text(_short(visible(text)), _STYLES.get(part, "cyan")))
    return table


def _short(text: str) -> str:
    """Shorten a text to its beginning and its end, where special tokens stand."""
    half = _EXAMPLE_CHARS // 2
    return text if len(text) <= _EXAMPLE_CHARS else f"{text[:half]} [...] {text[-half:]}"


def _length_table(lengths: Sequence[Lengths], *, unicode: bool) -> Table:
    table = Table("tokens", "min", "median", "95%", "max", "from 0 to max", box=None, padding=(0, 2, 0, 2))
    for one in lengths:
        found = one.summary()
        numbers = [str(found[key]) for key in ("min", "median", "p95", "max")]
        table.add_row(one.part, *numbers, _bars(found["histogram"], unicode=unicode))
    return table


def _bars(counts: Sequence[int], *, unicode: bool) -> str:
    blocks = _BLOCKS if unicode else " .:-=+*#@"
    top = max(counts)
    return "".join(blocks[0 if not count else max(1, round(count / top * (len(blocks) - 1)))] for count in counts)
