"""Draw docs/screen.svg, the picture of the live screen, from recorded events: `python docs/make_screen.py`.

The recording, docs/screen.jsonl, holds events of a real run up to an update of PPO. To record another one:
`python docs/make_screen.py --record runs/quickstart --update 40`.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from rlhfctl.dashboard.state import RunState
from rlhfctl.dashboard.terminal.draw import UNICODE
from rlhfctl.dashboard.terminal.screen import Screen

DOCS = Path(__file__).resolve().parent
EVENTS, PICTURE = DOCS / "screen.jsonl", DOCS / "screen.svg"
WIDTH, HEIGHT = 110, 40
CELL, LINE, BASE = 12.2, 24.4, 18.5  # rich's SVG: width of a character, height of a line, and its top to its base line
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
# Left, top, right and bottom of a character, as shares of its cell.
SHAPES = {char: (0.0, 1 - (eighths + 1) / 8, 1.0, 1.0) for eighths, char in enumerate("▁▂▃▄▅▆▇█")}
SHAPES |= {"─": (0.0, 0.47, 1.0, 0.53), "━": (0.0, 0.41, 1.0, 0.59), "│": (0.44, 0.0, 0.56, 1.0)}
BACKGROUND, FOREGROUND, GREY = (22, 27, 34), (220, 226, 234), (110, 118, 129)
RED, GREEN, YELLOW, BLUE = (248, 113, 113), (74, 222, 128), (250, 204, 21), (96, 165, 250)
MAGENTA, CYAN = (216, 130, 255), (56, 189, 248)
THEME = TerminalTheme(BACKGROUND, FOREGROUND, [GREY, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, FOREGROUND])


def recorded(events: Path, update: int) -> list[str]:
    """The lines of a run's events up to this update of PPO, without the steps of stages that were done by then."""
    kept: list[str] = []
    steps: list[str] = []  # the newest of the stage at work
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        kind, stage = event["event"], event["stage"]
        if kind in ("progress", "working"):
            steps = [*steps[-1:], line]
            continue
        if kind == "finished":
            steps = []
        if stage == "ppo" or kind in ("run_started", "started", "finished"):
            kept.append(line)
        if (kind, stage) == ("metrics", "ppo") and (event["split"], event["step"]) == ("train", update):
            return [*kept, *steps]
    raise SystemExit(f"{events} has no update {update} of ppo")


def picture(lines: list[str]) -> str:
    """The screen after these events, as SVG that needs no font of its own."""
    state = RunState()
    for line in lines:
        state.feed(json.loads(line))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for text in Screen(state).lines(WIDTH, HEIGHT, UNICODE, state.last or 0.0):
        console.print(text, no_wrap=True, overflow="crop")
    svg = console.export_svg(title="rlhfctl run quickstart", theme=THEME, unique_id="screen")
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: (Fira Code, monospace|arial);", f"font-family: {FONTS};", svg)
    svg = re.sub(r'<text class="([\w-]+)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', _as_shapes, svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _as_shapes(text: re.Match[str]) -> str:
    """Draw a text of blocks and rules as rectangles, so that it is the same in every font; leave another one."""
    characters = html.unescape(text[4]).replace("\xa0", " ")
    if not set(characters) <= {*SHAPES, " "}:
        return text[0]
    x, y, path = float(text[2]), float(text[3]) - BASE, ""
    for same in re.finditer(r"([^ ])\1*", characters):
        left, top, right, bottom = SHAPES[same[1]]
        width, height = (same.end() - 1 + right - same.start() - left) * CELL, (bottom - top) * LINE
        path += f"M{x + (same.start() + left) * CELL:.1f} {y + top * LINE:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"
    return f'<path class="{text[1]}" d="{path}"/>'


def main() -> None:
    """Record a run where that is asked for, then draw the recording."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, metavar="RUN", help="a run folder whose events to record")
    parser.add_argument("--update", type=int, default=40, help="the update of PPO at which the recording ends")
    given = parser.parse_args()
    if given.record is not None:
        lines = recorded(given.record / "events.jsonl", given.update)
        EVENTS.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    PICTURE.write_text(picture(EVENTS.read_text(encoding="utf-8").splitlines()), encoding="utf-8")


if __name__ == "__main__":
    main()
