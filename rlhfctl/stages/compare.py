"""The verdict: policy and reference answer the same test prompts, and judges score both.

Reads two policies (or two files of samples made elsewhere) and the test prompts, which nothing before this stage has
seen; writes compare.json (the verdict and its numbers) and samples.jsonl (every response with its scores). The unit
is the prompt: a prompt's value is the mean over its samples. Chooses nothing and trains nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Metrics, Progress, Sample, StageStarted, Work, transcript
from rlhfctl.recipe.schema import Compare
from rlhfctl.rewards import Episode, make_episode
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.model import ClassifierReward, ModelReward, TextModelReward
from rlhfctl.stages import Context, handoff
from rlhfctl.stats import compare_paired, distinct_n, verdict
from rlhfctl.training import adapter_folders, loading, models, peak, rollout, tokenizing
from rlhfctl.training.data import Row, prompt_key
from rlhfctl.training.encoding import Encoder
from rlhfctl.training.sources import read_jsonl

_SHOWN = 3
Judge = Callable[[Sequence[Episode]], list[float]]


@dataclass(frozen=True)
class Answers:
    """One side's responses: `sampled[i]` are those to test prompt i, `greedy[i]` its greedy one (None: not known)."""

    sampled: list[list[Episode]]
    ended: list[list[bool | None]]
    greedy: list[Episode] | None


def run(section: Compare, ctx: Context) -> Artifact:
    """Sample (or read samples), judge, and write the verdict."""
    began = time.monotonic()
    # 1. Responses of both sides to the same prompts.
    if "policy_samples" in ctx.options:
        policy, reference, kl, tokenizer = _from_files(section, ctx)
    else:
        policy, reference, kl, tokenizer = _from_models(section, ctx)

    peak.give_back()  # both models are gone

    # 2. Judges.
    judges = _judges(section, ctx, tokenizer)
    policy_scores = {name: _score(name, judge, policy.sampled) for name, judge in judges.items()}
    reference_scores = {name: _score(name, judge, reference.sampled) for name, judge in judges.items()}

    # 3. Statistics over prompts.
    results, verdicts = {}, {}
    for name in judges:
        ours = [statistics.fmean(scores) for scores in policy_scores[name]]
        theirs = [statistics.fmean(scores) for scores in reference_scores[name]]
        results[name], verdicts[name] = _compared(ours, theirs, section, ctx)
        results[name]["independent"] = _independent(name, ctx)
    primary = section.primary_judge
    assert primary is not None  # resolved by the schema
    report: dict[str, Any] = {
        "verdict": verdicts[primary],
        "primary_judge": primary,
        "independent": results[primary]["independent"],
        "prompts": len(policy.sampled),
        "samples_per_prompt": min(len(samples) for side in (policy, reference) for samples in side.sampled),
        "temperature": None if "policy_samples" in ctx.options else section.temperature,
        "judges": results,
        "kl_mean": statistics.fmean(kl) if kl is not None else None,
    }
    for side, answers in (("policy", policy), ("reference", reference)):
        report |= {f"{key}_{side}": value for key, value in _described(answers).items()}
    # The two names that scripts rely on.
    report["length_policy_mean"], report["length_reference_mean"] = (
        report.pop("length_policy"),
        report.pop("length_reference"),
    )
    if policy.greedy is not None and reference.greedy is not None:
        report["greedy"] = {
            name: _compared(judge(policy.greedy), judge(reference.greedy), section, ctx)[0]
            for name, judge in judges.items()
        }
    if not report["independent"]:
        ctx.warn(_dependence(primary, ctx))

    # 4. Write.
    rows = _sample_rows(policy, reference, policy_scores, reference_scores)
    fs.write_atomic(ctx.folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    fs.write_json(ctx.folder / "compare.json", report)
    metrics = {
        "win_rate": results[primary]["win_rate"],
        "delta": results[primary]["delta"],
        "length": report["length_policy_mean"],
    }
    metrics |= {"kl": report["kl_mean"]} if kl is not None else {}
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
    return ctx.publish(
        section.model_dump(mode="json"),
        {"compare": "compare.json", "samples": "samples.jsonl"},
        seconds=time.monotonic() - began,
        metrics=metrics,
    )


# ---------------------------------------------------------------- responses


def _from_models(section: Compare, ctx: Context) -> tuple[Answers, Answers, list[float], PreTrainedTokenizerBase]:
    """Sample both policies on the test prompts: the same batches and the same random numbers for both."""
    at = loading.device()
    ours = handoff.load_policy(ctx, ctx.parents["policy"])
    theirs = handoff.load_policy(ctx, ctx.parents["reference"])
    tokenizer = ours.tokenizer
    pads = []
    for side in (ours, theirs):
        side.model.to(at)
        models.mask_pad(side.model, side.tokenizer.pad_token_id)
        pads.append(side.tokenizer.pad_token_id)
    assert section.max_new_tokens is not None
    rows = _that_fit(ctx.data["prompts"].split.test, (ours, theirs), section.max_new_tokens, ctx)

    settings = section.model_dump(mode="json") | {"prompts": len(rows)}
    total = 2 * len(rows) * (section.samples_per_prompt + 1)
    ctx.emit(StageStarted(stage=ctx.name, total_steps=total, settings=settings))
    done = 0
    same = tokenizing.tokenizer_fingerprint(ours.tokenizer) == tokenizing.tokenizer_fingerprint(theirs.tokenizer)
    answers, ids = [], []
    for name, side in (("policy", ours), ("reference", theirs)):
        encoder = Encoder(side.tokenizer)
        prompts = [encoder.prompt(row["prompt"]) for row in rows]
        sampled, greedy = [], None
        for index in range(section.samples_per_prompt + 1):
            last = index == section.samples_per_prompt  # the greedy pass
            sampling = rollout.Sampling(
                section.max_new_tokens,
                None if last else section.temperature,
                section.batch_size,
                ctx.recipe.seed * 1_000 + index,
            )
            before = done

            def progress(count: int, before: int = before) -> None:
                ctx.emit(Progress(stage=ctx.name, step=before + count, total=total, unit="response"))

            what = f"sampling the {name}"
            responses = rollout.sample(side.model, prompts, side.tokenizer, sampling, progress, what=what)
            done += len(rows)
            if last:
                greedy = responses
            else:
                sampled.append(responses)
        assert greedy is not None

        def episode(i: int, response: rollout.Response, prompts: Any = prompts, tok: Any = side.tokenizer) -> Episode:
            return make_episode(tok, rows[i], prompts[i], response.ids)

        answers.append(
            Answers(
                sampled=[[episode(i, responses[i]) for responses in sampled] for i in range(len(rows))],
                ended=[[responses[i].ended for responses in sampled] for i in range(len(rows))],
                greedy=[episode(i, response) for i, response in enumerate(greedy)],
            )
        )
        ids.append((prompts, sampled))
        peak.give_back()  # the caches of keys and values
    kl: list[float] = []
    if same:
        prompts, sampled = ids[0]
        for responses in sampled:
            kl += rollout.exact_kl(
                ours.model, theirs.model, prompts, [r.ids for r in responses], pads[0], temperature=section.temperature
            )
    else:
        ctx.warn("policy and reference have different tokenizers: there is no KL between them")
    return answers[0], answers[1], kl if same else None, tokenizer  # type: ignore[return-value]


def _that_fit(test: list[Row], sides: Sequence[handoff.Base], new: int, ctx: Context) -> list[Row]:
    rows = test
    for side in sides:
        context = getattr(side.model.config, "max_position_embeddings", None)
        encoder = Encoder(side.tokenizer)
        rows = [row for row in rows if context is None or len(encoder.prompt(row["prompt"])) + new <= context]
    if len(rows) < len(test):
        ctx.warn(f"{len(test) - len(rows)} of {len(test)} test prompts leave no room for {new} tokens and are left out")
    if not rows:
        raise DataError(
            f"none of the {len(test)} test prompts leaves room for {new} tokens in the model's context",
            where="data.prompts",
            fix="lower compare.max_new_tokens, or give shorter prompts",
        )
    return rows


def _from_files(section: Compare, ctx: Context) -> tuple[Answers, Answers, None, PreTrainedTokenizerBase | None]:
    """Two JSONL files of {"prompt", "response"}; the prompts of both must be the same set."""
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
    answers = []
    for side in grouped:
        sampled = [[_episode_from_text(row, tokenizer) for row in side[key]] for key in shared]
        answers.append(Answers(sampled=sampled, ended=[[None] * len(samples) for samples in sampled], greedy=None))
    return answers[0], answers[1], None, tokenizer


def _read_samples(path: Path) -> dict[str, list[Row]]:
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
    """Needed only where a reward model is to read the samples: its own."""
    if "reward_model" not in section.judges or "reward" not in ctx.parents:
        return None
    source = ctx.parents["reward"]
    artifact, trust = source.artifact, ctx.recipe.model.trust_remote_code
    if artifact is None:
        folder = adapter_folders.tokenizer_folder(adapter_folders.fetched(source.name))
        return tokenizing.load_tokenizer(folder, trust_remote_code=trust)
    place = str(artifact.part("adapter" if artifact.has("adapter") else "model"))
    return tokenizing.load_tokenizer(place, trust_remote_code=trust)


def _episode_from_text(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> Episode:
    prompt, response = row["prompt"], row["response"]
    completion = response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]
    prompt_ids, response_ids = Encoder(tokenizer).pair(prompt, completion) if tokenizer is not None else ([], [])
    return Episode(prompt_ids, response_ids, prompt, completion, row)


# ---------------------------------------------------------------- judges


def _judges(section: Compare, ctx: Context, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Judge]:
    judges: dict[str, Judge] = {}
    folder = Path(ctx.recipe.folder or ".")
    for name in section.judges:
        if name == "gold":
            judges[name] = _gold
        elif name == "reward_model":
            if "reward" not in ctx.parents or tokenizer is None:
                raise HandoffError(
                    "the judge reward_model has no reward model to ask", fix="name one with --reward-model"
                )
            source = ctx.parents["reward"]
            if classifier := handoff.load_classifier(ctx, source):
                judges[name] = ClassifierReward(classifier)
                continue
            theirs = handoff.other_tokenizer(ctx, source, tokenizer)
            model = models.to_device(handoff.load_reward_model(ctx, source, theirs or tokenizer))
            judges[name] = TextModelReward(model, theirs) if theirs else ModelReward(model, tokenizer.pad_token_id)
        elif name == "reward_function":
            assert ctx.recipe.reward is not None and ctx.recipe.reward.function is not None
            judges[name] = FunctionReward(ctx.recipe.reward.function, folder)
        else:
            judges[name] = FunctionReward(name, folder)
    return judges


def _gold(episodes: Sequence[Episode]) -> list[float]:
    from rlhfctl.world import gold

    return list(gold.score([e.prompt for e in episodes], [e.completion for e in episodes]))


def _independent(judge: str, ctx: Context) -> bool:
    """Whether a judge is another than what the policy was trained against, as far as manifests tell."""
    reward, ppo = ctx.recipe.reward, ctx.recipe.ppo
    if judge == "reward_model":
        against = _trained_against(ctx)
        return against is not None and ctx.parents["reward"].fingerprint not in against
    if ppo is not None and judge in (ppo.rewards or {}):
        return False
    return judge != "reward_function" and (reward is None or judge != reward.function)


def _trained_against(ctx: Context) -> set[str] | None:
    """Fingerprints of the reward models that the policy, or what it started from, was trained against.

    None where that cannot be told: samples and models from elsewhere have no manifest, and a parent may be gone.
    """
    source, found = ctx.parents.get("policy"), set()
    while source is not None and source.artifact is not None:
        parents = source.artifact.manifest.parents
        if "reward" in parents:
            found.add(parents["reward"].fingerprint)
        if "base" not in parents:
            return found
        try:
            source = source.artifact.parent("base")
        except HandoffError:
            return None
    return None


def _dependence(judge: str, ctx: Context) -> str:
    no_evidence = "it is not independent evidence of improvement"
    if judge == "reward_model" and _trained_against(ctx) is None:
        return f"the verdict rests on a reward model, and nothing shows that PPO did not train on it: {no_evidence}"
    what = "reward model" if judge == "reward_model" else "reward function"
    return f"the verdict rests on the {what} that PPO trained against: {no_evidence}"


def _score(name: str, judge: Judge, sampled: list[list[Episode]]) -> list[list[float]]:
    with Work(f"judging with {name}"):
        flat = judge([episode for samples in sampled for episode in samples])
    scores, start = [], 0
    for samples in sampled:
        scores.append(list(flat[start : start + len(samples)]))
        start += len(samples)
    return scores


# ---------------------------------------------------------------- numbers


def _compared(ours: list[float], theirs: list[float], section: Compare, ctx: Context) -> tuple[dict[str, Any], str]:
    import numpy

    result = compare_paired(
        numpy.array(ours), numpy.array(theirs), seed=ctx.recipe.seed, samples=section.bootstrap_samples
    )
    values = {
        key: [value["low"], value["high"]] if isinstance(value, dict) else value
        for key, value in asdict(result).items()
    }
    values.pop("n", None)
    return values, verdict(result)


def _described(answers: Answers) -> dict[str, float | None]:
    """Length in tokens (in words where there are no ids), share that ended by itself, distinct-1 and distinct-2."""
    episodes = [episode for samples in answers.sampled for episode in samples]
    texts = [e.completion if isinstance(e.completion, str) else e.completion[-1]["content"] for e in episodes]
    units: list[list[str | int]] = [
        list(e.response_ids) or list(t.split()) for e, t in zip(episodes, texts, strict=True)
    ]
    ended = [flag for flags in answers.ended for flag in flags if flag is not None]
    words: list[list[str | int]] = [list(text.split()) for text in texts]
    return {
        "length": statistics.fmean(len(unit) for unit in units),
        "end_rate": statistics.fmean(ended) if ended else None,
        "distinct_1": distinct_n(words, 1),
        "distinct_2": distinct_n(words, 2),
    }


def _sample_rows(
    policy: Answers,
    reference: Answers,
    policy_scores: dict[str, list[list[float]]],
    reference_scores: dict[str, list[list[float]]],
) -> list[dict[str, Any]]:
    rows = []
    for i, (ours, theirs) in enumerate(zip(policy.sampled, reference.sampled, strict=True)):
        for j, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            rows.append(
                {
                    "prompt": a.prompt,
                    "sample": j,
                    "policy": _text(a),
                    "reference": _text(b),
                    "policy_ended": policy.ended[i][j],
                    "reference_ended": reference.ended[i][j],
                    "policy_scores": {name: scores[i][j] for name, scores in policy_scores.items()},
                    "reference_scores": {name: scores[i][j] for name, scores in reference_scores.items()},
                }
            )
    return rows


def _text(episode: Episode) -> str:
    return episode.completion if isinstance(episode.completion, str) else episode.completion[-1]["content"]
