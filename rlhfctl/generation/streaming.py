"""Sample one response token by token, for a person who reads it while it is written.

The draws, the pad mask and the ends of a response are those of local.sample, so the same seed and episode give the same
tokens. Leaves out batches, values and log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.generation.generator import Sampling, uniforms
from rlhfctl.generation.local import draw, holds_stop, make_forward
from rlhfctl.models.language_model import LanguageModel, as_language_model
from rlhfctl.models.special_tokens import end_tokens
from rlhfctl.models.tensors import pad_left

UNFINISHED = "\ufffd"  # a decoder writes it for bytes that do not make a character yet


def stream(
    model: LanguageModel | nn.Module,
    prompt: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    episode: int = 0,
) -> Iterator[tuple[int, bool]]:
    """Yield each token of a response to `prompt`, and whether the response ends by itself with this token.

    The model is in eval mode. `episode`: the random numbers of the response follow from its number and the seed.
    """
    policy = as_language_model(model, tokenizer.pad_token_id)
    device, longest = policy.device, sampling.max_new_tokens
    stops = end_tokens(policy.model, tokenizer) if sampling.stop_ids is None else sampling.stop_ids
    noise = None
    if sampling.temperature is not None:
        noise = torch.from_numpy(uniforms(sampling.seed, sampling.stream, episode, longest)).to(device)
    policy.activate()
    # A generator must not hold torch.no_grad() while its caller runs: each step enters it anew.
    with torch.no_grad():
        ids, mask = pad_left([prompt], policy.pad_token_id, device)
        batch = make_forward(policy)(ids, mask, len(prompt) + longest)
    tokens: list[int] = []
    for t in range(longest):
        with torch.no_grad():
            if tokens:
                batch.step(torch.tensor(tokens[-1:], device=device))
            logits = batch.logits()
            token = logits.argmax(-1) if noise is None else draw(logits, noise[t : t + 1], sampling)[0]
        tokens.append(int(token))
        ended = tokens[-1] in stops
        if not ended and sampling.stop_strings:
            ended = bool(holds_stop(torch.tensor([tokens]), tokenizer, sampling.stop_strings)[0])
        yield tokens[-1], ended
        if ended:
            return


def readable(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()) -> str:
    """Decode the beginning of a response as far as it is certain: later tokens only add to it.

    It ends before a stop string, and before what may become one. Bytes that do not make a character yet are left out.
    """
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    whole = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    if whole:
        return text[: min(whole)]
    text = text.rstrip(UNFINISHED)
    return text[: min((_possible_stop(text, stop) for stop in stop_strings), default=len(text))]


def _possible_stop(text: str, stop: str) -> int:
    """Return the place from which on the end of `text` is the beginning of `stop`; the length of `text` if nowhere."""
    begins = (place for place in range(max(0, len(text) - len(stop) + 1), len(text)) if stop.startswith(text[place:]))
    return next(begins, len(text))
