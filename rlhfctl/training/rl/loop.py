"""Run the `rlhfctl` engine: the reinforcement-learning loop, from prompts to a better policy.

One update, in the order of the numbered comments in collect.py and learn.py:

    prompts ─▶ 1 sample ─▶ 2 score ─▶ 3 KL, rewards ─▶ 4 values ─▶ 5 advantages ─▶ 6 learn
               responses   one number  one per token     one per     and returns     an optimizer step
                           per response                  state                       per minibatch

The loop runs the updates in order, records their metrics, writes checkpoints and resumes from them, recovers from
failed updates, and stops. It trains the roles in place. Every random choice is a function of (seed, update, episode,
position), so a resumed run draws the same numbers as an uninterrupted one. The arithmetic is in ppo_math.py, the table
of algorithms in algorithms.py.

Several processes share an update: each samples, scores and learns from its part of the episodes, and all hold the whole
batch of numbers, so that they take the same decisions. The first one writes checkpoints, traces and events.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file

from rlhfctl import fs
from rlhfctl.errors import RewardFailed
from rlhfctl.events import CheckpointSaved, Event, Metrics, Note, Progress, StageStarted
from rlhfctl.generation.generator import Generator
from rlhfctl.generation.local import sample
from rlhfctl.generation.shares import in_shares
from rlhfctl.models import build, lower_trunk, sharding
from rlhfctl.models.adapters import POLICY
from rlhfctl.models.fused import fused
from rlhfctl.models.packing import packed
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.episode import RewardFunction
from rlhfctl.training import checkpoints
from rlhfctl.training.history import closing_means
from rlhfctl.training.rl import masking
from rlhfctl.training.rl.algorithms import ALGORITHMS
from rlhfctl.training.rl.carried import Carried, read_average, save_average
from rlhfctl.training.rl.collect import Collector, PromptData, collect
from rlhfctl.training.rl.learn import build_optimizer, build_scheduler, learn, learning_rates
from rlhfctl.training.rl.metrics import update_metrics
from rlhfctl.training.rl.minibatch import Learner
from rlhfctl.training.rl.orders import Orders
from rlhfctl.training.rl.outcome_critic import OutcomeCritic
from rlhfctl.training.rl.preparation import (
    has_low_precision,
    make_accelerator,
    require_enough_episodes,
    require_steady_positions,
)
from rlhfctl.training.rl.pretraining import Pretraining
from rlhfctl.training.rl.recovery import NonFiniteError, Recovery, require_finite
from rlhfctl.training.rl.roles import Roles
from rlhfctl.training.rl.trace import Trace


class Watcher(Protocol):
    """Called before the first and after every update, for example to evaluate; its state is saved in checkpoints."""

    def __call__(self, update: int, total: int) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Run:
    """The surroundings of a loop: seed, folder, and receivers of events and messages.

    `work`: the folder of the checkpoints. `settings`: reported in the event at the start. `first`: the updates that the
    roles have behind them: the loop goes on after them, with a schedule over the rest. `processes`: those that share
    the work.
    """

    seed: int
    work: Path
    emit: Callable[[Event], None] = lambda event: None
    say: Callable[[str], None] = lambda sentence: None
    stage: str = "ppo"
    settings: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    processes: Processes = ALONE


class PpoLoop:
    """Train `roles` on the prompts of `data` with `reward`; `algorithm` is a name in the table ALGORITHMS."""

    def __init__(
        self,
        section: Ppo,
        roles: Roles,
        reward: RewardFunction,
        data: PromptData,
        run: Run,
        watcher: Watcher | None = None,
        *,
        algorithm: str = "ppo",
        generator: Generator = sample,
        outcome_critic: OutcomeCritic | None = None,
        pretraining: Pretraining | None = None,
    ) -> None:
        self.section = section
        self.data = data
        self.run = run
        self.watcher = watcher
        self.algorithm = ALGORITHMS[algorithm]
        if self.algorithm.needs_critic and roles.critic is None:
            raise ValueError(f"{algorithm} needs a critic")
        if not self.algorithm.needs_critic:
            roles = Roles(roles.policy, roles.reference, None, roles.masking)
        self.roles = roles
        self.accelerator = make_accelerator(section)
        require_enough_episodes(section, run.processes)
        require_steady_positions(section, roles, data)
        self.trained = roles.prepare()
        self.optimizer = build_optimizer(section, self.trained, roles.critic_parameters())
        self.scheduler = build_scheduler(section, self.optimizer, section.updates - run.first)
        self.carried = Carried(section, roles)
        orders, sampler = Orders(run.seed), in_shares(generator, run.processes)
        self.collector = Collector(
            section,
            self.algorithm,
            roles,
            reward,
            data,
            orders,
            sampler,
            self.accelerator,
            run.processes,
            outcome_critic,
            self.carried,
        )
        average = self.carried.average
        self.learner = Learner(section, roles, self.trained, self.optimizer, self.accelerator, pretraining, average)
        self.recovery = Recovery(run.work.parent / "non-finite", data.tokenizer, run.say)
        self.checkpoint_steps = section.checkpoint_steps or checkpoints.interval(section.updates)
        # Whether the training forward computes the log-probabilities of the sampled tokens.
        self.recomputes = has_low_precision(section, roles, self.trained)
        self.done = run.first  # finished updates
        self.attempt = 0  # number of returns to a checkpoint; each uses new random numbers for sampling
        self.history: list[dict[str, float]] = []
        self._began = (time.monotonic(), 0)

    # ------------------------------------------------------------ the run

    def train(self) -> dict[str, float]:
        """Run all remaining updates. Return each metric's mean over the last tenth of the updates (at least one)."""
        with contextlib.ExitStack() as inside:
            for module in self.roles.modules():
                inside.enter_context(fused(module))
            for trunk in self.roles.trunks():
                inside.enter_context(packed(trunk))
                inside.enter_context(lower_trunk.shared_below(trunk, POLICY))
            self._start()
            while self.done < self.section.updates:
                self._advance(self.done + 1)
        if self.carried.average is not None:
            self.carried.average.adopt()
        return closing_means(self.history)

    def _start(self) -> None:
        """Resume from the newest checkpoint; without one, evaluate and save the start."""
        run, updates = self.run, self.section.updates
        if sentence := build.updates_lost_to_rounding(self.trained.values(), self.section.learning_rate):
            run.say(sentence)
        resumed = self._resume()
        if not resumed:
            run.processes.copy_first(self.trained.values())
        run.emit(
            StageStarted(
                stage=run.stage,
                total_steps=updates,
                resumed_from=self.done if resumed else None,
                settings=run.settings,
            )
        )
        if not resumed:
            self._watch(self.done)
            self._save_checkpoint()
        self._began = (time.monotonic(), self.done)

    def _advance(self, number: int) -> None:
        """Run update `number`; return to the last checkpoint if its numbers are not finite."""
        try:
            with lower_trunk.keeping(self.roles.trunks()):
                metrics = self.update(number)
        except RewardFailed:
            if self.done % self.checkpoint_steps:  # this update changed nothing yet: save the finished updates
                self._save_checkpoint()
            self.run.processes.wait()  # when one process ends, the launcher ends the others
            raise
        except NonFiniteError as error:
            attempt = self.attempt
            self.recovery.go_back(number, attempt, str(error), self._restored_updates)
            self.attempt = attempt + 1
            return
        self.done = number
        self.history.append(metrics)
        self._record(metrics)
        self._watch(number)
        if number % self.checkpoint_steps == 0 or number == self.section.updates:
            self._save_checkpoint()
            self.recovery.failures = 0

    def _watch(self, number: int) -> None:
        if self.watcher is not None:
            with self.carried.averaged():
                self.watcher(number, self.section.updates)

    def update(self, number: int) -> dict[str, float]:
        """Run one update: sample a batch and learn from it. NonFiniteError before a non-finite number is applied."""
        section, orders, began = self.section, self.collector.orders, time.monotonic()
        earlier = [entry["rlhf_reward"] for entry in self.history]  # in checkpoints, like all metrics
        experience = collect(
            self.collector,
            number,
            stream=self.attempt,
            recomputes=self.recomputes,
            earlier_reward=statistics.fmean(earlier) if earlier else 0.0,
        )
        if experience.recomputed and not self.recomputes:
            what = f"sampling and update round differently, by up to {experience.rollout_gap:.2g} nats per token"
            sentence = f"{what}: each update computes the log-probabilities anew"
            self.run.emit(Note(stage=self.run.stage, message=sentence))
            self.recomputes = True
        traced = section.trace_every and number % section.trace_every == 0
        trace = Trace(min(section.trace_episodes, section.batch_size)) if traced else None
        try:
            require_finite(experience)
            # 6. Learn: each epoch visits the whole batch in its own random order.
            size = len(experience.responses)
            steps = learn(
                experience, self.learner, self.algorithm, lambda epoch: orders.minibatches(number, epoch, size), trace
            )
        except NonFiniteError:
            if self.run.processes.first:
                self.recovery.keep(experience, number, self.attempt)
            raise
        if self.roles.masking is not None and number % section.nlpo.target_update_iterations == 0:
            masking.sync(self.roles.masking, self.roles.policy)
        rates = learning_rates(section, self.scheduler)
        self.scheduler.step()
        self.carried.after(experience)
        if trace is not None:
            trace.gather(self.run.processes)
        if trace is not None and self.run.processes.first:
            trace.write(self.run.work.parent / "traces", number, experience, self.data.tokenizer, section)
        metrics = update_metrics(experience, steps, section) | rates
        took = time.monotonic() - began
        metrics |= {"rollout_s": experience.rollout_s, "score_s": experience.score_s}
        metrics["update_s"] = took - experience.rollout_s - experience.score_s
        return metrics | {"episodes_per_s": section.batch_size / took}

    def _record(self, metrics: dict[str, float]) -> None:
        stage, total = self.run.stage, self.section.updates
        eta = (time.monotonic() - self._began[0]) / (self.done - self._began[1]) * (total - self.done)
        self.run.emit(Metrics(stage=stage, step=self.done, total=total, values=metrics, eta_s=eta))
        self.run.emit(Progress(stage=stage, step=self.done, total=total, unit="update", eta_s=eta))

    # ------------------------------------------------------------ checkpoints

    def _save_checkpoint(self) -> None:
        """Write a checkpoint with everything that the remaining updates depend on, in one atomic step.

        All processes hold the same state, so the first one writes it; divided weights are gathered before.
        """
        sharding.settle()
        work, first = self.run.work, self.run.processes.first
        divided = any(map(sharding.is_divided, self.trained.values()))
        if not first and not divided:
            return
        average = self.carried.weights()
        weights, optimizer = self.roles.state(), sharding.whole(self.optimizer.state_dict())
        if not first:
            return
        final = work / f"{checkpoints.PREFIX}{self.done}"
        with fs.publish_folder(final) as folder:
            save_file(weights, folder / "model.safetensors")
            save_average(folder, average)
            checkpoints.save(optimizer, folder / "optimizer.pt")
            checkpoints.save(self.scheduler.state_dict(), folder / "scheduler.pt")
            checkpoints.save(checkpoints.random_states(), folder / "rng_state.pth")
            state = {
                "update": self.done,
                "attempt": self.attempt,
                "recomputes": self.recomputes,
                "history": self.history,
                "carried": self.carried.state(),
                "watcher": self.watcher.state() if self.watcher is not None else {},
            }
            fs.write_json(folder / "trainer_state.json", state)
            checkpoints.mark_complete(folder)
        for old in list(checkpoints.all_checkpoints(work))[self.section.keep_checkpoints :]:
            shutil.rmtree(old.path)
        self.run.emit(CheckpointSaved(stage=self.run.stage, step=self.done, path=str(final)))

    def _resume(self) -> bool:
        """Resume from the newest complete checkpoint, which the first process reads; return False if there is none."""
        found = self.run.processes.from_first(self._read_checkpoint)
        if found is None:
            return False
        state = found["trainer_state.json"]
        self.roles.load_state(found["model.safetensors"])
        sharding.load_optimizer(self.optimizer, found["optimizer.pt"])
        self.carried.load(state.get("carried", {}), found["average"])
        self.scheduler.load_state_dict(found["scheduler.pt"])
        checkpoints.set_random_states(found["rng_state.pth"])
        self.done, self.attempt, self.history = state["update"], state["attempt"], state["history"]
        self.recomputes = state["recomputes"]
        if self.watcher is not None:
            self.watcher.load_state(state["watcher"])
        return True

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """Read the files of the newest complete checkpoint; None if there is none."""
        newest, passed_over = checkpoints.newest_complete(self.run.work)
        for sentence in passed_over:
            self.run.say(sentence)
        if newest is None:
            return None
        found: dict[str, Any] = {
            name: checkpoints.loaded(newest.path / name) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        }
        found["trainer_state.json"] = json.loads((newest.path / "trainer_state.json").read_text(encoding="utf-8"))
        weights = load_file(newest.path / "model.safetensors")
        return found | {"model.safetensors": weights, "average": read_average(newest.path)}

    def _restored_updates(self) -> int:
        """Resume from the newest checkpoint; return the number of updates done there."""
        return self.done if self._resume() else self.run.first
