"""Train the policy with PPO: it gets higher rewards while it stays near base*.

    base* ──────┬─▶ policy (LoRA adapter on it, or a copy) ──▶ responses ─┐
                └─▶ reference (adapter off, or a copy) ──▶ KL ────────────┤
    reward model ─┬─▶ score of each response ─────────────────────────────┼─▶ PPO updates ─▶ policy, critic
                  └─▶ critic at the start ──▶ values ─────────────────────┘

Reads base*, the reward (a model of this run, one from elsewhere, or a Python function) and `data.prompts`; the held-out
reward model, where there is one, scores evaluations alone. Writes
adapter/ or model/ (the policy), critic/, traces/, probes.json. Leaves out the training loop, which is the engine's:
rlhfctl's (training/rl/loop.py) or TRL's (training/trl/ppo.py), and evaluation during training (evaluation.py).

Longer than 400 lines because loading the roles, dividing them and publishing them read the same parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, Source, load_artifact
from rlhfctl.data.fitting import encode_prompts
from rlhfctl.data.load import require_a_batch
from rlhfctl.errors import HandoffError
from rlhfctl.events import StageStarted
from rlhfctl.generation import static_decoder
from rlhfctl.generation.slots import generator_for
from rlhfctl.models import adapters, build, devices, heads, scoring, sharding, special_tokens, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.ensembles import Ensemble
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.processes import Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.recipe.sections.scorers import HELDOUT, REWARD
from rlhfctl.rewards.build import LoadedRewardModel, Resources, build_reward, build_scorer
from rlhfctl.rewards.episode import RewardFunction
from rlhfctl.rewards.prompted_classifier import unnormalized
from rlhfctl.stages import loader, outcomes, probes, prompted, ptx_rows
from rlhfctl.stages.context import Context
from rlhfctl.stages.evaluation import Evaluation
from rlhfctl.stages.policy_files import publish_policy, recorded_base
from rlhfctl.training.rl.algorithms import ALGORITHMS
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.loop import PpoLoop, Run
from rlhfctl.training.rl.outcome_critic import OutcomeCritic
from rlhfctl.training.rl.pretraining import Pretraining
from rlhfctl.training.rl.roles import Roles, build_roles, scorer_beside, shares_base
from rlhfctl.training.trl import ppo

_STEP0_TOLERANCE = 1e-6  # nats per token, in float32: policy and reference are the same weights


def run(section: Ppo, ctx: Context) -> Artifact:
    """Train the policy and its critic, and publish both; rlhfctl's engine resumes from checkpoints."""
    recipe = ctx.recipe
    if section.engine == "trl":
        ppo.require()
        if ctx.options.get("restarted"):
            ctx.note("TRL's PPOTrainer cannot resume: PPO starts over from base*")

    # 1. Roles. Policy and reference are base*; the critic starts as the reward model, where there is one.
    base = ctx.loader.load_base(ctx.parents["base"], to_train=True)
    divided = ctx.divides and Processes.here().count > 1
    if not divided:
        build.to_device(base.model)
    tokenizer, pad = base.tokenizer, base.tokenizer.pad_token_id
    parents, needs_critic = ParentModels(ctx, section, tokenizer), ALGORITHMS[section.trains_by].needs_critic
    roles, model = build_roles(section, base.model, pad, parents, seed=recipe.seed, needs_critic=needs_critic)
    reward = _reward(model.scorer, model.tokenizer, model.classifier, tokenizer, section, ctx)
    heldout, heldout_scorer = _heldout_reward(roles, tokenizer, section, ctx)
    if divided:  # only now: all adapters are on the base
        _shard(roles, [model.scorer, heldout_scorer], model.classifier, ctx)

    # 2. Prompts to ids.
    split = ctx.data["prompts"].split
    room = (tokenizer, context_of(base.model.config), section.response_length, recipe.data, ctx.warn)
    classifier = None if recipe.reward is None else recipe.reward.prompted_classifier
    rows, prompts = prompted.few_shot(*encode_prompts(split.train, *room), classifier)
    require_a_batch(len(prompts), section)
    _check_step_zero(roles, prompts, ctx)
    if (start := _start(ctx)) is not None:
        before = _before(ctx)
        own = "" if before is None else f", after {before.manifest.section['total_episodes']} episodes"
        ctx.note(f"the policy goes on from {start.manifest.stage}{own}; the KL is measured from base*")

    # 3. Train: rollout, score, KL, values, advantages, PPO epochs.
    eval_rows, eval_prompts = encode_prompts(split.eval, *room)
    questions, generator = PromptData(tokenizer, eval_rows, eval_prompts), generator_for(section.sampler)
    evaluation = Evaluation(
        section, ctx, roles, unnormalized(reward), questions, heldout, generator, processes=Processes.here()
    )
    settings = section.model_dump(mode="json", exclude={"lora", "eval"})
    settings |= {"updates": section.updates, "prompts": len(prompts), "learned_reward": _is_learned(section, ctx)}
    data = PromptData(tokenizer, rows, prompts)
    outcome_critic, measures = outcomes.prepare(section, base.model, roles, data, reward, ctx)
    texts = ctx.data[section.ptx.data].demonstrations.train if section.ptx is not None else ()
    context = context_of(base.model.config)
    ptx = ptx_rows.prepare(section, texts, tokenizer, context, seed=recipe.seed, warn=ctx.warn)
    if section.engine == "trl":
        metrics = _train_with_trl(section, roles, reward, data, evaluation, settings, ctx)
    else:
        metrics = _train(section, roles, reward, data, evaluation, settings, ctx, outcome_critic, ptx)
    metrics |= measures
    if divided:
        sharding.reunite(roles.modules(), here=ctx.first)
    ctx.leave_to_first()
    metrics["updates"] = section.updates
    if section.use == "best":
        metrics["best_update"] = evaluation.restore_best()
    metrics |= evaluation.closing

    # 4. Save both, and record outputs of the policy for later loads.
    roles.policy.activate()
    layout = _publish(roles, tokenizer, base, [list(p) for p in prompts[: scoring.PROBE_ROWS]], ctx)
    layout |= outcomes.publish(outcome_critic, tokenizer, ctx)
    return ctx.publish(
        section.model_dump(mode="json"),
        layout,
        metrics=metrics,
        tokenizer=tokenizing.tokenizer_fingerprint(tokenizer),
        chat_template=tokenizing.template_fingerprint(tokenizer),
    )


def can_extend(made: Artifact, section: Ppo) -> bool:
    """Tell whether a finished PPO can go on with more episodes: by our engine, with all that the algorithm had learned.

    A critic must have been saved whole. An algorithm that reads what earlier updates left begins again, and so does
    `use: best` or an average of the weights, where what is handed on is not where training ended. A KL coefficient or a
    scale of scores that moved is kept in checkpoints alone, so such a training begins again, too.
    """
    if section.ema_decay is not None or section.kl_target is not None or section.normalize_scores is not None:
        return False
    algorithm = ALGORITHMS[section.trains_by]
    whole = section.critic_kind in ("adapter", "model", "reward") and made.has("critic")
    return section.engine == "rlhfctl" and section.use == "last" and (whole or algorithm.goes_on_from_policy)


def _before(ctx: Context) -> Artifact | None:
    """Return the finished PPO that this one goes on from, because `total_episodes` was raised; None without one."""
    return load_artifact(Path(ctx.options["extends"])) if "extends" in ctx.options else None


def _is_learned(section: Ppo, ctx: Context) -> bool:
    """Tell whether a reward model is among the rewards: trained here, ready, or named by the command."""
    return "reward" in ctx.parents and (section.rewards is None or REWARD in section.rewards)


# ---------------------------------------------------------------- the engines


def _train(
    section: Ppo,
    roles: Roles,
    reward: RewardFunction,
    data: PromptData,
    evaluation: Evaluation,
    settings: dict[str, Any],
    ctx: Context,
    outcome_critic: OutcomeCritic | None = None,
    ptx: Pretraining | None = None,
) -> dict[str, float]:
    """Train with rlhfctl's loop, which resumes from its checkpoints."""
    settings = settings | {"critic": section.critic_kind if roles.critic else None} | roles.sizes()
    settings |= Processes.here().settings()
    before = _before(ctx)
    first = 0 if before is None else int(before.manifest.metrics["updates"])
    here = (ctx.recipe.seed, ctx.work, ctx.emit, ctx.warn, ctx.name)
    run = Run(*here, settings=settings, first=first, processes=Processes.here())
    if section.sampler == "slots" and not static_decoder.supports(roles.policy):
        ctx.note(f"{roles.policy.config.model_type} cannot be sampled in slots: it is sampled batch by batch")
    loop = PpoLoop(
        section,
        roles,
        reward,
        data,
        run,
        evaluation,
        algorithm=section.trains_by,
        generator=generator_for(section.sampler),
        outcome_critic=outcome_critic,
        pretraining=ptx,
    )
    roles.policy.check_head([row for row in data.prompts[: scoring.PROBE_ROWS] if len(row) > 1])
    return loop.train()


def _train_with_trl(
    section: Ppo,
    roles: Roles,
    reward: RewardFunction,
    data: PromptData,
    evaluation: Evaluation,
    settings: dict[str, Any],
    ctx: Context,
) -> dict[str, float]:
    """Train with TRL's PPOTrainer from the first update."""
    assert roles.critic is not None
    policy, critic = roles.policy.model, roles.critic.scorer
    trainable, total = build.count_parameters(policy)
    settings = settings | {"policy_trainable": trainable, "policy_parameters": total}
    settings |= {"critic_trainable": build.count_parameters(critic)[0]}
    ctx.emit(StageStarted(stage=ctx.name, total_steps=section.updates, settings=settings))
    if roles.policy.head.weight.dtype.itemsize < 4:
        ctx.warn(f"TRL's PPOTrainer has no mixed precision: everything runs in {ctx.recipe.model.dtype}")
    trained = [w for w in (*policy.parameters(), *critic.parameters()) if w.requires_grad]
    if sentence := build.updates_lost_to_rounding(trained, section.learning_rate):
        ctx.warn(sentence)
    evaluation(0, section.updates)
    config = ppo.config_for(section, ctx.work, seed=ctx.recipe.seed)
    return ppo.train(config, roles, reward, data, emit=ctx.emit, stage=ctx.name, after_update=evaluation)


# ---------------------------------------------------------------- models and the reward


@dataclass(frozen=True)
class ParentModels:
    """Load the models that PPO starts from: those of the stage's parents, or those that the recipe names instead."""

    ctx: Context
    section: Ppo
    tokenizer: PreTrainedTokenizerBase

    @property
    def has_reward(self) -> bool:
        return "reward" in self.ctx.parents

    def shared_reward_adapters(self) -> list[Path]:
        return loader.shared_reward_adapters(self.ctx.parents["base"], self.ctx.parents.get("reward"))

    def ensemble(self, members: Sequence[AdapterScorer]) -> Ensemble:
        given = self.ctx.loader
        return Ensemble(members, given.aggregate, given.variance_coefficient)

    def check_shared_reward(self, scorer: AdapterScorer | Ensemble) -> None:
        self.ctx.loader.check_shared_scores(scorer, self.tokenizer.pad_token_id, self.ctx.parents["reward"])

    def classifier(self) -> Classifier | None:
        return self.ctx.loader.load_classifier(self.ctx.parents["reward"])

    def reward_model(self) -> tuple[PreTrainedModel | Ensemble, PreTrainedTokenizerBase | None]:
        ctx, source = self.ctx, self.ctx.parents["reward"]
        own = ctx.loader.other_tokenizer(source, self.tokenizer) if self.section.engine == "rlhfctl" else None
        if own is not None:
            ctx.note(f"the reward model {source.name} has a tokenizer of its own: it scores the text of the responses")
        model = ctx.loader.load_reward_model(source, own or self.tokenizer)
        return model if isinstance(model, Ensemble) else build.to_device(model), own

    def critic_model(self) -> PreTrainedModel | None:
        source = self._critic()
        return self._first_member() if source is None else self.ctx.loader.load_critic(source).to(devices.device())

    def _first_member(self) -> PreTrainedModel | None:
        """Load the first member of an ensemble as a model of its own: the critic starts as it."""
        ctx, source = self.ctx, self.ctx.parents.get("reward")
        artifact = source.artifact if source is not None else None
        if source is None or artifact is None or len(loader.member_folders(artifact)) < 2:
            return None
        if ctx.loader.other_tokenizer(source, self.tokenizer) is not None:
            return None
        model = ctx.loader.load_reward_model(source, self.tokenizer, whole=False)
        assert isinstance(model, PreTrainedModel)
        return build.to_device(model)

    def critic_adapter(self) -> Path | None:
        source = self._critic()
        return None if source is None else loader.critic_adapter(source)

    def critic_head(self, scorer: Any, /) -> nn.Linear | None:
        source = self._critic()
        if source is None:
            return None
        if isinstance(scorer, AdapterScorer):
            return heads.head_on_same_adapter(scorer, loader.critic_adapter(source))
        return heads.head_on_same_trunk(scorer, self.ctx.loader.load_critic(source).to(devices.device()))

    def _critic(self) -> Source | None:
        before = _before(self.ctx)
        return self.ctx.parents.get("critic") if before is None else Source.of(before)

    def start_adapter(self) -> Path | None:
        artifact = _start(self.ctx)
        if artifact is None:
            return None
        loader.verify(artifact)
        return artifact.part("adapter")

    def start_model(self) -> PreTrainedModel | None:
        artifact = _start(self.ctx)
        return None if artifact is None else self.ctx.loader.load_base(Source.of(artifact)).model

    def note(self, message: str, /) -> None:
        self.ctx.note(message)


def _reward(
    scorer: Any,
    reward_tokenizer: PreTrainedTokenizerBase | None,
    classifier: Classifier | None,
    tokenizer: PreTrainedTokenizerBase,
    section: Ppo,
    ctx: Context,
) -> RewardFunction:
    """Return the scorer of the reward section, or the weighted sum that `ppo.rewards` configures."""
    model, load = classifier or scorer, None
    if model is not None:
        load = partial(LoadedRewardModel, model, tokenizer.pad_token_id, reward_tokenizer)
    resources = replace(
        Resources.of(ctx.recipe),
        finite=section.engine == "trl",  # rlhfctl's engine keeps the batch and returns to a checkpoint
        batch_size=section.local_rollout_forward_batch_size,
        warn=ctx.warn,
        reward_model=load,
        processes=Processes.here(),
        models=partial(loader.load_named_model, ctx.loader, ctx.recipe, tokenizer),
        prompted=prompted.loader_of(ctx, section.local_rollout_forward_batch_size),
    )
    return build_reward(section.rewards, resources)


def _heldout_reward(
    roles: Roles, tokenizer: PreTrainedTokenizerBase, section: Ppo, ctx: Context
) -> tuple[RewardFunction | None, Any]:
    """Return the scorer that evaluations report and PPO never trains on, and its model; Nones without
    `reward.heldout`."""
    source = ctx.parents.get("heldout")
    if source is None:
        return None, None
    shared = loader.shared_reward_adapters(ctx.parents["base"], source) if shares_base(section) else []
    if shared:
        scorer: Any = scorer_beside(roles.policy, adapters.HELDOUT, shared[0])
        ctx.loader.check_shared_scores(scorer, tokenizer.pad_token_id, source)
    else:
        scorer = ctx.loader.load_scoring_model(source, tokenizer).model
    resources = replace(
        Resources.of(ctx.recipe),
        batch_size=section.local_rollout_forward_batch_size,
        warn=ctx.warn,
        heldout=partial(LoadedRewardModel, scorer, tokenizer.pad_token_id),
        processes=Processes.here(),
    )
    return build_scorer(HELDOUT, resources), scorer


def _shard(roles: Roles, scorers: Sequence[Any], classifier: Classifier | None, ctx: Context) -> None:
    """Divide the weights of all models over the processes, and say what part of them each process then holds."""
    roles.prepare()
    models: list[Any] = [*roles.modules()]
    for scorer in scorers:
        for member in scorer if isinstance(scorer, Ensemble) else [scorer]:
            if isinstance(member, AdapterScorer):  # its trunk may be a base beside the policy's
                models += [member, member.backbone.shared.model]
            elif isinstance(member, PreTrainedModel):
                models.append(member.requires_grad_(False))
    models = list({id(model): model for model in models}.values())
    sharding.shard(models)
    if classifier is not None:
        ctx.note("the classifier that scores responses is whole in every process: launch.shard divides the others")
        models.append(classifier.model)
    ctx.note(sharding.told(models))


def _start(ctx: Context) -> Artifact | None:
    """Return the policy that this one goes on from: its own of fewer episodes, or that of the round before."""
    if (before := _before(ctx)) is not None:
        return before
    source = ctx.parents.get("start")
    return source.artifact if source is not None else None


def _check_step_zero(roles: Roles, prompts: Sequence[list[int]], ctx: Context) -> None:
    """Check the policy before the first update: it equals the reference, or the policy of the round before."""
    if (start := _start(ctx)) is not None:
        model, pad = roles.policy.model, roles.policy.pad_token_id
        roles.policy.activate()
        special_tokens.unmask_pad(model)  # the numbers were recorded so
        probes.check_logprobs(model, pad, start.part("probes"), ctx.loader.precision)
        special_tokens.mask_pad(model, pad)
        return
    rows = [row for row in prompts[: scoring.PROBE_ROWS] if len(row) > 1]
    given = []
    for role in (roles.reference, roles.policy):
        role.activate()
        given.append(scoring.sequence_logprobs(role.model, rows, role.pad_token_id))
    gap = max((abs(a - b) for x, y in zip(*given, strict=True) for a, b in zip(x, y, strict=True)), default=0.0)
    if not gap <= _STEP0_TOLERANCE:
        raise HandoffError(
            f"policy and reference differ by {gap:.3g} nats per token before the first update: every KL would be wrong",
            where=str(ctx.parents["base"].name),
            fix="this is a defect: please report it with the recipe",
        )


# ---------------------------------------------------------------- publishing


def _publish(
    roles: Roles, tokenizer: PreTrainedTokenizerBase, base: loader.Base, rows: list[list[int]], ctx: Context
) -> dict[str, Any]:
    """Save the policy, its critic and recorded outputs for a few rows; return the layout of these parts."""
    policy = roles.policy.model
    special_tokens.unmask_pad(policy)  # record the numbers of the plain model, which other tools will load
    layout = publish_policy(policy, tokenizer, base, rows, ctx)
    if roles.critic is None:
        return layout
    scorer = roles.critic.scorer
    with fs.publish_folder(ctx.folder / "critic") as folder:
        if isinstance(scorer, AdapterScorer) and isinstance(policy, PeftModel):
            scorer.save(folder, tokenizer, recorded_base(base, ctx))
        elif isinstance(scorer, AdapterScorer):  # a value head on a policy without an adapter
            whole = heads.scorer_on(policy, seed=0)
            whole.score.load_state_dict(scorer.score.state_dict())
            build.save_model(whole, tokenizer, folder)
        else:
            build.save_model(scorer, tokenizer, folder)
    return layout | {"critic": "critic"}
