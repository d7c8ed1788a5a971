"""Decode small Llama-shaped models fast: one token per row and step, in few operations per layer.

transformers' forward starts about forty operations per layer, and LoRA starts as many again. For one token per row in
narrow layers, starting an operation costs more time than computing it. Here a layer takes about fifteen operations:

    h ─▶ RMSNorm ─▶ q, k, v in one product ─▶ rotary embedding of q and k together ─▶ attention on the cache ─▶ o ─▶ + h
      ─▶ RMSNorm ─▶ gate and up in one product ─▶ act(gate) * up ─▶ down ─▶ + h

Each rollout copies the weights and merges the active adapter into the copy. This is used only for models that are small
and in float32, have the shape above (Llama, Mistral without a window, Qwen2) and use `sdpa` attention. `Decoder.of`
returns None for all other models, and if the hidden states differ from those of the model's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from rlhfctl.models.fused import has_one_plain_adapter
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import PACKED, Group, Sequences, has_full_attention
from rlhfctl.models.sharding import is_sharded

COPIED_BYTES = 1 << 26  # largest copy of weights while sampling: 64 MB, 16 million parameters
_TOLERANCE = 1e-4  # relative to the largest hidden state
_STATIC_ROTARY = ("default", "linear", "llama3")  # the angles depend only on the position
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION, _MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer as (in, out) matrices, which multiply small batches fast, with biases or None."""

    before_attention: nn.Module
    qkv: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    before_mlp: nn.Module
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


class Decoder:
    """Copies of a model's layers with the active adapter merged; `begin` starts a batch."""

    def __init__(self, policy: LanguageModel) -> None:
        trunk = policy.trunk
        self.policy, self.trunk = policy, trunk
        attention = trunk.layers[0].self_attn
        self.width: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.act = trunk.layers[0].mlp.act_fn
        self.heads, self.groups = (
            _plain(projection).weight.shape[0] // self.width for projection in (attention.q_proj, attention.k_proj)
        )
        self.layers = [
            _Layer(
                layer.input_layernorm,
                _joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _joined(layer.self_attn.o_proj),
                layer.post_attention_layernorm,
                _joined(layer.mlp.gate_proj, layer.mlp.up_proj),
                _joined(layer.mlp.down_proj),
            )
            for layer in trunk.layers
        ]
        self.head = policy.head.weight.t().contiguous() if _small_head(policy) else None

    @classmethod
    @torch.no_grad()
    def of(cls, policy: LanguageModel) -> Decoder | None:
        """Make a decoder; None if the model has another shape, is large, or computes different hidden states."""
        if policy.decodes is False or not _has_shape(policy):
            return None
        decoder = cls(policy)
        if policy.decodes is None:
            policy.decodes = decoder._agrees(policy)
        return decoder if policy.decodes else None

    def begin(self, ids: Tensor, mask: Tensor, room: int) -> Decoding:
        """Start a batch of prompts (B, T), padded on the left where `mask` (B, T) is 0, with room for `room` tokens."""
        return Decoding(self, ids, mask, room)

    def _agrees(self, policy: LanguageModel) -> bool:
        """Compare with the model's own forward on two rows, one of them padded, and one more token per row."""
        device, count = policy.device, policy.vocabulary
        ids = torch.arange(2, 12, device=device).view(2, 5) % count
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], device=device)
        more = torch.tensor([3 % count, 4 % count], device=device)
        try:
            batch = self.begin(ids, mask, 6)
            decoded = torch.stack([batch.states, batch.step(more)], dim=1)
        except (RuntimeError, TypeError, AttributeError):  # the layers have the same names and another shape
            return False
        whole, seen = torch.cat([ids, more[:, None]], dim=1), functional.pad(mask, (0, 1), value=1)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        expected = policy.trunk(
            input_ids=whole, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state[:, -2:]
        return bool((decoded - expected).abs().max() <= _TOLERANCE * expected.abs().max())


class Decoding:
    """A batch in decoding. `states` (B, H): the hidden states of each row's last token."""

    def __init__(self, decoder: Decoder, ids: Tensor, mask: Tensor, room: int) -> None:
        self.decoder = decoder
        rows, length = ids.shape
        device, dtype = ids.device, torch.float32
        shape = (len(decoder.layers), 2, rows, decoder.groups, room, decoder.width)
        self.cache = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        self.lengths = mask.sum(1)
        all_positions = torch.arange(room, device=device)[None]
        like = torch.empty((1, room, 1), device=device, dtype=dtype)  # only its device and dtype are read
        cos, sin = decoder.trunk.rotary_emb(like, all_positions)
        half = decoder.width // 2
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)  # (room, width)
        self.pads: Tensor | None = None
        if bool((mask == 0).any()):
            self.pads = torch.zeros((rows, 1, 1, room), device=device, dtype=dtype)
            self.pads[:, 0, 0, :length] = (mask == 0).to(dtype) * torch.finfo(dtype).min
            self.cache[..., :length, :] = 0.0  # cells of padding are masked, but must be numbers
            self.states = self._read(ids)
        else:
            self.states = self._forward(ids, mask.cumsum(1) - 1, None, is_causal=True)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row (B,), and return the new states (B, H)."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        pads = None if self.pads is None else self.pads[..., : self.length + 1]
        self.states = self._forward(tokens[:, None], positions, pads, is_causal=False)
        return self.states

    def logits(self) -> Tensor:
        """Compute the logits (B, V) of the next token."""
        policy, head = self.decoder.policy, self.decoder.head
        return policy.logits(self.states) if head is None else policy.finished(self.states @ head)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but `rows`."""
        self.cache, self.lengths = self.cache[:, :, rows], self.lengths[rows]
        self.pads = None if self.pads is None else self.pads[rows]

    def _read(self, ids: Tensor) -> Tensor:
        """Fill the cache with prompts of different lengths; return the states (B, H) of their ends.

        The prompts are packed end to end (models/packing.py), so their padding is not computed. The last
        layer runs at their last tokens alone.
        """
        decoder = self.decoder
        width, heads, groups = decoder.width, decoder.heads, decoder.groups
        self.length = length = ids.shape[1]
        whole = ids.tolist()
        prompts = [row[length - count :] for row, count in zip(whole, self.lengths.tolist(), strict=True)]
        sequences = Sequences.of(prompts, [[] for _ in prompts], ids.device)
        positions, ends = sequences.positions, sequences.last()
        order = ends.argsort()  # the row of each packed prompt
        row_of_token = torch.repeat_interleave(order, self.lengths[order])
        column = positions + (length - self.lengths)[row_of_token]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # (T, 1, width)
        hidden = decoder.trunk.embed_tokens(sequences.ids)
        for layer, (keys, values) in zip(decoder.layers, self.cache, strict=True):
            qkv = _times(_norm(hidden, layer.before_attention), layer.qkv).view(-1, heads + 2 * groups, width)
            plain, value = qkv[:, : heads + groups], qkv[:, heads + groups :]
            turned = torch.addcmul(plain * cos, plain.roll(width // 2, -1), sin)
            query, key = turned[:, :heads], turned[:, heads:]
            keys[row_of_token, :, column] = key
            values[row_of_token, :, column] = value
            seen = _causal_attention(sequences.groups, query, key, value, decoder.scaling).view(len(hidden), -1)
            if layer is decoder.layers[-1]:
                hidden, seen = hidden[ends], seen[ends]
            hidden = hidden + _times(seen, layer.out)
            hidden = hidden + _mlp(hidden, layer, decoder.act)
        return _norm(hidden, decoder.trunk.norm)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
        decoder, width, heads, groups = self.decoder, self.decoder.width, self.decoder.heads, self.decoder.groups
        rows, new = ids.shape
        begin, self.length = self.length, self.length + new
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]  # (B, T, 1, width)
        hidden = decoder.trunk.embed_tokens(ids).view(rows * new, -1)
        for layer, (keys, values) in zip(decoder.layers, self.cache, strict=True):
            qkv = _times(_norm(hidden, layer.before_attention), layer.qkv).view(rows, new, heads + 2 * groups, width)
            plain = qkv[:, :, : heads + groups]
            turned = torch.addcmul(plain * cos, plain.roll(width // 2, -1), sin)
            keys[:, :, begin : self.length] = turned[:, :, heads:].transpose(1, 2)
            values[:, :, begin : self.length] = qkv[:, :, heads + groups :].transpose(1, 2)
            seen = functional.scaled_dot_product_attention(
                turned[:, :, :heads].transpose(1, 2),
                keys[:, :, : self.length],
                values[:, :, : self.length],
                attn_mask=mask,
                is_causal=is_causal,
                scale=decoder.scaling,
                enable_gqa=groups != heads,
            )
            hidden = hidden + _times(seen.transpose(1, 2).reshape(rows * new, -1), layer.out)
            hidden = hidden + _mlp(hidden, layer, decoder.act)
        return _norm(hidden.view(rows, new, -1)[:, -1], decoder.trunk.norm)


def _mlp(hidden: Tensor, layer: _Layer, act: Any) -> Tensor:
    gate, up = _times(_norm(hidden, layer.before_mlp), layer.gate_up).chunk(2, dim=-1)
    return _times(act(gate) * up, layer.down)


def _causal_attention(packing: Sequence[Group], query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend within each packed sequence: (T, heads, width), (T, groups, width) twice -> (T, heads, width)."""
    done, begin = [], 0
    for group in packing:
        tokens = slice(begin, begin + len(group.cell_of_token))
        begin = tokens.stop
        q, k, v = (
            part[tokens][group.token_of_cell].view(group.rows, group.width, *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=key.shape[1] != query.shape[1]
        )
        done.append(out.transpose(1, 2).flatten(0, 1)[group.cell_of_token])
    return torch.cat(done)


def _times(x: Tensor, weights: tuple[Tensor, Tensor | None]) -> Tensor:
    matrix, bias = weights
    return x @ matrix if bias is None else torch.addmm(bias, x, matrix)


def _norm(x: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _plain(projection: nn.Module) -> nn.Linear:
    """Return the linear layer inside an adapter layer; a plain layer is returned as it is."""
    return projection.base_layer if isinstance(projection, LoraLinear) else projection


def _joined(*projections: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Join layers that read the same input into one matrix (in, all outs) and bias, with active adapters merged."""
    matrices = []
    for projection in projections:
        matrix = _plain(projection).weight
        if isinstance(projection, LoraLinear) and _is_adapted(projection):
            name = projection.active_adapters[0]
            down, up = projection.lora_A[name].weight, projection.lora_B[name].weight
            matrix = torch.addmm(matrix, up, down, alpha=projection.scaling[name])
        matrices.append(matrix)
    biases = [_plain(projection).bias for projection in projections]
    bias = None if biases[0] is None else torch.cat(biases)
    return torch.cat(matrices).t().contiguous(), bias


def _has_shape(policy: LanguageModel) -> bool:
    """Tell whether the model has the layers of this file, and is small enough to copy."""
    trunk, config = policy.trunk, policy.config
    if is_sharded(trunk):  # the layers are gathered one at a time
        return False
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if not has_full_attention(config) or config._attn_implementation not in ("sdpa", PACKED):
        return False
    if rotary not in _STATIC_ROTARY or torch.is_autocast_enabled(policy.device.type):
        return False
    if not all(hasattr(trunk, name) for name in ("embed_tokens", "layers", "norm", "rotary_emb")):
        return False
    total = 0
    for layer in trunk.layers:
        if {name for name, _ in layer.named_children()} != _LAYER:
            return False
        if {name for name, _ in layer.self_attn.named_children()} != _ATTENTION:
            return False
        if {name for name, _ in layer.mlp.named_children()} != _MLP:
            return False
        norms = (layer.input_layernorm, layer.post_attention_layernorm, trunk.norm)
        if not all(hasattr(norm, "variance_epsilon") for norm in norms):
            return False
        projections = [*layer.self_attn.children(), layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
        if not all(_is_linear(projection) for projection in projections):
            return False
        attention, mlp = layer.self_attn, layer.mlp
        joined = [[attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]]
        if any(len({_plain(one).bias is None for one in together}) > 1 for together in joined):
            return False
        total += sum(_plain(projection).weight.nbytes for projection in projections)
    return total <= COPIED_BYTES


def _is_linear(projection: nn.Module) -> bool:
    """Tell whether the layer is a float32 matrix with at most one active plain adapter."""
    plain = _plain(projection)
    if type(plain) is not nn.Linear or plain.weight.dtype != torch.float32:
        return False
    if not isinstance(projection, LoraLinear) or not _is_adapted(projection):
        return True
    return has_one_plain_adapter(projection)


def _is_adapted(projection: LoraLinear) -> bool:
    """Tell whether an active adapter changes this layer: another role's adapter may lie on more layers."""
    return not projection.disable_adapters and any(name in projection.lora_A for name in projection.active_adapters)


def _small_head(policy: LanguageModel) -> bool:
    head = policy.head
    return type(head) is nn.Linear and head.bias is None and head.weight.nbytes <= COPIED_BYTES
