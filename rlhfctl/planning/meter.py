"""Count the bytes of tensors on torch's meta device, which have shapes and no numbers.

Operations on the meta device compute shapes only, so one step of a model of any size takes about one second. The meter
counts every storage that the operations of a step allocate, until it is freed. Used by all files that estimate memory.
"""

from __future__ import annotations

import contextlib
import platform
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

WEIGHTS, GATHERED, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, CACHE, ALLOCATOR = KINDS = (
    "weights",
    "gathered",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "KV cache",
    "allocator",
)
ON_HEAP = 32 << 20  # glibc takes smaller blocks from its heap; freed blocks stay there and are seldom used again
HEAP_WASTE = 0.9  # bytes lost in this way per byte in use; measured by tests/campaigns/memory.py


class AllocationMeter(TorchDispatchMode):
    """Count the bytes of storages that operations allocate, by kind, until they are freed.

    Meta tensors have no numbers: a read of one (`if mask.all():`) gets False or 0.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.wastes = HEAP_WASTE if _glibc_heap() else 0.0
        self.room = 0  # tokens per row that the KV cache has room for; 0 without a cache
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._kinds: dict[int, tuple[str, int]] = {}
        self._ignored: set[int] = set()

    def ignore_weights(self, *modules: nn.Module) -> None:
        """Do not count the weights of `modules` as allocations; count their gradients as gradients."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._ignored.add(tensor.untyped_storage()._cdata)
                if tensor.requires_grad and tensor.is_leaf and isinstance(tensor, nn.Parameter):
                    tensor.register_post_accumulate_grad_hook(self._is_gradient)

    def restart(self) -> None:
        """Measure the peak from now on."""
        self.peak = Counter(self.live)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ignored or key in self._kinds:
            return
        self._kinds[key] = (self._kind(tensor), storage.nbytes())
        weakref.finalize(storage, self._gone, key)
        self._count(*self._kinds[key])

    def _kind(self, tensor: Tensor) -> str:
        if self.vocabulary in tensor.shape[-1:] and tensor.is_floating_point():
            return LOGITS
        if self.room and tensor.dim() >= 4 and tensor.shape[-2] == self.room:
            return CACHE
        return ACTIVATIONS

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        kind, size = self._kinds[key]
        self._count(kind, -size)
        self._count(GRADIENTS, size)
        self._kinds[key] = (GRADIENTS, size)

    def _gone(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._count(kind, -size)

    def _count(self, kind: str, size: int) -> None:
        self.live[kind] += size
        if kind != GRADIENTS and abs(size) < ON_HEAP:
            self.live[ALLOCATOR] += int(self.wastes * size)
        if self.live.total() > self.peak.total():
            self.peak = Counter(self.live)


def _glibc_heap() -> bool:
    """Tell whether tensors lie in glibc's heap, which is not so on a GPU."""
    return not torch.cuda.is_available() and platform.libc_ver()[0] == "glibc"


@contextlib.contextmanager
def on_meta_device(*, autocast: bool = False) -> Iterator[None]:
    """Make new tensors on the meta device inside the block; attention uses a kernel without an L x L matrix.

    `autocast`: linear layers compute in bfloat16 on copies of their weights. Copies of trained weights are kept, as in
    torch.autocast, which does not support meta tensors itself.
    """
    plain, linear = nn.functional.scaled_dot_product_attention, nn.functional.linear
    copies: dict[int, Tensor] = {}

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p and not torch.cuda.is_available():  # the CPU's kernel has no dropout, so the L x L matrix is made
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        seen: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return seen

    def narrow(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        copy = copies.get(id(weight)) if torch.is_grad_enabled() else None
        if copy is None:
            copy = weight.bfloat16()
            if copy.requires_grad:
                copies[id(weight)] = copy
        done: Tensor = linear(x.bfloat16(), copy, None if bias is None else bias.bfloat16())
        return done

    with (
        mock.patch.object(nn.functional, "scaled_dot_product_attention", attention),
        mock.patch.object(nn.functional, "linear", narrow if autocast else linear),
        mock.patch.object(torch, "is_autocast_enabled", lambda *_: autocast),
        warnings.catch_warnings(),
        torch.device("meta"),
    ):
        warnings.simplefilter("ignore")
        yield
