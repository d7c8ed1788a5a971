"""Define the `compare` section: the verdict on the policy against the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from rlhfctl.recipe.sections.base import DataNeed, Rule, Section, Stage, without
from rlhfctl.recipe.sections.endpoint import NOT_INPUTS, Endpoint
from rlhfctl.recipe.sections.prompted_classifier import PromptSearch
from rlhfctl.recipe.sections.scorers import ENDPOINT, described_in, names_in, unknown_in
from rlhfctl.recipe.sections.server import UNFIT, UNFIT_FIX, unfit


class Controls(Section):
    """Controls: other explanations of a better score than learning, measured beside the main comparison."""

    temperatures: list[float] = Field(
        [0.8, 0.6, 0.0],
        description="Lower temperatures at which both sides are sampled, and the reference alone (0: greedy).",
    )
    matched_entropy: bool = Field(
        True, description="Whether to sample the reference also at the temperature that gives it the policy's entropy."
    )
    best_of_n: int = Field(
        4, ge=0, description="Compare with the best of n samples of the reference, chosen by PPO's own scorer (0: no)."
    )
    samples_per_prompt: int = Field(
        2, gt=0, description="Responses per prompt and temperature in each control (greedy ones are drawn once)."
    )

    RULES: ClassVar[tuple[Rule[Controls], ...]] = (
        Rule(
            "temperatures",
            "a temperature is listed more than once",
            "list each once",
            lambda controls: len(set(controls.temperatures)) < len(controls.temperatures),
        ),
    )


class CriticSampling(Section):
    """Sampling that continues the best beginnings by the outcome critic, beside plain sampling (CodeRL)."""

    samples: int = Field(8, ge=2, description="Programs per prompt with each way of sampling; half of them continue.")
    example_tests: int = Field(
        1, gt=0, description="How many of a row's tests, the first ones, the sampler may run; all tests judge."
    )

    RULES: ClassVar[tuple[Rule[CriticSampling], ...]] = (
        Rule(
            "samples",
            "{samples} cannot be halved: one half is sampled as ever, the other continues beginnings of it",
            "use an even number",
            lambda sampling: sampling.samples % 2 == 1,
        ),
    )


def _controls_set(compare: Compare) -> Controls | None:
    """Return the controls that the recipe states; defaults are fitted instead (`resolved_controls`)."""
    return compare.controls if compare.is_set("controls") else None


def _too_warm(compare: Compare) -> bool:
    controls = _controls_set(compare)
    return controls is not None and any(one < 0 or one >= compare.temperature for one in controls.temperatures)


def _too_many_samples(compare: Compare) -> bool:
    controls = _controls_set(compare)
    return controls is not None and controls.samples_per_prompt > compare.samples_per_prompt


def _no_best_of_n(compare: Compare) -> bool:
    controls = _controls_set(compare)
    if controls is None:
        return False
    too_large = controls.is_set("best_of_n") and controls.best_of_n > compare.samples_per_prompt
    return controls.best_of_n == 1 or too_large


def _unknown_judges(compare: Compare) -> list[Mapping[str, str]]:
    return [{"judge": name} for name in unknown_in("compare.judges", compare.judges)]


class Compare(Stage):
    """The verdict: comparison of the policy with the base model on the test prompts."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = (DataNeed("prompts", "to compare on"),)

    samples_per_prompt: int = Field(4, gt=0, description="Responses per prompt from each model.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    max_new_tokens: int | None = Field(
        None, gt=0, description="Maximum response length in tokens (null: ppo.response_length, else 53)."
    )
    judges: list[str] = Field(
        ["gold", "reward_model"],
        min_length=1,
        description=f"Scorers: {described_in('compare.judges')}, module:name of a function, "
        "http://... of a server, or a reward model's folder or id with a slash.",
    )
    metrics: list[str] = Field(
        [], description="Metrics that are reported of both sides and decide nothing: "
        f"{', '.join(names_in('compare.metrics'))}, module:name, http://..., or a model's folder or id."
    )  # fmt: skip
    primary_judge: str | None = Field(None, description="Judge whose scores decide the verdict (null: the first).")
    batch_size: int = Field(64, gt=0, description="Batch size for sampling and scoring responses.")
    bootstrap_samples: int = Field(
        10_000, ge=100, description="Number of bootstrap resamples behind each confidence interval."
    )
    controls: Controls | None = Field(
        Controls(), description="Controls: other explanations of the result, measured beside it (none: skip them)."
    )

    endpoint: Endpoint | None = Field(
        None, description="The judge `endpoint`: a model behind an OpenAI-compatible API."
    )

    critic_sampling: CriticSampling | None = Field(
        None,
        description="With ppo.outcome_critic: compare, on the policy, sampling that goes on from the critic's best "
        "beginnings with plain sampling of as many programs (null: do not).",
    )

    prompt_search: PromptSearch | None = Field(
        None,
        description="With reward.prompted_classifier: search prompts without learning, too, as a control of those that "
        "PPO found (null: do not).",
    )

    @model_serializer(mode="wrap")
    def _only_what_is_stated(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        newer = {name: getattr(self, name) is None for name in ("endpoint", "critic_sampling", "prompt_search")}
        newer["metrics"] = not self.metrics  # older runs lack these keys
        return without(handler(self), tuple(key for key, unused in newer.items() if unused))

    def as_input(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"endpoint": set(NOT_INPUTS)})

    @field_validator("controls", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == "none" else value

    @property
    def trains(self) -> bool:
        return False

    @property
    def resolved_controls(self) -> Controls | None:
        """Return the controls with defaults fitted to the main comparison: colder, and with no more samples."""
        if self.controls is None:
            return None
        best = min(self.controls.best_of_n, self.samples_per_prompt)
        fitted = {
            "temperatures": sorted((one for one in self.controls.temperatures if one < self.temperature), reverse=True),
            "best_of_n": best if best > 1 else 0,
            "samples_per_prompt": min(self.controls.samples_per_prompt, self.samples_per_prompt),
        }
        return self.controls.model_copy(update=fitted)

    @property
    def responses_per_prompt(self) -> int:
        """Number of responses sampled per prompt from both models, with greedy ones and controls."""
        count, controls = 2 * (self.samples_per_prompt + 1), self.resolved_controls
        if controls is not None:
            warm = sum(one > 0 for one in controls.temperatures)
            count += (2 * warm + int(controls.matched_entropy)) * controls.samples_per_prompt
        return count

    @property
    def endpoint_samples(self) -> int:
        """Number of pairs per prompt that the endpoint judges in the main comparison."""
        return min(self.endpoint.samples, self.samples_per_prompt) if self.endpoint is not None else 0

    @property
    def endpoint_decides(self) -> bool:
        """Whether the verdict goes by the endpoint: it then judges every control, else the main comparison alone."""
        return (self.primary_judge or self.judges[0]) == ENDPOINT

    @property
    def questions_per_prompt(self) -> int:
        """Number of questions per prompt to the endpoint, two for each pair; 0 without it. Equal responses need none.

        The control of the best of n samples counts, although it is there only with a judge that PPO trained on.
        """
        pairs, controls = self.endpoint_samples, self.resolved_controls
        if pairs and self.endpoint_decides and controls is not None:
            few = min(pairs, controls.samples_per_prompt)
            warm = sum(one > 0 for one in controls.temperatures)
            cold = len(controls.temperatures) - warm
            pairs += 2 * (warm * few + cold) + few * controls.matched_entropy + pairs * (controls.best_of_n > 0)
        return 2 * pairs

    def resolved(self, response_length: int) -> Compare:
        """Return this section with its defaults filled in; `response_length` is the longest response of PPO."""
        defaults = {
            "primary_judge": self.primary_judge or self.judges[0],
            "max_new_tokens": self.max_new_tokens or response_length,
            "controls": self.resolved_controls,
        }
        return self.model_copy(update=defaults)

    RULES: ClassVar[tuple[Rule[Compare], ...]] = (
        Rule(
            "judges",
            "endpoint needs {at}.endpoint: the address and the model to ask",
            "add that section with base_url and model, or take it out of {at}.judges",
            lambda compare: ENDPOINT in compare.judges and compare.endpoint is None,
            about=("endpoint",),
        ),
        Rule(
            "endpoint",
            "is not used: endpoint is not among the judges",
            "add endpoint to {at}.judges, or remove the section",
            lambda compare: compare.endpoint is not None and ENDPOINT not in compare.judges,
            about=("judges",),
        ),
        Rule(
            "endpoint.samples",
            "is more than the {samples_per_prompt} of {at}.samples_per_prompt",
            "lower it, or raise that",
            lambda compare: compare.endpoint is not None and compare.endpoint.samples > compare.samples_per_prompt,
            about=("samples_per_prompt",),
        ),
        Rule(
            "controls.temperatures",
            "a control is colder than {at}.temperature ({temperature:g}), and 0 or more",
            "remove the others",
            _too_warm,
            about=("temperature",),
        ),
        Rule(
            "controls.samples_per_prompt",
            "is more than the {samples_per_prompt} of {at}.samples_per_prompt",
            "lower it, or raise that",
            _too_many_samples,
            about=("samples_per_prompt",),
        ),
        Rule(
            "controls.best_of_n",
            "chooses among the {samples_per_prompt} samples per prompt of the reference",
            "use 2 up to that many, or 0 for none",
            _no_best_of_n,
            about=("samples_per_prompt",),
        ),
        Rule(
            "judges",
            "there is no judge {judge!r}",
            f"use {', '.join(names_in('compare.judges'))}, module:name, http://..., or a model's folder or id",
            _unknown_judges,
        ),
        Rule("judges", UNFIT, UNFIT_FIX, lambda compare: any(map(unfit, compare.judges))),
        Rule(
            "metrics",
            "there is no metric {metric!r}",
            f"use {described_in('compare.metrics')}, module:name, http://..., or a model's folder or id",
            lambda compare: [{"metric": name} for name in unknown_in("compare.metrics", compare.metrics)],
        ),
        Rule("metrics", UNFIT, UNFIT_FIX, lambda compare: any(map(unfit, compare.metrics))),
        Rule(
            "metrics",
            "a metric is listed more than once",
            "list each metric once",
            lambda compare: len(set(compare.metrics)) < len(compare.metrics),
        ),
        Rule(
            "judges",
            "a judge is listed more than once",
            "list each judge once",
            lambda compare: len(set(compare.judges)) < len(compare.judges),
        ),
        Rule(
            "primary_judge",
            "{primary_judge!r} is not among the judges: {judges}",
            "add it to {at}.judges, or name one of those",
            lambda compare: compare.primary_judge is not None and compare.primary_judge not in compare.judges,
            about=("judges",),
        ),
    )
