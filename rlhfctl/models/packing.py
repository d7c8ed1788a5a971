"""Pack sequences of different lengths into one row, so that no layer computes padding.

    sequences       [p p p r r]  [p r r r r r r]  [p p r]
    packed          longest first, T tokens in one row:  p r r r r r r  p p p r r  p p r
    most layers     work token by token: they see one row of T tokens
    attention       separates sequences: groups of similar length, each padded on the right, then the pads are dropped

`packed` makes a model's attention do this (transformers' AttentionInterface; the kernel stays `sdpa`), if a test shows
the same hidden states. Other models get each group as a padded batch: the same numbers, slower. Reads and writes no
files. Leaves out sampling, which has a cache and lengths of its own (generation/local.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhfctl.models import last_block

PACKED = "rlhfctl_packed"  # name of this attention in transformers' registry
LOWER = "rlhfctl_lower"  # name of a trunk's attribute: the layers that all its adapters leave alone (lower_trunk.py)
_LEAST_ROWS, _MOST_PADDING = 8, 1.15  # a new group begins before padding exceeds 15%
_CHECK_LENGTHS, _CHECK_TOLERANCE = (7, 3, 1), {4: 1e-4, 8: 1e-6}  # relative; keys: bytes per number
_LOW_PRECISION_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Group:
    """Lay out the sequences of a group as a padded table of `rows` x `width` cells, one sequence per row.

    Cells are numbered row by row, tokens from the group's first.
    """

    rows: int
    width: int
    token_of_cell: Tensor  # (rows * width,) the token in each cell; in a pad cell, the row's last token
    cell_of_token: Tensor  # (tokens,) the cell of each token
    pad_cells: Tensor  # the cells that are padding


@dataclass(frozen=True)
class Sequences:
    """Hold prompt + response sequences, packed into one row of T tokens, the longest first.

    `ids` (T,); `starts` (B,): index in `ids` of the first token; `prompt_lengths`, `lengths` (B,): number of tokens of
    prompt and response. The (B,) tensors keep the caller's order of sequences.
    """

    ids: Tensor
    starts: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    totals: tuple[int, ...]  # lengths of whole sequences, in packed order

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: Any) -> Sequences:
        """Pack each prompt with its response. `device`: where the tensors are made."""
        wholes = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        order = sorted(range(len(wholes)), key=lambda index: (-len(wholes[index]), index))
        totals = [len(wholes[index]) for index in order]
        starts = dict(zip(order, accumulate(totals, initial=0), strict=False))
        ids = [token for index in order for token in wholes[index]]
        counts = [[starts[i], len(prompts[i]), len(responses[i])] for i in range(len(wholes))]
        columns = torch.tensor(counts, device=device)
        return cls(
            torch.tensor(ids, dtype=torch.long, device=device),
            columns[:, 0],
            columns[:, 1],
            columns[:, 2],
            tuple(totals),
        )

    def before_tokens(self) -> Tensor:
        """Return the indices (N,) into `ids` of the tokens before each response token: their states predict it."""
        return self._response_states(0)

    def states(self, response_length: int) -> Tensor:
        """Return the indices (M,) into `ids` of the tokens whose hidden states get a value.

        These are the tokens of `before_tokens`, and also the last token of a response that is shorter than
        `response_length`.
        """
        return self._response_states((self.lengths < response_length).long())

    def _response_states(self, more: Tensor | int) -> Tensor:
        counts = self.lengths + more
        first = self.starts + self.prompt_lengths - 1
        before = counts.cumsum(0) - counts
        steps = torch.arange(int(counts.sum()), device=counts.device) - torch.repeat_interleave(before, counts)
        return steps + torch.repeat_interleave(first, counts)

    def before_tokens_in_states(self, response_length: int) -> Tensor:
        """Return where in `states(response_length)` the indices of `before_tokens` stand: (N,)."""
        more = (self.lengths < response_length).long()
        earlier = torch.repeat_interleave(more.cumsum(0) - more, self.lengths)
        return torch.arange(len(earlier), device=earlier.device) + earlier

    def tokens(self) -> Tensor:
        """Return the response tokens (N,), one response after the other."""
        return self.ids[self.before_tokens() + 1]

    def last(self) -> Tensor:
        """Return the index (B,) into `ids` of each sequence's last token."""
        return self.starts + self.prompt_lengths + self.lengths - 1

    @cached_property
    def positions(self) -> Tensor:
        """Return the position (T,) of each token in its sequence."""
        return torch.cat([torch.arange(total) for total in self.totals]).to(self.ids.device)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Cut the packed sequences into groups of similar length."""
        cuts: list[list[int]] = []
        for total in self.totals:
            now = cuts[-1] if cuts else []
            full = len(now) >= _LEAST_ROWS and now[0] * (len(now) + 1) > _MOST_PADDING * (sum(now) + total)
            if not cuts or full:
                cuts.append([total])
            else:
                now.append(total)
        return tuple(_group(cut, self.ids.device) for cut in cuts)


def _group(totals: Sequence[int], device: Any) -> Group:
    lengths, width = torch.tensor(totals), max(totals)
    within = torch.arange(width)[None, :]
    is_token = (within < lengths[:, None]).flatten()
    starts = lengths.cumsum(0) - lengths
    token_of_cell = (starts[:, None] + torch.minimum(within, lengths[:, None] - 1)).flatten()
    cells = torch.arange(len(token_of_cell))
    return Group(len(totals), width, token_of_cell.to(device), cells[is_token].to(device), cells[~is_token].to(device))


# ---------------------------------------------------------------- forwards


def hidden_states(trunk: Any, sequences: Sequences, at: Tensor | None = None) -> Tensor:
    """Compute the last hidden states (T, H) in packed order. `trunk` is a causal transformer without its head.

    `at` (N,): indices of the tokens whose states are read; the result is then (N, H). Frozen lower layers are not
    computed again for sequences whose states are kept (lower_trunk.py).
    """
    if (role := getattr(trunk, "as_active_trunk", None)) is not None:  # a scorer on a shared model (heads.py)
        trunk = role()
    lower = vars(trunk).get(LOWER)
    if lower is not None and lower.serves():
        kept: Tensor = lower.states(sequences, at)
        return kept
    return all_states(trunk, sequences, at)


def all_states(trunk: Any, sequences: Sequences, at: Tensor | None = None) -> Tensor:
    """Compute the last hidden states (T, H) in packed order, or those `at` some tokens, by all layers of `trunk`."""
    if at is not None:
        if trunk.config._attn_implementation != PACKED or not last_block.is_allowed(trunk):
            return all_states(trunk, sequences)[at]
        with last_block.only_at(trunk, at):
            return all_states(trunk, sequences)
    if trunk.config._attn_implementation == PACKED:
        states: Tensor = trunk(
            input_ids=sequences.ids[None],
            position_ids=sequences.positions[None],
            attention_mask=_no_mask(sequences.ids),
            use_cache=False,
            packing=sequences.groups,
        ).last_hidden_state[0]
        return states
    parts = []
    for group, ids in _by_group(sequences.groups, sequences.ids):
        table = ids[group.token_of_cell].view(group.rows, group.width)  # no token attends to a pad cell
        hidden = trunk(input_ids=table, use_cache=False).last_hidden_state
        parts.append(hidden.flatten(0, 1)[group.cell_of_token])
    return torch.cat(parts)


def _no_mask(ids: Tensor) -> Tensor:
    """Make a dummy mask: transformers passes a 4-dimensional mask on as it is, but builds one if it gets None."""
    return ids.new_zeros((1, 1, 1, 1), dtype=torch.bool)


def _by_group(groups: Sequence[Group], tokens: Tensor) -> list[tuple[Group, Tensor]]:
    """Split the first dimension of `tokens` (T, ...) into the groups."""
    return list(zip(groups, tokens.split([len(group.cell_of_token) for group in groups]), strict=True))


class _PadTokens(torch.autograd.Function):
    """Copy packed tokens (tokens, W) into the padded table (cells, W).

    No kept number depends on a pad cell. Its gradient is 0, so the backward pass does not read it.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tokens.index_select(0, group.token_of_cell)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.index_select(0, ctx.group.cell_of_token), None


class _UnpadTokens(torch.autograd.Function):
    """Copy the tokens of the padded table (cells, W) back into packed order (tokens, W); drop the pad cells."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return cells.index_select(0, group.cell_of_token)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.index_select(0, ctx.group.token_of_cell).index_fill_(0, ctx.group.pad_cells, 0.0), None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Sequence[Group] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Run transformers' sdpa attention, separately on each group of `packing`; on the whole batch without `packing`.

    `query`, `key`, `value` (1, heads, T, width) to (1, T, heads, width).
    """
    if packing is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return whole
    heads = [part.shape[1] for part in (query, key, value)]
    flat = [part.transpose(1, 2).flatten(2)[0] for part in (query, key, value)]  # (T, heads * width)
    parts = []
    for (group, q), (_, k), (_, v) in zip(*(_by_group(packing, part) for part in flat), strict=True):
        tables = [
            _PadTokens.apply(part, group).view(group.rows, group.width, count, -1).transpose(1, 2)
            for part, count in zip((q, k, v), heads, strict=True)
        ]
        out, _ = sdpa_attention_forward(module, *tables, None, **(settings | {"is_causal": True}))
        parts.append(_UnpadTokens.apply(out.reshape(group.rows * group.width, -1), group))
    return torch.cat(parts).view(1, len(flat[0]), heads[0], -1), None


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


# ---------------------------------------------------------------- which models support packing


def has_full_attention(config: Any) -> bool:
    """Check whether the attention of every layer reaches back to the first token: no window, no special layer types."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return getattr(config, "sliding_window", None) is None and kinds == {"full_attention"}


def max_stable_rope_length(config: Any) -> int | None:
    """Return the sequence length up to which rotary angles depend on the position alone; None without a limit.

    In longer sequences `dynamic` and `longrope` embeddings change the angles of all positions. Tokens in a cache would
    keep their old angles.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [kind for kind in parameters.values() if isinstance(kind, dict)]
    every = by_layer_type or [parameters]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in every
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


@contextmanager
def packed(trunk: Any) -> Iterator[bool]:
    """Make `trunk` accept packed sequences inside the block, if it supports them. Yields whether it does.

    Its attention must be plain causal `sdpa`, and a few test sequences must give the same hidden states packed and
    apart.
    """
    config = trunk.config
    if not has_full_attention(config) or config._attn_implementation != "sdpa":
        yield config._attn_implementation == PACKED
        return
    supported = _agrees(trunk)
    try:
        if supported:
            config._attn_implementation = PACKED
            last_block.allow(trunk, last_block.has_shape(trunk) and _agrees_at_some_tokens(trunk))
        yield supported
    finally:
        last_block.allow(trunk, False)
        config._attn_implementation = "sdpa"


@contextmanager
def in_plain_operations(trunk: Any) -> Iterator[None]:
    """Let `trunk` compute each group of packed sequences as a padded batch, without an attention kernel.

    transformers' `eager` attention has derivatives of every kind.
    """
    before = trunk.config._attn_implementation
    trunk.config._attn_implementation = "eager"
    try:
        yield
    finally:
        trunk.config._attn_implementation = before


def _test_sequences(trunk: Any) -> Sequences:
    count = trunk.config.vocab_size
    prompts = [[(5 * i + 3 * position + 2) % count for position in range(n)] for i, n in enumerate(_CHECK_LENGTHS)]
    return Sequences.of(prompts, [[] for _ in prompts], next(trunk.parameters()).device)


def _agrees(trunk: Any) -> bool:
    """Check that `trunk` gives the same hidden states for packed sequences as for each sequence by itself."""
    config, sequences = trunk.config, _test_sequences(trunk)
    try:
        with torch.no_grad():
            apart = all_states(trunk, sequences)
            config._attn_implementation = PACKED
            together = all_states(trunk, sequences)
    except (TypeError, ValueError, RuntimeError):  # an architecture that does not accept these arguments
        return False
    finally:
        config._attn_implementation = "sdpa"
    return _are_close(together, apart)


def agrees(trunk: Any, forward: Callable[[Sequences], Tensor]) -> bool:
    """Check that `forward` gives the last hidden states of the packed `trunk` for a few test sequences."""
    sequences = _test_sequences(trunk)
    try:
        with torch.no_grad():
            return _are_close(forward(sequences), all_states(trunk, sequences))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # layers of another shape
        return False


def _agrees_at_some_tokens(trunk: Any) -> bool:
    """Check that the last layer, run at some tokens alone, gives the states that it gives among all."""
    some = torch.tensor([9, 0, 4, 10], device=next(trunk.parameters()).device)

    def scattered(sequences: Sequences) -> Tensor:
        states = all_states(trunk, sequences)
        with last_block.only_at(trunk, some):
            return states.index_copy(0, some, all_states(trunk, sequences))

    return agrees(trunk, scattered)


def _are_close(together: Tensor, apart: Tensor) -> bool:
    tolerance = _CHECK_TOLERANCE.get(apart.dtype.itemsize, _LOW_PRECISION_TOLERANCE)
    gap = (together - apart).abs().max()
    return bool(gap <= tolerance * apart.abs().max())
