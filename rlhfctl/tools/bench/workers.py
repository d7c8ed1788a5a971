"""Measure one engine in its own process: `python -m rlhfctl.tools.bench.workers ENGINE FOLDER FILE`.

Reads the files that inputs.py wrote to FOLDER, runs the updates, and writes time and memory of each to FILE.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from rlhfctl import fs
from rlhfctl.events import Event, Metrics
from rlhfctl.generation.slots import generator_for
from rlhfctl.models import adapters, build, devices, heads, loading, special_tokens, tokenizing
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.processes import Processes, join
from rlhfctl.recipe.schema import Ppo
from rlhfctl.rewards.episode import Episode
from rlhfctl.rewards.model import ModelReward, in_shares
from rlhfctl.tools.bench.costs import Matrices, tensor_bytes, useful_flops, weights_bytes
from rlhfctl.tools.bench.workload import MB, RLHFCTL, SEED, TRL
from rlhfctl.training.rl.collect import PromptData
from rlhfctl.training.rl.loop import PpoLoop, Run
from rlhfctl.training.rl.roles import Critic, Roles
from rlhfctl.training.trl import ppo


class UpdateTimer:
    """Record for each update its duration, the lengths of its episodes and the seconds of its phases."""

    def __init__(self) -> None:
        self.prompts: list[int] = []  # tokens of each episode since the last update ended
        self.responses: list[int] = []
        self.lengths: list[int] = []  # tokens of all counted responses
        self.entries: list[dict[str, Any]] = []
        self.ended: float | None = None
        self.processor = 0.0  # the processor's seconds when the last update ended

    def episode(self, prompt_tokens: int, response_tokens: int) -> None:
        self.prompts.append(prompt_tokens)
        self.responses.append(response_tokens)

    def end_update(self, rollout_s: float, score_s: float) -> None:
        """End an update: the remaining time since the last update is learning. The first update is not counted."""
        devices.wait()
        now, processor = time.perf_counter(), time.process_time()
        if self.ended is not None:
            seconds = now - self.ended
            entry = {"rollout_s": rollout_s, "score_s": score_s, "update_s": seconds - rollout_s - score_s}
            entry["processor_s"] = processor - self.processor
            tokens = {"prompt_tokens": sum(self.prompts), "response_tokens": sum(self.responses)}
            self.entries.append({"episodes": len(self.responses), "seconds": seconds} | entry | tokens)
            self.lengths += self.responses
        self.prompts, self.responses = [], []
        self.ended, self.processor = now, processor


@dataclass(frozen=True)
class Job:
    """The inputs of a worker: settings, prompts, models and tokenizer."""

    section: Ppo
    prompts: list[list[int]]
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    policy: Any
    reference: PreTrainedModel | None
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Job:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        section = Ppo.model_validate_json(json.dumps(job["ppo"]))
        tokenizer = tokenizing.load_tokenizer(str(folder / "base"))
        config = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
        dtype = loading.torch_dtype(config.get("dtype") or config.get("torch_dtype") or "float32")
        base = loading.load_causal_lm(str(folder / "base"), dtype=dtype).to(devices.device())
        special_tokens.set_token_ids(base, tokenizer)
        if section.lora is None:
            policy, reference = base, build.copy_frozen(base)
            special_tokens.mask_pad(reference, tokenizer.pad_token_id)
        else:
            policy, reference = adapters.add_lora(base, section.lora, TaskType.CAUSAL_LM, seed=SEED), None
        special_tokens.mask_pad(policy, tokenizer.pad_token_id)
        return cls(section, job["prompts"], base, tokenizer, policy, reference, folder)

    def scorer(self) -> PreTrainedModel:
        """Load the reward model as a separate model; the critic starts as a copy of it too."""
        return loading.load_scorer(str(self.folder / "reward-model"), dtype=self.base.dtype).to(devices.device())


def run_rlhfctl(job: Job) -> dict[str, Any]:
    """Measure this engine: with LoRA, policy, reference, critic and reward model share one base."""
    section, policy, pad = job.section, job.policy, job.tokenizer.pad_token_id
    policy_role = LanguageModel(policy, pad, adapters.POLICY if section.lora else None)
    reference = LanguageModel(job.reference or policy, pad, None)
    scorer: Any
    if section.lora:
        head = heads.load_scorer_adapter(policy, adapters.REWARD, job.folder / "reward")
        scorer = AdapterScorer(LanguageModel(policy, pad, adapters.REWARD), head)
    else:
        scorer = job.scorer()
    if section.critic_kind == "adapter":
        head = heads.load_scorer_adapter(policy, adapters.CRITIC, job.folder / "reward")
        critic = Critic(AdapterScorer(LanguageModel(policy, pad, adapters.CRITIC), head))
    elif section.critic_kind == "head":
        head = heads.new_head(policy)
        critic = Critic(AdapterScorer(policy_role, head), shares_policy=True, trains_trunk=section.critic_trains_trunk)
    elif section.critic_kind == "reward":
        critic = Critic(heads.with_own_head(scorer), reads=scorer)
    else:
        critic = Critic(job.scorer())
    scorer.requires_grad_(False).eval()

    timer, processes = UpdateTimer(), Processes.here()
    scoring = in_shares(ModelReward(scorer, pad, section.local_rollout_forward_batch_size), processes)

    def reward(episodes: Sequence[Episode], /) -> list[float]:
        for episode in episodes:
            timer.episode(len(episode.prompt_ids), len(episode.response_ids))
        return scoring(episodes)

    def emit(event: Event) -> None:
        if isinstance(event, Metrics):
            timer.end_update(event.values["rollout_s"], event.values["score_s"])

    roles = Roles(policy_role, reference, critic)
    rows = [{"prompt": ""} for _ in job.prompts]
    with tempfile.TemporaryDirectory(dir=job.folder) as fresh:
        run = Run(seed=SEED, work=Path(fresh) / "ppo", emit=emit, processes=processes)
        sampler = generator_for(section.sampler)
        loop = PpoLoop(section, roles, reward, PromptData(job.tokenizer, rows, job.prompts), run, generator=sampler)
        before = devices.resident_bytes() / MB
        loop.train()
    modules = [*roles.modules(), scorer]
    result = _result(job, timer, before, modules, loop.optimizer, section.critic_kind or "")
    return result | {"recomputes": loop.recomputes}


def run_trl(job: Job) -> dict[str, Any]:
    """Measure TRL's PPOTrainer; its phases are timed in functions that it calls between two phases."""
    from datasets import Dataset
    from trl.experimental.ppo import ppo_trainer

    trainer_class, _ = ppo.require()
    section, pad, eos = job.section, job.tokenizer.pad_token_id, job.tokenizer.eos_token_id
    reward_model, critic = job.scorer(), job.scorer()
    reward_model.requires_grad_(False)
    timer = UpdateTimer()
    clock = {"rollout_s": 0.0, "sampled": 0.0, "score_s": 0.0}

    generate = ppo_trainer.batch_generation

    def timed_generation(model: nn.Module, queries: Tensor, *arguments: Any) -> Any:
        devices.wait()
        began = time.perf_counter()
        answers, logits = generate(model, queries, *arguments)
        devices.wait()
        clock.update(sampled=time.perf_counter(), rollout_s=time.perf_counter() - began, score_s=0.0)
        for row in answers.tolist():
            prompt, response = row[: queries.shape[1]], row[queries.shape[1] :]
            length = response.index(eos) + 1 if eos in response else len(response)
            timer.episode(sum(token != pad for token in prompt), length)
        return answers, logits

    class Watched:
        """Stand for NumPy in TRL's module, which uses it only for a permutation at the start of each PPO epoch."""

        random: Any

        def __init__(self, numpy: Any) -> None:
            self.random, self._permutation = self, numpy.random.permutation

        def permutation(self, count: int) -> Any:
            if not clock["score_s"]:  # the first epoch
                devices.wait()
                clock["score_s"] = time.perf_counter() - clock["sampled"]
            return self._permutation(count)

    class EndOfUpdate(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            timer.end_update(clock["rollout_s"], clock["score_s"])

    with tempfile.TemporaryDirectory(dir=job.folder) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            args=ppo.config_for(section, Path(work), seed=SEED),
            processing_class=job.tokenizer,
            model=job.policy,
            ref_model=job.reference,
            reward_model=reward_model,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": job.prompts, "row": list(range(len(job.prompts)))}),
            data_collator=lambda features: ppo.collate(features, pad),
            callbacks=[EndOfUpdate()],
        )
        trainer.remove_callback(PrinterCallback)
        ppo_trainer.batch_generation = timed_generation
        ppo_trainer.np = Watched(ppo_trainer.np)
        gc.freeze()  # as every stage does (models/devices.py): TRL collects garbage twice per update
        before = devices.resident_bytes() / MB
        trainer.train()
    modules = [module for module in (job.policy, job.reference, critic, reward_model) if module is not None]
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return _result(job, timer, before, modules, optimizer, "model")


def _result(
    job: Job, timer: UpdateTimer, before: float, modules: list[nn.Module], optimizer: torch.optim.Optimizer, critic: str
) -> dict[str, Any]:
    highest, on_gpu = devices.highest_resident_bytes() / MB, torch.cuda.is_available()
    before, highest = _of_all(before), _of_all(highest)
    sizes = Matrices.of(job.policy)
    for entry in timer.entries:
        entry["flops"] = useful_flops(
            entry["prompt_tokens"], entry["response_tokens"], sizes, job.section.passes, critic
        )
    weights = weights_bytes(modules, optimizer)
    base = tensor_bytes([p for name, p in job.base.named_parameters() if not adapters.is_adapter_parameter(name)])
    return {
        "updates": timer.entries,
        "lengths": timer.lengths,
        "peak_rss_mb": highest,
        "baseline_rss_mb": before,
        "weights_mb": weights / MB,
        "base_models": weights / base,
        "peak_device_mb": torch.cuda.max_memory_allocated() / MB if on_gpu else None,
        "reserved_device_mb": torch.cuda.max_memory_reserved() / MB if on_gpu else None,
        "threads": torch.get_num_threads(),
        "device": str(devices.device()),
        "device_name": torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU",
    }


def _of_all(own: float) -> float:
    """Add up a number over the processes."""
    processes = Processes.here()
    return sum(processes.over(range(processes.count), lambda _: [own]))


def main(engine: str, folder: str, out: str) -> None:
    """Measure one engine on the files that `prepare` wrote to `folder`; of several processes the first one writes."""
    join()
    job = Job.load(Path(folder))
    result = {RLHFCTL: run_rlhfctl, TRL: run_trl}[engine](job)
    if Processes.here().first:
        fs.write_json(Path(out), result)
    if Processes.here().count > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
