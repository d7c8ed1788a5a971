"""`rlhfctl sample`: let models write responses to a run's prompts, as a labelling set for people.

    RUN's prompts ──▶ K different responses each, by one model or by several in turn ──▶ FILE (items of a labelling set)

Reads the prompts of the run's recipe and the models; writes FILE, and the folder FILE.work while it is under way, so
that the same command goes on after a kill. Models are blinded: annotators never see who wrote what.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhfctl import fs
from rlhfctl.artifacts import read_json
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.events import Event, Work, report_progress_to
from rlhfctl.generation import local
from rlhfctl.generation.generator import Sampling, sampling_for
from rlhfctl.labels.items import FEWEST, MOST, write_items
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import Ppo, Recipe
from rlhfctl.stages import door
from rlhfctl.stages.loader import Base, Loader
from rlhfctl.stages.responses import Drawing, Writer, items_of
from rlhfctl.tools.chat.stages import Choice, RunModels
from rlhfctl.training.trl.quiet import quiet_libraries

Split = Literal["train", "eval", "test"]

WORK = ".work"  # the ending of the folder that keeps what is drawn, beside the file
_STREAM = 4 << 32  # a stream of random numbers that no stage uses


@dataclass(frozen=True)
class Wanted:
    """What to sample: `responses` to each of the first `prompts` (None: all) of a shuffled split.

    `temperature`, `seed`: None takes those of each model's recipe, and the seed of the run's.
    """

    responses: int = 2
    prompts: int | None = None
    split: Split = "train"
    temperature: float | None = None
    seed: int | None = None
    batch_size: int = 64


def sample(
    run: Path,
    out: Path,
    models: Sequence[str],
    wanted: Wanted,
    say: Callable[[str], None],
    listen: Callable[[Event], None],
) -> None:
    """Write a labelling set to `out`.

    `models`: names that `rlhfctl chat --against` takes (a stage, reference, another run, a folder); none: the newest
    policy. RlhfctlError if nothing can be compared, or if an attempt under way wanted something else.
    """
    if not FEWEST <= wanted.responses <= MOST:
        raise RlhfctlError(
            f"a question has {FEWEST} to {MOST} responses, not {wanted.responses}",
            where="--n",
            fix="give another number",
        )
    fs.require_new(out, fix="name a new file with --out")
    found = RunModels(run)
    choices = [found.choose(name) for name in models] or [found.choose()]
    if len({choice.name for choice in choices}) < len(choices):
        raise RlhfctlError("a model is named twice", where="--from", fix="name each once")
    work = out.with_name(out.name + WORK)
    _require_same_work(work, [wanted.__dict__, [[choice.name, choice.source.fingerprint] for choice in choices]])
    with report_progress_to(listen, "sample"), quiet_libraries(found.paths.log):
        rows = _rows(run, found.recipe, wanted)
        rows, writers = _writers(rows, choices, found.recipe, wanted, say)
        drawing = Drawing(wanted.responses, writers, rows, local.sample, work / "samples", lambda step: None)
        drawn = drawing.draw()  # sampling itself reports to `listen`
    items = list(items_of(rows, drawn, say))
    if not items:
        raise DataError("every prompt has one response again and again", where="--temperature", fix="raise it")
    write_items(out, items)
    shutil.rmtree(work)
    say(f"wrote {len(items)} questions to {out}; ask them: rlhfctl label {out}")


def _rows(run: Path, recipe: Recipe, wanted: Wanted) -> list[Row]:
    """Return the prompts to answer, in an order that depends on the data's seed alone."""
    with Work("loading libraries"):
        door.load_data_libraries()
    split = door.load_data(recipe.data, recipe.data_seed, ["prompts"])["prompts"].split
    rows: list[Row] = getattr(split, wanted.split)
    if not rows:
        raise DataError(f"the run has no {wanted.split} prompts", where=str(run), fix="name another with --split")
    order = random.Random(f"sample {recipe.data_seed}").sample(range(len(rows)), len(rows))
    return [rows[index] for index in order[: wanted.prompts]]


def _writers(
    rows: list[Row], choices: Sequence[Choice], recipe: Recipe, wanted: Wanted, say: Callable[[str], None]
) -> tuple[list[Row], list[Writer]]:
    """Load the models; return the prompts that fit into all of them, and the models with these prompts' ids."""
    loaded: list[tuple[Choice, Base, Sampling]] = []
    for choice in choices:
        base = Loader.of(choice.recipe, note=say, warn=say).load_base(choice.source)
        seed = recipe.seed if wanted.seed is None else wanted.seed
        sampling = sampling_for(choice.recipe.ppo or Ppo(temperature=1.0), base.tokenizer, seed=seed, stream=_STREAM)
        temperature = wanted.temperature or sampling.temperature
        loaded.append((choice, base, replace(sampling, temperature=temperature, batch_size=wanted.batch_size)))
    _, first, sampling = loaded[0]
    context = context_of(first.model.config)
    fitting, _ = encode_prompts(rows, first.tokenizer, context, sampling.max_new_tokens, recipe.data, say)
    count = len(fitting)
    for _, base, sampling in loaded:
        fitting = [row for row in fitting if _fits(row, base, sampling)]
    if len(fitting) < count:
        say(f"{count - len(fitting)} prompts do not fit into every model and are left out")
    if not fitting:
        raise DataError("no prompt fits into every model", where="--from", fix="name models with a longer context")
    return list(fitting), [
        Writer(choice.name, base, [_ids(row, base) for row in fitting], sampling) for choice, base, sampling in loaded
    ]


def _ids(row: Row, base: Base) -> list[int]:
    return Encoder(base.tokenizer).prompt(row["prompt"], row.get("tools"))


def _fits(row: Row, base: Base, sampling: Sampling) -> bool:
    limit = context_of(base.model.config)
    return limit is None or len(_ids(row, base)) + sampling.max_new_tokens <= limit


def _require_same_work(work: Path, settings: Any) -> None:
    """Record what an attempt wants; RlhfctlError if one under way wants something else."""
    marker, text = work / "settings.json", fs.hash_json(settings)
    if marker.is_file() and read_json(marker) != text:
        raise RlhfctlError(
            "another command is half way with this file: it wanted other models, prompts or settings",
            where=str(work),
            fix="give that command again, name another file with --out, or remove this folder",
        )
    work.mkdir(parents=True, exist_ok=True)
    fs.write_json(marker, text)
