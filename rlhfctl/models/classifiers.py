"""Score text with a sequence classifier as the reward model: its one output, or the log-odds of a label.

    two labels      logit(label) - logit(other)
    more            logit(label) - log sum over the others of exp(logit)
    multi-label     logit(label): each label has a sigmoid of its own
    one output      that output

A classifier reads text with its own tokenizer. Reads model folders as transformers saves them: encoders (BERT) and
decoders with a head. Leaves out reward models that read the policy's token ids (scoring.py).
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
    """Check whether a configuration is a sequence classifier, other than a scalar head on a decoder's last token."""
    saved = next(iter(config.architectures or []), "")
    if not saved.endswith("ForSequenceClassification"):
        return False
    known = architecture.classifier_class(config)
    encoder = known is not None and known.__name__ == saved and not architecture.has_linear_head(known)
    return encoder or config.num_labels > 1


def label_index(config: PretrainedConfig, label: str | int | None, path: str) -> int:
    """Return the index of the output to read; raise HandoffError, with the known labels, if `label` names none."""
    names = {int(index): str(name) for index, name in config.id2label.items()}
    shown = ", ".join(names[index] for index in sorted(names)[:_SHOWN_LABELS])
    shown += f" and {len(names) - _SHOWN_LABELS} more" if len(names) > _SHOWN_LABELS else ""
    if config.num_labels == 1:
        if label in (None, 0, names.get(0)):
            return 0
        raise HandoffError(
            f"reward.label chooses among labels, but the model has a single output ({shown})",
            where=path,
            fix="remove reward.label",
        )
    if label is None:
        raise HandoffError(
            f"the reward model is a classifier with {config.num_labels} labels ({shown}), and a score is one number",
            where=path,
            fix=f"say in the recipe which label is wanted, beside reward.model: reward.label: {names[max(names)]} "
            "makes that label's log-odds the score",
        )
    matches = [index for index, name in names.items() if label in (index, name)]
    matches = matches or [index for index, name in names.items() if str(label).casefold() == name.casefold()]
    if len(matches) != 1:
        raise HandoffError(
            f"the reward model has no label {label!r}", where="reward.label", fix=f"one of: {shown}; or an index from 0"
        )
    return matches[0]


def refuse_options(label: str | int | None, reads: RewardText | None, path: str) -> None:
    """Raise HandoffError if options of classifiers are set for a model with a scalar head on its last token."""
    for key, value in (("label", label), ("reads", reads)):
        if value is not None and not (key == "label" and value == 0):
            raise HandoffError(
                f"reward.{key} is for classifiers, but this model has a single output, read at the last token",
                where=path,
                fix=f"remove reward.{key}",
            )


def log_odds(logits: torch.Tensor, label: int, *, independent: bool = False) -> torch.Tensor:
    """Compute the log-odds (B,) of a label against all others from logits (B, K); natural logarithms."""
    chosen = logits[:, label]
    if logits.shape[1] == 1 or independent:
        return chosen
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return chosen - torch.logsumexp(others, dim=1)


@dataclass
class Classifier:
    """Score prompts with responses. `label` is the index of the output to read, `limit` the context in tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label: int
    reads: RewardText
    limit: int | None
    say: Callable[[str], None] = field(default=lambda sentence: None)
    _warned: bool = field(default=False, init=False)

    def described(self) -> str:
        """Describe in one sentence what the score is and which text it is computed from."""
        config = self.model.config
        number = "its output" if config.num_labels == 1 else f"the log-odds of {config.id2label[self.label]}"
        text = {"text": "prompt + response", "pair": "the pair of prompt and response", "response": "the response"}
        return f"the score is {number} for {text[self.reads]}"

    def scores(self, pairs: Sequence[tuple[Prompt, Prompt]], batch_size: int) -> list[float]:
        """Compute the score of each (prompt, response) pair."""
        rows = self._encoded(pairs)
        independent = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        result = [0.0] * len(rows)
        with scoring.evaluating(self.model), Work("scoring", len(rows), "response") as work:
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                logits = tensors.at_least_float32(self._logits([rows[index] for index in chosen]))
                for index, score in zip(chosen, log_odds(logits, self.label, independent=independent), strict=True):
                    result[index] = float(score)
                work.advance(start + len(chosen))
        return result

    def _logits(self, rows: Sequence[dict[str, list[int]]]) -> torch.Tensor:
        """Compute the logits (B, K) of encoded rows."""
        if architecture.has_linear_head(type(self.model)):  # read at the last token, without any padding
            return scoring.head_outputs(self.model, [row["input_ids"] for row in rows])
        pad = self.tokenizer.pad_token_id
        device = next(self.model.parameters()).device
        ids, mask = tensors.pad_right([row["input_ids"] for row in rows], 0 if pad is None else pad, device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if getattr(self.model.config, "type_vocab_size", 0) > 1 and all("token_type_ids" in row for row in rows):
            inputs["token_type_ids"] = tensors.pad_right([row["token_type_ids"] for row in rows], 0, device)[0]
        logits: torch.Tensor = self.model(**inputs).logits
        return logits

    def _encoded(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[dict[str, list[int]]]:
        """Encode each pair, cut to `limit` tokens; warn once if any pair was cut."""
        rows = [encoded(self.tokenizer, prompt, response, self.reads) for prompt, response in pairs]
        long = [index for index, row in enumerate(rows) if self.limit and len(row["input_ids"]) > self.limit]
        longest = max((len(rows[index]["input_ids"]) for index in long), default=0)
        for index in long:
            rows[index] = encoded(self.tokenizer, *pairs[index], self.reads, limit=self.limit)
        if long and not self._warned:
            self._warned = True
            self.say(
                f"{len(long)} of {len(rows)} texts are longer than the {self.limit} tokens that the reward model reads "
                f"(longest: {longest}): their beginning is cut"
            )
        return rows


def texts(prompt: Prompt, response: Prompt, reads: RewardText, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Make the text that a classifier reads: [text], or [prompt, response] for a model of text pairs.

    A conversation is rendered with the tokenizer's chat template. Without a template its messages are joined, one per
    line.
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
    """Encode the text that a classifier reads: input ids, and token type ids for pairs, with special tokens.

    `limit`: the maximum number of tokens. The beginning of longer texts is cut, in pairs that of the prompt.
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
            encoding = tokenizer(*parts, **options)
        finally:
            tokenizer.truncation_side = before
    else:
        encoding = tokenizer(*parts, **options)
    return {name: list(encoding[name]) for name in ("input_ids", "token_type_ids") if name in encoding}


def text_to_read(config: PretrainedConfig, reads: RewardText | None) -> RewardText:
    """Choose the text to read if the recipe sets none: 'pair' for a model with one output, else 'text'."""
    if reads is not None:
        return reads
    return "pair" if config.num_labels == 1 else "text"


def config_of(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the configuration of a reward model; for an adapter, its base's with the outputs of the adapter's head."""
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
    """Load a classifier from a model folder, an adapter folder or a Hub id, on the device that computes."""
    config = config_of(path, trust_remote_code=trust_remote_code)
    index = label_index(config, label, path)
    load_kwargs: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "attn_implementation": attn_implementation,
    }
    if adapter_folders.is_adapter(path):
        model = merging.load_classifier(Path(path), **load_kwargs)
    else:
        model = loading.load_classifier(path, **load_kwargs)
    model.requires_grad_(False)
    limit = architecture.context_of(config, tokenizer)
    return Classifier(build.to_device(model.eval()), tokenizer, index, text_to_read(config, reads), limit)
