"""The base stage: the recipe's model is published unchanged, with a tokenizer and recorded outputs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import run_here

from rlhfctl.artifacts import load_artifact
from rlhfctl.models import build, loading, scoring, tokenizing
from rlhfctl.recipe.load import load_recipe

RECIPE = """\
name: untrained
seed: 3
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}
data: {prompts: {source: prompts.jsonl, test: 4}}
reward: {function: "scores:length"}
ppo: {lora: null, per_device_train_batch_size: 8, total_episodes: 8, response_length: 4}
"""


def test_new_weights_are_published_as_they_were_made(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "scores.py").write_text(
        "def length(prompts, completions): return [float(len(c)) for c in completions]\n"
    )
    prompts = ["ab"[number % 2] * (2 + number // 2) for number in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    result = run_here("run", "recipe.yaml", "--until", "base", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    made = load_artifact(tmp_path / "run" / "base")
    made.verify()
    assert made.manifest.layout == {"model": "model", "probes": "probes.json"}
    tokenizer = tokenizing.load_tokenizer(str(made.part("model")))
    model = loading.load_causal_lm(str(made.part("model")), dtype=torch.float32)
    init = load_recipe(tmp_path / "recipe.yaml").recipe.model.init
    assert init is not None
    start = build.build_model(init, tokenizer, seed=3, dtype=torch.float32)
    for (name, before), after in zip(start.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after), name
    assert made.manifest.metrics == {"parameters": build.count_parameters(model)[1]}
    recorded = json.loads(made.part("probes").read_text())
    assert recorded["rows"] and all(tokenizer.decode(row) in prompts for row in recorded["rows"])
    again = scoring.sequence_logprobs(model, recorded["rows"], tokenizer.pad_token_id)
    assert (
        max(abs(a - b) for x, y in zip(again, recorded["logprobs"], strict=True) for a, b in zip(x, y, strict=True))
        < 1e-5
    )
