"""Losses of the algorithms that take one optimizer step per update: by hand, and against PPO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_loops import KINDS_AND_LORA, gap, loop_for, trained

NO_CLIP = {"num_ppo_epochs": 1, "num_mini_batches": 1, "cliprange": 1e6, "cliprange_value": 1e6}


@pytest.mark.parametrize(
    ("kind", "lora"),
    [pair if pair == ("head", True) else pytest.param(*pair, marks=pytest.mark.ci) for pair in KINDS_AND_LORA],
)
def test_a2c_is_ppo_of_one_epoch_and_one_minibatch_without_clipping(kind: str, lora: bool, tmp_path: Path) -> None:
    # Huang et al. 2022, arXiv 2205.09123. In float64, so that nothing but rounding could tell them apart.
    parts = {"kind": kind, "lora": lora, "dtype": torch.float64, "max_grad_norm": 0.5, "kl_coef": 0.2, "lam": 0.9}
    ppo = trained(tmp_path / "ppo", 2, **parts, **NO_CLIP)
    a2c = trained(tmp_path / "a2c", 2, algorithm="a2c", **parts)  # SECTION's two epochs are not used
    assert gap(ppo.roles.state(), a2c.roles.state()) < 1e-6
    assert gap(ppo.roles.state(), loop_for(tmp_path / "start", **parts).roles.state()) > 1e-3
    assert [entry["optimizer_steps"] for entry in a2c.history] == [1.0] * 2
    assert [entry["clip_fraction"] for entry in a2c.history] == [0.0] * 2
    assert {"value_loss", "explained_variance"} <= a2c.history[0].keys()
