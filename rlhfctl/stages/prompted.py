"""Load the frozen model of `reward.prompted_classifier` for PPO and compare, and choose its few examples.

The model is the stage's parent `frozen`: base*, or the causal or masked model that the recipe names. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from rlhfctl.data import labelled
from rlhfctl.data.types import Row
from rlhfctl.graph import FROZEN
from rlhfctl.models import adapter_folders, build, loading, tokenizing
from rlhfctl.models.label_words import LabelWords, is_masked, load_masked_lm
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier
from rlhfctl.rewards.prompted_classifier import PromptScores
from rlhfctl.stages.context import Context


def loader_of(ctx: Context, batch_size: int) -> Callable[[], PromptScores] | None:
    """Return a function that loads the frozen model when it is first called; None if the recipe has none.

    `batch_size`: texts per forward.
    """
    section = None if ctx.recipe.reward is None else ctx.recipe.reward.prompted_classifier
    if section is None or FROZEN not in ctx.parents:
        return None
    return cache(lambda: _load(section, ctx, batch_size))


def _load(section: PromptedClassifier, ctx: Context, batch_size: int) -> PromptScores:
    source, options = ctx.parents[FROZEN], loading.options(ctx.recipe.model)
    masked = False
    if source.artifact is None and not adapter_folders.is_adapter(folder := adapter_folders.fetched(source.name)):
        trusted = ctx.recipe.model.trust_remote_code
        masked = is_masked(loading.read_config(folder, "model", trust_remote_code=trusted))
    if masked:
        model = load_masked_lm(folder, options["dtype"], trust_remote_code=trusted)
        tokenizer = tokenizing.load_tokenizer(folder)
    else:
        base = ctx.loader.load_base(source)
        model, tokenizer = base.model, base.tokenizer
    words = LabelWords(
        build.to_device(model),
        tokenizer,
        section.template,
        section.verbalizers,
        batch_size=batch_size,
        say=ctx.warn,
    )
    return PromptScores(section, words, Processes.here())


def few_shot(
    rows: Sequence[Row], prompts: Sequence[list[int]], section: PromptedClassifier | None
) -> tuple[Sequence[Row], Sequence[list[int]]]:
    """Keep the first `shots` rows of each label, with their ids; all rows without `shots`. DataError for too few."""
    if section is None or section.shots is None:
        return rows, prompts
    places = labelled.few_shot(rows, section)
    return [rows[place] for place in places], [prompts[place] for place in places]
