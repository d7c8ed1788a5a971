"""Tokenizers, new and adopted models, the pad token, LoRA, heads, and the numbers a hand-over is checked with."""

from __future__ import annotations

import copy
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from safetensors.torch import load_file, save_file
from torch import nn

from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.models import adapters, build, loading, merging, scoring, special_tokens, tensors, tokenizing
from rlhfctl.models.heads import scorer_on
from rlhfctl.recipe.schema import Init, Lora, Model

FLOAT = torch.float32
LORA = Lora(r=2, lora_alpha=8)
TEXTS = ["the quick brown fox", "jumps over the lazy dog, again and again", "naïve café 你好 🙂\n\ttabs"]
ARCHITECTURES = typing.get_args(Init.model_fields["architecture"].annotation)
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["a", "b", "ab", " ", "+", ".", "(", "é", "x|y", "\\d", "[", "^$", "*", "-", "'", "<", "\n"]


def words(**changes: Any) -> tuple[Any, Any]:
    init = Init(**SMALL | {"tokens": WORDS} | changes)
    tokenizer = tokenizing.train_tokenizer(init, [])
    return tokenizer, build.build_model(init, tokenizer, seed=1, dtype=FLOAT)


def stir(model: Any, seed: int = 0) -> Any:
    """Every trainable weight moved at random, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    with scoring.evaluating(model):
        out: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return out


# ---------------------------------------------------------------- tokenizers


@pytest.fixture(scope="module")
def bpe() -> Any:
    return tokenizing.train_tokenizer(Init(**SMALL, vocab_size=300), TEXTS)


@pytest.mark.parametrize("text", [*TEXTS, "Never seen: ÆØÅ 漢字 \x00 \r\n  two  spaces ", ""])
def test_bpe_gives_the_text_back(bpe: Any, text: str) -> None:
    ids = bpe(text)["input_ids"]
    assert bpe.decode(ids) == text
    assert not {bpe.eos_token_id, bpe.pad_token_id} & set(ids)


def test_bpe_learns_from_the_texts_to_the_size_asked_for(bpe: Any) -> None:
    assert len(bpe) == 300
    assert (bpe.eos_token_id, bpe.pad_token_id) == (0, 1)
    text = "the lazy dog"
    assert len(bpe(text)["input_ids"]) < len(text)
    assert tokenizing.train_tokenizer(Init(**SMALL, vocab_size=300), TEXTS).get_vocab() == bpe.get_vocab()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ab+a.b", ["ab", "+", "a", ".", "b"]),  # the longest first
        ("(x|y\\d[^$*-'<\n é", ["(", "x|y", "\\d", "[", "^$", "*", "-", "'", "<", "\n", " ", "é"]),  # nothing a pattern
        ("a  b", ["a", " ", " ", "b"]),
    ],
)
def test_fixed_tokens_are_whole_and_give_the_text_back(text: str, tokens: list[str]) -> None:
    tokenizer, _ = words()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert [tokenizer.get_vocab()[token] for token in WORDS] == list(range(2, 2 + len(WORDS)))


def test_text_without_tokens_does_not_become_something_else() -> None:
    init = Init(**SMALL, tokens=["a", "b"])
    with pytest.raises(RlhfctlError, match="no token stands for: ' z'") as caught:
        tokenizing.train_tokenizer(init, ["ab", "a zb"])
    assert caught.value.where == "model.init.tokens"
    tokenizer = tokenizing.train_tokenizer(init, ["ab", "ba"])
    with pytest.raises(Exception, match="Missing"):
        tokenizer("a z")  # not silently end-of-sequence


@pytest.mark.parametrize("fixed", [False, True])
def test_a_saved_tokenizer_is_the_same(tmp_path: Path, bpe: Any, fixed: bool) -> None:
    tokenizer = words()[0] if fixed else bpe
    tokenizer(["a", "ab a"], padding=True, truncation=True, max_length=3)  # leaves padding in the tokenizer
    tokenizing.save_tokenizer(tokenizer, tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["padding"] is None and written["truncation"] is None
    loaded = tokenizing.load_tokenizer(str(tmp_path))
    assert tokenizing.tokenizer_fingerprint(loaded) == tokenizing.tokenizer_fingerprint(tokenizer)
    assert loaded.padding_side == "left"
    text = "ab a" * 4
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]  # and neither padded nor cut
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (0, 1)


def test_the_fingerprint_is_of_what_turns_text_into_ids(bpe: Any) -> None:
    def fingerprint(**changes: Any) -> str:
        tokenizer = copy.deepcopy(bpe)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        return tokenizing.tokenizer_fingerprint(tokenizer)

    was = tokenizing.tokenizer_fingerprint(bpe)
    used = copy.deepcopy(bpe)
    used(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert used.backend_tokenizer.padding is not None
    assert tokenizing.tokenizer_fingerprint(used) == was
    assert fingerprint(padding_side="left") == was
    assert fingerprint(chat_template="{{ messages }}") == was
    assert fingerprint(eos_token="a") != was
    grown = copy.deepcopy(bpe)
    grown.add_tokens(["<|new|>"])
    others = tokenizing.train_tokenizer(Init(**SMALL, vocab_size=300), ["zyx wvu tsr qpo " * 9])
    assert len({was, tokenizing.tokenizer_fingerprint(grown), tokenizing.tokenizer_fingerprint(others)}) == 3


def test_the_template_has_a_fingerprint_of_its_own(bpe: Any) -> None:
    tokenizer = copy.deepcopy(bpe)
    assert tokenizing.template_fingerprint(tokenizer) is None
    tokenizer.chat_template = "{{ messages }}"
    first = tokenizing.template_fingerprint(tokenizer)
    tokenizer.chat_template = "{{ messages }} "
    assert first is not None and tokenizing.template_fingerprint(tokenizer) not in (None, first)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_each_architecture_is_built_from_the_seed(architecture: str, tied: bool) -> None:
    init = Init(**SMALL, architecture=architecture, tokens=WORDS, tie_word_embeddings=tied)
    tokenizer = tokenizing.train_tokenizer(init, [])
    first, again, other = (build.build_model(init, tokenizer, seed=seed, dtype=FLOAT) for seed in (1, 1, 2))
    assert logits_of(first, [2, 3, 4]).shape == (3, len(tokenizer))
    assert first.config.num_hidden_layers == 2 and first.config.hidden_size == 16
    assert torch.equal(logits_of(first, [2, 3, 4]), logits_of(again, [2, 3, 4]))
    assert not torch.equal(logits_of(first, [2, 3, 4]), logits_of(other, [2, 3, 4]))
    shared = first.get_input_embeddings().weight is first.get_output_embeddings().weight
    assert shared is tied
    with torch.no_grad():  # nothing random in training mode either
        ids = torch.tensor([[2, 3, 4]])
        assert torch.equal(first.train()(input_ids=ids).logits, first(input_ids=ids).logits)
    scorer = scorer_on(first, seed=0)
    assert len(set(scoring.score_rows(scorer, [[2, 3], [4, 5, 6]], 1))) == 2


def test_the_feed_forward_has_the_width_asked_for() -> None:
    assert words(intermediate_size=24)[1].config.intermediate_size == 24
    assert words(architecture="gpt2", intermediate_size=24)[1].config.n_inner == 24
    assert words(hidden_size=48)[1].config.intermediate_size == 128  # 8/3, three matrices
    assert words(architecture="gpt_neox")[1].config.intermediate_size == 64  # 4, two


def test_evaluating_puts_every_mode_back() -> None:
    _, model = words()
    model.train()
    model.lm_head.eval()
    with scoring.evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert model.training and not model.lm_head.training and torch.is_grad_enabled()


# ---------------------------------------------------------------- pad


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("was", [None, "eos"])
def test_pad_becomes_a_token_of_its_own(tied: bool, was: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = words(tie_word_embeddings=tied)
    monkeypatch.setattr(tokenizing, "PAD_TOKEN", "<|another|>")  # the one this tokenizer has is a word like any to it
    tokenizer.pad_token = tokenizer.eos_token if was else None
    rows = len(tokenizer)
    before = logits_of(model, [2, 3, 4])
    notes = special_tokens.ensure_pad(model, tokenizer)
    assert tokenizer.pad_token_id == rows and tokenizer.pad_token_id != tokenizer.eos_token_id
    after = logits_of(model, [2, 3, 4])
    assert after.shape[-1] == rows + 1
    assert torch.allclose(after[:, :rows], before, rtol=0, atol=1e-6)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs is outputs) is tied
    for matrix in (inputs, outputs):
        assert torch.allclose(matrix[rows], matrix[:rows].mean(0), atol=1e-6)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == rows
    assert ("had no pad token" if was is None else "padded with end-of-sequence") in notes[0]
    assert f"from {rows} to {rows + 1} rows" in notes[1]
    assert special_tokens.ensure_pad(model, tokenizer) == []  # a second time there is nothing to do


def test_sampling_defaults_are_dropped_and_ids_agree() -> None:
    tokenizer, model = words()
    model.generation_config.update(temperature=0.3, top_p=0.5, top_k=4, do_sample=True, repetition_penalty=1.3)
    model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id = 7, 8, 9
    special_tokens.set_token_ids(model, tokenizer)
    kept = model.generation_config
    assert not [
        n for n in ("temperature", "top_p", "top_k", "repetition_penalty") if getattr(kept, n) in (0.3, 0.5, 4, 1.3)
    ]
    assert not kept.do_sample
    for config in (model.config, kept):
        assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (0, 1, None)


def test_pad_cannot_be_sampled_from_a_policy_that_wants_nothing_else() -> None:
    from rlhfctl.generation import local
    from rlhfctl.generation.generator import Sampling

    tokenizer, model = words()
    pad = tokenizer.pad_token_id
    with torch.no_grad():
        model.lm_head.weight[pad] = 100 * model.lm_head.weight[3]
    wanted = torch.softmax(logits_of(model, [2, 3, 4]), -1)[:, pad]
    handle = special_tokens.mask_pad(model, pad)
    probabilities = torch.softmax(logits_of(model, [2, 3, 4]), -1)
    assert wanted.max() > 0.5
    assert torch.equal(probabilities[:, pad], torch.zeros(3))
    logits = logits_of(model, [2, 3, 4])
    entropy = torch.logsumexp(logits, -1) - (probabilities * logits).sum(-1)  # as TRL takes it: 0 x logit must be 0
    assert torch.isfinite(entropy).all() and (entropy > 0).all()
    assert torch.isfinite(torch.softmax(logits.half().float(), -1)).all()
    sampling = Sampling(max_new_tokens=4, temperature=2.0, batch_size=500, seed=0)
    responses = local.sample(model, [[2, 3]] * 2000, tokenizer, sampling)
    assert sum(len(response.ids) for response in responses) > 2000
    assert not any(pad in response.ids for response in responses)
    handle.remove()
    assert torch.equal(torch.softmax(logits_of(model, [2, 3, 4]), -1)[:, pad], wanted)
    special_tokens.mask_pad(model, pad)
    special_tokens.unmask_pad(model)
    assert torch.equal(torch.softmax(logits_of(model, [2, 3, 4]), -1)[:, pad], wanted)


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_merges(architecture: str) -> None:
    _, model = words(architecture=architecture)
    ids = [2, 3, 4, 5]
    before = logits_of(model, ids)
    adapted = adapters.add_lora(model, LORA, TaskType.CAUSAL_LM, seed=3)
    assert torch.equal(logits_of(adapted, ids), before)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in adapted.named_parameters() if ".lora_" in name} != set()
    stir(adapted)
    moved = logits_of(adapted, ids)
    assert not torch.allclose(moved, before, atol=1e-2)
    plain = merging.merged(adapted)
    assert torch.allclose(logits_of(plain, ids), moved, atol=1e-5)
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]


@pytest.mark.parametrize("target", [["lm_head"], ["q_proj", "embed_tokens"], ".*(q_proj|lm_head)"])
def test_adapters_on_embeddings_are_refused(target: str | list[str]) -> None:
    _, model = words(tie_word_embeddings=True)
    lora = Lora(r=2, lora_alpha=4, target_modules=target)
    with pytest.raises(RlhfctlError, match="LoRA on embeddings is refused: they are tied") as caught:
        adapters.add_lora(model, lora, TaskType.CAUSAL_LM, seed=0)
    assert caught.value.fix is not None and ("lm_head" in caught.value.fix or "embed_tokens" in caught.value.fix)
    _, untied = words()  # SFT could merge it there, but the reward model's adapter would not fit PPO's base
    with pytest.raises(RlhfctlError, match="LoRA on embeddings is refused"):
        adapters.add_lora(untied, lora, TaskType.CAUSAL_LM, seed=0)
    _, tied = words(tie_word_embeddings=True)
    adapters.add_lora(tied, Lora(r=2, lora_alpha=4, target_modules=["q_proj"]), TaskType.CAUSAL_LM, seed=0)


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("llama", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        ("gpt2", "c_attn, c_fc, c_proj"),
        ("gpt_neox", "dense, dense_4h_to_h, dense_h_to_4h, query_key_value"),
    ],
)
def test_a_wrong_target_is_answered_with_the_layers_there_are(architecture: str, layers: str) -> None:
    _, model = words(architecture=architecture)
    with pytest.raises(RlhfctlError, match="LoRA cannot be attached") as caught:
        adapters.add_lora(model, Lora(target_modules=["no_such"]), TaskType.CAUSAL_LM, seed=0)
    assert caught.value.fix == f"this model's linear layers are: {layers}; or use all-linear"


def test_an_adapter_with_a_head_is_saved_and_loaded_with_it(tmp_path: Path) -> None:
    tokenizer, base = words()
    rows, pad = [[2, 3, 4], [5, 6]], tokenizer.pad_token_id
    adapted = stir(adapters.add_lora(scorer_on(base, seed=1), LORA, TaskType.SEQ_CLS, seed=0))
    expected = scoring.score_rows(adapted, rows, pad)
    adapters.save_adapter(adapted, tmp_path, base="../model", head=True)
    file = tmp_path / "adapter_model.safetensors"
    heads = {name: tensor for name, tensor in load_file(file).items() if "score" in name}
    assert [tuple(tensor.shape) for tensor in heads.values()] == [(1, 16)]
    assert torch.equal(next(iter(heads.values())), adapted.base_model.model.score.modules_to_save["default"].weight)
    assert '"base_model_name_or_path": "../model"' in (tmp_path / "adapter_config.json").read_text()
    fresh = merging.merged(merging.load_adapter(scorer_on(base, seed=99), tmp_path))
    assert scoring.score_rows(fresh, rows, pad) == pytest.approx(expected, abs=1e-5)
    save_file({name: t for name, t in load_file(file).items() if "score" not in name}, file)
    assert not adapters.adapter_has_head(tmp_path)


def test_an_adapter_saved_without_its_head_is_refused(tmp_path: Path) -> None:
    _, base = words()
    causal = adapters.add_lora(base, LORA, TaskType.CAUSAL_LM, seed=0)
    adapters.save_adapter(causal, tmp_path / "policy", base="b", head=False)  # a policy has none
    with pytest.raises(HandoffError, match="without its scalar head"):
        adapters.save_adapter(causal, tmp_path / "reward", base="b", head=True)


def test_weights_put_back_are_those_saved(tmp_path: Path) -> None:
    for name, adapted in (("whole", False), ("adapter", True)):
        _, model = words()
        if adapted:
            model = adapters.add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0)
        stir(model, 1)
        saved = logits_of(model, [2, 3, 4])
        model.save_pretrained(tmp_path / name)
        stir(model, 2)
        assert not torch.allclose(logits_of(model, [2, 3, 4]), saved, atol=1e-3)
        build.load_weights(model, tmp_path / name)
        assert torch.equal(logits_of(model, [2, 3, 4]), saved)


def test_a_frozen_copy_is_apart() -> None:
    _, model = words()
    twin = build.copy_frozen(model)
    before = logits_of(twin, [2, 3])
    stir(model)
    assert torch.equal(logits_of(twin, [2, 3]), before) and not torch.equal(logits_of(model, [2, 3]), before)
    assert build.count_parameters(twin)[0] == 0
    assert build.count_parameters(model)[0] == build.count_parameters(twin)[1] > 0


# ---------------------------------------------------------------- heads


def test_a_folder_without_a_head_is_no_scorer(tmp_path: Path) -> None:
    tokenizer, base = words()
    build.save_model(base, tokenizer, tmp_path / "causal")
    with pytest.raises(HandoffError, match=r"lacks the weights score\.weight"):
        loading.load_scorer(str(tmp_path / "causal"), dtype=FLOAT)
    scorer = scorer_on(base, seed=0)
    build.save_model(scorer, tokenizer, tmp_path / "scorer")
    rows, pad = [[2, 3, 4], [5]], tokenizer.pad_token_id
    loaded = loading.load_scorer(str(tmp_path / "scorer"), dtype=FLOAT)
    assert scoring.score_rows(loaded, rows, pad) == pytest.approx(scoring.score_rows(scorer, rows, pad), abs=1e-6)
    with pytest.raises(RlhfctlError, match=r"holds no config\.json"):
        loading.load_scorer(str(tmp_path), dtype=FLOAT)


def test_a_new_head_sits_on_the_weights_of_the_base() -> None:
    _, base = words()
    rows = [[2, 3, 4], [5, 6]]
    assert scoring.score_rows(scorer_on(base, seed=0, zero_head=True), rows, 1) == [0.0, 0.0]
    first, again, other = (scorer_on(base, seed=seed) for seed in (1, 1, 2))
    assert scoring.score_rows(first, rows, 1) == scoring.score_rows(again, rows, 1)
    assert scoring.score_rows(first, rows, 1) != scoring.score_rows(other, rows, 1)
    with torch.no_grad():
        hidden = base.model(input_ids=torch.tensor([rows[0]])).last_hidden_state[0, -1]
        expected = float(hidden @ first.score.weight[0])
    assert scoring.score_rows(first, rows[:1], 1)[0] == pytest.approx(expected, abs=1e-6)
    stir(first)
    assert torch.equal(logits_of(base, [2, 3]), logits_of(words()[1], [2, 3]))  # copied, not shared


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_do_not_depend_on_the_batch(architecture: str) -> None:
    _, base = words(architecture=architecture)
    scorer = scorer_on(base, seed=1)
    rows = [[2], [3, 4, 5, 6, 7, 8, 9], [4, 1], [5, 6, 7], [2, 1, 1, 3]]  # ids of pad among them
    alone = [scoring.score_rows(scorer, [row], 1)[0] for row in rows]
    assert scoring.score_rows(scorer, rows, 1) == pytest.approx(alone, abs=1e-6)
    assert scoring.score_rows(scorer, rows, 1, batch_size=2) == pytest.approx(alone, abs=1e-6)
    assert len({round(score, 6) for score in alone}) == len(rows)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sequence_logprobs_by_a_loop(architecture: str) -> None:
    _, model = words(architecture=architecture)
    rows = [[2, 3], [4, 5, 6, 7, 8, 9, 2], [3, 1, 4], [2]]
    expected = []
    for row in rows:
        values = []
        for position in range(1, len(row)):
            logits = logits_of(model, row[:position])[-1].double()
            values.append(float(logits[row[position]] - torch.log(torch.exp(logits).sum())))
        expected.append(values)
    for batch_size in (16, 2):
        given = scoring.sequence_logprobs(model, rows, 1, batch_size=batch_size)
        assert [len(values) for values in given] == [1, 6, 2, 0]
        for ours, theirs in zip(given, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_padding_on_either_side_by_hand() -> None:
    at = torch.device("cpu")
    ids, mask = tensors.pad_left([[5], [6, 7, 8]], 1, at)
    assert (ids.tolist(), mask.tolist()) == ([[1, 1, 5], [6, 7, 8]], [[0, 0, 1], [1, 1, 1]])
    ids, mask = tensors.pad_right([[5], [6, 7, 8]], 1, at)
    assert (ids.tolist(), mask.tolist()) == ([[5, 1, 1], [6, 7, 8]], [[1, 0, 0], [1, 1, 1]])


# ---------------------------------------------------------------- from a recipe


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-4, 1e-5])
def test_what_a_half_width_format_rounds_away_is_told(learning_rate: float) -> None:
    """Of weights in bfloat16 just those stay that AdamW's first step, of the learning rate's size, leaves alone."""
    weights = nn.Parameter(torch.randn(4000, generator=torch.Generator().manual_seed(0)).mul(0.05).bfloat16())
    sentence = build.updates_lost_to_rounding([weights], learning_rate)
    before = weights.detach().clone()
    weights.grad = torch.ones_like(weights)
    torch.optim.AdamW([weights], lr=learning_rate, weight_decay=0.0).step()
    stayed = float((weights == before).float().mean())
    if stayed < 0.1:
        assert sentence is None and learning_rate == 1e-2
    else:
        assert sentence is not None and f"learning_rate {learning_rate:g}" in sentence
        assert sentence.startswith(f"{stayed:.0%} of the trained weights")
    assert build.updates_lost_to_rounding([nn.Parameter(weights.detach().float())], learning_rate) is None


def test_few_weights_that_stay_are_no_news() -> None:
    large = nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    assert build.updates_lost_to_rounding([large], 1e-4) is not None
    assert build.updates_lost_to_rounding([large, nn.Parameter(torch.ones(91))], 1e-4) is None
    assert build.updates_lost_to_rounding([], 1e-4) is None


def test_a_pretrained_base_is_made_ready(tmp_path: Path) -> None:
    tokenizer, model = words()
    tokenizer.pad_token = tokenizer.eos_token
    build.save_model(model, tokenizer, tmp_path / "base")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    section = Model(path=str(tmp_path / "base"), chat_template=str(tmp_path / "t.jinja"))
    prepared = tokenizing.tokenizer_from_recipe(section)
    theirs = prepared.tokenizer
    loaded, notes = build.base_from_recipe(section, prepared, seed=0, dtype=FLOAT)
    assert theirs.chat_template == "{{ messages }}"
    assert theirs.padding_side == "left"
    assert theirs.pad_token_id not in (None, theirs.eos_token_id)
    assert torch.equal(logits_of(loaded, [2, 3])[:, :3], logits_of(model, [2, 3])[:, :3])
    assert len(notes) == 2
    inline = section.model_copy(update={"chat_template": "{{ bos_token }}"})
    assert tokenizing.tokenizer_from_recipe(inline).tokenizer.chat_template == "{{ bos_token }}"
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "base")
    with pytest.raises(RlhfctlError, match="no end-of-sequence token"):
        tokenizing.tokenizer_from_recipe(section)
