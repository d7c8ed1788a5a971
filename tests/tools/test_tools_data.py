"""`data`: counts are right, leaks are found, and examples are shown as the model reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from rlhfctl.data import load
from rlhfctl.recipe.load import load_recipe
from rlhfctl.tools import data
from rlhfctl.tools.data import Lengths, describe, examine

RECIPE = """\
name: own
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, tokens: ["a ", "b ", "c ", "d "]}
data:
  demonstrations: {source: demonstrations.jsonl, deduplicate: true}
  preferences: {source: preferences.csv, heldout: 0.5}
  prompts: {source: prompts.txt, eval: 1, test: 2}
sft: {}
reward: {}
ppo: {total_episodes: 2, per_device_train_batch_size: 2, response_length: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"prompt": "a ", "completion": "b " * n} for n in (1, 2, 3, 3)]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "preferences.csv").write_text("prompt,chosen,rejected\na a ,b ,c c \nd ,b ,c \nd ,b ,c \n")
    (tmp_path / "prompts.txt").write_text("a \nb \nc \nd \na b \nb c \n")
    (tmp_path / "own.yaml").write_text(RECIPE)
    return tmp_path / "own.yaml"


def examined(path: Path, **changes: Any) -> data.Report:
    return examine(load_recipe(path, [f"{key}={value}" for key, value in changes.items()]).recipe)


def test_what_is_counted_can_be_recounted(recipe: Path) -> None:
    demonstrations, preferences, prompts = examined(recipe).sets
    assert (demonstrations.rows, demonstrations.prompts, demonstrations.duplicates) == (3, 1, 0)
    assert demonstrations.notes == ("dropped: 1 duplicates",)
    assert (preferences.rows, preferences.prompts, preferences.duplicates) == (3, 2, 1)
    assert sum(preferences.splits.values()) == 3 and preferences.splits["heldout"] > 0
    assert prompts.splits == {"train": 3, "eval": 1, "test": 2}
    lengths = {lengths.part: tuple(lengths.counts) for lengths in preferences.lengths}
    # "b " and its end token are two tokens, "c c " and its end token three.
    assert lengths == {"prompt": (2, 1, 1), "chosen": (2, 2, 2), "rejected": (3, 2, 2)}
    assert {lengths.part: tuple(lengths.counts) for lengths in demonstrations.lengths} == {
        "prompt": (1, 1, 1),
        "completion": (2, 3, 4),
    }
    assert [(row, tokens) for row, tokens, _ in demonstrations.longest] == [(3, 5), (2, 4), (1, 3)]


def test_a_summary_and_its_histogram() -> None:
    lengths = Lengths("prompt", tuple(range(1, 101)))
    found = lengths.summary()
    assert (found["min"], found["median"], found["p95"], found["max"]) == (1, 51, 96, 100)
    assert sum(found["histogram"]) == 100 and len(found["histogram"]) == 24 and min(found["histogram"]) >= 3


def test_test_prompts_that_were_trained_on_are_named(recipe: Path) -> None:
    leaks = examined(recipe, **{"data.prompts.test": 5, "data.prompts.eval": 0}).leaks
    assert any("of 5 test prompts are in the demonstrations too, e.g. 'a'" in sentence for sentence in leaks)
    clean = recipe.parent / "prompts.txt"
    clean.write_text("b \nc \na b \nb c \nc d \n")
    assert examined(recipe).leaks == ()


def test_prompts_are_split_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, times = load.prompt_places, []

    def counted(*arguments: object) -> object:
        times.append(arguments)
        return split(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "prompt_places", counted)
    assert examined(recipe).sets[-1].splits == {"train": 3, "eval": 1, "test": 2}
    assert len(times) == 1


def test_examples_show_special_tokens_and_parts(recipe: Path) -> None:
    first = examined(recipe).sets[0].examples[0]
    assert first[0] == ("prompt", "a ") and first[1][0] == "completion"
    assert first[1][1].startswith("b ") and first[1][1] != "b "  # the end token is there


def test_the_command_shows_it_and_writes_json(recipe: Path, here: Cli, tmp_path: Path) -> None:
    done = here("data", recipe, "--json", tmp_path / "data.json", env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    for said in (
        "demonstrations: 3 rows from",
        "3 train, 1 eval, 2 test",
        "dropped: 1 duplicates",
        "as the model reads",
    ):
        assert said in done.stdout, said
    assert max(map(len, done.stdout.splitlines())) <= 100
    found = json.loads((tmp_path / "data.json").read_text())
    assert found["sets"]["prompts"]["splits"] == {"train": 3, "eval": 1, "test": 2}
    assert found["sets"]["preferences"]["tokens"]["rejected"]["max"] == 3


def test_without_unicode_bars_are_ascii(recipe: Path) -> None:
    from rich.console import Console

    console = Console(width=90, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for part in describe(examined(recipe), unicode=False):
        console.print(part)
    assert console.export_text().isascii()


def test_conversations_are_shown_through_their_template(tmp_path: Path) -> None:
    rows = [{"prompt": f"Human: a {n}\nAssistant:"} for n in range(5)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    text = f"""\
name: chat
model:
  init:
    {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1,
     tokens: ["<user>", "<assistant>", "a ", "0", "1", "2", "3", "4"]}}
  chat_template: "{template}"
data:
  prompts: {{source: prompts.jsonl, test: 1, turns: {{}}}}
reward: {{function: "math:fsum"}}
ppo: {{total_episodes: 2, per_device_train_batch_size: 2, response_length: 4}}
"""
    (tmp_path / "chat.yaml").write_text(text)
    (only,) = examined(tmp_path / "chat.yaml").sets
    assert only.examples[0] == (("prompt", "<user>a 0<assistant>"),)


# ---------------------------------------------------------------- what each stage will cut or drop


def test_rows_that_a_stage_will_cut_or_drop_are_counted(recipe: Path) -> None:
    """Lengths by hand: demonstrations 3, 4, 5 tokens; pairs 5, 3, 3; prompts a, b, c, d, "a b ", "b c "."""
    whole = [one.fits for one in examined(recipe).sets]
    assert whole == [
        ("sft: all 3 rows fit into the model's context of 256 tokens",),
        ("reward: all 3 rows fit into the model's context of 256 tokens",),
        ("ppo: all 4 prompts fit into 252 tokens",),
    ]
    short = {"sft.trainer": "{max_length: 4}", "reward.trainer": "{max_length: 4}", "data.max_prompt_length": 1}
    changed = examined(recipe, **short, **{"compare": "{judges: [reward_model], max_new_tokens: 4}"})
    assert changed.sets[0].fits == ("sft: cuts 1 of 3 rows, which are longer than max_length=4 tokens",)
    assert changed.sets[1].fits == ("reward: drops 1 of 3 rows, which are longer than max_length=4 tokens",)
    ppo, compare = changed.sets[2].fits
    assert left_out(ppo, "drops") + left_out(compare, "drops") == 2  # "a b " and "b c ", wherever they were drawn to
    cut = examined(recipe, **short, **{"data.overlong_prompts": "truncate", "data.prompts.test": 1}).sets[2].fits
    assert left_out(cut[0], "cuts") in (1, 2) and cut[0].endswith("of 5 prompts, which are longer than 1 tokens")
    tight = examined(recipe, **{"model.init.max_position_embeddings": 5, "ppo.response_length": 4}).sets[2].fits
    assert tight == (ppo,)  # the context leaves one token


def left_out(sentence: str, done: str) -> int:
    found = re.search(rf"{done} (\d+) of", sentence)
    return int(found[1]) if found else 0


def test_the_default_length_is_that_of_the_trainers() -> None:
    from trl import RewardConfig, SFTConfig

    for config in (SFTConfig, RewardConfig):
        assert config.__dataclass_fields__["max_length"].default == data.MAX_LENGTH


def test_what_is_done_to_the_tokenizer_is_said(tmp_path: Path, here: Cli) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    init = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 300}
    given = {"name": "t", "model": {"init": init, "chat_template": "chatml"}, "sft": {}}
    given["data"] = {"demonstrations": {"source": "demos.jsonl"}}
    (tmp_path / "mine.yaml").write_text(json.dumps(given))
    for command in (["data"], ["validate", "--deep"]):
        said = " ".join(here(*command, "mine.yaml", cwd=tmp_path).stdout.split())
        assert "marks <|im_start|>, <|im_end|> are no tokens of this tokenizer: they are added" in said
        assert "it replaces <|endoftext|> as end-of-sequence" in said
