"""Check data, trainer options, functions and tokenizer of a recipe before hours are spent: `validate --deep`.

Checks the options under `trainer:` against the installed TRL, every data row, reward functions, the PPO engine, that
the model's tokenizer loads, and that the server of the judge `endpoint` answers. Trains nothing, loads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhfctl.artifacts import model_at, resolve_source
from rlhfctl.data import load, preflight, types
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import Encoder, any_conversation
from rlhfctl.data.frames import format_warnings
from rlhfctl.data.leaks import find_leaks
from rlhfctl.graph import functions_of, metrics_of, stages_of, trainer_options
from rlhfctl.judging import client
from rlhfctl.models import checks, loading, tokenizing
from rlhfctl.recipe.load import LoadedRecipe
from rlhfctl.recipe.made_data import data_at_start, made_data, source_stages
from rlhfctl.recipe.schema import Recipe
from rlhfctl.recipe.sections.scorers import is_address, model_in
from rlhfctl.rewards.build import Resources, build_function
from rlhfctl.rewards.episode import make_episode
from rlhfctl.rewards.function import load_function
from rlhfctl.rewards.metric import require_metric
from rlhfctl.stage_order import require_sources
from rlhfctl.tools import trackers
from rlhfctl.training.trl import options, ppo

_RESPONSE_TOKENS = 4  # the prompt's last tokens are the made-up response, which works with any vocabulary


def check(loaded: LoadedRecipe) -> Iterator[str]:
    """Yield one line per passed check; the first check that fails raises its error."""
    with loaded.locating(), loading.silence_libraries():
        yield from _check(loaded.recipe)


def _check(recipe: Recipe) -> Iterator[str]:
    require_sources(recipe)
    options.check_trainers(trainer_options(recipe), recipe.model.dtype)
    yield "trainer options: known to the installed TRL"
    trackers.require(recipe.report_to)
    rows_of = load.check_all(data_at_start(recipe.data), recipe.data_seed)
    for name, rows in rows_of.items():
        yield f"data.{name}: {len(rows.rows)} rows (fingerprint {rows.fingerprint[:12]})"
        yield from (f"data.{name}: {sentence}" for sentence in rows.notes)
    for name in made_data(recipe.data):
        yield f"data.{name}: checked when {', '.join(source_stages([name], recipe.data))} has made it"
    yield from (f"warning: {sentence}" for sentence in (*format_warnings(rows_of), *find_leaks(rows_of)))
    functions = functions_of(recipe)
    folder = Path(recipe.folder or ".")
    for spec in functions:
        if (model := model_in(spec)) is not None:
            resolve_source(model_at(model, folder), "scorer's model")
            yield f"model {model}: named by the scorer {spec}"
        elif not is_address(spec):
            load_function(spec, folder)
            yield f"function {spec}: found"
    if recipe.ppo is not None:
        if recipe.ppo.engine == "trl":
            ppo.require()
        yield f"ppo.engine {recipe.ppo.engine}: installed"
    if (checked := loading.check_quantization(recipe.model)) is not None:
        yield checked
    checks.check_base(recipe, stages_of(recipe))
    prepared = tokenizing.prepare(recipe, rows_of)
    tokenizer = prepared.tokenizer
    yield from prepared.notes
    kept = preflight.check(recipe, rows_of, stages_of(recipe), tokenizer)
    yield from preflight.new_notes(rows_of, kept)
    if any_conversation(kept):
        yield from (f"warning: {sentence}" for sentence in template_warnings(tokenizer))
    rows_of = kept
    if recipe.compare is not None and (endpoint := recipe.compare.endpoint) is not None:
        doubts = [*client.check(endpoint), *client.knock(endpoint)]
        yield from (f"warning: {sentence}" for sentence in doubts)
        yield f"judge {endpoint.model} at {endpoint.host}: asked one short question"
    for sentence in checks.check_reward(recipe, rows_of, stages_of(recipe)):
        yield f"warning: {sentence}"
    for name in sorted({name for names in metrics_of(recipe).values() for name in names}):
        require_metric(name, rows_of["prompts"].rows if "prompts" in rows_of else [])
        yield f"metric {name}: its library and references are there"
    yield from _call_functions(functions, recipe, rows_of, tokenizer)
    yield f"model {recipe.model.path or 'with new weights'}: tokenizer with {len(tokenizer)} tokens, fit for the data"


def _call_functions(
    specs: Sequence[str], recipe: Recipe, rows_of: Mapping[str, types.Rows], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """Call each reward function once, on the first prompt and a made-up response; RewardFailed if it fails."""
    if not specs or "prompts" not in rows_of:
        return
    row = rows_of["prompts"].rows[0]
    prompt_ids = Encoder(tokenizer).prompt(row["prompt"], row.get("tools"))
    ids = [*prompt_ids[-_RESPONSE_TOKENS:], tokenizer.eos_token_id]
    episode = make_episode(tokenizer, row, prompt_ids, ids)
    resources = replace(Resources.of(recipe), retries=0)
    for spec in (spec for spec in specs if model_in(spec) is None):
        (value,) = build_function(spec, resources).optional([episode])
        given = "None (not its business)" if value is None else f"{value:g}"
        yield f"{'server' if is_address(spec) else 'function'} {spec}: called once, on the first prompt: {given}"
