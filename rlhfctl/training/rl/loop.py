"""The `rlhfctl` engine: the PPO loop, from prompts to a better policy.

One update, in the order of the numbered comments below (`PpoLoop.update`):

    prompts ─▶ 1 rollout ─▶ 2 score ─▶ 3 KL, rewards ─▶ 4 values ─▶ 5 advantages ─▶ 6 PPO epochs
               responses    one number  one a token     one a      A and R         one optimizer step
                            a response                  state                      each minibatch

Reads encoded prompts, roles and a reward; trains the roles in place; writes checkpoints and traces. Every random choice
is a function of (seed, update, episode, position), so a run that goes on from a checkpoint draws what it would have
drawn. Arithmetic is in ppo_math.py, sampling in generation/, who shares which weights in roles.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, get_scheduler

from rlhfctl import fs
from rlhfctl.data.types import Row
from rlhfctl.errors import EngineError, RewardFailed
from rlhfctl.events import CheckpointSaved, Event, Metrics, Note, Progress, StageStarted, Work
from rlhfctl.generation.generator import Response, sampling_for, stop_strings
from rlhfctl.generation.local import sample
from rlhfctl.models import build, loading
from rlhfctl.models.fused import fused
from rlhfctl.models.packing import Sequences, max_stable_rope_length, packed
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.episode import RewardFunction, make_episode, part_means, parts_of
from rlhfctl.training import checkpoints
from rlhfctl.training.rl import ppo_math
from rlhfctl.training.rl.experience import Experience
from rlhfctl.training.rl.roles import Roles
from rlhfctl.training.rl.trace import Trace

CHECKPOINTS_PER_STAGE = 10  # where the recipe names no checkpoint_steps
FAILURES_IN_A_ROW = 3
AGREEMENT = 1e-5  # nats: rollout and update in float32
DISAGREEMENT = 1e-2  # nats: beyond rounding, one of them computes something else
_NO_DECAY_BELOW = 2  # norms and biases are vectors: like transformers, they are not decayed
_PROMPT_ORDER, _MINIBATCH_ORDER = 1, 2  # separates these draws from those of responses
TIMED = ("rollout_s", "score_s", "update_s")


class Watcher(Protocol):
    """Is called after every update with the policy as it is; what it remembers belongs to a checkpoint."""

    def __call__(self, update: int, total: int) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class NonFiniteError(Exception):
    """A reward, a loss or a gradient is NaN or infinite."""


class PpoLoop:
    """Trains `roles` on `prompts` (ids, one list each, `rows` the rows they came from) against `reward`."""

    def __init__(
        self,
        section: Ppo,
        roles: Roles,
        reward: RewardFunction,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        work: Path,
        emit: Callable[[Event], None] = lambda event: None,
        say: Callable[[str], None] = lambda sentence: None,
        watcher: Watcher | None = None,
        settings: dict[str, Any] | None = None,
        stage: str = "ppo",
    ) -> None:
        self.section = section
        self.roles = roles
        self.reward = reward
        self.tokenizer = tokenizer
        self.rows = rows
        self.prompts = prompts
        self.seed = seed
        self.work = work
        self.emit = emit
        self.say = say
        self.watcher = watcher
        self.settings = settings or {}
        self.stage = stage
        # A process keeps the precision of its first accelerator: that of the sft stage's trainer, if it ran just now.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if section.bf16 else "no",
        )
        if self.accelerator.num_processes > 1:
            raise EngineError(
                "this engine runs in one process", where="ppo.engine: rlhfctl", fix="start it without a launcher"
            )
        self._check_lengths()
        self.batch_size = section.per_device_train_batch_size * section.gradient_accumulation_steps
        self.updates = math.ceil(section.total_episodes / self.batch_size)
        self.checkpoint_steps = section.checkpoint_steps or max(1, math.ceil(self.updates / CHECKPOINTS_PER_STAGE))

        self.trained = roles.prepare()
        decayed = [p for p in self.trained.values() if p.dim() >= _NO_DECAY_BELOW]
        others = [p for p in self.trained.values() if p.dim() < _NO_DECAY_BELOW]
        groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=section.learning_rate, fused=True)
        self.scheduler = get_scheduler(
            section.lr_scheduler_type, self.optimizer, section.warmup_steps, num_training_steps=self.updates
        )
        policy_dtype = next(iter(self.trained.values())).dtype
        narrow = min(roles.policy.head.weight.dtype.itemsize, policy_dtype.itemsize) < 4
        self.low_precision = section.bf16 or narrow or loading.is_quantized(roles.policy.model)
        self.recomputes = self.low_precision  # the sampled log-probabilities, by the update's own forward
        self.done = 0  # updates
        self.attempt = 0  # how often training went back: the noise is drawn anew each time
        self.rollout_gap: float | None = None  # of the batch that was sampled last
        self.history: list[dict[str, float]] = []
        self._trace: Trace | None = None
        self._began = (time.monotonic(), 0)

    def _check_lengths(self) -> None:
        """EngineError where sampling would see other angles than the update."""
        steady, longest = max_stable_rope_length(self.roles.policy.config), max(map(len, self.prompts), default=0)
        if steady is not None and longest + self.section.response_length > steady:
            raise EngineError(
                f"this model's rotary embeddings change when a sequence grows beyond {steady} tokens: what was sampled "
                "before would no longer be what the policy gives",
                where="ppo.engine: rlhfctl",
                fix=f"keep data.max_prompt_length + ppo.response_length at {steady} or less",
            )

    # ------------------------------------------------------------ the run

    def train(self) -> dict[str, float]:
        """All updates that are left. Returns each metric's mean over the last tenth of the updates (at least one)."""
        with contextlib.ExitStack() as inside:
            for module in self.roles.modules():
                inside.enter_context(fused(module))
            for trunk in self.roles.trunks():
                inside.enter_context(packed(trunk))
            return self._train()

    def _train(self) -> dict[str, float]:
        if sentence := build.updates_lost_to_rounding(self.trained.values(), self.section.learning_rate):
            self.say(sentence)
        resumed = self._resume()
        self.emit(
            StageStarted(
                stage=self.stage,
                total_steps=self.updates,
                resumed_from=self.done if resumed else None,
                settings=self.settings,
            )
        )
        if not resumed:
            if self.watcher is not None:
                self.watcher(0, self.updates)
            self._save_checkpoint()
        self._began = (time.monotonic(), self.done)
        failures = 0  # since the last checkpoint
        while self.done < self.updates:
            number = self.done + 1
            try:
                metrics = self.update(number)
            except RewardFailed:
                if self.done % self.checkpoint_steps:  # nothing of this update is applied yet: keep those before it
                    self._save_checkpoint()
                raise
            except NonFiniteError as error:
                failures += 1
                self._go_back(number, failures, str(error))
                continue
            self.done = number
            self.history.append(metrics)
            self._tell(metrics)
            if self.watcher is not None:
                self.watcher(number, self.updates)
            if number % self.checkpoint_steps == 0 or number == self.updates:
                self._save_checkpoint()
                failures = 0
        last = self.history[-max(1, len(self.history) // 10) :]
        names = [name for name in last[-1] if all(name in entry for entry in last)] if last else []
        return {name: statistics.fmean(entry[name] for entry in last) for name in names}

    def update(self, number: int) -> dict[str, float]:
        """One update: sample a batch, learn from it. NonFiniteError before anything non-finite is applied."""
        section, roles = self.section, self.roles
        clock = time.monotonic()
        self._trace = None
        with torch.no_grad(), self.accelerator.autocast():
            # 1. Rollout: a response to each prompt, with the log-probabilities it was drawn with.
            batch = self.rollout(number)

            # 2. Score: the reward of each whole response, less what is due where it did not end.
            sampled = time.monotonic()
            self._score(batch)

            # 3. KL and rewards: -kl_coef x KL at each token, the score at the end.
            batch.ref_logprobs = self._logprobs(batch, roles.reference, "asking the reference")
            kept = self._columns(batch, [response.kept for response in batch.responses])
            # With top-k or top-p the tokens come from p / p(kept): that is the distribution whose KL is estimated.
            batch.kl = ppo_math.kl_estimate(batch.logprobs - kept, batch.ref_logprobs, section.kl_estimator)
            batch.kl = batch.kl.masked_fill(~batch.mask, 0.0)
            batch.rewards = ppo_math.token_rewards(batch.kl, batch.scores, batch.lengths, section.kl_coef, batch.mask)
            if section.whiten_rewards:
                batch.rewards = ppo_math.whiten(batch.rewards, batch.value_mask, centre=False)

            # 4. Values: of the state before each token, and of the one after the end.
            # 5. Advantages and returns.
            # Where the whole batch is the first minibatch, the critic's first forward of step 6 gives the same values:
            # then both wait for it.
            waits = section.num_mini_batches == 1 and not roles.critic.shares_policy
            if waits:
                batch.values, batch.returns, batch.advantages = (torch.zeros_like(batch.rewards) for _ in range(3))
            else:
                batch.values = self._values(batch)
                self._set_advantages(batch)
        self._require_finite(batch, number)

        # 6. PPO epochs: each over the whole batch in a new order, an optimizer step for each minibatch.
        learning = time.monotonic()
        if section.trace_every and number % section.trace_every == 0:
            self._trace = Trace(min(section.trace_episodes, self.batch_size))
        steps: list[dict[str, float]] = []
        work = Work("learning", section.num_ppo_epochs * section.num_mini_batches, "minibatch")
        with roles.recomputing(section.gradient_checkpointing), work:
            for epoch in range(section.num_ppo_epochs):
                order = self.permutation(number, epoch)
                size = self.batch_size // section.num_mini_batches
                for start in range(0, self.batch_size, size):
                    first = waits and epoch == 0
                    steps.append(self._step(batch, order[start : start + size], epoch, number, sets_values=first))
                    work.advance(len(steps))
                here = steps[-section.num_mini_batches :]
                if section.target_kl is not None and _mean(here, "approx_kl") > section.target_kl:
                    break
        learning_rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if self._trace is not None:
            self._trace.write(self.work.parent / "traces", number, batch, self.tokenizer, section.gamma)
        metrics = self._metrics(batch, steps) | {"learning_rate": learning_rate}
        if self.rollout_gap is not None:
            metrics["rollout_gap"] = self.rollout_gap
        now = time.monotonic()
        metrics |= {"rollout_s": sampled - clock, "score_s": learning - sampled, "update_s": now - learning}
        return metrics | {"episodes_per_s": self.batch_size / (now - clock)}

    # ------------------------------------------------------------ 1. rollout

    def rollout(self, number: int) -> Experience:
        """The batch of update `number`: which prompts is decided by it alone, what is drawn by (seed, episode)."""
        section = self.section
        rows = self._prompts_of(number)
        prompts = [list(self.prompts[row]) for row in rows]
        sampling = sampling_for(section, self.tokenizer, seed=self.seed, stream=self.attempt)
        first = (number - 1) * self.batch_size
        value_head = None
        if self.roles.critic.shares_policy and not self.recomputes:
            value_head = self.roles.critic.values
        responses = sample(
            self.roles.policy,
            prompts,
            self.tokenizer,
            sampling,
            episodes=range(first, first + len(prompts)),
            value_head=value_head,
        )
        batch = self.batch_of(rows, prompts, responses)
        batch.logprobs = self._sampled_logprobs(batch)
        return batch

    def batch_of(self, rows: list[int], prompts: list[list[int]], responses: list[Response]) -> Experience:
        """Masks and lengths of the given responses; nothing is computed from a model."""
        at = self.roles.policy.device
        lengths = torch.tensor([len(response.ids) for response in responses], device=at)
        width = min(int(lengths.max()) + 1, self.section.response_length)
        ended = torch.tensor([response.ended for response in responses], device=at)
        mask = ppo_math.response_mask(lengths, width)
        return Experience(rows, prompts, responses, lengths, ended, mask, ppo_math.value_mask(lengths, width))

    def _sampled_logprobs(self, batch: Experience) -> Tensor:
        """(B, W). Those of the rollout, once the update's forward is shown to give the same; else that forward's.

        Where both are computed, `rollout_gap` is their largest difference: nats a token.
        """
        sampled = self._columns(batch, [response.logprobs for response in batch.responses])
        self.rollout_gap = None
        if self.done > 0 and not self.recomputes:
            return sampled
        ours = self._logprobs(batch, self.roles.policy)
        gap = float((ours - sampled).abs().masked_fill(~batch.mask, 0.0).max())
        self.rollout_gap = gap
        if self.recomputes:
            return ours
        if not gap <= DISAGREEMENT:
            raise EngineError(
                f"rollout and update give log-probabilities that differ by {gap:.3g} nats",
                where="ppo.engine: rlhfctl",
                fix="this is a defect of the engine with this architecture: please report it, and use engine: trl",
            )
        if gap > AGREEMENT:
            what = f"sampling and update round differently, by up to {gap:.2g} nats a token"
            self.emit(Note(stage=self.stage, message=f"{what}: each update computes the log-probabilities anew"))
            self.recomputes = True
            return ours
        return sampled

    def _prompts_of(self, number: int) -> list[int]:
        """Which prompts update `number` answers: one pass after the other, each in an order of its own."""
        repeats = self.section.num_generations
        each = self.batch_size // repeats
        rows = []
        for position in range((number - 1) * each, number * each):
            through, place = divmod(position, len(self.prompts))
            rows += [int(self._order(_PROMPT_ORDER, through, 0, len(self.prompts))[place])] * repeats
        return rows

    def permutation(self, number: int, epoch: int) -> list[int]:
        """The order in which PPO epoch `epoch` of update `number` visits the batch."""
        order: list[int] = self._order(_MINIBATCH_ORDER, number, epoch, self.batch_size).tolist()
        return order

    def _order(self, what: int, first: int, second: int, count: int) -> np.ndarray:
        generator = np.random.Philox(key=[self.seed, what], counter=[0, 0, first, second])
        return np.random.Generator(generator).permutation(count)

    # ------------------------------------------------------------ 2. to 5. what is computed once a batch

    def _score(self, batch: Experience) -> None:
        stops = stop_strings(self.section, self.tokenizer)
        episodes = [
            make_episode(self.tokenizer, self.rows[row], prompt, response.ids, stops)
            for row, prompt, response in zip(batch.rows, batch.prompts, batch.responses, strict=True)
        ]
        scores = self.reward(episodes)
        batch.parts = parts_of(self.reward)
        batch.raw_scores = torch.tensor(scores, dtype=batch.logprobs.dtype, device=batch.lengths.device)
        batch.scores = ppo_math.apply_missing_eos(
            batch.raw_scores,
            batch.ended,
            penalty=self.section.missing_eos_penalty,
            score=self.section.missing_eos_score,
        )

    def _logprobs(self, batch: Experience, model: Any, what: str = "asking the policy") -> Tensor:
        """(B, W) of the batch's tokens under `model`, by full forwards."""
        result: Tensor | None = None
        for rows in self._forwards(batch, what):
            sequences = self._sequences(batch, rows)
            states = model.states(sequences)[sequences.before_tokens()]
            logprobs, _ = model.token_logprobs(states, sequences.tokens(), self.section.temperature)
            if result is None:
                result = torch.zeros(batch.mask.shape, dtype=logprobs.dtype, device=logprobs.device)
            result[rows] = _spread(logprobs, batch.mask[rows])
        assert result is not None
        return result

    def _values(self, batch: Experience) -> Tensor:
        """(B, W) of the batch's states."""
        critic = self.roles.critic
        if critic.shares_policy and not self.recomputes and batch.responses[0].values:
            return self._columns(batch, [response.values for response in batch.responses])
        result = torch.zeros(batch.mask.shape, dtype=batch.logprobs.dtype, device=batch.lengths.device)
        for rows in self._forwards(batch, "asking the critic"):
            sequences = self._sequences(batch, rows)
            trunk = self.roles.policy if critic.shares_policy else critic
            values = critic.values(trunk.states(sequences)[sequences.states(self.section.response_length)])
            result[rows] = _spread(values.to(result.dtype), batch.value_mask[rows])
        return result

    def _forwards(self, batch: Experience, what: str) -> Iterator[list[int]]:
        """The rows of the batch in pieces that fit into one forward."""
        pieces = _pieces(range(len(batch.rows)), self.section.local_rollout_forward_batch_size)
        return Work(what, len(pieces), "batch").through(pieces)

    def _set_advantages(self, batch: Experience) -> None:
        """Advantages, whitened over the batch, and returns, from rewards and values."""
        section = self.section
        advantages, batch.returns = ppo_math.advantages_and_returns(
            batch.rewards, batch.values, batch.value_mask, section.gamma, section.lam
        )
        batch.advantages = advantages.masked_fill(~batch.mask, 0.0)
        if section.whiten_advantages:
            batch.advantages = ppo_math.whiten(advantages, batch.mask)

    def _sequences(self, batch: Experience, rows: Sequence[int]) -> Sequences:
        return Sequences.of(
            [batch.prompts[row] for row in rows],
            [batch.responses[row].ids for row in rows],
            batch.lengths.device,
        )

    def _columns(self, batch: Experience, lists: list[list[float]]) -> Tensor:
        """(B, W) from a list of numbers for each response, 0 where a list is short."""
        dtype = self.roles.policy.head.weight.dtype
        dtype = torch.float32 if dtype.itemsize < 4 else dtype
        table = torch.zeros(batch.mask.shape, dtype=dtype)
        for row, numbers in enumerate(lists):
            table[row, : len(numbers)] = torch.tensor(numbers[: table.shape[1]], dtype=dtype)
        return table.to(batch.lengths.device)

    # ------------------------------------------------------------ 6. an optimizer step

    def _step(
        self, batch: Experience, rows: Sequence[int], epoch: int, number: int, *, sets_values: bool
    ) -> dict[str, float]:
        """One optimizer step on a minibatch, micro-batch by micro-batch; every mean is over the minibatch's tokens.

        The critic learns first, each role's backward done before the other's adapter becomes active. With
        `sets_values` its forwards are also where the batch's values, and so its advantages, come from.
        """
        tokens, states = batch.mask[list(rows)].sum(), batch.value_mask[list(rows)].sum()
        parts = _pieces(rows, self.section.per_device_train_batch_size)
        shares: list[dict[str, Tensor]] = []
        if not self.roles.critic.shares_policy:
            for part in parts:
                shares.append(self._learn_values(batch, part, states, epoch, sets_values=sets_values))
            if sets_values:
                self._set_advantages(batch)
        for part in parts:
            shares.append(self._learn(batch, part, tokens, states, epoch))
        sums: dict[str, Tensor] = {}
        for share in shares:
            for name, value in share.items():
                sums[name] = sums[name] + value if name in sums else value
        parameters = list(self.trained.values())
        limit = self.section.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        if not bool(torch.isfinite(norm + sums["policy_loss"] + sums["value_loss"])):
            self.optimizer.zero_grad()
            self._dump(batch, number)
            raise NonFiniteError("a loss or a gradient is not finite")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: float(value) for name, value in sums.items()} | {"grad_norm": float(norm)}

    def _learn_values(
        self, batch: Experience, rows: list[int], states: Tensor, epoch: int, *, sets_values: bool = False
    ) -> dict[str, Tensor]:
        """Forward and backward of a critic with a trunk of its own, on a micro-batch."""
        sequences = self._sequences(batch, rows)
        with self.accelerator.autocast():
            hidden = self.roles.critic.states(sequences)
            values = self._state_values(batch, rows, sequences, hidden)
        if sets_values:
            batch.values[rows, : values.shape[1]] = values.detach()
            # Returns are a matter of each response alone; whitening, which is not, comes when all values are there.
            _, batch.returns[rows] = ppo_math.advantages_and_returns(
                batch.rewards[rows], batch.values[rows], batch.value_mask[rows], self.section.gamma, self.section.lam
            )
        loss, shares = self._value_loss(batch, rows, values, states)
        self.accelerator.backward(loss)
        if self._trace is not None:
            self._trace.add(epoch, rows, {"values": values.detach()})
        return shares

    def _learn(
        self, batch: Experience, rows: list[int], tokens: Tensor, states: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Forward and backward of the policy, and of a critic that shares its trunk, on a micro-batch.

        Returns its share of the minibatch's means.
        """
        section, policy, critic = self.section, self.roles.policy, self.roles.critic
        sequences = self._sequences(batch, rows)
        width = self._width(batch, rows)
        mask = batch.mask[rows, :width]
        with self.accelerator.autocast():
            hidden = policy.states(sequences)
            flat, spread = policy.token_logprobs(
                hidden[sequences.before_tokens()],
                sequences.tokens(),
                section.temperature,
                with_entropy=section.entropy_coef > 0,
            )
            values = self._state_values(batch, rows, sequences, hidden) if critic.shares_policy else None
        logprobs = _spread(flat, mask)
        terms = ppo_math.policy_loss(
            logprobs, batch.logprobs[rows, :width], batch.advantages[rows, :width], mask, section.cliprange, tokens
        )
        loss = terms.loss
        shares = {
            "policy_loss": terms.loss.detach(),
            "approx_kl": terms.approx_kl,
            "clip_fraction": terms.clip_fraction,
            "ratio": terms.ratio_mean,
        }
        if spread is not None:
            mean_entropy = spread.sum() / tokens
            loss = loss - section.entropy_coef * mean_entropy
            shares["token_entropy"] = mean_entropy.detach()
        if values is not None:
            value_loss, more = self._value_loss(batch, rows, values, states)
            loss = loss + value_loss
            shares |= more
        self.accelerator.backward(loss)
        if self._trace is not None:
            numbers = {"logprobs": logprobs.detach(), "ratio": terms.ratio, "clipped": terms.clipped}
            self._trace.add(epoch, rows, numbers | ({} if values is None else {"values": values.detach()}))
        return shares

    def _width(self, batch: Experience, rows: list[int]) -> int:
        """Columns that the longest of `rows` needs."""
        return int(min(batch.lengths[rows].max() + 1, batch.mask.shape[1]))

    def _state_values(self, batch: Experience, rows: list[int], sequences: Sequences, hidden: Tensor) -> Tensor:
        flat = self.roles.critic.values(hidden[sequences.states(self.section.response_length)])
        return _spread(flat.to(batch.values.dtype), batch.value_mask[rows, : self._width(batch, rows)])

    def _value_loss(
        self, batch: Experience, rows: list[int], values: Tensor, states: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's part of the loss, and its share of the minibatch's means."""
        section, width = self.section, values.shape[1]
        errors = ppo_math.value_loss(
            values,
            batch.values[rows, :width],
            batch.returns[rows, :width],
            batch.value_mask[rows, :width],
            section.cliprange_value,
            states,
        )
        shares = {"value_loss": errors.loss.detach(), "value_clip_fraction": errors.clip_fraction}
        return section.vf_coef * errors.loss, shares

    # ------------------------------------------------------------ metrics

    def _metrics(self, batch: Experience, steps: list[dict[str, float]]) -> dict[str, float]:
        kl = float(batch.kl.sum(1).mean())
        score = float(batch.scores.mean())
        found = {
            "score": score,
            "kl": kl,
            "entropy": -float(batch.logprobs.masked_fill(~batch.mask, 0.0).sum(1).mean()),
            "length": float(batch.lengths.double().mean()),
            "eos_rate": float(batch.ended.double().mean()),
            "non_score_reward": -self.section.kl_coef * kl,
            "rlhf_reward": score - self.section.kl_coef * kl,
            "raw_score": float(batch.raw_scores.mean()),
            "raw_score_std": float(batch.raw_scores.std(unbiased=False)),
            "value_mean": float(ppo_math.masked_mean(batch.values, batch.value_mask)),
            "explained_variance": float(ppo_math.explained_variance(batch.values, batch.returns, batch.value_mask)),
            "token_entropy": -float(ppo_math.masked_mean(batch.logprobs, batch.mask)),
            "optimizer_steps": float(len(steps)),
        }
        return found | part_means(batch.parts) | {name: _mean(steps, name) for name in steps[0]}

    def _tell(self, metrics: dict[str, float]) -> None:
        eta = (time.monotonic() - self._began[0]) / (self.done - self._began[1]) * (self.updates - self.done)
        self.emit(Metrics(stage=self.stage, step=self.done, total=self.updates, values=metrics, eta_s=eta))
        self.emit(Progress(stage=self.stage, step=self.done, total=self.updates, unit="update", eta_s=eta))

    # ------------------------------------------------------------ what is not finite

    def _require_finite(self, batch: Experience, number: int) -> None:
        for name in ("raw_scores", "logprobs", "ref_logprobs", "values", "advantages"):
            if not bool(torch.isfinite(getattr(batch, name)).all()):
                self._dump(batch, number)
                raise NonFiniteError(f"{name} are not finite")

    def _dump(self, batch: Experience, number: int) -> None:
        """The batch as JSON, a line an episode, for whoever must find out why."""
        lines = []
        for index, response in enumerate(batch.responses):
            numbers = {
                name: getattr(batch, name)[index].tolist()
                for name in ("raw_scores", "logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
                if getattr(batch, name).numel()
            }
            text = self.tokenizer.decode(response.ids)
            prompt = self.tokenizer.decode(batch.prompts[index])
            numbers["reward_parts"] = {name: part[index] for name, part in batch.parts.items()}
            record = {"prompt": prompt, "response": text, "response_ids": response.ids} | numbers
            lines.append(fs.json_line(record))
        self._dumped(number).parent.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(self._dumped(number), "\n".join(lines) + "\n")

    def _dumped(self, number: int) -> Path:
        return self.work.parent / "non-finite" / f"update-{number:06d}-attempt-{self.attempt}.jsonl"

    def _go_back(self, number: int, failures: int, what: str) -> None:
        """To the last good checkpoint, with other noise; after three in a row, stop."""
        if failures >= FAILURES_IN_A_ROW:
            raise EngineError(
                f"update {number} failed {failures} times in a row: {what}",
                where=str(self._dumped(number)),
                fix="look at the batch kept there; a lower learning_rate, a max_grad_norm or float32 often helps",
            )
        dumped, attempt = self._dumped(number), self.attempt + 1
        restored = self._resume()
        self.attempt = attempt
        self.say(
            f"update {number}: {what}; it was not applied, the batch is kept in {dumped}; training goes on from update "
            f"{self.done if restored else 0} with other samples"
        )

    # ------------------------------------------------------------ checkpoints

    def _save_checkpoint(self) -> None:
        """All that the rest of the run depends on; whole or not at all."""
        final = self.work / f"{checkpoints.PREFIX}{self.done}"
        with fs.publish_folder(final) as folder:
            save_file(self.roles.state(), folder / "model.safetensors")
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
            torch.save(self.scheduler.state_dict(), folder / "scheduler.pt")
            torch.save(checkpoints.random_states(), folder / "rng_state.pth")
            state = {
                "update": self.done,
                "attempt": self.attempt,
                "recomputes": self.recomputes,
                "history": self.history,
                "watcher": self.watcher.state() if self.watcher is not None else {},
            }
            fs.write_json(folder / "trainer_state.json", state)
            checkpoints.mark_complete(folder)
        for old in list(checkpoints.all_checkpoints(self.work))[self.section.keep_checkpoints :]:
            shutil.rmtree(old.path)
        self.emit(CheckpointSaved(stage=self.stage, step=self.done, path=str(final)))

    def _resume(self) -> bool:
        """Go on from the newest whole checkpoint; False without one."""
        found, passed_over = checkpoints.newest_complete(self.work)
        for sentence in passed_over:
            self.say(sentence)
        if found is None:
            return False
        state = json.loads((found.path / "trainer_state.json").read_text(encoding="utf-8"))
        self.roles.load_state(load_file(found.path / "model.safetensors"))
        self.optimizer.load_state_dict(checkpoints.loaded(found.path / "optimizer.pt"))
        self.scheduler.load_state_dict(checkpoints.loaded(found.path / "scheduler.pt"))
        checkpoints.set_random_states(checkpoints.loaded(found.path / "rng_state.pth"))
        self.done, self.attempt, self.history = state["update"], state["attempt"], state["history"]
        self.recomputes = state["recomputes"]
        if self.watcher is not None:
            self.watcher.load_state(state["watcher"])
        return True


# ---------------------------------------------------------------- small helpers


def _pieces(rows: Sequence[int], size: int) -> list[list[int]]:
    """`rows` in pieces of `size`; the last may be smaller."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(N,) numbers to where `mask` (B, W) is True, row after row; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def _mean(steps: Sequence[dict[str, float]], name: str) -> float:
    return statistics.fmean(step[name] for step in steps)
