"""`init`: the recipe loads for all answers and states them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.graph import stages_of
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "my data").mkdir()
    for name in ("demos", "pairs", "prompts", "my data/200% prompts"):
        rows = [json.dumps({"prompt": f"p{index}"}) + "\n" for index in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))


def answered(*answers: str, file: str | None = "mine.yaml") -> Recipe:
    result = CliRunner().invoke(app, ["init", *([file] if file else [])], input="".join(f"{a}\n" for a in answers))
    assert result.exit_code == 0, result.output
    path = Path(file or f"{answers[0]}.yaml")
    assert f"rlhfctl validate {path}" in result.output
    assert f"rlhfctl run {path}" in result.output
    return load_recipe(path).recipe


@pytest.mark.parametrize(
    ("demonstrations", "scorer", "lora", "size"),
    list(
        itertools.product(
            ["demos.jsonl", "none"],
            ["pairs.jsonl", "org/reward", "./base", "my_rewards:score"],
            ["lora", "all"],
            ["cpu", "gpu"],
        )
    ),
)
def test_every_combination_loads(demonstrations: str, scorer: str, lora: str, size: str, tmp_path: Path) -> None:
    recipe = answered("", "base", demonstrations, scorer, "prompts.jsonl", lora, size)
    assert recipe.name == "mine"
    assert recipe.model.path == str(tmp_path / "base")
    assert (recipe.sft is None) == (demonstrations == "none")
    assert stages_of(recipe)[0] == ("base" if demonstrations == "none" else "sft")
    assert recipe.reward is not None and recipe.ppo is not None and recipe.compare is not None
    kind = {"pairs.jsonl": "trained", "my_rewards:score": "function"}.get(scorer, "model")
    assert recipe.reward.kind == kind
    assert recipe.compare.judges == ["reward_function" if kind == "function" else "reward_model"]
    assert (recipe.lora is None) == (lora == "all") == (recipe.ppo.lora is None)
    assert recipe.model.dtype == ("bfloat16" if (lora, size) == ("lora", "gpu") else "float32")
    assert recipe.ppo.bf16 == ((lora, size) == ("all", "gpu"))
    assert recipe.data.prompts is not None
    assert (recipe.data.prompts.eval, recipe.data.prompts.test) == (10, 20)
    text = Path("mine.yaml").read_text()
    assert "./base" in text and str(tmp_path) not in text  # paths as they were given


@pytest.mark.parametrize("lora", ["", "all"])
def test_new_weights_take_the_built_in_task(lora: str) -> None:
    recipe = answered("trial", "", lora, file=None)
    assert recipe.name == "trial"
    assert recipe.model.init is not None
    assert stages_of(recipe) == ["sft", "reward", "ppo", "compare"]
    assert recipe.sft is not None and recipe.sft.lora is None
    assert (recipe.lora is None) == (lora == "all")


def test_a_recipe_elsewhere_names_the_files_from_there(tmp_path: Path) -> None:
    recipe = answered(
        "", "base", "none", "pairs.jsonl", "my data/200% prompts.jsonl", "", "cpu", file="deep/down/r.yaml"
    )
    assert recipe.model.path == str(tmp_path / "base")
    assert recipe.data.prompts is not None
    assert recipe.data.prompts.source == str(tmp_path / "my data" / "200% prompts.jsonl")
    assert "../../pairs.jsonl" in Path("deep/down/r.yaml").read_text()


def test_absolute_paths_and_variables_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    recipe = answered("", str(tmp_path / "base"), "none", "${HERE}/pairs.jsonl", "${HERE}/prompts.jsonl", "", "cpu")
    assert recipe.data.prompts is not None
    assert recipe.data.prompts.source == str(tmp_path / "prompts.jsonl")
    assert "${HERE}/pairs.jsonl" in Path("mine.yaml").read_text()


def test_few_prompts_make_small_batches(tmp_path: Path) -> None:
    Path("two.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    Path("three.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    recipe = answered("", "base", "none", "f:f", "two.jsonl", "three.jsonl", "", "gpu")
    assert recipe.ppo is not None and recipe.data.prompts is not None
    assert (recipe.data.prompts.eval, recipe.data.prompts.test) == (0, 1)
    assert recipe.ppo.batch_size == 2


@pytest.mark.parametrize("name", ["true", "null", "1e5", "007", "a.b-c"])
def test_a_name_is_read_back_as_text(name: str) -> None:
    assert answered(name, "", "").name == name


def test_columns_of_other_names_are_guessed_and_written_out(tmp_path: Path) -> None:
    files = {
        "demos.jsonl": {"question": "q", "answer": " a"},
        "pairs.jsonl": {"question": "q", "answer_a": " a", "answer_b": " b", "winner": "b"},
        "prompts.jsonl": {"data": {"question": "q"}},
    }
    for name, row in files.items():
        (tmp_path / name).write_text((json.dumps(row) + "\n") * 100)
    data = answered("", "base", "demos.jsonl", "pairs.jsonl", "prompts.jsonl", "lora", "cpu").data
    assert data.demonstrations is not None and data.preferences is not None and data.prompts is not None
    assert data.demonstrations.columns == {"prompt": "question", "completion": "answer"}
    assert data.preferences.columns == {"prompt": "question", "responses": ["answer_a", "answer_b"], "label": "winner"}
    assert data.prompts.columns == {"prompt": "data.question"}


@pytest.mark.parametrize("content", ["", "{", '{"alpha": "q"}\n', "\xff"])
def test_a_file_that_cannot_be_read_is_not_guessed_at(content: str, tmp_path: Path) -> None:
    (tmp_path / "demos.jsonl").write_text(content, encoding="latin-1")
    data = answered("", "base", "demos.jsonl", "my_rewards:score", "prompts.jsonl", "lora", "cpu").data
    assert data.demonstrations is not None and data.demonstrations.columns == {}


ASKED = [{"role": "user", "content": "q"}]
CHAT_ROWS = {
    "demos": {"messages": [*ASKED, {"role": "assistant", "content": "a"}]},
    "pairs": {"question": "q", "good": " a", "bad": " b"},
    "prompts": {"prompt": ASKED},
}


def write_chats(folder: Path, **rows: dict[str, object]) -> None:
    for name, row in (CHAT_ROWS | rows).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(100)))


@pytest.mark.parametrize(
    ("kept", "demonstrations", "expected"),
    [
        (None, "demos.jsonl", "chatml"),
        (None, "none", "human-assistant"),
        ({"chat_template": "{{ messages }}"}, "demos.jsonl", None),
        ({"eos_token": "</s>"}, "demos.jsonl", "chatml"),
    ],
)
def test_conversations_get_a_template_where_the_model_has_none_and_texts_become_turns(
    kept: dict[str, str] | None, demonstrations: str, expected: str | None, tmp_path: Path
) -> None:
    write_chats(tmp_path)
    if kept is not None:
        (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(kept))
    recipe = answered("", "base", demonstrations, "pairs.jsonl", "prompts.jsonl", "lora", "cpu")
    assert recipe.model.chat_template == expected
    assert recipe.data.preferences is not None and recipe.data.preferences.as_conversations
    assert recipe.data.preferences.columns == {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert recipe.data.prompts is not None and not recipe.data.prompts.as_conversations  # they are turns already


def test_texts_alone_need_no_template(tmp_path: Path) -> None:
    write_chats(tmp_path, demos={"prompt": "q", "completion": " a"}, prompts={"prompt": "q"})
    recipe = answered("", "base", "demos.jsonl", "pairs.jsonl", "prompts.jsonl", "lora", "cpu")
    assert recipe.model.chat_template is None
    assert recipe.data.preferences is not None and not recipe.data.preferences.as_conversations


def test_a_name_that_is_no_folder_is_said_to_be_an_id(tmp_path: Path) -> None:
    write_chats(tmp_path)
    answers = ("", "bose", "demos.jsonl", "pairs.jsonl", "prompts.jsonl", "lora", "cpu")
    result = CliRunner().invoke(app, ["init", "mine.yaml"], input="".join(f"{a}\n" for a in answers))
    assert "bose is no folder here: it is taken for a model's id on the Hub" in result.output
    assert "# chat_template: chatml" in Path("mine.yaml").read_text()
