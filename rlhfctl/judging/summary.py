"""Sum up what a judge did: questions, tokens, cost, its preference for a place, and its agreement with other judges.

Makes the block `endpoint` of compare.json. Pure functions on judgements; asks nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhfctl.judging.budget import cost
from rlhfctl.judging.judge import Judged, Judgement
from rlhfctl.recipe.sections.endpoint import Endpoint
from rlhfctl.stats.resampling import bootstrap_mean_ci


def totals(section: Endpoint, judged: Judged) -> dict[str, Any]:
    """Count pairs, questions, failures, tokens and cost.

    Tokens and cost are those of all answers that the comparison rests on, also of answers from earlier commands. They
    are null where the server does not count tokens.
    """
    answers = [reply.answer for reply in judged.replies if reply.answer is not None]
    tokens: list[int | None] = []
    for counts in ([one.input_tokens for one in answers], [one.output_tokens for one in answers]):
        known = [count for count in counts if count is not None]
        tokens.append(sum(known) if len(known) == len(counts) else None)
    pairs = [one for pairs in judged.comparisons.values() for one in pairs]
    names = Counter(one.model for one in answers if one.model is not None)
    return {
        "model": section.model,
        "answered_by": sorted(names),
        "comparisons": list(judged.comparisons),
        "pairs": len(pairs),
        "identical": sum(one.replies is None for one in pairs),
        "failed": sum(one.value is None for one in pairs),
        "failures": dict(Counter(reply.failure for reply in judged.replies if reply.failure is not None)),
        "calls": judged.calls,
        "cached": sum(reply.cached for reply in judged.replies),
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "cost": cost(section, tokens[0], tokens[1]),
    }


def doubts(section: Endpoint, judged: Judged) -> list[str]:
    """Return warnings: answers by a model of another name than was asked for, or by several."""
    names = sorted({reply.answer.model for reply in judged.replies if reply.answer is not None and reply.answer.model})
    asked = section.model.lower()
    others = [name for name in names if asked not in name.lower() and name.lower() not in asked]
    found = []
    if others:
        found.append(f"{section.model} was asked, and the server says that {', '.join(others)} answered: these judged")
    if len(names) > 1:
        found.append(f"several models answered as {section.model}: {', '.join(names)}")
    return found


def place(judged: Sequence[tuple[int, Judgement]], *, samples: int, seed: int) -> dict[str, Any]:
    """Measure the preference for a place, with its 95% bootstrap interval over prompts. `judged`: (prompt, judgement).

    `position_bias` is the rate at which the first response wins less that at which the second one does, over both
    orders of each pair: 1 if the first always wins, 0 if the place does not matter. `consistent` is the share of pairs
    in which both orders have the same outcome. Null if no pair was asked about.
    """
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for prompt, judgement in judged:
        if (value := judgement.for_first) is not None:
            by_prompt[prompt].append(value)
    if not by_prompt:
        return {"position_bias": None, "position_bias_ci95": None, "consistent": None}
    means = [fmean(values) for values in by_prompt.values()]
    interval = bootstrap_mean_ci(means, samples=samples, seed=seed)
    every = [value for values in by_prompt.values() for value in values]
    return {
        "position_bias": fmean(means),
        "position_bias_ci95": [interval.low, interval.high],
        "consistent": fmean(value == 0.0 for value in every),
    }


def agreement(values: Sequence[float | None], differences: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Compute the share of pairs at which another judge names the same winner, of those at which both name one.

    `values`: the endpoint's value of each pair for the policy. `differences`: by judge, its score of the policy's
    response less that of the reference's, for the same pairs. Null where there is no such pair.
    """
    shares: dict[str, float | None] = {}
    counts: dict[str, int] = {}
    for name, scores in differences.items():
        both = [
            (value > 0.5) == (score > 0)
            for value, score in zip(values, scores, strict=True)
            if value is not None and value != 0.5 and score != 0
        ]
        shares[name], counts[name] = (fmean(both) if both else None), len(both)
    return {"agreement": shares, "agreement_pairs": counts}
