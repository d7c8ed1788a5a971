"""`validate --deep`: what a recipe alone cannot tell, checked before hours are spent.

Checks the options under `trainer:` against the installed TRL, every data row, reward functions, the PPO engine and
that the model's tokenizer loads. Trains nothing, loads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhfctl.recipe.load import LoadedRecipe
from rlhfctl.rewards.function import load_function
from rlhfctl.training import data, hf_events, models, ppo_trl


def check(loaded: LoadedRecipe) -> Iterator[str]:
    """A line for each thing that was found right; the first thing that is not raises its error."""
    recipe = loaded.recipe
    trained = {"sft": recipe.sft, "reward": recipe.reward}
    hf_events.check_trainers({key: value.trainer for key, value in trained.items() if value is not None})
    yield "trainer options: known to the installed TRL"
    for name, rows in data.check_all(recipe.data, recipe.seed).items():
        yield f"data.{name}: {len(rows.rows)} rows, all usable (fingerprint {rows.fingerprint[:12]})"
        yield from (f"data.{name}: {sentence}" for sentence in rows.notes)
    judges = recipe.compare.judges if recipe.compare is not None else []
    functions = [recipe.reward.function] if recipe.reward is not None and recipe.reward.function is not None else []
    for spec in [*functions, *(judge for judge in judges if ":" in judge)]:
        load_function(spec, Path(recipe.folder or "."))
        yield f"function {spec}: found"
    if recipe.ppo is not None:
        if recipe.ppo.engine == "trl":
            ppo_trl.require()
        yield f"ppo.engine {recipe.ppo.engine}: installed"
    if recipe.model.path is not None:
        tokenizer = models.load_tokenizer(
            recipe.model.path, revision=recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code
        )
        yield f"model {recipe.model.path}: tokenizer with {len(tokenizer)} tokens"
