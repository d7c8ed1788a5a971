"""The benchmark: its report, its arithmetic, and that lengths are spread as planted."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Cli
from peft import TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl.errors import EngineError, RlhfctlError
from rlhfctl.generation import generator, local
from rlhfctl.models import adapters, build, tokenizing
from rlhfctl.recipe.schema import Init, Lora, Model
from rlhfctl.tools.bench import bench, inputs
from rlhfctl.tools.bench.costs import Matrices, tensor_bytes, useful_flops, weights_bytes
from rlhfctl.tools.bench.workers import Job, run_rlhfctl
from rlhfctl.tools.bench.workload import Workload, comparable, recipe_workload, reference_workload
from rlhfctl.training.trl import ppo as ppo_module

CONTRACT = ("episodes_per_s", "peak_rss_mb", "rollout_s", "score_s", "update_s", "flops_utilisation")


@pytest.mark.slow
def test_both_engines_are_measured(tiny_recipe: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "bench.json"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = cli("bench", "ppo", tiny_recipe, "--against", "trl", "--updates", 2, "--rounds", 1, "--json", file)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 60  # the processor's seconds, whatever else it does
    report = json.loads(file.read_text(encoding="utf-8"))
    engines = report["engines"]
    assert set(engines) == {"rlhfctl", "trl"}
    for engine in engines.values():
        for key in (*CONTRACT, "weights_mb", "base_models", "mean_length"):
            assert engine[key] > 0, key
        assert engine["updates"] == 2
        assert engine["flops_utilisation"] < 1
        assert 1 <= engine["min_length"] <= engine["mean_length"] <= engine["max_length"] <= 12
        phases = sum(engine[name] for name in ("rollout_s", "score_s", "update_s"))
        assert phases == pytest.approx(engine["update_seconds"], rel=1e-3)  # of two updates the median is the mean
    for key in ("episodes_per_s", "peak_rss_mb"):
        assert report["ratio"][key] == pytest.approx(engines["rlhfctl"][key] / engines["trl"][key])
    # One base for all roles here; policy, reward model and a trained critic (weights, gradients, two moments) there.
    assert engines["rlhfctl"]["base_models"] < 3 < 5 < engines["trl"]["base_models"]
    assert "ratio" in done.stdout and "episodes/s" in done.stdout


@pytest.mark.parametrize(
    ("critic", "lora"), [("adapter", True), ("head", True), ("model", True), ("head", False), ("model", False)]
)
def test_each_critic_is_measured(tiny_recipe: Path, tmp_path: Path, critic: str, lora: bool) -> None:
    work = recipe_workload(str(tiny_recipe))
    ppo = work.ppo if lora else work.ppo.model_copy(update={"lora": None})
    inputs.prepare(work, comparable(ppo, 1, critic), tmp_path)
    run = run_rlhfctl(Job.load(tmp_path))
    assert len(run["updates"]) == 1
    assert not run["recomputes"]
    found = bench.summarise([run], rate=1e12)
    assert found["episodes_per_s"] > 0
    # All weights: policy with gradients and two moments, reference, reward model, and the critic like the policy.
    whole = {"head": 4 + 1 + 1, "model": 4 + 1 + 1 + 4}
    if not lora:  # scorers have no output head
        assert whole[critic] - 1.5 < found["base_models"] <= whole[critic] + 0.1


def test_a_pretrained_model_is_taken_as_it_is(tmp_path: Path) -> None:
    model, tokenizer = small_model()
    build.save_model(model, tokenizer, tmp_path / "model")
    ppo = reference_workload("small").ppo.model_copy(update={"per_device_train_batch_size": 8, "response_length": 4})
    work = Workload("pretrained", Model(path=str(tmp_path / "model")), ppo, 1)
    notes = inputs.prepare(work, comparable(ppo, 1, "head"), tmp_path)
    assert "pretrained" in notes[0]
    job = Job.load(tmp_path)
    assert torch.equal(job.base.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert not {index for prompt in job.prompts for index in prompt} & set(tokenizer.all_special_ids)
    assert len(run_rlhfctl(job)["lengths"]) == 8


def test_useful_flops_by_hand() -> None:
    """3 prompt and 2 response tokens; 10 numbers in the trunk, 7 in the head, 2 in an adapter; 4 epochs."""
    sizes = Matrices(trunk=10, head=7, adapter=2)
    # a forward: trunk 2 x 10 x 5 = 100, adapter 2 x 2 x 5 = 20, head 2 x 7 x 2 = 28
    once = (100 + 20 + 28) + (100 + 28) + 100  # rollout, reference, reward model
    policy_epoch = 148 + 148 + 20  # forward, activations' gradient, the adapter's gradient
    assert useful_flops(3, 2, sizes, 4, "adapter") == once + 120 + 4 * (policy_epoch + 120 + 120 + 20)
    assert useful_flops(3, 2, sizes, 4, "model") == once + 100 + 4 * (policy_epoch + 3 * 100)
    assert useful_flops(3, 2, sizes, 4, "head") == once + 4 * policy_epoch
    whole = Matrices(trunk=10, head=7, adapter=0)  # no LoRA: the policy's own matrices are trained
    assert useful_flops(3, 2, whole, 1, "model") == 128 + 128 + 100 + 100 + 3 * 128 + 3 * 100


def small_model(**changes: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    init = Init(**{**sizes, "tokens": [f"w{index} " for index in range(198)], **changes})
    tokenizer = tokenizing.train_tokenizer(init, [])
    return build.build_model(init, tokenizer, seed=0, dtype=torch.float32), tokenizer


def test_matrices_of_a_model() -> None:
    model, _ = small_model()
    trunk = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert Matrices.of(model) == Matrices(trunk, 200 * 32, 0)
    adapted = adapters.add_lora(model, Lora(r=4), TaskType.CAUSAL_LM, seed=0)
    adapter = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    assert Matrices.of(adapted) == Matrices(trunk, 200 * 32, adapter)


def test_held_bytes_by_hand() -> None:
    """Shared storage counts once; the optimizer's moments once it has stepped, gradients always."""
    layer = torch.nn.Linear(8, 4, bias=False)
    assert tensor_bytes([layer.weight, layer.weight[:2], torch.zeros(3)]) == 4 * (8 * 4 + 3)
    tied = torch.nn.Linear(8, 4, bias=False)
    tied.weight = layer.weight
    optimizer = torch.optim.AdamW(layer.parameters())
    assert weights_bytes([layer, tied], optimizer) == 2 * 4 * 32
    layer(torch.ones(8)).sum().backward()
    optimizer.step()
    assert weights_bytes([layer, tied], optimizer) == 4 * 4 * 32 + 4  # and one count of steps


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_planted_lengths_are_spread(architecture: str) -> None:
    model, tokenizer = small_model(architecture=architecture, hidden_size=64)
    ids = inputs.plant_lengths(model, tokenizer, 64)
    prompts = [ids[first : first + 8] for first in range(20)] * 10
    sampling = generator.Sampling(64, 1.0, 200, seed=0)
    lengths = [len(response.ids) for response in local.sample(model, prompts, tokenizer, sampling)]
    early = sum(length < 4 for length in lengths)
    assert early <= len(lengths) * 0.02
    assert max(lengths) == 64
    assert 24 < statistics.fmean(lengths) < 35  # 3 + a geometric one of mean 30, cut at 64: 29.2
    assert statistics.pstdev(lengths) > 15


def test_without_trls_trainer_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise EngineError("no PPOTrainer")

    monkeypatch.setattr(ppo_module, "require", gone)
    monkeypatch.setattr(bench, "prepare", lambda *_: pytest.fail("started"))
    with pytest.raises(EngineError, match="no PPOTrainer"):
        bench.measured(reference_workload("small"), against="trl")


def test_a_failing_worker_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(EngineError, match="code 3:\nout of memory"):
        bench._run_worker("rlhfctl", tmp_path)


def test_an_adapter_critic_needs_lora() -> None:
    section = reference_workload("small").ppo.model_copy(update={"lora": None})
    with pytest.raises(RlhfctlError, match="needs LoRA"):
        comparable(section, 1, "adapter")


def test_help_loads_no_torch() -> None:
    code = """
import sys
from rlhfctl.cli import app
try:
    app(["bench", "ppo", "--help"], standalone_mode=False)
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--against" in done.stdout and "Example: rlhfctl bench ppo" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
