"""Train, load, prepare, save and fingerprint tokenizers: pad token, chat template, and the tokens that it needs.

Reads the recipe's `model` section and tokenizer folders; writes tokenizer folders. Leaves out the embedding rows of
added tokens (build.py) and what a template does with a conversation (data/chat.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhfctl import fs
from rlhfctl.data import templates
from rlhfctl.data.chat import marks_without_tokens, use_template_eos
from rlhfctl.data.encoding import adopt_training_variant, any_conversation, is_conversation, texts_of
from rlhfctl.data.types import Row, Rows
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Work
from rlhfctl.models import adapter_folders
from rlhfctl.models.loading import cannot_load
from rlhfctl.recipe.schema import Init, Model, Recipe, Sft

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|endoftext|>"
_NO_TOKEN = "<|none|>"  # in no vocabulary: the tokenizers library raises an error if it needs this token
_SHOWN_UNKNOWN = 8


def train_tokenizer(init: Init, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Train a tokenizer for new weights: byte-level BPE of `init.vocab_size` from `texts`, or the words `init.tokens`.

    End-of-sequence is id 0 and pad is id 1.
    """
    special = [EOS_TOKEN, PAD_TOKEN]
    if init.tokens is not None:
        vocabulary = {token: index for index, token in enumerate([*special, *init.tokens])}
        # There is no unknown token: the model would learn to write it like text. Text outside the list is an error.
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_NO_TOKEN))
        longest_first = sorted(init.tokens, key=len, reverse=True)
        pattern = Regex("|".join(_escape(token) for token in longest_first))
        backend.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens(special)
        _check_covered(backend, init.tokens, texts)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=init.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with Work("learning the vocabulary"):
            backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=init.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def _check_covered(backend: Tokenizer, tokens: Sequence[str], texts: Iterable[str]) -> None:
    """Raise RlhfctlError if `texts` hold a piece that is not in `tokens`."""
    known = {*tokens, EOS_TOKEN, PAD_TOKEN}
    unknown = {piece for text in texts for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)} - known
    if unknown:
        shown = ", ".join(repr(piece) for piece in sorted(unknown)[:_SHOWN_UNKNOWN])
        raise RlhfctlError(
            f"the demonstrations hold text that no token stands for: {shown}",
            where="model.init.tokens",
            fix="add these to the tokens (white space too is text), or leave `tokens` out to learn a vocabulary",
        )


def _escape(token: str) -> str:
    return "".join(
        f"\\{char}" if not char.isalnum() and char.isascii() and not char.isspace() else char for char in token
    )


@dataclass(frozen=True)
class Prepared:
    """A tokenizer as the stages of a recipe use it, and what was changed in it."""

    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()  # sentences about the changes
    added: tuple[int, ...] = ()  # ids of marks of the chat template that were no tokens: sft trains their rows
    replaced_end: int | None = None  # the old end-of-sequence id, which the template's end of turn replaces


def prepare(recipe: Recipe, data: Mapping[str, Rows]) -> Prepared:
    """Make the tokenizer of `recipe`, ready for the demonstrations of sft.

    Without sft it is always made ready for conversations, so that it does not depend on the data that a command reads.
    """
    demonstrations = data["demonstrations"].rows if "demonstrations" in data else []
    conversations = recipe.sft is None or any(is_conversation(row) for row in demonstrations)
    return tokenizer_from_recipe(recipe.model, demonstrations, conversations=conversations, sft=recipe.sft)


def tokenizer_from_recipe(
    section: Model, demonstrations: Sequence[Row] = (), *, conversations: bool = False, sft: Sft | None = None
) -> Prepared:
    """Make the tokenizer of the recipe's `model`, with pad token and chat template.

    With `conversations` it is made ready for them. The mark that closes the assistant's turn becomes end-of-sequence.
    Marks that are no tokens are added if `sft` can train their rows. A template that renders earlier turns differently
    is replaced by TRL's training variant if `sft` needs that for its rows.
    """
    notes: list[str] = []
    if section.init is not None:
        tokenizer = train_tokenizer(section.init, texts_of(demonstrations))
    else:
        assert section.path is not None
        path = adapter_folders.fetched(section.path, section.revision)
        folder = adapter_folders.tokenizer_folder(path)
        revision = section.revision if folder == path else None
        tokenizer = load_tokenizer(folder, revision=revision, trust_remote_code=section.trust_remote_code)
    if section.chat_template is not None:
        is_file = section.chat_template.endswith((".jinja", ".j2"))
        text = Path(section.chat_template).read_text(encoding="utf-8") if is_file else section.chat_template
        tokenizer.chat_template = templates.NAMED.get(text, text)
        notes.append("the recipe's chat template is stored with the tokenizer")
    rows_need_growth = sft is not None and bool(sft.trainer.get("assistant_only_loss"))
    if rows_need_growth and (sentence := adopt_training_variant(tokenizer, demonstrations)):
        notes.append(sentence)
    if section.chat_template_kwargs:
        if not isinstance(tokenizer.chat_template, str):
            raise RlhfctlError(
                "there is no single chat template whose variables could be set",
                where="model.chat_template_kwargs",
                fix="set model.chat_template, or remove it",
            )
        tokenizer.chat_template = templates.with_settings(tokenizer.chat_template, section.chat_template_kwargs)
    if tokenizer.eos_token_id is None:
        raise RlhfctlError(
            "the tokenizer has no end-of-sequence token, so responses could never end",
            where=section.path,
            fix='give it one: tokenizer.eos_token = "..." and tokenizer.save_pretrained(FOLDER)',
        )
    notes += [sentence for sentence in (fix_template_date(tokenizer, section), ensure_pad_token(tokenizer)) if sentence]
    if not conversations or tokenizer.chat_template is None:
        return Prepared(tokenizer, tuple(notes))
    marks: list[str] = []
    if sft is not None and section.template_tokens == "add":
        marks = marks_without_tokens(tokenizer)
    if marks:
        added = [AddedToken(mark, special=True, normalized=False) for mark in marks]
        tokenizer.add_tokens(added, special_tokens=True)
        notes.append(
            f"the chat template's marks {', '.join(marks)} are no tokens of this tokenizer: they are added, and sft "
            "trains their rows of the embeddings"
        )
    before, sentence = tokenizer.eos_token_id, use_template_eos(tokenizer)
    return Prepared(
        tokenizer,
        tuple([*notes, sentence] if sentence else notes),
        tuple(tokenizer.convert_tokens_to_ids(marks)),
        replaced_end=before if sentence else None,
    )


def fix_template_date(tokenizer: PreTrainedTokenizerBase, section: Model) -> str | None:
    """Fix the date in a chat template that reads the clock. Returns a sentence if the template changed."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or not templates.reads_clock(template):
        return None
    tokenizer.chat_template = templates.with_day(template, date.fromisoformat(section.template_date))
    return f"the chat template reads the clock: here it reads {section.template_date} (model.template_date)"


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the tokenizer a pad token of its own. Returns a sentence if the tokenizer changed."""
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return None
    before = "had no pad token" if tokenizer.pad_token_id is None else "padded with end-of-sequence"
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return f"the tokenizer {before}; it got {PAD_TOKEN} (id {tokenizer.pad_token_id})"


def adopt_where_asked(tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Rows]) -> str | None:
    """Apply use_template_eos to a model that no run made, if any of `data` holds conversations."""
    return use_template_eos(tokenizer) if any_conversation(data) else None


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or Hub id; it pads on the left, because responses follow prompts."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library may raise anything for a broken file
        raise cannot_load(path, "tokenizer", error) from error
    tokenizer.padding_side = "left"
    return tokenizer


def load_for(section: Model, path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a stage, or of a model that no run made, with the settings of the recipe's `model`."""
    tokenizer = load_tokenizer(path, trust_remote_code=section.trust_remote_code)
    fix_template_date(tokenizer, section)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the tokenizer without the padding and truncation settings of its last use."""
    copied = copy.deepcopy(tokenizer)
    backend = getattr(copied, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    copied.save_pretrained(folder)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the parts that turn text into ids: vocabulary, merges, normaliser, special tokens; not the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("padding", None)  # a setting of the last use, not part of the tokenizer's identity
        state.pop("truncation", None)
    else:
        state = sorted(tokenizer.get_vocab().items())
    special = {
        name: str(token)
        for name, token in sorted(tokenizer.special_tokens_map.items())
        if name != "additional_special_tokens"
    }
    return fs.hash_json({"tokenizer": state, "special": special})


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash the chat template; None without one."""
    template = tokenizer.chat_template
    return None if template is None else fs.hash_json(template)
