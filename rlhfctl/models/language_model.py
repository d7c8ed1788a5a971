"""Split a causal language model into trunk and head, to compute log-probabilities only where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhfctl.errors import EngineError
from rlhfctl.models import architecture, scoring
from rlhfctl.models.adapters import AdapterSwitch
from rlhfctl.models.packing import Sequences, hidden_states
from rlhfctl.models.special_tokens import PAD_LOGIT
from rlhfctl.models.tensors import LOGITS_AT_ONCE, at_least_float32, entropy, pad_right, unpacked_bits

_CHECK_TOLERANCE = 1e-4
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM


class LanguageModel:
    """A causal language model as trunk and head; one role of PPO.

    `adapter`: the name of the active adapter; None means the plain weights. `switch`: activates the adapter; all roles
    on one peft model share it.
    """

    def __init__(
        self, model: Any, pad_token_id: int, adapter: str | None = None, switch: AdapterSwitch | None = None
    ) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.adapter = adapter
        self.switch = switch or (AdapterSwitch(model) if isinstance(model, PeftModel) else None)
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        self.trunk = architecture.backbone(inner)
        self.head = inner.get_output_embeddings()
        self.config = inner.config
        self.vocabulary = self.head.weight.shape[0]
        self._pad_mask: Tensor | None = None
        # Whether generation/small_decoder.py gives the same hidden states as this model; None: not tried yet.
        self.decodes: bool | None = None
        self.decodes_in_slots: bool | None = None  # the same for generation/static_decoder.py

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def activate(self) -> None:
        """Make this role's adapter active, until another role is activated."""
        if self.switch is not None:
            self.switch.to(self.adapter)

    def with_adapter(self, adapter: str | None) -> LanguageModel:
        """Make another role on the same model, with this adapter active."""
        return LanguageModel(self.model, self.pad_token_id, adapter, self.switch)

    def hidden(self, ids: Tensor, **inputs: Any) -> Tensor:
        """Compute the last hidden states (B, L, H) of `ids` (B, L)."""
        self.activate()
        states: Tensor = self.trunk(input_ids=ids, use_cache=False, **inputs).last_hidden_state
        return states

    def states(self, sequences: Sequences, at: Tensor | None = None) -> Tensor:
        """Compute the last hidden states (T, H) of all tokens of `sequences`, or (N, H) of the tokens `at` (N,)."""
        self.activate()
        return hidden_states(self.trunk, sequences, at)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits (..., V) in float32 or wider, with pad masked, from hidden states (..., H)."""
        return self.finished(self.head(hidden))

    def finished(self, logits: Tensor) -> Tensor:
        """Apply the architecture's soft cap and scale, and the pad mask, to the head's output."""
        if soft_cap := next((cap for name in _SOFT_CAPS if (cap := getattr(self.config, name, None))), None):
            logits = torch.tanh(logits / soft_cap) * soft_cap
        if scale := getattr(self.config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        logits = at_least_float32(logits)
        if self._pad_mask is None or self._pad_mask.device != logits.device:
            self._pad_mask = torch.zeros(self.vocabulary, dtype=torch.bool, device=logits.device)
            self._pad_mask[self.pad_token_id] = True
        return logits.masked_fill(self._pad_mask, PAD_LOGIT)

    def response_logprobs(self, sequences: Sequences, temperature: float, allowed: Tensor | None = None) -> Tensor:
        """Compute the log-probabilities (N,) of the response tokens of `sequences`, row after row.

        `allowed`: see token_logprobs.
        """
        states = self.states(sequences, sequences.before_tokens())
        return self.token_logprobs(states, sequences.tokens(), temperature, allowed=allowed)[0]

    def token_logprobs(
        self,
        hidden: Tensor,
        tokens: Tensor,
        temperature: float,
        *,
        with_entropy: bool = False,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the log-probability of each of `tokens` (N,) from `hidden` (N, H), and entropies (N,) if asked for.

        `allowed` (N, ceil(V / 8)), packed bits: the distribution is that over the allowed tokens of each position. The
        work is done in pieces, so that the N x V logits are never in memory together. Under autograd the pieces are
        recomputed in the backward pass.
        """
        if not with_entropy and allowed is None and self._plain_frozen_head(hidden):
            chosen: Tensor = _FrozenHead.apply(hidden, tokens, self.head, self.pad_token_id, temperature)
            return chosen, None

        def piece(part: Tensor, chosen: Tensor, bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
            logits = self.logits(part) / temperature
            if bits is not None:
                logits = logits.masked_fill(~unpacked_bits(bits, self.vocabulary), PAD_LOGIT)
            taken = torch.log_softmax(logits, dim=-1).gather(-1, chosen[:, None]).squeeze(-1)
            spread = entropy(logits) if with_entropy else taken.detach()
            return taken, spread

        rows = max(1, LOGITS_AT_ONCE // self.vocabulary)
        columns = (hidden, tokens) if allowed is None else (hidden, tokens, allowed)
        parts = list(zip(*(column.split(rows) for column in columns), strict=True))
        if len(parts) > 1 and torch.is_grad_enabled() and hidden.requires_grad:
            done = [checkpoint(piece, *part, use_reentrant=False) for part in parts]
        else:
            done = [piece(*part) for part in parts]
        logprobs = torch.cat([logprob for logprob, _ in done])
        return logprobs, torch.cat([spread for _, spread in done]) if with_entropy else None

    def _plain_frozen_head(self, hidden: Tensor) -> bool:
        """Tell whether `_FrozenHead` can be used: a frozen linear head without soft cap or scale, and no autocast."""
        special = (*_SOFT_CAPS, "logit_scale", "logits_scaling")
        return (
            type(self.head) is nn.Linear
            and not any(parameter.requires_grad for parameter in self.head.parameters())
            and not any(getattr(self.config, name, None) for name in special)
            and hidden.dtype == self.head.weight.dtype
            and not torch.is_autocast_enabled(hidden.device.type)
        )

    def check_head(self, rows: Sequence[Sequence[int]], tolerance: float = _CHECK_TOLERANCE) -> None:
        """Raise EngineError unless trunk and head give the same logits as the model's own forward on `rows`.

        Fewer rows are used if their logits would need much memory.
        """
        if not rows:  # every prompt is a single token
            return
        rows = rows[: scoring.rows_at_once(self.model, len(rows), max(map(len, rows)))]
        ids, _ = pad_right(rows, self.pad_token_id, self.device)
        with torch.no_grad():
            expected = self.model(input_ids=ids, use_cache=False).logits
            try:
                logits = self.logits(self.hidden(ids))
            except RuntimeError:  # the output layer reads states of another width
                logits = torch.full_like(expected, torch.inf)
            expected = expected.to(logits.dtype)
        logits[..., self.pad_token_id] = expected[..., self.pad_token_id] = 0.0
        gap = float((logits - expected).abs().max())
        if not gap <= tolerance * max(1.0, float(expected.abs().max())):
            raise EngineError(
                f"the architecture {type(self.model).__name__} computes its logits in a way that this engine does not "
                f"know: off by {gap:.3g}",
                where="ppo.engine: rlhfctl",
                fix="use engine: trl, and please report the architecture",
            )


class _FrozenHead(torch.autograd.Function):
    """Compute token log-probabilities through a frozen linear head without keeping an N x V tensor.

    d log p(token) / d hidden = (w_token - sum_v p(v) w_v) / temperature does not depend on later operations. It is
    computed in the forward pass, piece by piece, and the backward pass only scales it. Softmax and log-probabilities
    are in float32 or wider; the directions have the states' number format, as their gradient would have.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, head: nn.Linear, pad_token_id: int, temperature: float
    ) -> Tensor:
        weight = head.weight
        needed = ctx.needs_input_grad[0]
        logprobs = torch.empty_like(hidden[:, 0], dtype=torch.promote_types(hidden.dtype, torch.float32))
        directions = torch.empty_like(hidden) if needed else None
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        for start in range(0, len(tokens), rows):
            piece = slice(start, start + rows)
            logits = at_least_float32(nn.functional.linear(hidden[piece], weight, head.bias))
            logits[:, pad_token_id] = PAD_LOGIT
            if temperature != 1.0:
                logits /= temperature
            all_logprobs = torch.log_softmax(logits, dim=-1)
            logprobs[piece] = all_logprobs.gather(-1, tokens[piece, None]).squeeze(-1)
            if directions is not None:
                expected = all_logprobs.exp_().to(weight.dtype) @ weight
                directions[piece] = (weight[tokens[piece]] - expected) / temperature
        ctx.save_for_backward(directions)
        return logprobs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (directions,) = ctx.saved_tensors
        return (gradient[:, None] * directions).to(directions.dtype), None, None, None, None


def _acting(model: Any) -> str | None:
    """Return the active adapter of a peft model; None for a plain model."""
    return getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None


def as_language_model(model: nn.Module | LanguageModel, pad_token_id: int) -> LanguageModel:
    """Wrap a model as a LanguageModel with its active adapter; a LanguageModel is returned as it is."""
    return model if isinstance(model, LanguageModel) else LanguageModel(model, pad_token_id, _acting(model))
