"""The recipes that need the Hub and a GPU, run whole on stand-ins: what the real thing would execute is executed.

Data are a few rows of our own in the published columns, read by the real `datasets` with the recipe's own splits and
slices; models are tiny, but tokenizer and template have the real ones' peculiarities. Overrides only shrink sizes.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from rlhfctl import pipeline
from rlhfctl.events import Event, Metrics, Warned
from rlhfctl.models import build, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init

Row = dict[str, Any]
RECIPES = ROOT / "recipes"
PUBLISHED = ("instructgpt", "summarize-nplus", "ziegler-sentiment")
NAMES = ("chat-helpful-harmless", "tldr-1b", "chat-8b-4bit", *PUBLISHED)

# Of a recipe these may become smaller; everything else is run as it stands.
SIZES = (
    "data.prompts.eval=2", "data.prompts.test=4",
    "sft.trainer.per_device_train_batch_size=2", "sft.trainer.gradient_accumulation_steps=2",
    "reward.trainer.per_device_train_batch_size=4", "reward.trainer.gradient_accumulation_steps=2",
    "ppo.total_episodes=16", "ppo.per_device_train_batch_size=4", "ppo.gradient_accumulation_steps=2",
    "ppo.response_length=8", "ppo.eval.every=1", "compare.bootstrap_samples=100",
)  # fmt: skip

LEFT_OUT = {"ziegler-sentiment": ("sft.", "reward.")}  # stages that a recipe does not have

SMALL = Init(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=400, max_position_embeddings=512)

# ChatML as Qwen's tokenizers have it: a system turn of its own accord, and a newline after the token that ends a turn.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ---------------------------------------------------------------- rows in the published columns


def helpful_harmless(number: int) -> Row:
    """Two transcripts that part at the last answer; every seventh row of the set ends without one."""
    begun = f"\n\nHuman: How do I fix number {number}?\n\nAssistant: What is wrong?\n\nHuman: It broke.\n\nAssistant:"
    kind = "" if number % 7 == 6 else f" I am sorry. Glue part {number}."
    return {"chosen": begun + kind, "rejected": f"{begun} Throw it away."}


def post(number: int) -> str:
    return f"SUBREDDIT: r/fixing\n\nTITLE: Number {number}\n\nPOST: I broke number {number}. What now?\n\nTL;DR:"


def tldr(number: int) -> Row:
    return {"prompt": post(number), "completion": f" Broke number {number}, need help."}


def tldr_preference(number: int) -> Row:
    rejected = " Broke it." if number % 9 else " Broke it, help."  # a few pairs are alike
    return {"prompt": post(number), "chosen": " Broke it, help.", "rejected": rejected}


def ultrafeedback(number: int) -> Row:
    ask = {"content": f"Explain number {number}.", "role": "user"}
    answers = [{"content": text, "role": "assistant"} for text in (f"It is {number}, because.", "No.")]
    return {"chosen": [ask, answers[0]], "rejected": [ask, answers[1]], "score_chosen": 8.0, "score_rejected": 2.5}


def wikitext(number: int) -> Row:
    """Every fifth line of the set is empty."""
    return {"text": f" Number {number} is a number between {number - 1} and {number + 1} . " if number % 5 else ""}


def imdb(number: int) -> Row:
    return {"text": f"I have seen film {number} and it was worth the {number} minutes. " * 6, "label": number % 2}


HUB: dict[str, Callable[[int], Row]] = {
    "Anthropic/hh-rlhf": helpful_harmless,
    "trl-lib/tldr": tldr,
    "trl-lib/tldr-preference": tldr_preference,
    "trl-lib/ultrafeedback_binarized": ultrafeedback,
    "Salesforce/wikitext": wikitext,
    "stanfordnlp/imdb": imdb,
}
SUBSETS = {"Salesforce/wikitext": "wikitext-103-raw-v1"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each data set: 80 rows in train, 20 other ones in test."""
    folder = tmp_path_factory.mktemp("hub")
    for name, row in HUB.items():
        (folder / name).mkdir(parents=True)
        for split, numbers in (("train", range(80)), ("test", range(80, 100))):
            lines = "".join(json.dumps(row(number)) + "\n" for number in numbers)
            (folder / name / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base with ChatML that pads with end-of-sequence, as Qwen's; one without template and pad, as Pythia's."""
    folder = tmp_path_factory.mktemp("bases")
    size = SMALL.model_dump(include={"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
    made = {}
    for name, architecture, tied in (("qwen", "qwen2", True), ("pythia", "gpt_neox", False), ("gpt2", "gpt2", True)):
        init = Init(architecture=architecture, tie_word_embeddings=tied, max_position_embeddings=512, **size)
        tokenizer = tokenizing.train_tokenizer(init, [json.dumps(row(0)) for row in HUB.values()])
        if name == "qwen":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
            tokenizer.chat_template = CHATML
            tokenizer.pad_token = tokenizer.eos_token
        model = build.build_model(init, tokenizer, seed=0, dtype=torch.float32)
        if name != "qwen":
            tokenizer.pad_token = None
        build.save_model(model, tokenizer, folder / name)
        made[name] = folder / name
    return made


BASE_OF = {
    "chat-helpful-harmless": "qwen", "tldr-1b": "pythia", "chat-8b-4bit": "qwen", "instructgpt": "qwen",
    "summarize-nplus": "pythia", "ziegler-sentiment": "gpt2",
}  # fmt: skip


@pytest.fixture
def run(
    hub: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Event]]:
    """Runs a shipped recipe on the stand-ins; gives its events."""
    load_dataset = datasets.load_dataset

    def from_folder(source: str, *, name: str | None, split: str | None, revision: str | None) -> Any:
        assert (name, revision) == (SUBSETS.get(source), None)
        return load_dataset(str(hub / source), split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr("datasets.load_dataset", from_folder)

    def carry_out(name: str, *more: str) -> list[Event]:
        events: list[Event] = []
        sizes = [one for one in SIZES if not one.startswith(LEFT_OUT.get(name, "-"))]
        overrides = (f"model.path={bases[BASE_OF[name]]}", *sizes, *more)
        (tmp_path / "run").mkdir(exist_ok=True)
        loaded = load_recipe(RECIPES / f"{name}.yaml", overrides)
        pipeline.run(loaded, tmp_path / "run", pipeline.Request(), events.append)
        return events

    return carry_out


def said(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if hasattr(event, "message"))


def manifest(folder: Path, stage: str) -> Row:
    found: Row = json.loads((folder / "run" / stage / "manifest.json").read_text(encoding="utf-8"))
    return found


# ---------------------------------------------------------------- the runs


@pytest.mark.ci
def test_helpful_harmless(run: Callable[..., list[Event]], tmp_path: Path) -> None:
    events = run("chat-helpful-harmless")
    # 8 rows for sft (4 + 4), of which one has no answer; 32 pairs; 20 prompts.
    text = said(events)
    assert "data.demonstrations: 1 of 8 rows cannot be used and are dropped" in text
    assert "data.preferences: 4 of 32 rows cannot be used and are dropped" in text
    assert "replaces <|endoftext|> as end-of-sequence" in text
    assert manifest(tmp_path, "sft")["metrics"]["steps"] == 2  # 7 conversations in batches of 4
    samples = (tmp_path / "run" / "compare" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in samples]
    assert len(asked) == 2 * 4
    for prompt in asked:  # of the test split, up to where the two transcripts part
        assert [message["role"] for message in prompt] == ["user", "assistant", "user"]
        assert re.fullmatch(r"How do I fix number (8|9)\d\?", prompt[0]["content"])
    assert (tmp_path / "run" / "ppo" / "critic" / "adapter_model.safetensors").is_file()


@pytest.mark.ci
def test_tldr(run: Callable[..., list[Event]], tmp_path: Path) -> None:
    events = run("tldr-1b")
    assert "data.preferences: 9 of 80 rows cannot be used and are dropped" in said(events)
    assert manifest(tmp_path, "sft")["metrics"]["steps"] == 10  # 40 posts in batches of 4
    resolved = (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert "missing_eos_score: -1.0" in resolved and "missing_eos_penalty: null" in resolved
    for part in ("sft/model", "reward/model", "ppo/model", "ppo/critic"):  # all weights of all four
        assert (tmp_path / "run" / part / "model.safetensors").is_file()
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert not [text for text in warnings if "other tokens than" in text]  # " summary" joins no token of "TL;DR:"


@pytest.mark.ci
def test_8b_in_4_bits(run: Callable[..., list[Event]], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    events = run("chat-8b-4bit")
    assert "cannot be used" not in said(events)
    assert manifest(tmp_path, "sft")["metrics"]["steps"] == 6  # 24 conversations in batches of 4
    samples = (tmp_path / "run" / "compare" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in samples]
    assert len(asked) == 4
    for (message,) in asked:  # of the last 40%
        assert message["role"] == "user" and 48 <= int(message["content"].split()[-1].rstrip(".")) < 80


@pytest.mark.ci
def test_instructgpt(run: Callable[..., list[Event]], tmp_path: Path) -> None:
    shrunk = (
        "ppo.num_mini_batches=2",
        "ppo.ptx.batch_size=4",
        "data.max_prompt_length=64",
        "sft.trainer.max_length=96",
    )
    events = run("instructgpt", *shrunk, "reward.trainer.max_length=96")
    assert "data.pretraining: 16 of 80 rows cannot be used and are dropped" in said(events)
    updates = [event.values for event in events if isinstance(event, Metrics) and event.stage == "ppo"]
    trained = [values for values in updates if "ptx_loss" in values]
    assert len(trained) == 2 and all(values["critic_learning_rate"] == 9e-6 for values in trained)
    assert [values["learning_rate"] for values in trained] == pytest.approx([0.0, 5e-7])
    assert manifest(tmp_path, "ppo")["metrics"]["ptx_loss"] > 0
    assert manifest(tmp_path, "reward")["section"]["normalize"] == "demonstrations"
    for part in ("ppo/model", "ppo/critic"):
        assert (tmp_path / "run" / part / "model.safetensors").is_file()


@pytest.mark.ci
def test_summarize_nplus(run: Callable[..., list[Event]], tmp_path: Path) -> None:
    run("summarize-nplus")
    made = manifest(tmp_path, "reward")
    assert (made["section"]["head_init"], made["section"]["normalize"]) == ("width", "demonstrations")
    weight = load_file(tmp_path / "run" / "reward" / "model" / "model.safetensors")["score.weight"]
    assert float(weight.std()) > 3 * 0.02  # 1 / sqrt(33) is 0.17, initializer_range 0.02


@pytest.mark.ci
def test_ziegler_sentiment(run: Callable[..., list[Event]], tmp_path: Path) -> None:
    init = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 1, "max_position_embeddings": 128}
    tokenizer = tokenizing.train_tokenizer(SMALL, [imdb(0)["text"]])
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=len(tokenizer), num_labels=2, **init))
    build.save_model(model, tokenizer, tmp_path / "classifier")
    sizes = ("ppo.total_episodes=24", "ppo.gradient_accumulation_steps=1", "ppo.num_mini_batches=1")
    events = run("ziegler-sentiment", f"reward.model={tmp_path / 'classifier'}", *sizes, "ppo.kl_horizon=8")
    updates = [event.values for event in events if isinstance(event, Metrics) and event.stage == "ppo"]
    moved = [values for values in updates if "kl_coef" in values]
    assert len(moved) == 6 and moved[0]["kl_coef"] == 0.15
    for values, after in itertools.pairwise(moved):
        assert after["kl_coef"] == pytest.approx(values["kl_coef"] * (1 + max(values["kl"] / 6 - 1, -0.2) * 4 / 8))


@pytest.mark.parametrize("name", NAMES)
def test_the_changes_that_comments_propose_load(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    proposed = [shlex.split(found)[0] for found in re.findall(r"--set ('[^']*'|\S+)", comments)]
    for change in proposed:
        load_recipe(RECIPES / f"{name}.yaml", [change])
    assert bool(proposed) == (name not in ("chat-8b-4bit", "summarize-nplus"))


@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_called_estimates(name: str) -> None:
    """Until somebody has measured: then the figure belongs there, and this test goes."""
    head = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\nname:")[0]
    assert "by arithmetic" in head.lower() and re.search("nobody has measured|not measured", head)
