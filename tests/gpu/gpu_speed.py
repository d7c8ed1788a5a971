"""The rows of check.sh about speed and memory: PPO on a 1B Llama shape with random weights, beside TRL's trainer.

Uses the workers of `rlhfctl bench ppo`: each engine runs in a process of its own, on the same model, prompts, lengths
and settings. The first update is not counted. All prompts have the same length, and so have all responses.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gpu_rows import Budget, Outcome, Row
from transformers import AutoConfig, AutoModelForCausalLM

from rlhfctl import fs
from rlhfctl.errors import EngineError
from rlhfctl.models import build, devices, loading, tokenizing
from rlhfctl.planning.memory import MemoryEstimate, ModelSpec
from rlhfctl.planning.ppo_memory import ppo_outlook
from rlhfctl.recipe.schema import Init, Lora, Model, Ppo
from rlhfctl.tools.bench.bench import run_worker, summarise
from rlhfctl.tools.bench.inputs import prepare
from rlhfctl.tools.bench.workload import MB, RLHFCTL, SEED, TRL, WARM_UP, Workload, comparable
from rlhfctl.training.trl.quiet import quiet_libraries

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """The size of what is measured: a Llama shape, and the work.

    `rows`: episodes per update; `together`: episodes per optimizer step.
    """

    shape: dict[str, Any]
    prompt: int
    response: int
    rows: int
    together: int
    updates: int
    least: float  # seconds that must be left for a row to begin: a guess

    @property
    def sentence(self) -> str:
        """The work in words, for the table."""
        count, length = self.rows * self.updates, self.prompt
        return (
            f"PPO with LoRA (r = 16) in bfloat16 on a Llama shape of {self.shape['num_hidden_layers']} layers, width "
            f"{self.shape['hidden_size']}, vocabulary {self.shape['vocab_size']:,}: {count} episodes in {self.updates} "
            f"updates after one that is not counted, prompts of {length} and responses of {self.response} tokens, one "
            f"PPO epoch, {self.together} episodes per optimizer step. Tokens are those of prompts and responses."
        )


FULL = Size(  # the shape of Llama 3.2 1B
    shape={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    prompt=256,
    response=256,
    rows=128,
    together=16,
    updates=4,
    least=45,
)
TOY = Size(
    shape={
        "vocab_size": 66,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
    prompt=6,
    response=6,
    rows=4,
    together=2,
    updates=2,
    least=0,
)


class Speed:
    """The files that the engines share, made when they are first asked for, and the rows' measurements."""

    def __init__(self, folder: Path, size: Size, budget: Budget) -> None:
        self.folder = folder
        self.size = size
        self.budget = budget
        self.speeds: dict[str, float] = {}  # by ppo.sampler, of critic: head

    def rows(self) -> list[Row]:
        """One row per engine, kind of critic, and sampler. The toy's are quick, one per engine."""
        least, quick = self.size.least, self.size is TOY
        return [
            Row("rlhfctl, head", lambda: self.measured(RLHFCTL, "head", "batch"), least, quick),
            Row("rlhfctl, head, slots", lambda: self.measured(RLHFCTL, "head", "slots"), least),
            Row("TRL's PPOTrainer", lambda: self.measured(TRL, "model", "batch"), least, quick),
            Row("rlhfctl, adapter, faster sampler", self._adapter, least),
        ]

    @cached_property
    def workload(self) -> Workload:
        """The work, on a model that is made here: random weights, drawn on the device that computes."""
        size = self.size
        ppo = Ppo(
            lora=Lora(r=16),
            per_device_train_batch_size=size.rows,
            local_rollout_forward_batch_size=max(1, size.rows // 2),
            num_mini_batches=size.rows // size.together,
            num_ppo_epochs=1,
            response_length=size.response,
            temperature=1.0,
        )
        made = Model(
            path=str(make_model(size.shape, size.prompt + size.response, self.folder / "made")), dtype="bfloat16"
        )
        return Workload("1B", made, ppo, size.updates, (size.prompt, size.prompt), ends=False)

    @cached_property
    def files(self) -> Path:
        """The folder that every worker reads; its job is written anew for each row."""
        with quiet_libraries(self.folder / "libraries.log"):
            work = self.workload
            self.libraries = devices.resident_bytes()
            prepare(work, self.section("head"), self.folder)
        return self.folder

    def section(self, critic: str, sampler: str = "batch") -> Ppo:
        ppo = self.workload.ppo.model_copy(update={"sampler": sampler})
        return comparable(ppo, self.size.updates, critic, ends=False)

    def _adapter(self) -> Outcome:
        return self.measured(RLHFCTL, "adapter", max(self.speeds, key=self.speeds.__getitem__, default="batch"))

    def measured(self, engine: str, critic: str, sampler: str) -> Outcome:
        """Run one engine, and set its peak memory beside plan's forecast."""
        folder, section = self.files, self.section(critic, sampler)
        job = json.loads((folder / "job.json").read_text(encoding="utf-8")) | {"ppo": section.model_dump(mode="json")}
        fs.write_json(folder / "job.json", job)
        left = self.budget.left()
        try:
            run = run_worker(engine, folder, timeout=left)
        except subprocess.TimeoutExpired:
            tokens = (self.size.prompt + self.size.response) * self.size.rows * (self.size.updates + WARM_UP)
            return Outcome(None, f"stopped after {left:.0f} s: less than {tokens / left:,.0f} tokens/s")
        except EngineError as error:
            if engine == TRL and "out of memory" in str(error).lower():
                return Outcome(None, "ran out of the device's memory")
            raise
        figures = figures_of(run)
        if engine == RLHFCTL:
            figures |= beside_plan(figures["peak_gib"], self.forecast(section).peak.total / GIB)
            figures["sampler"] = sampler
            if critic == "head":
                self.speeds[sampler] = figures["tokens_per_s"]
        memory = f", plan {figures['plan_gib']:.2f} ({figures['plan_error']:+.0%})" if engine == RLHFCTL else ""
        why = f"{figures['tokens_per_s']:,.0f} tokens/s, peak {figures['peak_gib']:.2f} GiB{memory}"
        return Outcome(True, why, figures)

    def forecast(self, section: Ppo) -> MemoryEstimate:
        """What `rlhfctl plan` foresees for this work."""
        config = AutoConfig.from_pretrained(self.files / "base")
        spec = ModelSpec(config, loading.torch_dtype("bfloat16"))
        estimate = ppo_outlook(spec, section, self.size.prompt, spec, shared=True)
        return estimate if torch.cuda.is_available() else with_libraries(estimate, self.libraries)


def make_model(shape: dict[str, Any], context: int, folder: Path) -> Path:
    """Write a Llama model with random weights, made on the device that computes, and a tokenizer of whole words."""
    words = [f"w{index} " for index in range(shape["vocab_size"] - 2)]
    init = Init(hidden_size=2, num_hidden_layers=1, num_attention_heads=1, tokens=words)
    tokenizer = tokenizing.train_tokenizer(init, [])
    config = AutoConfig.for_model(
        "llama",
        **(shape | {"vocab_size": len(tokenizer)}),
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    with torch.device(devices.device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    build.save_model(model, tokenizer, folder)
    del model
    devices.release_memory()
    return folder


def figures_of(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of one worker: tokens per second, the share of each phase, MFU, peak memory in GiB."""
    found = summarise([run], rate=1.0)
    seconds = sum(entry["seconds"] for entry in run["updates"])
    shares = {
        name: sum(entry[key] for entry in run["updates"]) / seconds
        for name, key in (("sampling", "rollout_s"), ("scoring", "score_s"), ("learning", "update_s"))
    }
    peak = found.get("peak_device_mb", found["peak_rss_mb"])
    figures = {
        "tokens_per_s": found["tokens_per_s"],
        "seconds": seconds,
        "episodes": sum(entry["episodes"] for entry in run["updates"]),
        "shares": shares,
        "mfu": found["mfu"],
        "flops": found["flops_per_update"] * found["updates"],
        "peak_gib": peak * MB / GIB,
    }
    if "reserved_device_mb" in found:
        figures["reserved_gib"] = found["reserved_device_mb"] * MB / GIB
    return figures


def beside_plan(measured: float, foreseen: float) -> dict[str, float]:
    """Plan's forecast in GiB, and its error as a share of what was measured."""
    return {"plan_gib": foreseen, "plan_error": foreseen / measured - 1}


def with_libraries(estimate: MemoryEstimate, libraries: int) -> MemoryEstimate:
    """Add the bytes of the libraries to each moment: a process's resident size holds them, a GPU's memory does not."""
    moments = [replace(one, needs={**one.needs, "libraries": {"weights": libraries}}) for one in estimate.moments]
    return replace(estimate, moments=tuple(moments))
