"""Sample the responses that compare judges: both models answer the same test prompts at every temperature.

Reads two policies, which it samples with the same random numbers, or two files of samples made elsewhere. Writes
nothing. Leaves out judging (judges.py) and the choice of comparisons (controls.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.fitting import fit_to_context
from rlhfctl.data.splits import prompt_key
from rlhfctl.data.text_files import read_jsonl
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError
from rlhfctl.events import Progress, StageStarted
from rlhfctl.generation import generator, local
from rlhfctl.generation.generator import Generator
from rlhfctl.generation.kl import exact_kl
from rlhfctl.models import devices, special_tokens, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import Compare
from rlhfctl.rewards.episode import Episode, make_episode
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Base

GREEDY = 0.0  # the temperature of greedy decoding
MATCH_ROUNDS = 3  # tries to find the temperature at which the entropies are equal
MATCH_TOLERANCE = 0.02  # share of the policy's entropy: a smaller difference counts as equal
MATCH_LIMIT = 0.10  # share of the policy's entropy: a larger difference after all tries is no match
MATCH_WARMEST = 2.0  # times compare.temperature: the largest temperature for the reference


@dataclass(frozen=True)
class Drawn:
    """The responses of one model at one temperature: `episodes[i]` are the responses to test prompt i.

    `ended`: whether each response ended by itself (None: not known). `entropy`: nats per token of the distributions
    that were sampled, estimated as the mean of -log p of the sampled tokens (None: greedy, or samples made elsewhere).
    """

    episodes: list[list[Episode]]
    ended: list[list[bool | None]]
    entropy: float | None


@dataclass(frozen=True)
class Answers:
    """The responses of policy and reference by temperature; `main` is the temperature of the main comparison.

    `main` is None for samples made elsewhere. `matched`: the temperature at which the reference has the entropy of the
    policy, where one was found; the reference's responses at that temperature are in `reference`. `kl`: nats per
    response of the main comparison, where it can be measured.
    """

    policy: Mapping[float | None, Drawn]
    reference: Mapping[float | None, Drawn]
    main: float | None
    matched: float | None
    kl: list[float] | None
    tokenizer: PreTrainedTokenizerBase | None


class _SampledModel:
    """Sample one model on all test prompts, at one temperature per call."""

    def __init__(
        self, name: str, base: Base, rows: Sequence[Row], section: Compare, ctx: Context, generate: Generator
    ) -> None:
        self.name, self.model, self.tokenizer, self.generate = name, base.model, base.tokenizer, generate
        self.rows, self.section, self.ctx = rows, section, ctx
        encoder = Encoder(base.tokenizer)
        self.prompts = [encoder.prompt(row["prompt"], row.get("tools")) for row in rows]

    def draw(
        self, temperature: float, samples: int, progress: _Progress
    ) -> tuple[Drawn, list[list[generator.Response]]]:
        """Sample `samples` responses per prompt; sample i uses the same random numbers for policy and reference."""
        drawn = []
        for index in range(1 if temperature == GREEDY else samples):
            activity = f"sampling the {self.name}"
            sampling = self._sampling(temperature, index)
            drawn.append(self.generate(self.model, self.prompts, self.tokenizer, sampling, progress, what=activity))
            progress.pass_done()
        stops = self._sampling(temperature, 0).stop_strings
        logprobs = [value for responses in drawn for response in responses for value in response.logprobs]
        result = Drawn(
            episodes=[
                [make_episode(self.tokenizer, row, self.prompts[i], responses[i].ids, stops) for responses in drawn]
                for i, row in enumerate(self.rows)
            ],
            ended=[[responses[i].ended for responses in drawn] for i in range(len(self.rows))],
            entropy=-statistics.fmean(logprobs) if logprobs else None,
        )
        return result, drawn

    def _sampling(self, temperature: float, index: int) -> generator.Sampling:
        """Return the sampling options of PPO with another temperature and length."""
        section, ppo = self.section, self.ctx.recipe.ppo
        assert section.max_new_tokens is not None
        seed = self.ctx.recipe.seed * 1_000 + index
        plain = generator.Sampling(section.max_new_tokens, None, section.batch_size, seed)
        if ppo is not None:
            plain = generator.sampling_for(ppo, self.tokenizer, seed=seed, stream=0)
        return dataclasses.replace(
            plain,
            max_new_tokens=section.max_new_tokens,
            temperature=None if temperature == GREEDY else temperature,
            batch_size=section.batch_size,
        )


class _Progress:
    """Report how many of all responses are sampled."""

    def __init__(self, ctx: Context, prompts: int, total: int) -> None:
        self.ctx, self.prompts, self.total, self.before = ctx, prompts, total, 0

    def __call__(self, count: int) -> None:
        step = min(self.before + count, self.total)
        self.ctx.emit(Progress(stage=self.ctx.name, step=step, total=self.total, unit="response"))

    def pass_done(self) -> None:
        """Count one more response to each prompt as sampled."""
        self.before += self.prompts


def from_models(section: Compare, ctx: Context, generate: Generator = local.sample) -> Answers:
    """Sample both policies on the test prompts, with the same batches and the same random numbers."""
    policy = ctx.loader.load_base(ctx.parents["policy"])
    reference = ctx.loader.load_base(ctx.parents["reference"])
    for base in (policy, reference):
        base.model.to(devices.device())
        special_tokens.mask_pad(base.model, base.tokenizer.pad_token_id)
    assert section.max_new_tokens is not None
    rows = _fitting_prompts(ctx.data["prompts"].split.test, (policy, reference), section.max_new_tokens, ctx)
    total = len(rows) * section.responses_per_prompt
    settings = section.model_dump(mode="json") | {"prompts": len(rows)}
    ctx.emit(StageStarted(stage=ctx.name, total_steps=total, settings=settings))

    progress = _Progress(ctx, len(rows), total)
    controls, main = section.controls, section.temperature
    colder = (
        [temperature for temperature in controls.temperatures if temperature > GREEDY] if controls is not None else []
    )
    plan = {main: section.samples_per_prompt, GREEDY: 1} | {
        temperature: controls.samples_per_prompt for temperature in colder if controls is not None
    }
    same = tokenizing.tokenizer_fingerprint(policy.tokenizer) == tokenizing.tokenizer_fingerprint(reference.tokenizer)
    bases = (("policy", policy), ("reference", reference))
    sides = [_SampledModel(name, base, rows, section, ctx, generate) for name, base in bases]
    drawn: dict[str, dict[float | None, Drawn]] = {}
    responses: list[list[generator.Response]] = []  # the policy's responses in the main comparison
    matched = None
    for side in sides:
        drawn[side.name] = {}
        for temperature, samples in plan.items():
            drawn[side.name][temperature], sampled = side.draw(temperature, samples, progress)
            responses = sampled if side.name == "policy" and temperature == main else responses
        if side.name == "reference" and controls is not None and controls.matched_entropy:
            if same:
                wanted = drawn["policy"][main].entropy or 0.0
                matched = _match_entropy(side, wanted, drawn[side.name], main, controls.samples_per_prompt, progress)
            else:
                ctx.warn("policy and reference have different tokenizers: their entropies per token cannot be matched")
        devices.release_memory()  # frees the caches of keys and values
    kl: list[float] | None = None
    if same:
        pad = policy.tokenizer.pad_token_id
        kl = []
        for answers in responses:
            ids = [response.ids for response in answers]
            kl += exact_kl(policy.model, reference.model, sides[0].prompts, ids, pad, temperature=main)
    else:
        ctx.warn("policy and reference have different tokenizers: there is no KL between them")
    return Answers(drawn["policy"], drawn["reference"], main, matched, kl, policy.tokenizer)


def _match_entropy(
    side: _SampledModel, wanted: float, drawn: dict[float | None, Drawn], main: float, samples: int, progress: _Progress
) -> float | None:
    """Find the temperature at which the reference's entropy is `wanted` (nats per token); add its responses to `drawn`.

    Returns None, with a warning, where no temperature up to twice the main one comes near.
    """
    known = {temperature: one.entropy or 0.0 for temperature, one in drawn.items() if temperature is not None}
    for _ in range(MATCH_ROUNDS):
        nearest = min(known, key=lambda temperature: abs(known[temperature] - wanted))
        if abs(known[nearest] - wanted) <= MATCH_TOLERANCE * wanted:
            return nearest
        temperature = round(min(interpolated(wanted, known), MATCH_WARMEST * main), 3)
        if temperature in known:
            break
        drawn[temperature], _ = side.draw(temperature, samples, progress)
        known[temperature] = drawn[temperature].entropy or 0.0
    nearest = min(known, key=lambda temperature: abs(known[temperature] - wanted))
    if abs(known[nearest] - wanted) <= MATCH_LIMIT * wanted:
        return nearest
    side.ctx.warn(
        f"no temperature gives the reference the policy's entropy of {wanted:.3g} nats per token; the nearest, "
        f"{nearest:g}, gives {known[nearest]:.3g}: there is no control at matched entropy"
    )
    return None


def interpolated(wanted: float, known: Mapping[float, float]) -> float:
    """Interpolate linearly the temperature at which the entropy is `wanted`; `known` maps temperature to entropy.

    Beyond the largest entropy the last line is continued.
    """
    points = sorted(known.items())
    for (cold, low), (warm, high) in itertools.pairwise(points):
        if low <= wanted <= high:
            return cold + (warm - cold) * (wanted - low) / (high - low) if high > low else cold
    (cold, low), (warm, high) = points[-2:]
    return warm + (warm - cold) * (wanted - high) / (high - low) if high > low else 2 * warm


def _fitting_prompts(test: Sequence[Row], sides: Sequence[Base], new: int, ctx: Context) -> Sequence[Row]:
    """Return the test prompts that leave room for a response in both models, cut if `data.overlong_prompts` says so."""
    rows, cut = test, 0
    for side in sides:
        fitted = fit_to_context(rows, side.tokenizer, context_of(side.model.config), new, ctx.recipe.data)
        rows, cut = fitted.rows, max(cut, fitted.cut)
    if cut:
        ctx.warn(f"{cut} of {len(test)} test prompts are too long and are cut within their content")
    if len(rows) < len(test):
        ctx.warn(f"{len(test) - len(rows)} of {len(test)} test prompts leave no room for {new} tokens and are left out")
    if not rows:
        raise DataError(
            f"none of the {len(test)} test prompts leaves room for {new} tokens in the model's context",
            where="data.prompts",
            fix="lower compare.max_new_tokens, or give shorter prompts",
        )
    return rows


def from_files(section: Compare, ctx: Context) -> Answers:
    """Read two JSONL files of {"prompt", "response"} and compare them on the prompts that both files hold."""
    grouped = [_read_samples(Path(ctx.options[name])) for name in ("policy_samples", "reference_samples")]
    shared = [key for key in grouped[0] if key in grouped[1]]
    if len(shared) < max(len(side) for side in grouped):
        missing = sum(len(side) - len(shared) for side in grouped)
        if not shared:
            raise DataError(
                "the two files share no prompt",
                where=str(ctx.options["policy_samples"]),
                fix="sample both on the same prompts",
            )
        ctx.warn(f"{missing} prompts stand in one file only and are left out")
    uneven = sum(len(grouped[0][key]) != len(grouped[1][key]) for key in shared)
    if uneven:
        ctx.warn(
            f"{uneven} prompts have another number of samples on one side than on the other: all count in the verdict, "
            "samples.jsonl shows those that form pairs"
        )
    tokenizer = _samples_tokenizer(section, ctx)
    ctx.emit(StageStarted(stage=ctx.name, settings=section.model_dump(mode="json") | {"prompts": len(shared)}))
    sides: list[Mapping[float | None, Drawn]] = []
    for side in grouped:
        sampled = [[_episode_from_text(row, tokenizer) for row in side[key]] for key in shared]
        sides.append({None: Drawn(sampled, [[None] * len(samples) for samples in sampled], None)})
    return Answers(sides[0], sides[1], None, None, None, tokenizer)


def _read_samples(path: Path) -> dict[str, list[Row]]:
    """Read a file of samples and group its rows by prompt."""
    grouped: dict[str, list[Row]] = {}
    rows, places = read_jsonl(path)
    for row, place in zip(rows, places, strict=True):
        if "prompt" not in row or not isinstance(row.get("response"), str):
            raise DataError(
                "a sample needs prompt and response", where=place, fix='{"prompt": "...", "response": "..."}'
            )
        grouped.setdefault(prompt_key(row["prompt"]), []).append(row)
    return grouped


def _samples_tokenizer(section: Compare, ctx: Context) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the reward model that is a judge; None if no reward model reads the samples."""
    role = next((role for role in ("reward", "heldout") if role in ctx.parents), None)
    return None if role is None else ctx.loader.own_tokenizer(ctx.parents[role])


def _episode_from_text(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> Episode:
    """Make an episode of a row of samples, with ids if there is a tokenizer."""
    prompt, response = row["prompt"], row["response"]
    completion = response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]
    prompt_ids, response_ids = Encoder(tokenizer).pair(prompt, completion) if tokenizer is not None else ([], [])
    return Episode(prompt_ids, response_ids, prompt, completion, row)
