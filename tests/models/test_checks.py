"""Models that cannot go through a recipe are refused before anything trains, with the reason and a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_here
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhfctl import pipeline
from rlhfctl.data.load import check_all
from rlhfctl.errors import EngineError, RlhfctlError
from rlhfctl.events import Event, Metrics, Note, Warned
from rlhfctl.models import checks, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init
from rlhfctl.tools import validate

SIZE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 270,
    "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = {"pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 270}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
RECIPE = """\
name: t
model: {path: model}
lora: {r: 2, lora_alpha: 4}
data:
  prompts: {source: prompts.jsonl, eval: 2, test: 4}
reward: {model: classifier}
ppo: {total_episodes: 8, per_device_train_batch_size: 8, response_length: 8, temperature: 1.0, eval: {every: 1}}
compare: {samples_per_prompt: 1, judges: [reward_model], bootstrap_samples: 100}
"""


def tokenizer_of() -> Any:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=270, max_position_embeddings=64)
    return tokenizing.train_tokenizer(init, ["ask me something"])


def write(folder: Path, config: Any, make: Any = None) -> Path:
    """A model folder; without `make` the configuration alone, which is all that is looked at before weights load."""
    if make is None:
        config.save_pretrained(folder)
    else:
        torch.manual_seed(0)
        make.from_config(config).save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder


def project(folder: Path, prompts: int = 16) -> Path:
    write(folder / "model", AutoConfig.for_model("llama", **SIZE, **TOKENS), AutoModelForCausalLM)
    rows = [{"prompt": f"{n}: tell me." + " Say more, be kind." * (n % 4 == 3)} for n in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "t5": (
        T5 | {"architectures": ["T5ForConditionalGeneration"]},
        "T5ForConditionalGeneration is an encoder-decoder: ",
    ),
    "bart": (BART, "bart is an encoder-decoder: it reads the prompt with one half and writes with the other"),
    "bert": (SIZE | {"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is no causal language model: each of its"),
    "roberta": (SIZE, "roberta is no causal language model: each of its tokens sees those after it"),
    "xlnet": ({"d_model": 64, "n_layer": 1, "n_head": 1}, "xlnet is no causal language model: each of its tokens sees"),
    "vit": ({}, "vit is no causal language model: transformers writes no text with the model type vit"),
    "modernbert-decoder": (SIZE, "the PPO engine does not know how models of the type modernbert-decoder compute"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_decoder_is_refused_with_the_reason_before_anything_runs(kind: str, tmp_path: Path) -> None:
    path = project(tmp_path)
    given, what = REFUSED[kind]
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("path: model", "path: other"))
    write(tmp_path / "other", AutoConfig.for_model(kind, **given))
    for call in (lambda: list(validate.check(load_recipe(path))), lambda: run(path, tmp_path / "run")):
        with pytest.raises(RlhfctlError) as caught:
            call()
        assert caught.value.what.startswith(what)
        assert "model.path" in str(caught.value.where) or str(tmp_path / "other") in str(caught.value.where)
        assert caught.value.fix is not None
    assert not list((tmp_path / "run").glob("*/manifest.json"))


def test_the_engine_of_trl_takes_what_ours_does_not_know(tmp_path: Path) -> None:
    path = project(tmp_path)
    write(tmp_path / "model", AutoConfig.for_model("modernbert-decoder", **SIZE))
    recipe = load_recipe(path, ["ppo.engine=trl"]).recipe
    checks.check_base(recipe, ["base", "ppo"])


@pytest.mark.parametrize("kind", ["bert", "electra", "roformer"])
def test_a_model_that_looks_ahead_is_found_where_its_configuration_is_silent(kind: str, tmp_path: Path) -> None:
    recipe = load_recipe(project(tmp_path)).recipe
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZE, **TOKENS))
    with torch.no_grad():  # as far from uniform as a trained model
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 4
    with pytest.raises(RlhfctlError, match="is no causal language model: the last token changes what is said before"):
        checks.check_loaded(model, recipe, "m")
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZE, **TOKENS, is_decoder=True))
    checks.check_loaded(decoder, load_recipe(tmp_path / "recipe.yaml", ["ppo.engine=trl"]).recipe, "m")


def test_logits_that_our_engine_does_not_compute_are_found_before_training(tmp_path: Path) -> None:
    recipe = load_recipe(project(tmp_path)).recipe
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZE, **TOKENS))
    checks.check_loaded(llama, recipe, "m")
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model("modernbert-decoder", **SIZE, **TOKENS))
    with pytest.raises(EngineError, match="computes its logits in a way that this engine does not know"):
        checks.check_loaded(decoder, recipe, "m")


def run(path: Path, folder: Path, *overrides: str, until: str = "compare") -> list[Event]:
    events: list[Event] = []
    folder.mkdir(exist_ok=True)
    pipeline.run(load_recipe(path, overrides), folder, pipeline.Request(until=until), events.append)
    return events


# ---------------------------------------------------------------- rewards from elsewhere


def classifier(folder: Path, labels: int = 2, positions: int = 48) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=positions, num_labels=labels,
                                  vocab_size=270, **TOKENS)  # fmt: skip
    write(folder / "classifier", config, AutoModelForSequenceClassification)


def test_a_label_is_asked_for_before_anything_is_made(tmp_path: Path) -> None:
    path = project(tmp_path)
    classifier(tmp_path)
    for command in (["validate", path, "--deep"], ["run", path, "--run-dir", tmp_path / "run"]):
        result = run_here(*command, cwd=tmp_path)
        assert result.returncode != 0 and "Traceback" not in result.stderr
        assert "a classifier with 2 labels (LABEL_0, LABEL_1), and a score is one number" in result.stderr
        assert "reward.label: LABEL_1" in result.stderr
    assert not list((tmp_path / "run").glob("*/manifest.json"))


@pytest.mark.ci
def test_ppo_and_the_verdict_score_with_a_label(tmp_path: Path) -> None:
    """A context too short for some prompts: told before the first stage, and never an index beyond the positions."""
    path = project(tmp_path)
    classifier(tmp_path, positions=30)
    events = run(path, tmp_path / "run", "reward.label=LABEL_1")
    first = next(event for event in events if isinstance(event, Warned))
    assert first.stage == "base"
    assert "classifier reads 30 tokens: 4 of 16 prompts with a response of 8 tokens are longer" in first.message
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any(note.endswith("the score is the log-odds of LABEL_1 for prompt + response") for note in notes)
    assert any(isinstance(event, Metrics) and "score" in event.values for event in events)
    rows = [json.loads(line) for line in (tmp_path / "run" / "compare" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all("reward_model" in row["policy_scores"] for row in rows)
    # Another label is another reward: what was made with the first is made again.
    loaded = load_recipe(path, ["reward.label=LABEL_0"])
    data = check_all(loaded.recipe.data, loaded.recipe.data_seed)
    plans = {plan.stage.name: plan for plan in pipeline.forecast(loaded, tmp_path / "run", data, pipeline.Request())}
    assert (plans["base"].action, plans["ppo"].action, plans["compare"].action) == ("skip", "run", "run")
    assert plans["ppo"].why == "changed: reward.label"


def test_a_response_longer_than_the_reward_models_context_is_an_error(tmp_path: Path) -> None:
    path = project(tmp_path)
    classifier(tmp_path, positions=8)
    with pytest.raises(RlhfctlError) as caught:
        list(validate.check(load_recipe(path, ["reward.label=1"])))
    assert "a response of 8 tokens is longer than the 8 tokens that the reward model" in str(caught.value)
    assert "ppo.response_length" in str(caught.value)


def test_a_scalar_head_with_a_shorter_context_is_warned_of_and_scores(tmp_path: Path) -> None:
    """The policy reads 64 tokens, the reward model with the same tokenizer has 24 positions."""
    path = project(tmp_path)
    classifier(tmp_path, labels=1, positions=24)
    warnings = [event.message for event in run(path, tmp_path / "run", until="ppo") if isinstance(event, Warned)]
    assert any("reads 24 tokens: " in warning and "the beginning of these is cut" in warning for warning in warnings)
    assert any("texts are longer than the 24 tokens that the reward model reads" in warning for warning in warnings)
    lines = [line for line in validate.check(load_recipe(path)) if line.startswith("warning: the reward model")]
    assert len(lines) == 1


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    path = project(tmp_path)
    write(tmp_path / "classifier", AutoConfig.for_model("llama", **SIZE, **TOKENS), AutoModelForCausalLM)
    with pytest.raises(RlhfctlError, match="saved as LlamaForCausalLM, which has no head that gives a score"):
        list(validate.check(load_recipe(path)))


def test_options_of_classifiers_are_refused_elsewhere(tmp_path: Path) -> None:
    path = project(tmp_path)
    classifier(tmp_path, labels=1)
    with pytest.raises(RlhfctlError, match=r"reward\.reads is for classifiers"):
        list(validate.check(load_recipe(path, ["reward.reads=pair"])))
    for override in ("reward={label: good, trainer: {max_steps: 1}}", 'reward={function: "m:f", label: 1}'):
        with pytest.raises(RlhfctlError, match=r"reward\.model names none"):
            load_recipe(path, [override])
