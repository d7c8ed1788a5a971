"""Turn the answers to the questions of the sample stage into preferences for the reward stage.

    items.jsonl ──▶ people (`rlhfctl label RUN`), the built-in judge or a function ──▶ labels.sqlite ──▶ rankings.jsonl

With people the stage waits until enough questions are answered; the same command goes on then. Other judges answer
here, and their answers land in the same file of labels. Labels of earlier rounds are kept as `label.old` says. Writes
rankings.jsonl: the rows of `source: stage:label`. They hold texts, ranks and annotators, and no times, so that equal
answers give equal rows.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.data.text_files import read_jsonl
from rlhfctl.errors import DataError
from rlhfctl.events import Progress, StageStarted
from rlhfctl.graph import Waiting
from rlhfctl.judging.judge import Pair, judge, named_in_errors
from rlhfctl.labels import rankings
from rlhfctl.labels.desk import Desk, Settings
from rlhfctl.labels.items import Item, read_items
from rlhfctl.labels.store import Event, open_labels
from rlhfctl.labels.texts import plain
from rlhfctl.paths import StageId
from rlhfctl.recipe.schema import Label
from rlhfctl.recipe.sections.label import BUILTIN, PEOPLE
from rlhfctl.recipe.sections.scorers import ENDPOINT
from rlhfctl.rewards.episode import Episode, RewardFunction
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.stages.context import Context

RANKINGS = "rankings.jsonl"
_BATCH = 64  # questions per call of a function

Row = dict[str, Any]
Scores = Callable[[Sequence[Item]], Sequence[list[float] | None]]  # None: the judge gives no answer to this item


def run(section: Label, ctx: Context) -> Artifact | Waiting:
    """Publish the labels of this round and the kept ones of earlier rounds; return what it waits for meanwhile."""
    source = ctx.parents["items"].artifact
    assert source is not None
    source.verify()
    items = read_items(source.part("items"))
    settings = Settings.of(section, ctx.recipe.seed)
    ctx.emit(StageStarted(stage=ctx.name, total_steps=len(items), resumed_from=None, settings={"by": section.by}))
    with open_labels(ctx.run.labels) as store:
        name = annotator_of(section, ctx)
        desk = Desk(items, store, settings, judge=section.by, accepts=partial(counts, annotator=name))
        if name is not None:
            _judge(desk, name, section, ctx)
        open_, wanted = desk.open_questions(), desk.wanted_answers()
        if name is not None and open_:
            ctx.warn(f"{open_} of {wanted} questions have no answer: {name} gave none that could be read")
        elif open_ > math.floor((1 - section.enough) * wanted + 1e-9):
            return _waiting(wanted - open_, wanted, ctx)
        labels = desk.answers.labels([item.id for item in items])
    rows = rankings.rankings(labels, {item.id: item for item in items}, section.combine)
    own = [_for_training(row, StageId.parse(ctx.name).round) for row in rows]
    kept = _kept_rows(section, ctx)
    compared = [row for row in [*kept, *own] if len(set(row["ranks"])) > 1]
    if not compared:
        raise DataError(
            f"none of the {len(own)} answers says that one response is better than another",
            where=str(ctx.run.labels),
            fix="sample again at a higher temperature (sample.temperature): the responses may be too much alike",
        )
    if tied := len(own) + len(kept) - len(compared):
        ctx.note(f"{tied} answers are ties or all bad: the reward model does not train on them")
    fs.write_atomic(ctx.folder / RANKINGS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in compared))
    metrics = {"answers": len(own), "kept_answers": len(kept), "tied_answers": tied}
    return ctx.publish(section.model_dump(mode="json"), {"data": RANKINGS}, metrics=metrics)


def annotator_of(section: Label, ctx: Context) -> str | None:
    """Return the name of a judge that is no person; it changes with everything that its answers depend on."""
    if section.by == PEOPLE:
        return None
    if section.by == BUILTIN:
        return f"{BUILTIN} (noise {section.noise:g}, seed {ctx.recipe.seed})"
    if section.endpoint is not None:
        return f"{section.endpoint.model} ({ctx.inputs['section'][:8]})"
    return f"{section.by} ({ctx.inputs['functions'][:8]})"


def counts(event: Event, annotator: str | None) -> bool:
    """Tell whether an answer in the file of labels counts: those of people, or those of this judge alone."""
    return event.is_of_people if annotator is None else event.annotator == annotator


def _waiting(given: int, wanted: int, ctx: Context) -> Waiting:
    run = ctx.run.root
    return Waiting(
        f"{given} of {wanted} answers are given",
        f"compare the responses: rlhfctl label {run} (in the terminal) or rlhfctl label {run} --web (in a browser)",
    )


def _for_training(row: Row, number: int) -> Row:
    """Return a ranking without what differs between two equal runs: times, the order on the screen, notes."""
    keys = ("prompt", "responses", "ranks", "tools", "item", "annotator", "origins")
    return {key: row[key] for key in keys if key in row} | {"round": number}


def _kept_rows(section: Label, ctx: Context) -> list[Row]:
    """Return the rows of the round before that are kept: which ones depends on the item alone."""
    source = ctx.parents.get("labels")
    if source is None or source.artifact is None:
        return []
    source.artifact.verify()
    rows, _ = read_jsonl(source.artifact.part("data"))
    number = StageId.parse(ctx.name).round
    return [row for row in rows if random.Random(f"old {number} {row['item']}").random() < section.old]


# ---------------------------------------------------------------- judges other than people


def _judge(desk: Desk, name: str, section: Label, ctx: Context) -> None:
    """Answer all open questions; an attempt that was killed goes on with those that are left."""
    makers = {BUILTIN: _builtin, ENDPOINT: _endpoint}
    score = makers.get(section.by, _function)(section, ctx)
    total = len(desk.items)
    while questions := desk.next_of(name, _BATCH):
        scores = score([question.item for question in questions])
        for question, found in zip(questions, scores, strict=True):
            if found is None:
                desk.answer(name, question.key, "skip")
                continue
            levels = sorted(set(found), reverse=True)
            ranks = [levels.index(found[place]) for place in question.order]
            desk.answer(name, question.key, "label", ranks)
        ctx.emit(Progress(stage=ctx.name, step=total - desk.open_questions(), total=total, unit="answer"))


def _builtin(section: Label, ctx: Context) -> Scores:
    """Return the built-in task's true preference as a judge that errs in a share of the questions."""
    from rlhfctl.world import gold

    def scores(items: Sequence[Item]) -> list[list[float]]:
        found = []
        for item in items:
            responses: list[Any] = list(item.responses)
            prompts: list[Any] = [item.prompt] * len(responses)
            given = list(gold.score(prompts, responses))
            wrong = random.Random(f"noise {ctx.recipe.seed} {item.id}").random() < section.noise
            found.append([-one for one in given] if wrong else given)
        return found

    return scores


def _endpoint(section: Label, ctx: Context) -> Scores:
    """Return a model behind an API as a judge: each pair is shown in both orders, and a response's wins are counted."""
    endpoint = section.endpoint
    assert endpoint is not None

    def scores(items: Sequence[Item]) -> list[list[float] | None]:
        places = [(item, *two) for item in items for two in combinations(range(len(item.responses)), 2)]
        pairs = [Pair(*(_encodable(plain(text)) for text in (item.prompt, item.responses[a], item.responses[b])))
                 for item, a, b in places]  # fmt: skip
        with named_in_errors("label.endpoint"):
            judged = judge(endpoint, ctx.run.judge_cache, {"labels": pairs}).comparisons["labels"]
        wins = {item.id: [0.0] * len(item.responses) for item in items}
        unread: set[str] = set()
        for (item, one, other), judgement in zip(places, judged, strict=True):
            if judgement.value is None:
                unread.add(item.id)
            else:
                wins[item.id][one] += judgement.value
                wins[item.id][other] += 1 - judgement.value
        return [None if item.id in unread else wins[item.id] for item in items]

    return scores


def _encodable(text: str) -> str:
    """Replace half a surrogate pair, which no request can hold, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _function(section: Label, ctx: Context) -> Scores:
    """Return a Python function in the signature of a reward function as a judge: its scores rank the responses."""
    function: RewardFunction = FunctionReward(section.by, Path(ctx.recipe.folder or "."), say=ctx.warn)

    def scores(items: Sequence[Item]) -> list[list[float]]:
        episodes = [
            Episode((), (), item.prompt, response, {"prompt": item.prompt})
            for item in items
            for response in item.responses
        ]
        flat = iter(function(episodes))
        return [[next(flat) for _ in item.responses] for item in items]

    return scores
