"""A base held in 8 or 4 bits: adapters are trained on it by every stage, and what is handed on is what was trained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Cli
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import build, heads, loading, quantization

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def recipe(folder: Path, base: Path, quantization: str, changes: dict[str, str] | None = None) -> Path:
    """The tiny recipe on a pretrained folder, with adapters in every stage."""
    head, rest = TINY.split("model:\n")
    _, rest = rest.split("lora: {r: 4")
    text = f"{head}model: {{path: {base}, quantization: {quantization}}}\nlora: {{r: 4{rest}"
    text = text.replace("sft:\n  lora: null\n", "sft:\n")
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "quantized.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def manifest(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))
    return found


@needs_bitsandbytes
@pytest.mark.ci
@pytest.mark.parametrize("quantization", [pytest.param("4bit", marks=pytest.mark.slow), "8bit"])
def test_the_whole_run_on_a_quantized_base(quantization: str, tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    base = tiny_run / "sft" / "model"
    run = tmp_path / "run"
    done = cli("run", str(recipe(tmp_path, base, quantization)), "--run-dir", str(run))
    assert done.returncode == 0, done.stdout + done.stderr

    # base* is whole, in full precision, and has the adapter in it.
    whole = AutoModelForCausalLM.from_pretrained(run / "sft" / "model")
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    start = AutoModelForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(start, run / "sft" / "adapter").merge_and_unload()
    for name, parameter in adapted.named_parameters():
        torch.testing.assert_close(dict(whole.named_parameters())[name], parameter, atol=1e-6, rtol=1e-5)
    assert not torch.equal(
        whole.model.layers[0].self_attn.q_proj.weight,
        AutoModelForCausalLM.from_pretrained(base).model.layers[0].self_attn.q_proj.weight,
    )
    assert 0 < manifest(run, "sft")["metrics"]["reload_gap"] < 2.0  # quantizing base* moves it, and that is reported
    assert manifest(run, "reward")["metrics"]["reload_gap"] < 1e-4

    # The policy and its critic are adapters that a plain model takes.
    for part in ("adapter", "critic"):
        assert (run / "ppo" / part / "adapter_model.safetensors").is_file()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = [e for e in events if e.get("event") == "metrics" and e.get("stage") == "ppo" and "ratio" in e["values"]]
    assert len(updates) == 2
    assert updates[0]["values"]["kl"] == pytest.approx(0.0, abs=1e-6)  # policy and reference are one model at step 0
    assert abs(updates[0]["values"]["ratio"] - 1) < 0.2

    again = cli("run", str(tmp_path / "quantized.yaml"), "--run-dir", str(run))
    assert again.returncode == 0 and "unchanged" in again.stdout + again.stderr


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "kind"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_layers_are_held_in_few_bits_but_heads_and_embeddings_are_not(
    quantization: str, kind: str, tiny_run: Path
) -> None:
    folder = str(tiny_run / "sft" / "model")
    plain = loading.load_causal_lm(folder, dtype=torch.float32)
    model = loading.load_causal_lm(folder, dtype=torch.float32, quantization=quantization)
    assert loading.is_quantized(model) and not loading.is_quantized(plain)
    assert build.to_device(model) is model
    assert type(model.model.layers[0].mlp.up_proj).__name__ == kind
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))
    scorer, same, other = (heads.scorer_around(model, seed=seed) for seed in (3, 3, 4))
    assert scorer.model is model.model and loading.is_quantized(scorer)  # one backbone, loaded once
    assert type(scorer.model.layers[0].mlp.up_proj).__name__ == kind and type(scorer.score).__name__ == "Linear"
    assert not [name for name, parameter in scorer.named_parameters() if parameter.is_meta]
    assert torch.equal(scorer.score.weight, same.score.weight)
    assert not torch.equal(scorer.score.weight, other.score.weight)


# ---------------------------------------------------------------- whatever the processor


@pytest.fixture(params=[True, False], ids=["avx512_bf16", "portable"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """bitsandbytes as it is on a processor with AVX512-BF16, and on one without, whatever this one is."""
    pytest.importorskip("bitsandbytes")
    import bitsandbytes.nn.modules as layers

    monkeypatch.setattr(layers, "has_avx512bf16", lambda: request.param)
    return bool(request.param)


def test_a_model_in_4_bits_gives_the_same_numbers_on_every_processor(
    processor: bool, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_run / "sft" / "model")
    model = loading.load_causal_lm(folder, dtype=torch.float32, quantization="4bit").eval()
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        found = model(ids).logits
    whole = loading.load_causal_lm(folder, dtype=torch.float32).eval()
    for name, layer in model.named_modules():
        if type(layer).__name__ == "Linear4bit":
            kept = bitsandbytes_weights(layer)
            whole.get_submodule(name).weight.data.copy_(kept)
    with torch.no_grad():
        torch.testing.assert_close(found, whole(ids).logits, atol=1e-5, rtol=1e-5)


def bitsandbytes_weights(layer: Any) -> torch.Tensor:
    import bitsandbytes.functional

    kept: torch.Tensor = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return kept


@pytest.mark.parametrize("width", [16, 32, 48, 64, 160])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_tiny_product_is_right_on_every_processor(processor: bool, bits: str, width: int) -> None:
    quantization.try_product(bits, width, torch.float32, torch.device("cpu"))


def test_the_kernel_for_avx512_bf16_fails_on_narrow_layers(processor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is turned off: with it, the tiny product says so before anything trains, in one message."""
    monkeypatch.setattr(quantization, "use_portable_products", lambda model: None)
    if not processor:
        quantization.try_product("4bit", 32, torch.float32, torch.device("cpu"))
        return
    with pytest.raises(RlhfctlError, match="4bit products of width 32 fail on this machine: shape") as caught:
        quantization.try_product("4bit", 32, torch.float32, torch.device("cpu"))
    assert caught.value.where == "model.quantization"


def test_wrong_products_are_refused_before_anything_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    right = quantization._layer

    def wrong(*given: Any) -> Any:
        layer, kept = right(*given)
        return layer, 1.5 * kept

    monkeypatch.setattr(quantization, "_layer", wrong)
    with pytest.raises(RlhfctlError, match="4bit products of width 64 are wrong on this machine: off by"):
        quantization.try_product("4bit", 64, torch.float32, torch.device("cpu"))


def test_without_bitsandbytes_it_says_what_to_install(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(RlhfctlError, match="bitsandbytes is not installed") as caught:
        loading.load_causal_lm(str(tiny_run / "sft" / "model"), dtype=torch.float32, quantization="4bit")
    assert caught.value.where == "model.quantization" and "rlhfctl[quantization]" in str(caught.value.fix)


@needs_bitsandbytes
@pytest.mark.ci
def test_a_base_that_is_an_adapter_is_refused(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    text = recipe(tmp_path, tiny_run / "sft" / "model", "4bit")
    given = cli("reward", str(text), "--policy", str(tiny_run / "ppo"), "--run-dir", str(tmp_path / "run"))
    assert given.returncode != 0
    assert "cannot be merged into quantized weights" in " ".join((given.stdout + given.stderr).split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft:\n": "sft:\n  lora: null\n"}, "the weights of a quantized base cannot be trained"),
        ({"ppo:\n": "ppo:\n  engine: trl\n"}, "trl holds critic and reward model whole"),
        ({"ppo:\n": "ppo:\n  critic: model\n"}, "model is a whole model to train, but the base is quantized"),
    ],
)
def test_what_a_quantized_base_cannot_do_is_refused(
    changes: dict[str, str], said: str, tmp_path: Path, cli: Cli
) -> None:
    given = cli("validate", str(recipe(tmp_path, tmp_path, "4bit", changes)))
    assert given.returncode != 0 and said in " ".join((given.stdout + given.stderr).split())


def test_new_weights_are_not_quantized(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(TINY.replace("model:\n", "model:\n  quantization: 8bit\n"), encoding="utf-8")
    given = cli("validate", str(path))
    assert given.returncode != 0 and "model.init makes new ones" in " ".join((given.stdout + given.stderr).split())
