"""DPO's loss against numbers worked out by hand (Rafailov et al. 2023, eq. 7), and what its reference is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, TaskType
from small_stage import small_model, small_tokenizer
from torch import nn
from trl import DPOConfig

from rlhfctl.models import adapters, scoring
from rlhfctl.recipe.schema import Lora
from rlhfctl.training.trl.datasets import dataset_of
from rlhfctl.training.trl.dpo_trainer import EncodedDpoTrainer

TOKENIZER = small_tokenizer()
A, B, END = (TOKENIZER.convert_tokens_to_ids(token) for token in ("a", "b", TOKENIZER.eos_token))


def unigrams(**probabilities: float) -> Any:
    """A model that gives each token the same probability everywhere: the rest is shared by the other tokens."""
    model = small_model(TOKENIZER)
    size, width = model.get_output_embeddings().weight.shape
    known = {A: probabilities["a"], B: probabilities["b"], END: probabilities["end"]}
    rest = (1 - sum(known.values())) / (size - len(known))
    rows = torch.tensor([known.get(token, rest) for token in range(size)]).log()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # the residual stream stays as the embeddings are
            elif "norm" in name or "embed_tokens" in name:
                weight.fill_(1.0)
    model.lm_head.weight = nn.Parameter((rows / width)[:, None].repeat(1, width))
    return model


def trainer(model: Any, reference: Any, rows: list[dict[str, list[int]]], folder: Path, **options: Any) -> Any:
    given = {"output_dir": str(folder), "report_to": "none", "per_device_train_batch_size": len(rows), "bf16": False}
    config = DPOConfig(**given | {"gradient_checkpointing": False, "max_length": None} | options)
    return EncodedDpoTrainer(
        model=model, ref_model=reference, args=config, train_dataset=dataset_of(rows), processing_class=TOKENIZER
    )


def loss_of(made: Any) -> float:
    batch = next(iter(made.get_train_dataloader()))
    return float(made.compute_loss(made.model, batch))


PAIR = {"prompt_ids": [A, B], "chosen_ids": [A, END], "rejected_ids": [B, B, END]}


def test_the_loss_is_that_of_the_paper_worked_out_by_hand(tmp_path: Path) -> None:
    """Chosen `a`: log 0.4/0.2 = log 2. Rejected `bb`: 2 log 0.1/0.2 = -2 log 2. The end tokens are equal.

    With beta 1/3 the margin is 1/3 (log 2 + 2 log 2) = log 2, and -log sigmoid(log 2) = -log(2/3) = 0.405465.
    """
    policy, reference = unigrams(a=0.4, b=0.1, end=0.2), unigrams(a=0.2, b=0.2, end=0.2)
    made = trainer(policy, reference, [PAIR], tmp_path, beta=1 / 3)
    assert loss_of(made) == pytest.approx(0.4054651, abs=1e-6)
    metrics = {name: values[-1] for name, values in made._metrics["train"].items()}
    assert metrics["rewards/chosen"] == pytest.approx(math.log(2) / 3, abs=1e-6)
    assert metrics["rewards/rejected"] == pytest.approx(-2 * math.log(2) / 3, abs=1e-6)
    assert metrics["logps/chosen"] == pytest.approx(math.log(0.4 * 0.2), abs=1e-6)  # of the response alone
    stronger = trainer(policy, reference, [PAIR], tmp_path, beta=1.0)
    assert loss_of(stronger) == pytest.approx(-math.log(8 / 9), abs=1e-6)  # the margin is log 8


def test_the_loss_of_a_batch_is_the_mean_over_its_pairs(tmp_path: Path) -> None:
    policy, reference = unigrams(a=0.4, b=0.1, end=0.2), unigrams(a=0.2, b=0.2, end=0.2)
    other = {"prompt_ids": [A], "chosen_ids": [B, END], "rejected_ids": [A, END]}  # margin -2 log 2 beta
    made = trainer(policy, reference, [PAIR, other], tmp_path, beta=0.5)
    by_hand = (-math.log(8**0.5 / (1 + 8**0.5)) - math.log(1 / 3)) / 2
    assert loss_of(made) == pytest.approx(by_hand, abs=1e-6)


def test_the_log_probabilities_are_those_that_the_stage_measures(tmp_path: Path) -> None:
    policy, reference = small_model(TOKENIZER, seed=1), small_model(TOKENIZER, seed=2)

    def ratio(side: str) -> float:
        rows = [PAIR["prompt_ids"] + PAIR[side]]
        ours, theirs = (
            sum(scoring.sequence_logprobs(model, rows, TOKENIZER.pad_token_id)[0][-len(PAIR[side]) :])
            for model in (policy, reference)
        )
        return ours - theirs

    margin = 0.1 * (ratio("chosen_ids") - ratio("rejected_ids"))
    made = trainer(policy, reference, [PAIR], tmp_path, beta=0.1)
    assert loss_of(made) == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    assert abs(margin) > 1e-4


def test_with_lora_the_reference_is_the_model_without_its_adapter(tmp_path: Path) -> None:
    model = adapters.add_lora(small_model(TOKENIZER), Lora(r=2), TaskType.CAUSAL_LM, seed=0)
    made = trainer(model, None, [PAIR], tmp_path, learning_rate=0.1, max_steps=3)
    assert isinstance(made.model, PeftModel) and list(made.model.peft_config) == ["default"]
    assert loss_of(made) == pytest.approx(math.log(2), abs=1e-7)  # a new adapter changes nothing
    before = {name: weight.clone() for name, weight in made.model.named_parameters() if "lora" not in name}
    made.train()
    assert loss_of(made) < 0.685
    now = dict(made.model.named_parameters())
    assert all(torch.equal(weight, now[name]) for name, weight in before.items())  # the reference did not move
    with made.model.disable_adapter():
        plain = scoring.sequence_logprobs(made.model, [[A, B, A]], TOKENIZER.pad_token_id)
    expected = scoring.sequence_logprobs(small_model(TOKENIZER), [[A, B, A]], TOKENIZER.pad_token_id)
    assert plain[0] == pytest.approx(expected[0], abs=1e-6)
