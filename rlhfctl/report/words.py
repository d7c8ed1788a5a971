"""Say in plain words what a verdict means, which numbers matter, and whether the result can be trusted.

Pure functions of the records in facts/records.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhfctl.dashboard.text import counted, number
from rlhfctl.paths import StageId
from rlhfctl.report.content import Check, Mark, Number
from rlhfctl.report.facts.measures import peak_memory, seconds_of, share_below, tokens_sampled
from rlhfctl.report.facts.records import Comparison, Judged, Run
from rlhfctl.verdict import share

FEW_PROMPTS = 100
"""Below this many test prompts the interval of a win rate is about 20 points wide or wider."""

_GB = 1e9
_DEPENDENT = (
    "The judge is what PPO was trained to please, so this shows that PPO raised its own reward, not that people would "
    "prefer the answers."
)


# ---------------------------------------------------------------- what it means


def headline(run: Run) -> str:
    """Say the verdict in one short sentence."""
    found = run.comparison
    if found is None:
        return "PPO was not begun: the reward model is not good enough" if _closed(run) else "No verdict yet"
    said = {
        "better": f"The trained model wins {_odds(found.main.win_rate)}",
        "worse": f"The trained model loses {_odds(1 - found.main.win_rate)}",
        "undecided": "No difference could be shown",
        "mixed": "It wins some fair comparisons and not others",
    }.get(found.verdict, found.verdict)
    return f"{said}, by the reward that it was trained on" if found.main.independent is False else said


def meaning(run: Run) -> str:
    """Say what the verdict means for someone who decides whether to use the model."""
    found = run.comparison
    if found is None:
        return _unfinished(run)
    main = found.main
    parts = [_MEANINGS.get(found.verdict, lambda one: "")(found), _typical(run, found)]
    if main.independent is False:
        parts.append(_DEPENDENT)
    return " ".join(part for part in parts if part)


def _better(found: Comparison) -> str:
    said = f"Shown both answers, {found.primary} prefers the trained model's on {share(found.main.win_rate)} of the "
    said += "test prompts."
    if found.fair:
        return said + (
            " The gain holds at lower temperatures, when both decode greedily, and when both are equally random, so it "
            "is more than a lower temperature."
        )
    return said + " Cheaper explanations, such as a lower temperature, were not tested."


def _worse(found: Comparison) -> str:
    return (
        f"Shown both answers, {found.primary} prefers the one from before PPO on {share(1 - found.main.win_rate)} of "
        "the test prompts. By this judge training has made the model worse: keep the reference."
    )


def _undecided(found: Comparison) -> str:
    said = "The test could not tell the two models apart. This does not prove that they are equal"
    if found.main.win_rate_ci is not None:
        low, high = found.main.win_rate_ci
        said += f": the true win rate may lie anywhere from {share(low)} to {share(high)}"
    needed = found.main.prompts_to_settle
    if needed and found.prompts and needed <= found.prompts:
        return (
            f"{said}. One answer wins more often than chance allows, but the mean of the scores does not show it: few "
            "prompts with large differences outweigh many with small ones."
        )
    if needed:
        return f"{said}. About {needed:,} test prompts would settle it."
    return said + ". More test prompts narrow this range."


def _mixed(found: Comparison) -> str:
    lost = [control.label for control in found.fair if control.judges[found.primary].verdict != "better"]
    lost += [control.label for control in found.colder_wins]
    said = "Some fair comparisons are won and others are not, so no single claim holds."
    if found.main.verdict == "better" and lost:
        return (
            f"{said} The trained model wins at the main temperature, but not here: {', '.join(lost)}. Part of the gain "
            "may be that its samples became less random, which a lower temperature gives for free."
        )
    return f"{said} Read the rows under Win rates before you use the model."


_MEANINGS = {"better": _better, "worse": _worse, "undecided": _undecided, "mixed": _mixed}


def _odds(rate: float) -> str:
    """Write a share as people say it."""
    for limit, words in ((0.985, "nearly always"), (0.875, "about 9 times in 10"), (0.775, "about 4 times in 5"),
                         (0.71, "about 3 times in 4"), (0.635, "about 2 times in 3"), (0.575, "about 3 times in 5"),
                         (0.5, "slightly more often than not")):  # fmt: skip
        if rate >= limit:
            return words
    return f"on {share(rate)} of the prompts"


def _typical(run: Run, found: Comparison) -> str:
    """Say how large the gain is, in terms of the reference's own answers."""
    below = share_below(run.pairs, found.primary)
    if below is None or found.verdict in ("undecided",):
        return ""
    return f"The average answer now scores higher than {share(below)} of the answers before training."


def _closed(run: Run) -> list[str]:
    """Return why the gate stopped the run before PPO; empty where it did not."""
    gate = (run.card or {}).get("gate") or {}
    begun = any(stage.state == "complete" for stage in run.of_kind("ppo"))
    return [] if begun or gate.get("passed", True) else [str(reason) for reason in gate.get("reasons") or ["closed"]]


def _unfinished(run: Run) -> str:
    if reasons := _closed(run):
        return (
            f"The recipe's gate stopped the run, because PPO would raise a reward that cannot be trusted: "
            f"{'; '.join(reasons)}. The section about the reward model shows what is wrong with it."
        )
    missing = [stage.name for stage in run.stages if stage.state != "complete"]
    if missing:
        why = f" {_sentence('The last command ended early: ' + run.stopped.splitlines()[0])}" if run.stopped else ""
        return (
            f"There is no verdict yet: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not complete.{why}"
        )
    way = f"Run: rlhfctl compare {run.path}" if run.recipe.get("compare") else "Add a compare section to the recipe."
    return f"This run has no comparison, so nothing says whether the model is better. {way}"


# ---------------------------------------------------------------- the numbers


def numbers(run: Run) -> list[Number]:
    """Return the four numbers that matter: win rate, lowest fair control, KL, cost."""
    found = run.comparison
    return [*(_of_verdict(run, found) if found is not None else ()), _cost(run)]


def _of_verdict(run: Run, found: Comparison) -> Iterator[Number]:
    main, lowest = found.main, found.lowest
    prompts = f"{found.prompts:,} test prompts" if found.prompts else "the test prompts"
    seeds = f", {counted(len(run.by_seed), 'seed')}" if run.by_seed else ""
    yield _rate("Win rate", main, f"by {found.primary} on {prompts}{seeds}; 50% is no change")
    if lowest is not None:
        yield _rate("Lowest fair control", lowest.judges[found.primary], f"{lowest.label}, the strictest fair test")
    else:
        yield Number("Lowest fair control", "none", "no controls were run: a lower temperature may explain the gain")
    kl = "-" if found.kl is None else number(found.kl, 3)
    length = (found.facts.get("response length") or (None, None))[0]
    per = f", {number(found.kl / length, 2)} per token" if found.kl is not None and length else ""
    yield Number("KL", kl, f"nats per response from the reference{per}: how far the model has moved")


def _rate(label: str, one: Judged, detail: str) -> Number:
    spread = f"{share(one.win_rate_ci[0])} to {share(one.win_rate_ci[1])}; " if one.win_rate_ci else ""
    return Number(label, share(one.win_rate), spread + detail, one.win_rate_ci, one.win_rate)


def _cost(run: Run) -> Number:
    tokens, memory = tokens_sampled(run), peak_memory(run)
    details = ["all stages together"]
    details += [f"{large(tokens)} tokens sampled by PPO"] if tokens is not None else []
    details += [f"{memory / _GB:.2g} GB at most"] if memory is not None else []
    return Number("Cost", seconds_text(run), "; ".join(details))


def seconds_text(run: Run) -> str:
    """Write the time of all complete stages; a dash where none is known."""
    seconds = seconds_of(run)
    return "-" if seconds is None else spent(seconds)


def spent(seconds: float) -> str:
    """Write a time for people: 42 s, 12 min 5 s, 1 h 2 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def large(count: float) -> str:
    """Write a large count shortly: 950, 97 thousand, 1.2 million."""
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{number(count / size, 2 if count < 100 * size else 3)} {name}"
    return f"{count:.0f}"


# ---------------------------------------------------------------- can I trust it


def checks(run: Run) -> list[Check]:
    """Answer "can I trust this?" point by point."""
    found = run.comparison
    of_verdict = _of_comparison(run, found) if found is not None else ()
    return [*of_verdict, *_of_reward(run), *_of_run(run)]


def _of_comparison(run: Run, found: Comparison) -> Iterator[Check]:
    independent = found.main.independent
    if independent is False:
        yield Check(
            "bad", "Independent judge", f"{found.primary} is what PPO trained against: no independent evidence."
        )
    elif independent is None:
        yield Check("unknown", "Independent judge", f"Nothing says whether PPO trained against {found.primary}.")
    else:
        yield Check("good", "Independent judge", f"{found.primary} took no part in training.")
    yield _controls(found)
    yield _size(found)
    if run.by_seed:
        words = [one.judged.verdict or "undecided" for one in run.by_seed]
        agree = len(set(words)) == 1
        said = ", ".join(f"{one.seed}: {word}" for one, word in zip(run.by_seed, words, strict=True))
        yield Check("good" if agree else "caution", "Seeds", said + ".")
    else:
        yield Check("caution", "Seeds", "One seed. Another may end elsewhere; three or more show how far results vary.")
    if found.unaltered is not None:
        text = "are as they were written." if found.unaltered else "were changed after the comparison."
        yield Check("good" if found.unaltered else "bad", "Files", f"The verdict and the samples {text}")


def _controls(found: Comparison) -> Check:
    if not found.controls:
        return Check("bad", "Controls", "None were run: a lower temperature alone may explain the result.")
    lost = [control.label for control in found.fair if control.judges[found.primary].verdict != "better"]
    colder = [control.label for control in found.colder_wins]
    if not lost and not colder:
        return Check("good", "Controls", f"All {len(found.fair)} fair controls are won, and no colder reference wins.")
    said = [f"not won: {', '.join(lost)}"] if lost else []
    said += [f"the policy loses to: {', '.join(colder)}"] if colder else []
    return Check("caution" if found.verdict != "worse" else "bad", "Controls", _sentence("; ".join(said)))


def _size(found: Comparison) -> Check:
    interval = found.main.win_rate_ci
    if found.prompts is None or interval is None:
        return Check("unknown", "Test prompts", "Their number is not recorded.")
    width = 100 * (interval[1] - interval[0])
    mark: Mark = "good" if found.prompts >= FEW_PROMPTS else "caution"
    return Check(mark, "Test prompts", f"{found.prompts:,} prompts: the interval is {width:.0f} points wide.")


def _of_reward(run: Run) -> Iterator[Check]:
    rewards = run.of_kind("reward")
    last = max((StageId.parse(stage.name).round for stage in rewards), default=1)
    for stage in rewards:
        if StageId.parse(stage.name).round < last:
            continue  # the policy was last trained on that of the last round
        metrics = {**stage.measured, **(stage.manifest.metrics if stage.manifest is not None else {})}
        names = ("heldout_accuracy", "heldout_accuracy_low", "heldout_accuracy_high")
        values = [metrics.get(name) for name in names]
        if any(value is None for value in values):
            continue
        accuracy, low, high = (value for value in values if value is not None)
        chance = low <= 0.5
        said = f"It ranks {share(accuracy)} of unseen pairs as people did ({share(low)} to {share(high)})"
        title = "Reward model" if stage.name == "reward" else f"Reward model ({stage.name})"
        yield Check("bad" if chance else "good", title, f"{said}{': maybe no better than a coin' if chance else ''}.")
    flags = [str(flag.get("message") or flag.get("name")) for flag in (run.card or {}).get("flags") or ()]
    if flags:
        yield Check("caution", "Reward model's flags", _sentence("; ".join(flags)))


def _of_run(run: Run) -> Iterator[Check]:
    leaks = [message for _, message in run.warnings if "test prompts are in the" in message]
    if leaks:
        yield Check("bad", "Leaks", _sentence("; ".join(leaks)))
    elif run.comparison is not None:
        yield Check("good", "Leaks", "No test prompt was trained on, as far as equal words tell.")
    now = [alarm for alarm in run.alarms if alarm.holds]
    past = [alarm for alarm in run.alarms if not alarm.holds]
    if now:
        yield Check("bad", "Alarms", f"{counted(len(now), 'alarm')} at the end of training: see Alarms.")
    elif past:
        yield Check(
            "caution", "Alarms", f"None at the end; {counted(len(past), 'alarm')} held for a while: see Alarms."
        )
    elif any(stage.curves for stage in run.stages):
        yield Check("good", "Alarms", "None.")
    others = len(run.warnings) - len(leaks)
    mark: Mark = "caution" if others else "good"
    yield Check(mark, "Warnings", f"{counted(others, 'warning')}: see Alarms." if others else "None.")


def _sentence(text: str) -> str:
    """Begin with a capital and end with a full stop."""
    return (text[:1].upper() + text[1:]).rstrip(".") + "."
