"""The rows of PPO's next-token loss: what is learned of them, what is cut, and a whole stage with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from small_stage import small_tokenizer

from rlhfctl import pipeline
from rlhfctl.errors import DataError
from rlhfctl.events import Event, Metrics
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Ppo
from rlhfctl.stages import ptx_rows
from rlhfctl.stages.ppo import can_extend
from rlhfctl.training.rl.pretraining import Pretraining

ROWS: list[dict[str, Any]] = [{"prompt": "ab", "completion": " ba"}, {"text": "abba"}, {"text": "ab" * 9}]


def prepared(rows: Sequence[dict[str, Any]], warned: list[str], context: int | None = 8, **ptx: Any) -> Pretraining:
    section = Ppo(ptx={"data": "pretraining"} | ptx)
    made = ptx_rows.prepare(section, rows, small_tokenizer(), context, seed=0, warn=warned.append)
    assert made is not None
    return made


def test_a_response_is_learned_of_a_prompt_and_all_of_a_text() -> None:
    warned: list[str] = []
    tokenizer = small_tokenizer()
    pair, text, long = prepared(ROWS, warned).rows
    assert tokenizer.decode(pair["ids"][pair["start"] :]) == f" ba{tokenizer.eos_token}"
    assert tokenizer.decode(text["ids"]) == f"abba{tokenizer.eos_token}" and text["start"] == 1
    assert len(long["ids"]) == 8
    (sentence,) = warned
    assert (
        "1 of 3 rows of data.pretraining are longer than the model's context of 8 tokens and are cut there" in sentence
    )


def test_rows_without_a_token_to_learn_are_dropped_or_refused() -> None:
    warned: list[str] = []
    kept = prepared(ROWS, warned, max_length=2).rows
    assert [len(row["ids"]) for row in kept] == [2, 2]
    assert any("1 rows of data.pretraining have no token to learn from" in sentence for sentence in warned)
    with pytest.raises(DataError, match=r"no row of data\.pretraining has a token to learn from"):
        prepared(ROWS[:1], [], max_length=2)


def test_without_the_key_there_are_none() -> None:
    assert ptx_rows.prepare(Ppo(), ROWS, small_tokenizer(), 8, seed=0, warn=pytest.fail) is None


@pytest.mark.ci
def test_a_whole_stage_reads_a_data_set_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    lines = [json.dumps({"text": text}) for text in ("a plain text", "another one", "a third text of the set")]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    overrides = (
        f"data.pretraining={{source: {tmp_path / 'texts.jsonl'}}}",
        "ppo.ptx={data: pretraining, coef: 1.0, ratio: 0.5}",
        "ppo.ema_decay=0.5",
        "ppo.total_episodes=32",
    )
    (tmp_path / "run").mkdir()
    events: list[Event] = []
    loaded = load_recipe(tmp_path / "tiny.yaml", overrides)
    pipeline.run(loaded, tmp_path / "run", pipeline.Request(until="ppo"), events.append)
    updates = [event.values for event in events if isinstance(event, Metrics) and event.stage == "ppo"]
    losses = [values["ptx_loss"] for values in updates if "ptx_loss" in values]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    manifest = json.loads((tmp_path / "run" / "ppo" / "manifest.json").read_text(encoding="utf-8"))
    assert "data.pretraining" in manifest["inputs"] and "data.demonstrations" not in manifest["inputs"]
    other = {"text": "another text"}
    (tmp_path / "texts.jsonl").write_text(json.dumps(other) + "\n", encoding="utf-8")
    events.clear()
    pipeline.run(load_recipe(tmp_path / "tiny.yaml", overrides), tmp_path / "run", pipeline.Request(until="ppo"),
                 events.append)  # fmt: skip
    again = {event.stage for event in events if isinstance(event, Metrics)}
    assert again == {"ppo"}  # other texts change ppo alone


def test_what_is_kept_in_checkpoints_alone_cannot_be_extended(tiny_run: Path) -> None:
    from rlhfctl.artifacts import load_artifact

    made = load_artifact(tiny_run / "ppo")
    plain = Ppo()
    assert can_extend(made, plain)
    for change in ({"ema_decay": 0.9}, {"kl_target": 6.0}, {"normalize_scores": "running"}):
        assert not can_extend(made, plain.model_copy(update=change))
