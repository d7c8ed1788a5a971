"""Padding, number formats and entropies, by hand."""

from __future__ import annotations

import math

import torch

from rlhfctl.models import tensors


def test_padding_on_either_side_by_hand() -> None:
    device = torch.device("cpu")
    ids, mask = tensors.pad_left([[5], [6, 7, 8]], 1, device)
    assert (ids.tolist(), mask.tolist()) == ([[1, 1, 5], [6, 7, 8]], [[0, 0, 1], [1, 1, 1]])
    ids, mask = tensors.pad_right([[5], [6, 7, 8]], 1, device)
    assert (ids.tolist(), mask.tolist()) == ([[5, 1, 1], [6, 7, 8]], [[1, 0, 0], [1, 1, 1]])


def test_only_16_bit_numbers_are_widened() -> None:
    for given, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32)):
        assert tensors.at_least_float32(torch.ones(2, dtype=given)).dtype == expected
    for kept in (torch.float32, torch.float64):
        numbers = torch.ones(2, dtype=kept)
        assert tensors.at_least_float32(numbers) is numbers


def test_the_entropy_of_equal_logits_is_that_of_a_fair_die() -> None:
    logits = torch.tensor([[3.0] * 6, [0.0, *[-1e4] * 5]])
    assert torch.allclose(tensors.entropy(logits), torch.tensor([math.log(6), 0.0]), atol=1e-6)
