"""Members of a reward ensemble on one model: their names, and that each scores as it does alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import TaskType

from rlhfctl.models import adapters, build, heads, merging, scoring, tokenizing
from rlhfctl.models.ensembles import Ensemble, member_name, members_on
from rlhfctl.recipe.schema import Init, Lora

INIT = Init(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, tokens=["a", "b", " "]
)
TEXTS = ["ab a", "bb", " aabab"]


def test_the_first_member_has_the_name_that_a_single_reward_model_has() -> None:
    assert [member_name("reward", number) for number in range(3)] == ["reward", "reward-1", "reward-2"]


def test_each_member_scores_on_the_shared_model_as_it_does_alone(tmp_path: Path) -> None:
    tokenizer = tokenizing.train_tokenizer(INIT, [])
    pad, rows = tokenizer.pad_token_id, [tokenizer(text)["input_ids"] for text in TEXTS]
    base = build.build_model(INIT, tokenizer, seed=0, dtype=torch.float32)
    folders, alone = [], []
    for number in range(3):
        scorer = heads.scorer_on(base, seed=number)
        model = adapters.add_lora(scorer, Lora(r=4, lora_alpha=8), TaskType.SEQ_CLS, seed=number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():  # a new adapter has B = 0 and would change nothing
            for name, weight in model.named_parameters():
                if adapters.is_output_factor(name):
                    weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
        folder = tmp_path / f"member-{number}"
        adapters.save_adapter(model, folder, base="base", head=True)
        folders.append(folder)
        alone.append(scoring.score_rows(merging.merged(model), rows, pad))
    assert len({tuple(scores) for scores in alone}) == 3
    before = {name: value.clone() for name, value in base.state_dict().items()}
    ensemble = Ensemble(members_on(base, pad, folders), "mean", 1.0)
    for _ in range(2):  # switching between members leaves nothing behind
        for member, scores in zip(ensemble, alone, strict=True):
            assert scoring.score_rows(member, rows, pad) == pytest.approx(scores, abs=1e-5)
    shared = ensemble.members[0].backbone.shared.model
    assert set(shared.peft_config) == {"reward", "reward-1", "reward-2"}
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    kept = {name.replace(".base_layer", ""): value for name, value in shared.get_base_model().state_dict().items()}
    assert all(value.equal(kept[name]) for name, value in before.items())
