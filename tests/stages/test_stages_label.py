"""The label stage: judges other than people, whose answers count, ties, ranks and labels that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import TIE, A, Asked, B, serving
from small_stage import INIT

from rlhfctl.artifacts import Artifact, Source, publish_manifest
from rlhfctl.errors import DataError, JudgeFailed
from rlhfctl.events import Event
from rlhfctl.graph import Waiting
from rlhfctl.labels.items import make_item, write_items
from rlhfctl.labels.store import open_labels
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Recipe
from rlhfctl.stages import label
from rlhfctl.stages.context import Context
from rlhfctl.world import gold, reviews

KIND = " the coffee was fresh and the soup was warm. i would come back."
RUDE = " the coffee was awful. i cannot recommend it."
PROMPT = "review of the village tearoom, visited on a snowy saturday with friends:"


def items_at(run: Path, texts: list[list[str]], prompts: list[str] | None = None) -> Source:
    folder = run / "sample"
    folder.mkdir(parents=True)
    asked = prompts or [PROMPT] * len(texts)
    items = [make_item(prompt, one, ["sft"] * len(one)) for prompt, one in zip(asked, texts, strict=True)]
    write_items(folder / "items.jsonl", items)
    made = publish_manifest(folder, stage="sample", inputs={}, parents={}, section={}, layout={"items": "items.jsonl"},
                            seed=0, seconds=0.0, metrics={})  # fmt: skip
    return Source.of(made)


def context(run: Path, items: Source, seed: int = 0, **section: Any) -> Context:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "seed": seed,
            "folder": str(run),
            "model": {"init": INIT.model_dump(exclude_none=True)},
            "data": {"prompts": {"source": "builtin:reviews", "rows": 200}},
            "sample": {},
            "label": section,
            "reward": {},
            "ppo": {"lora": None, "response_length": 4},
        }
    )
    events: list[Event] = []
    (run / "label").mkdir(exist_ok=True)
    inputs = {"section": "0", "functions": "0123456789"}
    return Context("label", recipe, RunPaths(run), {"items": items}, inputs, {}, events.append)


def judged(ctx: Context) -> list[dict[str, Any]]:
    assert ctx.recipe.label is not None
    made = label.run(ctx.recipe.label, ctx)
    assert isinstance(made, Artifact), made
    return [json.loads(line) for line in made.part("data").read_text(encoding="utf-8").splitlines()]


def test_the_built_in_judge_ranks_by_the_true_preference_and_errs_as_often_as_it_should(tmp_path: Path) -> None:
    rows = reviews.preferences(400, seed=1, label_noise=0.0)
    texts = [[row["chosen"], row["rejected"]] for row in rows]
    run = tmp_path / "run"
    source = items_at(run, texts, [row["prompt"] for row in rows])
    exact = judged(context(run, source, by="builtin", noise=0.0))
    for row in exact:
        scores = gold.score([row["prompt"]] * 2, row["responses"])
        assert (scores[0] > scores[1]) == (row["ranks"][0] < row["ranks"][1])
    noisy = judged(context(run, source, by="builtin", noise=0.25))
    wrong = sum(a["ranks"] != b["ranks"] for a, b in zip(exact, noisy, strict=True))
    assert 0.18 < wrong / len(exact) < 0.32
    assert {row["annotator"] for row in noisy} == {
        "builtin (noise 0.25, seed 0)"
    }  # the first judge's answers stay apart
    again = judged(context(run, source, by="builtin", noise=0.25))
    assert again == noisy
    with open_labels(run / "labels.sqlite") as store:
        assert len(store.events()) == 800


def test_a_function_ranks_several_responses_and_equal_scores_are_ties(tmp_path: Path) -> None:
    (tmp_path / "judge_by_length.py").write_text(
        "def score(prompts, completions):\n    return [len(one) for one in completions]\n"
    )
    items = items_at(tmp_path, [["a", "bbb", "cc", "ddd"], ["aa", "bb"]])
    ctx = context(tmp_path, items, by="judge_by_length:score")
    (row,) = judged(ctx)
    assert row["responses"] == ["a", "bbb", "cc", "ddd"] and row["ranks"] == [2, 0, 1, 0]
    assert row["annotator"] == "judge_by_length:score (01234567)" and "time" not in row
    assert any("1 answers are ties" in note for note in ctx.notes)


def test_answers_that_prefer_nothing_are_told(tmp_path: Path) -> None:
    items = items_at(tmp_path, [[KIND, KIND + " "]])
    with pytest.raises(DataError, match="none of the 1 answers"):
        judged(context(tmp_path, items, by="builtin", noise=0.0))


def test_people_are_waited_for_and_answers_of_judges_do_not_count_as_theirs(tmp_path: Path) -> None:
    items = items_at(tmp_path, [[KIND, RUDE]])
    judged(context(tmp_path, items, by="builtin", noise=0.0))
    ctx = context(tmp_path, items, by="people")
    assert ctx.recipe.label is not None
    waiting = label.run(ctx.recipe.label, ctx)
    assert isinstance(waiting, Waiting) and waiting.what == "0 of 1 answers are given"
    assert "--web" in waiting.how


# ---------------------------------------------------------------- a model behind an API


def shortest(asked: Asked) -> str:
    """A judge that prefers the shorter response, and refuses to read one that holds `unreadable`."""
    texts = asked.texts
    if "unreadable" in texts["PROMPT"]:
        return "I would rather not say."
    first, second = (len(texts[f"RESPONSE {side}"]) for side in "AB")
    return A if first < second else B if second < first else TIE


def test_a_model_behind_an_api_judges_every_pair_in_both_orders(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    texts = [["aaa", "b", "cc"], ["dd", "ee"], ["f", "g"]]
    items = items_at(tmp_path, texts, ["one", "two", "unreadable"])
    with serving(shortest) as server:
        section = server.section().model_dump(mode="json") | {"max_failed": 0.9}
        ctx = context(tmp_path, items, by="endpoint", endpoint=section)
        (row,) = judged(ctx)
        assert row["ranks"] == [2, 0, 1] and row["annotator"].startswith("judge-1 (")
        asked = len(server.questions)
        assert asked == 2 * 3 + 2 * 1 + 2 * 2  # three pairs, one tie, one that is asked twice in both orders
        judged(context(tmp_path, items, by="endpoint", endpoint=section))
        assert len(server.questions) == asked  # no question is asked twice
    assert any("1 of 3 questions have no answer" in note for note in ctx.notes)


def test_errors_of_the_judge_name_the_key_of_this_section(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    items = items_at(tmp_path, [["a", "b"]])
    with serving(lambda asked: "no choice") as server:
        section = server.section().model_dump(mode="json")
        ctx = context(tmp_path, items, by="endpoint", endpoint=section)
        with pytest.raises(JudgeFailed, match=r"label\.endpoint") as told:
            judged(ctx)
    assert "compare.endpoint" not in str(told.value)
