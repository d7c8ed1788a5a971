"""Connect the pipeline to the stages and their libraries: read data, check later stages in advance, run a stage.

Each function imports what it needs when it is called; the pipeline can decide which stages run without loading torch.
Decides nothing: the pipeline passes the data, the stage and the parents.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, Source, model_at, resolve_source
from rlhfctl.errors import HandoffError
from rlhfctl.events import report_progress_to
from rlhfctl.graph import STAGES, Waiting, data_of_kind, metrics_of, trainer_options
from rlhfctl.recipe.schema import Data, Recipe
from rlhfctl.recipe.sections.scorers import model_in
from rlhfctl.stages.context import Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhfctl.data.types import Rows

_TOKENIZER = "tokenizer_config.json"


# ---------------------------------------------------------------- without torch


def load_data_libraries() -> None:
    """Import the libraries that read data."""
    importlib.import_module("rlhfctl.data.load")


def load_data(data: Data, seed: int, names: Collection[str], *, steady: bool = False) -> dict[str, Rows]:
    """Load, check and split the data sets of `names`; DataError with the faults of all of them.

    `steady`: each prompt of a pair keeps its side of the split when others are added.
    """
    from rlhfctl.data.load import check_all

    return check_all(data, seed, names, steady=steady)


def data_warnings(data: Mapping[str, Rows]) -> list[str]:
    """Return warnings that need several data sets at once: mixed kinds, different frames, leaked test prompts."""
    from rlhfctl.data.frames import format_warnings
    from rlhfctl.data.leaks import find_leaks

    fix = "the verdict would measure memory; leave these rows out with data.leaks: drop, or use other test prompts"
    return [*format_warnings(data), *(f"{sentence}: {fix}" for sentence in find_leaks(data))]


def function_fingerprint(spec: str, folder: Path) -> str:
    """Return the fingerprint of a scorer from outside the run: the code of "module:name" in `folder`, the files of a
    model, or the address of a server."""
    model = model_in(spec)
    if model is not None:
        return fs.hash_json([spec, resolve_source(model_at(model, folder), "scorer's model").fingerprint])
    from rlhfctl.rewards import function

    return function.function_fingerprint(spec, folder)


def bases_of(path: str) -> list[str]:
    """Return the base models that an adapter folder builds on; an empty list for a model folder."""
    from rlhfctl.models import adapter_folders

    return adapter_folders.bases_of(path)


# ---------------------------------------------------------------- with torch


class Checked(NamedTuple):
    """The result of the check in advance: rows that the stages read, warnings, and whether the rows were encoded."""

    data: dict[str, Rows]
    warnings: list[str]
    encoded: bool


def look_ahead(
    recipe: Recipe,
    stages: Sequence[str],
    base: Source | None,
    data: Mapping[str, Rows],
    log: Path,
    reward: str | None = None,
    *,
    samples: bool = False,
) -> Checked:
    """Check the stages to come before the first one runs, and raise the errors that they would raise hours later.

    Checks the options of the trainers, the configuration of the model, the reward model, the judge's key and server,
    and each row with the tokenizer. The tokenizer is that of `base`, or the one that the first stage will make; without
    either, rows are not encoded. `reward`: a reward model that the command names. `samples`: compare reads
    files of samples, and no prompts.
    """
    from rlhfctl.models import checks, loading
    from rlhfctl.training.trl import options, quiet

    with quiet.quiet_libraries(log):
        options.check_trainers(trainer_options(recipe), recipe.model.dtype)
        loading.check_quantization(recipe.model)
        if STAGES[stages[0]].model == "weights":
            checks.check_base(recipe, stages)
        kept, refused, encoded = _fitting(recipe, stages, base, data)
        warnings = [*refused, *checks.check_reward(recipe, kept, stages, reward), *_check_endpoint(recipe, stages)]
        _check_metrics(recipe, [name for name in stages if name != "compare" or not samples], kept)
        _check_choice(recipe, stages, log.parent)
        return Checked(kept, warnings, encoded)


def _check_endpoint(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """Check library, key and server of the judge `endpoint`, if one of the stages asks it."""
    from rlhfctl.judging import client
    from rlhfctl.judging.judge import named_in_errors

    said = []
    for name in ("label", "compare"):
        section = getattr(getattr(recipe, name), "endpoint", None) if name in stages else None
        if section is not None:
            with named_in_errors(f"{name}.endpoint"):
                said += [*client.check(section), *client.knock(section)]
    return said


def _check_choice(recipe: Recipe, stages: Sequence[str], run: Path) -> None:
    """Check that sft's checkpoint is not chosen by a model of this run, which is made from what sft leaves."""
    choose = recipe.sft.choose if recipe.sft is not None and "sft" in stages else None
    model = model_in(choose.by) if choose is not None else None
    if model is not None and run.resolve() in Path(model_at(model, Path(recipe.folder or "."))).resolve().parents:
        raise HandoffError(
            f"{model} is of this run, and is made anew from what sft leaves: it cannot choose what sft leaves",
            where="sft.choose.by",
            fix="name the reward model of another run: run this one with --run-dir elsewhere",
        )


def _check_metrics(recipe: Recipe, stages: Sequence[str], data: Mapping[str, Rows]) -> None:
    """Check that the metrics that the stages compute have their libraries, and the prompts their references."""
    from rlhfctl.rewards.metric import require_metric

    rows = data["prompts"].rows if "prompts" in data else []
    for key, names in metrics_of(recipe).items():
        for name in names if key.partition(".")[0] in stages else ():
            require_metric(name, rows)


def check_rows(
    recipe: Recipe, stage: str, base: Source | None, data: Mapping[str, Rows], log: Path
) -> tuple[dict[str, Rows], list[str]]:
    """Encode rows that were made after the check in advance; return the rows that the stage reads, and warnings."""
    from rlhfctl.training.trl import quiet

    with quiet.quiet_libraries(log):
        kept, refused, _ = _fitting(recipe, [stage], base, data)
    return kept, refused


def _fitting(
    recipe: Recipe, stages: Sequence[str], base: Source | None, data: Mapping[str, Rows]
) -> tuple[dict[str, Rows], list[str], bool]:
    """Return the rows that the chat template accepts, warnings about the others, and whether there was a tokenizer."""
    from rlhfctl.data import preflight

    tokenizer = _tokenizer(recipe, stages[0], base, data)
    read = {name: rows for name, rows in data.items() if any(name in data_of_kind(stage, recipe) for stage in stages)}
    kept = preflight.check(recipe, read, stages, tokenizer)
    return kept, preflight.new_notes(read, kept), tokenizer is not None


def _tokenizer(
    recipe: Recipe, first: str, base: Source | None, data: Mapping[str, Rows]
) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of the stages from `first` on; None if it is not known yet."""
    from rlhfctl.models import tokenizing

    if STAGES[first].model == "weights":
        return tokenizing.prepare(recipe, data).tokenizer
    if base is None:
        return None
    folder = base.artifact.path if base.artifact is not None else Path(base.name)
    candidates = (folder / "model", folder / "adapter", folder)
    saved = next((path for path in candidates if (path / _TOKENIZER).is_file()), None)
    if saved is None:
        return None
    tokenizer = tokenizing.load_for(recipe.model, str(saved))
    if base.artifact is None:
        tokenizing.adopt_where_asked(tokenizer, data)
    return tokenizer


def load_libraries(stage: str) -> None:
    """Import the module of a stage and the libraries that it needs."""
    _module(stage)


def _module(stage: str) -> Any:
    return importlib.import_module(f"rlhfctl.stages.{STAGES[stage].module}")


def can_extend(stage: str, made: Artifact, section: Any) -> bool:
    """Tell whether a complete stage can go on: a number is raised, nothing else changed, and it left what it needs."""
    key, before = STAGES[stage].extends, dict(made.manifest.section)
    now = section.model_dump(mode="json")
    if not key or before.get(key) is None or before | {key: now[key]} != now or before[key] >= now[key]:
        return False
    check = getattr(_module(stage), "can_extend", None)
    return check is None or bool(check(made, section))


def join_processes() -> None:
    """Join the other processes that a launcher started for this stage; nothing if there are none."""
    from rlhfctl.models import processes

    processes.join()


class Outcome(NamedTuple):
    """The result of a stage: its artifact or what it waits for, and its peak memory in bytes."""

    made: Artifact | Waiting
    peak_memory: int | None


def run_stage(stage: str, section: Any, context: Context) -> Outcome:
    """Run the module of a stage in this process; write the output of libraries to the run's log."""
    from rlhfctl.models import devices
    from rlhfctl.training.trl import quiet

    module = _module(stage)
    devices.restart_peak()
    with (
        devices.passing_over_old_objects(),
        quiet.quiet_libraries(context.log),
        report_progress_to(context.emit, context.name),
        quiet.forward_library_progress(),
    ):
        made = cast("Artifact | Waiting", module.run(section, context))
    outcome = Outcome(made, devices.peak_bytes())
    devices.release_memory()
    return outcome
