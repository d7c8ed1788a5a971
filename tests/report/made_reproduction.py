"""Results of `reproduce gao` and `rloo` as their --json writes them, with curves that are known."""

from __future__ import annotations

from typing import Any

DISTANCES = [0.5, 1.0, 2.0]


def curve(form: str, alpha: float, beta: float) -> dict[str, Any]:
    gold = [d * (alpha - beta * d) for d in DISTANCES]
    fit = {"form": form, "alpha": alpha, "beta": beta, "r_squared": 1.0}
    return {"form": form, "distance": DISTANCES, "proxy": [2 * d for d in DISTANCES], "gold": gold, "fit": fit}


def statement(name: str, held: bool | None) -> dict[str, Any]:
    measure = {"what": f"number of {name}", "value": 0.5, "ci95": [0.25, 0.75], "asked": "above 0", "held": held}
    return {"name": name, "says": f"{name} says so", "measures": [measure], "held": held}


def made_result() -> dict[str, Any]:
    seeds = [
        {
            "seed": seed,
            **{kind: {str(n): curve(kind, 2.0 + seed, 0.5) for n in (9, 10)} for kind in ("best_of_n", "rl")},
        }
        for seed in (0, 2)
    ]
    outcomes = {"premise": True, "Gao 1": True, "Gao 2": False, "Gao 3": None, "Coste 1": None}
    return {"seeds": seeds, "statements": [statement(*one) for one in outcomes.items()]}


def made_comparison() -> dict[str, Any]:
    """Eight algorithms that all gain as much, on seeds 0 and 2."""
    names = ("ppo", "a2c", "reinforce", "rloo-2", "rloo-4", "grpo", "dpo", "best of n")
    seeds = [
        {
            "seed": seed,
            "curves": {
                name: {"distance": DISTANCES, "proxy": [2 * d for d in DISTANCES], "gold": DISTANCES} for name in names
            },
            "ends": {name: {"gold": 1.0 + seed, "score": 2.0, "kl": 4.0, "wins": 0.7, "broken": 0.2} for name in names},
        }
        for seed in (0, 2)
    ]
    return {"seeds": seeds, "statements": [statement("premise", True), statement("RLOO over PPO", None)]}
