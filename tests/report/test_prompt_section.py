"""The report's section on found prompts: the best first, beside the empty prompt and what a search finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from made_run import make_run

from rlhfctl.report import sections
from rlhfctl.report.as_json import json_of
from rlhfctl.report.content import Heading, Table, Text
from rlhfctl.report.facts.gather import gather
from rlhfctl.report.prompt_section import SHOWN, prompts


def row(prompt: str, accuracy: float, **more: Any) -> dict[str, Any]:
    numbers = {"accuracy": accuracy, "reward": 200 * accuracy, "chosen_on_accuracy": accuracy, "chosen_on_reward": 1.0}
    return {"prompt": prompt} | numbers | more


def found(**more: Any) -> dict[str, Any]:
    policy = [row(f"while {n}", 0.99 - n / 100, share=0.25, greedy=n == 0) for n in range(SHOWN + 3)]
    return {
        "template": "{text} {prompt} {mask}",
        "verbalizers": {"a": "good", "b": "bad"},
        "examples": {"chosen_on": 64, "test": 200},
        "empty": row("", 0.5),
        "policy": policy,
        "reference": [row("soon", 0.55, share=0.01, greedy=False)],
    } | more


SEARCH = {"words": 9, "random": row("any", 0.66, tried=1920), "greedy": row("hence", 0.9, tried=272)}


def test_the_best_prompts_stand_first_and_controls_beside_them(tmp_path: Path) -> None:
    run = replace(gather(make_run(tmp_path / "one")), prompts=[("", found(search=SEARCH))])
    section = prompts(run)
    text, table = section.parts
    assert isinstance(text, Text) and isinstance(table, Table)
    assert "'while 0', the frozen model is right on 99% of 200 test examples; with the empty prompt on 50%" in text.text
    assert [cells[1] for cells in table.rows[:2]] == ["while 0", "while 1"] and len(table.rows) == SHOWN + 4
    assert [cells[0] for cells in table.rows[SHOWN:]] == [
        "no prompt", "reference, its best", "best of 1,920 random prompts", "word by word, 272 tried",
    ]  # fmt: skip
    assert table.rows[0][2:] == ["25%", "99%", "198", "99%"] and table.rows[SHOWN][1:4] == ["(empty)", "", "50%"]
    page = sections.page_of(run)
    assert [one.name for one in page.sections][:2] == ["win-rates", "prompts"]
    (written,) = json.loads(json_of(page, [run]))["runs"]
    assert written["prompts"][0]["policy"][0]["prompt"] == "while 0" and written["prompts"][0]["seed"] == ""


def test_each_seed_has_its_table_and_other_runs_have_no_such_section(tmp_path: Path) -> None:
    run = gather(make_run(tmp_path / "one"))
    assert run.prompts == [] and not prompts(run).parts
    both = prompts(replace(run, prompts=[("seed 0", found()), ("seed 1", found())]))
    assert [part.text for part in both.parts if isinstance(part, Heading)] == ["seed 0", "seed 1"]
    assert len(both.parts) == 6
