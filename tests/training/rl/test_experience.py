"""The masks, tables and pieces of an update's experience, by hand."""

from __future__ import annotations

import torch

from rlhfctl.generation.generator import Response
from rlhfctl.training.rl.experience import Experience, pieces, spread

CPU = torch.device("cpu")


def experience(response_length: int = 6) -> Experience:
    """Three responses: of two tokens with an end, of four tokens with an end, of three tokens without an end."""
    responses = [Response([5, 0], True), Response([5, 6, 7, 0], True), Response([5, 6, 7], False)]
    return Experience.of([2, 0, 1], [[3], [3, 4], [4]], responses, response_length, CPU)


def test_masks_are_true_at_tokens_and_at_states() -> None:
    batch = experience()
    assert batch.lengths.tolist() == [2, 4, 3] and batch.ended.tolist() == [True, True, False]
    assert batch.response_mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert batch.value_mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_a_response_of_the_longest_length_has_no_column_after_its_end() -> None:
    batch = experience(response_length=4)
    assert batch.response_mask.shape == (3, 4)
    assert batch.value_mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_the_width_of_a_part_is_that_of_its_longest_response() -> None:
    batch = experience()
    assert [batch.width(indices) for indices in ([0], [1], [0, 2])] == [3, 5, 4]
    assert experience(response_length=4).width([1]) == 4


def test_a_table_is_filled_up_with_zeros_and_cut_to_the_width() -> None:
    table = experience(response_length=4).table([[1.0], [1.0, 2.0, 3.0, 4.0, 5.0], []], torch.float64)
    assert table.dtype == torch.float64
    assert table.tolist() == [[1, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]


def test_sequences_are_prompt_and_response_of_the_chosen_episodes() -> None:
    sequences = experience().sequences([2, 0])
    assert sequences.ids.tolist() == [4, 5, 6, 7, 3, 5, 0]
    assert sequences.tokens().tolist() == [5, 6, 7, 5, 0]


def test_pieces_hold_each_index_once_in_order() -> None:
    assert pieces([4, 2, 0, 1, 3], 2) == [[4, 2], [0, 1], [3]]
    assert pieces([], 2) == []


def test_spread_puts_numbers_where_the_mask_is_true() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1, 0, 2], [0, 3, 0]]


def test_importance_weights_scale_the_advantages_of_the_loss_alone() -> None:
    batch = experience()
    batch.advantages = torch.arange(15.0).view(3, 5)
    assert batch.weighted_advantages([2, 0], 3).tolist() == [[10, 11, 12], [0, 1, 2]]
    batch.importance = torch.tensor([[2.0] * 5, [1.0] * 5, [0.5] * 5])
    assert batch.weighted_advantages([2, 0], 3).tolist() == [[5, 5.5, 6], [0, 2, 4]]
    assert batch.advantages[2].tolist() == [10, 11, 12, 13, 14]
