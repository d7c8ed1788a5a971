"""What the tools share: the names of transformers' options are those of the installed TRL."""

from __future__ import annotations

import dataclasses

import pytest

from rlhfctl.importing import common
from rlhfctl.recipe.sections.training import owned_trainer_key


def test_the_trainer_options_are_those_of_the_installed_trl() -> None:
    from trl import RewardConfig, SFTConfig

    sft, reward = ({field.name for field in dataclasses.fields(config)} for config in (SFTConfig, RewardConfig))
    assert set(common.TRAINER_OPTIONS) - {"fp16"} <= sft & reward
    assert set(common.SFT_OPTIONS) <= sft and set(common.REWARD_OPTIONS) <= reward
    assert not [name for name in common.TRAINER_OPTIONS if owned_trainer_key(name)]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("a/b/my-run", "my-run"), ("saves/qwen/lora/ppo", "qwen-lora-ppo"), ("./out put", "out-put"), ("...", "imported")],
)
def test_a_folder_gives_the_run_its_name(folder: str, name: str) -> None:
    assert common.named_after(folder) == name


def test_why_a_field_is_left_out() -> None:
    assert (
        common.reason("hub_model_id")
        == "rlhfctl sets this itself: use `rlhfctl export`, then the Hub's own upload command"
    )
    assert common.reason("do_train") == "nothing to set" and common.reason("made_up") is None
