"""Compute the sections of a reward model's card from scores: accuracy, calibration, length, agreement, curves.

Reads arrays, returns JSON values as they stand in card.json (docs/run-folder.md). Pure; the statistics are those of
rlhfctl/stats/. Leaves out sampling and scoring (pool.py, card_scorers.py) and flags (rlhfctl/reward_card.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhfctl.stats import best_of_n, calibration, correlation
from rlhfctl.stats.correlation import LengthReport, Share
from rlhfctl.stats.paired import wilson_ci
from rlhfctl.stats.resampling import Interval

Floats = NDArray[np.float64]

MOST_MARGINS = 2_000  # margins kept for the report's histogram
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class PairScores:
    """Held-out pairs with one scorer's scores.

    `prompts`: the key of each pair's prompt. `lengths`: those of the chosen and the rejected responses, by unit.
    """

    prompts: Sequence[str]
    chosen: Floats
    rejected: Floats
    lengths: Mapping[str, tuple[Floats, Floats]]

    @property
    def margins(self) -> Floats:
        return self.chosen - self.rejected

    @property
    def correct(self) -> Floats:
        """1 where the chosen response scores higher, 0.5 for a tie, else 0."""
        return calibration.correct(self.margins)


def accuracy_of(pairs: PairScores) -> dict[str, Any]:
    """Compute the accuracy by prompt, a tie counting half, with its interval."""
    share = correlation.share_by_prompt(pairs.correct, pairs.prompts)
    return {"value": share.value, "ci95": _pair(share.ci95)}


def calibration_of(pairs: PairScores) -> dict[str, Any]:
    """Compute the reliability diagram of sigmoid(margin), its calibration error, and the mean confidence."""
    bins = calibration.reliability_bins(pairs.margins)
    confidence = float(calibration.confidences(pairs.margins).mean())
    error = calibration.expected_calibration_error(bins)
    return {"ece": error, "confidence": confidence, "bins": [asdict(one) for one in bins]}


def margins_of(pairs: PairScores, seed: int) -> dict[str, Any]:
    """Describe the margins; of more than MOST_MARGINS a random part is kept, in order."""
    margins = pairs.margins
    kept = margins
    if margins.size > MOST_MARGINS:
        kept = margins[np.sort(np.random.default_rng(seed).choice(margins.size, MOST_MARGINS, replace=False))]
    return {
        "mean": float(margins.mean()),
        "std": float(margins.std()),
        "quantiles": {f"{share:g}": float(np.quantile(margins, share)) for share in QUANTILES},
        "values": kept.tolist(),
    }


def length_of(pairs: PairScores) -> dict[str, Any]:
    """Separate accuracy from length, and correlate the responses' scores with their lengths.

    Length is in the unit of `pairs.lengths` that tells best which response of a pair scores higher. Which one people
    went by is not known, and control for another unit leaves a part of the length in the accuracy.
    """
    reports = {
        unit: correlation.length_report(pairs.correct, chosen - rejected, pairs.prompts)
        for unit, (chosen, rejected) in pairs.lengths.items()
    }
    unit = max(reports, key=lambda unit: _leaning(reports[unit]))
    found, controlled = reports[unit], reports[unit].controlled_ci95
    scores = np.concatenate([pairs.chosen, pairs.rejected])
    return {
        "unit": unit,
        "score_correlation": correlation.spearman(scores, np.concatenate(pairs.lengths[unit])),
        "chosen_longer": found.chosen_longer,
        "prefers_longer": found.prefers_longer,
        "accuracy_chosen_longer": _value(found.accuracy_longer),
        "accuracy_chosen_shorter": _value(found.accuracy_shorter),
        "length_controlled_accuracy": found.controlled,
        "length_controlled_accuracy_ci95": None if controlled is None else _pair(controlled),
    }


def _leaning(report: LengthReport) -> float:
    """Return how far from one half the share is in which the longer response of a pair scores higher."""
    return 0.0 if report.prefers_longer is None else abs(report.prefers_longer - 0.5)


def agreement_of(
    pairs: PairScores, other: PairScores | None, pool: Floats, other_pool: Floats | None
) -> dict[str, float | None]:
    """Compare two scorers: the share of pairs that both order alike, and rank correlation within prompts of the pool.

    A tie of one scorer alone counts half. None: the other scorer cannot score these.
    """
    same = None
    if other is not None:
        same = float(np.mean((np.sign(pairs.margins) * np.sign(other.margins) + 1) / 2))
    spearman = None if other_pool is None else correlation.spearman_within(pool, other_pool)
    return {"pairs_same": same, "spearman": spearman}


def probe_of(name: str, originals: Sequence[float], changed: Sequence[float]) -> dict[str, Any]:
    """Compare the scores of altered answers with those of the original ones, row by row."""
    deltas = np.asarray(changed) - np.asarray(originals)
    above = int(np.count_nonzero(deltas > 0))
    interval = wilson_ci(above, deltas.size)
    return {
        "name": name,
        "n": int(deltas.size),
        "delta_mean": float(deltas.mean()),
        "share_above": above / deltas.size,
        "share_above_ci95": _pair(interval),
    }


def curves_of(pool: Mapping[str, Floats], proxy: str, heldout: str, gold: str, seed: int) -> dict[str, Any]:
    """Compute the best-of-n curves of the scorers of `pool` (each (P, N)), in standard deviations within prompts.

    The proxy chooses; the others score what it chose. The peak is that of the held-out reward model; gold decides
    nothing. `disagreement`: the mean standard deviation between proxy and held-out at the chosen samples.
    """
    standard = {name: best_of_n.standardized(scores) for name, scores in pool.items()}
    chooser = pool[proxy]
    ns = best_of_n.sizes(chooser.shape[1])
    curves = {name: best_of_n.best_of_n(chooser, scores, ns, seed=seed) for name, scores in standard.items()}
    report: dict[str, Any] = {"n": ns, "kl": [best_of_n.kl_bound(n) for n in ns]}
    for key, name in (("proxy", proxy), ("heldout", heldout), ("gold", gold)):
        curve = curves.get(name)
        report[key] = None if curve is None else {"mean": curve.mean, "ci95": [_pair(one) for one in curve.ci95]}
    report["disagreement"], report["peak"] = None, None
    if heldout in curves:
        apart = np.abs(standard[proxy] - standard[heldout]) / 2  # the standard deviation of two numbers
        report["disagreement"] = [float((best_of_n.chances(chooser, n) * apart).sum(axis=1).mean()) for n in ns]
        top = best_of_n.peak(curves[heldout])
        fallen, interval = best_of_n.decline(curves[heldout], seed=seed)
        report["peak"] = {"n": ns[top], "kl": report["kl"][top], "decline": fallen, "decline_ci95": _pair(interval)}
    return report | {"pool": {"prompts": chooser.shape[0], "samples": chooser.shape[1]}}


def metrics_of(card: Mapping[str, Any]) -> dict[str, float]:
    """Return the main figures of a card, for the manifest, screen and trackers; figures that are not known are absent.

    Their names: docs/metrics.md.
    """
    length, curves, accuracy = card["length"], card["optimization"], card["accuracy"]
    found = {
        "accuracy": accuracy["value"],
        "accuracy_low": accuracy["ci95"][0],
        "accuracy_high": accuracy["ci95"][1],
        "length_controlled_accuracy": length["length_controlled_accuracy"],
        "score_length_correlation": length["score_correlation"],
        "ece": None if card["calibration"] is None else card["calibration"]["ece"],
        "proxy_gain": curves["proxy"]["mean"][-1],
        "heldout_gain": None if curves["heldout"] is None else curves["heldout"]["mean"][-1],
        "gold_gain": None if curves["gold"] is None else curves["gold"]["mean"][-1],
        "peak_kl": None if curves["peak"] is None else curves["peak"]["kl"],
        "flags": float(len(card["flags"])),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _value(share: Share | None) -> float | None:
    return None if share is None else share.value


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
