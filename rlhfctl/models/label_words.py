"""Classify texts with a frozen language model, causal or masked, by the probabilities of one word per label.

The model reads a template with the text, a prompt and the place of a label word. The probability of a label is the
softmax over the words of all labels at that place (as RLPrompt's code computes it, not over the whole vocabulary).
Trains nothing and writes nothing. Leaves out what a probability is worth (rewards/prompted_classifier.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedTokenizerBase

from rlhfctl.data.encoding import Encoder
from rlhfctl.data.labelled import token_of
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Work
from rlhfctl.models import loading, scoring
from rlhfctl.models.architecture import context_of
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import Sequences
from rlhfctl.models.tensors import at_least_float32, pad_right
from rlhfctl.recipe.sections.prompted_classifier import MASK, PROMPT, TEXT

_KEY = "reward.prompted_classifier"
Say = Callable[[str], None]


def is_masked(config: PretrainedConfig) -> bool:
    """Tell whether a model was saved as a masked language model, which fills a place inside a text."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def load_masked_lm(path: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """Load a masked language model from a folder or Hub id; RlhfctlError if weights of its head are missing."""
    with loading.loadable(path, "model", None):
        model, info = AutoModelForMaskedLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise RlhfctlError(
            f"the model lacks the weights {', '.join(missing[:4])}: random ones would stand in for them",
            where=path,
            fix="name a folder saved from a whole masked language model",
        )
    return model


class LabelWords:
    """Compute the probabilities of labels for (prompt, text) pairs with one frozen model.

    `words`: label -> its word; RlhfctlError unless each is one token of the model, all different. `template` holds
    {text}, {prompt} and {mask}. `batch_size`: texts per forward. A sequence that is longer than the model's context
    loses the beginning of its text, and a warning says so once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        words: Mapping[str, str],
        *,
        batch_size: int = 64,
        say: Say = lambda sentence: None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.template = template
        self.masked = is_masked(model.config)
        self.batch_size = batch_size
        self.say = say
        self.limit = context_of(model.config)
        self._encoder = Encoder(tokenizer)
        self._warned = False
        if not self.masked and not template.rstrip().endswith(MASK):
            raise RlhfctlError(
                f"{type(model).__name__} is a causal model, which says the next word, but {MASK} does not stand last",
                where=f"{_KEY}.template",
                fix=f"let the template end with {MASK}, or name a masked model",
            )
        if self.masked and tokenizer.mask_token is None:
            raise RlhfctlError(
                "the masked model's tokenizer has no mask token", where=f"{_KEY}.model", fix="name another model"
            )
        self.labels = list(words)
        self.ids = [token_of(tokenizer, template, label, word) for label, word in words.items()]
        if len(set(self.ids)) < len(self.ids):
            raise RlhfctlError(
                f"words of different labels are the same token: {', '.join(words.values())}",
                where=f"{_KEY}.verbalizers",
                fix="give each label a word of its own",
            )

    def rendered(self, prompt: str, text: str) -> str:
        """Fill the template; the part that is left out with an empty prompt takes one of the spaces around it along."""
        mask = str(self.tokenizer.mask_token) if self.masked else ""
        if mask:  # the policy or an example may have written it out
            prompt, text = prompt.replace(mask, ""), text.replace(mask, "")
        parts = {TEXT: text.strip(), PROMPT: prompt.strip(), MASK: mask}
        template = self.template
        if not parts[PROMPT]:
            before, after = template.split(PROMPT)
            template = before + PROMPT + (after.removeprefix(" ") if before.endswith(" ") or not before else after)
        filled = ""
        while template:
            name = next((name for name in parts if template.startswith(name)), None)
            filled += template[0] if name is None else parts[name]
            template = template[1 if name is None else len(name) :]
        return filled if self.masked else filled.rstrip()

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """Return, per (prompt, text), the probability of each label, in the order of `labels`; natural softmax."""
        rows = [self._encoded(*pair) for pair in pairs]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))  # similar lengths together
        result: list[list[float]] = [[] for _ in rows]
        with scoring.evaluating(self.model), Work("asking the frozen model", len(rows), "text") as work:
            start = 0
            while start < len(order):
                longest = len(rows[order[min(start + self.batch_size, len(order)) - 1]][0])
                size = scoring.rows_at_once(self.model, self.batch_size, longest) if self.masked else self.batch_size
                chosen = order[start : start + size]
                logits = self._logits([rows[index] for index in chosen])[:, self.ids]
                for index, row in zip(chosen, torch.softmax(at_least_float32(logits), dim=-1).tolist(), strict=True):
                    result[index] = row
                start += len(chosen)
                work.advance(start)
        return result

    def _encoded(self, prompt: str, text: str) -> tuple[list[int], int]:
        """Return the ids that the model reads, and the place of the label's word (a causal model: of the last id)."""
        filled = self.rendered(prompt, text)
        if not self.masked:
            ids = self._encoder.prompt(filled)
            return (ids := self._cut(ids, 0)), len(ids) - 1
        ids = self._cut(list(self.tokenizer(filled)["input_ids"]), 1)
        places = [place for place, one in enumerate(ids) if one == self.tokenizer.mask_token_id]
        if len(places) != 1:
            raise RlhfctlError(
                f"a text has {len(places)} masks after the template is filled, and must have one: {filled[-80:]!r}",
                where=f"{_KEY}.template",
                fix="write {mask} once, with a prompt and words after it that fit into the model's context",
            )
        return ids, places[0]

    def _cut(self, ids: list[int], kept: int) -> list[int]:
        """Cut what is longer than the context after the first `kept` ids."""
        if self.limit is None or len(ids) <= self.limit:
            return ids
        if not self._warned:
            self._warned = True
            self.say(
                f"an example has more tokens than the {self.limit} that the frozen model reads: it loses its start"
            )
        return [*ids[:kept], *ids[len(ids) - self.limit + kept :]]

    def _logits(self, rows: Sequence[tuple[list[int], int]]) -> Tensor:
        """Compute the logits (B, V) at the place of each row."""
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else self.tokenizer.eos_token_id or 0
        device = next(self.model.parameters()).device
        if not self.masked:
            sequences = Sequences.of([ids for ids, _ in rows], [[] for _ in rows], device)
            model = LanguageModel(self.model, pad)
            return model.logits(model.states(sequences, sequences.last()))
        ids, mask = pad_right([ids for ids, _ in rows], pad, device)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits[torch.arange(len(rows), device=device), torch.tensor([at for _, at in rows], device=device)]
