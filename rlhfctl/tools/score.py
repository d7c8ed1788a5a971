"""Score a file of responses or preference pairs with a run's reward or with a reward model's folder: `score`.

Reads every file format that recipes read: prompt + response (or completion), messages that end with the assistant's
turn, or pairs (chosen + rejected, with or without a prompt, ranked lists). Returns each row with its score (pairs with
two), and a summary. A response is scored as one that has ended. Trains nothing; the compare stage judges policies.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhfctl import seeding
from rlhfctl.artifacts import Source, find_artifact, load_artifact, resolve_source
from rlhfctl.data import columns as column_names
from rlhfctl.data import load, sources
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.events import Event, report_progress_to
from rlhfctl.models import loading
from rlhfctl.models.classifiers import Classifier
from rlhfctl.paths import RunPaths, stage_at
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Compared, Demonstrations, Model, Preferences, Recipe, Reward
from rlhfctl.recipe.sections.scorers import REWARD_FUNCTION, REWARD_MODEL, UNIT_TESTS
from rlhfctl.rewards.build import Resources, build_scorer
from rlhfctl.rewards.ensemble import EnsembleReward
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.stage_order import in_order
from rlhfctl.stages.loader import Loader
from rlhfctl.stats.paired import wilson_ci
from rlhfctl.sweeping import require_one_run

Row = dict[str, Any]
_READ_AS = {"columns", "label", "turns", "as_conversations", "response_prefix"}
_PAIR_COLUMNS = ("chosen", "rejected", "responses")


@dataclass(frozen=True)
class Example:
    """One row to score: the columns to write back, the prompt, and its response (or chosen and rejected)."""

    row: Row
    prompt: Any
    responses: tuple[Any, ...]


@dataclass(frozen=True)
class Scored:
    """Rows with their scores, and sentences that summarise them."""

    rows: list[Row]
    summary: list[str]


def score(
    what: Path,
    file: Path,
    *,
    batch_size: int = 64,
    label: str | None = None,
    reads: str | None = None,
    bad_rows: str = "stop",
    emit: Callable[[Event], None] = lambda event: None,
) -> Scored:
    """Score the rows of `file` with `what`: the folder of a run, of a stage, or of a reward model."""
    recipe, paths = _recipe(what, label, reads)
    examples, notes = read_examples(file, bad_rows, recipe)
    sentences: list[str] = []
    episodes = [_episode(example, response) for example in examples for response in example.responses]
    with report_progress_to(emit, "score"):
        scores, name = _scores(what, recipe, paths, episodes, batch_size, sentences.append)
    return _scored(examples, scores, f"{name}, {file}", [*notes, *sentences])


def score_responses(what: Path, responses: Sequence[tuple[str, str]], *, batch_size: int = 64) -> list[float]:
    """Score pairs of (prompt, response) with `what`, as `score` does: one number per pair, in order.

    A response may be empty here, because a policy may write one; in a file `score` takes it for a mistake.
    """
    recipe, paths = _recipe(what, None, None)
    episodes = [Episode([], [], prompt, response, {}) for prompt, response in responses]
    return _scores(what, recipe, paths, episodes, batch_size, lambda sentence: None)[0]


def member_scores(what: Path, responses: Sequence[tuple[str, str]], *, batch_size: int = 64) -> list[list[float]]:
    """Score pairs of (prompt, response) with each member of the ensemble `what`: (members, pairs).

    RlhfctlError if it is one reward model.
    """
    recipe, paths = _recipe(what, None, None)
    loader = Loader.of(recipe, note=lambda sentence: None, warn=lambda sentence: None)
    with loading.silence_libraries():
        scorer, name = _scorer(what, recipe, paths, loader, batch_size, texts=True)
        if not isinstance(scorer, EnsembleReward):
            raise RlhfctlError("it is one reward model, without members", where=name, fix="set reward.members above 1")
        scorer([Episode([], [], prompt, response, {}) for prompt, response in responses])
    return [list(one) for one in scorer.by_member]


def text_of(rows: Iterable[Row]) -> str:
    """Write the rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


# ---------------------------------------------------------------- the scorer


def _scores(
    what: Path, recipe: Recipe, paths: RunPaths, episodes: list[Episode], batch_size: int, note: Callable[[str], None]
) -> tuple[list[float], str]:
    """Load the scorer and score the episodes; return the scores and the scorer's name. `note` hears sentences."""
    loader = Loader.of(recipe, note=note, warn=lambda sentence: note(f"warning: {sentence}"))
    with loading.silence_libraries():
        texts = isinstance(episodes[0].prompt, str)
        scorer, name = _scorer(what, recipe, paths, loader, batch_size, texts=texts)
        scores = scorer(episodes)
    if bad := [index for index, value in enumerate(scores) if not math.isfinite(value)]:
        raise RlhfctlError(
            f"{len(bad)} of {len(scores)} scores are not finite, the first for {episodes[bad[0]].completion!r}",
            where=name,
            fix="correct the reward: a score is a finite number",
        )
    return list(scores), name


def _recipe(what: Path, label: str | None, reads: str | None) -> tuple[Recipe, RunPaths]:
    """Load the run's recipe; for a reward model's folder, make a recipe that names it."""
    require_one_run(what)
    if (what / "recipe.yaml").is_file():
        recipe = load_recipe(what / "recipe.yaml").recipe
        if recipe.reward is None:
            raise RlhfctlError(
                "the run has no reward to score with", where=str(what), fix="name a run with one, or a reward model"
            )
        if label is not None or reads is not None:
            raise RlhfctlError(
                "--label and --reads are for a reward model's folder; the run's recipe says them for this one",
                where=str(what),
                fix=f"name the folder: {recipe.reward.model}" if recipe.reward.model else "leave them out",
            )
        return recipe, RunPaths(what)
    run, _ = stage_at(what)
    if (run / "recipe.yaml").is_file() and find_artifact(what) is not None:  # a stage of a run
        return load_recipe(run / "recipe.yaml").recipe, RunPaths(run)
    dtype: Any = "float32"
    if (what / "config.json").is_file():
        saved = str(loading.read_config(str(what), "reward model").dtype).removeprefix("torch.")
        dtype = saved if saved in ("float32", "bfloat16", "float16") else dtype
    index: Any = int(label) if label is not None and label.isdigit() else label
    reward = Reward.model_validate({"model": str(what), "label": index, "reads": reads})
    return Recipe(name="score", model=Model(path=str(what), dtype=dtype), reward=reward), RunPaths(what)


def _scorer(
    what: Path, recipe: Recipe, paths: RunPaths, loader: Loader, batch_size: int, *, texts: bool
) -> tuple[RewardFunction, str]:
    """Build the scorer and its name for messages. `texts`: the rows to score are plain texts, not conversations."""
    reward = recipe.reward
    assert reward is not None
    resources = replace(Resources.of(recipe), batch_size=batch_size, function_batch_size=batch_size, warn=loader.warn)
    stage = find_artifact(what)
    if stage is None and reward.function is not None:
        return build_scorer(REWARD_FUNCTION, resources), f"the reward function {reward.function}"
    if stage is None and reward.unit_tests is not None:
        return build_scorer(UNIT_TESTS, resources), "the unit tests"
    if stage is None and reward.prompted_classifier is not None:
        raise RlhfctlError(
            "the run's reward is a prompted classifier, which scores a prompt with labelled examples of a run",
            where=str(what),
            fix="compare/prompts.json of the run holds the prompts that were found",
        )
    if stage is None and reward.kind == "trained":
        stage = load_artifact(paths.stage(seeding.one_named("reward", in_order(recipe)) or "reward"))
    if stage is not None:
        source = Source.of(stage)
    else:
        assert reward.model is not None
        source = resolve_source(reward.model, "reward model")
    loaded = loader.load_scoring_model(source)
    if loaded.tokenizer is not None and loaded.tokenizer.chat_template is not None and texts:
        loader.note(
            "the rows are texts and are scored as they stand, without the model's chat template: for a model that was "
            "trained on conversations give messages"
        )
    kind = "classifier" if isinstance(loaded.model, Classifier) else "reward model"
    scorer = build_scorer(REWARD_MODEL, replace(resources, reward_model=lambda: loaded))
    return scorer, f"the {kind} {source.name}"


# ---------------------------------------------------------------- rows


def read_examples(file: Path, bad_rows: str = "stop", recipe: Recipe | None = None) -> tuple[list[Example], list[str]]:
    """Read the rows of a file as examples; also return sentences about dropped rows. DataError names bad lines.

    `recipe`: a run's recipe. A file with the columns of the run's own data is read in the same way, and texts become
    turns of a conversation if the run's texts do.
    """
    rows, locations = sources.read_file(file, "text")
    if not rows:
        raise DataError("there are no rows", where=str(file), fix="name a file with at least one row")
    given = {location: row for row, location in zip(rows, locations, strict=True)}
    columns = {name for row in rows for name, value in row.items() if value is not None}
    mapped = _mapped(recipe, rows)
    pairs = mapped[0] if mapped is not None else any(name in columns for name in _PAIR_COLUMNS)
    settings: dict[str, Any] = {"source": str(file), "bad_rows": bad_rows}
    settings |= mapped[1] if mapped is not None else {}
    if mapped is None and not pairs and "response" in columns and "completion" not in columns:
        settings["columns"] = {"completion": "response"}
    settings |= {"as_conversations": True} if _reads_conversations(recipe) and "turns" not in settings else {}
    try:
        loaded = (
            load.load_preferences(Preferences(**settings), 0)
            if pairs
            else load.load_demonstrations(Demonstrations(**settings), 0)
        )
    except DataError as error:
        name = "preferences" if pairs else "demonstrations"
        what = error.what.replace(f"data.{name}", str(file))
        fix = (
            "give prompt and response, messages, or chosen and rejected, or the columns that the run's recipe maps; "
            "--bad-rows drop leaves the others out"
        )
        raise DataError(what, where=error.where, fix=fix) from error
    examples = [_example(given[location], row, location) for row, location in loaded.located_rows]
    return examples, list(loaded.notes)


def _mapped(recipe: Recipe | None, rows: Sequence[Row]) -> tuple[bool, dict[str, Any]] | None:
    """Return (whether they are pairs, source settings) if the rows have all columns that a source of the run maps."""
    sections = [] if recipe is None else [recipe.data.preferences, recipe.data.demonstrations]
    for section in sections:
        for part in section.parts if section is not None else ():
            named = [name for names in part.columns.values() for name in column_names.names_of(names)]
            if named and all(column_names.value_at(rows[0], name) is not None for name in named):
                return isinstance(part, Compared), part.model_dump(include=_READ_AS, exclude_defaults=True)
    return None


def _reads_conversations(recipe: Recipe | None) -> bool:
    """Tell whether the run's recipe reads texts as turns of conversations."""
    if recipe is None:
        return False
    sections = [one for one in (recipe.data.preferences, recipe.data.demonstrations) if one is not None]
    return recipe.model.chat_template is not None or any(
        part.as_conversations for one in sections for part in one.parts
    )


def _example(given: Row, row: Row, location: str) -> Example:
    """Make an example from a loaded `row`; `given` is the same row as it stands in the file."""
    if "chosen" in row:
        ranked = {} if "chosen" in given else {name: row[name] for name in ("prompt", "chosen", "rejected")}
        kept = {name: value for name, value in given.items() if not ranked or name not in ("responses", "scores")}
        return Example(kept | ranked, row["prompt"], (row["chosen"], row["rejected"]))
    if "messages" in row:
        messages = row["messages"]
        if len(messages) < 2:
            raise DataError("messages hold no prompt before the response", where=location, fix="give the question too")
        return Example(given, messages[:-1], (messages[-1:],))
    if "completion" in row:
        return Example(given, row["prompt"], (row["completion"],))
    raise DataError(
        "the row is one text, in which no response can be told from its prompt",
        where=location,
        fix="give prompt and response, messages, or chosen and rejected",
    )


def _episode(example: Example, response: Any) -> Episode:
    return Episode([], [], example.prompt, response, example.row)


# ---------------------------------------------------------------- the result


def _scored(examples: Sequence[Example], scores: Sequence[float], name: str, sentences: list[str]) -> Scored:
    if len(examples[0].responses) == 1:
        key = _unused_column("score", examples)
        rows = [example.row | {key: value} for example, value in zip(examples, scores, strict=True)]
        return Scored(rows, [*sentences, f"{name}: {_described(scores)}"])
    keys = [_unused_column(name, examples) for name in ("chosen_score", "rejected_score")]
    chosen, rejected = scores[::2], scores[1::2]
    rows = [
        example.row | {keys[0]: better, keys[1]: worse}
        for example, better, worse in zip(examples, chosen, rejected, strict=True)
    ]
    right = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    ties = sum(a == b for a, b in zip(chosen, rejected, strict=True))
    interval = wilson_ci(right, len(rows))
    margin = statistics.fmean(a - b for a, b in zip(chosen, rejected, strict=True))
    accuracy = (
        f"accuracy {right / len(rows):.1%} of {len(rows)} pairs (95% interval {interval.low:.1%} to "
        f"{interval.high:.1%}), mean margin {margin:.4g}" + (f", {ties} ties, which count as wrong" if ties else "")
    )
    return Scored(
        rows, [*sentences, f"{name}: {accuracy}", f"chosen: {_described(chosen)}", f"rejected: {_described(rejected)}"]
    )


def _unused_column(name: str, examples: Sequence[Example]) -> str:
    """Find a column name that no row has, so that scores already in the file are kept."""
    return name if not any(name in example.row for example in examples) else _unused_column(f"reward_{name}", examples)


def _described(scores: Sequence[float]) -> str:
    spread = statistics.pstdev(scores)
    return (
        f"{len(scores)} scores, mean {statistics.fmean(scores):.4g}, standard deviation {spread:.4g}, "
        f"from {min(scores):.4g} to {max(scores):.4g}"
    )
