"""Compare policy and reference: both answer the same test prompts, judges score them, controls test other explanations.

Reads two policies (or two files of samples made elsewhere) and the test prompts, which no earlier stage has seen.
Writes compare.json (the verdict and its numbers), samples.jsonl (every response of the main comparison with its scores)
and values.json (each comparison's value per prompt, from which `summary` combines seeds). The unit is the prompt: the
value of a prompt is the mean over its samples. Chooses nothing and trains nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy

from rlhfctl import fs
from rlhfctl import verdict as verdicts
from rlhfctl.artifacts import Artifact
from rlhfctl.events import Metrics, Sample, VerdictReached, transcript
from rlhfctl.models import devices
from rlhfctl.recipe.schema import Compare
from rlhfctl.recipe.sections.scorers import ENDPOINT
from rlhfctl.rewards.prompted_classifier import scores_in
from rlhfctl.rewards.unit_tests import UnitTestsReward, shares
from rlhfctl.sandbox.pool import Outcome
from rlhfctl.stages import answers, critic_sampling, endpoint, found_prompts, judges, prompted, readings
from rlhfctl.stages.answers import GREEDY, Drawn
from rlhfctl.stages.context import Context
from rlhfctl.stages.controls import control_name, control_rows, means
from rlhfctl.stages.measures import measured
from rlhfctl.stages.readings import length_of, text_of
from rlhfctl.stats.paired import compare_paired, distinct_n
from rlhfctl.stats.paired import verdict as verdict_of

_SHOWN = 3


def run(section: Compare, ctx: Context) -> Artifact:
    """Sample (or read samples), judge, and write the verdict."""
    # 1. Responses of both sides to the same prompts.
    responses = (
        answers.from_files(section, ctx) if "policy_samples" in ctx.options else answers.from_models(section, ctx)
    )
    main = responses.main
    policy, reference = responses.policy[main], responses.reference[main]
    devices.release_memory()  # both models are freed by now

    # 2. Scores: judge -> temperature -> prompt, sample.
    scores: dict[str, dict[str, dict[float | None, list[list[float]]]]] = {"policy": {}, "reference": {}}
    built = judges.build_judges(section, ctx, responses.tokenizer)
    for name, judge in built.items():
        for side, by_temperature in (("policy", responses.policy), ("reference", responses.reference)):
            scores[side][name] = {key: judges.score(name, judge, one.episodes) for key, one in by_temperature.items()}
    outcomes = {"policy": judges.outcomes(built, policy.episodes)}
    outcomes["reference"] = judges.outcomes(built, reference.episodes)
    independent = {name: judges.is_independent(name, ctx) for name in section.judges}
    scorer = next((name for name in section.judges if not independent[name]), None)
    asked = endpoint.ask(section, ctx, responses, scores["reference"], scorer)

    # 3. Statistics over prompts: the main comparison, then its controls.
    def compared(policy_means: Sequence[float], reference_means: Sequence[float]) -> dict[str, Any]:
        values = {"policy": list(policy_means), "reference": list(reference_means)}
        return _compared(policy_means, reference_means, section, ctx) | {"values": values}

    def at(temperature: float | None, pairs: str) -> dict[str, dict[str, Any]]:
        """Compare both sides at one temperature, by each judge; `pairs`: the endpoint's name of the comparison."""
        entries = {} if asked is None or pairs not in asked.pairs else {ENDPOINT: asked.entry(pairs, compared)}
        for name in scores["policy"]:
            ours, theirs = scores["policy"][name][temperature], scores["reference"][name][temperature]
            entries[name] = compared(means(ours), means(theirs))
        return {name: entries[name] for name in section.judges if name in entries}

    results = {name: entry | {"independent": independent[name]} for name, entry in at(main, verdicts.MAIN).items()}
    values: dict[str, readings.Values] = {}
    for name in scores["policy"]:
        sides = (means(scores[side][name][main]) for side in ("policy", "reference"))
        values[name] = dict(enumerate(zip(*sides, strict=True)))
    longer = dict.fromkeys(values, readings.length_differences(policy.episodes, reference.episodes))
    if asked is not None:
        values[ENDPOINT] = {prompt: (value, 1 - value) for prompt, value in asked.values(verdicts.MAIN).items()}
        judged = section.endpoint_samples
        longer[ENDPOINT] = readings.length_differences(policy.episodes, reference.episodes, judged)
    more = readings.of_judges(values, longer, seed=ctx.recipe.seed, samples=section.bootstrap_samples)
    results = {name: entry | more[name] for name, entry in results.items()}
    paired = asked.controls(compared) if asked is not None else {}
    controls = list(control_rows(section, responses, scores["policy"], scores["reference"], scorer, compared, paired))
    primary = section.primary_judge
    assert primary is not None  # the schema has filled it in
    fair = [row["judges"][primary]["verdict"] for row in controls if row["kind"] in verdicts.FAIR]
    colder = [row["judges"][primary]["verdict"] for row in controls if row["kind"] == verdicts.COLDER]
    report: dict[str, Any] = {
        "verdict": verdicts.overall(results[primary]["verdict"], fair, colder),
        "verdict_basis": verdicts.basis(controls),
        "primary_judge": primary,
        "independent": results[primary]["independent"],
        "prompts": len(policy.episodes),
        "samples_per_prompt": min(len(samples) for side in (policy, reference) for samples in side.episodes),
        "temperature": main,
        "judges": results,
        "controls": controls,
        "kl_mean": statistics.fmean(responses.kl) if responses.kl is not None else None,
    }
    for side, drawn in (("policy", policy), ("reference", reference)):
        report |= {f"{key}_{side}": value for key, value in _described(drawn).items()}
        if (ended := outcomes[side]) is not None:
            found = shares([outcome for samples in ended for outcome in samples])
            report |= {f"{outcome}_{side}": share for outcome, share in found.items()}
    # Scripts rely on these two names.
    report["length_policy_mean"], report["length_reference_mean"] = (
        report.pop("length_policy"),
        report.pop("length_reference"),
    )
    if GREEDY in responses.policy:
        report["greedy"] = at(GREEDY, control_name("both", GREEDY))
    if section.critic_sampling is not None and main is not None:  # samples from elsewhere have no policy to ask
        assert ctx.recipe.reward is not None and ctx.recipe.reward.unit_tests is not None  # the recipe's rules
        tester = UnitTestsReward(ctx.recipe.reward.unit_tests)
        report["critic_sampling"] = critic_sampling.measure(section, tester, ctx)
    if asked is not None:
        report["endpoint"] = asked.block(section, scores["policy"], scores["reference"], main, ctx.recipe.seed)
        ctx.note(verdicts.judging(report["endpoint"]))
    if section.metrics:
        scorers = judges.build_scorers(section.metrics, section, ctx, responses.tokenizer)
        both = {"policy": policy.episodes, "reference": reference.episodes}
        report["metrics"] = measured(scorers, both, seed=ctx.recipe.seed, samples=section.bootstrap_samples)
        ctx.note(verdicts.measures(report["metrics"]))
    values = _take_values(report)
    report["sentence"] = verdicts.sentence(report)
    if not report["independent"]:
        ctx.warn(judges.dependence(primary, ctx))
    for warning in verdicts.length_warnings(report):
        ctx.warn(warning)

    # 4. Write.
    kept = [{name: drawn[main] for name, drawn in scores[side].items()} for side in ("policy", "reference")]
    rows = _sample_rows(policy, reference, kept[0], kept[1], asked.scores() if asked is not None else {}, outcomes)
    fs.write_atomic(ctx.folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    fs.write_json(ctx.folder / "compare.json", report)
    fs.write_json(ctx.folder / "values.json", values)
    classify = prompted.loader_of(ctx, section.batch_size)
    if classify is not None:
        found = found_prompts.report(scores_in(built) or classify(), responses, section.prompt_search, ctx)
        fs.write_json(ctx.folder / found_prompts.FILE, found)
        ctx.note(found_prompts.sentence(found))
    metrics = _metrics(report, primary)
    ctx.emit(Metrics(stage=ctx.name, step=0, values=metrics, split="test"))
    for row in [row for row in rows if row["sample"] == 0][:_SHOWN]:
        ctx.emit(
            Sample(
                stage=ctx.name,
                step=0,
                prompt=transcript(row["prompt"]),
                response=row["policy"],
                reference=row["reference"],
                scores=row["policy_scores"],
                reference_scores=row["reference_scores"],
            )
        )
    ctx.emit(VerdictReached(stage=ctx.name, verdict=report["verdict"], sentence=report["sentence"]))
    return ctx.publish(
        section.model_dump(mode="json"),
        {"compare": "compare.json", "samples": "samples.jsonl", "values": "values.json"}
        | ({"judgements": endpoint.FILE} if asked is not None else {})
        | ({"prompts": found_prompts.FILE} if classify is not None else {}),
        metrics=metrics,
    )


# ---------------------------------------------------------------- numbers


def _compared(
    policy_means: Sequence[float], reference_means: Sequence[float], section: Compare, ctx: Context
) -> dict[str, Any]:
    """Return a judge's entry: means, difference, win rate, their 95% intervals, p, and the verdict of this row."""
    result = compare_paired(
        numpy.array(policy_means),
        numpy.array(reference_means),
        seed=ctx.recipe.seed,
        samples=section.bootstrap_samples,
    )
    values = {
        key: [value["low"], value["high"]] if isinstance(value, dict) else value
        for key, value in asdict(result).items()
    }
    values.pop("n", None)
    return values | {"verdict": verdict_of(result)}


def _take_values(report: dict[str, Any]) -> dict[str, Any]:
    """Take the values per prompt out of a report, and return them as values.json holds them.

    A judge that left out some prompts has null for these.
    """

    def by_prompt(entry: dict[str, Any]) -> dict[str, Any]:
        values, judged = entry.pop("values"), entry.pop("judged", None)
        for side, known in values.items() if judged is not None else ():
            found = dict(zip(judged, known, strict=True))
            values[side] = [found.get(prompt) for prompt in range(report["prompts"])]
        return dict(values)

    def taken(judges: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {name: by_prompt(entry) for name, entry in judges.items()}

    taken(report.get("greedy", {}))  # a control, too
    controls = {row["name"]: taken(row["judges"]) for row in report["controls"]}
    return {"main": taken(report["judges"]), "controls": controls}


def _metrics(report: dict[str, Any], primary: str) -> dict[str, float]:
    """Return the metrics for screen, manifest and trackers: main comparison and lowest win rate of a fair control."""
    judge = report["judges"][primary]
    metrics = {"win_rate": judge["win_rate"], "delta": judge["delta"], "length": report["length_policy_mean"]}
    lowest = verdicts.lowest_control(report)
    metrics |= {"control_win_rate": lowest} if lowest is not None else {}
    return metrics | ({"kl": report["kl_mean"]} if report["kl_mean"] is not None else {})


def _described(answers: Drawn) -> dict[str, float | None]:
    """Measure responses: length in tokens (words without ids), share that ended by itself, distinct-1, distinct-2."""
    episodes = [episode for samples in answers.episodes for episode in samples]
    ended = [flag for flags in answers.ended for flag in flags if flag is not None]
    words: list[list[str | int]] = [list(text_of(episode).split()) for episode in episodes]
    return {
        "length": statistics.fmean(map(length_of, episodes)),
        "end_rate": statistics.fmean(ended) if ended else None,
        "distinct_1": distinct_n(words, 1),
        "distinct_2": distinct_n(words, 2),
    }


def _sample_rows(
    policy: Drawn,
    reference: Drawn,
    policy_scores: dict[str, list[list[float]]],
    reference_scores: dict[str, list[list[float]]],
    pair_values: Mapping[tuple[int, int], float],
    outcomes: Mapping[str, list[list[Outcome]] | None],
) -> list[dict[str, Any]]:
    """Make the rows of samples.jsonl: each pair of responses with its scores.

    `pair_values`: the endpoint's value for the policy, by prompt and sample; pairs that it has not judged are missing.
    `outcomes`: how each side's programs ended, where a judge runs programs.
    """
    rows = []
    for i, (policy_answers, reference_answers) in enumerate(zip(policy.episodes, reference.episodes, strict=True)):
        for j, (a, b) in enumerate(zip(policy_answers, reference_answers, strict=False)):
            value = pair_values.get((i, j))
            paired = ({ENDPOINT: value}, {ENDPOINT: 1 - value}) if value is not None else ({}, {})
            rows.append(
                {
                    "prompt": a.prompt,
                    "sample": j,
                    "policy": text_of(a),
                    "reference": text_of(b),
                    "policy_ended": policy.ended[i][j],
                    "reference_ended": reference.ended[i][j],
                    "policy_length": length_of(a),
                    "reference_length": length_of(b),
                    "policy_scores": {name: scores[i][j] for name, scores in policy_scores.items()} | paired[0],
                    "reference_scores": {name: scores[i][j] for name, scores in reference_scores.items()} | paired[1],
                }
                | {f"{side}_outcome": ended[i][j] for side, ended in outcomes.items() if ended is not None}
            )
    return rows
