"""What a newcomer brings: a base model made without rlhfctl, and small files of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def equip(folder: Path) -> Path:
    """Write the model and the files into `folder`: demos.jsonl, pairs.parquet, prompts.jsonl, samples."""
    asked = [f"Question: how do I reset device {n}? Answer:" for n in range(400)]
    answers = [f" Hold the button for {n % 9} seconds." for n in range(400)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([a + b for a, b in zip(asked, answers, strict=True)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **size))
    model.save_pretrained(folder / "my-base-model")
    tokenizer.save_pretrained(folder / "my-base-model")
    demos = [{"prompt": asked[n], "completion": answers[n]} for n in range(24)]
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demos), encoding="utf-8")
    pairs = [{"prompt": asked[n], "chosen": answers[n], "rejected": " No idea."} for n in range(24, 48)]
    pq.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")
    rows = [{"prompt": prompt} for prompt in asked[48:]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, response in (("new.jsonl", " Hold the button."), ("old.jsonl", " No idea.")):  # sampled elsewhere
        sampled = [{"prompt": prompt, "response": f"{response} {prompt[-3:]}"} for prompt in asked[:8]]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in sampled), encoding="utf-8")
    return folder
