"""The frozen model of a prompted classifier in the plan: its weights, its longest text, and one batch of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_specs import WIDTH, shape
from transformers import BertConfig

from rlhfctl.data.load import check_all
from rlhfctl.planning import compare_memory, ppo_memory
from rlhfctl.planning.frozen import Frozen, frozen_model
from rlhfctl.planning.meter import WEIGHTS, on_meta_device
from rlhfctl.planning.row_lengths import Lengths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Compare, Lora, Ppo
from rlhfctl.recipe.shipped import shipped_recipes


@pytest.mark.parametrize("masked", [False, True])
def test_the_frozen_model_is_held_all_the_time_and_reads_batches(masked: bool) -> None:
    spec = shape("bert", quantization=None) if masked else shape()
    frozen, size = Frozen(spec, 20, masked), 8
    section = Ppo(lora=Lora(r=4), per_device_train_batch_size=size, local_rollout_forward_batch_size=size)
    plain = ppo_memory.ppo_outlook(shape(), section, 12, None, shared=False)
    found = ppo_memory.ppo_outlook(shape(), section, 12, None, shared=False, frozen=frozen)
    assert all(moment.needs["frozen model"][WEIGHTS] == frozen.weights() > 0 for moment in found.moments)
    assert found.peak.total >= plain.peak.total + frozen.weights()
    asked = next(moment for moment in found.moments if moment.what == "classifying with the responses")
    assert sum(asked.needs["frozen model"].values()) > frozen.weights()
    with on_meta_device():
        longer = Frozen(spec, 40, masked).classifying({}, size)
        assert longer.total > frozen.classifying({}, size).total

    compared = Compare(max_new_tokens=4, batch_size=size)
    alone = compare_memory.compare_outlook(shape(), compared, 3, 12, None)
    judged = compare_memory.compare_outlook(shape(), compared, 3, 12, None, frozen=frozen)
    assert len(judged.moments) == len(alone.moments) + 1


def test_the_recipes_frozen_model_reads_its_longest_example(tmp_path: Path) -> None:
    recipe = load_recipe(shipped_recipes()["rlprompt"], ["data.demonstrations.rows=300"]).recipe
    rows = check_all(recipe.data, 0)
    lengths = Lengths.of(recipe, rows)
    assert rows["prompts"].split is not None
    longest = max(
        len(lengths.tokenizer(row["replaced_prompt"])["input_ids"])
        for part in vars(rows["prompts"].split).values()
        for row in part
    )
    assert lengths.longest_example == longest > max(lengths.prompts)
    assert len(lengths.prompts) == 32  # 16 of each label
    frozen = frozen_model(recipe, lengths, shape(), 4)
    assert frozen is not None and frozen.tokens > longest + 4 and not frozen.masked

    BertConfig(vocab_size=50, hidden_size=WIDTH, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    named = load_recipe(shipped_recipes()["rlprompt"], [f"reward.prompted_classifier.model={tmp_path}"]).recipe
    other = frozen_model(named, lengths, shape(), 4)
    assert other is not None and other.masked and other.spec.config.vocab_size == 50
    (tmp_path / "no").mkdir()
    gone = load_recipe(shipped_recipes()["rlprompt"], [f"reward.prompted_classifier.model={tmp_path / 'no'}"]).recipe
    assert frozen_model(gone, lengths, shape(), 4) is None
