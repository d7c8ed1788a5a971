"""Define the `reward` section: a trained or ready reward model, a function, tests of programs, a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlhfctl.recipe.sections.base import DataNeed, Rule, without
from rlhfctl.recipe.sections.card import Card, Gate
from rlhfctl.recipe.sections.prompted_classifier import PromptedClassifier
from rlhfctl.recipe.sections.scorers import FUNCTION_NAME, is_address
from rlhfctl.recipe.sections.server import UNFIT, UNFIT_FIX, Server, unfit
from rlhfctl.recipe.sections.training import Trained
from rlhfctl.recipe.sections.unit_tests import UnitTests

RewardText = Literal["text", "pair", "response"]  # the text that a classifier reads
RewardLoss = Literal["bradley_terry", "k_wise", "plackett_luce", "best_of_k"]
Normalization = Literal["demonstrations", "reference"]
Aggregate = Literal["mean", "min", "variance"]
HeadInit = Literal["config", "width"]
CLASSIFIER_KEYS = ("label", "reads")
ENSEMBLE_KEYS = ("members", "aggregate", "variance_coefficient")
TRAINING_KEYS = (
    "lora", "trainer", "checkpoint_steps", "heldout", "loss", "label_error", "normalize", "head_init",
    *ENSEMBLE_KEYS,
)  # fmt: skip
OTHER_SCORERS = ("unit_tests", "prompted_classifier")  # neither a model of rewards nor a function
GROUP_LOSSES = ("k_wise", "plackett_luce", "best_of_k")  # their batch elements are groups, not pairs
_PLAIN_LOSS: RewardLoss = "bradley_terry"
_PLAIN: dict[str, object] = {"loss": _PLAIN_LOSS, "members": 1, "aggregate": "mean", "variance_coefficient": 1.0,
                            "head_init": "config"}  # fmt: skip
"""Keys whose plain value changes nothing, though it is none that Python takes as false."""


def _without_model(key: str) -> Callable[[Reward], bool]:
    return lambda reward: getattr(reward, key) is not None and reward.kind != "model"


def _without_training(key: str) -> Callable[[Reward], bool]:
    return lambda reward: reward.kind != "trained" and _is_used(reward, key)


def _retried(kind: str) -> Callable[[Reward], bool]:
    return lambda reward: reward.kind == kind and reward.retries > 0


def _beside_another(key: str) -> Callable[[Reward], bool]:
    return lambda reward: getattr(reward, key) is not None and reward.kind != key


def _is_used(reward: Reward, key: str) -> bool:
    """Tell whether a key has a value that changes something."""
    value = getattr(reward, key)
    return value != _PLAIN[key] if key in _PLAIN else bool(value)


class Reward(Trained):
    """The scorer of responses: a model trained here by TRL's RewardTrainer, a ready model, or a function."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (
        DataNeed("preferences", "to train on", ", or name a ready scorer: reward.model or reward.function"),
    )

    model: str | None = Field(None, min_length=1, description="A ready reward model: a local folder or a Hub id.")
    label: str | int | None = Field(
        None, description="With a classifier as model: the label (name or index) whose log-odds are the score."
    )
    reads: RewardText | None = Field(
        None,
        description="With a classifier as model: its input, text (prompt + response), pair, or response (null: chosen "
        "by its outputs).",
    )
    heldout: bool = Field(
        False,
        description="Whether to train a second reward model on one half of the training prompts, and this one on the "
        "other half; PPO never trains on the second, but its evaluations report it.",
    )
    loss: RewardLoss = Field(
        _PLAIN_LOSS,
        description="Loss of the training: bradley_terry (TRL's own, a batch element is a pair), or on whole groups of "
        "K responses to one prompt (a batch element is a group, so trainer.per_device_train_batch_size counts groups): "
        "k_wise (mean over a group's pairs), plackett_luce (the whole ranking), best_of_k (the best among K).",
    )
    label_error: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of labels that the likelihood takes as random, so that a wrong label costs a bounded amount "
        "(bradley_terry and k_wise; Christiano et al. 2017: 0.1).",
    )
    normalize: Normalization | None = Field(
        None,
        description="Shift of the trained reward: demonstrations (their mean score is 0), or reference (samples of "
        "base* to training prompts have mean 0 and variance 1). It is saved with the scalar head.",
    )
    head_init: HeadInit = Field(
        "config",
        description="Standard deviation of a new scalar head's weights: config (initializer_range of the model's "
        "config, 0.02 for most), or width (1 / sqrt(hidden size + 1); Stiennon et al. 2020).",
    )
    members: int = Field(
        1,
        ge=1,
        le=64,
        description="Reward models to train, each an adapter with a head on the one base*, from a bootstrap of the "
        "training prompts and a seed of its own (1: one model on all prompts).",
    )
    aggregate: Aggregate = Field(
        "mean",
        description="Score of several members: mean, min (the worst case), or variance (the mean less "
        "variance_coefficient times the variance over members; Coste et al. 2023).",
    )
    variance_coefficient: float = Field(
        1.0, ge=0, description="Weight of the members' variance with aggregate: variance."
    )
    function: str | None = Field(
        None, description="What scores responses instead of a model: a Python function, module:name, or a server's "
        "address, http://... (docs/reward-models.md)."
    )  # fmt: skip
    server: Server | None = Field(
        None,
        description="How reward servers are asked, here and in ppo.rewards and compare.judges (null: the defaults).",
    )
    retries: int = Field(
        0, ge=0, description="Number of further calls of a function that raised, after 1, 2, 4, ... seconds."
    )
    unit_tests: UnitTests | None = Field(
        None,
        description="Run each response as a Python program with its row's tests, in a sandbox; the outcome scores.",
    )
    prompted_classifier: PromptedClassifier | None = Field(
        None,
        description="Take each response as a prompt with which a frozen language model classifies labelled examples; "
        "its gap between the right and the next label scores (RLPrompt).",
    )
    card: Card | None = Field(
        None, description="The reward model's card: accuracy, calibration, length, probes and best-of-n curves."
    )
    gate: Gate | None = Field(None, description="Conditions on the card (made with defaults without `card`) for PPO.")

    @property
    def resolved_card(self) -> Card | None:
        """Return the card to make: as stated, or with defaults where there is a gate alone; None without either."""
        return self.card or (Card() if self.gate is not None else None)

    @property
    def scorer(self) -> Reward:
        """Return this section without the keys that only examine or read the scorer: what its training depends on."""
        read = {key: _PLAIN[key] for key in ("aggregate", "variance_coefficient")}
        return self.model_copy(update={"card": None, "gate": None, "server": None, **read})

    @property
    def heldout_scorer(self) -> Reward:
        """Return what the training of the held-out reward model depends on: it is one model, never several."""
        return self.scorer.model_copy(update={"members": 1})

    @property
    def on_groups(self) -> bool:
        """Tell whether a batch element of the training is a whole group of responses, not a pair."""
        return self.loss in GROUP_LOSSES

    @property
    def kind(self) -> Literal["trained", "model", "function", "unit_tests", "prompted_classifier"]:
        named = [(key, getattr(self, key)) for key in ("model", "function", *OTHER_SCORERS)]
        kinds: list[Any] = [kind for kind, value in named if value is not None]
        return kinds[0] if kinds else "trained"

    @property
    def has_model(self) -> bool:
        """Tell whether the scorer is a model, trained here or ready."""
        return self.kind in ("trained", "model")

    @property
    def trains(self) -> bool:
        return self.kind == "trained"

    @property
    def needs_data(self) -> bool:
        return self.trains

    RULES: ClassVar[tuple[Rule[Reward], ...]] = (
        *(
            Rule(
                key,
                "is for a classifier as reward model, but {at}.model names none",
                "name it as {at}.model, or remove {key}",
                _without_model(key),
            )
            for key in CLASSIFIER_KEYS
        ),
        Rule(
            "retries",
            "is for reward functions, but the reward is a model trained here",
            "remove it",
            lambda reward: reward.kind == "trained" and reward.retries > 0,
        ),
        *(
            Rule(
                "retries",
                f"is for reward functions, but the reward is {kind}",
                "remove it",
                _retried(kind),
                about=(kind,),
            )
            for kind in OTHER_SCORERS
        ),
        Rule(
            "function",
            "a response has one scorer, but {at}.model names another",
            "remove one",
            lambda reward: reward.model is not None and reward.function is not None,
        ),
        *(
            Rule(
                key,
                "a response has one scorer, but {at}.{kind} names another",
                "remove one",
                _beside_another(key),
                about=("model", "function", *(other for other in OTHER_SCORERS if other != key)),
            )
            for key in OTHER_SCORERS
        ),
        *(
            Rule(
                key,
                "is for a reward model trained here, but {at}.{kind} names a ready one",
                "remove {key} or {kind}",
                _without_training(key),
            )
            for key in TRAINING_KEYS
        ),
        Rule(
            "label_error",
            "is a rate of wrong pairs, but the loss {loss} has no pairs",
            "remove it, or use loss: k_wise",
            lambda reward: reward.label_error > 0 and reward.loss in ("plackett_luce", "best_of_k"),
            about=("loss",),
        ),
        Rule(
            "members",
            "are adapters on one model, but all weights are trained",
            "add {at}.lora, or leave members out",
            lambda reward: reward.members > 1 and reward.kind == "trained" and reward.lora is None,
            about=("lora",),
        ),
        Rule(
            "aggregate",
            "is for several members, but there is one",
            "raise {at}.members, or leave aggregate out",
            lambda reward: reward.kind == "trained" and reward.members == 1 and _is_used(reward, "aggregate"),
            about=("members",),
        ),
        Rule(
            "variance_coefficient",
            "is for aggregate: variance, but the aggregate is {aggregate}",
            "set aggregate: variance, or leave it out",
            lambda reward: (
                reward.kind == "trained" and reward.aggregate != "variance" and _is_used(reward, "variance_coefficient")
            ),
            about=("aggregate",),
        ),
        Rule(
            "function",
            "{function!r} is not a function",
            "write it as module:name, or as the address of a server: http://...",
            lambda reward: (
                reward.function is not None
                and not FUNCTION_NAME.fullmatch(reward.function)
                and not is_address(reward.function)
            ),
        ),
        Rule("function", UNFIT, UNFIT_FIX, lambda reward: unfit(reward.function or "")),
        Rule(
            "retries",
            "is for Python functions, but the reward is a server",
            "set {at}.server.retries",
            lambda reward: reward.retries > 0 and is_address(reward.function or ""),
            about=("function",),
        ),
    )

    @model_serializer(mode="wrap")
    def _only_what_is_legal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = {
            "trained": ("model", "function", "label", "reads", "retries"),
            "model": ("function", *TRAINING_KEYS),
            "function": ("model", *TRAINING_KEYS, *CLASSIFIER_KEYS),
            **dict.fromkeys(OTHER_SCORERS, ("model", "function", "retries", *TRAINING_KEYS, *CLASSIFIER_KEYS)),
        }
        # Runs that were made before these keys existed stay unchanged.
        newer = (
            *OTHER_SCORERS, "card", "gate", "heldout", "loss", "label_error", "normalize", "server", "head_init",
            *ENSEMBLE_KEYS,
        )  # fmt: skip
        absent = tuple(key for key in newer if not _is_used(self, key))
        return without(handler(self), (*unused[self.kind], *absent))
