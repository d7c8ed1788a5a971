"""The table of the names of scorers in a recipe: where each may stand, and which are Python functions.

A scorer stands in `ppo.rewards`, `compare.judges`, `compare.metrics` or `sft.choose.by` by its name, or as module:name
(a function), http://... (a server), a path with a slash (a reward model) or NAME@PATH (a metric over a local model).
What builds each is in rewards/build.py; which stage asks for which scorers is in graph.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Place = Literal["ppo.rewards", "compare.judges", "compare.metrics", "sft.choose.by"]

REWARD = "reward"  # in ppo.rewards: what the recipe's reward section gives, a model or a function
REWARD_MODEL, REWARD_FUNCTION, GOLD = "reward_model", "reward_function", "gold"
UNIT_TESTS, PASSES = "unit_tests", "passes"  # the outcome's score, and whether all tests hold (reward.unit_tests)
PROMPTED, CORRECT = "prompted_classifier", "correct"  # the reward of the row's own example, and whether it is right
HELDOUT_LOSS = "heldout_loss"  # of sft: the loss on held-out demonstrations
ENDPOINT = "endpoint"  # a judge of pairs: stages/endpoint.py asks it
HELDOUT = "heldout"  # the second reward model, which PPO never trains on (reward.heldout)
FUNCTION = "module:name"  # the kind of every Python function that a recipe names itself
SERVER = "http://..."  # the kind of every address: a server that answers with numbers
MODEL = "folder/model"  # the kind of every name with a slash: a further reward model, a folder or an id on the Hub
REFERENCE = "reference"  # the column of the prompts that metrics compare with
OVERLAPS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "sacrebleu", "meteor")
DISTINCT = ("distinct1", "distinct2")
OVER_MODELS = ("bertscore", "perplexity")  # metrics that a recipe names as NAME@MODEL
OUTSIDE = (FUNCTION, SERVER, MODEL, *OVER_MODELS)
"""The kinds of scorers that a recipe names by where they are, outside the run."""
FUNCTION_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Scorer:
    """Where a recipe may name a scorer, and a few words about it for the docs.

    `scores`: what it reads. BUILDERS has a row for each that scores a response alone.
    """

    places: tuple[Place, ...]
    words: str = ""
    scores: Literal["responses", "pairs", "weights"] = "responses"


_ANYWHERE: tuple[Place, ...] = ("ppo.rewards", "compare.judges", "compare.metrics", "sft.choose.by")
_JUDGES_AND_CHOOSES: tuple[Place, ...] = ("compare.judges", "sft.choose.by")
SCORERS: dict[str, Scorer] = {
    REWARD: Scorer(("ppo.rewards",), "the reward section"),
    GOLD: Scorer(("compare.judges",), "built-in task"),
    ENDPOINT: Scorer(("compare.judges",), "a model behind an API: compare.endpoint", scores="pairs"),
    HELDOUT_LOSS: Scorer(
        ("sft.choose.by",), "least loss on data.demonstrations.heldout, without samples", scores="weights"
    ),
    REWARD_MODEL: Scorer(("compare.judges",)),
    REWARD_FUNCTION: Scorer(("compare.judges",)),
    HELDOUT: Scorer(("compare.judges",), "with reward.heldout"),
    UNIT_TESTS: Scorer(_JUDGES_AND_CHOOSES, "with reward.unit_tests: the outcome's score"),
    PASSES: Scorer(_JUDGES_AND_CHOOSES, "with reward.unit_tests: 1 if all tests hold, else 0"),
    PROMPTED: Scorer(("compare.judges",), "with reward.prompted_classifier: the reward of the row's example"),
    CORRECT: Scorer(
        ("compare.judges",), "with reward.prompted_classifier: 1 if the row's example is classified rightly"
    ),
    **{name: Scorer(_ANYWHERE) for name in OVERLAPS},
    "bertscore": Scorer(_ANYWHERE, "bertscore@MODEL"),
    "perplexity": Scorer(("ppo.rewards", "compare.metrics"), "perplexity@MODEL, of the response; lower is better"),
    "distinct1": Scorer(_ANYWHERE, "share of words that are different"),
    "distinct2": Scorer(_ANYWHERE, "of pairs of words"),
    "length": Scorer(_ANYWHERE, "tokens of the response"),
}
"""The scorers by name. What builds each is in rewards/build.py; stages/endpoint.py asks the judge of pairs."""


def names_in(place: Place) -> tuple[str, ...]:
    """Return the names that may stand at a place of the recipe, beside module:name."""
    return tuple(name for name, scorer in SCORERS.items() if place in scorer.places)


def described_in(place: Place) -> str:
    """List the names that may stand at a place of the recipe, each with the words about it."""
    return ", ".join(name + (f" ({SCORERS[name].words})" if SCORERS[name].words else "") for name in names_in(place))


def unknown_in(place: Place, given: Iterable[str]) -> list[str]:
    """Return those of the given names that may not stand at a place of the recipe."""
    return [name for name in given if not _is_known(place, name)]


def _is_known(place: Place, name: str) -> bool:
    kind = kind_of(name)
    if kind == FUNCTION:
        return FUNCTION_NAME.fullmatch(name) is not None
    if kind in OVER_MODELS and name != kind:
        return place in SCORERS[kind].places and len(name) > len(kind) + 1
    return kind in (SERVER, MODEL) or (name in names_in(place) and name not in OVER_MODELS)


def is_address(name: str) -> bool:
    """Tell whether a name is the address of a server."""
    return name.startswith(("http://", "https://"))


def kind_of(name: str) -> str:
    """Tell the kind of scorer that a name in a recipe stands for: a key of build.BUILDERS."""
    if is_address(name):
        return SERVER
    if (metric := name.partition("@")[0]) in OVER_MODELS and "@" in name:
        return metric
    if "/" in name:
        return MODEL
    return FUNCTION if ":" in name else name


def path_and_label(name: str) -> tuple[str, str | None]:
    """Split the name of a model: org/model@LABEL is a classifier with the label whose log-odds are the score."""
    path, _, label = name.partition("@")
    return path, label or None


def model_in(name: str) -> str | None:
    """Return the model that a scorer's name holds: org/model, org/model@LABEL, NAME@MODEL or NAME@MODEL@LAYER."""
    kind = kind_of(name)
    if kind == MODEL:
        return path_and_label(name)[0]
    return (name.split("@")[1] if "@" in name else None) if kind in OVER_MODELS else None


def is_metric(name: str) -> bool:
    """Tell whether a name is that of a metric, with or without a model."""
    return kind_of(name) in (*OVERLAPS, *DISTINCT, *OVER_MODELS, "length")
