"""Train the policy on the preferences themselves (direct preference optimization, DPO): no reward model, no sampling.

    base* ─┬─▶ policy (LoRA adapter on it, or all weights) ──▶ log pi of both responses ─┐
           └─▶ reference (adapter off, or a second base*) ──▶ log ref ────────────────────┴─▶ -log sigmoid(beta ...)

Reads base* and `data.preferences`. Trains with TRL's DPOTrainer on the pairs of the training prompts; on the held-out
ones it measures how often the policy raised the chosen response more than the rejected one. Writes adapter/ or model/
(the policy) and probes.json, as ppo does: everything that reads a policy reads this one. Leaves out evaluation by
samples, which the comparison does.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from peft import PeftModel, TaskType
from transformers import PreTrainedModel
from trl import DPOConfig

from rlhfctl.artifacts import Artifact
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.fitting import longest_row
from rlhfctl.data.store import Store
from rlhfctl.data.types import PreferenceGroup, count_examples
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Metrics, Work
from rlhfctl.models import adapters, build, scoring, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.recipe.schema import Dpo
from rlhfctl.stages import probes
from rlhfctl.stages.context import Context
from rlhfctl.stages.policy_files import publish_policy
from rlhfctl.stats.paired import wilson_ci
from rlhfctl.training.trl import options
from rlhfctl.training.trl.datasets import dataset_of
from rlhfctl.training.trl.dpo_trainer import EncodedDpoTrainer
from rlhfctl.training.trl.train import train

_STEP0_TOLERANCE = 1e-6  # nats per token, in float32: policy and reference are the same weights
_METRICS = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")

Pair = dict[str, list[int]]


def run(section: Dpo, ctx: Context) -> Artifact:
    """Train the policy, and publish it; training resumes from a checkpoint."""
    recipe = ctx.recipe

    # 1. Load: the policy is base*, and so is the reference. With LoRA they are one model.
    base = ctx.loader.load_base(ctx.parents["base"], to_train=True)
    tokenizer, model = base.tokenizer, build.to_device(base.model)
    reference: PreTrainedModel | None = None
    if section.lora is not None:
        model = adapters.add_lora(model, section.lora, TaskType.CAUSAL_LM, seed=recipe.seed)
    else:
        reference = build.to_device(ctx.loader.load_base(ctx.parents["base"], check=False).model).requires_grad_(False)

    # 2. Rows to ids, held out by prompt.
    config = _config(section, ctx)
    split, encoder = ctx.data["preferences"].split, Encoder(tokenizer)
    limit, name = longest_row(config.max_length, context_of(base.model.config))
    config.max_length = limit
    pairs = _encode(split.train, encoder, limit, name, ctx)
    heldout = list(_encode(split.heldout, encoder, limit, name, ctx))
    if sentence := encoder.warning("responses"):
        ctx.warn(sentence)
    prompts = [list(ids) for ids in dict.fromkeys(tuple(pair["prompt_ids"]) for pair in heldout)][: scoring.PROBE_ROWS]
    _check_step_zero(model, reference, prompts, tokenizer.pad_token_id, ctx)
    before = _logprobs(model, heldout, tokenizer.pad_token_id)

    # 3. Train whole weights, or an adapter on them.
    model, metrics = train(
        partial(
            EncodedDpoTrainer,
            ref_model=reference,
            args=config,
            train_dataset=dataset_of(pairs),
            eval_dataset=dataset_of(heldout),
            processing_class=tokenizer,
        ),
        model,
        section,
        stage=ctx.name,
        work=ctx.work,
        emit=ctx.emit,
        warn=ctx.warn,
        counts=lambda trainer: {"pairs": len(pairs), "heldout_pairs": len(heldout)},
        metrics=_METRICS,
    )
    del reference

    # 4. Measure on the held-out pairs; save, and record outputs of the policy for later loads.
    metrics |= _heldout(before, _logprobs(model, heldout, tokenizer.pad_token_id), section.beta, ctx)
    layout = publish_policy(model, tokenizer, base, prompts, ctx)
    return ctx.publish(
        section.model_dump(mode="json"),
        layout,
        metrics=metrics,
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )


def _config(section: Dpo, ctx: Context) -> DPOConfig:
    recipe = ctx.recipe
    arguments = options.trainer_arguments(ctx.work, recipe.model.dtype, section.trainer, seed=recipe.seed)
    return DPOConfig(**arguments, beta=section.beta)


def pairs_of(group: PreferenceGroup, encoder: Encoder) -> Iterator[Pair]:
    """Yield the pairs of a group as ids: the prompt's, which the comparison generates from, and those of both sides."""
    used = {index for comparison in group.comparisons for index in comparison}
    prompt: list[int] = []
    responses: dict[int, list[int]] = {}
    for index in sorted(used):
        prompt, responses[index] = encoder.pair(group.prompt, group.responses[index], group.tools)
    for better, worse in group.comparisons:
        yield {"prompt_ids": prompt, "chosen_ids": responses[better], "rejected_ids": responses[worse]}


def _encode(
    groups: Sequence[PreferenceGroup], encoder: Encoder, limit: int | None, name: str, ctx: Context
) -> Sequence[Pair]:
    """Encode the pairs, and keep those whose sides fit into the limit."""
    kept: Store[Pair] = Store()
    total = count_examples(groups)
    with Work("encoding pairs", total, "pair") as work:
        for number, pair in enumerate(pair for group in groups for pair in pairs_of(group, encoder)):
            work.advance(number)
            longest = len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
            if limit is None or longest <= limit:
                kept.append(pair)
    if len(kept) < total:
        ctx.warn(f"{total - len(kept)} of {total} pairs are longer than {name} tokens and are dropped")
    if not len(kept):
        raise DataError(
            f"no pair fits into {name} tokens", where="dpo.trainer.max_length", fix="raise it, or give shorter rows"
        )
    return kept.items()


def _check_step_zero(
    model: Any, reference: PreTrainedModel | None, prompts: Sequence[list[int]], pad: int, ctx: Context
) -> None:
    """Raise HandoffError if policy and reference are not equal before the first step."""
    rows = [row for row in prompts if len(row) > 1]
    ours = scoring.sequence_logprobs(model, rows, pad)
    if reference is None:
        assert isinstance(model, PeftModel)
        with model.disable_adapter():
            theirs = scoring.sequence_logprobs(model, rows, pad)
    else:
        theirs = scoring.sequence_logprobs(reference, rows, pad)
    gap = max((abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)), default=0.0)
    if not gap <= _STEP0_TOLERANCE:
        raise HandoffError(
            f"policy and reference differ by {gap:.3g} nats per token before the first step",
            where=str(ctx.parents["base"].name),
            fix="this is a defect: please report it with the recipe",
        )


def _logprobs(model: Any, pairs: Sequence[Pair], pad: int) -> list[tuple[float, float]]:
    """Return the log-probability (nats) of each pair's chosen and rejected response given its prompt."""
    sides = []
    for side in ("chosen_ids", "rejected_ids"):
        rows = [pair["prompt_ids"] + pair[side] for pair in pairs]
        found = scoring.sequence_logprobs(model, rows, pad)
        sides.append([sum(one[-len(pair[side]) :]) for one, pair in zip(found, pairs, strict=True)])
    return list(zip(*sides, strict=True))


def _heldout(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], beta: float, ctx: Context
) -> dict[str, float]:
    """Measure the implicit reward, beta (log pi - log ref), on the held-out pairs: accuracy, interval, mean margin."""
    margins = [
        beta * ((chosen - chosen_before) - (rejected - rejected_before))
        for (chosen_before, rejected_before), (chosen, rejected) in zip(before, after, strict=True)
    ]
    probes.require_finite(margins, ctx.name, "log-probabilities")
    right = sum(margin > 0 for margin in margins)
    interval = wilson_ci(right, len(margins))
    values = {
        "heldout_accuracy": right / len(margins),
        "heldout_accuracy_low": interval.low,
        "heldout_accuracy_high": interval.high,
        "heldout_margin": statistics.fmean(margins),
    }
    ctx.emit(Metrics(stage=ctx.name, step=0, values=values, split="heldout"))
    return values
