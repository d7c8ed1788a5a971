"""Count the tokens of every row of a recipe's data, as its stages read them, without loading weights.

Reads rows, the tokenizer and the model's configuration. Writes nothing that stays. stages.py predicts steps, memory and
disk from these counts.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhfctl.data import preflight
from rlhfctl.data.encoding import EncodedGroup, Encoder
from rlhfctl.data.fitting import longest_row
from rlhfctl.data.labelled import few_shot
from rlhfctl.data.splits import split_in_half
from rlhfctl.data.types import PreferenceSplit, PromptSplit, Rows, count_examples
from rlhfctl.graph import stages_of
from rlhfctl.models import build, checks, loading, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import REPLACED, Recipe

# A group of responses by its pairs; each side is (index of the response, its length in tokens with the prompt).
GroupLengths = tuple[tuple[tuple[int, int], tuple[int, int]], ...]


@dataclass(frozen=True)
class Lengths:
    """The length in tokens of every row, as the stages read it, and the tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    tokenizer_bytes: int
    added: tuple[int, ...] = ()  # ids of the chat template's marks, whose embedding rows sft trains
    sft: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    other_half: frozenset[int] = frozenset()  # positions in these two of the pairs of the held-out reward model
    groups: tuple[GroupLengths, ...] = ()  # as `group_rows` makes them of the pairs
    other_groups: tuple[GroupLengths, ...] = ()  # those of the held-out reward model
    heldout: int = 0
    prompts: tuple[int, ...] = ()
    text: int = 0  # tokens of the longest row of the next-token loss in PPO, as it is cut
    eval: int = 0
    test: tuple[int, ...] = ()
    longest_example: int = 0  # the longest prompt that a fixed one stands for; 0 where there is none

    @classmethod
    def of(cls, recipe: Recipe, rows: Mapping[str, Rows]) -> Lengths:
        """Encode every row and count its tokens."""
        checks.check_base(recipe, stages_of(recipe))
        prepared = tokenizing.prepare(recipe, rows)
        tokenizer = prepared.tokenizer
        rows = preflight.check(recipe, rows, stages_of(recipe), tokenizer)
        encoder = Encoder(tokenizer)
        config, lengths = _config(recipe, tokenizer), dict[str, Any]()
        if "demonstrations" in rows and recipe.sft is not None:
            trained = rows["demonstrations"].demonstrations.train
            lengths["sft"] = tuple(len(encoder.demonstration(row)["input_ids"]) for row in trained)
        if recipe.ppo is not None and recipe.ppo.ptx is not None and recipe.ppo.ptx.data in rows:
            limit, _ = longest_row(recipe.ppo.ptx.max_length, context_of(config))
            texts = rows[recipe.ppo.ptx.data].rows
            longest = max(len(encoder.demonstration(row)["input_ids"]) for row in texts)
            lengths["text"] = longest if limit is None else min(longest, limit)
        if "preferences" in rows:
            split = cast(PreferenceSplit, rows["preferences"].split)
            own, other = split.train, split.train[:0]
            if recipe.reward is not None and recipe.reward.heldout:
                own, other = split_in_half(split.train, recipe.data_seed, steady=recipe.has_steady_splits)
            chosen, rejected = array("i"), array("i")
            for name, groups in (("groups", own), ("other_groups", other)):
                found: list[GroupLengths] = []
                for group in map(encoder.preference, groups):
                    chosen.extend(len(pair["chosen_ids"]) for pair in group.pairs)
                    rejected.extend(len(pair["rejected_ids"]) for pair in group.pairs)
                    found += _groups(group)
                lengths[name] = tuple(found)
            lengths["other_half"] = frozenset(range(count_examples(own), len(chosen)))
            lengths["chosen"], lengths["rejected"] = tuple(chosen), tuple(rejected)
            lengths["heldout"] = count_examples(split.heldout)
        if "prompts" in rows:
            parts = cast(PromptSplit, rows["prompts"].split)
            classifier = None if recipe.reward is None else recipe.reward.prompted_classifier
            few = range(len(parts.train)) if classifier is None else few_shot(parts.train, classifier)
            asked = (parts.train[place] for place in few)
            lengths["prompts"] = tuple(len(encoder.prompt(row["prompt"], row.get("tools"))) for row in asked)
            lengths["test"] = tuple(len(encoder.prompt(row["prompt"], row.get("tools"))) for row in parts.test)
            lengths["eval"] = len(parts.eval)
            replaced = (
                row[REPLACED] for part in (parts.train, parts.eval, parts.test) for row in part if REPLACED in row
            )
            lengths["longest_example"] = max((len(encoder.prompt(one)) for one in replaced), default=0)
        with tempfile.TemporaryDirectory(prefix="rlhfctl-plan-") as folder:
            tokenizing.save_tokenizer(tokenizer, Path(folder))
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
        return cls(tokenizer, config, size, prepared.added, **lengths)


def _groups(group: EncodedGroup) -> Iterator[GroupLengths]:
    for layer in group.layers():
        yield tuple(
            ((better, len(layer.ids[better])), (worse, len(layer.ids[worse])))
            for better, worse in layer.group.comparisons
        )


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Load or make the model's configuration, with one embedding row per token and for pad."""
    section = recipe.model
    if section.init is not None:
        return build.new_config(section.init, tokenizer)
    assert section.path is not None
    config = loading.load_config(section)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    return config
