"""Encode the rows of PPO's next-token loss (`ppo.ptx`): data.demonstrations or data.pretraining to ids.

A part of the ppo stage. Rows are encoded as in the sft stage: of a prompt with a response the response is learned, of a
text all of it. Rows that are too long are cut, with a warning. The loss is in training/rl/pretraining.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from rlhfctl.data.encoding import IGNORED, Encoder
from rlhfctl.data.fitting import longest_row
from rlhfctl.data.store import Store
from rlhfctl.data.types import Row
from rlhfctl.errors import DataError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Ppo
from rlhfctl.training.rl.experience import TextRow
from rlhfctl.training.rl.orders import Orders
from rlhfctl.training.rl.pretraining import Pretraining


def prepare(
    section: Ppo,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    *,
    seed: int,
    warn: Callable[[str], None],
) -> Pretraining | None:
    """Make the next-token loss of `ppo.ptx` over `rows`; None without it. DataError if no row has a token to learn."""
    ptx = section.ptx
    if ptx is None:
        return None
    limit, name = longest_row(ptx.max_length, context)
    encoder = Encoder(tokenizer)
    kept: Store[TextRow] = Store()
    cut = lost = count = 0
    for row in Work(f"encoding {ptx.data}", len(rows)).through(rows):
        encoded = encoder.demonstration(row)
        ids, labels = encoded["input_ids"], encoded["labels"]
        cut += limit is not None and len(ids) > limit
        start = max(1, next((place for place, label in enumerate(labels) if label != IGNORED), len(ids)))
        ids = ids[:limit]
        if start >= len(ids):
            lost += 1
            continue
        kept.append({"ids": ids, "start": start})
        count += 1
    if sentence := encoder.warning(ptx.data):
        warn(sentence)
    if not count:
        raise DataError(
            f"no row of data.{ptx.data} has a token to learn from among its first {limit}",
            where="ppo.ptx",
            fix="raise ppo.ptx.max_length where the model's context allows, or give other rows",
        )
    if cut:
        warn(f"ppo.ptx: {cut} of {len(rows)} rows of data.{ptx.data} are longer than {name} tokens and are cut there")
    if lost:
        warn(f"ppo.ptx: {lost} rows of data.{ptx.data} have no token to learn from and are dropped")
    return Pretraining(section, ptx, kept.items(), Orders(seed))
