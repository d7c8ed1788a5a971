"""Build rich tables of results: the verdict and its numbers, samples side by side, runs side by side.

Reads the content of `compare.json`; prints nothing itself. Text from outside (prompts, responses, names of judges and
runs) is never read as markup, and its control characters are spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlhfctl import verdict as verdicts
from rlhfctl.dashboard.terminal.draw import VERDICT_STYLES
from rlhfctl.dashboard.text import fixed, number, short, visible
from rlhfctl.events import transcript

_MISSING = "-"
_UNBOUNDED = 10_000  # columns: wider than any table
_CONTROLLED = "length_controlled_win_rate"


def comparison_table(compare: Mapping[str, Any]) -> RenderableType:
    """Build the verdict in words, a row per judge (the primary one first), controls, KL, lengths, and the judging.

    `compare` is the content of `compare.json`. Keys that are absent or null are not shown.
    """
    judges: Mapping[str, Mapping[str, Any]] = compare["judges"]
    primary: str = compare["primary_judge"]
    parts: list[RenderableType] = [_verdict_line(compare)]
    if not compare.get("independent", judges[primary].get("independent", True)):
        parts.append(Text(not_independent(primary), "bold yellow"))
    parts += [Text(visible(warning), "bold yellow") for warning in verdicts.length_warnings(compare)]
    controls: Sequence[Mapping[str, Any]] = compare.get("controls") or []
    greedy = {} if controls else compare.get("greedy") or {}
    parts += [Text(), _judges_part(judges, primary, greedy)]
    if controls:
        parts += [Text(), _controls_table(controls, primary)]
    notes = "brackets: 95% intervals; win rate: a tie counts half; p: exact sign test"
    if any(judge.get("independent") is False for judge in judges.values()):
        notes += "\n* what PPO trained against: not independent evidence"
    parts += [Text(notes, "dim"), Text(), _behaviour_table(compare)]
    if (endpoint := compare.get("endpoint")) is not None:
        parts += [Text(), Text(visible(f"endpoint: {verdicts.judging(endpoint)}"))]
    return Group(*parts)


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """Build the verdict over several seeds: each judge over all seeds and by seed (the primary one first), controls.

    `summary` is the content of `summary.json`.
    """
    judges: Mapping[str, Mapping[str, Any]] = summary["judges"]
    primary: str = summary["primary_judge"]
    parts: list[RenderableType] = [Text(visible(str(summary["sentence"])), "bold")]
    if not summary["independent"]:
        parts.append(Text(not_independent(primary), "bold yellow"))
    table = _table()
    table.add_column("judge", overflow="fold")
    table.add_column("seed", justify="right")
    for heading in ("delta", "win rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("policy is", no_wrap=True)
    for name in sorted(judges, key=lambda name: name != primary):
        table.add_section()
        table.add_row(_text(name), "all", *_over_seeds(judges[name]), style="bold")
        for row in judges[name]["per_seed"]:
            table.add_row("", str(row["seed"]), *_over_seeds(row))
    parts += [Text(), table]
    if summary["controls"]:
        parts += [Text(), _controls_table(summary["controls"], primary)]
    notes = "brackets: 95% intervals, over seeds and prompts in the rows of all seeds and in the controls,"
    return Group(*parts, Text(f"{notes}\nover prompts in the rows of one seed; win rate: a tie counts half", "dim"))


def _over_seeds(row: Mapping[str, Any]) -> list[str | Text]:
    word = str(row["verdict"])
    return [_delta(row), _win_rate(row), Text(word, VERDICT_STYLES.get(word, ""))]


def not_independent(judge: str) -> str:
    """Compose the sentence that a verdict rests on the reward that the policy was trained on."""
    what = "reward model" if judge == "reward_model" else "reward function"
    return f"this verdict rests on the {what} that PPO trained against: it is not independent evidence"


def samples_view(rows: Sequence[Mapping[str, Any]], n: int = 4) -> RenderableType:
    """Build the view of the first `n` rows: the prompt, then the policy's and the reference's responses with scores."""
    shown = rows[:n]
    if not shown:
        return Text("no samples", "dim")
    parts: list[RenderableType] = []
    for index, row in enumerate(shown, start=1):
        parts.append(Rule(Text(f"prompt {index} of {len(shown)}", "bold"), align="left", style="dim"))
        parts += [_body(row.get("prompt")), Text()]
        sides = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold cyan")
        sides.add_column("policy", ratio=1, overflow="fold")
        sides.add_column("reference", ratio=1, overflow="fold")
        sides.add_row(_body(row.get("policy")), _body(row.get("reference")))
        if row.get("policy_scores") or row.get("reference_scores"):
            sides.add_row(_scores(row.get("policy_scores")), _scores(row.get("reference_scores")))
        parts += [sides, Text()]
    return Group(*parts[:-1])


def runs_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Build a table of several runs, one row per run.

    A row has run, verdict, primary_judge, delta, win_rate and kl, and may have win_rate_ci95, control_win_rate,
    greedy_win_rate, length and independent (a star marks false).
    """
    table = _table()
    table.add_column("run", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("judge", overflow="fold")
    for heading in ("delta", "win rate", "control", "greedy", "KL", "length"):
        table.add_column(heading, justify="right", no_wrap=True)
    starred = False
    for row in rows:
        word = row.get("verdict") or _MISSING
        dependent = row.get("independent") is False
        starred = starred or dependent
        table.add_row(
            _text(row.get("run")),
            Text(visible(word), VERDICT_STYLES.get(word, "")),
            _text(row.get("primary_judge"), "*" if dependent else ""),
            _delta({"delta": row.get("delta")}),
            _win_rate(row),
            _cell(row.get("control_win_rate"), verdicts.share),
            _cell(row.get("greedy_win_rate"), verdicts.share),
            _cell(row.get("kl"), short),
            _cell(row.get("length"), short),
        )
    notes = "control: the lowest win rate of a fair control; greedy: both decoded greedily"
    return Group(
        table, Text(notes + ("\n* what PPO trained against: not independent evidence" if starred else ""), "dim")
    )


def _verdict_line(compare: Mapping[str, Any]) -> Text:
    """Write the verdict's sentence, with the verdict in colour, then the means of the main comparison."""
    judge = compare["judges"][compare["primary_judge"]]
    word, places = str(compare["verdict"]), _decimals(judge)
    said = visible(str(compare.get("sentence") or verdicts.sentence(compare)))
    line = Text(said, "bold")
    if said.startswith(word):
        line.stylize(VERDICT_STYLES.get(word, "bold"), 0, len(word))
    low, high = judge["delta_ci95"]
    line.append(
        f"\nmean {fixed(judge['reference_mean'], places)} -> {fixed(judge['policy_mean'], places)}"
        f" ({fixed(judge['delta'], places, sign=True)}, {fixed(low, places)} to {fixed(high, places)})"
    )
    return line


def _controls_table(controls: Sequence[Mapping[str, Any]], primary: str) -> Table:
    """Build one row per control: the policy against a reference that had the help of a cheap explanation."""
    table = _table()
    table.add_column(f"control, by {visible(primary)}", overflow="fold")
    for heading in ("delta", "win rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("policy is", no_wrap=True)
    for control in controls:
        judge = control["judges"][primary]
        result = str(judge.get("verdict", _MISSING))
        styled = Text(result, VERDICT_STYLES.get(result, ""))
        table.add_row(_text(_control_name(control)), _delta(judge), _win_rate(judge), styled)
    return table


def _control_name(control: Mapping[str, Any]) -> str:
    name = str(control["name"])
    if control.get("kind") == verdicts.MATCHED:
        return f"{name}, ref at {control['temperature']:.2g}"
    return f"{name} (KL {control['kl']:.2g})" if control.get("kl") is not None else name


class _FirstThatFits:
    """Render the first of several tables that needs no more than the console's width, with the note below it."""

    def __init__(self, *tables: tuple[Table, str]) -> None:
        self.tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=_UNBOUNDED)
        fitting = (one for one in self.tables if console.measure(one[0], options=wide).maximum <= options.max_width)
        table, note = next(fitting, self.tables[-1])
        yield table
        yield Text(note, "dim")


def _judges_part(
    judges: Mapping[str, Mapping[str, Any]], primary: str, greedy: Mapping[str, Mapping[str, Any]]
) -> RenderableType:
    """Build the rows of the judges, with the length-controlled win rates as a column where there is room for it."""
    plain = _judges_table(judges, primary, greedy)
    named = [(name, judges[name]) for name in sorted(judges, key=lambda name: name != primary)]
    rates = [(name, _win_rate(judge, _CONTROLLED)) for name, judge in named if judge.get(_CONTROLLED) is not None]
    if not rates:
        why = judges[primary].get("length_control_missing")  # absent: a comparison of an earlier version
        return plain if why is None else Group(plain, Text(f"no win rate at equal length: {why}", "dim"))
    note = "the win rate if both sides' responses were equally long"
    listed = ", ".join(f"{visible(name)} {rate}" for name, rate in rates)
    wide, narrow = (
        _judges_table(judges, primary, greedy, partial(_win_rate, key=_CONTROLLED, with_interval=interval))
        for interval in (True, False)
    )
    return _FirstThatFits((wide, f"LC: {note}"), (narrow, f"LC: {note}"), (plain, f"{note}: {listed}"))


def _judges_table(
    judges: Mapping[str, Mapping[str, Any]],
    primary: str,
    greedy: Mapping[str, Mapping[str, Any]],
    controlled: Callable[[Mapping[str, Any]], str] | None = None,
) -> Table:
    """Build one row per judge; `controlled` writes the length-controlled win rate (None: no such column)."""
    table = _table()
    table.add_column("judge", no_wrap=True)
    for heading in ("ref -> policy", "delta", "win rate", *(("LC",) if controlled is not None else ()), "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for decoding, group in (("", judges), ("greedy:", greedy)):
        if decoding and group:
            table.add_section()
            table.add_row(Text(decoding, "dim"))
        for name in sorted(group, key=lambda name: name != primary):  # the sort is stable: the others keep their order
            judge = group[name]
            dependent = judge.get("independent", judges.get(name, {}).get("independent")) is False
            *numbers, p_value = _judge_cells(judge)
            numbers += [controlled(judge)] if controlled is not None else []
            table.add_row(_text(name, "*" if dependent else ""), *numbers, p_value)
    return table


def _judge_cells(judge: Mapping[str, Any]) -> list[str]:
    places = _decimals(judge)
    policy, reference, p_value = (judge.get(key) for key in ("policy_mean", "reference_mean", "p_value"))
    means = _MISSING
    if policy is not None and reference is not None:
        means = f"{fixed(reference, places)} -> {fixed(policy, places)}"
    p_text = _MISSING if p_value is None else "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return [means, _delta(judge), _win_rate(judge), p_text]


def _behaviour_table(compare: Mapping[str, Any]) -> Table:
    """Build the table of facts that no judge sees: KL, response length, share of ended responses, distinct 2-grams."""
    table = _table()
    count = compare.get("samples_per_prompt")
    table.add_column("" if count is None else f"per prompt: {count} sample{'' if count == 1 else 's'}")
    table.add_column("policy", justify="right")
    table.add_column("reference", justify="right")
    for label, of_policy, of_reference, write in (
        ("response length, tokens", "length_policy_mean", "length_reference_mean", short),
        ("responses that end", "end_rate_policy", "end_rate_reference", verdicts.share),
        ("distinct 2-grams", "distinct_2_policy", "distinct_2_reference", verdicts.share),
        ("no Python", "compile_error_policy", "compile_error_reference", verdicts.share),
        ("raise an error", "runtime_error_policy", "runtime_error_reference", verdicts.share),
        ("fail a test", "failed_policy", "failed_reference", verdicts.share),
        ("pass all tests", "passed_policy", "passed_reference", verdicts.share),
        ("KL from the reference", "kl_mean", None, short),
    ):
        values = [compare.get(key) if key else None for key in (of_policy, of_reference)]
        if any(value is not None for value in values):
            table.add_row(label, *("" if value is None else write(value) for value in values))
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")


def _text(value: object, suffix: str = "") -> Text:
    return Text(_MISSING if value is None else visible(str(value)) + suffix)


def _body(value: Any) -> Text:
    """Write a prompt or a response with its line ends. Trailing line ends are dropped."""
    if value is None:
        return Text("(none)", "dim italic")
    value = transcript(value)
    return Text(visible(value.rstrip("\n"), newlines=True)) if value.strip() else Text("(empty)", "dim italic")


def _scores(scores: Mapping[str, float] | None) -> Text:
    return Text("  ".join(f"{visible(name)} {number(score, 3)}" for name, score in (scores or {}).items()), "dim")


def _delta(judge: Mapping[str, Any]) -> str:
    delta, interval = judge.get("delta"), judge.get("delta_ci95")
    if delta is None:
        return _MISSING
    places = _decimals(judge)
    spread = "" if interval is None else f" [{fixed(interval[0], places)}, {fixed(interval[1], places)}]"
    return fixed(delta, places, sign=True) + spread


def _win_rate(judge: Mapping[str, Any], key: str = "win_rate", with_interval: bool = True) -> str:
    rate, interval = judge.get(key), judge.get(f"{key}_ci95") if with_interval else None
    if rate is None:
        return _MISSING
    spread = "" if interval is None else f" [{verdicts.share(interval[0])[:-1]}, {verdicts.share(interval[1])[:-1]}]"
    return verdicts.share(rate) + spread


def _decimals(judge: Mapping[str, Any]) -> int:
    """Choose 2 to 6 decimals: one digit of the half-width of the delta's interval, or two digits of the delta."""
    delta, interval = judge.get("delta"), judge.get("delta_ci95")
    size = abs(interval[1] - interval[0]) / 2 if interval is not None else 0.0
    size = size or abs(delta or 0.0) / 10
    if not size or not math.isfinite(size):
        return 2
    return min(6, max(2, math.ceil(-math.log10(size))))


def _cell(value: float | None, write: Callable[[float], str]) -> str:
    return _MISSING if value is None else write(value)
