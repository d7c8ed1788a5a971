"""Rows laid end to end: where their tokens stand, and that models compute for them what they compute for each row."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from rlhfctl.models import packing as under_test
from rlhfctl.models.packing import PACKED, Sequences, hidden_states, packed

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}
WIDE = SHAPE | {"intermediate_size": 24, "max_position_embeddings": 64}
LLAMA = WIDE | {"num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**LLAMA),
    "grouped heads": LlamaConfig(**WIDE, num_key_value_heads=1),
    "qwen2": Qwen2Config(**LLAMA),
    "qwen3": Qwen3Config(**LLAMA, head_dim=8),
    "mistral": MistralConfig(**LLAMA, sliding_window=None),
    "gpt_neox": GPTNeoXConfig(**WIDE),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=11, n_positions=64),
}
LENGTHS = (5, 1, 12, 3, 12, 7, 2, 9, 4, 11, 1, 6)


def trunk_of(config: Any, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 5
    return getattr(model, model.base_model_prefix)


def rows(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 11, (length,), generator=generator).tolist() for length in lengths]


def laid_out(given: list[list[int]]) -> Sequences:
    return Sequences.of(given, [[] for _ in given], CPU)


def as_they_lie(sequences: Sequences) -> list[int]:
    """The rows in the order in which they are laid out."""
    return sequences.starts.argsort().tolist()


def weighted(states: Tensor) -> Tensor:
    """A sum in which every number has a weight of its own."""
    return (states * torch.linspace(-1, 2, states.numel(), dtype=states.dtype).view_as(states)).sum()


def test_where_states_and_tokens_stand() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 6, (5, 2), generator=generator).tolist()
        prompts = [torch.randint(2, 10, (p,), generator=generator).tolist() for p, _ in lengths]
        responses = [torch.randint(2, 10, (r,), generator=generator).tolist() for _, r in lengths]
        given = Sequences.of(prompts, responses, CPU)
        wholes = [p + r for p, r in zip(prompts, responses, strict=True)]
        longest_first = sorted(wholes, key=len, reverse=True)
        assert [len(given.ids), *given.totals] == [sum(map(len, wholes)), *map(len, longest_first)]
        ids, starts = given.ids.tolist(), given.starts.tolist()
        assert [ids[start : start + len(whole)] for start, whole in zip(starts, wholes, strict=True)] == wholes
        before, states = [], []
        for start, prompt, response in zip(starts, prompts, responses, strict=True):
            here = [start + len(prompt) - 1 + t for t in range(len(response))]
            before += here
            states += here + ([start + len(prompt) - 1 + len(response)] if len(response) < 5 else [])
        assert given.before_tokens().tolist() == before
        assert given.states(5).tolist() == states
        assert given.tokens().tolist() == [token for response in responses for token in response]
        assert [ids[index] for index in given.last().tolist()] == [whole[-1] for whole in wholes]
        positions = given.positions.tolist()
        assert [positions[start : start + len(w)] for start, w in zip(starts, wholes, strict=True)] == [
            list(range(len(whole))) for whole in wholes
        ]


def test_groups_are_of_like_length_and_hold_each_token_once() -> None:
    given = laid_out(rows((64,) * 9 + (40,) * 9 + (8,) * 9))
    # 13 x 64 cells for 9 x 64 + 4 x 40 tokens are 13% more; a row more would be 15.5%. 8 rows are never cut.
    assert [(group.rows, group.width) for group in given.groups] == [(13, 64), (8, 40), (6, 8)]
    few = laid_out(rows((64, 1, 1)))
    assert [(group.rows, group.width) for group in few.groups] == [(3, 64)]  # too few to be worth a cut
    group = laid_out([[4, 5, 6], [7], [8, 9]]).groups[0]
    table = torch.tensor([4, 5, 6, 8, 9, 7])[group.token_of_cell].view(3, 3)
    assert table.tolist() == [[4, 5, 6], [8, 9, 9], [7, 7, 7]]
    assert group.cell_of_token.tolist() == [0, 1, 2, 3, 4, 6] and group.pad_cells.tolist() == [5, 7, 8]


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_states_and_gradients_are_those_of_each_row_alone(name: str) -> None:
    trunk, given = trunk_of(CONFIGS[name]), rows()
    sequences = laid_out(given)

    def gradients() -> dict[str, Tensor]:
        found = {n: p.grad.clone() for n, p in trunk.named_parameters() if p.grad is not None}
        trunk.zero_grad()
        return found

    alone = [trunk(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in given]
    expected = torch.cat([alone[row] for row in as_they_lie(sequences)])
    weighted(expected).backward()
    of_rows = gradients()
    assert len(of_rows) >= 20 or name == "gpt2"
    seen: list[tuple[int, ...]] = []
    watching = trunk.register_forward_pre_hook(lambda *a: seen.append(tuple(a[2]["input_ids"].shape)), with_kwargs=True)
    for inside in (False, True):
        with packed(trunk) if inside else contextlib.nullcontext():
            seen.clear()
            states = hidden_states(trunk, sequences)
            weighted(states).backward()
        torch.testing.assert_close(states, expected, atol=1e-6, rtol=1e-6)  # norms are float32 in transformers
        for parameter, gradient in gradients().items():
            largest = float(of_rows[parameter].abs().max())
            torch.testing.assert_close(gradient, of_rows[parameter], atol=2e-6 * max(1.0, largest), rtol=1e-5)
        assert (seen == [(1, len(sequences.ids))]) is inside
    watching.remove()
    assert trunk.config._attn_implementation == "sdpa"


def test_a_window_or_another_attention_keeps_rows_apart() -> None:
    windowed = trunk_of(MistralConfig(**LLAMA, sliding_window=3))
    with packed(windowed) as inside:
        assert not inside and windowed.config._attn_implementation == "sdpa"
        given = rows()
        states, sequences = hidden_states(windowed, laid_out(given)), laid_out(given)
    alone = [windowed(input_ids=torch.tensor([row])).last_hidden_state[0] for row in given]
    torch.testing.assert_close(states, torch.cat([alone[row] for row in as_they_lie(sequences)]), atol=1e-6, rtol=1e-6)
    eager = trunk_of(LlamaConfig(**LLAMA))
    eager.config._attn_implementation = "eager"
    with packed(eager) as inside:
        assert not inside and eager.config._attn_implementation == "eager"


def test_a_model_that_mixes_tokens_elsewhere_is_found_out() -> None:
    """Its blocks look at their neighbours outside attention: laid end to end it would see other rows."""
    trunk: Any = trunk_of(LlamaConfig(**LLAMA))

    def mix(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + torch.roll(output, 1, dims=1) * (torch.arange(output.shape[1]) > 0)[None, :, None]

    trunk.layers[0].mlp.register_forward_hook(mix)
    with packed(trunk) as inside:
        assert not inside


def test_inside_a_batch_with_a_mask_is_what_it_was_and_nesting_changes_nothing() -> None:
    trunk = trunk_of(LlamaConfig(**LLAMA))
    ids = torch.tensor(rows((6, 6, 6)))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])
    before = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
    with packed(trunk) as first, packed(trunk) as second:
        assert first and second and trunk.config._attn_implementation == PACKED
        assert torch.equal(trunk(input_ids=ids, attention_mask=mask).last_hidden_state, before)
    with packed(trunk) as first:
        with packed(trunk):
            pass
        assert trunk.config._attn_implementation == PACKED
    assert trunk.config._attn_implementation == "sdpa"


def test_the_layout_survives_an_error_inside() -> None:
    trunk = trunk_of(LlamaConfig(**LLAMA))
    with pytest.raises(KeyError), packed(trunk):
        raise KeyError
    assert trunk.config._attn_implementation == "sdpa"


def test_a_group_alone_needs_no_padding_but_many_cost_little() -> None:
    """Padding computed, over tokens, stays small however lengths are spread."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        lengths = tuple(torch.randint(20, 128, (64,), generator=generator).tolist())
        groups = under_test.Sequences.of(rows(lengths), [[] for _ in lengths], CPU).groups
        cells = sum(group.rows * group.width for group in groups)
        assert cells < 1.2 * sum(lengths) and len(groups) <= 8
