"""`export`: folders load without rlhfctl and give the recorded numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from rlhfctl import pipeline
from rlhfctl.cli import app
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import build, heads, loading, merging, scoring, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init
from rlhfctl.tools.export import export

VARIANTS = {
    "sft": ("sft", False),
    "reward": ("reward", False),
    "ppo": ("ppo", False),
    "critic": ("critic", False),
    "critic-adapter": ("critic", True),
    "reward-adapter": ("reward", True),
    "ppo-adapter": ("ppo", True),
    "chat-adapter": ("sft", True),
}

# Runs printed snippets one after another and writes what each loaded model gives, in plain transformers.
RUNNER = """
import json, os, sys, torch
cases, results = json.load(open("cases.json")), {}
for name, case in cases.items():
    os.chdir(case["cwd"])
    space = {}
    exec(case["snippet"], space)
    tokenizer, model = space["tokenizer"], space["model"].eval()
    numbers = []
    for row in case["rows"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits
        if logits.dim() == 3:
            logp = torch.log_softmax(logits[0, :-1].double(), -1)
            numbers += [float(logp[i, t]) for i, t in enumerate(row[1:])]
        else:
            numbers.append(float(logits[0, 0]))
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    results[name] = {"numbers": numbers, "pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id, "ends": ends}
assert not [name for name in sys.modules if name.partition(".")[0] == "rlhfctl"]
json.dump(results, open(sys.argv[1], "w"))
"""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def flat(numbers: Any) -> list[float]:
    return [n for item in numbers for n in (item if isinstance(item, list) else [item])]


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on a base that pads with end-of-sequence, under a template whose turns end in a token of its own."""
    folder = tmp_path_factory.mktemp("chat")
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300, max_position_embeddings=96)
    tokenizer = tokenizing.train_tokenizer(init, ["ask me something", "user assistant"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.pad_token = tokenizer.eos_token
    build.save_model(build.build_model(init, tokenizer, seed=0, dtype=torch.float32), tokenizer, folder / "base")
    (folder / "chat.jinja").write_text(TEMPLATE)
    row = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "me"}]}
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8)
    (folder / "recipe.yaml").write_text(
        "name: chat\nmodel: {path: base, chat_template: chat.jinja}\nlora: {r: 4, lora_alpha: 8}\n"
        "data: {demonstrations: {source: rows.jsonl}}\n"
        "sft: {trainer: {max_steps: 2, learning_rate: 1e-2, per_device_train_batch_size: 4}}\n"
    )
    (folder / "run").mkdir()
    pipeline.run(load_recipe(folder / "recipe.yaml"), folder / "run", pipeline.Request(), lambda event: None)
    return folder / "run"


@pytest.fixture(scope="module")
def exported(tiny_run: Path, chat_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every variant's folder, and what its printed snippet gave in a process without rlhfctl."""
    folder = tmp_path_factory.mktemp("exported")
    cases, folders = {}, {}
    for name, (stage, adapter) in VARIANTS.items():
        to = folders[name] = folder / f'it\'s "{name}"'
        lines = export(chat_run if name.startswith("chat") else tiny_run, stage, to, adapter=adapter)
        probes = to if stage != "critic" else tiny_run / "ppo"
        rows = json.loads((probes / "probes.json").read_text())["rows"]
        snippet = "\n".join(lines[lines.index("load it with:") + 1 :])
        cases[name] = {"snippet": snippet, "rows": rows, "cwd": str(folder)}
    readme = (folders["ppo-adapter"] / "README.md").read_text()
    inside = readme.partition("```python\n")[2].partition("```")[0]
    cases["readme"] = cases["ppo-adapter"] | {"snippet": inside, "cwd": str(folders["ppo-adapter"])}
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", RUNNER, str(folder / "results.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"folders": folders, "results": json.loads((folder / "results.json").read_text())}


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("critic")] + ["readme"])
def test_the_snippet_gives_the_recorded_numbers(
    tiny_run: Path, chat_run: Path, exported: dict[str, Any], name: str
) -> None:
    variant = "ppo-adapter" if name == "readme" else name
    to, got, (stage, adapter) = exported["folders"][variant], exported["results"][name], VARIANTS[variant]
    run = chat_run if name.startswith("chat") else tiny_run
    kept = json.loads((to / "probes.json").read_text())
    assert kept == json.loads((run / stage / "probes.json").read_text())
    expected = flat(kept["scores" if stage == "reward" else "logprobs"])
    assert len(set(expected)) > 1
    assert got["numbers"] == pytest.approx(expected, abs=1e-5)
    own = tokenizing.load_tokenizer(str(run / "sft" / "model"))
    assert (got["pad"], got["eos"]) == (own.pad_token_id, own.eos_token_id)
    ends = got["ends"] if isinstance(got["ends"], list) else [got["ends"]]
    assert stage == "reward" or ends[0] == own.eos_token_id
    for folder in (to, to / "base") if adapter else (to,):
        theirs = tokenizing.load_tokenizer(str(folder))
        assert tokenizing.tokenizer_fingerprint(theirs) == tokenizing.tokenizer_fingerprint(own)
        assert tokenizing.template_fingerprint(theirs) == tokenizing.template_fingerprint(own)
    manifest = json.loads((run / stage / "manifest.json").read_text())
    assert manifest["fingerprint"] in (to / "README.md").read_text()


@pytest.mark.parametrize("name", ["reward-adapter", "ppo-adapter"])
def test_an_adapter_carries_its_base(tiny_run: Path, exported: dict[str, Any], name: str) -> None:
    to = exported["folders"][name]
    assert json.loads((to / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    ours = loading.load_causal_lm(str(to / "base"), dtype=torch.float32).state_dict()
    base = loading.load_causal_lm(str(tiny_run / "sft" / "model"), dtype=torch.float32).state_dict()
    assert ours.keys() == base.keys()
    assert all(torch.equal(ours[key], base[key]) for key in base)
    assert not (exported["folders"][name.partition("-")[0]] / "adapter_config.json").exists()


def test_the_chat_base_ends_turns_with_its_template(chat_run: Path) -> None:
    """Else the variant above would show nothing."""
    tokenizer = tokenizing.load_tokenizer(str(chat_run / "sft" / "model"))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", tokenizing.PAD_TOKEN)


def test_the_critic_is_exported_as_it_was_trained(tiny_run: Path, exported: dict[str, Any]) -> None:
    rows = json.loads((tiny_run / "ppo" / "probes.json").read_text())["rows"]
    pad = tokenizing.load_tokenizer(str(exported["folders"]["critic"])).pad_token_id
    base = loading.load_causal_lm(str(tiny_run / "sft" / "model"), dtype=torch.float32)
    trained = merging.load_adapter(heads.scorer_on(base, seed=0), tiny_run / "ppo" / "critic")
    expected = scoring.score_rows(trained, rows, pad)
    assert exported["results"]["critic"]["numbers"] == pytest.approx(expected, abs=1e-5)
    assert exported["results"]["critic-adapter"]["numbers"] == pytest.approx(expected, abs=1e-5)
    # It has moved from the reward model that it began as, so the two are not mixed up.
    reward = loading.load_scorer(str(exported["folders"]["reward"]), dtype=torch.float32)
    assert scoring.score_rows(reward, rows, pad) != pytest.approx(expected, abs=1e-4)


def test_the_command_prints_what_it_did(tiny_run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tiny_run), "--to", str(tmp_path / "new" / "policy")])
    assert result.exit_code == 0, result.output
    assert f"exported ppo to {tmp_path / 'new' / 'policy'}" in result.output  # ppo is the default
    assert "AutoModelForCausalLM" in result.output
    assert (tmp_path / "new" / "policy" / "model.safetensors").is_file()


def test_what_cannot_be_exported_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    for to in (full, full / "mine.txt"):
        with pytest.raises(RlhfctlError, match="not empty"):
            export(tiny_run, "sft", to, adapter=False)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    with pytest.raises(RlhfctlError, match="no stage 'critik'"):
        export(tiny_run, "critik", tmp_path / "x", adapter=False)
    with pytest.raises(RlhfctlError, match=r"recipe\.yaml is missing"):
        export(tmp_path, "sft", tmp_path / "x", adapter=False)
    with pytest.raises(RlhfctlError, match="trained whole, without LoRA"):
        export(tiny_run, "sft", tmp_path / "x", adapter=True)
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_bytes((tiny_run / "recipe.yaml").read_bytes())
    with pytest.raises(HandoffError, match="does not exist"):
        export(unfinished, "sft", tmp_path / "x", adapter=False)
    assert not (tmp_path / "x").exists()


def test_an_empty_folder_will_do(tiny_run: Path, tmp_path: Path) -> None:
    to = tmp_path / "empty"
    to.mkdir()
    export(tiny_run, "sft", to, adapter=False)
    assert (to / "model.safetensors").is_file()


# ---------------------------------------------------------------- reward models: down to the number, alone and padded

# Runs the README of each folder named and writes what it printed, and what its model gives for the kept rows at once.
SCORED = """
import contextlib, io, json, os, sys
from pathlib import Path
results = {}
for folder in map(Path, sys.argv[1:]):
    os.chdir(folder)
    code = Path("README.md").read_text().partition("```python\\n")[2].partition("```")[0]
    space, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, space)
    tokenizer, model, torch = space["tokenizer"], space["model"].eval(), space["torch"]
    kept = json.loads(Path("probes.json").read_text())
    texts = [tokenizer.decode(row) for row in kept["rows"]]
    together = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = model(input_ids=together.input_ids, attention_mask=together.attention_mask).logits[:, 0].tolist()
        by_pad_id = model(input_ids=together.input_ids).logits[:, 0].tolist()
    same = together.input_ids[0, : len(kept["rows"][0])].tolist() == kept["rows"][0]
    results[str(folder)] = {"printed": float(out.getvalue()), "padded": padded, "by_pad_id": by_pad_id, "same": same,
                            "side": tokenizer.padding_side, "class": type(model).__name__}
assert not [name for name in sys.modules if name.partition(".")[0] == "rlhfctl"]
print(json.dumps(results))
"""

REWARD_RUN = """\
name: t
model: {path: base}
lora: {r: 2, lora_alpha: 4}
data: {preferences: {source: pairs.jsonl, heldout: 0.5}}
reward: {trainer: {max_steps: 2, learning_rate: 1e-2, per_device_train_batch_size: 4}}
"""
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BASES: dict[str, dict[str, Any]] = {
    "granite": SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 160},  # no class of its own
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 160},  # positions count from the first token
    "olmoe": SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 160},  # conversations
}


def reward_run(folder: Path, kind: str) -> Path:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300, max_position_embeddings=96)
    tokenizer = tokenizing.train_tokenizer(init, ["ask me something"])
    tokenizer.pad_token = tokenizer.eos_token  # as many bases come
    if kind == "olmoe":
        tokenizer.chat_template = TEMPLATE.replace("<|im_end|>", tokenizer.eos_token)
    config = AutoConfig.for_model(kind, **BASES[kind], vocab_size=300, eos_token_id=0, bos_token_id=0, pad_token_id=0)
    torch.manual_seed(0)
    build.save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder / "base")

    def said(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if kind == "olmoe" else text

    rows = [
        {
            "prompt": said("user", f'Is {n} "good"? '),
            "chosen": said("assistant", "Yes, it's good." + "!" * n),
            "rejected": said("assistant", "No."),
        }
        for n in range(8)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(REWARD_RUN)
    (folder / "run").mkdir()
    pipeline.run(load_recipe(folder / "recipe.yaml"), folder / "run", pipeline.Request(), lambda event: None)
    return folder / "run"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str], dict[str, Any]]]:
    """kind -> exported folder, printed lines, what its README gave in a process without rlhfctl."""
    made: dict[str, tuple[Path, list[str]]] = {}
    for kind in BASES:
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = folder / "out", export(reward_run(folder, kind), "reward", folder / "out", adapter=False)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", SCORED, *(str(to) for to, _ in made.values())]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {kind: (to, lines, results[str(to)]) for kind, (to, lines) in made.items()}


@pytest.mark.parametrize("kind", BASES)
def test_a_reward_model_goes_down_to_the_number_alone_and_padded(kind: str, scored: Any) -> None:
    """Its README, executed in a process without rlhfctl; then all kept rows in one padded batch."""
    to, lines, result = scored[kind]
    readme = (to / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    kept = json.loads((to / "probes.json").read_text())
    promised = readme.partition("It prints ")[2].partition(" ")[0]
    assert result["printed"] == pytest.approx(float(promised), abs=1e-4)
    shortest = min(range(len(kept["rows"])), key=lambda index: len(kept["rows"][index]))
    assert result["printed"] == pytest.approx(kept["scores"][shortest], abs=1e-5)
    assert repr(kept["examples"][shortest]["response"]) in code and result["same"]
    assert len({len(row) for row in kept["rows"]}) > 2 and len({round(score, 4) for score in kept["scores"]}) > 4
    assert result["padded"] == pytest.approx(kept["scores"], abs=1e-5)
    assert result["by_pad_id"] == pytest.approx(kept["scores"], abs=1e-5)
    assert result["side"] == "right"
    family = {"granite": "Granite", "gpt2": "GPT2", "olmoe": "Olmoe"}[kind]
    assert result["class"] == f"{family}ForSequenceClassification"
    assert (to / f"reward_head_{kind}.py").is_file() is (kind != "gpt2")
    assert lines[lines.index("load it with:") + 2 :] == [
        line.replace('folder = "."', f"folder = {json.dumps(str(to))}") for line in code.rstrip().splitlines()
    ]
    # It is a reward model that recipes take, too.
    assert type(loading.load_scorer(str(to), dtype=torch.float32)).__name__ == result["class"]


def test_trust_remote_code_finds_the_class_beside_the_weights(
    scored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    to, _, _ = scored["granite"]
    kept = json.loads((to / "probes.json").read_text())
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForSequenceClassification.from_pretrained(to, num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(to, num_labels=1, trust_remote_code=True)
    with torch.no_grad():
        scores = [float(model.eval()(input_ids=torch.tensor([row])).logits) for row in kept["rows"][:4]]
    assert scores == pytest.approx(kept["scores"][:4], abs=1e-5)
