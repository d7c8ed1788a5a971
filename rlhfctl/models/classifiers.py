"""Sequence classifiers as reward models: one output, or the log-odds of a label, of text in their own tokens.

    two labels      logit(label) - logit(other)
    more            logit(label) - log sum over the others of exp(logit)
    independent     logit(label), where each label has a sigmoid of its own (multi-label)
    one output      that output

Reads model folders as transformers saves them: encoders (BERT) and decoders with a head. Scalar heads on the policy's
own tokens are scored in scoring.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl.data.types import Prompt
from rlhfctl.errors import HandoffError
from rlhfctl.events import Work
from rlhfctl.models import adapter_folders, architecture, build, loading, merging, scoring, tensors
from rlhfctl.recipe.schema import RewardText

_SHOWN_LABELS = 12


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether a configuration is one of a sequence classifier that is no scalar head on a decoder's last token."""
    saved = next(iter(config.architectures or []), "")
    if not saved.endswith("ForSequenceClassification"):
        return False
    theirs = architecture.classifier_class(config)
    encoder = theirs is not None and theirs.__name__ == saved and not architecture.has_linear_head(theirs)
    return encoder or config.num_labels > 1


def label_index(config: PretrainedConfig, label: str | int | None, place: str) -> int:
    """Which output is read; HandoffError, with the labels there are, where that is not said or there is none."""
    names = {int(index): str(name) for index, name in config.id2label.items()}
    shown = ", ".join(names[index] for index in sorted(names)[:_SHOWN_LABELS])
    shown += f" and {len(names) - _SHOWN_LABELS} more" if len(names) > _SHOWN_LABELS else ""
    if config.num_labels == 1:
        if label in (None, 0, names.get(0)):
            return 0
        raise HandoffError(
            f"reward.label chooses among labels, but the model has a single output ({shown})",
            where=place,
            fix="remove reward.label",
        )
    if label is None:
        raise HandoffError(
            f"the reward model is a classifier with {config.num_labels} labels ({shown}), and a score is one number",
            where=place,
            fix=f"say in the recipe which label is wanted, beside reward.model: reward.label: {names[max(names)]} "
            "makes that label's log-odds the score",
        )
    found = [index for index, name in names.items() if label in (index, name)]
    found = found or [index for index, name in names.items() if str(label).casefold() == name.casefold()]
    if len(found) != 1:
        raise HandoffError(
            f"the reward model has no label {label!r}", where="reward.label", fix=f"one of: {shown}; or an index from 0"
        )
    return found[0]


def refuse_options(label: str | int | None, reads: RewardText | None, place: str) -> None:
    """HandoffError where options for classifiers are given to a model with a scalar head on its last token."""
    for key, value in (("label", label), ("reads", reads)):
        if value is not None and not (key == "label" and value == 0):
            raise HandoffError(
                f"reward.{key} is for classifiers, but this model has a single output, read at the last token",
                where=place,
                fix=f"remove reward.{key}",
            )


def log_odds(logits: torch.Tensor, label: int, *, independent: bool = False) -> torch.Tensor:
    """(B,) log-odds of a label against all others from the logits (B, K) of a classifier, in natural logarithms."""
    chosen = logits[:, label]
    if logits.shape[1] == 1 or independent:
        return chosen
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return chosen - torch.logsumexp(others, dim=1)


@dataclass
class Classifier:
    """A classifier that is ready to score: `label` is the output that is read, `limit` its context in tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label: int
    reads: RewardText
    limit: int | None
    say: Callable[[str], None] = field(default=lambda sentence: None)
    _told: bool = field(default=False, init=False)

    def described(self) -> str:
        """What the score is, and of which text, in words."""
        config = self.model.config
        number = "its output" if config.num_labels == 1 else f"the log-odds of {config.id2label[self.label]}"
        text = {"text": "prompt + response", "pair": "the pair of prompt and response", "response": "the response"}
        return f"the score is {number} for {text[self.reads]}"

    def scores(self, pairs: Sequence[tuple[Prompt, Prompt]], batch_size: int) -> list[float]:
        """The score of each prompt with its response."""
        rows = self._rows(pairs)
        independent = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        result = [0.0] * len(rows)
        with scoring.evaluating(self.model), Work("scoring", len(rows), "response") as work:
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                logits = tensors.at_least_float32(self._logits([rows[index] for index in chosen]))
                for index, score in zip(chosen, log_odds(logits, self.label, independent=independent), strict=True):
                    result[index] = float(score)
                work.at(start + len(chosen))
        return result

    def _logits(self, rows: Sequence[dict[str, list[int]]]) -> torch.Tensor:
        """(B, K) of the rows."""
        if architecture.has_linear_head(type(self.model)):  # at the last token, whatever the pad token is
            return scoring.head_outputs(self.model, [row["input_ids"] for row in rows])
        pad = self.tokenizer.pad_token_id
        device = next(self.model.parameters()).device
        ids, mask = tensors.pad_right([row["input_ids"] for row in rows], 0 if pad is None else pad, device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if getattr(self.model.config, "type_vocab_size", 0) > 1 and all("token_type_ids" in row for row in rows):
            inputs["token_type_ids"] = tensors.pad_right([row["token_type_ids"] for row in rows], 0, device)[0]
        logits: torch.Tensor = self.model(**inputs).logits
        return logits

    def _rows(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[dict[str, list[int]]]:
        rows = [encoded(self.tokenizer, prompt, response, self.reads) for prompt, response in pairs]
        long = [index for index, row in enumerate(rows) if self.limit and len(row["input_ids"]) > self.limit]
        longest = max((len(rows[index]["input_ids"]) for index in long), default=0)
        for index in long:
            rows[index] = encoded(self.tokenizer, *pairs[index], self.reads, limit=self.limit)
        if long and not self._told:
            self._told = True
            self.say(
                f"{len(long)} of {len(rows)} texts are longer than the {self.limit} tokens that the reward model reads "
                f"(longest: {longest}): their beginning is cut"
            )
        return rows


def texts(prompt: Prompt, response: Prompt, reads: RewardText, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a classifier reads: [text], or [prompt, response] for a model of text pairs.

    A conversation goes through the tokenizer's chat template where it has one; else its messages stand one per line.
    """
    if reads == "response":
        return [_plain(response)]
    if reads == "pair":
        return [_plain(prompt), _plain(response)]
    if isinstance(prompt, str) or isinstance(response, str):
        return [_plain(prompt) + _plain(response)]
    if tokenizer.chat_template is not None:
        return [str(tokenizer.apply_chat_template([*prompt, *response], tokenize=False))]
    return ["\n".join([_plain(prompt), _plain(response)])]


def _plain(value: Prompt) -> str:
    return value if isinstance(value, str) else "\n".join(str(message["content"]) for message in value)


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: Prompt,
    reads: RewardText,
    *,
    limit: int | None = None,
) -> dict[str, list[int]]:
    """Ids (and types, of pairs) of what a classifier reads, with its tokenizer's own special tokens.

    `limit`: as many tokens at most. The beginning is cut, that of the prompt where it is a text of its own.
    """
    parts = texts(prompt, response, reads, tokenizer)
    templated = reads == "text" and not isinstance(prompt, str) and tokenizer.chat_template is not None
    options: dict[str, Any] = {"add_special_tokens": not templated}
    if limit is not None:
        before, tokenizer.truncation_side = tokenizer.truncation_side, "left"
        second = len(tokenizer(parts[-1], add_special_tokens=True)["input_ids"])
        fits = len(parts) == 1 or second + 1 < limit
        options |= {"truncation": "only_first" if fits else "longest_first", "max_length": limit}
        try:
            found = tokenizer(*parts, **options)
        finally:
            tokenizer.truncation_side = before
    else:
        found = tokenizer(*parts, **options)
    return {name: list(found[name]) for name in ("input_ids", "token_type_ids") if name in found}


def reading(config: PretrainedConfig, reads: RewardText | None) -> RewardText:
    """What is read where the recipe does not say it: a pair by an encoder with one output, else one text."""
    if reads is not None:
        return reads
    return "pair" if config.num_labels == 1 else "text"


def config_of(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a reward model's folder; an adapter's is its base's, with the outputs of its own head."""
    if not adapter_folders.is_adapter(path):
        return loading.read_config(path, "reward model", trust_remote_code=trust_remote_code)
    base = adapter_folders.bases_of(path)[-1]
    config = loading.read_config(base, "reward model", trust_remote_code=trust_remote_code)
    outputs = merging.head_outputs(path)
    if outputs is not None:
        if config.num_labels != outputs:
            config.num_labels = outputs
        kind = architecture.classifier_class(config) or architecture.scorer_class(config)
        config.architectures = [kind.__name__]
    return config


def load(
    path: str,
    label: str | int | None,
    reads: RewardText | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> Classifier:
    """A classifier from a model folder, an adapter folder or a Hub id, on the device that computes."""
    config = config_of(path, trust_remote_code=trust_remote_code)
    index = label_index(config, label, path)
    how: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "attn_implementation": attn_implementation,
    }
    if adapter_folders.is_adapter(path):
        model = merging.load_classifier(Path(path), **how)
    else:
        model = loading.load_classifier(path, **how)
    model.requires_grad_(False)
    limit = architecture.context_of(config, tokenizer)
    return Classifier(build.to_device(model.eval()), tokenizer, index, reading(config, reads), limit)
