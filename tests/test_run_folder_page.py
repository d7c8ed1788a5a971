"""Hold docs/run-folder.md to reality: every file and field of a run is named there, and what is named there exists."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_here
from fake_endpoint import TIE, serving

from rlhfctl.artifacts import Manifest, ParentRef
from rlhfctl.dashboard.jsonl import read_events
from rlhfctl.events import KINDS

PAGE = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL),
)
# Files that only other recipes make, and why no run here has them.
OTHER_RECIPES = {
    "tensorboard/FILE": "report_to: [tensorboard]; tests/tools/test_trackers.py",
    "wandb/FILE": "report_to: [wandb]; tests/tools/test_trackers.py",
    "compare/judgements.jsonl": "compare.judges: [endpoint]; below",
    "judge-cache.sqlite": "compare.judges: [endpoint]; below",
    "superseded/FILE": "a changed recipe; tests/e2e/test_run.py",
    "summary/summary.json": "seeds; below",
    "reward/member-NUMBER/FILE": "reward.members; tests/e2e/test_members.py",
    "sft/choice.json": "sft.choose; tests/e2e/test_sft_choice.py",
    "STAGE/work/choice.json": "sft.choose under way; tests/e2e/test_sft_choice.py",
    "STAGE/work/chosen-NUMBER/FILE": "sft.choose under way; tests/stages/test_choice.py",
    "sample/items.jsonl": "sample; tests/e2e/test_rounds.py",
    "label/rankings.jsonl": "label; tests/e2e/test_rounds.py",
    "labels.sqlite": "label; tests/e2e/test_rounds.py",
    "demonstrations.jsonl": "label --write; tests/tools/write/test_write_start.py",
    "writing.json": "label --write under way; tests/tools/write/test_writer.py",
    "STAGE/work/samples/try-NUMBER-NUMBER/block-NUMBER.json": "sample under way; tests/stages/test_stages_sample.py",
    "ppo/outcome-critic/FILE": "ppo.outcome_critic; tests/e2e/test_coderl_recipe.py",
    "STAGE/work/outcome-critic/FILE": "ppo.outcome_critic under way; tests/e2e/test_coderl_recipe.py",
    "compare/prompts.json": "reward.prompted_classifier; tests/e2e/test_rlprompt_recipe.py",
    "card/card.json": "reward.card; the fixture carded_run",
    "card/pool.jsonl": "reward.card; the fixture carded_run",
    "STAGE/work/pool/block-NUMBER.json": "the card under way; tests/stages/test_pool.py",
    "STAGE/work/finished/member-NUMBER/FILE": "reward.members under way; tests/e2e/test_members.py",
    "STAGE/work/member-NUMBER/": "reward.members under way; tests/e2e/test_members.py",
    "STAGE/work/extends.json": "more episodes for a finished PPO; tests/e2e/test_more_episodes.py",
    "STAGE/work/waiting.json": "a stage that waits for people; tests/test_pipeline.py",
    "STAGE/work/process/": "a stage in a process of its own; tests/test_stage_process.py",
    "STAGE/work/process-NUMBER/": "a stage in several processes; tests/test_stage_process.py",
}
# PPO without LoRA on a Python function: the stage base, whole models, traces, batches that are not finite, work/.
RECIPE = """\
name: other
model:
  init: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32, tokens: [a, b]}
data:
  prompts: {source: prompts.jsonl, eval: 4, test: 4}
reward: {function: "scores:score"}
ppo:
  lora: null
  total_episodes: 24
  per_device_train_batch_size: 8
  response_length: 4
  trace_every: 1
  use: best
  eval: {every: 1}
"""
FAILS_LATER = """\
calls = [0]

def score(prompts, completions, log_extra):
    log_extra("letters", [len(text) for text in completions])
    calls[0] += 1
    if calls[0] == 4:
        raise ConnectionError("no answer")
    return [float("nan") if calls[0] == 1 and index == 0 else 1.0 for index in range(len(completions))]
"""
NEVER_FINITE = """\
def score(prompts, completions, log_extra):
    log_extra("letters", [len(text) for text in completions])
    return [float("nan") for _ in completions]
"""


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose PPO a reward function stopped, which was then mended into one that is never finite."""
    project = tmp_path_factory.mktemp("stopped")
    prompts = ["ab"[n % 2] * (1 + n // 2) for n in range(16)]
    (project / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (project / "recipe.yaml").write_text(RECIPE)
    (project / "scores.py").write_text(FAILS_LATER)
    assert run_here("run", "recipe.yaml", cwd=project).returncode == 6
    shutil.copytree(project / "runs" / "other", project / "first")
    (project / "scores.py").write_text(NEVER_FINITE)
    assert run_here("run", "recipe.yaml", cwd=project).returncode == 5
    shutil.copytree(project / "first", project / "runs" / "other", dirs_exist_ok=True)  # what each of them left
    return project / "runs" / "other"


# ---------------------------------------------------------------- the page


def names_in(heading: str, column: int = 0) -> list[str]:
    """The names in a column of the tables of a section, in order."""
    rows = [line.strip("| ").split(" | ") for line in SECTIONS[heading].splitlines() if line.startswith("| ")]
    return [row[column].strip("`") for row in rows if len(row) > column and row[column].startswith("`")]


def pattern(name: str) -> re.Pattern[str]:
    """A name of the page as a pattern: FILE is any path, NUMBER digits, other words in capitals one part."""
    text = re.escape(name).replace("NUMBER", r"\d+").replace("FILE", ".+")
    return re.compile(re.sub(r"\b[A-Z]{3,}\b", r"[^/]+", text))


def paths_in(value: Any, known: set[str], prefix: str = "") -> Iterator[str]:
    """Names of the fields of a JSON value, as the page writes them: a word in capitals stands for the keys of a map."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value) and prefix not in known:
        for item in value:
            yield from paths_in(item, known, f"{prefix}[]")
    elif isinstance(value, dict) and prefix not in known:
        word = next((name for name in known if re.match(rf"{re.escape(prefix)}\.[A-Z]+(\.|$)", name)), "")
        for key, inner in value.items():
            part = re.match(r"[A-Z]+", word[len(prefix) + 1 :]) if prefix and word else None
            yield from paths_in(inner, known, f"{prefix}.{part.group() if part else key}" if prefix else key)
        if not value and word:
            yield from [name for name in known if name.startswith(f"{prefix}.")]
    else:
        yield prefix


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- files


def test_every_file_of_a_run_is_on_the_page_and_the_other_way_round(tiny_run: Path, stopped_run: Path) -> None:
    files, work = names_in("The files"), [f"STAGE/work/{name}" for name in names_in("work")]
    there = {file.relative_to(run).as_posix() for run in (tiny_run, stopped_run) for file in run.rglob("*")}
    there = {name for name in there if any((run / name).is_file() for run in (tiny_run, stopped_run))}
    there -= {"stdout.txt"}  # of the fixture
    assert len(files) == 34 and len(work) == 18
    assert sorted(name for name in there if not any(pattern(file).fullmatch(name) for file in files)) == []
    unused = {file for file in [*files, *work] if not any(pattern(file).fullmatch(name) for name in there)}
    assert unused == set(OTHER_RECIPES)


def test_what_is_stable_is_said_of_every_file() -> None:
    promises = [line for line in SECTIONS["What is stable"].splitlines() if line.startswith("| **")]
    named = [name for line in promises for name in re.findall(r"`([^`]+)`", line.split(" | ")[1])]
    for file in names_in("The files"):
        if file not in OTHER_RECIPES:
            assert any(name.rstrip("/") in file for name in named), file


# ---------------------------------------------------------------- fields


def test_the_events_are_those_of_the_program(tiny_run: Path, stopped_run: Path) -> None:
    pairs = re.findall(r"^\| `?(\w+)`? \| `(\w+)` \|", SECTIONS["events.jsonl"], re.MULTILINE)
    common = {field for kind, field in pairs if kind == "every"}
    said = {kind: common | {field for other, field in pairs if other == kind} for kind in KINDS}
    assert said == {kind: {"event", *(f.name for f in dataclasses.fields(made))} for kind, made in KINDS.items()}
    assert {kind for kind, _ in pairs} == {*KINDS, "every"}
    for run in (tiny_run, stopped_run):
        for event in read_events(run / "events.jsonl"):
            assert event.keys() == said[event["event"]]


def test_the_manifest_is_the_programs(tiny_run: Path) -> None:
    named = names_in("manifest.json")
    assert {name.split(".")[0] for name in named} == set(Manifest.model_fields)
    assert {name.split(".")[-1] for name in named if name.startswith("parents.")} == set(ParentRef.model_fields)
    found: set[str] = set()
    for stage in ("sft", "reward", "ppo", "compare"):
        manifest = json.loads((tiny_run / stage / "manifest.json").read_text(encoding="utf-8"))
        found |= set(paths_in(manifest, set(named)))
        layout = set(re.findall(r"`(\w+)`", next(line for line in PAGE.splitlines() if "`layout.NAME`" in line)))
        assert manifest["layout"].keys() - {"head"} <= layout
    assert found == set(named)


def test_recorded_outputs(tiny_run: Path) -> None:
    named, found = set(names_in("probes.json")), set()
    for stage in ("sft", "reward", "ppo"):
        found |= set(paths_in(json.loads((tiny_run / stage / "probes.json").read_text(encoding="utf-8")), named))
    assert found == named


def test_compare_json(tiny_run: Path) -> None:
    named = set(names_in("compare.json"))
    report = json.loads((tiny_run / "compare" / "compare.json").read_text(encoding="utf-8"))
    assert set(paths_in(report, named)) == named
    fields = [name.removeprefix("judges.JUDGE.") for name in names_in("compare.json") if name.startswith("judges.")]
    assert set(fields) == set(report["judges"]["gold"])
    shared = set(fields[: fields.index("verdict") + 1])
    for entry in (*(row["judges"]["gold"] for row in report["controls"]), report["greedy"]["gold"]):
        assert entry.keys() == shared


def test_card_json(carded_run: Path) -> None:
    named = set(names_in("card.json"))
    card = json.loads((carded_run / "card" / "card.json").read_text(encoding="utf-8"))
    assert set(paths_in(card, named)) == named
    for row in rows_of(carded_run / "card" / "pool.jsonl"):
        assert set(paths_in(row, set(names_in("pool.jsonl")))) == set(names_in("pool.jsonl"))
    manifest = json.loads((carded_run / "card" / "manifest.json").read_text(encoding="utf-8"))
    layout = set(re.findall(r"`(\w+)`", next(line for line in PAGE.splitlines() if "`layout.NAME`" in line)))
    assert manifest["layout"].keys() <= layout


def test_samples(tiny_run: Path) -> None:
    named = set(names_in("samples.jsonl"))
    for row in rows_of(tiny_run / "compare" / "samples.jsonl"):
        assert set(paths_in(row, named)) == named


def test_what_the_endpoint_leaves(tiny_recipe: Path, tmp_path: Path) -> None:
    """Two pairs, one of them without an answer."""
    (tmp_path / "scores.py").write_text("def length(prompts, completions):\n    return [len(c) for c in completions]\n")
    for name, texts in (("ours", ["longer", "bad"]), ("theirs", ["less", "worse"])):
        rows = [{"prompt": f"p{n}", "response": text} for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda asked: TIE if asked.is_knock or asked.texts["PROMPT"] == "p0" else "hm") as server:
        section = f"{{base_url: '{server.url}', model: m, key_env: null, max_failed: 0.5}}"
        done = run_here(
            "compare", tiny_recipe, "--policy-samples", "ours.jsonl", "--reference-samples", "theirs.jsonl",
            "--set", 'compare.judges=[endpoint, "scores:length"]', "--set", f"compare.endpoint={section}",
            "--run-dir", tmp_path / "run", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    files = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    assert {"compare/judgements.jsonl", "judge-cache.sqlite"} <= files
    report = json.loads((run / "compare" / "compare.json").read_text(encoding="utf-8"))
    named = set(names_in("The endpoint in compare.json"))
    assert set(paths_in({"endpoint": report["endpoint"]}, named)) == named
    entries = report["judges"]
    assert entries["endpoint"].keys() - entries["scores:length"].keys() == {"prompts"}
    rows = rows_of(run / "compare" / "judgements.jsonl")
    assert len(rows) == 4 and all(row.keys() == set(names_in("judgements.jsonl")) for row in rows)


def test_traces(stopped_run: Path) -> None:
    named = set(names_in("traces")) - {"response_reward", "baseline", "scale"}  # without a critic: test_trace.py
    rows = [row for file in sorted((stopped_run / "ppo" / "traces").iterdir()) for row in rows_of(file)]
    assert len(rows) >= 4
    for row in rows:
        assert set(paths_in(row, named)) == named


def test_batches_that_were_not_finite(stopped_run: Path) -> None:
    named = set(names_in("non-finite"))
    files = sorted((stopped_run / "ppo" / "non-finite").iterdir())
    found = {name for file in files for row in rows_of(file) for name in row}
    assert found == named
    assert all(row["raw_scores"] == "nan" for row in rows_of(files[-1]))


def test_marks_of_work(stopped_run: Path) -> None:
    folder = next((stopped_run / "ppo" / "work").glob("checkpoint-*"))
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    line = next(line for line in PAGE.splitlines() if "trainer_state.json" in line)
    assert set(re.findall(r"`(\w+)`", line)) == {*state, "sft", "reward"}
    assert json.loads((folder / "complete.json").read_text(encoding="utf-8")).keys() == {"files"}
