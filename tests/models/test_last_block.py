"""The last layer at chosen tokens alone: the states and gradients that it gives among all tokens."""

from __future__ import annotations

import pytest
import torch
from small_roles import PROMPTS, shared_roles
from test_packing import CONFIGS, laid_out, rows, trunk_of, weighted

from rlhfctl.models import last_block
from rlhfctl.models.packing import Sequences, hidden_states, packed

LIKE_LLAMA = ("llama", "grouped heads", "qwen2", "qwen3", "mistral")


@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_gradients_at_some_tokens_are_those_among_all(name: str) -> None:
    trunk, sequences = trunk_of(CONFIGS[name]), laid_out(rows())
    some = torch.tensor([40, 3, 0, 17, 5, 72])
    with packed(trunk):
        assert last_block.is_allowed(trunk) is (name in LIKE_LLAMA)
        seen: list[int] = []
        last = getattr(trunk, "layers", None) or trunk.h
        last[-1].mlp.register_forward_hook(lambda *given: seen.append(given[-1].shape[-2]))
        found = {}
        for short in (True, False):
            trunk.zero_grad()
            states = hidden_states(trunk, sequences, some) if short else hidden_states(trunk, sequences)[some]
            weighted(states).backward()
            found[short] = [states.detach(), *(p.grad.clone() for p in trunk.parameters() if p.grad is not None)]
    assert seen == ([len(some)] if name in LIKE_LLAMA else [len(sequences.ids)]) + [len(sequences.ids)]
    for one, other in zip(found[True], found[False], strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    assert not last_block.is_allowed(trunk)  # after the block
    assert "forward" not in vars(last[-1])


def test_layers_whose_activations_are_computed_again_run_whole() -> None:
    _, roles, _ = shared_roles()
    sequences = Sequences.of(PROMPTS, [[2, 3]] * len(PROMPTS), "cpu")
    with packed(roles.policy.trunk):
        assert last_block.is_allowed(roles.policy.trunk)
        with roles.recomputing(True):
            assert not last_block.is_allowed(roles.policy.trunk)
            states = roles.policy.states(sequences, sequences.last())
        assert torch.allclose(states, roles.policy.states(sequences, sequences.last()), atol=1e-5)


def test_where_the_states_before_tokens_stand_among_those_with_a_value() -> None:
    sequences = Sequences.of(PROMPTS[:4], [[2, 3, 4], [5], [6, 7, 8, 9], [3, 3]], "cpu")
    for length in (3, 4, 5):
        at = sequences.states(length)
        assert torch.equal(at[sequences.before_tokens_in_states(length)], sequences.before_tokens())
