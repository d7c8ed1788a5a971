"""Sample responses in several processes: each samples its share of the prompts, and all get every response.

A draw depends on seed and episode alone, so the responses are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhfctl.generation.generator import Generator, Response, Sampling
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.processes import Processes


def in_shares(generator: Generator, processes: Processes) -> Generator:
    """Return a generator that divides its prompts over the processes; `generator` itself if there is one process."""
    if processes.count == 1:
        return generator

    def sample(
        policy: LanguageModel | nn.Module,
        prompts: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        /,
        on_batch: Callable[[int], None] = lambda done: None,
        episodes: Sequence[int] | None = None,
        value_head: Callable[[Tensor], Tensor] | None = None,
        what: str = "sampling",
    ) -> list[Response]:
        """Sample one response per prompt (see Generator); `on_batch` counts this process's responses."""
        numbers = list(range(len(prompts))) if episodes is None else list(episodes)

        def own(indices: list[int]) -> list[Response]:
            return generator(
                policy,
                [prompts[index] for index in indices],
                tokenizer,
                sampling,
                on_batch=on_batch,
                episodes=[numbers[index] for index in indices],
                value_head=value_head,
                what=what,
            )

        return processes.over(range(len(prompts)), own)

    return sample
