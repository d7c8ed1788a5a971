"""Build the page of a sweep: every setting with its measures, reward against KL, and the best setting, said honestly.

Pure: the records of facts/sweep.py in, the parts of content.py out. The page goes on as that of several runs does
(several.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhfctl.dashboard.text import counted, number, one_line
from rlhfctl.report.cells import with_interval
from rlhfctl.report.content import Check, Figures, Number, Page, Part, Section, Table, Text
from rlhfctl.report.facts.sweep import GOLD, HELDOUT, KL, LENGTH, SCORE, Choice, Estimate, Facts, Setting
from rlhfctl.report.figures.runs import Place, gain_over_kl
from rlhfctl.report.figures.spec import Figure
from rlhfctl.report.several import sections_of
from rlhfctl.verdict import share

_NAMES = {
    HELDOUT: "held-out reward",
    SCORE: "reward",
    GOLD: "gold",
    KL: "KL",
    LENGTH: "length",
}
"""What the measures are called: of the policy that PPO leaves, on the eval prompts."""

_GAINS = (HELDOUT, SCORE, GOLD)


def page_of_sweep(facts: Facts) -> Page:
    """Build the report of a sweep."""
    sweep, settings = facts.sweep, facts.settings
    seeds = f", each over {counted(len(sweep.grid.seeds), 'seed')}" if len(sweep.grid.seeds) > 1 else ""
    varied = ", ".join(f"{key} ({len(values)})" for key, values in sweep.grid.axes.items() if len(values) > 1)
    return Page(
        title=f"Sweep of {sweep.name}",
        subtitle=f"{counted(len(settings), 'combination')} of {varied}{seeds}",
        word="",
        headline=headline(facts),
        meaning=meaning(facts.choice),
        numbers=list(_numbers(facts)),
        checks=list(_checks(facts)),
        sections=[section for section in _sections(facts) if section.parts],
    )


def headline(facts: Facts) -> str:
    """Name the best setting in a sentence, or say why there is none."""
    found, limit = facts.choice, facts.sweep.kl_limit
    if found.best is None:
        return f"no best setting: {found.why_not}"
    within = "without a KL limit" if limit is None else f"with a KL of at most {number(limit, 3)}"
    kl = found.best.measures[KL].mean
    return (
        f"{found.best.label} has the highest {_NAMES[found.measure]} of {counted(found.tried, 'setting')} {within}: "
        f"{_estimate(found.best.measures[found.measure])} on the eval prompts, at a KL of {number(kl, 3)}"
    )


def meaning(found: Choice) -> str:
    """Say how far the choice can be trusted."""
    if found.best is None:
        return "Compare the settings by the table and the figures below."
    said = [
        f"It was chosen because its number is the highest of {found.allowed}, so that number is too high on average: "
        "chance helped it to win. The test prompts had no part in the choice, so its win rate there is not affected."
    ]
    if found.second is not None and found.lead is not None:
        lead = f"The next, {found.second.label}, is {_estimate(found.lead)} behind."
        if found.lead.interval is None:
            lead += " One seed says nothing of what another would give: add seed=0,1,2 to the grid."
        elif found.lead.interval[0] <= 0:
            lead += " The seeds do not tell the two apart."
        said.append(lead)
    return " ".join(said)


def _estimate(found: Estimate) -> str:
    return with_interval(found.mean, found.interval, lambda value: number(value, 3))


def _numbers(facts: Facts) -> Iterator[Number]:
    found = facts.choice
    if found.best is None:
        return
    chosen = found.best
    name = _NAMES[found.measure]
    yield Number(f"Its {name}", _estimate(chosen.measures[found.measure]), "on the eval prompts; optimistic, see below")
    yield Number("Its KL", _estimate(chosen.measures[KL]), "nats per response from the reference, on the eval prompts")
    comparison = chosen.run.comparison if chosen.run is not None else None
    if comparison is not None:
        main = comparison.main
        detail = f"{comparison.verdict}, by {comparison.primary}; these prompts had no part in the choice"
        yield Number("Its win rate on the test prompts", share(main.win_rate), detail, main.win_rate_ci, main.win_rate)
    limited = facts.sweep.kl_limit is not None
    detail = f"{found.allowed} within the KL limit" if limited else "there was no KL limit"
    yield Number("Settings compared", str(found.tried), detail)


def _checks(facts: Facts) -> Iterator[Check]:
    found, settings = facts.choice, facts.settings
    failed = [one.label for one in settings if one.combination.error is not None]
    if failed:
        yield Check("bad", "Every combination ran", f"Failed: {', '.join(failed)}.")
    unfinished = [one.label for one in settings if one.combination.error is None and not one.complete]
    if unfinished:
        yield Check("caution", "Every combination ran", f"Not finished: {', '.join(unfinished)}.")
    if not failed and not unfinished:
        yield Check("good", "Every combination ran", f"All {len(settings)}.")
    if found.best is None:
        yield Check("bad", "Best setting", f"{found.why_not[:1].upper()}{found.why_not[1:]}.")
        return
    if found.measure == HELDOUT:
        yield Check("good", "Chosen by", "A held-out reward model, which PPO did not train on.")
    else:
        text = "The reward that PPO trained on, which over-optimization raises: set reward.heldout to true."
        yield Check("bad", "Chosen by", text)
    yield Check("caution", "Selection", f"The best of {found.allowed} settings: its number is optimistic.")
    yield Check("good", "Test prompts", "They had no part in the choice.")
    if facts.sweep.kl_limit is None:
        text = "None: a setting that moves far from the reference can win. Give --kl-limit."
        yield Check("caution", "KL limit", text)
    seeds = len(found.best.measures[found.measure].by_seed)
    if seeds == 1:
        yield Check("caution", "Seeds", "One: settings may differ by their luck alone.")
    elif found.lead is not None:
        apart = found.lead.interval is not None and found.lead.interval[0] > 0
        text = f"{seeds}; the best is ahead of the next by {_estimate(found.lead)}."
        yield Check("good" if apart else "caution", "Seeds", text)


def _sections(facts: Facts) -> Iterator[Section]:
    yield Section(
        "settings",
        "Settings",
        "One row per combination. Measures are of the policy that PPO leaves, on the eval prompts: means over seeds, "
        "in brackets the 95% interval over seeds (Student's t). The win rate is on the test prompts.",
        [_table(facts)],
    )
    parts: list[Part] = [
        Figures([figure]) for name in _GAINS if (figure := _figure(facts, name)) is not None
    ]  # fmt: skip
    how = "A setting that lies higher at the same KL pays less for its reward."
    yield Section("gains", "Reward against KL", how, parts)
    failed = [
        [one.label, one_line(one.combination.error)] for one in facts.settings if one.combination.error is not None
    ]
    how = "The same command tries these again. The others are not touched by them."
    yield Section("failed", "Failed", how, [Table(["combination", "error"], failed)] if failed else [])
    how = "A stage that is equal in several combinations ran once; the others hold the same files under a second name."
    yield Section("shared", "What was shared", how, _shared(facts))
    if len(facts.runs) > 1:
        yield from sections_of(facts.runs)
    command = [Text(f"Each run has a report of its own: rlhfctl report {facts.path}/COMBINATION")]
    yield Section("own", "Each run by itself", "Samples, tokens and the reward model are there.", command)


def _table(facts: Facts) -> Table:
    known = [name for name in _NAMES if any(name in one.measures for one in facts.settings)]
    keys = [key for key, values in facts.sweep.grid.axes.items() if len(values) > 1]
    rows = []
    for one in facts.settings:
        comparison = one.run.comparison if one.run is not None else None
        rate = (
            "-" if comparison is None else with_interval(comparison.main.win_rate, comparison.main.win_rate_ci, share)
        )
        cells = [_estimate(one.measures[name]) if name in one.measures else "-" for name in known]
        mark = " *" if facts.choice.best is one else ""
        rows.append([*(one.combination.values[key] for key in keys), *cells, rate, _state(one) + mark])
    headings = [*keys, *(_NAMES[name] for name in known), "win rate", "state"]
    starred = "A star marks the chosen setting." if facts.choice.best is not None else ""
    return Table(headings, rows, starred, frozenset(range(len(keys), len(headings) - 1)))


def _state(one: Setting) -> str:
    if one.combination.error is not None:
        return "failed"
    if one.run is None:
        return "not begun"
    return "complete" if one.complete else "unfinished"


def _figure(facts: Facts, measure: str) -> Figure | None:
    places = [
        Place(one.label, one.measures[KL].mean, one.measures[measure].mean, one.measures[measure].interval)
        for one in facts.settings
        if measure in one.measures and KL in one.measures
    ]
    name = _NAMES[measure]
    return gain_over_kl(
        f"pareto-{name.replace(' ', '-')}", f"{name[:1].upper()}{name[1:]} against KL", f"{name} on the eval prompts",
        places, caption="Up and to the left is better. Lines are 95% intervals over seeds.",
        limit=facts.sweep.kl_limit,
    )  # fmt: skip


def _shared(facts: Facts) -> list[Part]:
    """List the stages that several combinations have in common, by the content that they left."""
    made: dict[tuple[str, str], list[str]] = {}
    for label, run in facts.runs:
        for stage in run.stages:
            if stage.manifest is not None:
                key = (stage.name, f"{stage.manifest.seal or stage.manifest.fingerprint}")
                made.setdefault(key, []).append(label)
    rows = [[name, ", ".join(labels)] for (name, _), labels in made.items() if len(labels) > 1]
    return [Table(["stage", "combinations"], rows)] if rows else []
