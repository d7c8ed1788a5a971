"""`validate --deep`: what a recipe alone cannot tell, checked before hours are spent.

Checks the options under `trainer:` against the installed TRL, every data row, reward functions, the PPO engine and
that the model's tokenizer loads. Trains nothing, loads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhfctl.pipeline import stages_of
from rlhfctl.recipe.load import LoadedRecipe
from rlhfctl.recipe.schema import Recipe
from rlhfctl.rewards.function import load_function
from rlhfctl.training import data, hf_events, loading, model_checks, ppo_trl, preflight, tokenizing
from rlhfctl.training.encoding import texts_of
from rlhfctl.training.leaks import find_leaks


def check(loaded: LoadedRecipe) -> Iterator[str]:
    """A line for each thing that was found right; the first thing that is not raises its error."""
    with loaded.placing(), loading.quietly():
        yield from _check(loaded.recipe)


def _check(recipe: Recipe) -> Iterator[str]:
    trained = {"sft": recipe.sft, "reward": recipe.reward}
    hf_events.check_trainers(
        {key: value.trainer for key, value in trained.items() if value is not None}, recipe.model.dtype
    )
    yield "trainer options: known to the installed TRL"
    rows_of = data.check_all(recipe.data, recipe.data_seed)
    for name, rows in rows_of.items():
        yield f"data.{name}: {len(rows.rows)} rows, all usable (fingerprint {rows.fingerprint[:12]})"
        yield from (f"data.{name}: {sentence}" for sentence in rows.notes)
    yield from (f"warning: {sentence}" for sentence in find_leaks(rows_of))
    judges = recipe.compare.judges if recipe.compare is not None else []
    functions = [recipe.reward.function] if recipe.reward is not None and recipe.reward.function is not None else []
    weighted = recipe.ppo.rewards or {} if recipe.ppo is not None else {}
    for spec in [*functions, *(name for name in [*weighted, *judges] if ":" in name)]:
        load_function(spec, Path(recipe.folder or "."))
        yield f"function {spec}: found"
    if recipe.ppo is not None:
        if recipe.ppo.engine == "trl":
            ppo_trl.require()
        yield f"ppo.engine {recipe.ppo.engine}: installed"
    if (checked := loading.check_quantization(recipe.model)) is not None:
        yield checked
    texts = texts_of(rows_of["demonstrations"].rows) if "demonstrations" in rows_of else []
    model_checks.check_base(recipe, stages_of(recipe))
    tokenizer = tokenizing.tokenizer_from_recipe(recipe.model, texts)
    preflight.check(recipe, rows_of, stages_of(recipe), tokenizer)
    for sentence in model_checks.check_reward(recipe, rows_of, stages_of(recipe)):
        yield f"warning: {sentence}"
    yield f"model {recipe.model.path or 'with new weights'}: tokenizer with {len(tokenizer)} tokens, fit for the data"
