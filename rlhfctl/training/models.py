"""Models: built from a recipe, made ready for training, dressed with LoRA, merged, saved, asked for numbers.

Reads the recipe's `model` and `lora` sections; writes plain Hugging Face folders. Loading is in loading.py, tokenizers
are in tokenizing.py; what is done with models is the stages' and the trainers'.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import Work
from rlhfctl.recipe.schema import Init, Lora, Model
from rlhfctl.training import adapters, architecture, loading, tokenizing
from rlhfctl.training.reward_head import trunk_name
from rlhfctl.training.sequences import Sequences, hidden_states

# Finite, so that 0 x logit is 0 in entropies; within float16's range; far below any trained logit.
PAD_LOGIT = -1.0e4
# A gated feed-forward has three matrices: at 8/3 x hidden it costs what a plain one costs at 4 x hidden.
_GATED_FEED_FORWARD = 8 / 3
_ROUND_TO = 16
_TOO_MANY = 0.1  # of the trained weights, that a step leaves as they were
_LOGITS_AT_ONCE = 1 << 24
# Their fused kernels read the weights of these layers without calling them: peft refuses adapters there.
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


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
    with Work("making new weights"), loading.loadable(init.architecture, "model", attn_implementation):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    set_token_ids(model, tokenizer)
    return model


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """`model` where it computes; a quantized one was loaded there."""
    return model if loading.is_quantized(model) else model.to(loading.device())


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


def new_scorer(config: PretrainedConfig, **options: Any) -> Any:
    """A backbone with a linear head, of any causal family, with new weights."""
    return architecture.scorer_class(config)._from_config(config, **options)


def scorer_around(base: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """A sequence-classification model around the backbone of a language model, with a new scalar head from `seed`.

    The backbone is shared, not copied: a quantized one can be trained on through adapters only, so it stays as it is.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with torch.device("meta"):
        model = new_scorer(config, dtype=base.dtype)
    setattr(model, model.base_model_prefix, backbone(base))
    set_seed(seed)
    model.score = nn.Linear(model.score.in_features, 1, bias=False, device=base.device, dtype=base.dtype)
    nn.init.normal_(model.score.weight, std=getattr(config, "initializer_range", 0.02))
    # What loading noted on the model itself: how it is quantized and where it lies, which peft and trainers ask for.
    for name in vars(base).keys() - vars(model).keys():
        setattr(model, name, getattr(base, name))
    model.requires_grad_(False)
    return loading.with_wide_head(model).eval()


def scorer_on(base: PreTrainedModel, *, seed: int, zero_head: bool = False) -> PreTrainedModel:
    """A sequence-classification model on the weights of a language model, with a new scalar head.

    The head is drawn from `seed`, or zero (a critic that starts by predicting 0). Weights are copied, not shared.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    set_seed(seed)
    model = new_scorer(config, dtype=base.dtype)
    getattr(model, model.base_model_prefix).load_state_dict(backbone(base).state_dict())
    if zero_head:
        torch.nn.init.zeros_(model.score.weight)
    return loading.with_wide_head(model).to(base.device)


def base_from_recipe(
    section: Model, prepared: tokenizing.Prepared, *, seed: int, dtype: torch.dtype, quantization: str | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """The recipe's `model`, ready to train, with a row of embeddings for each token of its tokenizer.

    Returns the model and sentences about what was done to it and to its tokenizer.
    """
    tokenizer = prepared.tokenizer
    notes: list[str] = []
    if section.init is not None:
        how = section.attn_implementation
        model = build_model(section.init, tokenizer, seed=seed, dtype=dtype, attn_implementation=how)
    else:
        assert section.path is not None
        model, notes = adapters.load_causal_lm(
            section.path,
            dtype=dtype,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            attn_implementation=section.attn_implementation,
            quantization=quantization,
        )
    if prepared.replaced_end is not None:  # a base that ends its texts with it goes on doing so
        also_ends(model, prepared.replaced_end)
    notes += [*prepared.notes, *ensure_pad(model, tokenizer)]
    _start_rows(model, prepared)
    tokenizer.padding_side = "left"
    return model, notes


def also_ends(model: PreTrainedModel, token: int) -> None:
    """List `token` in the generation config among those that end a response."""
    listed = model.generation_config.eos_token_id
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    model.generation_config.eos_token_id = list(dict.fromkeys([*listed, token]))


def _start_rows(model: PreTrainedModel, prepared: tokenizing.Prepared) -> None:
    """Where the rows of added marks start: at the mean of the others, what ends a turn at what ended a sequence."""
    if not prepared.added:
        return
    end, was = prepared.tokenizer.eos_token_id, prepared.replaced_end
    with torch.no_grad():
        for weight in {id(one): one for one in _embeddings(model)}.values():
            others = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
            others[list(prepared.added)] = False
            weight[list(prepared.added)] = weight[others].mean(0)
            if was is not None and end in prepared.added:
                weight[end] = weight[was]


def _embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of the input embeddings and of the output layer, which may be one."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer.weight for layer in layers if layer is not None]


def ensure_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give the tokenizer a pad token of its own and the embeddings a row for it. Returns what was done, in words."""
    notes: list[str] = []
    ends = end_tokens(model, tokenizer)
    if sentence := tokenizing.ensure_pad_token(tokenizer):
        notes.append(sentence)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # The mean of the other rows: as likely as any at first, and masked out of every sampled distribution anyway.
        with torch.no_grad():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for embedding in {id(e): e for e in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
                embedding.weight[rows:] = embedding.weight[:rows].mean(0, keepdim=True)
        notes.append(f"embeddings grew from {rows} to {len(tokenizer)} rows")
    set_token_ids(model, tokenizer)
    if len(ends) > 1:
        named = ", ".join(map(str, tokenizer.convert_ids_to_tokens(list(ends))))
        notes.append(f"each of these tokens ends a response, by the model's generation config: {named}")
    return notes


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response: end-of-sequence, and those that the model's generation config lists; never pad."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    known = [one for one in listed if 0 <= one < len(tokenizer)]
    found = dict.fromkeys([tokenizer.eos_token_id, *known])
    pad = tokenizer.pad_token_id
    return tuple(one for one in found if one is not None and (one != pad or one == tokenizer.eos_token_id))


def set_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make config and generation config agree with the tokenizer on pad, end and beginning."""
    ends = list(end_tokens(model, tokenizer))
    set_pad_token(model, tokenizer.pad_token_id)
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
    # Sampling defaults that a base ships (top_p, temperature) would change what PPO samples from: only the ids stay.
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def set_pad_token(model: PreTrainedModel, pad_token_id: int | None) -> None:
    """Say which token is padding in the configuration, and in that of the text model inside a multimodal one."""
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad_token_id


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


def lora_config(lora: Lora, task: TaskType, model: nn.Module | None = None, tokens: Sequence[int] = ()) -> LoraConfig:
    """peft's configuration; a scalar head is always saved with the adapter.

    With all-linear, layers of `model` that cannot carry an adapter are left out. The rows of `tokens` in the
    embeddings and in the output layer are trained beside the adapter.
    """
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    left_out = _not_plain(model) if targets == "all-linear" and model is not None else None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        exclude_modules=left_out or None,
        task_type=task,
        modules_to_save=["score"] if task is TaskType.SEQ_CLS else None,
        trainable_token_indices=_rows_of(model, tokens) if tokens and model is not None else None,
    )


def _rows_of(model: nn.Module, tokens: Sequence[int]) -> dict[str, list[int]]:
    """Layer name -> ids of the rows that are trained, for the embeddings and the output layer."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(getattr(layer, "bias", None) is not None for layer in layers):
        raise RlhfctlError(
            "the output layer has a bias, which peft drops where it trains single rows",
            where="model.template_tokens",
            fix="set it to text, or train all weights in this stage (sft.lora: null)",
        )
    return {name: list(tokens) for name, module in model.named_modules() if any(module is layer for layer in layers)}


def _not_plain(model: nn.Module) -> list[str]:
    """Names of linear layers that cannot carry an adapter: Mamba's fused, routers of experts, grouped ones."""
    fused = ["out_proj", "conv1d"] if getattr(model.config, "model_type", "") in _MAMBA else []
    routers = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).__name__.endswith(("Router", "GroupedLinear"))
    }
    return [*fused, *sorted(routers)]


def add_lora(model: PreTrainedModel, lora: Lora, task: TaskType, *, seed: int, tokens: Sequence[int] = ()) -> PeftModel:
    """`model` with a fresh adapter (B = 0, so outputs are unchanged). Refuses targets on the embeddings.

    The rows of `tokens` are trained with it, in the embeddings and in the output layer.
    """
    named = [lora.target_modules] if isinstance(lora.target_modules, str) else list(lora.target_modules)
    outer = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    if named != ["all-linear"]:
        config = lora_config(lora, task, model)
        hit = sorted(
            name
            for name, module in model.named_modules()
            if id(module) in outer and check_target_module_exists(config, name)
        )
        if hit:
            tied = getattr(model.config, "tie_word_embeddings", False)
            why = (
                "they are tied, one matrix for input and output, so merging moves both"
                if tied
                else "policy, critic and reward model share their layers, not their heads"
            )
            raise RlhfctlError(
                f"LoRA on embeddings is refused: {why}",
                where="lora.target_modules",
                fix=f"leave out {', '.join(hit)}; all-linear does so by itself",
            )
    set_seed(seed)
    try:
        peft_model = get_peft_model(model, lora_config(lora, task, model, tokens))
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
    if tokens:  # TRL's loss reads weight and bias of the output layer, and peft's wrapper has no bias
        peft_model.get_base_model().get_output_embeddings().bias = None
    return peft_model


def save_adapter(model: PeftModel, folder: Path, *, base: str, head: bool) -> None:
    """Save the adapter with `base` as the model it belongs to, and look into the file that the head is there."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # Trained rows are saved by themselves; peft would add both matrices because they have grown.
    rows = model.peft_config["default"].trainable_token_indices is not None
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False if rows else "auto")
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


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A plain Hugging Face folder: weights (safetensors), config, tokenizer, chat template."""
    model.save_pretrained(folder)
    tokenizing.save_tokenizer(tokenizer, folder)


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

PROBE_ROWS, PROBE_TOKENS = 8, 128  # of the rows kept with what a language model gives for them


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
            everything = torch.log_softmax(at_least_float32(model(input_ids=ids, attention_mask=mask).logits), -1)
            logprobs = everything[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
            result += [logprobs[index, : len(row) - 1].tolist() for index, row in enumerate(batch)]
            del everything  # the next batch's is as large
    return result


def rows_at_once(model: Any, most: int, length: int) -> int:
    """How many rows of `length` tokens have logits of 64 MB or less in float32; at least one, at most `most`."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return max(1, min(most, _LOGITS_AT_ONCE // (length * vocabulary)))


def score_rows(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_token_id: int, *, batch_size: int = 64, what: str = "scoring"
) -> list[float]:
    """The scalar head's value at the last token of each row; `what` names the work to those who watch."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # like lengths together: little padding
    result = [0.0] * len(rows)
    with evaluating(model), Work(what, len(rows), "response") as work:
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            scores = at_least_float32(head_outputs(model, [rows[index] for index in chosen]).squeeze(-1))
            for index, score in zip(chosen, scores.tolist(), strict=True):
                result[index] = score
            work.at(start + len(chosen))
    return result


def head_outputs(model: nn.Module, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, outputs) of a linear head at the last token of each row of ids, in one forward."""
    device = next(model.parameters()).device
    sequences = Sequences.of(rows, [[] for _ in rows], device)
    last = hidden_states(backbone(model), sequences)[sequences.last()]
    outputs: torch.Tensor = model.score(last.to(model.score.weight.dtype))
    return outputs


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half-width numbers as float32; wider ones as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def rounds_away(weights: Iterable[nn.Parameter], learning_rate: float) -> str | None:
    """A sentence where a step of `learning_rate`, what AdamW takes at most, leaves many of `weights` as they were.

    Half-width numbers do so: bfloat16 keeps 8 binary digits, so 0.1 moves by 0.0005 or not at all. None where fewer
    than a tenth of the weights are concerned.
    """
    still = every = 0
    with torch.no_grad():
        for weight in weights:
            every += weight.numel()
            if weight.dtype.itemsize < 4:
                still += int(((weight.float() - learning_rate).to(weight.dtype) == weight).sum())
    if every == 0 or still / every < _TOO_MANY:
        return None
    return (
        f"{still / every:.0%} of the trained weights cannot move by a step of learning_rate {learning_rate:g}: their "
        "number format rounds it away; set model.dtype: float32 (with bf16: true on a GPU), or train adapters (lora)"
    )


def backbone(model: nn.Module) -> Any:
    """The layers of a language model, classifier or scorer, without its head."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = getattr(inner, inner.base_model_prefix, None)
    return own if own is not None else getattr(inner, trunk_name(type(inner)))
