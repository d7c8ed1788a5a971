"""Run the `trl` engine: TRL's own PPOTrainer with rlhfctl's roles, prompts and rewards.

TRL's trainer takes token ids and a reward *model*. This bridge lets any reward of rewards/ score its rollouts: text,
conversations and the prompt file's columns reach a Python function. Nothing in TRL is patched. The recipe's schema and
the ppo stage refuse settings that this trainer does not support (resuming, accumulating gradients).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerControl, TrainerState, TrainingArguments

from rlhfctl.data.types import Row
from rlhfctl.errors import EngineError
from rlhfctl.events import Event
from rlhfctl.metrics import trl_names
from rlhfctl.models.tensors import pad_left
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.episode import Episode, RewardFunction, make_episode
from rlhfctl.stats.repetition import repetition
from rlhfctl.training.history import closing_means
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.roles import Roles
from rlhfctl.training.trl import LAST_TRL
from rlhfctl.training.trl.callback import NOT_METRICS, EventCallback


def require() -> Any:
    """Import TRL's (PPOTrainer, PPOConfig); EngineError if the installed release has none."""
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError as error:
        import trl

        raise EngineError(
            f"the installed TRL {trl.__version__} has no PPOTrainer: TRL removed it after {LAST_TRL}",
            where="ppo.engine: trl",
            fix=f"pip install 'trl=={LAST_TRL}'",
        ) from error
    return PPOTrainer, PPOConfig


def config_for(section: Ppo, work: Path, *, seed: int) -> Any:
    """Make TRL's PPOConfig from the recipe's section. Options that have no effect in TRL's trainer are turned off."""
    _, config_class = require()
    return config_class(
        output_dir=str(work),
        seed=seed,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        bf16=False,
        gradient_checkpointing=False,
        total_episodes=section.total_episodes,
        per_device_train_batch_size=section.per_device_train_batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        local_rollout_forward_batch_size=section.local_rollout_forward_batch_size,
        num_mini_batches=section.num_mini_batches,
        num_ppo_epochs=section.num_ppo_epochs,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.lr_scheduler_type,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        response_length=section.response_length,
        temperature=section.temperature,
        stop_token=section.stop_token,
        missing_eos_penalty=section.missing_eos_penalty,
        kl_coef=section.kl_coef,
        kl_estimator=section.kl_estimator,
        whiten_rewards=section.whiten_rewards,
        cliprange=section.cliprange,
        vf_coef=section.vf_coef,
        cliprange_value=section.cliprange_value,
        gamma=section.gamma,
        lam=section.lam,
    )


def train(
    config: Any,
    roles: Roles,
    reward: RewardFunction,
    data: PromptData,
    *,
    emit: Callable[[Event], None],
    stage: str = "ppo",
    after_update: Callable[[int, int], None] = lambda update, total: None,
) -> dict[str, float]:
    """Run TRL's PPOTrainer over the prompts of `data`; policy and critic of `roles` are trained in place.

    Events are emitted under the name of `stage`. `after_update(update, total)` is called after every update. Returns
    the mean of each metric over the last tenth of the updates.
    """
    trainer_class, _ = require()
    assert roles.critic is not None
    tokenizer, prompts = data.tokenizer, data.prompts
    rollouts = RolloutBatches(data.rows, tokenizer)
    callback = PpoCallback(stage, emit, Path(config.output_dir), rollouts, after_update)
    trainer = trainer_class(
        args=config,
        processing_class=tokenizer,
        model=roles.policy.model,
        ref_model=None if roles.reference.model is roles.policy.model else roles.reference.model,
        reward_model=BridgedReward(reward, rollouts),
        value_model=roles.critic.scorer,
        train_dataset=Dataset.from_dict(
            {"input_ids": [list(ids) for ids in prompts], "row": list(range(len(prompts)))}
        ),
        data_collator=lambda features: collate(features, tokenizer.pad_token_id),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.dataloader = rollouts.watching(trainer.dataloader)
    trainer.train()
    return callback.closing_means()


def collate(features: list[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Make a batch: left-padded `input_ids` and mask (B, L), and `row` (B,), the index of each prompt."""
    ids, mask = pad_left([feature["input_ids"] for feature in features], pad_token_id, torch.device("cpu"))
    return {"input_ids": ids, "attention_mask": mask, "row": torch.tensor([feature["row"] for feature in features])}


class RolloutBatches:
    """Remember the prompts of the batch that TRL works on, and turn its generated ids into episodes."""

    def __init__(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
        self.rows = rows
        self.tokenizer = tokenizer
        self.current: list[Row] = []
        self.context_length = 0  # width of the left-padded prompts
        self.done = 0  # scored episodes of the current batch
        self.scores: list[float] = []
        self.lengths: list[int] = []
        self.ended: list[bool] = []
        self.repetitions: list[float] = []

    def watching(self, dataloader: Any) -> _Watched:
        """Wrap the dataloader so that each batch is recorded when TRL takes it (loaders read one batch ahead)."""
        return _Watched(dataloader, self)

    def begin(self, batch: dict[str, torch.Tensor]) -> None:
        """Record a new batch and forget the scores of the last."""
        self.current = [self.rows[index] for index in batch["row"].tolist()]
        self.context_length = batch["input_ids"].shape[1]
        self.done = 0
        self.scores, self.lengths, self.ended, self.repetitions = [], [], [], []

    def episodes(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[Episode]:
        """Make the episodes of the next chunk of the batch from ids (B, context + T); the mask is True at tokens."""
        episodes = []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            prompt = ids[: self.context_length][mask[: self.context_length]].tolist()
            response = ids[self.context_length :][mask[self.context_length :]].tolist()
            episodes.append(make_episode(self.tokenizer, self.current[self.done], prompt, response))
            self.done += 1
            self.lengths.append(len(response))
            self.ended.append(self.tokenizer.eos_token_id in response)
            self.repetitions.append(repetition([response]))
        return episodes


class _Watched:
    """Iterate over a dataloader and tell RolloutBatches which batch is in use."""

    def __init__(self, dataloader: Any, rollouts: RolloutBatches) -> None:
        self.dataloader = dataloader
        self.rollouts = rollouts

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.dataloader:
            self.rollouts.begin(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.dataloader)


class BridgedReward(nn.Module):
    """Present a reward function to TRL as a reward model: a backbone and a head.

    The backbone's last hidden state is the score, at every position, and the head is the identity. TRL therefore finds
    the score at whichever position it picks.
    """

    base_model_prefix = "backbone"

    def __init__(self, reward: RewardFunction, rollouts: RolloutBatches) -> None:
        super().__init__()
        self.backbone = _ScoringBackbone(reward, rollouts)
        self.score = nn.Identity()


class _ScoringBackbone(nn.Module):
    def __init__(self, reward: RewardFunction, rollouts: RolloutBatches) -> None:
        super().__init__()
        self.reward = reward  # not a submodule: TRL must not move or train its model
        self.rollouts = rollouts

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SimpleNamespace:
        scores = self.reward(self.rollouts.episodes(input_ids, attention_mask))
        self.rollouts.scores += scores
        column = torch.tensor(scores, dtype=torch.float32, device=input_ids.device)
        return SimpleNamespace(hidden_states=[column[:, None, None].expand(-1, input_ids.shape[1], 1).clone()])


class PpoCallback(EventCallback):
    """EventCallback with PPO's metric names, metrics of the rollouts, and a call after each update."""

    def __init__(
        self,
        stage: str,
        emit: Callable[[Event], None],
        work: Path,
        rollouts: RolloutBatches,
        after_update: Callable[[int, int], None],
    ) -> None:
        super().__init__(stage, emit, work, rename=trl_names("ppo"), unit="update")
        self.rollouts = rollouts
        self.after_update = after_update
        self.history: list[dict[str, float]] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        rollouts = self.rollouts
        extra = {
            "length": statistics.fmean(rollouts.lengths),
            "eos_rate": statistics.fmean(rollouts.ended),
            "repetition": statistics.fmean(rollouts.repetitions),
            "raw_score": statistics.fmean(rollouts.scores),
            "raw_score_std": statistics.pstdev(rollouts.scores),
        }
        logs = {k: v for k, v in {**(logs or {}), **extra}.items() if k not in NOT_METRICS}
        if args.num_ppo_epochs * args.num_mini_batches == 1:  # TRL computes the variance of a single ratio: NaN
            logs.pop("val/ratio_var", None)
        self.history.append({self.rename.get(k, k): float(v) for k, v in logs.items() if isinstance(v, int | float)})
        super().on_log(args, state, control, logs=logs, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        self.after_update(state.global_step, state.max_steps)

    def closing_means(self) -> dict[str, float]:
        """Average each metric over the last tenth of the updates (at least one)."""
        return closing_means(self.history)
