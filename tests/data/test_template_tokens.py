"""What a chat template needs: marks as tokens with trained rows, a clock that stands still, turns that only grow."""

from __future__ import annotations

import copy
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_here
from peft import PeftModel, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import chat_template_utils

from rlhfctl.data import templates
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.load import check_all
from rlhfctl.errors import DataError, RlhfctlError
from rlhfctl.models import adapters, build, merging, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init, Lora, Model, Sft
from rlhfctl.training.trl import callback

FLOAT = torch.float32
INIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 280,
    "max_position_embeddings": 128,
}  # fmt: skip
LORA = Lora(r=2, lora_alpha=4)
TURNS = [{"role": "user", "content": "is tea good?"}, {"role": "assistant", "content": "tea is good."}]
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def base(folder: Path, **shape: Any) -> Path:
    """A tiny language model with a byte-level vocabulary, without a chat template."""
    init = Init(**INIT | shape)
    tokenizer = tokenizing.train_tokenizer(init, ["is tea good? tea is good."])
    build.save_model(build.build_model(init, tokenizer, seed=0, dtype=FLOAT), tokenizer, folder)
    return folder


def prepared(folder: Path, **model: Any) -> tokenizing.Prepared:
    section = Model(path=str(folder), **{"chat_template": "chatml"} | model)
    return tokenizing.tokenizer_from_recipe(section, [{"messages": TURNS}], conversations=True, sft=Sft())


# ---------------------------------------------------------------- which marks


@pytest.mark.parametrize(
    ("template", "marks", "end"),
    [
        ("chatml", ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
        (templates.NAMED["chatml"].replace("<|im_end|>", "</s>"), ["<|im_start|>", "</s>"], "</s>"),
        ("zephyr", [], "<|endoftext|>"),  # turns end with the tokenizer's own token: its marks are meant as text
        ("human-assistant", [], "<|endoftext|>"),
    ],
)
def test_marks_become_tokens_where_one_of_them_closes_turns(
    template: str, marks: list[str], end: str, tmp_path: Path
) -> None:
    found = prepared(base(tmp_path / "base"), chat_template=template)
    tokenizer = found.tokenizer
    assert tokenizer.convert_ids_to_tokens(list(found.added)) == marks
    assert tokenizer.eos_token == end and (found.replaced_end is not None) is bool(marks)
    assert any("are no tokens of this tokenizer: they are added" in note for note in found.notes) is bool(marks)
    _, response = Encoder(tokenizer).pair(TURNS[:1], TURNS[1:])
    assert response[-1] == tokenizer.eos_token_id and tokenizer.decode(response, skip_special_tokens=True).strip() == (
        "tea is good."
    )
    assert all(tokenizer(mark, add_special_tokens=False)["input_ids"] == [token] for mark, token in zip(
        marks, found.added, strict=True
    ))  # fmt: skip
    assert not list(template_warnings(tokenizer))


def test_marks_stay_text_where_nothing_would_train_their_rows_or_the_recipe_says_so(tmp_path: Path) -> None:
    section = Model(path=str(base(tmp_path / "base")), chat_template="chatml")
    without = tokenizing.tokenizer_from_recipe(section, [], conversations=True)
    said = tokenizing.tokenizer_from_recipe(
        section.model_copy(update={"template_tokens": "text"}), [], conversations=True, sft=Sft()
    )
    for found in (without, said):
        assert found.added == () and found.tokenizer.eos_token == "<|endoftext|>"
        assert "model.template_tokens: add" in str(list(template_warnings(found.tokenizer)))
    texts = tokenizing.tokenizer_from_recipe(section, [{"text": "tea"}], sft=Sft())  # no conversation comes
    assert texts.added == ()


@pytest.mark.parametrize(
    ("tokens", "refused"),
    [
        (["a", "b", "\n", "user", "assistant"], None),
        (["a", "b", "\n"], "the tokenizer cannot read the text '<|im_start|>user"),
    ],
)
def test_a_vocabulary_of_whole_tokens_gets_the_marks_too(
    tokens: list[str], refused: str | None, tmp_path: Path
) -> None:
    init = Init(**INIT | {"tokens": tokens, "vocab_size": 1024})
    rows = [{"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]}]
    section = Model(init=init, chat_template="chatml")
    tokenizer = tokenizing.tokenizer_from_recipe(section, rows, conversations=True, sft=Sft()).tokenizer
    encoder = Encoder(tokenizer)
    if refused is None:
        ids = encoder.demonstration(rows[0])["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids)[-3:] == ["b", "a", "<|im_end|>"]
    else:
        with pytest.raises(DataError, match=re.escape(refused)):
            encoder.demonstration(rows[0])


@pytest.mark.parametrize("names", [["preferences"], ["prompts"], ["preferences", "prompts"], []])
def test_without_sft_the_end_of_turn_does_not_depend_on_the_data_that_a_command_reads(
    names: list[str], tmp_path: Path
) -> None:
    base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "base")
    write_run(tmp_path)
    pairs = [
        {"prompt": [{"role": "user", "content": f"q{n}"}], "chosen": TURNS[1:], "rejected": SEVERAL[3:]}
        for n in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = json.loads((tmp_path / "mine.yaml").read_text()) | {"reward": {}}
    del given["sft"], given["compare"], given["data"]["demonstrations"]
    given["data"]["preferences"] = {"source": "pairs.jsonl"}
    (tmp_path / "mine.yaml").write_text(json.dumps(given))
    recipe = load_recipe(tmp_path / "mine.yaml").recipe
    found = tokenizing.prepare(recipe, check_all(recipe.data, 0, names))
    assert found.tokenizer.eos_token == "<|im_end|>" and found.added == ()


# ---------------------------------------------------------------- their rows


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_added_marks_start_where_they_are_likely_and_the_others_stay(tied: bool, tmp_path: Path) -> None:
    folder = base(tmp_path / "base", tie_word_embeddings=tied)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    found = prepared(folder)
    model, _ = build.base_from_recipe(Model(path=str(folder), chat_template="chatml"), found, seed=0, dtype=FLOAT)
    start, end = found.added
    kept = plain.get_input_embeddings().weight
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        of = kept if tied or layer is model.get_input_embeddings() else plain.get_output_embeddings().weight
        assert layer.weight.shape[0] == len(found.tokenizer)
        assert torch.equal(layer.weight[: len(of)], of)
        torch.testing.assert_close(layer.weight[start], of.mean(0), atol=1e-6, rtol=1e-5)
        assert torch.equal(layer.weight[end], of[found.replaced_end])
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    assert set(model.generation_config.eos_token_id) == {end, found.replaced_end}  # the base's own end still ends


def test_rows_that_a_padded_vocabulary_holds_already_are_started_too(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    wide = AutoModelForCausalLM.from_pretrained(folder)
    wide.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        wide.get_input_embeddings().weight[280:] = 100.0  # what nobody trained may be anything
    wide.save_pretrained(folder)
    found = prepared(folder)
    model, _ = build.base_from_recipe(Model(path=str(folder), chat_template="chatml"), found, seed=0, dtype=FLOAT)
    assert model.get_input_embeddings().weight.shape[0] == 320
    assert model.get_input_embeddings().weight[found.added[1]].abs().max() < 1.0


@pytest.mark.parametrize("shape", [
    {}, {"tie_word_embeddings": True}, {"architecture": "gpt2"}, {"architecture": "gpt_neox"},
], ids=["llama", "tied", "gpt2", "neox"])  # fmt: skip
def test_an_adapter_trains_these_rows_alone_and_merging_keeps_what_it_computes(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    folder = base(tmp_path / "base", **shape)
    section, found = Model(path=str(folder), chat_template="chatml"), prepared(folder)
    model, _ = build.base_from_recipe(section, found, seed=0, dtype=FLOAT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([Encoder(found.tokenizer).demonstration({"messages": TURNS})["input_ids"]])
    adapted = adapters.add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0, tokens=found.added)
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=0.05)
    losses = []
    for _ in range(5):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():
        trained = adapted.eval()(input_ids=ids).logits
    adapters.save_adapter(adapted, tmp_path / "adapter", base=str(folder), head=False)
    merged = merging.merged(adapted)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)
    given = merged.get_input_embeddings().weight
    name = next(name for name, value in merged.named_parameters() if value is given)
    moved = (given != before[name]).any(-1).nonzero().flatten().tolist()
    assert moved == sorted(found.added)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)


def test_an_output_layer_with_a_bias_is_refused_with_the_way_out(tmp_path: Path) -> None:
    found = prepared(base(tmp_path / "base"))
    model, _ = build.base_from_recipe(
        Model(path=str(tmp_path / "base"), chat_template="chatml"), found, seed=0, dtype=FLOAT
    )
    model.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(len(found.tokenizer)))
    with pytest.raises(RlhfctlError, match="the output layer has a bias") as caught:
        adapters.add_lora(model, LORA, TaskType.CAUSAL_LM, seed=0, tokens=found.added)
    assert "text" in str(caught.value.fix)


# ---------------------------------------------------------------- a run


RUN: dict[str, Any] = {
    "name": "t",
    "model": {"path": "base", "chat_template": "chatml"},
    "lora": {"r": 2, "lora_alpha": 4},
    "data": {"demonstrations": {"source": "demos.jsonl"}, "prompts": {"source": "prompts.jsonl", "eval": 2, "test": 4}},
    "sft": {
        "checkpoint_steps": 2,
        "trainer": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    },
    "reward": {"function": "mine:length"},
    "ppo": {"total_episodes": 8, "per_device_train_batch_size": 8, "num_mini_batches": 1, "response_length": 8},
    "compare": {"judges": ["reward_function"], "samples_per_prompt": 1, "controls": "none", "bootstrap_samples": 100},
}


def write_run(folder: Path, **model: Any) -> Path:
    asked = [f"is {thing} good?" for thing in ("tea", "soup", "bread", "corn", "rice", "fish", "milk", "salt")]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "it is good."}] for text in asked]
    (folder / "demos.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns * 2))
    more = [{"prompt": [{"role": "user", "content": f"{text} {n}"}]} for n in range(2) for text in asked]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in more))
    (folder / "mine.py").write_text(
        "def length(prompts, completions):\n"
        "    assert not any('<|im_' in one[0]['content'] for one in completions)\n"
        "    return [float(len(one[0]['content'])) for one in completions]\n"
    )
    recipe = folder / "mine.yaml"
    recipe.write_text(json.dumps(RUN | {"model": RUN["model"] | model}))
    return recipe


@pytest.mark.ci
def test_a_run_trains_the_rows_hands_them_over_and_exports_them(tmp_path: Path) -> None:
    base(tmp_path / "base")
    write_run(tmp_path)
    done = run_here("run", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<|im_start|>, <|im_end|> are no tokens of this tokenizer: they are added" in done.stdout
    run = tmp_path / "runs" / "t"
    manifest = json.loads((run / "sft" / "manifest.json").read_text())
    assert manifest["metrics"]["reload_gap"] < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(run / "sft" / "model")
    assert tokenizer.eos_token == "<|im_end|>"
    whole = AutoModelForCausalLM.from_pretrained(run / "sft" / "model")
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    rows = whole.get_input_embeddings().weight
    assert not torch.allclose(rows[start], rows[:start].mean(0), atol=1e-3)  # it moved from where it began
    # The adapter alone is small, and plain peft loads it onto the base that is exported beside it.
    exported = run_here("export", "runs/t", "--stage", "sft", "--adapter", "--to", "out", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    onto = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base"), tmp_path / "out")
    ids = torch.tensor([[5, start, 9, end]])
    with torch.no_grad():
        torch.testing.assert_close(onto(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    again = run_here("run", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 0 and "sft again" not in again.stdout
    # That adapter is a model, too: merged, with its tokens.
    (tmp_path / "next").mkdir()
    write_run(tmp_path / "next", path=str(tmp_path / "out"), chat_template=None)
    loaded = load_recipe(tmp_path / "next" / "mine.yaml").recipe
    taken = tokenizing.prepare(loaded, check_all(loaded.data, 0))
    model, _ = build.base_from_recipe(loaded.model, taken, seed=0, dtype=FLOAT)
    assert taken.added == () and taken.tokenizer.eos_token == "<|im_end|>"
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.ci
def test_a_stopped_sft_goes_on_with_the_rows_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base(tmp_path / "base")
    write_run(tmp_path)
    whole = run_here("sft", "mine.yaml", "--run-dir", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    step = callback.EventCallback.on_step_end

    def stopped(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(callback.EventCallback, "on_step_end", stopped)
        assert run_here("sft", "mine.yaml", "--run-dir", "stopped", cwd=tmp_path).returncode != 0
    rest = run_here("sft", "mine.yaml", "--run-dir", "stopped", cwd=tmp_path)
    assert rest.returncode == 0 and "resumed_from=4" in rest.stdout, rest.stdout + rest.stderr
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "sft" / "model").state_dict()
        for name in ("whole", "stopped")
    )
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.ci
def test_plan_counts_the_rows_that_are_trained(tmp_path: Path) -> None:
    base(tmp_path / "base")
    write_run(tmp_path)
    planned = json.loads(run_here("plan", "mine.yaml", "--json", cwd=tmp_path).stdout)
    done = run_here("run", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (tmp_path / "runs" / "t" / "events.jsonl").read_text().splitlines()]
    settings = next(e["settings"] for e in events if e["event"] == "started" and e["stage"] == "sft")
    stage = next(one for one in planned["stages"] if one["name"] == "sft")
    assert stage["trainable"] == settings["trainable_parameters"]
    assert stage["parameters"] == settings["parameters"]


# ---------------------------------------------------------------- the clock

CLOCKS = [
    '{{ strftime_now("%d %b %Y") }}',
    "{%- set day = strftime_now('%Y-%m-%d') -%}{{ day }}",
    "{% if strftime_now is defined %}{{ strftime_now('%H:%M') }}{% endif %}",
    "{% macro head() %}{{ 'Today: ' + strftime_now('%Y-%m-%d') }}{% endmacro %}{{ head() }}",
    "{% for m in messages %}{{ strftime_now('%j') }}{% endfor %}",
    "{% set kind = '%-d/%m, ' ~ '%Y' %}{{ strftime_now(kind) }}",  # a format that is computed
]
EXPECTED = ["03 Feb 2025", "2025-02-03", "00:00", "Today: 2025-02-03", "034", "3/02, 2025"]


def rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.apply_chat_template(TURNS[:1], tokenize=False))


@pytest.mark.parametrize(("clock", "expected"), zip(CLOCKS, EXPECTED, strict=True))
def test_a_template_that_reads_the_clock_reads_the_recipes_day(clock: str, expected: str, tmp_path: Path) -> None:
    found = prepared(base(tmp_path / "base"), chat_template=clock, template_date="2025-02-03")
    assert rendered(found.tokenizer) == expected
    assert any("the chat template reads the clock: here it reads 2025-02-03" in note for note in found.notes)
    found.tokenizer.save_pretrained(tmp_path / "saved")
    saved = tokenizing.load_for(Model(path="x", template_date="1999-01-01"), str(tmp_path / "saved"))
    assert rendered(saved) == expected  # what is stopped stays so
    assert templates.without_day(str(saved.chat_template)) == clock


def test_no_other_template_changes() -> None:
    for text in (*templates.NAMED.values(), GEMMA, "{{ 'strftime_now' }}"):
        assert templates.with_day(text, date(2025, 2, 3)) == text


def test_the_clocks_of_real_templates_are_stopped(tmp_path: Path) -> None:
    tokenizer = prepared(base(tmp_path / "base")).tokenizer
    found = 0
    for name, text in vars(chat_template_utils).items():
        if not name.endswith("_chat_template") or not isinstance(text, str) or "strftime_now" not in text:
            continue
        found += 1
        tokenizer.chat_template = text
        assert date.today().strftime("%Y") in rendered(tokenizer), name
        tokenizer.chat_template = templates.with_day(text, date(1999, 2, 3))
        assert "1999" in rendered(tokenizer), name
        assert rendered(tokenizer) == rendered(tokenizer).replace(date.today().isoformat(), ""), name
    assert found >= 3


def test_an_export_reads_the_clock_again(tmp_path: Path) -> None:
    base(tmp_path / "base")
    clock = "{{ strftime_now('%Y') }}\n" + templates.NAMED["chatml"]
    write_run(tmp_path, chat_template=clock)
    for what in ("sft", "ppo"):
        done = run_here(what, "mine.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    inside = AutoTokenizer.from_pretrained(tmp_path / "runs" / "t" / "sft" / "model")
    assert rendered(inside).startswith("2026\n")
    for options in ([], ["--adapter"]):
        folder = tmp_path / f"out{len(options)}"
        exported = run_here("export", "runs/t", *options, "--to", folder, cwd=tmp_path)
        assert exported.returncode == 0, exported.stderr
        assert AutoTokenizer.from_pretrained(folder).chat_template == clock


@pytest.mark.parametrize("given", ["2025-02-30", "yesterday", "2025"])
def test_a_day_that_is_none_is_a_conflict(given: str) -> None:
    (conflict,) = list(Model(path="x", template_date=given).conflicts("model"))
    assert conflict.key == "model.template_date" and "is no day" in conflict.what


def test_a_day_without_quotes_is_read(tmp_path: Path) -> None:
    write_run(tmp_path)
    recipe = tmp_path / "day.yaml"
    recipe.write_text(
        (tmp_path / "mine.yaml").read_text().replace('"chat_template"', '"template_date": 2025-02-03, "chat_template"')
    )
    assert load_recipe(recipe).recipe.model.template_date == "2025-02-03"


# ---------------------------------------------------------------- templates that render earlier turns differently

SEVERAL = [*TURNS, {"role": "user", "content": "and soup?"}, {"role": "assistant", "content": "soup is fine."}]


def variant(folder: Path, template: str, **trainer: Any) -> tokenizing.Prepared:
    return tokenizing.tokenizer_from_recipe(
        Model(path=str(folder), chat_template=template),
        [{"messages": SEVERAL}],
        conversations=True,
        sft=Sft(trainer=trainer),
    )


def test_qwen3_with_losses_on_the_assistants_turns_takes_the_training_variant(tmp_path: Path) -> None:
    folder, qwen = base(tmp_path / "base"), chat_template_utils.qwen3_chat_template
    whole = variant(folder, qwen)  # a loss on everything needs no growth: the template stays
    assert whole.tokenizer.chat_template == qwen
    found = variant(folder, qwen, assistant_only_loss=True)
    assert any("TRL's training variant of it, which does not, is used" in note for note in found.notes)
    text = str(found.tokenizer.chat_template)
    assert not chat_template_utils.has_generation_markers(text.split("-#}", 1)[1]) and text != qwen
    theirs = copy.deepcopy(found.tokenizer)
    theirs.chat_template = chat_template_utils.qwen3_training_chat_template
    for messages in (TURNS, SEVERAL, TURNS[:1]):
        for opened in (False, True):
            options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": opened}
            ours = found.tokenizer.apply_chat_template(messages, **options)
            assert ours == theirs.apply_chat_template(messages, **options)
    encoder = Encoder(found.tokenizer)
    row = encoder.demonstration({"messages": SEVERAL}, assistant_only_loss=True)
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    # TRL's own mask of the assistant's tokens, but for the new line after each end of turn
    both = theirs.apply_chat_template(SEVERAL, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    masked = [token for token, one in zip(both["input_ids"], both["assistant_masks"], strict=True) if one]
    strip = found.tokenizer.decode
    assert strip(learned).replace("\n", "") == strip(masked).replace("\n", "")


def test_a_template_of_that_kind_that_trl_does_not_know_is_left_to_the_row_that_fails(tmp_path: Path) -> None:
    own = (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}(earlier){% else %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = variant(base(tmp_path / "base"), own, assistant_only_loss=True)
    assert found.tokenizer.chat_template == own


def test_another_day_makes_a_stage_on_a_policy_from_elsewhere_again(tmp_path: Path) -> None:
    base(tmp_path / "base")
    write_run(tmp_path)
    given = ["ppo", "mine.yaml", "--policy", "base", "--run-dir", "run", "--set", "data.prompts.source=texts.jsonl"]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"is tea {n} good?"}) + "\n" for n in range(16))
    )
    (tmp_path / "mine.py").write_text("def length(prompts, completions):\n    return [1.0 for _ in completions]\n")
    first = run_here(*given, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "skipped: unchanged" in run_here(*given, cwd=tmp_path).stdout
    other = run_here(*given, "--set", 'model.template_date="2025-02-03"', cwd=tmp_path)
    assert other.returncode == 0 and "runs again: changed model" in other.stdout, other.stdout + other.stderr
