"""`rlhfctl reward-eval`: make the card of a run's reward, whether or not its recipe asks for one, and show it.

Brings the stage `card` of the run up to date: it is skipped if nothing that it depends on changed, and what was there
before is kept in superseded/. The run's recipe is not changed. Loads torch only where the card has to be made. Leaves
out measuring (stages/card.py) and what the numbers amount to (rlhfctl/reward_card.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl import fs, pipeline, reward_card
from rlhfctl.artifacts import find_artifact
from rlhfctl.dashboard.jsonl import JsonlWriter
from rlhfctl.dashboard.text import number
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Event, FanOut
from rlhfctl.graph import Request
from rlhfctl.paths import RunPaths, StageId, stage_at
from rlhfctl.recipe.load import LoadedRecipe, load_recipe
from rlhfctl.recipe.schema import Card
from rlhfctl.stage_order import in_order, seeded_stages
from rlhfctl.sweeping import require_run

STAGE = "card"
_WIDTH = 80  # characters of a line: terminals of this width show the table whole
_PROBES = {
    "empty": "no text at all",
    "prompt_repeated": "the prompt repeated",
    "gibberish": "gibberish, same length",
    "truncated": "the first half of it",
    "doubled": "the answer twice",
    "flattery": "flattery before it",
}
_SCORERS = {"heldout": "held-out", "gold": "gold"}


def evaluate(
    run: Path, *, prompts: int | None = None, samples: int | None = None, listen: Callable[[Event], None]
) -> dict[str, Any]:
    """Bring the card of a run up to date and return it. `prompts`, `samples`: size of the pool (None: as it is now).

    `run` is a run, or the folder of one seed in a run over several (`runs/x/seed-1`). `listen` gets the events;
    events.jsonl of the run gets them, too.
    """
    root, stage = stage_at(run / STAGE)
    paths = RunPaths(root)
    require_run(run)
    loaded = _with_card(load_recipe(paths.recipe), paths, stage, prompts, samples)
    if stage.seed is None and STAGE in seeded_stages(loaded.recipe):
        first = next(str(one.group) for one in in_order(loaded.recipe) if one.name == STAGE)
        raise RlhfctlError("the run has one reward model per seed", where=str(run), fix=f"name one: {run / first}")
    if stage.round == 1 and loaded.recipe.rounds is not None:
        stage = replace(stage, round=loaded.recipe.rounds.count)  # the reward model that the last policy was trained on
    request = Request(only=str(stage), keeps_recipe=True)
    with fs.RunLock(paths.lock), JsonlWriter(paths.events) as writer, fs.report_full_disk(root):
        (artifact,) = pipeline.run(loaded, root, request, FanOut([writer, listen]))
    return reward_card.read(artifact, loaded.recipe)


def _with_card(
    loaded: LoadedRecipe, paths: RunPaths, stage: StageId, prompts: int | None, samples: int | None
) -> LoadedRecipe:
    """Return the recipe with the card to make: as asked, else as the run has one, else as the recipe says."""
    reward = loaded.recipe.reward
    if reward is None:
        raise RlhfctlError(
            "the run has no reward to examine",
            where=str(paths.root),
            fix="name a run whose recipe has a reward section",
        )
    if loaded.recipe.data.preferences is None:
        raise RlhfctlError(
            "the run has no pairs to examine its reward on",
            where=str(paths.root),
            fix="add data.preferences to the recipe and give its command again",
        )
    made = find_artifact(paths.stage(stage))
    card = reward.resolved_card or Card() if made is None else Card.model_validate(made.manifest.section)
    asked = {"prompts": prompts, "samples": samples}
    section = card.model_dump() | {key: value for key, value in asked.items() if value}
    return replace(loaded, recipe=reward_card.with_card(loaded.recipe, section))


# ---------------------------------------------------------------- the table


def print_card(card: Mapping[str, Any], screen: Console) -> None:
    """Print a card in lines of at most 80 characters."""
    for part in view(card):
        screen.print(part, width=min(screen.width, _WIDTH))


def view(card: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Draw a card: figures, probes, curves, flags and the gate."""
    yield _figures(card)
    yield Text()
    yield _probes(card)
    yield Text()
    yield _curves(card)
    yield Text()
    yield from _flags(card)


def _figures(card: Mapping[str, Any]) -> Table:
    table = _table("reward model", "", "")
    accuracy, length, calibration = card["accuracy"], card["length"], card["calibration"]
    table.add_row("accuracy", _share(accuracy["value"], accuracy["ci95"]), f"{card['pairs']} pairs held out by prompt")
    controlled = length["length_controlled_accuracy"]
    table.add_row(
        "length-controlled accuracy",
        "unknown" if controlled is None else _share(controlled, length["length_controlled_accuracy_ci95"]),
        "chosen longer as often as shorter",
    )
    table.add_row(
        "chosen is longer",
        _optional(length["chosen_longer"], ".0%"),
        f"right {_optional(length['accuracy_chosen_longer'], '.0%')} there, "
        f"{_optional(length['accuracy_chosen_shorter'], '.0%')} where shorter",
    )
    table.add_row(
        "score and length", _optional(length["score_correlation"], "+.2f"), f"rank correlation, in {length['unit']}"
    )
    if calibration is not None:
        table.add_row(
            "calibration error", f"{calibration['ece']:.3f}", f"mean confidence {calibration['confidence']:.0%}"
        )
    margins = card["margins"]
    table.add_row("margin", number(margins["mean"]), f"standard deviation {number(margins['std'])}")
    for name, values in card["agreement"].items():
        table.add_row(
            f"agrees with {_SCORERS[name]}",
            _optional(values["pairs_same"], ".0%"),
            f"of pairs; rank correlation {_optional(values['spearman'], '+.2f')} on samples",
        )
    known = {True: "yes", False: "no", None: "unknown"}[card["base_is_policys"]]
    table.add_row("builds on the policy's base", known, "")
    return table


def _probes(card: Mapping[str, Any]) -> Table:
    table = _table("the chosen answer changed to", "scores higher", "score changes by")
    for probe in card["probes"]:
        share = _share(probe["share_above"], probe["share_above_ci95"])
        table.add_row(_PROBES[probe["name"]], share, f"{probe['delta_mean']:+.3g} on average ({probe['n']} rows)")
    return table


def _curves(card: Mapping[str, Any]) -> Table:
    curves = card["optimization"]
    shown = [name for name in ("proxy", "heldout", "gold") if curves[name] is not None]
    names = {"proxy": "its own score"} | _SCORERS
    more = ["disagreement"] if curves["disagreement"] is not None else []
    table = _table("best of n by it", "KL up to", *(names[name] for name in shown), *more)
    peak = curves["peak"]
    for index, n in enumerate(curves["n"]):
        values = [f"{curves[name]['mean'][index]:+.2f}" for name in shown]
        mark = "  peak of held-out" if peak is not None and peak["n"] == n else ""
        wide = [f"{curves['disagreement'][index]:.2f}"] if more else []
        table.add_row(f"{n}{mark}", f"{curves['kl'][index]:.2f}", *values, *wide)
    pool = curves["pool"]
    table.caption = (
        f"standard deviations of base*'s samples to one prompt; {pool['prompts']} prompts x {pool['samples']} samples"
    )
    table.caption_justify = "left"
    return table


def _flags(card: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not card["flags"]:
        yield Text("no flags", style="green")
    for flag in card["flags"]:
        yield Text(f"{flag['name']}: {flag['message']}", style="yellow")
    gate = card["gate"]
    if gate is not None and gate["passed"]:
        yield Text("reward.gate: passed", style="green")
    elif gate is not None:
        yield Text("reward.gate: closed, run stops before PPO", style="bold red")
        for reason in gate["reasons"]:
            yield Text(f"- {reason}", style="red")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"


def _optional(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
