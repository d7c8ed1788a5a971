"""What the data and the tokenizer alone can tell, told before the first weights load.

A stop token that the tokenizer lacks, conversations without a chat template, a template that fails, fewer prompts than
a batch: each would else come up hours later, when its stage is reached. Reads rows and a tokenizer; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from transformers import PreTrainedTokenizerBase

from rlhfctl.errors import DataError
from rlhfctl.recipe.schema import Recipe
from rlhfctl.training.data import PromptSplit, Rows, require_a_batch
from rlhfctl.training.encoding import Encoder, adopt_end_of_turn, is_conversation
from rlhfctl.training.tokenizing import stop_token_id


def check(
    recipe: Recipe,
    data: Mapping[str, Rows],
    stages: Collection[str],
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Raise what the stages to come would: RecipeError or DataError. `tokenizer` None: it is not known."""
    section = recipe.ppo
    if section is not None and "ppo" in stages and "prompts" in data:
        split = data["prompts"].split
        assert isinstance(split, PromptSplit)
        require_a_batch(len(split.train), section)  # over-long prompts, told by the stage, may leave fewer yet
    if tokenizer is None:
        return
    if tokenizer.chat_template and any(is_conversation(row) for rows in data.values() for row in rows.rows):
        adopt_end_of_turn(tokenizer)
    encoder = Encoder(tokenizer)
    for name, rows in data.items():  # a row is enough: a missing or broken template fails on each
        if not is_conversation(rows.rows[0]):
            continue
        try:
            _encode(encoder, name, rows)
        except DataError as error:
            raise DataError(f"{error.what} (data.{name})", where=error.where, fix=error.fix) from error
    if section is not None and "ppo" in stages and section.stop_token is not None:
        stop_token_id(section.stop_token, tokenizer)


def _encode(encoder: Encoder, name: str, rows: Rows) -> None:
    row = rows.rows[0]
    if name == "prompts":
        encoder.prompt(row["prompt"])
    elif name == "preferences":
        encoder.preference(row)
    else:
        encoder.demonstration(row)
