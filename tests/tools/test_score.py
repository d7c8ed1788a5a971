"""`score`: rows get scores and a summary by a run's reward, a function, a classifier or a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_here
from ruamel.yaml import YAML
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhfctl.data.encoding import Encoder
from rlhfctl.errors import DataError, HandoffError, RlhfctlError
from rlhfctl.models import scoring, tokenizing
from rlhfctl.stats.paired import wilson_ci
from rlhfctl.tools.export import export
from rlhfctl.tools.score import read_examples, score, score_responses
from rlhfctl.world import reviews

PAIRS = [dict(row) for row in reviews.preferences(12, 5, 0.0)]


def rows_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected_scores(run: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """By the merged model and the encoder, without the tool."""
    from rlhfctl.artifacts import Source, load_artifact
    from rlhfctl.recipe.load import load_recipe
    from rlhfctl.stages.loader import Loader

    tokenizer = tokenizing.load_tokenizer(str(run / "reward" / "adapter"))
    loader = Loader.of(load_recipe(run / "recipe.yaml").recipe, note=[].append, warn=[].append)
    model = loader.load_reward_model(Source.of(load_artifact(run / "reward")), tokenizer)
    encoder = Encoder(tokenizer)
    ids = [[*asked, *answered] for asked, answered in (encoder.pair(prompt, text) for prompt, text in pairs)]
    return scoring.score_rows(model, ids, tokenizer.pad_token_id)


# ---------------------------------------------------------------- a trained reward model


def test_responses_are_scored_in_order_and_keep_their_columns(tiny_run: Path, tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": row["prompt"], "response": row["chosen"]} for n, row in enumerate(PAIRS)]
    found = score(tiny_run, rows_of(tmp_path / "rows.jsonl", rows), batch_size=5)
    expected = expected_scores(tiny_run, [(row["prompt"], row["response"]) for row in rows])
    assert [{**row, "score": None} for row in found.rows] == [{**row, "score": None} for row in rows]
    assert [row["score"] for row in found.rows] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 5) for value in expected}) > 6
    assert found.summary[-1].startswith(f"the reward model {tiny_run / 'reward'}, {tmp_path / 'rows.jsonl'}: 12 scores")
    one_by_one = score(tiny_run, tmp_path / "rows.jsonl", batch_size=1)
    assert [row["score"] for row in one_by_one.rows] == pytest.approx(expected, abs=1e-5)


def test_responses_outside_a_file_get_the_same_scores_an_empty_one_too(tiny_run: Path) -> None:
    pairs = [(row["prompt"], row["chosen"]) for row in PAIRS[:5]]
    pairs.insert(2, (PAIRS[0]["prompt"], ""))
    found = score_responses(tiny_run, pairs, batch_size=4)
    assert found == pytest.approx(expected_scores(tiny_run, pairs), abs=1e-5)
    assert found[2] != pytest.approx(found[0], abs=1e-5)


def test_pairs_get_both_scores_and_an_accuracy(tiny_run: Path, tmp_path: Path) -> None:
    found = score(tiny_run, rows_of(tmp_path / "pairs.jsonl", PAIRS))
    chosen = expected_scores(tiny_run, [(row["prompt"], row["chosen"]) for row in PAIRS])
    rejected = expected_scores(tiny_run, [(row["prompt"], row["rejected"]) for row in PAIRS])
    assert [row["chosen_score"] for row in found.rows] == pytest.approx(chosen, abs=1e-5)
    assert [row["rejected_score"] for row in found.rows] == pytest.approx(rejected, abs=1e-5)
    right = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    interval = wilson_ci(right, 12)
    assert (
        f"accuracy {right / 12:.1%} of 12 pairs (95% interval {interval.low:.1%} to {interval.high:.1%})"
        in found.summary[-3]
    )
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    other = score(tiny_run, rows_of(tmp_path / "swapped.jsonl", swapped))
    assert f"accuracy {(12 - right) / 12:.1%}" in other.summary[-3]


def test_an_exported_folder_and_a_stage_score_as_the_run_does(tiny_run: Path, tmp_path: Path) -> None:
    file = rows_of(tmp_path / "pairs.jsonl", PAIRS[:4])
    export(tiny_run, "reward", tmp_path / "exported", adapter=False)
    export(tiny_run, "reward", tmp_path / "adapter", adapter=True)
    by_run = [row["chosen_score"] for row in score(tiny_run, file).rows]
    for what in (tiny_run / "reward", tmp_path / "exported", tmp_path / "adapter"):
        assert [row["chosen_score"] for row in score(what, file).rows] == pytest.approx(by_run, abs=1e-5)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "a ", "response": "b"}, "a ", ("b",)),
        ({"prompt": "a ", "completion": "b"}, "a ", ("b",)),
        ({"prompt": "a ", "completion": "b", "response": "c"}, "a ", ("b",)),
        ({"prompt": "a ", "chosen": "b", "rejected": "c"}, "a ", ("b", "c")),
        ({"chosen": "the same words b", "rejected": "the same words c"}, "the same words", (" b", " c")),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            [{"role": "user", "content": "a"}],
            ([{"role": "assistant", "content": "b"}],),
        ),
    ],
)
def test_rows_as_people_have_them(row: dict[str, Any], prompt: Any, responses: Any, tmp_path: Path) -> None:
    (example,), _ = read_examples(rows_of(tmp_path / "rows.jsonl", [row | {"id": 7}]))
    assert (example.prompt, example.responses) == (prompt, responses)
    assert example.row["id"] == 7


def test_a_ranked_list_gives_its_pairs(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "a ", "responses": ["x", "y", "z"], "scores": [1, 3, 1]}
    examples, notes = read_examples(rows_of(tmp_path / "rows.jsonl", [row]))
    assert [example.responses for example in examples] == [("y", "x"), ("y", "z")]
    assert examples[0].row == {"id": 1, "prompt": "a ", "chosen": "y", "rejected": "x"}
    assert any("ties" in note for note in notes)


def test_a_table_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('id,prompt,response\n1,"a ",b\n2,"c ",d\n')
    examples, _ = read_examples(tmp_path / "rows.csv")
    assert [(example.row["id"], example.prompt, example.responses) for example in examples] == [
        ("1", "a ", ("b",)),
        ("2", "c ", ("d",)),
    ]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"prompt": "a "}, "has no completion"),
        ({"prompt": "a ", "response": 3}, "completion is"),
        ({"prompt": "", "response": "b"}, "prompt is empty"),
    ],
)
def test_bad_rows_are_told_with_their_lines_or_dropped(bad: dict[str, Any], why: str, tmp_path: Path) -> None:
    good = {"prompt": "a ", "response": "b"}
    file = rows_of(tmp_path / "rows.jsonl", [good, bad, good])
    with pytest.raises(DataError, match=r"1 of 3 rows of .*rows\.jsonl cannot be used") as caught:
        read_examples(file)
    assert "rows.jsonl:2: " in caught.value.what and why in caught.value.what
    assert "--bad-rows drop" in str(caught.value.fix) and "data." not in caught.value.what
    examples, notes = read_examples(file, "drop")
    assert len(examples) == 2 and "rows.jsonl:2" in notes[0]


def test_one_text_is_no_response(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no response can be told from its prompt") as caught:
        read_examples(rows_of(tmp_path / "rows.jsonl", [{"text": "all in one"}]))
    assert caught.value.where == f"{tmp_path / 'rows.jsonl'}:1"


# ---------------------------------------------------------------- functions, classifiers


def function_run(folder: Path, body: str) -> Path:
    """A run folder as far as its recipe: a function needs no stage."""
    (folder / "rewards.py").write_text(body)
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n' * 4)
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(
        f"name: t\nfolder: {folder}\nmodel: {{path: nowhere}}\n"
        f'data: {{prompts: {{source: {folder / "prompts.jsonl"}, test: 1}}}}\nreward: {{function: "rewards:f"}}\n'
        "ppo: {lora: null, total_episodes: 8, per_device_train_batch_size: 8}\n"
    )
    return folder / "run"


def test_a_function_scores_with_the_columns_of_the_file(tmp_path: Path) -> None:
    body = "def f(prompts, completions, want):\n    return [len(c) - w for c, w in zip(completions, want)]\n"
    run = function_run(tmp_path, body)
    rows = [{"prompt": "a ", "response": "x" * n, "want": 2, "score": "mine"} for n in (1, 2, 5)]
    found = score(run, rows_of(tmp_path / "rows.jsonl", rows), batch_size=2)
    assert [row["reward_score"] for row in found.rows] == [-1.0, 0.0, 3.0]
    assert all(row["score"] == "mine" for row in found.rows)  # the file's own column stays
    assert found.summary[-1].endswith("3 scores, mean 0.6667, standard deviation 1.7, from -1 to 3")


def test_a_function_that_fails_once_is_called_again_as_the_run_says(tmp_path: Path) -> None:
    body = "calls = []\ndef f(prompts, completions):\n    calls.append(1)\n    1 / (len(calls) - 1)\n    return [2.0]\n"
    run = function_run(tmp_path, body)
    file = rows_of(tmp_path / "rows.jsonl", [{"prompt": "a ", "response": "b"}])
    (run / "recipe.yaml").write_text(
        (run / "recipe.yaml").read_text().replace('"rewards:f"}', '"rewards:f", retries: 1}')
    )
    assert score(run, file).rows[0]["score"] == 2.0


MAPPED = {"prompt": "question", "chosen": "good", "rejected": "bad"}


def test_a_runs_own_files_are_read_as_the_run_reads_them(tmp_path: Path) -> None:
    body = (
        "def f(prompts, completions):\n"
        "    assert all(isinstance(one, list) and one[-1]['role'] == 'assistant' for one in completions)\n"
        "    return [float(len(one[-1]['content'])) for one in completions]\n"
    )
    run = function_run(tmp_path, body)
    recipe = YAML(typ="safe").load((run / "recipe.yaml").read_text())
    recipe["data"]["preferences"] = {
        "source": str(tmp_path / "pairs.jsonl"),
        "columns": MAPPED,
        "as_conversations": True,
    }
    recipe["data"]["demonstrations"] = {
        "source": str(tmp_path / "demos.jsonl"), "columns": {"prompt": "question", "completion": "answer"},
    }  # fmt: skip
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    rows_of(tmp_path / "demos.jsonl", [{"question": "q", "answer": "ok"}])
    pairs = [{"question": f"q{n}", "good": "yes!", "bad": "no", "id": n} for n in range(4)]
    found = score(run, rows_of(tmp_path / "pairs.jsonl", pairs))
    assert [(row["id"], row["chosen_score"], row["rejected_score"]) for row in found.rows] == [
        (n, 4.0, 2.0) for n in range(4)
    ]
    demos = score(run, tmp_path / "demos.jsonl")
    assert demos.rows == [{"question": "q", "answer": "ok", "score": 2.0}]
    plain = score(run, rows_of(tmp_path / "plain.jsonl", [{"prompt": "q", "response": "fine"}]))
    assert plain.rows[0]["score"] == 4.0  # texts become turns here, too
    with pytest.raises(DataError, match="needs prompt and completion") as caught:
        score(run, rows_of(tmp_path / "other.jsonl", [{"asked": "q", "told": "a"}]))
    assert "the columns that the run's recipe maps" in str(caught.value.fix)


def test_texts_for_a_model_with_a_chat_template_are_said_to_be_scored_as_they_stand(
    tiny_run: Path, tmp_path: Path
) -> None:
    rows = rows_of(tmp_path / "rows.jsonl", [{"prompt": "the tea is", "response": " good"}])
    said = "scored as they stand, without the model's chat template"
    export(tiny_run, "reward", tmp_path / "out", adapter=False)
    assert not any(said in sentence for sentence in score(tmp_path / "out", rows).summary)
    tokenizer = tokenizing.load_tokenizer(str(tmp_path / "out"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "out")
    assert any(said in sentence for sentence in score(tmp_path / "out", rows).summary)


def test_ties_count_as_wrong(tmp_path: Path) -> None:
    run = function_run(tmp_path, "def f(prompts, completions, **_):\n    return [len(c) for c in completions]\n")
    pairs = [{"prompt": "a", "chosen": c, "rejected": r} for c, r in (("xxx", "x"), ("xx", "yy"), ("x", "yyy"))]
    found = score(run, rows_of(tmp_path / "rows.jsonl", pairs))
    (said,) = (line for line in found.summary if "accuracy" in line)
    assert "accuracy 33.3% of 3 pairs" in said and "1 ties, which count as wrong" in said


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    run = function_run(tmp_path, 'def f(prompts, completions, **_):\n    return [float("nan")] * len(prompts)\n')
    with pytest.raises(RlhfctlError, match="finite"):
        score(run, rows_of(tmp_path / "rows.jsonl", [{"prompt": "a ", "response": "b"}]))


@pytest.mark.parametrize("label", ["LABEL_1", "1", "label_1"])
def test_a_classifiers_folder_with_a_label(label: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=300, num_labels=2)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "m")
    from rlhfctl.recipe.schema import Init

    size = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    tokenizer = tokenizing.train_tokenizer(size, ["ask me"])
    tokenizer.save_pretrained(tmp_path / "m")
    file = rows_of(tmp_path / "rows.jsonl", [{"prompt": "a ", "response": "b"}])
    with torch.no_grad():
        logits = model(input_ids=tokenizer("a b", return_tensors="pt").input_ids).logits[0]
    found = score(tmp_path / "m", file, label=label)
    assert found.rows[0]["score"] == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)
    assert any("the score is the log-odds of LABEL_1 for prompt + response" in line for line in found.summary)
    with pytest.raises(HandoffError, match="a classifier with 2 labels"):
        score(tmp_path / "m", file)
    read = score(tmp_path / "m", file, label=label, reads="response").rows[0]["score"]
    assert math.isfinite(read) and read != found.rows[0]["score"]


# ---------------------------------------------------------------- the command


def test_the_command_writes_rows_and_sums_up(tiny_run: Path, tmp_path: Path) -> None:
    file = rows_of(tmp_path / "pairs.jsonl", PAIRS[:3])
    piped = run_here("score", tiny_run, file, cwd=tmp_path)
    assert piped.returncode == 0, piped.stderr
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert len(rows) == 3 and {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"} <= rows[0].keys()
    assert "accuracy" in piped.stderr and "Loading" not in piped.stderr
    written = run_here("score", tiny_run, file, "--out", "scored.jsonl", "--batch-size", 1, cwd=tmp_path)
    assert written.returncode == 0 and written.stderr == ""
    in_file = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [row.keys() for row in in_file] == [row.keys() for row in rows]
    assert written.stdout.splitlines()[-1] == "wrote scored.jsonl"
    again = run_here("score", tiny_run, file, "--out", "scored.jsonl", cwd=tmp_path)
    assert again.returncode == 1 and "already exists and is not overwritten" in again.stderr


def test_what_cannot_score_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    file = rows_of(tmp_path / "rows.jsonl", [{"prompt": "a ", "response": "b"}])
    with pytest.raises(RlhfctlError, match="--label and --reads are for a reward model's folder"):
        score(tiny_run, file, label="1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    (tmp_path / "run" / "recipe.yaml").write_text(
        "name: t\nmodel: {path: nowhere}\ndata: {demonstrations: {source: x.jsonl}}\nsft: {lora: null}\n"
    )
    with pytest.raises(RlhfctlError, match="the run has no reward to score with"):
        score(tmp_path / "run", file)
    with pytest.raises(HandoffError, match="no scalar head"):
        score(tiny_run / "sft", file)
    with pytest.raises(RlhfctlError, match="does not exist"):
        score(tiny_run, tmp_path / "none.jsonl")
