"""Rows of unlike lengths laid end to end, so that no layer computes padding.

    rows            [p p p r r]  [p r r r r r r]  [p p r]
    laid out        longest first, T tokens in one row:  p r r r r r r  p p p r r  p p r
    most layers     work token by token: they see one row of T tokens
    attention       sees rows apart: groups of like length, each padded on the right for itself, and the pads dropped

`packed` lets a model's attention do this (transformers' AttentionInterface; the kernel stays its `sdpa`) where it shows
that it then computes what it did. Other models get each group as a padded batch of its own: the same numbers, slower.
Leaves out sampling, which has a cache and lengths of its own (generation/local.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

PACKED = "rlhfctl_packed"  # the name of our attention in transformers' registry
_LEAST_ROWS, _MOST_PADDING = 8, 1.15  # a group is cut rather than padded by more than 15%
_CHECK_LENGTHS, _CHECK_TOLERANCE = (7, 3, 1), {4: 1e-4, 8: 1e-6}  # relative, by the bytes of a number
_LOW_PRECISION_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Group:
    """`rows` next to each other, as a table of rows x `width` places. Tokens are counted from the group's first."""

    rows: int
    width: int
    token_at: Tensor  # (rows * width,) the token at each place; at a pad, the row's last token
    place_of: Tensor  # (tokens,) the place of each token
    pads: Tensor  # the places that are pads


@dataclass(frozen=True)
class Sequences:
    """Prompt + response rows, laid end to end, the longest first.

    `ids` (T,); `starts` (B,): where each row begins; `prompt_lengths`, `lengths` (B,): tokens of prompt and response.
    """

    ids: Tensor
    starts: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    totals: tuple[int, ...]  # lengths of the rows as they lie

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], at: Any) -> Sequences:
        rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]), row))
        totals = [len(rows[row]) for row in order]
        starts = dict(zip(order, accumulate(totals, initial=0), strict=False))
        ids = [token for row in order for token in rows[row]]
        counts = torch.tensor([[starts[i], len(prompts[i]), len(responses[i])] for i in range(len(rows))], device=at)
        return cls(
            torch.tensor(ids, dtype=torch.long, device=at),
            counts[:, 0],
            counts[:, 1],
            counts[:, 2],
            tuple(totals),
        )

    def before_tokens(self) -> Tensor:
        """(N,) the places in `ids` whose hidden states the response's tokens are drawn from, row after row."""
        return self._response_states(0)

    def states(self, response_length: int) -> Tensor:
        """(M,) the places whose hidden states have a value: as above, and the one after a response's last token where
        it is shorter than the longest allowed.
        """
        return self._response_states((self.lengths < response_length).long())

    def _response_states(self, more: Tensor | int) -> Tensor:
        counts = self.lengths + more
        first = self.starts + self.prompt_lengths - 1
        before = counts.cumsum(0) - counts
        steps = torch.arange(int(counts.sum()), device=counts.device) - torch.repeat_interleave(before, counts)
        return steps + torch.repeat_interleave(first, counts)

    def tokens(self) -> Tensor:
        """(N,) the response tokens, row after row."""
        return self.ids[self.before_tokens() + 1]

    def last(self) -> Tensor:
        """(B,) the place of each row's last token."""
        return self.starts + self.prompt_lengths + self.lengths - 1

    @cached_property
    def positions(self) -> Tensor:
        """(T,) of each token in its row."""
        return torch.cat([torch.arange(total) for total in self.totals]).to(self.ids.device)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        cuts: list[list[int]] = []
        for total in self.totals:
            now = cuts[-1] if cuts else []
            full = len(now) >= _LEAST_ROWS and now[0] * (len(now) + 1) > _MOST_PADDING * (sum(now) + total)
            if not cuts or full:
                cuts.append([total])
            else:
                now.append(total)
        return tuple(_group(cut, self.ids.device) for cut in cuts)


def _group(totals: Sequence[int], at: Any) -> Group:
    lengths, width = torch.tensor(totals), max(totals)
    within = torch.arange(width)[None, :]
    is_token = (within < lengths[:, None]).flatten()
    starts = lengths.cumsum(0) - lengths
    token_at = (starts[:, None] + torch.minimum(within, lengths[:, None] - 1)).flatten()
    places = torch.arange(len(token_at))
    return Group(len(totals), width, token_at.to(at), places[is_token].to(at), places[~is_token].to(at))


# ---------------------------------------------------------------- forwards


def hidden_states(trunk: Any, sequences: Sequences) -> Tensor:
    """(T, H) the last hidden states of all tokens, as they lie. `trunk` is a causal transformer without its head."""
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
        table = ids[group.token_at].view(group.rows, group.width)  # what stands at a pad is seen by no token
        hidden = trunk(input_ids=table, use_cache=False).last_hidden_state
        parts.append(hidden.flatten(0, 1)[group.place_of])
    return torch.cat(parts)


def _no_mask(ids: Tensor) -> Tensor:
    """A mask of four dimensions is handed to attention as it is, where none would make transformers build one."""
    return ids.new_zeros((1, 1, 1, 1), dtype=torch.bool)


def _by_group(groups: Sequence[Group], tokens: Tensor) -> list[tuple[Group, Tensor]]:
    return list(zip(groups, tokens.split([len(group.place_of) for group in groups]), strict=True))


class _ToPlaces(torch.autograd.Function):
    """(tokens, W) to (places, W). Nothing that is kept depends on a pad, so its gradient is zero and not looked at."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tokens.index_select(0, group.token_at)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.index_select(0, ctx.group.place_of), None


class _FromPlaces(torch.autograd.Function):
    """(places, W) to (tokens, W): pads are dropped."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return places.index_select(0, group.place_of)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.index_select(0, ctx.group.token_at).index_fill_(0, ctx.group.pads, 0.0), None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Sequence[Group] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention, of each group for itself where there are any.

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
            _ToPlaces.apply(part, group).view(group.rows, group.width, count, -1).transpose(1, 2)
            for part, count in zip((q, k, v), heads, strict=True)
        ]
        out, _ = sdpa_attention_forward(module, *tables, None, **(settings | {"is_causal": True}))
        parts.append(_FromPlaces.apply(out.reshape(group.rows * group.width, -1), group))
    return torch.cat(parts).view(1, len(flat[0]), heads[0], -1), None


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


# ---------------------------------------------------------------- who may


def has_full_attention(config: Any) -> bool:
    """Whether every layer's attention reaches back to the first token: no window, no kind of its own."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return getattr(config, "sliding_window", None) is None and kinds == {"full_attention"}


def max_stable_rope_length(config: Any) -> int | None:
    """Up to how many tokens a position is turned by the same angle whatever the length of its sequence; None: always.

    Beyond them `dynamic` and `longrope` embeddings turn all tokens anew, those in a cache too late.
    """
    given = getattr(config, "rope_parameters", None) or {}
    every = [kind for kind in given.values() if isinstance(kind, dict)] or [given]  # one, or one for each kind of layer
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in every
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


@contextmanager
def packed(trunk: Any) -> Iterator[bool]:
    """`trunk` takes rows laid end to end while inside, if it can. Yields whether it does.

    It can where its attention is plain causal `sdpa`, and a few rows show the same hidden states either way.
    """
    config = trunk.config
    if not has_full_attention(config) or config._attn_implementation != "sdpa":
        yield config._attn_implementation == PACKED
        return
    inside = _agrees(trunk)
    try:
        if inside:
            config._attn_implementation = PACKED
        yield inside
    finally:
        config._attn_implementation = "sdpa"


def _agrees(trunk: Any) -> bool:
    """Whether `trunk` gives the same hidden states for rows laid end to end as for each row."""
    config, weight = trunk.config, next(trunk.parameters())
    count = config.vocab_size
    rows = [[(5 * row + 3 * place + 2) % count for place in range(n)] for row, n in enumerate(_CHECK_LENGTHS)]
    sequences = Sequences.of(rows, [[] for _ in rows], weight.device)
    try:
        with torch.no_grad():
            apart = hidden_states(trunk, sequences)
            config._attn_implementation = PACKED
            together = hidden_states(trunk, sequences)
    except (TypeError, ValueError, RuntimeError):  # an architecture that takes no such arguments
        return False
    finally:
        config._attn_implementation = "sdpa"
    tolerance = _CHECK_TOLERANCE.get(apart.dtype.itemsize, _LOW_PRECISION_TOLERANCE)
    gap = (together - apart).abs().max()
    return bool(gap <= tolerance * apart.abs().max())
