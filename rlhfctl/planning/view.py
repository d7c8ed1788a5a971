"""Show a plan in the terminal: stages, peak memory by role and kind, disk, and suggested changes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhfctl.planning.advice import Fit
from rlhfctl.planning.meter import KINDS
from rlhfctl.planning.plan import Plan
from rlhfctl.planning.stages import StagePlan

_FIT_STYLES: dict[Fit, str] = {"fits": "green", "tight": "yellow", "does not fit": "bold red"}
_ACTIONS = {"run": "runs", "continue": "resumes", "wait": "waits", "skip": "skipped"}


def view(plan: Plan) -> RenderableType:
    """Draw the whole plan."""
    parts: list[RenderableType] = [Text(f"plan of {plan.name}", style="bold"), _stages(plan), Text()]
    active = [stage for stage in plan.stages if stage.action != "skip"]
    if not active:
        parts.append(Text("nothing to do: every stage is complete"))
        return Group(*parts)
    limit = f" of {size(plan.limit)}" if plan.limit is not None else ""
    each = f", of each of {plan.processes} processes where it is trained" if plan.processes > 1 else ""
    heading = f"memory at the peak of each stage{each} ({plan.device}{limit})"
    parts += [Text(heading, style="bold"), _memory(plan, active)]
    parts += list(_verdicts(plan, active))
    parts += [Text(), _disk(plan)]
    return Group(*parts)


def _stages(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("", overflow="fold")
    table.add_column("rows", overflow="fold")
    for name in ("steps", "tokens", "parameters", "trained"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        outlook = stage.outlook
        table.add_row(
            Text(stage.name, style="bold"),
            Text(f"{_ACTIONS[stage.action]}: {stage.why}", style="dim" if stage.action == "skip" else ""),
            stage.rows,
            count(stage.steps) if stage.steps else "",
            count(stage.tokens) if stage.tokens else "",
            count(outlook.parameters) if outlook is not None else "",
            _trained(stage),
        )
    return table


def _trained(stage: StagePlan) -> str:
    outlook = stage.outlook
    if outlook is None or not outlook.trainable:
        return ""
    share = outlook.trainable / outlook.parameters
    return f"{count(outlook.trainable)} ({share:.0%})" if share >= 0.01 else count(outlook.trainable)


def _memory(plan: Plan, stages: list[StagePlan]) -> Table:
    """Draw the memory table: one line per role and stage, one column per kind."""
    kinds = [
        kind
        for kind in KINDS
        if any(needs.get(kind) for one in stages if one.outlook for needs in one.outlook.peak.needs.values())
    ]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("")
    for kind in (*kinds, "sum"):
        table.add_column(kind, justify="right", no_wrap=True)
    for stage, names in _alike(stages):
        table.add_row(Text(names, style="bold"))
        if stage.outlook is None:
            table.add_row(Text(f"  {stage.note}", style="dim"))
            continue
        for role, needs in stage.outlook.peak.needs.items():
            table.add_row(
                f"  {role}",
                *[size(needs[kind]) if needs.get(kind) else Text("·", style="dim") for kind in kinds],
                size(sum(needs.values())),
            )
    table.add_row(Text("libraries, rows", style="dim"), *[""] * len(kinds), size(plan.overhead))
    return table


def _alike(stages: list[StagePlan]) -> Iterator[tuple[StagePlan, str]]:
    """Yield each stage with its name; stages of several seeds with equal needs once, with all their names."""
    groups: dict[str, list[StagePlan]] = {}
    for stage in stages:
        needs = None if stage.outlook is None else stage.outlook.peak.needs
        groups.setdefault(f"{stage.name.rpartition('/')[2]} {needs} {stage.note}", []).append(stage)
    for alike in groups.values():
        yield alike[0], ", ".join(stage.name for stage in alike)


def _verdicts(plan: Plan, stages: list[StagePlan]) -> Iterator[RenderableType]:
    advice = {one.stage: one for one in plan.advice}
    width = max(8, *(len(stage.name) + 1 for stage in stages))
    for stage in stages:
        total, fit = plan.total(stage), plan.fit(stage)
        if total is None:
            continue
        line = Text()
        line.append(f"{stage.name:<{width}}", style="bold")
        line.append(f"{size(total):>8} ")
        if stage.measured is not None:
            expected = size(plan.overhead + stage.outlook.peak.total) if stage.outlook is not None else "nothing"
            line.append(f"measured by the probe ({expected} predicted) ", style="dim")
        elif stage.outlook is not None:
            line.append(f"during {stage.outlook.peak.what} ", style="dim")
        if fit is not None:
            line.append(fit, style=_FIT_STYLES[fit])
        yield line
        if stage.name in advice:
            one = advice[stage.name]
            for index, setting in enumerate(one.settings):
                key, value = setting.split("=", 1)
                then = f"   brings it to {size(one.total)}" if index == len(one.settings) - 1 else ""
                yield Text(f"  {'change' if not index else '':6} {key}: {value}{then}", style="yellow")
        elif fit == "does not fit":
            yield Text(
                "        no setting that was tried brings it down far enough: use a smaller model", style="yellow"
            )


def _disk(plan: Plan) -> Text:
    line = Text()
    line.append("disk    ", style="bold")
    line.append(f"{size(plan.disk.highest):>8} at most, {size(plan.disk.kept)} kept, {size(plan.free_disk)} free ")
    enough = plan.disk.highest <= plan.free_disk
    line.append("fits" if enough else "does not fit", style="green" if enough else "bold red")
    if not enough:
        line.append("  choose another disk with --run-dir, or lower checkpoints: ppo.keep_checkpoints", style="yellow")
    return line


def size(number: int | None) -> str:
    """Format bytes in kB, MB or GB (powers of ten) with three digits."""
    if number is None:
        return "?"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            value = number / scale
            return (
                f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            )
    return f"{number} B"


def count(number: int) -> str:
    """Format a count with three digits: 1234567 as 1.23M."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= scale:
            value = number / (1e3 if unit == "k" else scale)
            return f"{value:.2f}{unit}" if value < 10 else f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"
    return str(number)
