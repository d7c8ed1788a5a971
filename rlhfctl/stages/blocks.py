"""Sample many responses in blocks that are kept on disk, so that a stage that was killed goes on after the last one.

A response depends on the seed, the prompt and its number alone, so neither batch size nor a kill changes it. The card's
pool and the sample stage draw with this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfctl import fs
from rlhfctl.artifacts import read_json
from rlhfctl.generation.generator import Generator, Sampling

BLOCK = 256  # responses between two writes; not the batch size, which may change between two attempts
_PER_SAMPLE = 1 << 32  # numbers of episodes per sample: prompt i of sample j is episode j * this + i


@dataclass(frozen=True)
class Blocks:
    """The responses to `places`, (index of the prompt, number of the sample), in blocks under `folder`."""

    folder: Path
    places: Sequence[tuple[int, int]]

    @property
    def files(self) -> list[Path]:
        return [self.folder / f"block-{start // BLOCK:05d}.json" for start in range(0, len(self.places), BLOCK)]

    def size(self) -> int:
        """Count the responses that are on disk, in a folder whose places are not known."""
        return sum(len(read_json(file)) for file in sorted(self.folder.glob("block-*.json")))

    @property
    def done(self) -> int:
        """The number of responses that are on disk already, without a gap before them."""
        files = self.files
        missing = (index for index, file in enumerate(files) if not file.is_file())
        return min(len(self.places), BLOCK * next(missing, len(files)))

    def draw(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        generate: Generator,
        report: Callable[[int], None],
        *,
        what: str,
    ) -> list[tuple[list[int], bool]]:
        """Return (ids, whether it ended by itself) for each place, sampling the blocks that are not there yet.

        `prompts`: the ids of all prompts. `report` gets the number of responses so far. `what` is shown meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found: list[tuple[list[int], bool]] = []
        for start, file in zip(range(0, len(self.places), BLOCK), self.files, strict=True):
            if not file.is_file():
                block = self.places[start : start + BLOCK]
                drawn = generate(
                    model,
                    [prompts[index] for index, _ in block],
                    tokenizer,
                    sampling,
                    lambda count, before=start: report(before + count),  # type: ignore[misc]
                    [number * _PER_SAMPLE + index for index, number in block],
                    what=what,
                )
                fs.write_atomic(file, json.dumps([[response.ids, response.ended] for response in drawn]))
            found += [(ids, ended) for ids, ended in read_json(file)]
        return found
