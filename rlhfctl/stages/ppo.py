"""PPO: a policy that scores higher with the reward while staying near base*.

    base* ──────┬─▶ policy (LoRA adapter on it, or a copy) ──▶ responses ─┐
                └─▶ reference (adapter off, or a copy) ──▶ KL ────────────┤
    reward model ─┬─▶ score of each response ─────────────────────────────┼─▶ PPO updates ─▶ policy, critic
                  └─▶ critic at the start ──▶ values ─────────────────────┘

Reads base*, the reward (a model of this run, one from elsewhere, or a Python function) and `data.prompts`; writes
adapter/ or model/ (the policy), critic/, probes.json. Watches the policy on the eval prompts as it goes; gold is
logged there where the task has it, and decides nothing. The loop itself is the engine's (ppo.engine).
"""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.errors import DataError, HandoffError
from rlhfctl.events import Metrics, Sample, StageStarted
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards import Reward, make_episode
from rlhfctl.rewards.function import FunctionReward
from rlhfctl.rewards.model import ModelReward
from rlhfctl.stages import Context, handoff
from rlhfctl.training import models, ppo_trl, rollout
from rlhfctl.training.data import Row, split_prompts
from rlhfctl.training.encoding import Encoder

_PROBE_ROWS = 8
_EVAL_SAMPLES_SHOWN = 1
_STEP0_TOLERANCE = 1e-6  # nats a token, in float32: policy and reference are the same weights


def run(section: Ppo, ctx: Context) -> Artifact:
    """Train and publish the policy and its critic."""
    began = time.monotonic()
    recipe = ctx.recipe
    if ctx.options.get("restarted"):
        ctx.note("TRL's PPOTrainer cannot resume: PPO starts over from base*")

    # 1. Roles. Policy and reference are base*; the critic starts as the reward model.
    config = ppo_trl.config_for(section, ctx.work, seed=recipe.seed, report_to=recipe.report_to)
    base = handoff.load_base(ctx, ctx.parents["base"])
    base.model.to(models.device())
    tokenizer = base.tokenizer
    reward, critic = _reward_and_critic(base, ctx)  # first: the policy's adapter goes into base*'s own layers
    policy, reference = _policy_and_reference(base.model, section, ctx)

    # 2. Prompts to ids.
    assert recipe.data.prompts is not None  # the schema asks for it
    split = split_prompts(recipe.data.prompts, ctx.data["prompts"].rows, recipe.seed)
    train_rows, prompts = encode_prompts(split.train, tokenizer, base.model, section.response_length, ctx)
    if len(prompts) < section.per_device_train_batch_size:
        raise DataError(
            f"{len(prompts)} training prompts do not fill one batch of {section.per_device_train_batch_size}",
            where="ppo.per_device_train_batch_size",
            fix="lower it, or give more prompts",
        )
    _check_step_zero(policy, reference, prompts, tokenizer, ctx)

    # 3. Train: rollout, score, KL, values, advantages, PPO epochs.
    evaluation = Evaluation(section, ctx, policy, reference, reward, tokenizer)
    evaluation.rows, evaluation.prompts = encode_prompts(
        split.eval, tokenizer, base.model, section.response_length, ctx
    )
    trainable, total = models.count_parameters(policy)
    updates = math.ceil(section.total_episodes / section.per_device_train_batch_size)
    settings = section.model_dump(mode="json", exclude={"lora", "eval"}) | {"updates": updates, "prompts": len(prompts)}
    settings |= {"policy_trainable": trainable, "policy_parameters": total}
    settings |= {"critic_trainable": models.count_parameters(critic)[0]}
    ctx.emit(StageStarted(stage=ctx.name, total_steps=updates, settings=settings))
    if base.model.dtype.itemsize < 4:
        ctx.warn(f"TRL's PPOTrainer has no mixed precision: everything runs in {recipe.model.dtype}")
    evaluation(0, updates)
    gc.freeze()  # TRL collects garbage twice an update; what is alive now need not be looked through each time
    metrics = ppo_trl.train(
        config,
        ppo_trl.Roles(policy, reference, critic, reward),
        train_rows,
        prompts,
        tokenizer,
        emit=ctx.emit,
        after_update=evaluation,
    )
    gc.unfreeze()
    metrics["updates"] = updates
    if section.use == "best":
        metrics["best_update"] = evaluation.restore_best()
    metrics |= evaluation.closing

    # 4. Save both, and what the policy gives, for those who load it.
    layout = _publish(policy, critic, tokenizer, base, [list(p) for p in prompts[:_PROBE_ROWS]], ctx)
    return ctx.publish(
        section.model_dump(mode="json"),
        layout,
        seconds=time.monotonic() - began,
        metrics=metrics,
        tokenizer=models.tokenizer_fingerprint(tokenizer),
        chat_template=models.template_fingerprint(tokenizer),
    )


def _policy_and_reference(base: PreTrainedModel, section: Ppo, ctx: Context) -> tuple[Any, PreTrainedModel | None]:
    """The policy with pad masked, and the reference: None means the policy with its adapter off."""
    pad = base.config.pad_token_id
    if section.lora is None:
        reference = models.copy_frozen(base)
        models.mask_pad(reference, pad)
        models.mask_pad(base, pad)
        return base, reference
    lora = section.lora
    if lora.lora_dropout:
        lora = lora.model_copy(update={"lora_dropout": 0.0})
        ctx.note("PPO runs without dropout: lora_dropout is 0 in this stage")
    policy = models.add_lora(base, lora, TaskType.CAUSAL_LM, seed=ctx.recipe.seed)
    models.mask_pad(policy, pad)
    return policy, None


def _reward_and_critic(base: handoff.Base, ctx: Context) -> tuple[Reward, PreTrainedModel]:
    """The scorer, and a critic that starts as the reward model (or, for a function, as base* with a zero head)."""
    section, tokenizer = ctx.recipe.reward, base.tokenizer
    if "reward" not in ctx.parents:
        assert section is not None and section.function is not None
        folder = Path(ctx.recipe.folder or ".")
        critic = models.scorer_on(base.model, seed=ctx.recipe.seed, zero_head=True)
        return FunctionReward(section.function, folder), critic
    model = handoff.load_reward_model(ctx, ctx.parents["reward"], tokenizer).to(models.device())
    reward_model = models.copy_frozen(model)
    model.requires_grad_(True)
    return ModelReward(reward_model, tokenizer.pad_token_id), model


def encode_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, model: Any, response_length: int, ctx: Context
) -> tuple[list[Row], list[list[int]]]:
    """Rows and their prompt ids; prompts too long for the context are dropped or cut (at their start), and counted."""
    data = ctx.recipe.data
    context = getattr(model.config, "max_position_embeddings", None)
    limit = data.max_prompt_length or (context - response_length if context else None)
    if limit is not None and limit <= 0:
        raise DataError(
            f"a response of {response_length} tokens leaves no room for a prompt in a context of {context}",
            where="ppo.response_length",
            fix="lower it",
        )
    encoder = Encoder(tokenizer)
    kept, prompts, overlong = [], [], 0
    for row in rows:
        ids = encoder.prompt(row["prompt"])
        if limit is not None and len(ids) > limit:
            overlong += 1
            if data.overlong_prompts == "drop":
                continue
            ids = ids[-limit:]
        kept.append(row)
        prompts.append(ids)
    if overlong:
        done = "dropped" if data.overlong_prompts == "drop" else "cut at their start"
        ctx.warn(f"{overlong} of {len(rows)} prompts are longer than {limit} tokens and are {done}")
    if rows and not prompts:
        raise DataError("no prompt fits", where="data.max_prompt_length", fix="raise it, or lower ppo.response_length")
    return kept, prompts


def _check_step_zero(
    policy: Any, reference: Any, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase, ctx: Context
) -> None:
    """Before the first update policy and reference must give the same log-probabilities."""
    rows = [row for row in prompts[:_PROBE_ROWS] if len(row) > 1]
    ours = models.sequence_logprobs(policy, rows, tokenizer.pad_token_id)
    if reference is None:
        with policy.disable_adapter():
            theirs = models.sequence_logprobs(policy, rows, tokenizer.pad_token_id)
    else:
        theirs = models.sequence_logprobs(reference, rows, tokenizer.pad_token_id)
    gap = max((abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)), default=0.0)
    if not gap <= _STEP0_TOLERANCE:
        raise HandoffError(
            f"policy and reference differ by {gap:.3g} nats a token before the first update: every KL would be wrong",
            where=str(ctx.parents["base"].name),
            fix="this is a defect: please report it with the recipe",
        )


class Evaluation:
    """Every `ppo.eval.every` updates: sample on the eval prompts, score, log, and remember the best policy."""

    def __init__(
        self,
        section: Ppo,
        ctx: Context,
        policy: Any,
        reference: Any,
        reward: Reward,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.section = section
        self.ctx = ctx
        self.policy = policy
        self.reference = reference
        self.reward = reward
        self.tokenizer = tokenizer
        self.rows: list[Row] = []
        self.prompts: list[list[int]] = []
        self.closing: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.best_values: dict[str, float] = {}
        self.best_folder = ctx.work / "best"
        self._references: list[str] = []  # what the reference answers, for the samples shown

    def __call__(self, update: int, total: int) -> None:
        every = self.section.eval.every
        if not every or not self.prompts or (update % every and update != total):
            return
        section, pad = self.section, self.tokenizer.pad_token_id
        sampling = rollout.Sampling(
            section.response_length, section.temperature, section.local_rollout_forward_batch_size, self.ctx.recipe.seed
        )
        responses = rollout.sample(self.policy, self.prompts, self.tokenizer, sampling)
        ids = [response.ids for response in responses]
        episodes = [
            make_episode(self.tokenizer, row, prompt, response)
            for row, prompt, response in zip(self.rows, self.prompts, ids, strict=True)
        ]
        scores = self.reward(episodes)
        kl = self._kl(ids, pad)
        values = {
            "eval_score": statistics.fmean(scores),
            "eval_kl": statistics.fmean(kl),
            "eval_objective": statistics.fmean(scores) - section.kl_coef * statistics.fmean(kl),
            "eval_length": statistics.fmean(len(response) for response in ids),
            "eval_eos_rate": statistics.fmean(response.ended for response in responses),
        }
        if gold := self._gold([episode.prompt for episode in episodes], [episode.completion for episode in episodes]):
            values["eval_gold"] = statistics.fmean(gold)
        self.closing = values
        self.ctx.emit(Metrics(stage=self.ctx.name, step=update, total=total, values=values, split="eval"))
        if update == 0:
            self._references = [str(episode.completion) for episode in episodes]
        for index in range(min(_EVAL_SAMPLES_SHOWN, len(episodes))):
            self.ctx.emit(
                Sample(
                    stage=self.ctx.name,
                    step=update,
                    prompt=str(episodes[index].prompt),
                    response=str(episodes[index].completion),
                    reference=self._references[index] if self._references else None,
                    scores={"score": scores[index]},
                )
            )
        if section.use == "best" and (self.best is None or values["eval_objective"] > self.best[0]):
            self.best = (values["eval_objective"], update)
            self.best_values = values
            with fs.publish_folder(self.best_folder) as folder:
                self.policy.save_pretrained(folder)

    def _kl(self, responses: list[list[int]], pad: int) -> list[float]:
        temperature = self.section.temperature
        if self.reference is not None:
            return rollout.exact_kl(self.policy, self.reference, self.prompts, responses, pad, temperature=temperature)
        adapter_off = rollout.WithoutAdapter(self.policy)
        return rollout.exact_kl(self.policy, adapter_off, self.prompts, responses, pad, temperature=temperature)

    def _gold(self, prompts: list[Any], completions: list[Any]) -> list[float]:
        source = self.ctx.recipe.data.prompts
        if source is None or not source.builtin:
            return []
        from rlhfctl.world import gold

        return gold.score(prompts, completions)

    def restore_best(self) -> float:
        """Put the best policy's weights back. Returns the update they are from."""
        assert self.best is not None
        score, update = self.best
        models.load_weights(self.policy, self.best_folder)
        self.closing = self.best_values  # the manifest's figures are those of the policy that is handed on
        self.ctx.note(
            f"the best policy on the eval prompts is that of update {update} (objective {score:.4g}): it is used"
        )
        shutil.rmtree(self.best_folder)
        return float(update)


def _publish(
    policy: Any,
    critic: Any,
    tokenizer: PreTrainedTokenizerBase,
    base: handoff.Base,
    rows: list[list[int]],
    ctx: Context,
) -> dict[str, Any]:
    models.unmask_pad(policy)  # the recorded numbers are those of the plain model, as anyone will load it
    rows = [row for row in rows if len(row) > 1] or [[tokenizer.eos_token_id] * 2]
    handoff.write_probes(ctx.folder, rows, models.sequence_logprobs(policy, rows, tokenizer.pad_token_id), "logprobs")
    models.set_token_ids(policy, tokenizer)
    if isinstance(policy, PeftModel):
        name = "adapter"
        with fs.publish_folder(ctx.folder / name) as folder:
            models.save_adapter(policy, folder, base=handoff.recorded_base(ctx, ctx.parents["base"], base), head=False)
            models.save_tokenizer(tokenizer, folder)
    else:
        name = "model"
        with fs.publish_folder(ctx.folder / name) as folder:
            models.save_model(policy, tokenizer, folder)
    with fs.publish_folder(ctx.folder / "critic") as folder:
        models.save_model(critic, tokenizer, folder)
    return {name: name, "critic": "critic", "probes": handoff.PROBES}
