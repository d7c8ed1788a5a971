"""PPO: a policy that scores higher with the reward while staying near base*.

    base* ──────┬─▶ policy (LoRA adapter on it, or a copy) ──▶ responses ─┐
                └─▶ reference (adapter off, or a copy) ──▶ KL ────────────┤
    reward model ─┬─▶ score of each response ─────────────────────────────┼─▶ PPO updates ─▶ policy, critic
                  └─▶ critic at the start ──▶ values ─────────────────────┘

Reads base*, the reward (a model of this run, one from elsewhere, or a Python function) and `data.prompts`; writes
adapter/ or model/ (the policy), critic/, traces/, probes.json. The loop itself is the engine's: ours
(training/rl/loop.py) or TRL's (training/trl/ppo.py). Watching the policy as it goes is in evaluation.py.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel, TaskType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import Artifact
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.data.load import require_a_batch
from rlhfctl.errors import HandoffError
from rlhfctl.events import StageStarted
from rlhfctl.models import adapters, build, devices, heads, scoring, special_tokens, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.build import LoadedRewardModel, Resources, build_reward
from rlhfctl.rewards.episode import RewardFunction
from rlhfctl.stages import loader, probes
from rlhfctl.stages.context import Context
from rlhfctl.stages.evaluation import Evaluation
from rlhfctl.training.rl.loop import PpoLoop
from rlhfctl.training.rl.roles import Critic, Roles
from rlhfctl.training.trl import ppo

_STEP0_TOLERANCE = 1e-6  # nats a token, in float32: policy and reference are the same weights


@dataclass(frozen=True)
class Cast:
    """The roles as modules, whatever the engine. `reference` None: the policy with its adapter off."""

    policy: Any
    reference: PreTrainedModel | None
    critic: Critic
    reward: RewardFunction


def run(section: Ppo, ctx: Context) -> Artifact:
    """Train (or, with our engine, go on training) and publish the policy and its critic."""
    recipe, ours = ctx.recipe, section.engine == "rlhfctl"
    trl_config = None if ours else ppo.config_for(section, ctx.work, seed=recipe.seed)
    if ctx.options.get("restarted") and not ours:
        ctx.note("TRL's PPOTrainer cannot resume: PPO starts over from base*")

    # 1. Roles. Policy and reference are base*; the critic starts as the reward model, where there is one.
    base = ctx.loader.load_base(ctx.parents["base"], to_train=True)
    build.to_device(base.model)
    tokenizer = base.tokenizer
    cast = _cast(base, section, ctx)
    policy = LanguageModel(cast.policy, tokenizer.pad_token_id, adapters.POLICY if section.lora else None)

    # 2. Prompts to ids.
    split = ctx.data["prompts"].split
    room = (tokenizer, context_of(base.model.config), section.response_length, recipe.data, ctx.warn)
    rows, prompts = encode_prompts(split.train, *room)
    require_a_batch(len(prompts), section)
    _check_step_zero(policy, cast.reference, prompts, ctx)

    # 3. Train: rollout, score, KL, values, advantages, PPO epochs.
    eval_rows, eval_prompts = encode_prompts(split.eval, *room)
    evaluation = Evaluation(section, ctx, policy, cast.reference, cast.reward, tokenizer, eval_rows, eval_prompts)
    updates = math.ceil(section.total_episodes / section.batch_size)
    settings = section.model_dump(mode="json", exclude={"lora", "eval"}) | {"updates": updates, "prompts": len(prompts)}
    if ours:
        reference = (
            LanguageModel(cast.policy, tokenizer.pad_token_id, None)
            if cast.reference is None
            else LanguageModel(cast.reference, tokenizer.pad_token_id)
        )
        everyone = Roles(policy, reference, cast.critic)
        loop = PpoLoop(
            section,
            everyone,
            cast.reward,
            tokenizer,
            rows,
            prompts,
            seed=recipe.seed,
            work=ctx.work,
            emit=ctx.emit,
            say=ctx.warn,
            watcher=evaluation,
            settings=settings | {"critic": section.critic_kind} | everyone.sizes(),
        )
        policy.check_head([row for row in prompts[: scoring.PROBE_ROWS] if len(row) > 1])
        metrics = loop.train()
    else:
        trainable, total = build.count_parameters(cast.policy)
        settings |= {"policy_trainable": trainable, "policy_parameters": total}
        settings |= {"critic_trainable": build.count_parameters(cast.critic.scorer)[0]}
        ctx.emit(StageStarted(stage=ctx.name, total_steps=updates, settings=settings))
        if base.model.dtype.itemsize < 4:
            ctx.warn(f"TRL's PPOTrainer has no mixed precision: everything runs in {recipe.model.dtype}")
        trained = [w for w in (*cast.policy.parameters(), *cast.critic.scorer.parameters()) if w.requires_grad]
        if sentence := build.updates_lost_to_rounding(trained, section.learning_rate):
            ctx.warn(sentence)
        evaluation(0, updates)
        gc.freeze()  # TRL collects garbage twice an update; what is alive now need not be looked through each time
        metrics = ppo.train(
            trl_config,
            ppo.Roles(cast.policy, cast.reference, cast.critic.scorer, cast.reward),
            rows,
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
    policy.activate()
    layout = _publish(cast, tokenizer, base, [list(p) for p in prompts[: scoring.PROBE_ROWS]], ctx)
    return ctx.publish(
        section.model_dump(mode="json"),
        layout,
        metrics=metrics,
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )


# ---------------------------------------------------------------- who plays


def _cast(base: loader.Base, section: Ppo, ctx: Context) -> Cast:
    """Every role, on as few copies of base* as the recipe allows."""
    pad = base.tokenizer.pad_token_id
    # The reward model first: where it is a model of its own, and the critic a copy of it.
    shared = None
    if section.lora and section.critic_kind != "model":
        shared = loader.shared_reward_adapter(ctx.parents["base"], ctx.parents.get("reward"))
    classifier = ctx.loader.load_classifier(ctx.parents["reward"]) if "reward" in ctx.parents else None
    scorer, theirs = (None, None) if shared or classifier else _own_scorer(base, ctx)
    model_critic = _model_critic(base, scorer, theirs, ctx) if section.critic_kind == "model" else None

    policy, reference = _policy_and_reference(base.model, section, ctx)
    ours = LanguageModel(policy, pad, adapters.POLICY if section.lora else None)
    if shared is not None:
        head = heads.load_scorer_adapter(policy, adapters.REWARD, shared)
        scorer = AdapterScorer(LanguageModel(policy, pad, adapters.REWARD), head)
        ctx.loader.check_shared_scores(scorer, pad, ctx.parents["reward"])

    if model_critic is not None:
        critic = Critic(model_critic)
    elif section.critic_kind == "head":
        scores = AdapterScorer(ours, heads.new_head(policy))
        critic = Critic(scores, shares_policy=True, trains_trunk=section.critic_trains_trunk)
    else:
        critic = Critic(
            AdapterScorer(LanguageModel(policy, pad, adapters.CRITIC), _critic_adapter(policy, shared, ctx))
        )
    return Cast(policy, reference, critic, _reward(scorer, theirs, classifier, base.tokenizer, section, ctx))


def _policy_and_reference(base: PreTrainedModel, section: Ppo, ctx: Context) -> tuple[Any, PreTrainedModel | None]:
    """The policy with pad masked, and the reference: None means the policy with its adapter off."""
    pad = base.config.pad_token_id
    if section.lora is None:
        reference = build.copy_frozen(base)
        special_tokens.mask_pad(reference, pad)
        special_tokens.mask_pad(base, pad)
        return base, reference
    lora = section.lora
    if lora.lora_dropout:
        lora = lora.model_copy(update={"lora_dropout": 0.0})
        ctx.note("PPO runs without dropout: lora_dropout is 0 in this stage")
    policy = adapters.add_lora(base, lora, TaskType.CAUSAL_LM, seed=ctx.recipe.seed)
    special_tokens.mask_pad(policy, pad)
    return policy, None


def _own_scorer(base: loader.Base, ctx: Context) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    """The reward model as a model of its own (None: the reward is a function), and its tokenizer if it is another."""
    if "reward" not in ctx.parents:
        return None, None
    source = ctx.parents["reward"]
    assert ctx.recipe.ppo is not None
    if ctx.recipe.ppo.engine == "rlhfctl" and (theirs := ctx.loader.other_tokenizer(source, base.tokenizer)):
        ctx.note(f"the reward model {source.name} has a tokenizer of its own: it scores the text of the responses")
        return build.to_device(ctx.loader.load_reward_model(source, theirs)), theirs
    return build.to_device(ctx.loader.load_reward_model(source, base.tokenizer)), None


def _model_critic(base: loader.Base, scorer: PreTrainedModel | None, theirs: Any, ctx: Context) -> PreTrainedModel:
    """A critic of its own: the one named, a copy of the reward model, or (for a function) base* with a zero head."""
    if "critic" in ctx.parents:
        critic = ctx.loader.load_critic(ctx.parents["critic"]).to(devices.device())
    elif scorer is not None and theirs is None:
        critic = build.copy_frozen(scorer)
    else:
        if scorer is not None:
            ctx.note(
                "the reward model reads other tokens than the policy: the critic starts from base* with a zero head"
            )
        return heads.scorer_on(base.model, seed=ctx.recipe.seed, zero_head=True)
    critic.requires_grad_(True)
    return critic


def _critic_adapter(policy: PeftModel, shared: Path | None, ctx: Context) -> nn.Module:
    """Put the critic's adapter on `policy`: the one named, the reward model's, or a fresh one. Returns its head."""
    section = ctx.recipe.ppo
    assert section is not None and section.lora is not None
    start = loader.critic_adapter(ctx.parents["critic"]) if "critic" in ctx.parents else shared
    if start is not None:
        return heads.load_scorer_adapter(policy, adapters.CRITIC, start)
    if "reward" in ctx.parents:
        ctx.note("the reward model is no adapter on this base*: the critic starts as a fresh adapter with a zero head")
    adapters.add_adapter(policy, adapters.CRITIC, section.lora, seed=ctx.recipe.seed + 1)
    return heads.new_head(policy)


def _reward(
    scorer: Any,
    theirs: PreTrainedTokenizerBase | None,
    classifier: Classifier | None,
    tokenizer: PreTrainedTokenizerBase,
    section: Ppo,
    ctx: Context,
) -> RewardFunction:
    """The scorer of the reward section, or the weighted sum that ppo.rewards asks for."""
    model, load = classifier or scorer, None
    if model is not None:
        load = partial(LoadedRewardModel, model, tokenizer.pad_token_id, theirs)
    resources = replace(
        Resources.of(ctx.recipe),
        finite=section.engine == "trl",  # the other engine keeps the batch and goes back to a checkpoint
        batch_size=section.local_rollout_forward_batch_size,
        warn=ctx.warn,
        reward_model=load,
    )
    return build_reward(section.rewards, resources)


def _check_step_zero(
    policy: LanguageModel, reference: PreTrainedModel | None, prompts: list[list[int]], ctx: Context
) -> None:
    """Before the first update policy and reference must give the same log-probabilities."""
    rows = [row for row in prompts[: scoring.PROBE_ROWS] if len(row) > 1]
    policy.activate()
    ours = scoring.sequence_logprobs(policy.model, rows, policy.pad_token_id)
    if reference is None:
        with policy.model.disable_adapter():
            theirs = scoring.sequence_logprobs(policy.model, rows, policy.pad_token_id)
    else:
        theirs = scoring.sequence_logprobs(reference, rows, policy.pad_token_id)
    gap = max((abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)), default=0.0)
    if not gap <= _STEP0_TOLERANCE:
        raise HandoffError(
            f"policy and reference differ by {gap:.3g} nats a token before the first update: every KL would be wrong",
            where=str(ctx.parents["base"].name),
            fix="this is a defect: please report it with the recipe",
        )


# ---------------------------------------------------------------- what is left behind


def _publish(
    cast: Cast, tokenizer: PreTrainedTokenizerBase, base: loader.Base, rows: list[list[int]], ctx: Context
) -> dict[str, Any]:
    policy = cast.policy
    special_tokens.unmask_pad(policy)  # the recorded numbers are those of the plain model, as anyone will load it
    rows = [row for row in rows if len(row) > 1] or [[tokenizer.eos_token_id] * 2]
    probes.write_probes(ctx.folder, rows, scoring.sequence_logprobs(policy, rows, tokenizer.pad_token_id), "logprobs")
    special_tokens.set_token_ids(policy, tokenizer)
    recorded = loader.recorded_base(ctx.parents["base"], base.path, ctx.run.root)
    if isinstance(policy, PeftModel):
        name = "adapter"
        with fs.publish_folder(ctx.folder / name) as folder:
            adapters.save_adapter(policy, folder, base=recorded, head=False)
            tokenizing.save_tokenizer(tokenizer, folder)
    else:
        name = "model"
        with fs.publish_folder(ctx.folder / name) as folder:
            build.save_model(policy, tokenizer, folder)
    scorer = cast.critic.scorer
    with fs.publish_folder(ctx.folder / "critic") as folder:
        if isinstance(scorer, AdapterScorer) and isinstance(policy, PeftModel):
            scorer.save(folder, tokenizer, recorded)
        elif isinstance(scorer, AdapterScorer):  # a head on a policy that is trained whole
            whole = heads.scorer_on(policy, seed=0)
            whole.score.load_state_dict(scorer.score.state_dict())
            build.save_model(whole, tokenizer, folder)
        else:
            build.save_model(scorer, tokenizer, folder)
    return {name: name, "critic": "critic", "probes": probes.PROBES}
