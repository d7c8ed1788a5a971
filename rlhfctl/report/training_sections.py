"""Build the sections about training and the run itself: curves, KL, reward model, tokens, alarms, costs, lineage.

Pure: the records of facts/records.py in, the parts of content.py out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhfctl.dashboard.text import counted
from rlhfctl.report import words
from rlhfctl.report.cells import plain, with_interval
from rlhfctl.report.content import Figures, Fold, Heading, Legend, Part, Section, Table, Text, Tokens
from rlhfctl.report.facts.measures import cost_of
from rlhfctl.report.facts.optimization import optimization_of, told
from rlhfctl.report.facts.records import Run, Stage
from rlhfctl.report.figures import card as card_figures
from rlhfctl.report.figures import training
from rlhfctl.verdict import share

_HASH = 12
_GB = 1e9


# ---------------------------------------------------------------- training


def curves(run: Run) -> Section:
    parts: list[Part] = []
    seeds = sorted({stage.seed for stage in run.stages if stage.seed}) or [""]
    for place, stages in grouped(run.stages).items():
        # A stage that all seeds share has one curve, in the colour of none of them.
        parts += curve_parts(place, stages, seeds if "" not in stages else [""])
    if parts and len(seeds) > 1:
        parts.insert(0, Legend(seeds))
    return Section(
        "curves",
        "Curves of every stage",
        "Read each curve from left to right; what its number means stands below its name.",
        parts,
    )


def grouped(stages: Sequence[Stage]) -> dict[str, dict[str, Stage]]:
    """Group stages by place, each by the name of its seed."""
    found: dict[str, dict[str, Stage]] = {}
    for stage in stages:
        found.setdefault(stage.place, {})[stage.seed] = stage
    return found


def curve_parts(place: str, stages: Mapping[str, Stage], series: Sequence[str]) -> list[Part]:
    """Return the curves of the stages of one place: a heading, what matters most, and the rest closed."""
    drawn = training.curves(place, stages, series)
    if drawn is None:
        return []
    parts: list[Part] = [Heading(place)]
    if drawn.merged > 1:
        parts.append(
            Text(
                f"Each point is the mean of up to {drawn.merged} neighbouring reports, and the band spans their lowest "
                "and highest; all reports are in events.jsonl."
            )
        )
    parts += [Figures(drawn.main)] if drawn.main else []
    if drawn.others:
        parts.append(Fold(f"{counted(len(drawn.others), 'more curve')} of {place}", [Figures(drawn.others)]))
    return parts


def optimization(run: Run) -> Section:
    parts: list[Part] = []
    by_place = {place: stages for place, stages in grouped(run.stages).items() if place.rpartition("/")[2] == "ppo"}
    for stages in by_place.values():
        figure = training.reward_over_kl(stages)
        for seed, stage in stages.items():
            found = optimization_of(run, stage)
            if found is not None:
                said = told(found)
                parts += [
                    Text(f"{seed}: {said}" if seed else said, strong=True),
                    Figures([training.over_optimization(found)]),
                ]
        parts += [Figures([figure])] if figure is not None else []
    return Section(
        "optimization",
        "Reward against KL",
        "KL is what the reward costs: how far the policy has moved from the reference to get it.",
        parts,
    )


# ---------------------------------------------------------------- the reward model

_LENGTH_ROWS = {  # field of card.length -> what it is called
    "score_correlation": "correlation of score with length",
    "chosen_longer": "pairs whose chosen answer is longer",
    "accuracy_chosen_longer": "accuracy where it is longer",
    "accuracy_chosen_shorter": "accuracy where it is shorter",
    "length_controlled_accuracy": "length-controlled accuracy",
}


def card(run: Run) -> Section:
    parts = list(_card_parts(run.card)) if run.card is not None else []
    return Section(
        "card",
        "The reward model",
        "A reward model is an imperfect judge: this shows how often it is right, what fools it, and how far it goes.",
        parts,
    )


def _card_parts(found: Mapping[str, Any]) -> Iterator[Part]:
    gate = found.get("gate")
    if gate:
        reasons = "; ".join(map(str, gate.get("reasons") or ()))
        result = "passed" if gate.get("passed") else "stopped the run"
        yield Text(f"The gate {result}{f': {reasons}' if reasons else ''}.", strong=True)
    if found.get("base_is_policys") is False:
        yield Text("Its base is not the policy's own: such reward models gain less in PPO (RewardBench 2).")
    for flag in found.get("flags") or ():
        yield Text(f"Flag {flag.get('name')}: {flag.get('message')}.")
    yield Table(["", ""], list(_card_rows(found)), "On pairs that it was not trained on.", frozenset({1}))
    figures = card_figures.card_figures(found)
    if figures:
        yield Figures(figures)


def _card_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    accuracy, length = found.get("accuracy") or {}, found.get("length") or {}
    yield ["held-out accuracy", with_interval(accuracy.get("value"), accuracy.get("ci95"), share)]
    yield ["pairs", f"{plain(found.get('pairs'))} of {plain(found.get('prompts'))} prompts"]
    error = (found.get("calibration") or {}).get("ece")
    if error is not None:
        yield ["expected calibration error", f"{error:.3f}"]
    for name, label in _LENGTH_ROWS.items():
        if length.get(name) is not None:
            yield [label, f"{length[name]:.2f}" if name == "score_correlation" else share(length[name])]
    for name, one in (found.get("agreement") or {}).items():
        same, ranks = one.get("pairs_same"), one.get("spearman")  # null where that scorer cannot tell
        said = [f"{share(same)} of pairs"] if same is not None else []
        said += [f"rank correlation {ranks:.2f}"] if ranks is not None else []
        if said:
            yield [f"agreement with {name}", "; ".join(said)]


# ---------------------------------------------------------------- tokens, alarms, costs, lineage


def tokens(run: Run) -> Section:
    return Section(
        "tokens",
        "Token by token",
        "Each token is coloured by what PPO made of it: better than expected, or worse. Point at one for its numbers.",
        [Tokens(run.traces), Text(f"rlhfctl tokens {run.path} --explain writes out each number's formula.")]
        if run.traces
        else [],
    )


def alarms(run: Run) -> Section:
    parts: list[Part] = []
    rows = [
        [
            alarm.stage,
            alarm.sentence,
            alarm.causes or "see docs/alarms.md",
            f"{alarm.first} to {alarm.last}" + (", the end" if alarm.holds else ""),
        ]
        for alarm in run.alarms
    ]
    if rows:
        parts.append(Table(["stage", "alarm", "usual causes", "steps"], rows))
    elif any(stage.curves for stage in run.stages):
        parts.append(Text("No alarm at any step."))
    warned = [[stage, message] for stage, message in run.warnings]
    if warned:
        parts.append(Table(["stage", "warning"], warned))
    return Section(
        "alarms",
        "Alarms and warnings",
        "An alarm says what looked wrong in training, from which step to which, and what usually causes it.",
        parts,
    )


def costs(run: Run) -> Section:
    costs = [cost_of(stage) for stage in run.stages]
    rows = [
        [
            one.stage,
            "-" if one.seconds is None else words.spent(one.seconds),
            "-" if one.peak_memory is None else f"{one.peak_memory / _GB:.2f} GB",
            "-" if one.tokens is None else words.large(one.tokens),
        ]
        for one in costs
    ]
    figure = training.times(costs)
    parts: list[Part] = [Figures([figure])] if figure is not None else []
    if rows:
        caption = "Tokens: read in training, or sampled by PPO. Memory: of the GPU, or of the process without one."
        parts.append(Table(["stage", "time", "peak memory", "tokens"], rows, caption, frozenset({1, 2, 3})))
    return Section("costs", "Costs", "Time is of the last command that worked on a stage, preparation included.", parts)


def lineage(run: Run) -> Section:
    made = [(stage, stage.manifest) for stage in run.stages if stage.manifest is not None]
    rows = [
        [
            stage.name,
            manifest.fingerprint[:_HASH],
            _listed(f"{role}: {ref.path} {ref.fingerprint[:_HASH]}" for role, ref in sorted(manifest.parents.items())),
            _listed(
                f"{name.removeprefix('data.')} {content[:_HASH]}"
                for name, content in sorted(manifest.inputs.items())
                if name.startswith("data.") and name != "data.prompt_lengths"
            ),
            str(manifest.seed),
            (manifest.git_commit or "-")[:_HASH],
        ]
        for stage, manifest in made
    ]
    parts: list[Part] = []
    if rows:
        parts.append(
            Table(["stage", "fingerprint", "made from", "data", "seed", "commit"], rows, whole=frozenset({1, 5}))
        )
        versions: dict[str, set[str]] = {}
        for _, manifest in made:
            for package, version in manifest.versions.items():
                versions.setdefault(package, set()).add(version)
        listed = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
        parts.append(Text(f"Versions: {listed}."))
        notes = [[stage.name, note] for stage, manifest in made for note in manifest.notes]
        parts += [Fold(counted(len(notes), "note"), [Table(["stage", "note"], notes)])] if notes else []
    return Section(
        "lineage",
        "Lineage",
        "Each stage is named by the hash of what it made; a stage made from another names the hash that it used.",
        parts,
    )


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "-"
