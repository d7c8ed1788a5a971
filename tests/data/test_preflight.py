"""Rows that the chat template refuses and rows that are too long: told by number and place, before anything trains."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_here
from transformers import PreTrainedTokenizerBase

from rlhfctl.data import preflight
from rlhfctl.data.chat import template_warnings
from rlhfctl.data.encoding import Encoder
from rlhfctl.data.fitting import fit_prompts
from rlhfctl.data.load import check_all
from rlhfctl.data.types import PromptSplit, Rows
from rlhfctl.errors import DataError
from rlhfctl.models import build, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init

CHAT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OPEN = CHAT[CHAT.index("{% endfor %}") + len("{% endfor %}") :]  # the same, and it takes any order
INIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 300}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    made = tokenizing.train_tokenizer(Init(**INIT), ["[user]what is it?\n[assistant]a tiny text"])  # type: ignore[arg-type]
    made.chat_template = CHAT
    return made


# ---------------------------------------------------------------- rows that the template refuses


def recipe(folder: Path, **demonstrations: Any) -> Path:
    good, bad = turns("q", "a"), [*turns("q")[:1], *turns("q", "a")]
    rows = [{"messages": bad if number in (2, 5) else good} for number in range(1, 9)]
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"source": "demos.jsonl", **demonstrations}
    model = {"init": INIT, "chat_template": CHAT}
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"name": "t", "model": model, "data": {"demonstrations": section}, "sft": {}}))
    return path


def test_each_row_goes_through_the_template_and_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_recipe(recipe(tmp_path)).recipe
    with pytest.raises(DataError) as caught:
        preflight.check(loaded, check_all(loaded.data, 0), ["sft"], tokenizer)
    said = str(caught.value)
    assert "2 of 8 rows of data.demonstrations cannot be used" in said
    assert (
        "demos.jsonl:2: the chat template refuses a conversation (user, user, assistant): roles must alternate" in said
    )
    assert "demos.jsonl:5:" in said and "data.demonstrations.bad_rows: drop" in said


def test_one_prompt_for_two_reward_models_is_refused_at_once(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in ("a", "b", "b")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"preferences": {"source": str(tmp_path / "pairs.jsonl"), "heldout": 0.4}}
    model = {"init": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "tokens": ["a", "b"]}}
    for heldout in (False, True):
        given = {"name": "t", "model": model, "data": data, "reward": {"heldout": heldout}}
        (tmp_path / "t.yaml").write_text(json.dumps(given))
        loaded = load_recipe(tmp_path / "t.yaml").recipe
        with pytest.raises(DataError, match="two reward models") if heldout else contextlib.nullcontext():
            preflight.check(loaded, check_all(loaded.data, 0), ["base", "reward", "heldout"], None)


def test_bad_rows_drop_leaves_them_out_and_says_so(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_recipe(recipe(tmp_path, bad_rows="drop")).recipe
    kept = preflight.check(loaded, check_all(loaded.data, 0), ["sft"], tokenizer)["demonstrations"]
    assert len(kept.rows) == len(kept.locations) == 6
    assert kept.notes[-1].startswith("2 of 8 rows are refused by the chat template and dropped, the first: ")
    assert kept.locations[1].endswith("demos.jsonl:3")


def test_pairs_and_prompts_lose_the_same_rows_in_their_splits(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = recipe(tmp_path, bad_rows="drop")
    prompts = [turns(f"q{i}") if i % 3 else [*turns(f"q{i}"), *turns("again")] for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    given = json.loads(path.read_text())
    given["data"]["prompts"] = {"source": "prompts.jsonl", "bad_rows": "drop", "eval": 2, "test": 4}
    path.write_text(json.dumps(given))
    loaded = load_recipe(path).recipe
    kept = preflight.check(loaded, check_all(loaded.data, 0), [], tokenizer)["prompts"]
    assert len(kept.rows) == 8
    assert kept.split is not None
    assert sum(len(part) for part in vars(kept.split).values()) == 8


def test_in_a_mix_each_source_says_what_happens_to_its_bad_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = recipe(tmp_path)
    (tmp_path / "good.jsonl").write_text(
        "".join(json.dumps({"messages": turns(f"g{i}", "a")}) + "\n" for i in range(4))
    )
    given = json.loads(path.read_text())
    parts = [{"source": "demos.jsonl", "weight": 2, "bad_rows": "drop"}, {"source": "good.jsonl"}]
    given["data"]["demonstrations"] = {"sources": parts}
    path.write_text(json.dumps(given))
    loaded = load_recipe(path).recipe
    kept = preflight.check(loaded, check_all(loaded.data, 0), ["sft"], tokenizer)["demonstrations"]
    assert len(kept.rows) == 16 and kept.notes[-1].startswith("2 of 12 rows are refused by the chat template")
    parts[0]["bad_rows"], parts[1]["bad_rows"] = "stop", "drop"
    path.write_text(json.dumps(given))
    loaded = load_recipe(path).recipe
    with pytest.raises(DataError, match=r"2 of 12 rows of data\.demonstrations cannot be used") as caught:
        preflight.check(loaded, check_all(loaded.data, 0), ["sft"], tokenizer)
    assert "in data.demonstrations, beside their source, bad_rows: drop" in str(caught.value.fix)


def test_a_test_source_of_its_own_says_so_too_and_no_part_may_be_left_empty(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    bad = [*turns("q")[:1], *turns("again")]
    for name, rows in (("train", [turns(f"q{i}") for i in range(8)]), ("test", [turns("one"), bad])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    prompts = {"source": "train.jsonl", "test_source": {"source": "test.jsonl", "bad_rows": "drop"}}
    given = {
        "name": "t",
        "model": {"path": "base"},
        "data": {"prompts": prompts},
        "compare": {"judges": ["mine:score"]},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(given))
    loaded = load_recipe(tmp_path / "mine.yaml").recipe

    def checked_prompts() -> Rows:
        return preflight.check(loaded, check_all(loaded.data, 0), [], tokenizer)["prompts"]

    split = checked_prompts().split
    assert isinstance(split, PromptSplit) and len(split.test) == 1
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": bad}) + "\n")
    with pytest.raises(DataError, match=r"refuses each row of data\.prompts that is for test"):
        checked_prompts()


# ---------------------------------------------------------------- prompts that are too long


def test_a_text_loses_its_beginning_and_whoever_reads_the_row_reads_the_same(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = Encoder(tokenizer)
    long = " ".join(f"word{i}" for i in range(30))
    rows, ids, cut, dropped = fit_prompts([{"prompt": "short"}, {"prompt": long}], encoder, 20, "truncate")
    assert (cut, dropped) == (1, 0)
    assert long.endswith(rows[1]["prompt"]) and 0 < len(ids[1]) <= 20
    assert ids[1] == encoder.prompt(rows[1]["prompt"])
    assert fit_prompts([{"prompt": long}], encoder, 20, "drop") == ([], [], 0, 1)


def test_a_conversation_loses_old_turns_then_the_beginning_of_the_last(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = OPEN
    encoder = Encoder(tokenizer)
    system = {"role": "system", "content": "Be brief."}
    prompt = [system, *turns("an old question", "an old answer", "what is bread?")]
    room = len(encoder.prompt([system, *turns("what is bread?")]))
    (row,), (ids,), cut, _ = fit_prompts([{"prompt": prompt}], encoder, room, "truncate")
    assert row["prompt"] == [system, *turns("what is bread?")] and cut == 1 and len(ids) == room
    (row,), (ids,), _, _ = fit_prompts([{"prompt": prompt}], encoder, room - 4, "truncate")
    assert row["prompt"][0] == system and "what is bread?".endswith(row["prompt"][1]["content"])
    text = tokenizer.decode(ids)
    assert text.startswith("[system]Be brief.\n[user]") and text.endswith("\n[assistant]")
    assert fit_prompts([{"prompt": prompt}], encoder, 5, "truncate") == ([], [], 0, 1)  # nothing left to cut


# ---------------------------------------------------------------- rows longer than the model's context


@pytest.mark.ci
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_rows_longer_than_the_context_are_cut_with_a_count(architecture: str, tmp_path: Path) -> None:
    """Learned positions end, rotary ones only degrade: both are told, and no option of the trainer is blamed."""
    rows = [{"prompt": f"q{i}", "completion": " word" * (200 if i < 6 else 2)} for i in range(16)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"p{i}", "chosen": " yes", "rejected": " no" * (200 if i < 4 else 1)} for i in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    given = {
        "name": "t",
        "model": {"init": INIT | {"architecture": architecture, "max_position_embeddings": 32}},
        "data": {"demonstrations": {"source": "demos.jsonl"}, "preferences": {"source": "pairs.jsonl", "heldout": 0.2}},
        "sft": {"trainer": {"max_steps": 1}},
        "reward": {"trainer": {"max_steps": 1}},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(given))
    result = run_here("run", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "6 of 16 demonstrations are longer than the model's context of 32 tokens and are cut there" in result.stdout
    dropped = [
        line for line in result.stdout.splitlines() if "pairs are longer than the model's context of 32 tokens" in line
    ]
    assert sum(int(line.split("warning: ")[1].split()[0]) for line in dropped) == 4


def test_a_max_prompt_length_beyond_the_context_lets_no_response_run_past_it(tmp_path: Path) -> None:
    """ppo, compare, `plan` and `data` read one rule: the context counts beside what the recipe states."""
    rows = [{"prompt": "word " * (1 if i % 4 else 40)} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i} {row['prompt']}"}) + "\n" for i, row in enumerate(rows))
    )
    shape = {"architecture": "gpt2", "max_position_embeddings": 32}
    tokenizer = tokenizing.train_tokenizer(Init(**INIT | shape), ["word"])  # type: ignore[arg-type]
    build.save_model(
        build.build_model(Init(**INIT | shape), tokenizer, seed=0, dtype=torch.float32), tokenizer, tmp_path / "base"
    )  # type: ignore[arg-type]
    given = {
        "name": "t",
        "model": {"path": "base"},
        "data": {"prompts": {"source": "prompts.jsonl", "test": 8}, "max_prompt_length": 200},
        "reward": {"function": "mine:length"},
        "ppo": {"total_episodes": 8, "per_device_train_batch_size": 8, "num_mini_batches": 1, "response_length": 8},
        "compare": {"judges": ["mine:length"], "samples_per_prompt": 1, "controls": "none", "bootstrap_samples": 100},
    }
    (tmp_path / "mine.py").write_text("def length(prompts, completions):\n    return [len(c) for c in completions]\n")
    (tmp_path / "mine.yaml").write_text(json.dumps(given))
    planned = run_here("plan", "mine.yaml", cwd=tmp_path).stdout
    result = run_here("run", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    split = check_all(load_recipe(tmp_path / "mine.yaml").recipe.data, 0)["prompts"].split
    assert isinstance(split, PromptSplit)
    long = [sum(len(row["prompt"]) > 100 for row in part) for part in (split.train, split.test)]
    assert f"{long[0]} of 32 prompts are longer than 24 tokens and are dropped" in result.stdout
    assert f"{long[1]} of 8 test prompts leave no room for 8 tokens and are left out" in result.stdout
    assert f"{32 - long[0]} prompts" in planned
    said = run_here("data", "mine.yaml", cwd=tmp_path).stdout
    assert f"ppo: drops {long[0]} of 32 prompts, which are longer than 24 tokens" in said


# ---------------------------------------------------------------- tools


@pytest.mark.parametrize("writes", [True, False])
def test_tools_that_the_template_does_not_write_out_are_told_once(
    writes: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tools = "{% for tool in tools or [] %}[{{ tool.name }}]{% endfor %}"
    tokenizer.chat_template = tools + OPEN if writes else OPEN
    rows = [{"messages": turns("q", "a"), "tools": [{"name": "price"}]}, {"messages": turns("q", "a")}]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"name": "t", "model": {"init": INIT}, "data": {"demonstrations": {"source": "demos.jsonl"}}, "sft": {}}
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    loaded = load_recipe(tmp_path / "mine.yaml").recipe
    kept = preflight.check(loaded, check_all(loaded.data, 0), ["sft"], tokenizer)
    kept = preflight.check(loaded, kept, ["sft"], tokenizer)  # as before a later stage
    notes = [note for note in kept["demonstrations"].notes if "tools" in note]
    assert notes == ([] if writes else ["the tools of 1 rows are not read: the chat template does not write them out"])


def checked(folder: Path, tokenizer: PreTrainedTokenizerBase, *rows: dict[str, Any], **section: Any) -> Rows:
    """Demonstrations with these rows after the check, which is repeated as before a later stage."""
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demonstrations = {"source": "demos.jsonl", **section}
    recipe = {"name": "t", "model": {"init": INIT}, "data": {"demonstrations": demonstrations}, "sft": {}}
    (folder / "mine.yaml").write_text(json.dumps(recipe))
    loaded = load_recipe(folder / "mine.yaml").recipe
    kept = preflight.check(loaded, check_all(loaded.data, 0), ["sft"], tokenizer)
    return preflight.check(loaded, kept, ["sft"], tokenizer)["demonstrations"]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (OPEN, []),
        (OPEN.replace("m.content", "m.content | trim"), []),  # white space does not count
        ("{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}", ["system"]),
        ("{% for m in messages %}[{{ m.content | upper }}]{% endfor %}", ["system", "user", "assistant"]),
        ("{% for m in messages %}[{{ m.content.split('>')[-1] }}]{% endfor %}", ["assistant"]),  # thoughts are cut off
    ],
)
def test_turns_that_the_template_leaves_out_are_told_with_their_count(
    template: str, told: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = template
    system = {"role": "system", "content": "be kind"}
    rows = [
        {"messages": turns("hi there", "so")},
        {"messages": [system, *turns(" hi ", "<hm>yes")]},
        {"messages": [system, *turns("hi there", "<hm>no")]},
    ]
    kept = checked(tmp_path, tokenizer, *rows)
    notes = [note for note in kept.notes if "leaves out or changes" in note]
    counts = {"system": 2, "user": 3, "assistant": 3 if "user" in told else 2}
    firsts = {"system": 2, "user": 1, "assistant": 1 if "user" in told else 2}
    assert sorted(notes) == sorted(
        f"the chat template leaves out or changes the {role}'s text in {counts[role]} rows, the first: "
        f"{tmp_path / 'demos.jsonl'}:{firsts[role]}"
        for role in told
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}",
        # As templates of models that see pictures: content is taken for a list of parts.
        "{% for m in messages %}{{ m.role }}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% endif %}{% endfor %}{{ eos_token }}{% endfor %}",
    ],
)
def test_a_template_that_writes_nothing_of_the_response_is_refused(
    template: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="the chat template writes nothing of the response") as caught:
        checked(tmp_path, tokenizer, {"messages": turns("hi", "yes")})
    assert "model.chat_template" in str(caught.value.fix)


def test_a_call_without_words_after_a_turn_that_is_left_out_is_no_fault(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ (m.content or '') | upper if m.role == 'assistant' else m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "price", "arguments": {}}}]}
    kept = checked(tmp_path, tokenizer, {"messages": [*turns("hi", "yes", "and?"), call]})
    assert any("changes the assistant's text in 1 rows" in note for note in kept.notes)


def test_special_tokens_in_the_text_of_rows_are_told(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = OPEN
    eos = str(tokenizer.eos_token)
    rows = [{"messages": turns("hi", "yes")}, {"messages": turns(f"what is {eos}?", f"{eos} is the end")}]
    kept = checked(tmp_path, tokenizer, *rows)
    assert [note for note in kept.notes if "read as a token" in note] == [
        f"{eos} stands in the text of 1 rows, where it is read as a token and not as text, the first: "
        f"{tmp_path / 'demos.jsonl'}:2"
    ]


@pytest.mark.parametrize(
    ("opening", "before_response", "told"),
    [
        ("[assistant]", "", None),
        ("", "", None),  # Llama 2: the response follows at once
        ("", "[assistant]", "does not open the assistant's turn (add_generation_prompt): the policy has to write "
         "'[assistant]' itself"),
        ("[assistant]", "<think></think>", "writes '<think></think>' between the opened turn and the response"),
    ],
)  # fmt: skip
def test_what_the_policy_has_to_write_before_its_response_is_told(
    opening: str, before_response: str, told: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        + opening
        + before_response
        + "{{ m.content }}{{ eos_token }}"
        "{% else %}[user]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}" + opening + "{% endif %}"
    )
    found = list(template_warnings(tokenizer))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


@pytest.mark.parametrize("command", [["data"], ["validate", "--deep"]])
def test_commands_that_look_at_data_warn_of_the_template_and_of_mixed_kinds(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "demos.jsonl").write_text(
        "".join(json.dumps({"messages": turns(f"q{i}", "a")}) + "\n" for i in range(8))
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(20, 32)))
    recipe = {
        "name": "t",
        "model": {"init": INIT, "chat_template": "chatml", "template_tokens": "text"},
        "data": {"demonstrations": {"source": "demos.jsonl"}, "prompts": {"source": "prompts.jsonl", "test": 4}},
        "sft": {},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    said = " ".join(run_here(*command, "mine.yaml", cwd=tmp_path).stdout.split())
    assert "warning: the chat template closes turns with <|im_end|>, which is no token" in said
    assert "warning: data.prompts hold texts, but data.demonstrations hold conversations" in said
