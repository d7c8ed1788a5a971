"""Sample responses with rows that are admitted as others end, at fixed shapes: a Generator for GPUs.

    queue of prompts ─▶ free slots are filled together ─▶ draw ─▶ who has ended leaves ─▶ one step of all slots ─▶ ...

local.sample works through one batch after the other, and a batch lasts as long as its longest response. Here a slot
that is free takes the next prompt, so that the batch stays full until the queue is empty; after that it is halved as
soon as half of it is free. The model's steps are those of static_decoder.py. Draws, ends, log-probabilities and values
are those of local.sample: the same seed and episode give the same tokens. A model that static_decoder.py does not
support is sampled by local.sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.events import Work
from rlhfctl.generation import local
from rlhfctl.generation.generator import Generator, Response, Sampling, uniforms
from rlhfctl.generation.static_decoder import StaticDecoder, supports
from rlhfctl.models.fused import fused
from rlhfctl.models.language_model import LanguageModel, as_language_model
from rlhfctl.models.scoring import evaluating
from rlhfctl.models.special_tokens import end_tokens

_ADMIT_AT = 8  # free slots are filled when they are at least this part of all: reading prompts one by one is slow


def generator_for(sampler: str) -> Generator:
    """Return the generator that the recipe's `ppo.sampler` names: batch or slots."""
    return {"batch": local.sample, "slots": sample_in_slots}[sampler]


def sample_in_slots(
    model: LanguageModel | nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda done: None,
    episodes: Sequence[int] | None = None,
    value_head: Callable[[Tensor], Tensor] | None = None,
    what: str = "sampling",
) -> list[Response]:
    """Sample one response per prompt, in the order of the prompts (see Generator for the arguments).

    `sampling.batch_size` is the number of slots. `on_batch` is called whenever responses have ended.
    """
    policy = as_language_model(model, tokenizer.pad_token_id)
    if not prompts or not supports(policy):
        return local.sample(policy, prompts, tokenizer, sampling, on_batch, episodes, value_head, what)
    numbers = list(range(len(prompts))) if episodes is None else list(episodes)
    policy.activate()
    work = Work(what, len(prompts), "response")
    with evaluating(policy.model), fused(policy.model), work:
        slots = _Slots(policy, prompts, tokenizer, sampling, numbers, value_head)
        done = 0
        while slots.advance():
            if slots.finished > done:
                done = slots.finished
                work.advance(done)
                on_batch(done)
        return slots.responses()


@dataclass
class _Tables:
    """What is known of each response: rows are episodes in the prompts' order, and one more that nobody reads."""

    noise: Tensor | None  # (N + 1, longest) in [0, 1)
    tokens: Tensor  # (N + 1, longest)
    logprobs: Tensor
    kept: Tensor
    values: Tensor
    counts: Tensor  # (N + 1,)
    ended: Tensor  # (N + 1,)

    @classmethod
    def of(cls, policy: LanguageModel, sampling: Sampling, episodes: Sequence[int]) -> _Tables:
        """Make empty tables, and draw each episode's random numbers."""
        device, longest, rows = policy.device, sampling.max_new_tokens, len(episodes) + 1
        exact = torch.float64 if policy.head.weight.dtype == torch.float64 else torch.float32
        noise = None
        if sampling.temperature is not None:
            drawn = [uniforms(sampling.seed, sampling.stream, episode, longest) for episode in episodes]
            noise = torch.from_numpy(np.stack([*drawn, np.zeros(longest)])).to(device)
        logprobs, kept, values = (torch.zeros((rows, longest), device=device, dtype=exact) for _ in range(3))
        return cls(
            noise,
            torch.zeros((rows, longest), dtype=torch.long, device=device),
            logprobs,
            kept,
            values,
            torch.full((rows,), longest, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )


class _Slots:
    """The slots at work. `owner` (rows,): the response that each slot writes, N where it is free; `at`: its tokens."""

    def __init__(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        episodes: Sequence[int],
        value_head: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.policy, self.prompts, self.tokenizer = policy, prompts, tokenizer
        self.sampling, self.value_head = sampling, value_head
        stops = end_tokens(policy.model, tokenizer) if sampling.stop_ids is None else sampling.stop_ids
        self.stop_ids = torch.tensor(stops, dtype=torch.long, device=policy.device)
        rows = min(sampling.batch_size, len(prompts))
        self.decoder = StaticDecoder(policy, rows, max(map(len, prompts)) + sampling.max_new_tokens)
        self.tables = _Tables.of(policy, sampling, episodes)
        # Prompts of similar length are read together, which needs less padding.
        self.queue = deque(sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index)))
        self.owners = [len(prompts)] * rows  # the same as `owner`, without asking the device
        self.lengths = [0] * rows  # tokens in the cache
        self.owner = torch.full((rows,), len(prompts), device=policy.device)
        self.at = torch.zeros(rows, dtype=torch.long, device=policy.device)
        self.finished = 0

    def advance(self) -> bool:
        """Fill free slots, draw a token in each, let go who has ended, and take one step. False when all is done."""
        self._admit()
        if not self._busy():
            return False
        token = self._draw()
        if leaving := self._leaving(token):
            self._release(leaving)
        busy = self._busy()
        if busy and not self.queue and len(busy) <= len(self.owners) // 2:
            token = self._halve(busy, token)
        if busy:
            self.decoder.step(token, max(self.lengths))
            self.at = torch.where(self.owner < len(self.prompts), self.at + 1, 0)
            self.lengths = [
                length + 1 if owner < len(self.prompts) else 0
                for length, owner in zip(self.lengths, self.owners, strict=True)
            ]
        return True

    def _busy(self) -> list[int]:
        return [slot for slot, owner in enumerate(self.owners) if owner < len(self.prompts)]

    def _admit(self) -> None:
        """Fill the free slots from the queue, if there are enough of them, or nobody is at work."""
        free = [slot for slot, owner in enumerate(self.owners) if owner == len(self.prompts)]
        if not self.queue or not free:
            return
        if len(free) < min(len(self.queue), -(-len(self.owners) // _ADMIT_AT)):
            return
        slots = free[: len(self.queue)]
        indices = [self.queue.popleft() for _ in slots]
        self.decoder.admit(slots, [self.prompts[index] for index in indices])
        for slot, index in zip(slots, indices, strict=True):
            self.owners[slot], self.lengths[slot] = index, len(self.prompts[index])
        chosen = torch.tensor(slots, device=self.policy.device)
        self.owner[chosen] = torch.tensor(indices, device=self.policy.device)
        self.at[chosen] = 0

    def _draw(self) -> Tensor:
        """Draw a token (rows,) in each slot from its state, and write down what is known of it."""
        tables, sampling, rows = self.tables, self.sampling, len(self.owners)
        states, place = self.decoder.states[:rows], (self.owner, self.at)
        if self.value_head is not None:
            tables.values[place] = self.value_head(states).to(tables.values.dtype)
        logits = self.policy.logits(states)
        if tables.noise is None:
            token = logits.argmax(-1)
        else:
            token, logp, probabilities = local.draw(logits, tables.noise[place], sampling)
            tables.logprobs[place] = logp.gather(-1, token[:, None]).squeeze(-1).to(tables.logprobs.dtype)
            if sampling.truncates:
                tables.kept[place] = probabilities.sum(-1).log().to(tables.kept.dtype)
        tables.tokens[place] = token
        return token

    def _leaving(self, token: Tensor) -> list[int]:
        """Mark the responses that end with `token`; return the slots whose work is done.

        With a value head a slot stays for one more step after the end, for the value of the state there.
        """
        tables, owner, at = self.tables, self.owner, self.at
        stopped = torch.isin(token, self.stop_ids)
        if self.sampling.stop_strings:
            stopped |= self._holds_stop()
        before = tables.ended[owner]
        stopped &= ~before
        tables.counts[owner] = torch.where(stopped, at + 1, tables.counts[owner])
        tables.ended[owner] = before | stopped
        over = before if self.value_head is not None else tables.ended[owner]
        done = (over | (at + 1 == self.sampling.max_new_tokens)).tolist()
        return [slot for slot in self._busy() if done[slot]]

    def _holds_stop(self) -> Tensor:
        """Tell for each slot whether the text of its response up to now holds a stop string."""
        rows, ends = self.tables.tokens[self.owner].tolist(), (self.at + 1).tolist()
        texts = self.tokenizer.batch_decode(
            [row[:end] for row, end in zip(rows, ends, strict=True)], skip_special_tokens=False
        )
        found = [any(stop in text for stop in self.sampling.stop_strings) for text in texts]
        return torch.tensor(found, device=self.policy.device)

    def _release(self, slots: list[int]) -> None:
        chosen = torch.tensor(slots, device=self.policy.device)
        self.owner[chosen] = len(self.prompts)
        for slot in slots:
            self.owners[slot], self.lengths[slot] = len(self.prompts), 0
        self.decoder.free(slots)
        self.finished += len(slots)

    def _halve(self, busy: list[int], token: Tensor) -> Tensor:
        """Keep the slots that are at work, and as many free ones as make half; return their tokens."""
        size = -(-len(self.owners) // 2)
        while size > 1 and len(busy) <= size // 2:
            size = -(-size // 2)
        working = set(busy)
        slots = [*busy, *[slot for slot in range(len(self.owners)) if slot not in working][: size - len(busy)]]
        self.decoder.keep(slots)
        chosen = torch.tensor(slots, device=self.policy.device)
        self.owner, self.at = self.owner[chosen], self.at[chosen]
        self.owners, self.lengths = [self.owners[slot] for slot in slots], [self.lengths[slot] for slot in slots]
        return token[chosen]

    def responses(self) -> list[Response]:
        """Read the finished responses, in the order of the prompts."""
        tables, longest = self.tables, self.sampling.max_new_tokens
        known, truncates = tables.noise is not None, self.sampling.truncates
        columns = (tables.tokens, tables.logprobs, tables.kept, tables.values, tables.counts, tables.ended)
        rows = zip(*(column[:-1].tolist() for column in columns), strict=True)
        return [
            Response(
                ids=tokens[:count],
                ended=ended,
                logprobs=logprobs[:count] if known else [],
                kept=kept[:count] if truncates else [],
                values=values[: min(count + 1, longest)] if self.value_head is not None else [],
            )
            for tokens, logprobs, kept, values, count, ended in rows
        ]
