"""Decode one token per row and step at fixed shapes, on a key-value cache whose rows stand at different positions.

    prompts ─▶ the model's own forward, padded on the right ─▶ keys and values copied into free rows
    step    ─▶ one token per row ─▶ each row writes into its own column, and attends to its columns up to there

Tensors keep their shapes and places in memory from step to step. On a GPU a step is therefore recorded once as a CUDA
graph and replayed, which starts hundreds of kernels at the price of one. Without a GPU the same code runs unrecorded.
The layers are the model's own, adapters and few-bit weights included: only cache, mask and attention are of this file.
Attention groups the query heads of each key head, so that keys and values are never copied per query head. Used by
slots.py. Models with attention windows, ALiBi or rotary angles that depend on the length are left out (`supports`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from rlhfctl.generation.local import uses_alibi
from rlhfctl.models import loading
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import PACKED, has_full_attention, max_stable_rope_length
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.sharding import is_sharded
from rlhfctl.models.tensors import pad_right

SLOTS = "rlhfctl_slots"  # name of this attention in transformers' registry
_ROUND_TO = 8  # columns: kernels with a mask want a multiple
_WIDTHS = 4  # a step reads the cache up to the next quarter of its columns
_RECORD_AT = 3  # a shape is recorded when it is used for this time: the first times warm it up
_TOLERANCE = {2: 5e-2, 4: 1e-4, 8: 1e-8}  # relative to the largest hidden state; keys: bytes per number
_CHECK = ((5, 3, 7, 2), (4, 6))  # two prompts of different lengths


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer in fixed memory (rows, heads, columns, width); made when the first rows arrive.

    `shared`: the cache's size, and the columns that the present step writes and reads.
    """

    def __init__(self, shared: _Place) -> None:
        super().__init__()
        self.is_initialized = False
        self.place = shared

    def admit(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Copy keys and values (k, heads, T, width) of new rows into the rows `slots` (k,)."""
        if not self.is_initialized:
            rows, columns = self.place.rows, self.place.columns
            self.dtype, self.device = keys.dtype, keys.device
            # Zeros, not empty: a column that is masked must still hold finite numbers.
            self.keys = keys.new_zeros((rows, keys.shape[1], columns, keys.shape[3]))
            self.values = values.new_zeros((rows, values.shape[1], columns, values.shape[3]))
            self.is_initialized = True
        self.keys[slots, :, : keys.shape[2]] = keys
        self.values[slots, :, : values.shape[2]] = values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, width = len(key_states), self.place.width
        chosen, positions = self.place.numbers[:rows], self.place.positions[:rows]
        self.keys[chosen, :, positions] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[chosen, :, positions] = value_states[:, :, 0].to(self.values.dtype)
        return self.keys[:rows, :, :width], self.values[:rows, :, :width]

    def move(self, rows: Tensor) -> None:
        """Move the rows `rows` (n,) to the first n places."""
        self.keys[: len(rows)] = self.keys[rows]
        self.values[: len(rows)] = self.values[rows]

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0  # positions and mask are given with each step


class _Place:
    """What all layers of a cache share: its size, and where the present step writes and reads."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.rows, self.columns, self.width = rows, columns, columns
        self.numbers = torch.arange(rows, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend from one new token per row: `query` (B, heads, 1, width), `key`, `value` (B, groups, L, width).

    The queries of the heads that share keys stand side by side as one head's queries: (B, groups, heads / groups, W).
    """
    if attention_mask is not None and attention_mask.dtype != query.dtype:  # autocast
        attention_mask = attention_mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
    rows, heads, _new, width = query.shape
    together = query.view(rows, key.shape[1], heads // key.shape[1], width)
    seen = functional.scaled_dot_product_attention(together, key, value, attn_mask=attention_mask, scale=scaling)
    return seen.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(SLOTS, _attention)
AttentionMaskInterface.register(SLOTS, sdpa_mask)


@contextmanager
def _attending(config: Any, kind: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = kind
    try:
        yield
    finally:
        config._attn_implementation = before


class StaticDecoder:
    """The rows of a policy in decoding. `states` (rows, H): the hidden states of each row's last token.

    `rows`: how many are decoded together; `columns`: tokens that a row has room for. A row that is free computes
    numbers that nobody reads.
    """

    def __init__(self, policy: LanguageModel, rows: int, columns: int) -> None:
        columns = -(-columns // _ROUND_TO) * _ROUND_TO
        self.policy, self.device = policy, policy.device
        self.place = _Place(rows, columns, policy.device)
        self.layers = [_SlotLayer(self.place) for _ in range(policy.config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)
        self.rows = rows  # those that a step works on
        self.tokens = torch.zeros((rows, 1), dtype=torch.long, device=self.device)
        self.states = torch.zeros(
            (rows, policy.head.weight.shape[1]), dtype=policy.head.weight.dtype, device=self.device
        )
        self.numbers = torch.arange(columns, device=self.device)
        self._recorder = _Recorder(policy)

    def admit(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Read `prompts` into the rows `slots`; their `states` are then those of the prompts' last tokens."""
        ids, mask = pad_right(prompts, 0, self.device)
        lengths, chosen = mask.sum(1), torch.tensor(slots, device=self.device)
        cache = DynamicCache(config=self.policy.config)
        hidden = self.policy.trunk(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        for layer, read in zip(self.layers, cache.layers, strict=True):
            layer.admit(chosen, read.keys, read.values)
        last = hidden[torch.arange(len(slots), device=self.device), lengths - 1]
        if last.dtype != self.states.dtype:  # an architecture that computes in another number format than its head
            self.states = self.states.to(last.dtype)
        self.states[chosen] = last
        self.place.positions[chosen] = lengths

    def free(self, slots: Sequence[int]) -> None:
        """Give the rows back: they write into their first column until they are admitted anew."""
        self.place.positions[torch.tensor(slots, device=self.device)] = 0

    def keep(self, slots: Sequence[int]) -> None:
        """Move the rows `slots` to the first places, and decode only these from now on."""
        chosen = torch.tensor(slots, device=self.device)
        for layer in self.layers:
            layer.move(chosen)
        for tensor in (self.states, self.place.positions):
            tensor[: len(slots)] = tensor[chosen]
        self.rows = len(slots)

    def step(self, tokens: Tensor, longest: int) -> None:
        """Append one token per row (rows,), and compute the new `states`. `longest`: the longest row before it."""
        self.tokens[: self.rows, 0] = tokens
        part = -(-self.place.columns // (_WIDTHS * _ROUND_TO)) * _ROUND_TO
        self.place.width = min(self.place.columns, -(-(longest + 1) // part) * part)
        with _attending(self.policy.config, SLOTS):
            self._recorder.run((self.rows, self.place.width), self._forward)
        self.place.positions[: self.rows] += 1
        self.place.positions.clamp_(max=self.place.columns - 1)  # rows that are free for long

    def _forward(self) -> None:
        """Compute one step; reads and writes only tensors that stay in their places."""
        rows, positions, dtype = self.rows, self.place.positions[: self.rows], self.states.dtype
        later = self.numbers[: self.place.width] > positions[:, None]
        mask = later.to(dtype) * torch.finfo(dtype).min
        hidden = self.policy.trunk(
            input_ids=self.tokens[:rows],
            attention_mask=mask[:, None, None],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.states[:rows] = hidden[:, 0]


class _Recorder:
    """Record steps as CUDA graphs, one per shape, and replay them; without a GPU it runs them as they are."""

    def __init__(self, policy: LanguageModel) -> None:
        # Autocast keeps copies of weights that a graph must not refer to; kernels for few bits may wait for the GPU.
        plain = not loading.is_quantized(policy.model) and not torch.is_autocast_enabled(policy.device.type)
        self.records = policy.device.type == "cuda" and plain
        self._graphs: dict[tuple[int, int], Any] = {}
        self._uses: Counter[tuple[int, int]] = Counter()

    def run(self, shape: tuple[int, int], forward: Callable[[], None]) -> None:
        """Run `forward`, whose tensors have this `shape`; from the third time on by its graph."""
        self._uses[shape] += 1
        if not self.records or self._uses[shape] < _RECORD_AT:
            forward()
            return
        if shape not in self._graphs:
            self._graphs[shape] = self._recorded(forward)
        graph = self._graphs[shape]
        if graph is None:
            forward()
        else:
            graph.replay()

    def _recorded(self, forward: Callable[[], None]) -> Any:
        """Record `forward`; None where the model does something that cannot be recorded. Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                forward()
        except RuntimeError:
            self.records = False
            return None
        return graph


# ---------------------------------------------------------------- which models


def supports(policy: LanguageModel) -> bool:
    """Tell whether the policy can be decoded so: full attention, fixed angles, and the same states as its own forward.

    The comparison with the model's forward is made once per policy.
    """
    config = policy.config
    if is_sharded(policy.trunk):  # layers are gathered one at a time, and each process takes as many steps
        return False
    if not has_full_attention(config) or uses_alibi(config) or max_stable_rope_length(config) is not None:
        return False
    if config._attn_implementation not in ("sdpa", PACKED) or not hasattr(config, "num_hidden_layers"):
        return False
    if policy.decodes_in_slots is None:
        policy.decodes_in_slots = _agrees(policy)
    return policy.decodes_in_slots


def _agrees(policy: LanguageModel) -> bool:
    """Compare with the model's own forward: two prompts, one more token, another prompt in the first row's place."""
    prompts = [[token % policy.vocabulary for token in prompt] for prompt in _CHECK]
    policy.activate()
    with evaluating(policy.model):
        try:
            decoder = StaticDecoder(policy, 2, 12)
            decoder.admit([0, 1], prompts)
            decoder.step(torch.tensor([1, 2], device=policy.device) % policy.vocabulary, 4)
            decoder.free([0])
            decoder.admit([0], [prompts[1]])
            decoder.step(torch.tensor([1, 0], device=policy.device), 3)
            wholes = ([*prompts[1], 1], [*prompts[1], 2 % policy.vocabulary, 0])
            expected = torch.cat([policy.hidden(torch.tensor([ids], device=policy.device))[:, -1] for ids in wholes])
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):  # layers of another kind
            return False
    gap = (decoder.states - expected).abs().max()
    bytes_ = 2 if torch.is_autocast_enabled(policy.device.type) else expected.dtype.itemsize
    return bool(gap <= _TOLERANCE[bytes_] * expected.abs().max())
