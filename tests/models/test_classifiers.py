"""Classifiers as rewards: log-odds of a label by hand, what text is read, contexts, encoders, decoders and adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from rlhfctl.errors import HandoffError
from rlhfctl.models import classifiers
from rlhfctl.models.classifiers import encoded, label_index, log_odds

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
LABELS = {0: "NEGATIVE", 1: "neutral", 2: "POSITIVE"}
WIDTH: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
KINDS: dict[str, dict[str, Any]] = {
    "bert": WIDTH | {"max_position_embeddings": 40},
    "roberta": WIDTH | {"max_position_embeddings": 41, "type_vocab_size": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "llama": WIDTH | {"max_position_embeddings": 40},
}
ENCODERS = ("bert", "roberta", "distilbert")
PAIRS = [("Is tea good? ", "Yes."), ("And soup? ", "It is warm, I think."), ("So? ", "No")]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens; [CLS] text [SEP] for encoders, and two types of tokens in a pair."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(tokenizer_models.BPE({t: i for i, t in enumerate([*SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    if kind in ENCODERS:
        marks = [(mark, backend.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=marks)
    given = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=given, **named)


def write(folder: Path, kind: str, labels: int, seed: int = 0, **config: Any) -> Path:
    names = {"id2label": {i: LABELS[i] for i in range(labels)}} if labels > 1 else {"num_labels": 1}
    made = AutoConfig.for_model(
        kind, **KINDS[kind], **names, vocab_size=260, pad_token_id=0, eos_token_id=2, bos_token_id=1, **config
    )
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 8  # far from uniform, as a trained one
    model.save_pretrained(folder)
    tokenizer_of(kind).save_pretrained(folder)
    return folder


def load(folder: Path, label: Any = None, reads: Any = None) -> classifiers.Classifier:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return classifiers.load(str(folder), label, reads, tokenizer, dtype=torch.float32)


# ---------------------------------------------------------------- the number


def test_log_odds_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    assert log_odds(logits, 1).tolist() == pytest.approx([2.0, -2.0])  # of two: the difference
    assert log_odds(logits, 0).tolist() == pytest.approx([-2.0, 2.0])
    three = torch.tensor([[math.log(6.0), math.log(1.0), math.log(3.0)]])  # probabilities 0.6, 0.1, 0.3
    assert log_odds(three, 0).tolist() == pytest.approx([math.log(0.6 / 0.4)], abs=1e-6)
    assert log_odds(three, 2).tolist() == pytest.approx([math.log(0.3 / 0.7)], abs=1e-6)
    assert log_odds(three, 2, independent=True).tolist() == pytest.approx([math.log(3.0)], abs=1e-6)
    assert log_odds(torch.tensor([[0.25], [-4.0]]), 0).tolist() == [0.25, -4.0]
    assert math.isfinite(log_odds(torch.tensor([[1e4, -1e4]]), 0).item())


@pytest.mark.parametrize(("label", "index"), [("NEGATIVE", 0), ("positive", 2), (1, 1), ("neutral", 1)])
def test_a_label_is_a_name_or_an_index(label: Any, index: int) -> None:
    assert label_index(AutoConfig.for_model("bert", id2label=LABELS), label, "m") == index


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (
            3,
            None,
            "m: the reward model is a classifier with 3 labels (NEGATIVE, neutral, POSITIVE), and a score is one "
            "number\n  fix: say in the recipe which label is wanted, beside reward.model: reward.label: POSITIVE makes "
            "that label's log-odds the score",
        ),
        (
            3,
            "good",
            "reward.label: the reward model has no label 'good'\n"
            "  fix: one of: NEGATIVE, neutral, POSITIVE; or an index from 0",
        ),
        (3, 3, "reward.label: the reward model has no label 3"),
        (3, -1, "reward.label: the reward model has no label -1"),
        (1, "good", "m: reward.label chooses among labels, but the model has a single output (NEGATIVE)"),
    ],
)
def test_a_label_that_cannot_be_read_is_told_with_those_there_are(labels: int, label: Any, message: str) -> None:
    config = AutoConfig.for_model("bert", id2label={i: LABELS[i] for i in range(labels)})
    with pytest.raises(HandoffError) as caught:
        label_index(config, label, "m")
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers_alone_and_in_a_batch(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / kind, kind, 2)
    assert classifiers.is_classifier(classifiers.config_of(str(folder)))
    classifier = load(folder, "neutral")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for prompt, response in PAIRS:
        ids = classifier.tokenizer(prompt + response, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        expected.append(float(logits[1] - logits[0]))
    assert len({round(score, 3) for score in expected}) == 3
    for size in (1, 2, 8):
        assert classifier.scores(PAIRS, size) == pytest.approx(expected, abs=1e-4)
    assert load(folder, 0).scores(PAIRS, 8) == pytest.approx([-score for score in expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_with_one_output_reads_a_pair(kind: str, tmp_path: Path) -> None:
    classifier = load(write(tmp_path / kind, kind, 1))
    assert classifier.reads == "pair"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / kind).eval()
    batch = classifier.tokenizer(*PAIRS[1], return_tensors="pt")
    types = {"token_type_ids": batch.token_type_ids} if kind == "bert" else {}  # a RoBERTa has one type alone
    with torch.no_grad():
        expected = float(model(input_ids=batch.input_ids, **types).logits)
    assert classifier.scores(PAIRS, 8)[1] == pytest.approx(expected, abs=1e-4)
    as_text = load(tmp_path / kind, None, "text").scores(PAIRS, 8)[1]
    of_response = load(tmp_path / kind, None, "response").scores(PAIRS, 8)[1]
    assert len({round(score, 4) for score in (expected, as_text, of_response)}) == 3


def test_labels_with_a_sigmoid_each_are_scored_apart(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "bert", 3, problem_type="multi_label_classification")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    classifier = load(folder, "POSITIVE")
    with torch.no_grad():
        ids = classifier.tokenizer("".join(PAIRS[0]), return_tensors="pt").input_ids
        expected = float(model(input_ids=ids).logits[0, 2])
    assert classifier.scores(PAIRS[:1], 8) == pytest.approx([expected], abs=1e-4)


def test_a_classifier_adapter_is_merged_with_its_head(tmp_path: Path) -> None:
    for kind, target in (("bert", "query"), ("llama", "q_proj")):
        base = write(tmp_path / kind, kind, 2)
        model = AutoModelForSequenceClassification.from_pretrained(base, id2label=LABELS, ignore_mismatched_sizes=True)
        adapted = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=[target])).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn(parameter.shape)
        folder = tmp_path / f"{kind}-adapter"
        adapted.save_pretrained(folder)
        config = classifiers.config_of(str(folder))
        assert classifiers.is_classifier(config) and config.num_labels == 3
        tokenizer = tokenizer_of(kind)
        classifier = classifiers.load(str(folder), 2, None, tokenizer, dtype=torch.float32)
        with torch.no_grad():
            logits = adapted(input_ids=tokenizer("".join(PAIRS[0]), return_tensors="pt").input_ids).logits
        expected = float(logits[0, 2] - torch.logsumexp(logits[0, :2], 0))
        assert classifier.scores(PAIRS[:1], 1) == pytest.approx([expected], abs=1e-4)


def test_scalar_heads_on_decoders_are_no_classifiers(tmp_path: Path) -> None:
    write(tmp_path / "llama", "llama", 1)
    assert not classifiers.is_classifier(classifiers.config_of(str(tmp_path / "llama")))
    with pytest.raises(HandoffError, match=r"reward\.label is for classifiers, but this model has a single output"):
        classifiers.refuse_options("good", None, "m")
    with pytest.raises(HandoffError, match=r"reward\.reads is for classifiers"):
        classifiers.refuse_options(None, "pair", "m")


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write(tmp_path / "m", "bert", 2)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HandoffError, match=r"lacks the weights classifier\.bias, classifier\.weight: its scores would"):
        load(folder, 1)


# ---------------------------------------------------------------- text and contexts


def test_what_is_read_of_text_and_of_conversations() -> None:
    tokenizer = tokenizer_of("bert")
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tea?"}]
    answered = [{"role": "assistant", "content": "Yes."}]
    read = {
        (kind, reads): tokenizer.decode(encoded(tokenizer, *pair, reads)["input_ids"])
        for kind, pair in (("text", ("Tea? ", "Yes.")), ("messages", (asked, answered)))
        for reads in ("text", "pair", "response")
    }
    assert read == {
        ("text", "text"): "[CLS]Tea? Yes.[SEP]",
        ("text", "pair"): "[CLS]Tea? [SEP]Yes.[SEP]",
        ("text", "response"): "[CLS]Yes.[SEP]",
        ("messages", "text"): "[CLS]Be kind.\nTea?\nYes.[SEP]",
        ("messages", "pair"): "[CLS]Be kind.\nTea?[SEP]Yes.[SEP]",
        ("messages", "response"): "[CLS]Yes.[SEP]",
    }
    tokenizer.chat_template = CHAT
    templated = tokenizer.decode(encoded(tokenizer, asked, answered, "text")["input_ids"])
    assert templated == "<system>Be kind.<user>Tea?<assistant>Yes."
    assert tokenizer.decode(encoded(tokenizer, "Tea? ", "Yes.", "text")["input_ids"]) == "[CLS]Tea? Yes.[SEP]"


@pytest.mark.parametrize(
    ("reads", "limit", "text"),
    [
        ("text", 10, "[CLS]soup? OK[SEP]"),
        ("pair", 10, "[CLS]soup?[SEP]OK[SEP]"),
        ("pair", 12, "[CLS]d soup?[SEP]OK[SEP]"),
        ("response", 10, "[CLS]OK[SEP]"),
    ],
)
def test_the_beginning_is_cut_and_the_response_read_whole(reads: Any, limit: int, text: str) -> None:
    tokenizer = tokenizer_of("bert")
    prompt = "And soup?" if reads == "pair" else "And soup? "
    ids = encoded(tokenizer, prompt, "OK", reads, limit=limit)["input_ids"]
    assert len(ids) <= limit and tokenizer.decode(ids) == text
    assert tokenizer.truncation_side == "right"  # as it was


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", ["text", "pair", "response"])
def test_nothing_is_too_long_for_a_classifier(kind: str, reads: Any, tmp_path: Path) -> None:
    """Prompts, responses, both: never an index beyond the positions, and a sentence with numbers once."""
    classifier = load(write(tmp_path / "m", kind, 2), 1, reads)
    assert classifier.limit == 40
    told: list[str] = []
    classifier.say = told.append
    long = [("a" * 100, "b" * 5), ("a" * 5, "b" * 100), ("a" * 100, "b" * 100), ("a", "b")]
    scores = classifier.scores(long, 4)
    assert all(math.isfinite(score) for score in scores)
    classifier.scores(long, 4)
    assert len(told) == 1 and f"{2 if reads == 'response' else 3} of 4 texts are longer than the 40 tokens" in told[0]
