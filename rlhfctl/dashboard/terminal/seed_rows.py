"""Draw the stages of a run over several seeds: a row of the stages that all seeds share, then a row per seed.

    shared  ✓ sft 1:14   · summary
    seed-0  ✓ reward 0:14   ✓ ppo 3:20     ✓ compare 0:09   better
    seed-1  ✓ reward 0:13   ▸ ppo 12/40    · compare

Pure: a run's state in, lines out, none wider than the given width. Where there are more seeds than lines, the seed at
work is in the middle, and the others are counted. Leaves out runs with one seed (parts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.text import Text

from rlhfctl.dashboard.state import RunState, Stage
from rlhfctl.dashboard.terminal import draw
from rlhfctl.dashboard.terminal.draw import Signs
from rlhfctl.dashboard.terminal.parts import detail, mark
from rlhfctl.dashboard.text import counted
from rlhfctl.paths import StageId

_GAP = "   "
_ENDED = ("done", "skipped")
_DETAILED: tuple[tuple[str, ...], ...] = (("done", "now", "skipped"), ("now",), ())
"""States of the stages whose time or steps are shown: all of them, or fewer where the width is short."""


def seed_rows(state: RunState, width: int, most: int, signs: Signs) -> list[Text]:
    """Draw at most `most` rows (2 or more); an empty list for a run with one seed.

    The runs of a sweep have a row each, too: `kl_coef=0.05/ppo` stands in the row `kl_coef=0.05`.
    """
    by_group = _by_group(state)
    seeds = [group for group in by_group if group]
    if not seeds:
        return []
    shown = _around_the_one_at_work(seeds, by_group, max(1, most - 1))
    common = "shared" if by_group.get("") else ""
    label = max(len(group) for group in (common, *shown))
    rows = [[*by_group.get("", [])], *(by_group[group] for group in shown)]
    for states in _DETAILED:
        cells = [[_cell(stage, state, signs, states) for stage in row] for row in rows]
        lines = _aligned(cells[1:])
        lines = [Text("").join(_spaced(cells[0])), *lines]
        for line, group in zip(lines[1:], shown, strict=True):
            line.append_text(_verdict(by_group[group], state))
        lines[0].append(_GAP + _others(seeds, shown, by_group), "dim")
        named = [
            Text(f"{draw.shown(group, signs):<{label}}  ", "dim").append_text(line)
            for group, line in zip((common, *shown), lines, strict=True)
        ]
        named = named if common or len(shown) < len(seeds) else named[1:]
        if max(line.cell_len for line in named) <= width:
            break
    return [draw.fit(line, width, signs) for line in named]


def group_of(stage: str) -> str:
    """Return the folder of the seed, or of the sweep's run, that a stage belongs to; '' if all seeds share it.

    The stage's name comes from an event.
    """
    group, _, _ = stage.rpartition("/")
    try:
        return group if StageId.parse(stage).seed is not None else ""
    except ValueError:  # of a run in a sweep: its folder stands before
        return group


def _by_group(state: RunState) -> dict[str, list[Stage]]:
    """Return the stages of the command by the folder of their seed, in order; shared ones under ''."""
    found: dict[str, list[Stage]] = {}
    for name in state.order or list(state.stages):
        found.setdefault(group_of(name), []).append(state.stages[name])
    return found


def _around_the_one_at_work(seeds: Sequence[str], by_group: dict[str, list[Stage]], most: int) -> list[str]:
    """Choose `most` seeds: the one at work or, without one, the first that is not done is in the middle."""
    open_ = [index for index, seed in enumerate(seeds) if not _is_done(by_group[seed])]
    working = [i for i, seed in enumerate(seeds) if any(stage.state == "now" for stage in by_group[seed])]
    middle = (working or open_ or [len(seeds) - 1])[0]
    low = max(0, min(middle - most // 2, len(seeds) - most))
    return list(seeds[low : low + most])


def _is_done(stages: Sequence[Stage]) -> bool:
    return all(stage.state in _ENDED for stage in stages)


def _cell(stage: Stage, state: RunState, signs: Signs, detailed: Sequence[str]) -> Text:
    """Draw a stage: the sign of its state, its name, and its time or steps."""
    stopped = state.stopped is not None and stage.state == "now"
    sign, style = mark("stopped" if stopped else stage.state, signs)
    text = Text(f"{sign} ", style)
    text.append(draw.shown(stage.name.rpartition("/")[2], signs), "bold" if stage.state == "now" else "")
    return text.append(f" {more}" if stage.state in detailed and (more := detail(stage)) else "", "dim")


def _aligned(rows: Sequence[Sequence[Text]]) -> list[Text]:
    """Join the cells of each row, with equal widths per column."""
    widths = [max(cell.cell_len for cell in column if cell is not None) for column in zip_longest(*rows)]
    lines = []
    for row in rows:
        line = Text()
        for cell, width in zip(row, widths, strict=False):
            line.append_text(cell).append(" " * (width - cell.cell_len) + _GAP)
        lines.append(line)
    return lines


def _spaced(cells: Sequence[Text]) -> list[Text]:
    return [part for index, cell in enumerate(cells) for part in ([Text(_GAP)] if index else []) + [cell]]


def _verdict(stages: Sequence[Stage], state: RunState) -> Text:
    """Draw the verdict of a seed's comparison, if it is complete."""
    words = [state.verdicts[stage.name] for stage in stages if stage.state in _ENDED and stage.name in state.verdicts]
    return Text(words[-1], draw.VERDICT_STYLES.get(words[-1], "")) if words else Text()


def _others(seeds: Sequence[str], shown: Sequence[str], by_group: dict[str, list[Stage]]) -> str:
    """Count the seeds that have no row."""
    hidden = [seed for seed in seeds if seed not in shown]
    done = sum(_is_done(by_group[seed]) for seed in hidden)
    one = "more seed" if all(group.rpartition("/")[2].startswith("seed-") for group in seeds) else "more run"
    parts = [f"{counted(done, one)} done"] if done else []
    parts += [f"{counted(len(hidden) - done, one)} to come"] if len(hidden) > done else []
    return ", ".join(parts)
