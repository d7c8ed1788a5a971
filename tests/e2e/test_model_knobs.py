"""What a recipe says about the model reaches every place: attention, number format, gradient checkpointing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file
from test_families import prepare, run_all
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhfctl.errors import HandoffError, RecipeError, RlhfctlError
from rlhfctl.events import Event, Metrics
from rlhfctl.models import architecture, build, devices, loading, scoring, tokenizing
from rlhfctl.models.heads import scorer_on
from rlhfctl.training.rl.collect import AGREEMENT

ALL = ("sft", "reward", "ppo")


def updates(events: list[Event]) -> list[dict[str, float]]:
    return [e.values for e in events if isinstance(e, Metrics) and e.stage == "ppo" and e.split == "train"]


def ready_reward_model(folder: Path) -> None:
    """A reward model from elsewhere on the same base, and a recipe that names it."""
    to = folder / "ready"
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1).save_pretrained(to)
    tokenizing.load_tokenizer(str(folder / "base")).save_pretrained(to)
    name_reward_model(folder, to)


def name_reward_model(folder: Path, path: Path) -> None:
    recipe = folder / "family.yaml"
    before, rest = recipe.read_text().split("reward:\n")
    recipe.write_text(f"{before}reward: {{model: {path}}}\nppo:\n" + rest.split("ppo:\n")[1])


# ---------------------------------------------------------------- attention


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often torch's fused attention, which is what `sdpa` is, was called."""
    calls = [0]
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        return real(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    yield calls


@pytest.mark.parametrize("ready", [False, True])
def test_eager_attention_is_what_every_model_of_a_run_has(ready: bool, kernel_calls: list[int], tmp_path: Path) -> None:
    """Policy, reference, critic, reward model (trained and from elsewhere), sampling and comparison."""
    overrides = prepare(FAMILIES["qwen3"], tmp_path)
    if ready:
        ready_reward_model(tmp_path)
        overrides += ["ppo.critic=model"]
    first, *_ = updates(run_all(tmp_path, *overrides, "model.attn_implementation=eager", "ppo.eval.every=1"))
    assert kernel_calls == [0]
    assert 0.0 < first["rollout_gap"] <= AGREEMENT and abs(first["kl"]) < 1e-5
    if not ready:
        again = run_all(tmp_path, *overrides, "model.attn_implementation=sdpa", "ppo.eval.every=1", until="reward")
        said = [event.message for event in again if hasattr(event, "message")]
        assert any("runs again: changed" in sentence and "model" in sentence for sentence in said)
        assert kernel_calls[0] > 10


def test_an_attention_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = prepare(FAMILIES["gemma2"], tmp_path)
    with pytest.raises(RlhfctlError, match="cannot have this attention: Gemma2ForCausalLM does not support") as caught:
        run_all(tmp_path, *overrides, "model.attn_implementation=sdpa", until="sft")
    assert str(caught.value.where).endswith("model.attn_implementation")
    flash = ("model.attn_implementation=flash_attention_2", "model.dtype=bfloat16")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(RlhfctlError, match="flash-attn is not installed") as caught:
        run_all(tmp_path, *overrides, *flash, until="sft")
    assert str(caught.value.where).endswith("model.attn_implementation") and "sdpa" in str(caught.value.fix)
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    monkeypatch.setattr(devices, "device", lambda: torch.device("cpu"))
    with pytest.raises(RlhfctlError, match="flash_attention_2 needs a GPU"):
        run_all(tmp_path, *overrides, *flash, until="sft")
    with pytest.raises(RecipeError, match="flash_attention_2 computes in 16 bits"):
        run_all(tmp_path, *overrides, flash[0])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_way_to_load_a_model_takes_the_attention(name: str, tmp_path: Path) -> None:
    folder = families.write(FAMILIES[name], tmp_path / "base")
    policy = loading.load_causal_lm(str(folder), dtype=torch.float32, attn_implementation="eager")
    scorer = scorer_on(policy, seed=0)
    scorer.save_pretrained(tmp_path / "scorer")
    loaded = loading.load_scorer(str(tmp_path / "scorer"), dtype=torch.float32, attn_implementation="eager")
    for model in (policy, scorer, loaded, build.copy_frozen(loaded)):
        assert model.config._attn_implementation == architecture.backbone(model).config._attn_implementation == "eager"
    plain = loading.load_scorer(str(tmp_path / "scorer"), dtype=torch.float32)
    assert plain.config._attn_implementation == "sdpa"
    assert scoring.score_rows(plain, [[7, 8, 9], [10]], 0) == pytest.approx(
        scoring.score_rows(loaded, [[7, 8, 9], [10]], 0), abs=1e-4
    )


# ---------------------------------------------------------------- gradient checkpointing


def forwards_by_stage(folder: Path, *overrides: str) -> Counter[str]:
    """How often feed-forward layers ran under autograd in each stage."""
    counts: Counter[str] = Counter()
    stage = ["sft"]

    def count(module: torch.nn.Module, given: Any) -> None:
        if type(module).__name__ in ("GPT2MLP", "OPTAttention") and torch.is_grad_enabled():
            counts[stage[0]] += 1

    hook = register_module_forward_pre_hook(count)
    try:
        for stage[0] in ALL:
            run_all(folder, *overrides, until=stage[0])
    finally:
        hook.remove()
    return counts


@pytest.mark.parametrize("name", ["opt", "gpt2"])  # adapters and all weights, both with dropout in their layers
def test_gradient_checkpointing_recomputes_in_every_stage_and_changes_no_weight(name: str, tmp_path: Path) -> None:
    family, counts = FAMILIES[name], []
    on = ("sft.trainer.gradient_checkpointing=true", "reward.trainer.gradient_checkpointing=true")
    for folder, more in ((tmp_path / "off", ()), (tmp_path / "on", (*on, "ppo.gradient_checkpointing=true"))):
        folder.mkdir()
        counts.append(forwards_by_stage(folder, *prepare(family, folder), *more))
    for stage in ALL:
        assert counts[1][stage] == 2 * counts[0][stage] > 0, stage
        files = sorted(
            p.relative_to(tmp_path / "off") for p in (tmp_path / "off" / "run" / stage).rglob("*.safetensors")
        )
        assert files
        for file in files:
            plain, recomputed = load_file(tmp_path / "off" / file), load_file(tmp_path / "on" / file)
            assert plain.keys() == recomputed.keys()
            for tensor in plain:
                torch.testing.assert_close(recomputed[tensor], plain[tensor], atol=1e-6, rtol=1e-6, msg=str(file))


# ---------------------------------------------------------------- number formats


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "mistral"), ("float16", "qwen3")])
def test_a_run_in_half_the_bits_is_so_to_the_end(dtype: str, name: str, tmp_path: Path) -> None:
    kind, overrides = loading.torch_dtype(dtype), prepare(FAMILIES[name], tmp_path)
    first, second = updates(run_all(tmp_path, *overrides, f"model.dtype={dtype}"))
    # The numbers of sampling are shown to be those of the update, within rounding, and then computed again.
    assert 0.0 < first["rollout_gap"] < 0.1 and 0.0 < second["rollout_gap"] < 0.1
    assert first["kl"] == 0.0 != second["kl"] and abs(first["ratio"] - 1.0) < 0.5
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "sft" / "model")
    assert {parameter.dtype for parameter in base.parameters()} == {kind}
    for stage in ("sft", "reward", "ppo"):
        for file in (tmp_path / "run" / stage).rglob("adapter_model.safetensors"):
            trained = [t for name, t in load_file(file).items() if ".lora_" in name or ".score." in name]
            assert trained and {tensor.dtype for tensor in trained} == {torch.float32}, file
    for file in [p for p in (tmp_path / "run").rglob("*.safetensors") if p.parent.parent.name in ("reward", "ppo")]:
        heads = [tensor for tensor_name, tensor in load_file(file).items() if "score" in tensor_name]
        assert all(head.dtype == torch.float32 and bool(head.any()) for head in heads)
    report = json.loads((tmp_path / "run" / "compare" / "compare.json").read_text())
    assert all(abs(report["judges"]["reward_model"][side]) < 100 for side in ("policy_mean", "reference_mean"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_learns_small_steps_whatever_the_format_of_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = families.write(FAMILIES["llama"], tmp_path / "base")
    scorer = scorer_on(loading.load_causal_lm(str(folder), dtype=dtype), seed=0)
    assert scorer.dtype == dtype and scorer.score.weight.dtype == torch.float32
    before = scorer.score.weight.detach().clone()
    optimizer = torch.optim.AdamW([scorer.score.weight], lr=1e-6, weight_decay=0.0)
    scorer(input_ids=torch.tensor([[7, 8, 9]])).logits.sum().mul(1e-4).backward()
    optimizer.step()
    moved = (scorer.score.weight.detach() - before).abs()
    assert bool((moved > 0).all()) and float(moved.max()) < 2e-6


def test_float16_weights_are_not_trained_whole(tmp_path: Path) -> None:
    overrides = prepare(FAMILIES["llama"], tmp_path)
    for more, key in ((("sft.lora=null",), "sft.lora"), (("ppo.critic=model",), "ppo.critic")):
        with pytest.raises(RecipeError, match=f"{key}: .*float16 weights cannot be trained") as caught:
            run_all(tmp_path, *overrides, "model.dtype=float16", *more)
        assert len(caught.value.problems) == 1


# ---------------------------------------------------------------- what the engine cannot do right is refused


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_embeddings_that_turn_with_the_length_are_refused_beyond_it(kind: str, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    context = {"max_position_embeddings": 24} if kind == "dynamic" else {}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 24}
    config = FAMILIES["qwen3"].config | context | {"rope_parameters": rope}
    family = dataclasses.replace(FAMILIES["qwen3"], config=config)
    overrides = [*prepare(family, tmp_path), "data.max_prompt_length=20", "data.overlong_prompts=truncate"]
    function = tmp_path / "scores.py"
    function.write_text("def score(prompts, completions):\n    return [float(len(text)) for text in completions]\n")
    recipe = tmp_path / "family.yaml"
    before, rest = recipe.read_text().split("sft:\n")
    ppo = rest.split("ppo:\n")[1].split("compare:")[0]
    recipe.write_text(f'{before}reward: {{function: "scores:score"}}\nppo:\n{ppo}')
    with pytest.raises(RlhfctlError, match="change when a sequence grows beyond 24 tokens"):
        run_all(tmp_path, *overrides)
    first, _ = updates(run_all(tmp_path, *overrides, "data.max_prompt_length=12"))
    assert first["rollout_gap"] <= AGREEMENT


def test_a_reward_model_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    families.write(FAMILIES["qwen3"], tmp_path / "base")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("bert", **shape, vocab_size=300, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "bert")
    tokenizing.load_tokenizer(str(tmp_path / "base")).save_pretrained(tmp_path / "bert")
    with pytest.raises(HandoffError, match="BertForSequenceClassification has no scalar head on its last token"):
        loading.load_scorer(str(tmp_path / "bert"), dtype=torch.float32)
    config = AutoConfig.for_model("llama", **FAMILIES["llama"].config, vocab_size=300, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "two")
    with pytest.raises(RlhfctlError, match="single output"):
        loading.load_scorer(str(tmp_path / "two"), dtype=torch.float32)


def test_a_reward_model_with_a_tokenizer_of_its_own_scores_in_the_comparison_too(tmp_path: Path) -> None:
    overrides = prepare(FAMILIES["phi"], tmp_path)
    theirs = families.write(FAMILIES["gemma2"], tmp_path / "theirs")  # begins texts with a token of its own
    torch.manual_seed(1)
    scorer = AutoModelForSequenceClassification.from_pretrained(theirs, num_labels=1)
    scorer.save_pretrained(theirs)
    name_reward_model(tmp_path, theirs)
    run_all(tmp_path, *overrides)
    rows = [json.loads(line) for line in (tmp_path / "run" / "compare" / "samples.jsonl").read_text().splitlines()]
    tokenizer = tokenizing.load_tokenizer(str(theirs))
    for row in rows[:4]:
        ids = [*tokenizer(row["prompt"] + row["policy"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            expected = float(scorer(input_ids=torch.tensor([ids])).logits)
        assert row["policy_scores"]["reward_model"] == pytest.approx(expected, abs=1e-4)
