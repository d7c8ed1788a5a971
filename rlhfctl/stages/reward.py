"""Train the reward model: a scalar head (and an adapter) on base*, from pairs of responses.

Reads base* and `data.preferences`. Trains with TRL's RewardTrainer on the pairs of the training prompts, and measures
accuracy on the held-out ones. Writes adapter/ (LoRA and head) or model/, and probes.json: held-out sequences with their
scores, which PPO and the comparison score again after they load the model.

With `reward.heldout: true` the training prompts are split in two. The stage `reward` trains on the first half, and the
stage `heldout`, which runs this module too, trains a second model on the other half, from another seed. Both are
measured on the same held-out pairs.

With `reward.members` above 1 it trains that many, one after the other (reward_members.py): adapter/ and probes.json are
then those of the first member.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import RewardConfig, RewardTrainer

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.data.encoding import EncodedGroup, Encoder
from rlhfctl.data.fitting import longest_row
from rlhfctl.data.splits import split_in_half
from rlhfctl.data.store import Store
from rlhfctl.data.types import PreferenceGroup, Row, count_examples, examples
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Event, Metrics, Work
from rlhfctl.metrics import kind
from rlhfctl.models import adapters, build, head_bias, loading, scoring, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Reward
from rlhfctl.recipe.sections.seeds import LARGEST_SEED
from rlhfctl.stages import probes, reward_members
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import member_folders, recorded_base, verify
from rlhfctl.stages.normalization import normalize
from rlhfctl.stats.paired import wilson_ci
from rlhfctl.training.trl import options
from rlhfctl.training.trl.datasets import dataset_of
from rlhfctl.training.trl.group_trainer import GroupRewardTrainer, group_rows, pair_rows
from rlhfctl.training.trl.train import train

_PROBE_PAIRS = 16
_HELDOUT_SEED = 1_000_003  # added to the recipe's seed: far from the seeds that people give to repeated runs


def run(section: Reward, ctx: Context) -> Artifact:
    """Train the reward model, or all members of an ensemble, and publish; training resumes from a checkpoint."""
    seed = _seed(ctx)

    # 1. Load base* and put a scalar head on it.
    model, tokenizer, base_path = ctx.loader.new_scorer(ctx.parents["base"], seed=seed, head_init=section.head_init)

    # 2. Rows to ids, held out by prompt.
    config = _config(section, seed, ctx.work, ctx)
    split = ctx.data["preferences"].split
    encoder = Encoder(tokenizer)
    train_groups = _encode(_own_part(split.train, section, ctx), encoder, config, model, ctx)
    heldout_groups = _encode(split.heldout, encoder, config, model, ctx)
    heldout = list(_pairs(heldout_groups))
    _tell_of_unused_margins(section, train_groups, ctx)
    heldout_rows = examples(one.group for one in heldout_groups[:_PROBE_PAIRS])
    if sentence := encoder.warning("responses"):
        ctx.warn(sentence)
    probe = partial(_write_probes, pairs=heldout, heldout=heldout_rows, pad=tokenizer.pad_token_id)

    # 3. and 4. Train, give the reward its zero, and measure on the held-out pairs.
    # 5. Save, load again, score the kept pairs again.
    layout: dict[str, Any] = {"head": True, "probes": probes.PROBES}
    if section.members == 1:
        model, metrics = _train(section, model, config, train_groups, heldout_groups, tokenizer, 0, ctx, ctx.emit)
        ctx.leave_to_first()
        metrics |= _heldout(model, heldout, tokenizer, ctx)
        probe(model, ctx.folder)
        layout |= _save(model, tokenizer, base_path, ctx)
        del model
        metrics["reload_gap"] = _reload_gap(tokenizer, ctx)
    else:
        del model
        own_seed = partial(reward_members.seed_of, seed)

        def train_member(
            model: Any, number: int, groups: Sequence[EncodedGroup], emit: Callable[[Event], None], work: Path
        ) -> tuple[Any, dict[str, float]]:
            own = _config(section, own_seed(number), work, ctx)
            return _train(section, model, own, groups, heldout_groups, tokenizer, number, ctx, emit)

        def score(model: Any) -> list[float]:
            return _heldout_scores(model, heldout, tokenizer, ctx)

        members = reward_members.Members(section, ctx, seed, train_member, score, probe)
        metrics, scores = members.make(train_groups, tokenizer, base_path)
        metrics |= _measured(scores, len(heldout), ctx)
        layout |= {"adapter": "adapter", **reward_members.layout(section.members)}
    return ctx.publish(
        section.model_dump(mode="json"),
        layout,
        metrics=metrics,
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )


def _train(
    section: Reward,
    model: Any,
    config: RewardConfig,
    groups: Sequence[EncodedGroup],
    heldout: Sequence[EncodedGroup],
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    ctx: Context,
    emit: Callable[[Event], None],
) -> tuple[Any, dict[str, float]]:
    """Train the head and whole weights, or the head and an adapter; then normalize. Returns the model and metrics.

    `number` is that of the member; the model starts from that member of the round before, if it goes on from there.
    """
    if section.lora is not None:
        model = adapters.add_lora(model, section.lora, TaskType.SEQ_CLS, seed=config.seed)
    _go_on(model, number, ctx)
    counts = {
        name: sum(len(one.group.comparisons) for one in part)
        for name, part in (("pairs", groups), ("heldout_pairs", heldout))
    }
    if section.on_groups:
        sizes = [len(row["ids"]) for row in group_rows(groups)]
        counts |= {"groups": len(sizes), "responses": sum(sizes)}
    model, metrics = train(
        _trainer(section, config, groups, heldout, tokenizer),
        model,
        section,
        stage=ctx.name,
        work=Path(str(config.output_dir)),
        emit=emit,
        warn=ctx.warn,
        counts=lambda trainer: counts,
        metrics=("loss", "accuracy"),
        divided=ctx.divides,
    )
    normalize(section, model, tokenizer, config.max_length, (one.group for one in groups), ctx)
    return model, metrics


def _go_on(model: Any, number: int, ctx: Context) -> None:
    """Give `model` the weights of the reward model of the round before, if the recipe says so; HandoffError if unlike.

    Not its shift: differences of scores, which the losses read, do not have it, and `normalize` sets it anew.
    """
    source = ctx.parents.get("start")
    if source is None or source.artifact is None:
        return
    verify(source.artifact)
    if isinstance(model, PeftModel):
        adapters.load_weights(model, member_folders(source.artifact)[number], "reward")
    else:
        folder = source.artifact.part("model")
        before = loading.load_scorer(str(folder), **loading.options(ctx.recipe.model)).state_dict()
        before.pop(head_bias.BIAS, None)
        if before.keys() != model.state_dict().keys():
            fix = "leave reward.lora as it was, or begin again with a new run"
            raise HandoffError("the reward model of the round before has other weights", where=str(folder), fix=fix)
        model.load_state_dict(before)
    if number == 0:
        ctx.note(f"the reward model goes on from {source.artifact.manifest.stage}")


def _is_heldout(ctx: Context) -> bool:
    """Tell whether this is the held-out reward model, which PPO never trains on."""
    return kind(ctx.name) == "heldout"


def _seed(ctx: Context) -> int:
    """Return the seed of new weights and of the order of pairs; the held-out reward model has another one."""
    return (ctx.recipe.seed + (_HELDOUT_SEED if _is_heldout(ctx) else 0)) % (LARGEST_SEED + 1)


def _own_part(groups: Sequence[PreferenceGroup], section: Reward, ctx: Context) -> Sequence[PreferenceGroup]:
    """Return the groups that this model trains on: all of them, or its half of the prompts."""
    if not section.heldout:
        return groups
    own, other = split_in_half(groups, ctx.recipe.data_seed, steady=ctx.recipe.has_steady_splits)
    return other if _is_heldout(ctx) else own


def _config(section: Reward, seed: int, work: Path, ctx: Context) -> RewardConfig:
    arguments = options.trainer_arguments(work, ctx.recipe.model.dtype, section.trainer, seed=seed)
    return RewardConfig(**arguments)


def _encode(
    groups: Sequence[PreferenceGroup], encoder: Encoder, config: RewardConfig, model: PreTrainedModel, ctx: Context
) -> Sequence[EncodedGroup]:
    """Encode the groups as ids, and keep the pairs that fit into max_length."""
    limit, name = longest_row(config.max_length, context_of(model.config))
    kept: Store[EncodedGroup] = Store()
    done, count, total = 0, 0, count_examples(groups)
    with Work("encoding pairs", total, "pair") as work:
        for group in groups:
            work.advance(done)
            encoded = encoder.preference(group)
            for short in [encoded] if limit is None else encoded.within(limit):
                kept.append(short)
                count += len(short.group.comparisons)
            done += len(group.comparisons)
        work.advance(done)
    if count < total:
        ctx.warn(f"{total - count} of {total} pairs are longer than {name} tokens and are dropped")
    if not count:
        raise DataError(
            f"no pair fits into {name} tokens", where="reward.trainer.max_length", fix="raise it, or give shorter rows"
        )
    return kept.items()


def _pairs(groups: Sequence[EncodedGroup]) -> Iterator[dict[str, Any]]:
    """Yield the pairs of all groups in order, as TRL's trainer reads them: one pair per row."""
    # TRL trains the chosen response to win by the margin.
    margin = {"margin": 0.0} if any(one.group.margin is not None for one in groups) else {}
    return (margin | pair for group in groups for pair in group.pairs)


def _trainer(
    section: Reward,
    config: RewardConfig,
    groups: Sequence[EncodedGroup],
    heldout: Sequence[EncodedGroup],
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[..., Trainer]:
    """Choose the trainer of the section's loss, and give it its rows.

    TRL's own trainer for the plain loss on pairs in one process; GroupRewardTrainer computes the same loss, and divides
    each batch over several processes.
    """
    if not section.on_groups and section.label_error == 0 and Processes.here().count == 1:
        make, rows = partial(RewardTrainer), _pairs
    else:
        make = partial(GroupRewardTrainer, loss=section.loss, label_error=section.label_error)
        rows = group_rows if section.on_groups else pair_rows
    return partial(
        make,
        args=config,
        train_dataset=dataset_of(rows(groups)),
        eval_dataset=dataset_of(rows(heldout)),
        processing_class=tokenizer,
    )


def _tell_of_unused_margins(section: Reward, groups: Sequence[EncodedGroup], ctx: Context) -> None:
    """Warn if the rows state margins and the loss has no pairs that could win by them."""
    count = sum(one.group.margin is not None for one in groups)
    if count and section.loss in ("plackett_luce", "best_of_k"):
        ctx.warn(f"{count} of {len(groups)} rows state a margin, which the loss {section.loss} does not use")


def _heldout(
    model: Any, pairs: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, ctx: Context
) -> dict[str, float]:
    """Measure the accuracy on held-out prompts, with its 95% interval; ties count as wrong."""
    return _measured(_heldout_scores(model, pairs, tokenizer, ctx), len(pairs), ctx)


def _heldout_scores(
    model: Any, pairs: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, ctx: Context
) -> list[float]:
    """Score the held-out pairs: all chosen responses, then all rejected ones."""
    rows = [p["chosen_ids"] for p in pairs] + [p["rejected_ids"] for p in pairs]
    scores = scoring.score_rows(model, rows, tokenizer.pad_token_id, what="scoring the held-out pairs")
    probes.require_finite(scores, ctx.name, "scores")
    return scores


def _measured(scores: Sequence[float], count: int, ctx: Context) -> dict[str, float]:
    """Return what the scores of `count` held-out pairs tell, as metrics; report them, and warn if they tell nothing."""
    chosen, rejected = scores[:count], scores[count:]
    right = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    interval = wilson_ci(right, count)
    values = {
        "heldout_accuracy": right / count,
        "heldout_accuracy_low": interval.low,
        "heldout_accuracy_high": interval.high,
        "heldout_margin": statistics.fmean(c - r for c, r in zip(chosen, rejected, strict=True)),
        "score_mean": statistics.fmean(scores),
        "score_std": statistics.pstdev(scores),
    }
    ctx.emit(Metrics(stage=ctx.name, step=0, values=values, split="heldout"))
    if interval.low <= 0.5:
        so = "its evaluations would tell nothing" if _is_heldout(ctx) else "PPO would chase noise"
        ctx.warn(
            f"on {count} held-out pairs the reward model is right {right / count:.0%} of the time "
            f"(95% interval {interval.low:.0%} to {interval.high:.0%}): as far as this tells no better than a coin, so "
            f"{so}"
        )
    return values


def _write_probes(model: Any, folder: Path, *, pairs: list[dict[str, Any]], heldout: list[Row], pad: int) -> None:
    """Record the scores of a few held-out pairs in `folder`."""
    rows = [ids for pair in pairs[:_PROBE_PAIRS] for ids in (pair["chosen_ids"], pair["rejected_ids"])]
    # Keep the text too: export shows one example with its score.
    examples = [
        {"prompt": row["prompt"], "response": row[side]}
        for row in heldout[:_PROBE_PAIRS]
        for side in ("chosen", "rejected")
    ]
    scores = scoring.score_rows(model, rows, pad)
    probes.write_probes(folder, rows, scores, "scores", examples=examples)


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, base_path: str, ctx: Context) -> dict[str, str]:
    """Save the one reward model in the stage's folder; return its part of the layout."""
    if isinstance(model, PeftModel):
        with fs.publish_folder(ctx.folder / "adapter") as folder:
            recorded = recorded_base(ctx.parents["base"], base_path, ctx.run.root, ctx.name)
            adapters.save_adapter(model, folder, base=recorded, head=True)
            tokenizing.save_tokenizer(tokenizer, folder)
        return {"adapter": "adapter"}
    with fs.publish_folder(ctx.folder / "model") as folder:
        build.save_model(model, tokenizer, folder)
    return {"model": "model"}


def _reload_gap(tokenizer: PreTrainedTokenizerBase, ctx: Context) -> float:
    """Load the saved reward model and measure the largest gap between its scores and the recorded ones."""
    section = ctx.recipe.model
    reloaded: PreTrainedModel
    if (ctx.folder / "adapter").is_dir():
        reloaded = ctx.loader.scorer_from_adapter(ctx.parents["base"], ctx.folder / "adapter")
    else:
        reloaded = loading.load_scorer(str(ctx.folder / "model"), **loading.options(section))
    if not ctx.divides:
        build.to_device(reloaded)
    return probes.check_scores(reloaded, tokenizer.pad_token_id, ctx.folder / probes.PROBES, ctx.loader.precision)
