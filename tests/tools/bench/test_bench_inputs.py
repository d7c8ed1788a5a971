"""The inputs of both engines: pretrained models stay as they are, new ones get planted lengths."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from bench_models import small_model

from rlhfctl.generation import generator, local
from rlhfctl.models import build
from rlhfctl.recipe.schema import Model
from rlhfctl.tools.bench import inputs
from rlhfctl.tools.bench.workers import Job, run_rlhfctl
from rlhfctl.tools.bench.workload import Workload, comparable, reference_workload


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
