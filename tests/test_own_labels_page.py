"""docs/own-labels.md: every command of the page is typed, in order, with a scripted person in front of the screen."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_here
from newcomer import equip
from ruamel.yaml import YAML
from trl import RewardConfig, RewardTrainer

from rlhfctl.labels.desk import Desk

PAGE = (ROOT / "docs" / "own-labels.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]
WAITS = 7


def small(text: str) -> dict[str, Any]:
    """The page's recipe with fewer questions, episodes and prompts, so that it takes seconds."""
    recipe: dict[str, Any] = YAML(typ="safe").load(text)
    recipe["data"]["prompts"] |= {"eval": 4, "test": 6}
    recipe["sample"]["prompts"] = 24
    recipe["ppo"] |= {"total_episodes": 64, "response_length": 8}
    recipe["compare"] |= {"bootstrap_samples": 100, "samples_per_prompt": 1}
    return recipe


def person(desk: Desk, annotator: str) -> int:
    """Somebody who likes short answers, says tie where they are equally long, and takes back the first answer."""
    given = 0
    while (question := desk.next(annotator)) is not None:
        lengths = [len(str(response)) for response in question.shown]
        levels = sorted(set(lengths))
        desk.answer(annotator, question.key, "label", [levels.index(length) for length in lengths], seconds=1.0)
        given += 1
        if given == 1 and not desk.answers.tries.get((annotator, question.item.id), 0) > 1:
            desk.undo(annotator)
    return given


@pytest.mark.ci
def test_a_newcomer_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    equip(tmp_path)
    recipe = small(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    with (tmp_path / "mine.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(recipe, file)
    served: list[str] = []

    def in_browsers(desk: Desk, *, host: str, announce: Any, **rest: Any) -> None:
        announce(f"Open http://{host}:1/?token=x")
        served.append(host)
        person(desk, "ana")

    def in_the_terminal(desk: Desk, annotator: str) -> int:
        question = desk.next(annotator)  # the first sitting: one answer, then q
        if not desk.answers.by_item and question is not None:
            desk.answer(annotator, question.key, "label", [0, 1], seconds=1.0)
            return 1
        return person(desk, annotator)

    monkeypatch.setattr("rlhfctl.labels.screen.start.label_in_terminal", in_the_terminal)
    monkeypatch.setattr("rlhfctl.labels.web.serve.serve", in_browsers)
    codes = []
    for command in COMMANDS:
        words = shlex.split(command)
        # Of `--write`: one question, the first suggestion, and the end of the conversation.
        monkeypatch.setattr("sys.stdin", io.StringIO("how do i reset it?\n1\n\n/quit\n"))
        assert words[0] == "rlhfctl"
        said = run_here(*words[1:], cwd=tmp_path)
        codes.append((" ".join(words[1:3]), said.returncode))
        if said.returncode == WAITS:
            assert "rlhfctl label runs/mine" in said.stderr
        else:
            assert said.returncode == 0, (command, said.stderr)
    assert [code for name, code in codes if name == "run mine.yaml"] == [WAITS, WAITS, 0]
    assert served == ["127.0.0.1"]
    manifest = json.loads((tmp_path / "runs" / "mine" / "compare" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["parents"]["policy"]["path"] == "round-2/ppo"
    last = (tmp_path / "runs" / "mine" / "round-2" / "label" / "rankings.jsonl").read_text(encoding="utf-8")
    assert {json.loads(line)["round"] for line in last.splitlines()} == {1, 2}
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pairs and all(len(row["chosen"]) < len(row["rejected"]) for row in pairs)
    _train_with_rlhfctl(tmp_path)
    _train_with_trl_alone(tmp_path, pairs)


def _train_with_rlhfctl(folder: Path) -> None:
    """The exported pairs train a reward model in another recipe."""
    (folder / "other.yaml").write_text(
        "name: other\nmodel: {path: ./my-base-model, dtype: float32}\nlora: {r: 4}\n"
        "data: {preferences: {source: pairs.jsonl}}\n"
        "reward: {trainer: {max_steps: 2, per_device_train_batch_size: 2}}\n"
    )
    trained = run_here("run", "other.yaml", cwd=folder)
    assert trained.returncode == 0, trained.stderr


def _train_with_trl_alone(folder: Path, pairs: list[dict[str, Any]]) -> None:
    """The exported pairs train a reward model by a bare script of TRL."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "my-base-model")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(folder / "my-base-model", num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "cache"))
    assert len(rows) == len(pairs)
    args = RewardConfig(output_dir=str(folder / "trl"), max_steps=2, per_device_train_batch_size=2, report_to=[],
                        use_cpu=True, bf16=False, disable_tqdm=True)  # fmt: skip
    trainer = RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 2
