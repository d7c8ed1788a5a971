"""Score texts with a local model: BERTScore of two texts, and the perplexity of a response after its prompt.

The model is a folder, or an id on the Hub; it computes in float32 and is never trained. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from rlhfctl.data.encoding import Encoder
from rlhfctl.models import build, loading, tokenizing
from rlhfctl.models.architecture import context_of
from rlhfctl.models.scoring import evaluating, sequence_logprobs
from rlhfctl.models.tensors import pad_right
from rlhfctl.rewards.episode import Episode


def _path(model: str, folder: Path) -> str:
    path = folder / Path(model).expanduser()
    return str(path) if path.exists() else model


class BertScore:
    """Compute BERTScore's F1 of (text, reference) pairs (Zhang et al. 2020, equations 1 and 2), without idf weights.

    `name`: the model, or MODEL@LAYER; without a layer its last one is read. The paper's choice differs by model: 17 of
    roberta-large, 9 of bert-base. Scores are cosines, not rescaled by a baseline.
    """

    def __init__(self, name: str, folder: Path, batch_size: int = 64) -> None:
        model, _, layer = name.partition("@")
        path = _path(model, folder)
        self.tokenizer = tokenizing.load_tokenizer(path)
        with loading.loadable(path, "model", None):
            encoder = AutoModel.from_pretrained(path, dtype=torch.float32)
        self.model: nn.Module = build.to_device(encoder).requires_grad_(False).eval()
        self.layer = int(layer) if layer else -1
        self.limit = context_of(encoder.config)
        self.batch_size = batch_size

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return one F1 per pair; 0 if one of its texts is empty."""
        found: list[float] = []
        for start in range(0, len(pairs), self.batch_size):
            batch = pairs[start : start + self.batch_size]
            texts, references = ([pair[side] for pair in batch] for side in (0, 1))
            (text, text_mask, text_words), (reference, reference_mask, reference_words) = map(
                self._embedded, (texts, references)
            )
            found += f1(text, text_mask, text_words, reference, reference_mask, reference_words).tolist()
        return found

    def _embedded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return states (B, W, H), the mask of tokens (B, W), and the mask without begin and end tokens (B, W)."""
        kept = {"truncation": True, "max_length": self.limit} if self.limit is not None else {}
        rows = [self.tokenizer(text.strip(), **kept)["input_ids"] for text in texts]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        device = next(self.model.parameters()).device
        ids, mask = pad_right(rows, pad, device)
        with evaluating(self.model):
            states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        ends = [one for one in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id) if one is not None]
        special = torch.tensor(ends, dtype=torch.long, device=device)
        return states[self.layer], mask.bool(), mask.bool() & ~torch.isin(ids, special)


def f1(
    text: Tensor, text_mask: Tensor, text_words: Tensor, reference: Tensor, reference_mask: Tensor, words: Tensor
) -> Tensor:
    """Compute BERTScore's F1 (B,) of states (B, W, H): each word is matched with the most similar token of the other.

    `text_mask` and `reference_mask`: tokens that may be matched. `text_words` and `words`: tokens that count, all but
    begin and end tokens. 0 where a side has none.
    """
    text, reference = (nn.functional.normalize(states, dim=-1) for states in (text, reference))
    both = (text_mask.unsqueeze(2) & reference_mask.unsqueeze(1)).to(text.dtype)
    cosines = text @ reference.transpose(1, 2) * both
    precision, recall = (_mean(*one) for one in ((cosines.amax(2), text_words), (cosines.amax(1), words)))
    score = 2 * precision * recall / (precision + recall)
    return score.masked_fill(~(text_words.any(1) & words.any(1)), 0.0).nan_to_num(0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


class Perplexity:
    """Compute the perplexity of each response after its prompt: exp of the mean negative log-probability per token.

    The tokens are the local model's own; its end token does not count. Lower is better, so a reward takes it with a
    negative weight. None for a response without tokens. What does not fit into the model's context loses its beginning.
    """

    def __init__(self, name: str, folder: Path, batch_size: int = 16) -> None:
        path = _path(name, folder)
        self.encoder = Encoder(tokenizing.load_tokenizer(path))
        self.model: Any = build.to_device(loading.load_causal_lm(path, dtype=torch.float32)).requires_grad_(False)
        self.limit = context_of(self.model.config)
        self.batch_size = batch_size

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return one perplexity per episode."""
        rows, counts = [], []
        for one in episodes:
            prompt, response = self.encoder.pair(one.prompt, one.completion, one.row.get("tools"))
            if response and response[-1] == self.encoder.tokenizer.eos_token_id:
                response = response[:-1]
            row = [*prompt, *response][-self.limit if self.limit is not None else 0 :]
            rows.append(row or [self.encoder.tokenizer.eos_token_id])
            counts.append(min(len(response), len(row) - 1))
        pad = self.encoder.tokenizer.pad_token_id
        logprobs = sequence_logprobs(self.model, rows, pad if pad is not None else 0, batch_size=self.batch_size)
        return [
            math.exp(min(-sum(of_row[-count:]) / count, _LARGEST_LOG)) if count > 0 else None
            for of_row, count in zip(logprobs, counts, strict=True)
        ]


_LARGEST_LOG = 700.0  # exp of more is no float
