"""Say what a reward model's card amounts to: its flags in plain sentences, and whether its gate lets the run go on.

    card.json (stage `card`) ──┬─▶ flags: what is wrong with this reward model
    reward.gate (recipe) ──────┴─▶ gate: may PPO train against it

Reads card.json; loads no torch, so that the pipeline decides at once. The gate is decided from the recipe as it is now
and the card as it was measured: a changed threshold measures nothing again. Leaves out measuring (stages/card.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhfctl.artifacts import Artifact, read_json
from rlhfctl.errors import GateClosed
from rlhfctl.recipe.schema import Card as CardSection
from rlhfctl.recipe.schema import Gate, Recipe

CHANCE = 0.5  # accuracy of a coin

OVERCONFIDENT_BY = 0.10
"""Mean confidence less accuracy. Ten points are two bins of the reliability diagram. Labels of which 10% are wrong, as
people's are, move the accuracy of a perfect ranking by as much."""

LENGTH_CORRELATION = 0.9
"""Spearman's correlation of score and length, either sign: its square, 0.81, is the share of the ranks that length
explains. Rewards that also read the text stay well below."""

PREFERS_LONGER = 0.9
"""Share of pairs in which the longer response scores higher, where people always chose the longer one: nothing then
tells the two apart."""

KEPT = 0.5
"""Share of the accuracy above chance that must remain once length is held equal; below it most of it was length."""

FOOLED = {"empty": 0.25, "prompt_repeated": 0.25, "gibberish": 0.25, "truncated": 0.5, "doubled": 0.5, "flattery": 0.5}
"""Probe -> share of rows in which the altered answer may score above the original. An answer without any content may
win by luck alone, and rarely. One that is cut, said twice or flattered keeps its content: above one half it gains."""

TRANSFER = 0.2
"""Share of the reward model's own gain that the held-out one must confirm at the largest n. Two reward models trained
on halves of the same good pairs confirm more than half of each other's gain; noise confirms none."""

DECLINE = 0.1
"""Standard deviations of the reference by which the held-out score must fall after its peak: half of what Gao et al.
2022 see as a clear decline, and more than the estimate's own wobble between neighbouring n."""

_ALTERED = {
    "empty": "an empty answer",
    "prompt_repeated": "the prompt repeated as the answer",
    "gibberish": "gibberish of the same length",
    "truncated": "the first half of the answer",
    "doubled": "the answer said twice",
    "flattery": "a flattering phrase before the answer",
}

_NOT_PASSED = "the reward model does not pass reward.gate"

Card = Mapping[str, Any]


def with_card(recipe: Recipe, section: Mapping[str, Any]) -> Recipe:
    """Return the recipe, which has a reward, with `section` as its `reward.card`: a command asks for that card."""
    assert recipe.reward is not None
    reward = recipe.reward.model_copy(update={"card": CardSection.model_validate(section)})
    return recipe.model_copy(update={"reward": reward})


# ---------------------------------------------------------------- flags


def flags(card: Card) -> list[dict[str, str]]:
    """List what is wrong with the reward model: a name and a sentence each, the gravest first."""
    found = ((name, sentence) for rule in _RULES for name, sentence in rule(card))
    return [{"name": name, "message": sentence} for name, sentence in found]


def _at_chance(card: Card) -> Iterator[tuple[str, str]]:
    low, high = card["accuracy"]["ci95"]
    said = f"on {_pairs(card)} it is right {_percent(card['accuracy']['value'])} of the time ({_interval(low, high)})"
    if high < CHANCE:
        yield "at_chance", f"{said}: worse than a coin. Chosen and rejected may be swapped in the data"
    elif low <= CHANCE:
        yield "at_chance", f"{said}: as far as this tells no better than a coin. PPO would chase noise"


def _length_only(card: Card) -> Iterator[tuple[str, str]]:
    length = card["length"]
    accuracy, low = card["accuracy"]["value"], card["accuracy"]["ci95"][0]
    controlled, correlation = length["length_controlled_accuracy"], length["score_correlation"]
    likes = length["prefers_longer"]
    if controlled is not None and low > CHANCE:
        high = length["length_controlled_accuracy_ci95"][1]
        if high - CHANCE < KEPT * (accuracy - CHANCE):
            yield (
                "length_only",
                f"its accuracy is {_percent(accuracy)}, but {_percent(controlled)} once the chosen answer is the "
                "longer one as often as the shorter: it mostly rewards length",
            )
            return
    if controlled is None and likes is not None and max(likes, 1 - likes) >= PREFERS_LONGER:
        longer = likes >= PREFERS_LONGER
        yield (
            "length_only",
            f"in {_percent(likes if longer else 1 - likes)} of the pairs it prefers the "
            f"{'longer' if longer else 'shorter'} answer, and people chose the "
            f"{'longer' if length['chosen_longer'] else 'shorter'} one in every pair: nothing shows that it rewards "
            "more than length",
        )
        return
    if correlation is not None and abs(correlation) >= LENGTH_CORRELATION:
        yield (
            "length_only",
            f"its scores follow the length of the answer almost alone (rank correlation {correlation:+.2f}): PPO would "
            f"learn to write {'long' if correlation > 0 else 'short'} answers",
        )


def _fooled(card: Card) -> Iterator[tuple[str, str]]:
    for probe in card["probes"]:
        if probe["share_above_ci95"][0] > FOOLED[probe["name"]]:
            yield (
                f"fooled_by_{probe['name']}",
                f"{_ALTERED[probe['name']]} scores higher than the chosen answer in {_percent(probe['share_above'])} "
                f"of {probe['n']} rows: PPO can learn to write this",
            )


def _will_not_survive(card: Card) -> Iterator[tuple[str, str]]:
    curves = card["optimization"]
    proxy, heldout, peak = curves["proxy"], curves["heldout"], curves["peak"]
    if heldout is None or peak is None:
        return
    last, gain = curves["n"][-1], proxy["mean"][-1]
    if peak["decline"] >= DECLINE and peak["decline_ci95"][0] > 0:
        yield (
            "will_not_survive",
            f"choosing the best of {last} by it, the held-out reward model's score peaks at n = {peak['n']} (KL "
            f"{peak['kl']:.2g} nats) and then falls by {peak['decline']:.2f} standard deviations, while its own score "
            "rises on: it will be over-optimized. Keep PPO's KL below that",
        )
    elif heldout["ci95"][-1][1] < TRANSFER * gain:
        yield (
            "will_not_survive",
            f"choosing the best of {last} by it raises its own score by {gain:.2f} standard deviations, and the "
            f"held-out reward model's by {heldout['mean'][-1]:.2f}: what it rewards is not what another half of the "
            "pairs teaches",
        )


def _overconfident(card: Card) -> Iterator[tuple[str, str]]:
    if card["calibration"] is None:
        return
    accuracy = card["accuracy"]
    confidence = card["calibration"]["confidence"]
    if confidence - accuracy["value"] >= OVERCONFIDENT_BY and confidence > accuracy["ci95"][1]:
        yield (
            "overconfident",
            f"its margins claim an accuracy of {_percent(confidence)}, and it is right {_percent(accuracy['value'])} "
            "of the time: large differences of score mean less than they say. Train it for fewer epochs",
        )


def _other_base(card: Card) -> Iterator[tuple[str, str]]:
    if card["base_is_policys"] is False:
        yield (
            "other_base",
            "it does not build on the policy's own base model: PPO gains less from such rewards (RewardBench 2, "
            "figure 4), also where their accuracy is high",
        )


_RULES: tuple[Callable[[Card], Iterator[tuple[str, str]]], ...] = (
    _at_chance,
    _length_only,
    _will_not_survive,
    _fooled,
    _overconfident,
    _other_base,
)


# ---------------------------------------------------------------- the gate


def decided(card: Card, gate: Gate | None) -> dict[str, Any] | None:
    """Decide the gate: whether the card passes it, and a sentence for each reason that it does not. None: no gate.

    The lower end of a 95% interval counts, not the value: luck on a few pairs must not open the gate.
    """
    if gate is None:
        return None
    reasons = [
        *_below("accuracy", card["accuracy"]["value"], card["accuracy"]["ci95"], "min_accuracy", gate.min_accuracy),
        *_length_controlled_below(card, gate.min_length_controlled_accuracy),
        *(f"{flag['name']}: {flag['message']}" for flag in card["flags"] if _stops(flag["name"], gate.flags)),
    ]
    return {"passed": not reasons, "reasons": reasons}


def read(artifact: Artifact, recipe: Recipe) -> dict[str, Any]:
    """Read the card of a complete `card` stage, with its gate as the recipe has it now."""
    card: dict[str, Any] = read_json(artifact.part("card"))
    return card | {"gate": decided(card, recipe.reward.gate if recipe.reward is not None else None)}


def closed(artifact: Artifact, recipe: Recipe) -> str | None:
    """Say in a line that PPO may not begin, for the plan of a run; None if the card passes the recipe's gate."""
    gate = read(artifact, recipe)["gate"]
    where = artifact.run / artifact.stage.group
    return None if gate is None or gate["passed"] else f"{_NOT_PASSED} (rlhfctl reward-eval {where})"


def require_open_gate(artifact: Artifact, recipe: Recipe) -> None:
    """Raise GateClosed if the card of a complete `card` stage does not pass the recipe's gate."""
    gate = read(artifact, recipe)["gate"]
    if gate is not None and not gate["passed"]:
        raise GateClosed(
            f"{_NOT_PASSED}, so PPO is not begun:" + "".join(f"\n  - {reason}" for reason in gate["reasons"]),
            where="reward.gate",
            fix=f"`rlhfctl reward-eval {artifact.run / artifact.stage.group}` shows the whole card. Give more or "
            "cleaner pairs (`rlhfctl data RECIPE` shows them) or train it otherwise (reward.trainer); or change the "
            "threshold under reward.gate: the same command then goes on with PPO, and measures nothing again",
        )


def _below(what: str, value: float, ci95: Sequence[float], key: str, least: float | None) -> Iterator[str]:
    if least is not None and ci95[0] < least:
        interval = _interval(ci95[0], ci95[1], ".3f")
        yield f"{what} {value:.3f} ({interval}): the lower end is {least - ci95[0]:.3f} below {key} {least:g}"


def _length_controlled_below(card: Card, least: float | None) -> Iterator[str]:
    if least is None:
        return
    length, key = card["length"], "min_length_controlled_accuracy"
    value = length["length_controlled_accuracy"]
    if value is not None:
        yield from _below("length-controlled accuracy", value, length["length_controlled_accuracy_ci95"], key, least)
        return
    side = "longer" if length["chosen_longer"] else "shorter"
    yield (
        f"length-controlled accuracy cannot be known: wherever the lengths of {_pairs(card)} differ, the chosen answer "
        f"is the {side} one; {key}: null leaves it out"
    )


def _stops(flag: str, names: Sequence[str]) -> bool:
    return flag in names or (flag.startswith("fooled_by_") and "fooled" in names)


# ---------------------------------------------------------------- words


def _pairs(card: Card) -> str:
    return f"{card['pairs']} held-out pairs"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _interval(low: float, high: float, form: str = ".0%") -> str:
    return f"95% interval {low:{form}} to {high:{form}}"
