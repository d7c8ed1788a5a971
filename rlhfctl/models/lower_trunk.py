"""Compute the frozen layers below a model's first adapter once per sequence, for all roles and all PPO epochs.

    tokens ─▶ embeddings, layers 0 .. k-1 ─▶ states (kept) ─▶ layers k .. with the role's adapter ─▶ last states
              nothing here is trained

With `lora.layers_to_transform` policy, reference, reward model and critic have the same lower layers, which no update
changes. `shared_below` prepares a trunk, and `keeping` keeps the states for as long as a batch is learned from. States
are found again by the token ids of their sequence, so callers may cut and order a batch as they like. This needs packed
sequences (packing.py), and is used only if a few test sequences give the same states. Reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlhfctl.models import packing
from rlhfctl.models.kept_states import Row, rows_of
from rlhfctl.models.packing import LOWER, PACKED, Sequences
from rlhfctl.models.sharding import is_sharded


class LowerTrunk:
    """The layers of a trunk below `first`, the first with an adapter, and the states that they gave."""

    def __init__(self, trunk: Any, first: int) -> None:
        self.trunk = trunk
        layers = decoder_layers(trunk)
        self.lower, self.upper = layers[:first], layers[first:]
        self._adapted = [part for layer in self.lower for part in layer.modules() if isinstance(part, BaseTunerLayer)]
        self._kept: dict[Row, Tensor] = {}
        self.keeps = False

    def serves(self) -> bool:
        """Tell whether states are kept now and the active adapter leaves the lower layers as they are."""
        return self.keeps and not any(_acts(layer) for layer in self._adapted)

    def forget(self) -> None:
        """Free all kept states."""
        self._kept.clear()

    def states(self, sequences: Sequences, at: Tensor | None = None) -> Tensor:
        """Compute the last hidden states (T, H), or those `at` some tokens.

        The lower layers run for sequences that are new, the upper ones for all.
        """
        given = self._lower_states(sequences)[None]
        with _replaced(self.lower[:-1], _pass_on), _replaced(self.lower[-1:], lambda *_, **__: given):
            return packing.all_states(self.trunk, sequences, at)

    def _lower_states(self, sequences: Sequences) -> Tensor:
        """Return the states (T, H) that enter the first adapted layer."""
        rows = [row for row, _ in rows_of(sequences)]
        new = list(dict.fromkeys(row for row in rows if row not in self._kept))
        if new:
            missing = Sequences.of(new, [[] for _ in new], sequences.ids.device)
            computed = self._computed(missing)
            for row, start in rows_of(missing):
                self._kept[row] = computed[start : start + len(row)]
        return torch.cat([self._kept[row] for row in rows])

    @torch.no_grad()
    def _computed(self, sequences: Sequences) -> Tensor:
        entering: list[Tensor] = []

        def note(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            entering.append(hidden)
            return hidden

        with _replaced(self.upper[:1], note), _replaced(self.upper[1:], _pass_on):
            packing.all_states(self.trunk, sequences)
        return entering[0][0]


def decoder_layers(trunk: Any) -> list[nn.Module]:
    """List a trunk's layers in order; none if it does not hold them as one list of `num_hidden_layers` modules."""
    count = getattr(trunk.config, "num_hidden_layers", 0)
    lists = [part for part in trunk.children() if isinstance(part, nn.ModuleList) and len(part) == count]
    return list(lists[0]) if len(lists) == 1 else []


def first_adapted(trunk: Any, adapter: str) -> int:
    """Return the index of the first layer that carries `adapter`; 0 if none does or the layers are not known."""
    for index, layer in enumerate(decoder_layers(trunk)):
        if any(isinstance(part, BaseTunerLayer) and _carries(part, adapter) for part in layer.modules()):
            return index
    return 0


def _carries(layer: BaseTunerLayer, adapter: str) -> bool:
    return any(adapter in getattr(layer, name) for name in layer.adapter_layer_names)


def _acts(layer: BaseTunerLayer) -> bool:
    """Tell whether an adapter changes what the layer computes now."""
    return not layer.disable_adapters and any(_carries(layer, name) for name in layer.active_adapters)


def _pass_on(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def _replaced(layers: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Let `layers` run `forward` inside the block. A layer may have a forward of its own in its __dict__ already."""
    before = [(layer, vars(layer).get("forward")) for layer in layers]
    for layer, _ in before:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, own in before:
            vars(layer).pop("forward") if own is None else vars(layer).update(forward=own)


@contextmanager
def shared_below(trunk: Any, adapter: str) -> Iterator[int]:
    """Make `trunk` able to keep the states below the first layer with `adapter`, inside the block.

    Yields the number of layers below; 0 if there are none, if the trunk is not packed, or if a test gives other states.
    """
    packs = trunk.config._attn_implementation == PACKED and not is_sharded(trunk)  # all processes gather all layers
    first = first_adapted(trunk, adapter) if packs else 0
    lower = LowerTrunk(trunk, first) if first else None
    if lower is None or not packing.agrees(trunk, lower.states):
        yield 0
        return
    lower.forget()
    vars(trunk)[LOWER] = lower
    try:
        yield first
    finally:
        del vars(trunk)[LOWER]


@contextmanager
def passing(trunks: Iterable[Any]) -> Iterator[None]:
    """Keep no states inside the block: its sequences come once, and all layers compute them."""
    lowers = [(lower, lower.keeps) for trunk in trunks if (lower := vars(trunk).get(LOWER)) is not None]
    for lower, _ in lowers:
        lower.keeps = False
    try:
        yield
    finally:
        for lower, keeps in lowers:
            lower.keeps = keeps


@contextmanager
def keeping(trunks: Iterable[Any]) -> Iterator[None]:
    """Keep the states below the adapters of `trunks` inside the block: each sequence passes those layers once."""
    lowers = [vars(trunk)[LOWER] for trunk in trunks if LOWER in vars(trunk)]
    for lower in lowers:
        lower.keeps = True
    try:
        yield
    finally:
        for lower in lowers:
            lower.keeps = False
            lower.forget()
