"""Models and tokenizers: built from a recipe, loaded from base*, dressed with LoRA, merged, fingerprinted.

Reads model folders (or Hub ids) and the recipe's `model` and `lora` sections; writes plain Hugging Face folders.
Leaves out what is done with them: that is the stages' and the trainers'.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from rlhfctl import fs
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Init, Lora, Model
from rlhfctl.training.sequences import Sequences, hidden_states

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|endoftext|>"
# Finite, so that 0 x logit is 0 in entropies; within float16's range; far below any trained logit.
PAD_LOGIT = -1.0e4
# A gated feed-forward has three matrices: at 8/3 x hidden it costs what a plain one costs at 4 x hidden.
_GATED_FEED_FORWARD = 8 / 3
_ROUND_TO = 16
_NO_TOKEN = "<|none|>"  # not in any vocabulary: the tokenizers library raises where it would be used
_SHOWN_UNKNOWN = 8
_LOGITS_AT_ONCE = 1 << 24
_SHOWN_WEIGHTS = 4
_VOCABULARIES = ("tokenizer.", "vocab", "merges", "spiece", "sentencepiece", "tekken")


# ---------------------------------------------------------------- tokenizers


def train_tokenizer(init: Init, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer for new weights: byte-level BPE of `init.vocab_size` learned from `texts`, or just `init.tokens`.

    End-of-sequence and pad are two tokens of their own, ids 0 and 1.
    """
    special = [EOS_TOKEN, PAD_TOKEN]
    if init.tokens is not None:
        vocabulary = {token: index for index, token in enumerate([*special, *init.tokens])}
        # No unknown token: other text has no ids, and what stood in for it would be learned as if it were text.
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


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub id, padding on the left (prompts end where responses begin)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever the tokenizers library makes of a broken file
        raise _cannot_load(path, "tokenizer", error) from error
    tokenizer.padding_side = "left"
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what turns text into ids: vocabulary, merges, normaliser and special tokens; not the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("padding", None)  # set and unset by use, not part of the tokenizer's identity
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
    """Hash of the chat template, or None without one."""
    template = tokenizer.chat_template
    return None if template is None else fs.hash_json(template)


# ---------------------------------------------------------------- models


def new_config(init: Init, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of a model of the given shape for `tokenizer`, without dropout."""
    intermediate = init.intermediate_size
    if intermediate is None and init.architecture in ("llama", "mistral", "qwen2"):
        intermediate = _ROUND_TO * round(init.hidden_size * _GATED_FEED_FORWARD / _ROUND_TO)
    elif intermediate is None:
        intermediate = 4 * init.hidden_size
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": init.hidden_size,
        "num_hidden_layers": init.num_hidden_layers,
        "num_attention_heads": init.num_attention_heads,
        "max_position_embeddings": init.max_position_embeddings,
    }
    if init.architecture == "gpt2":
        size["n_inner"] = intermediate
    else:
        size["intermediate_size"] = intermediate
    if init.architecture in ("llama", "mistral", "qwen2"):
        size["num_key_value_heads"] = init.num_attention_heads
    config = AutoConfig.for_model(
        init.architecture,
        **size,
        tie_word_embeddings=init.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    return config


def build_model(
    init: Init,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A causal language model with new weights, drawn from `seed`."""
    config = new_config(init, tokenizer)
    set_seed(seed)
    with Work("making new weights"), _loadable(init.architecture, "model", attn_implementation):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    set_token_ids(model, tokenizer)
    return model


def load_config(section: Model) -> PretrainedConfig:
    """The configuration of the recipe's pretrained model, without its weights."""
    assert section.path is not None
    try:
        return AutoConfig.from_pretrained(
            section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(section.path, "model", error) from error


def loading(section: Model) -> dict[str, Any]:
    """How the recipe has models loaded, wherever they come from: what the functions below take."""
    return {
        "dtype": torch_dtype(section.dtype),
        "trust_remote_code": section.trust_remote_code,
        "attn_implementation": section.attn_implementation,
    }


def load_causal_lm(
    path: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder or Hub id; safetensors only. `quantization`: 8bit, 4bit or None.

    A folder that lacks weights is refused: transformers would draw new ones and go on.
    """
    model, missing = _pretrained(
        AutoModelForCausalLM,
        path,
        "model",
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        **_quantized(quantization, dtype),
    )
    if missing:
        raise RlhfctlError(
            f"the model lacks the weights {_some(missing)}: random ones would stand in for them",
            where=path,
            fix="name a folder saved from a whole causal language model",
        )
    return model


@contextlib.contextmanager
def _loadable(path: str, what: str, attn_implementation: str | None) -> Iterator[None]:
    """RlhfctlError, in place of what transformers raises, where `path` is no such model or has no such attention."""
    if attn_implementation == "flash_attention_2":
        _check_flash_attention()
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if attn_implementation is not None and isinstance(error, ImportError | ValueError):
            first = str(error).strip().split(". ")[0]
            if "attention" in first.lower():
                raise RlhfctlError(
                    f"the {what} cannot have this attention: {first}",
                    where="model.attn_implementation",
                    fix="use another one, or null for the architecture's own",
                ) from error
        raise _cannot_load(path, what, error) from error


def _check_flash_attention() -> None:
    if find_spec("flash_attn") is None:
        raise RlhfctlError(
            "flash-attn is not installed",
            where="model.attn_implementation",
            fix="pip install flash-attn --no-build-isolation, or use sdpa",
        )
    if device().type != "cuda":
        raise RlhfctlError("flash_attention_2 needs a GPU", where="model.attn_implementation", fix="use sdpa, or null")


def _pretrained(
    auto: Any, path: str, what: str, *, attn_implementation: str | None, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """(model, names of the weights that its files lack); RlhfctlError where it cannot be loaded."""
    with Work(f"loading {path}"), _loadable(path, what, attn_implementation):
        model, info = auto.from_pretrained(
            path,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            attn_implementation=attn_implementation,
            **options,
        )
    if other := [f"{name} {tuple(kept)} for {tuple(wanted)}" for name, kept, wanted in info["mismatched_keys"]]:
        heads = what == "reward model" and all(name.startswith("score.") for name in other)
        raise RlhfctlError(
            f"weights of the {what} have another shape than {'one score needs' if heads else 'its config.json says'}: "
            + _some(sorted(other)),
            where=path,
            fix="name a model with a single output"
            if heads
            else "put the config.json back that belongs to these weights, or fetch the model again",
        )
    return model, sorted(info["missing_keys"])


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_WEIGHTS
    return ", ".join(names[:_SHOWN_WEIGHTS]) + (f" and {more} more" if more > 0 else "")


def _quantized(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What from_pretrained needs to hold linear layers in 8 or 4 bits (NF4, Dettmers et al. 2023); heads stay whole."""
    if quantization is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise RlhfctlError(
            "bitsandbytes is not installed", where="model.quantization", fix="pip install 'rlhfctl[quantization]'"
        )
    four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "8bit"
        else BitsAndBytesConfig(load_in_4bit=True, **four_bits)
    )
    return {"quantization_config": config, "device_map": {"": device()}}


def is_quantized(model: Any) -> bool:
    return bool(getattr(model, "is_quantized", False))


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """`model` where it computes; a quantized one was loaded there."""
    return model if is_quantized(model) else model.to(device())


@contextlib.contextmanager
def formats_kept(model: nn.Module) -> Iterator[None]:
    """What is trained keeps its number format: TRL's trainers turn adapters on a quantized base into bfloat16, and with
    them the scalar head, which then meets float32 states.
    """
    before = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = parameter.data.to(before[name])


def scorer_around(base: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """A sequence-classification model around the backbone of a language model, with a new scalar head from `seed`.

    The backbone is shared, not copied: a quantized one can be trained on through adapters only, so it stays as it is.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    setattr(model, model.base_model_prefix, base.base_model)
    set_seed(seed)
    model.score = nn.Linear(model.score.in_features, 1, bias=False, device=base.device, dtype=base.dtype)
    nn.init.normal_(model.score.weight, std=getattr(config, "initializer_range", 0.02))
    # What loading noted on the model itself: how it is quantized and where it lies, which peft and trainers ask for.
    for name in vars(base).keys() - vars(model).keys():
        setattr(model, name, getattr(base, name))
    model.requires_grad_(False)
    return _with_wide_head(model).eval()


def load_scorer(
    path: str, *, dtype: torch.dtype, trust_remote_code: bool = False, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A sequence-classification model with one output from a folder or Hub id.

    A folder whose head is missing is refused: transformers would draw a new one and the scores would be noise.
    """
    model, missing = _pretrained(
        AutoModelForSequenceClassification,
        path,
        "reward model",
        dtype=dtype,
        num_labels=1,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
    )
    if missing:
        raise HandoffError(
            f"the reward model lacks the weights {_some(missing)}: its scores would be noise",
            where=path,
            fix="name a folder saved from a sequence-classification model with its head",
        )
    if not isinstance(getattr(model, "score", None), nn.Module):
        raise HandoffError(
            f"{type(model).__name__} has no scalar head on its last token, where scores are read",
            where=path,
            fix='name a decoder with a head, or score in a Python function: reward: {function: "module:name"}',
        )
    return model


def scorer_on(base: PreTrainedModel, *, seed: int, zero_head: bool = False) -> PreTrainedModel:
    """A sequence-classification model on the weights of a language model, with a new scalar head.

    The head is drawn from `seed`, or zero (a critic that starts by predicting 0). Weights are copied, not shared.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    backbone = base.base_model.state_dict()
    getattr(model, model.base_model_prefix).load_state_dict(backbone)
    if zero_head:
        torch.nn.init.zeros_(model.score.weight)
    return _with_wide_head(model).to(base.device)


def _with_wide_head(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its scalar head in float32: in 16 bits small steps are rounded away, and gradients' squares to 0."""
    if model.score.weight.dtype.itemsize < 4:
        model.score.float()
        model.score.register_forward_pre_hook(_as_the_head)
    return model


def _as_the_head(head: nn.Linear, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (given[0].to(head.weight.dtype), *given[1:])


def _cannot_load(path: str, what: str, error: Exception) -> RlhfctlError:
    reason = str(error).strip().splitlines()[0].rstrip() if str(error).strip() else type(error).__name__
    fix = "name a Hugging Face model folder or a Hub id that can be reached"
    names = {file.name for file in Path(path).iterdir()} if Path(path).is_dir() else set()
    if names and (broken := _broken_file(Path(path))):
        reason, fix = broken, "fetch or save the folder again"
    elif "trust_remote_code" in str(error):
        reason = "it needs code that comes with it, and such code is not run unasked"
        fix = "read that code; if you trust it, set model.trust_remote_code: true"
    elif names and not names & {"config.json", "adapter_config.json"}:
        reason = "the folder holds no config.json: it is not a model folder"
    elif what == "tokenizer" and names and not any(name.startswith(_VOCABULARIES) for name in names):
        reason = "the folder holds no tokenizer"
        fix = "save the model's tokenizer there, too: tokenizer.save_pretrained(FOLDER)"
    elif what != "tokenizer" and names and not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        reason = "the folder holds no weights (model.safetensors)"
        fix = "fetch or save the model again"
        if pickled:
            reason = f"its weights are pickled ({pickled[0]}), and reading a pickle can run any code"
            fix = "convert a model that you trust: load it with transformers and save it with save_pretrained(FOLDER)"
    elif names and not isinstance(error, ImportError):
        fix = "fetch or save the folder again; where it is newer than the installed transformers, upgrade that"
    return RlhfctlError(f"the {what} cannot be loaded: {reason}", where=path, fix=fix)


def _broken_file(folder: Path) -> str | None:
    """Which file of a model folder is not whole; what the libraries say of one rarely names it."""
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except (ValueError, OSError, SafetensorError) as error:
            return f"{file.name} is not whole: {error}"
    return None


def tokenizer_from_recipe(section: Model, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of the recipe's `model`, with its template; a pad token is added with the weights."""
    if section.init is not None:
        tokenizer = train_tokenizer(section.init, texts)
    else:
        assert section.path is not None
        tokenizer = load_tokenizer(section.path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    if section.chat_template is not None:
        is_file = section.chat_template.endswith((".jinja", ".j2"))
        text = Path(section.chat_template).read_text(encoding="utf-8") if is_file else section.chat_template
        tokenizer.chat_template = text
    if tokenizer.eos_token_id is None:
        raise RlhfctlError(
            "the tokenizer has no end-of-sequence token, so responses could never end",
            where=section.path,
            fix='give it one: tokenizer.eos_token = "..." and tokenizer.save_pretrained(FOLDER)',
        )
    return tokenizer


def base_from_recipe(
    section: Model, texts: Iterable[str], *, seed: int, dtype: torch.dtype, quantization: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """The recipe's `model`, ready to train: tokenizer with pad, template and their rows in the embeddings.

    Returns the model, its tokenizer and sentences about what had to be added.
    """
    tokenizer = tokenizer_from_recipe(section, texts)
    if section.init is not None:
        how = section.attn_implementation
        model = build_model(section.init, tokenizer, seed=seed, dtype=dtype, attn_implementation=how)
    else:
        assert section.path is not None
        model = load_causal_lm(
            section.path,
            dtype=dtype,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            attn_implementation=section.attn_implementation,
            quantization=quantization,
        )
    own_template = "the recipe's chat template is stored with the tokenizer"
    notes = [own_template] if section.chat_template is not None else []
    notes += ensure_pad(model, tokenizer)
    tokenizer.padding_side = "left"
    return model, tokenizer, notes


def ensure_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the tokenizer a pad token of its own and the embeddings a row for it. Returns what was done, in words."""
    notes: list[str] = []
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        was = "had no pad token" if tokenizer.pad_token_id is None else "padded with end-of-sequence"
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        notes.append(f"the tokenizer {was}; it got {PAD_TOKEN} (id {tokenizer.pad_token_id})")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # The mean of the other rows: as likely as any at first, and masked out of every sampled distribution anyway.
        with torch.no_grad():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for embedding in {id(e): e for e in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
                embedding.weight[rows:] = embedding.weight[:rows].mean(0, keepdim=True)
        notes.append(f"embeddings grew from {rows} to {len(tokenizer)} rows")
    set_token_ids(model, tokenizer)
    return notes


def set_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make config and generation config agree with the tokenizer on pad, end and beginning."""
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    # Sampling defaults that a base ships (top_p, temperature) would change what PPO samples from: only the ids stay.
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
    )


class PadMask:
    """Forward hook for a language-model head: the logit of pad becomes PAD_LOGIT, so it cannot be sampled.

    Policy and reference both carry it, so it leaves their KL untouched.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, module: nn.Module, args: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor:
        masked = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        masked[self.pad_token_id] = True
        return logits.masked_fill(masked, PAD_LOGIT)


def mask_pad(model: nn.Module, pad_token_id: int) -> Any:
    """Install PadMask on the model's output head. Returns the hook's handle (`.remove()` takes it off)."""
    head = model.get_output_embeddings()
    return head.register_forward_hook(PadMask(pad_token_id))


def unmask_pad(model: nn.Module) -> None:
    """Take PadMask off again."""
    hooks = model.get_output_embeddings()._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, PadMask)]:
        del hooks[key]


# ---------------------------------------------------------------- LoRA


def lora_config(lora: Lora, task: TaskType) -> LoraConfig:
    """peft's configuration; a scalar head is always saved with the adapter."""
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        task_type=task,
        modules_to_save=["score"] if task is TaskType.SEQ_CLS else None,
    )


def add_lora(model: PreTrainedModel, lora: Lora, task: TaskType, *, seed: int) -> PeftModel:
    """`model` with a fresh adapter (B = 0, so outputs are unchanged). Refuses targets on the embeddings."""
    named = [lora.target_modules] if isinstance(lora.target_modules, str) else list(lora.target_modules)
    outer = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    if named != ["all-linear"]:
        config = lora_config(lora, task)
        hit = sorted(
            name
            for name, module in model.named_modules()
            if id(module) in outer and check_target_module_exists(config, name)
        )
        if hit:
            tied = getattr(model.config, "tie_word_embeddings", False)
            why = (
                "input and output are one matrix, so merging moves both"
                if tied
                else "policy, critic and reward model share their layers, not their heads"
            )
            raise RlhfctlError(
                f"LoRA on {'tied ' if tied else ''}embeddings is refused: {why}",
                where="lora.target_modules",
                fix=f"leave out {', '.join(hit)}; all-linear does so by itself",
            )
    set_seed(seed)
    try:
        peft_model = get_peft_model(model, lora_config(lora, task))
    except ValueError as error:
        linear = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear | Conv1D) and id(module) not in outer  # Conv1D: GPT-2's linear layer
            }
        )
        raise RlhfctlError(
            f"LoRA cannot be attached: {str(error).splitlines()[0]}",
            where="lora.target_modules",
            fix=f"this model's linear layers are: {', '.join(linear)}; or use all-linear",
        ) from error
    return peft_model


def save_adapter(model: PeftModel, folder: Path, *, base: str, head: bool) -> None:
    """Save the adapter with `base` as the model it belongs to, and look into the file that the head is there."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    model.save_pretrained(folder, selected_adapters=["default"])
    if head and not adapter_has_head(folder):
        raise HandoffError("the reward adapter was saved without its scalar head", where=str(folder))


def adapter_has_head(folder: Path) -> bool:
    """Whether the adapter's file holds the weights of a scalar head beside the low-rank ones."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise HandoffError("the adapter folder holds no adapter_model.safetensors", where=str(folder))
    with safe_open(file, framework="pt") as weights:
        # A head that is only dressed with LoRA (".score.lora_A.") is not saved.
        return any(name.endswith((".score.weight", ".score.modules_to_save.weight")) for name in weights.keys())  # noqa: SIM118


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """`model` with the adapter of `folder`, frozen."""
    try:
        return PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HandoffError(
            f"the adapter does not fit this base: {_misfit(error)}",
            where=str(folder),
            fix="use the base model that the adapter was trained on (base_model_name_or_path in adapter_config.json)",
        ) from error


def _misfit(error: Exception) -> str:
    """The first thing that torch found not to fit, in one line: its own first line only says that there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]
    return f"{first[:-1]} (and {len(lines) - 2} more)" if first.endswith(".") and len(lines) > 2 else first


def merged(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapter's update added into its weights, which must not be quantized: that rounds it."""
    assert not is_quantized(model.get_base_model())
    with Work("merging the adapter"):
        return model.merge_and_unload()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A plain Hugging Face folder: weights (safetensors), config, tokenizer, chat template."""
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer without the padding and truncation that its last use left in it."""
    copied = copy.deepcopy(tokenizer)
    backend = getattr(copied, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    copied.save_pretrained(folder)


def save_weights(model: Any, folder: Path) -> None:
    """The weights of a model, or of a peft model's `default` adapter, for `load_weights`."""
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, selected_adapters=["default"])
    else:
        model.save_pretrained(folder)


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights that `save_weights` left in `folder` back into the same model or adapter."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())


def copy_frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A separate, frozen copy in eval mode."""
    twin = copy.deepcopy(model)
    twin.requires_grad_(False)
    return twin.eval()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a recipe's name for it."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; the modes of all submodules as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---------------------------------------------------------------- numbers that a hand-over is checked with


def pad_left(rows: Sequence[Sequence[int]], pad: int, at: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both (B, L) with the padding on the left."""
    return _pad(rows, pad, at, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad: int, at: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both (B, L) with the padding on the right."""
    return _pad(rows, pad, at, left=False)


def _pad(rows: Sequence[Sequence[int]], pad: int, at: torch.device, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(at), mask.to(at)


def sequence_logprobs(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int, *, batch_size: int = 16
) -> list[list[float]]:
    """Log-probability of every token of each row after its first, given those before it (natural log).

    Fewer than `batch_size` rows at a time where the logits of so many would be large.
    """
    at = next(model.parameters()).device
    batch_size = rows_at_once(model, batch_size, max((len(row) for row in rows), default=1))
    result: list[list[float]] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids, mask = pad_right(batch, pad_token_id, at)
            logits = at_least_float32(model(input_ids=ids, attention_mask=mask).logits[:, :-1])
            logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            result += [logprobs[index, : len(row) - 1].tolist() for index, row in enumerate(batch)]
    return result


def rows_at_once(model: Any, most: int, length: int) -> int:
    """How many rows of `length` tokens have logits of 64 MB or less in float32; at least one, at most `most`."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return max(1, min(most, _LOGITS_AT_ONCE // (length * vocabulary)))


def score_rows(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int, *, batch_size: int = 64, what: str = "scoring"
) -> list[float]:
    """The scalar head's value at the last token of each row; `what` names the work to those who watch."""
    at = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # like lengths together: little padding
    result = [0.0] * len(rows)
    with evaluating(model), Work(what, len(rows), "response") as work:
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            sequences = Sequences.of([rows[index] for index in chosen], [[] for _ in chosen], at)
            last = hidden_states(backbone(model), sequences)[sequences.last()]
            scores = at_least_float32(model.score(last.to(model.score.weight.dtype)).squeeze(-1))
            for index, score in zip(chosen, scores.tolist(), strict=True):
                result[index] = score
            work.at(start + len(chosen))
    return result


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half-width numbers as float32; wider ones as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def backbone(model: nn.Module) -> Any:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(inner, inner.base_model_prefix)
