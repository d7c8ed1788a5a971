"""Sample programs with the outcome critic and compare with plain sampling, at equally many programs per prompt.

Critic sampling (CodeRL, Le et al. 2022, refining): half of the programs are sampled as ever. Those that pass the
example tests, a part of a row's tests that the sampler may run, are the seeds; where none passes, all are. Each seed is
cut where the critic gives it the highest chance to pass, and the other half of the programs continue these beginnings.
Plain sampling has as many programs of its own. All tests of a row then judge both.

A part of the compare stage: reads the policy and its outcome critic, and returns a block of compare.json. Leaves out
repair, CodeRL's second use of the critic, which needs a model that was trained to mend programs.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.generation import generator, local
from rlhfctl.models import devices, special_tokens
from rlhfctl.models.packing import Sequences
from rlhfctl.recipe.schema import Compare
from rlhfctl.recipe.sections.compare import CriticSampling
from rlhfctl.rewards.episode import make_episode
from rlhfctl.rewards.unit_tests import UnitTestsReward
from rlhfctl.stages.context import Context
from rlhfctl.stats.paired import compare_paired
from rlhfctl.training.rl.outcome_critic import OutcomeCritic

MEASURES = {
    "any": "share of prompts to which at least one of the programs passes",
    "chosen": "share of prompts whose chosen program passes: the first that passes the example tests, else the first",
    "mean": "share of all programs that pass",
    "distinct": "different programs per prompt, as a share of all",
}
_STREAM = 1 << 33  # streams of random numbers from here on, which no other sampling uses

Ids = Sequence[int]


def best_prefix(chances: Sequence[float]) -> int:
    """Return the length of the beginning with the highest chance; the shortest of several, and never the whole program.

    `chances`: the critic's after each token. 0, nothing is kept, for a program of one token.
    """
    if len(chances) < 2:
        return 0
    return max(range(len(chances) - 1), key=lambda index: (chances[index], -index)) + 1


def seeds_of(chances: Sequence[Sequence[float]], passes: Sequence[bool], count: int) -> list[tuple[int, int]]:
    """Choose `count` beginnings to continue: (program, length of its beginning), the most promising first, in turn.

    `chances`: the critic's after each token of each program. `passes`: whether a program passes the example tests.
    """
    good = [index for index, passed in enumerate(passes) if passed] or list(range(len(passes)))
    cuts = {index: best_prefix(chances[index]) for index in good}
    order = sorted(good, key=lambda index: -(chances[index][cuts[index] - 1] if cuts[index] else 0.0))
    return [(order[number % len(order)], cuts[order[number % len(order)]]) for number in range(count)]


class _Sampler:
    """Sample the policy on the test prompts, and run its programs with the example tests or with all tests."""

    def __init__(self, section: Compare, settings: CriticSampling, tester: UnitTestsReward, ctx: Context) -> None:
        self.section, self.tester, self.ctx = section, tester, ctx
        base = ctx.loader.load_base(ctx.parents["policy"])
        base.model.to(devices.device())
        special_tokens.mask_pad(base.model, base.tokenizer.pad_token_id)
        self.model, self.tokenizer = base.model, base.tokenizer
        self.rows = _rows(ctx.data["prompts"].split.test, tester.section.tests, settings.example_tests)
        encoder = Encoder(base.tokenizer)
        self.prompts = [list(encoder.prompt(row["prompt"], row.get("tools"))) for row in self.rows]
        self.examples = settings.example_tests

    def sampling(self, stream: int) -> generator.Sampling:
        section, ppo = self.section, self.ctx.recipe.ppo
        assert ppo is not None and section.max_new_tokens is not None
        plain = generator.sampling_for(ppo, self.tokenizer, seed=self.ctx.recipe.seed, stream=_STREAM + stream)
        length = section.max_new_tokens
        size = section.batch_size
        return dataclasses.replace(plain, max_new_tokens=length, temperature=section.temperature, batch_size=size)

    def draw(self, begins: Sequence[Ids], stream: int) -> list[list[int]]:
        """Continue one beginning (ids) per prompt, up to the longest response: whole programs as ids."""
        asked = [[*prompt, *begin] for prompt, begin in zip(self.prompts, begins, strict=True)]
        sampling = self.sampling(stream)
        drawn = local.sample(self.model, asked, self.tokenizer, sampling, what="sampling programs")
        longest = sampling.max_new_tokens
        return [[*begin, *one.ids][:longest] for begin, one in zip(begins, drawn, strict=True)]

    def passes(self, programs: Sequence[Ids], *, examples: bool) -> list[bool]:
        """Tell of one program per prompt whether it passes the example tests, or all tests."""
        column, stops = self.tester.section.tests, self.sampling(0).stop_strings
        rows = [row | {column: row[column][: self.examples]} if examples else row for row in self.rows]
        episodes = [
            make_episode(self.tokenizer, row, prompt, ids, stops)
            for row, prompt, ids in zip(rows, self.prompts, programs, strict=True)
        ]
        return [result.outcome == "passed" for result in self.tester.results(episodes)]


def _rows(rows: Sequence[Row], column: str, examples: int) -> list[Row]:
    """Return the test rows with more tests than the examples. DataError if there are none."""
    good = [row for row in rows if isinstance(row.get(column), list) and len(row[column]) > examples]
    if not good:
        raise DataError(
            f"no test prompt has more than {examples} tests in a list, so none is left beside the examples",
            where="compare.critic_sampling.example_tests",
            fix="lower it, or give the tests of a row as a list",
        )
    return good


def measure(section: Compare, tester: UnitTestsReward, ctx: Context) -> dict[str, Any]:
    """Sample both ways, and return the block of compare.json: each measure of both, and their differences."""
    settings, source = section.critic_sampling, ctx.parents["policy"]
    assert settings is not None
    if source.artifact is None or not source.artifact.has("outcome_critic"):
        raise HandoffError(
            "the policy has no outcome critic to sample with",
            where=source.name,
            fix="train it with ppo.outcome_critic, or remove compare.critic_sampling",
        )
    critic = OutcomeCritic.load(source.artifact.part("outcome_critic"), devices.device())
    sampler = _Sampler(section, settings, tester, ctx)
    half = settings.samples // 2
    nothing: list[Ids] = [[] for _ in sampler.rows]
    plain = [sampler.draw(nothing, number) for number in range(settings.samples)]
    first = plain[:half]
    on_examples = [sampler.passes(programs, examples=True) for programs in first]
    chances = [_chances(critic, sampler.prompts, programs, section.batch_size) for programs in first]
    seeds = [
        seeds_of([one[i] for one in chances], [one[i] for one in on_examples], half) for i in range(len(sampler.rows))
    ]
    continued = []
    for number in range(half):
        chosen = [seeds[i][number] for i in range(len(sampler.rows))]
        begins = [first[program][i][:length] for i, (program, length) in enumerate(chosen)]
        continued.append(sampler.draw(begins, settings.samples + number))
    ways = {"plain": plain, "critic": [*first, *continued]}
    values = {name: _values(sampler, programs) for name, programs in ways.items()}
    report: dict[str, Any] = {
        "samples": settings.samples, "example_tests": settings.example_tests, "prompts": len(sampler.rows)
    }  # fmt: skip
    report |= {
        name: {key: statistics.fmean(of_prompts) for key, of_prompts in one.items()} for name, one in values.items()
    }
    report["difference"] = {}
    for key in MEASURES:
        found = compare_paired(
            numpy.array(values["critic"][key]), numpy.array(values["plain"][key]),
            seed=ctx.recipe.seed, samples=section.bootstrap_samples,
        )  # fmt: skip
        interval = found.delta_ci95
        report["difference"][key] = {"delta": found.delta, "ci95": [interval.low, interval.high]}
    devices.release_memory()
    ctx.note(sentence(report))
    return report


def _chances(critic: OutcomeCritic, prompts: Sequence[Ids], programs: Sequence[Ids], size: int) -> list[list[float]]:
    """Ask the critic for the chance to pass after each token of one program per prompt."""
    found: list[list[float]] = []
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        found += critic.pass_chances(Sequences.of(prompts[part], programs[part], critic.model.device))
    return found


def _values(sampler: _Sampler, programs: Sequence[Sequence[Ids]]) -> dict[str, list[float]]:
    """Compute each measure per prompt from the programs (sample, prompt)."""
    passes = [sampler.passes(one, examples=False) for one in programs]
    examples = [sampler.passes(one, examples=True) for one in programs]
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for i in range(len(sampler.rows)):
        right, fits = [one[i] for one in passes], [one[i] for one in examples]
        values["any"].append(float(any(right)))
        values["chosen"].append(float(right[fits.index(True) if True in fits else 0]))
        values["mean"].append(statistics.fmean(right))
        values["distinct"].append(len({tuple(one[i]) for one in programs}) / len(programs))
    return values


def sentence(report: dict[str, Any]) -> str:
    """Say what critic sampling gave, in one sentence."""
    any_, mean = (report["difference"][key] for key in ("any", "mean"))
    plain, critic = report["plain"], report["critic"]
    return (
        f"critic sampling, {report['samples']} programs per prompt: at least one passes on {critic['any']:.1%} of the "
        f"prompts, {plain['any']:.1%} with plain sampling (difference {_signed(any_)}); of all programs "
        f"{critic['mean']:.1%} and {plain['mean']:.1%} pass ({_signed(mean)})"
    )


def _signed(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['delta']:+.3f} [{low:.3f}, {high:.3f}]"
