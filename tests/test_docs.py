"""The pages for people: their commands are run, their links lead somewhere, and the program says what they quote."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import ROOT
from newcomer import equip
from ruamel.yaml import YAML
from typer.testing import CliRunner

from rlhfctl.cli import app
from rlhfctl.cli.label import AsksByDefault
from rlhfctl.data.load import check_all
from rlhfctl.events import KINDS
from rlhfctl.recipe.schema import Data

PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "tests/README.md")),
)
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
# Pages whose commands other tests type: they need the page's examples, or take minutes.
TYPED_ELSEWHERE = {
    ROOT / "docs" / "extending.md": "test_extending_page.py",
    ROOT / "docs" / "course.md": "e2e/test_course.py",
    ROOT / "docs" / "own-labels.md": "test_own_labels_page.py",
    ROOT / "docs" / "scale.md": "test_scale_page.py",
    ROOT / "docs" / "rl4lms.md": "e2e/test_rl4lms_recipes.py",
}

# Lines of ```bash blocks that are not run here, and why.
NOT_RUN = {
    "make demo": "the quickstart, minutes long: tests/e2e/test_slow.py runs it, test_recipes.py finds the target",
    "make test": "this very suite",
    "make check": "lint and types: CI runs it",
    "make slow": "an hour",
    "python -m venv .venv": "installing needs a network",
    ".venv/bin/pip install --constraint constraints.txt .": "installing needs a network",
    ".venv/bin/pip install pre-commit": "installing needs a network",
    ".venv/bin/pre-commit install": "installing needs a network",
    ".venv/bin/python -m pytest tests/stats/test_paired.py -q": "this very suite",
    "rlhfctl bench ppo --against trl": "minutes; tests/tools/bench/test_bench.py runs a small one",
    "rlhfctl chat runs/support --against reference": "it waits for lines: tests/tools/chat/test_chat_loop.py",
    "rlhfctl import train_ppo.sh --out imported.yaml": "it needs a script of another tool: tests/importing",
    "rlhfctl reproduce gao": "an hour or more; tests/tools/reproduce/test_experiment.py runs a small one",
    "rlhfctl reproduce coste": "an hour; tests/tools/reproduce/test_reproduce_ensembles.py runs a small one",
    "rlhfctl reproduce christiano": "minutes; tests/tools/reproduce/test_queries.py runs a small one",
    "rlhfctl reproduce rloo": "half an hour; tests/tools/reproduce/test_reproduce_algorithms.py runs a small one",
    "rlhfctl reproduce rloo --choose": "minutes; tests/tools/reproduce/test_algorithm_choice.py reads what it makes",
    "rlhfctl bench ppo --against trl --critic head": "minutes; tests/tools/bench/test_bench.py runs a small one",
    "rlhfctl bench ppo --against trl --workload large --rounds 1": "minutes, and 6 GB of memory",
    "rlhfctl bench scale": "minutes; tests/tools/bench/test_scale.py runs a small one",
    "rlhfctl bench scale --axes rows --rows 10000,100000,1000000": "a quarter of an hour; the same test",
    "rlhfctl --install-completion": "it writes into the user's shell files",
    "python tests/campaigns/kills.py tiny.yaml --kills 20": "half an hour: test_slow.py",
    "python tests/campaigns/kills.py tiny.yaml --kills 12 --set seeds=2": "half an hour",
    "python tests/campaigns/ppo_kills.py tiny.yaml --kills 20": "minutes: test_slow.py",
    "python tests/campaigns/rank_kills.py tiny.yaml --kills 5": "minutes: e2e/test_several_processes.py",
    "python tests/campaigns/rank_kills.py tiny.yaml --kills 5 --machines 2": "minutes, as root: the same",
    "python tests/campaigns/mutations.py --jobs 2": "ten minutes: test_slow.py",
    "python tests/campaigns/fuzz.py --recipes 300 --data 300": "ten minutes; test_fuzz.py runs a few cases",
    "python tests/campaigns/fuzz_shapes.py --cases 300": "minutes; test_fuzz.py runs a few cases",
    "python tests/campaigns/fuzz_templates.py --cases 300": "minutes; test_fuzz.py runs a few cases",
    "python tests/campaigns/alarms.py --folder alarms": "an hour; tests/campaigns/test_alarms_campaign.py runs a seed",
    "python tests/campaigns/memory.py": "a quarter of an hour",
    "python tests/campaigns/overhead.py --rounds 2": "minutes, alone on the machine: test_slow.py",
    "PYTHON=.venv/bin/python tests/gpu/check.sh --quick": "tests/gpu/test_check.py runs its rows",
    "PYTHON=.venv/bin/python tests/gpu/check.sh --markdown gpu.md --json gpu.json": "tests/gpu/test_check.py runs it",
}

# What is answered to `init`, and what `run` gets besides: fewer episodes, shorter answers, a smaller verdict.
ANSWERS = ["support", "./my-base-model", "demos.jsonl", "pairs.parquet", "prompts.jsonl", "lora", "cpu"]
SHRUNK = (
    "sft.trainer.num_train_epochs=1", "ppo.total_episodes=32", "ppo.response_length=8",
    "data.prompts.test=6", "data.prompts.eval=4", "compare.bootstrap_samples=100", "ppo.trace_every=1",
)  # fmt: skip


def commands_in(text: str) -> list[str]:
    """The lines of bash and console blocks, without comments and prompts."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", text.replace("\\\n", " "), re.DOTALL)
    lines = [shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for b in blocks for line in b.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README asks for: a model made without rlhfctl, and small files of one's own."""
    return equip(tmp_path_factory.mktemp("newcomer"))


def test_every_block_is_of_a_known_kind() -> None:
    """A block of commands under another name would not be run."""
    for page, text in TEXTS.items():
        opened = re.findall(r"^ *```(.*)$", text, re.MULTILINE)[::2]
        assert set(opened) <= {"bash", "console", "yaml", "json", "text", "python", "diff"}, page.name


def test_commands_that_are_not_run_name_scripts_with_these_options() -> None:
    for line in NOT_RUN:
        words = shlex.split(line)
        for name in (word for word in words if word.startswith("tests/") and "campaigns" in word):
            script = (ROOT / name).read_text(encoding="utf-8")
            assert all(word in script for word in words if word.startswith("--")), line


@pytest.mark.ci
def test_a_newcomer_types_what_the_pages_say(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(newcomer)
    typed = [line for page, text in TEXTS.items() if page not in TYPED_ELSEWHERE for line in commands_in(text)]
    assert set(NOT_RUN) <= set(typed)  # a reason for what is no longer there is none
    outputs: dict[str, str] = {}
    for line in typed:
        if line in NOT_RUN:
            continue
        program, *arguments = shlex.split(line)
        assert program == "rlhfctl", line
        if arguments[0] in ("run", "sft", "reward", "ppo", "sweep") or arguments[:2] == ["compare", "support.yaml"]:
            arguments += [part for size in SHRUNK for part in ("--set", size)]
        asks = arguments[0] == "init" and "--yes" not in arguments
        typed_in = "".join(f"{answer}\n" for answer in ANSWERS) if asks else None
        result = CliRunner().invoke(app, arguments, input=typed_in)
        assert result.exit_code == 0, (line, result.output, result.exception)
        outputs[arguments[0]] = outputs.get(arguments[0], "") + result.output
    assert "valid, with its data and trainer options" in outputs["validate"]
    assert "no test prompt is in the demonstrations or preferences" in outputs["data"]
    assert "this verdict rests on the reward model that PPO trained against" in " ".join(outputs["run"].split())
    assert "reference of runs/other" in outputs["rank"] and "corrected for 6 pairs" in outputs["rank"]
    for name in ("my-policy", "my-model", "my-reward-model"):
        assert (newcomer / name / "model.safetensors").is_file()
    assert (newcomer / "my-adapter" / "adapter_model.safetensors").is_file()


def test_the_recipe_in_the_readme_is_valid_all_through(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(newcomer)
    recipe = re.findall(r"```yaml\n(.*?)```", TEXTS[PAGES[0]], re.DOTALL)[0]
    (newcomer / "readme.yaml").write_text(recipe, encoding="utf-8")
    result = CliRunner().invoke(app, ["validate", "readme.yaml", "--deep"])
    assert result.exit_code == 0, result.exception
    assert "valid, with its data and trainer options (stages: sft, reward, ppo, compare)" in result.output


def options_of(words: list[str]) -> set[str]:
    """The options of the command that `words` begin with. KeyError where there is none."""
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        if isinstance(command, AsksByDefault) and word not in command.commands:
            word = next(iter(command.commands))
        command = command.commands[word]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    found = re.findall(r"`rlhfctl ([^`]+)`", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL))
    for text in found:
        words = text.replace("[", " ").replace("]", " ").split()
        known = options_of(words)
        assert not {word for word in words if word.startswith("-")} - known, text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        assert to.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", to.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_project_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:tests|rlhfctl|docs|recipes)/[\w./-]+)`", TEXTS[page]):
        assert (ROOT / name).exists(), name


# ---------------------------------------------------------------- what is quoted


def sentences(node: ast.AST) -> Iterator[str]:
    """Texts in a program, as they can be said: "..." stands for what is filled in."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.JoinedStr):
            yield "".join(str(value.value) if isinstance(value, ast.Constant) else "…" for value in part.values)


def headings(name: str) -> list[str]:
    return re.findall(r"^## (.*)$", TEXTS[ROOT / "docs" / name], re.MULTILINE)


@pytest.mark.parametrize("name", ["alarms.md", "errors.md"])
def test_headings_are_the_programs_own_words(name: str) -> None:
    programs = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "rlhfctl").rglob("*.py"))]
    said = {sentence for program in programs for sentence in sentences(program)}
    assert headings(name)
    assert [heading for heading in headings(name) if not any(heading in sentence for sentence in said)] == []


def test_each_alarm_has_its_section() -> None:
    program = ast.parse((ROOT / "rlhfctl" / "dashboard" / "alarms.py").read_text(encoding="utf-8"))
    raised = [max(sentences(node), key=len) for node in ast.walk(program) if isinstance(node, ast.Yield)]
    assert len(raised) == 12
    for sentence in raised:
        assert len([heading for heading in headings("alarms.md") if heading in sentence]) == 1, sentence


# ---------------------------------------------------------------- docs/data.md


def shapes_in(text: str) -> list[tuple[str, str]]:
    """(a row, what the recipe says of it) of each pair of blocks."""
    return re.findall(r"```json\n([^`]*?)```\n\n```yaml\n([^`]*?)```", text)


SHAPES = shapes_in(TEXTS[ROOT / "docs" / "data.md"])


@pytest.mark.parametrize(("row", "section"), SHAPES, ids=range(len(SHAPES)))
def test_rows_of_the_data_page_are_read_with_the_keys_beside_them(row: str, section: str, tmp_path: Path) -> None:
    (name, given), = YAML(typ="safe").load(section).items()  # fmt: skip
    text = "".join(re.sub(r"(?i)\btea\b|words", f"tea number {n}", row).strip() + "\n" for n in range(8))
    (tmp_path / given["source"]).write_text(text, encoding="utf-8")
    loaded = check_all(Data.model_validate({name: given | {"source": str(tmp_path / given["source"])}}), 0)[name]
    assert loaded.left_out == {} and {line.rpartition(":")[2] for line in loaded.locations} == set("12345678")
    for one, place in loaded.located_rows:  # of a ranked list, each pair
        number = int(place.rpartition(":")[2]) - 1
        assert f"tea number {number}" in json.dumps(one.get("prompt") or one.get("messages") or one["text"])
    if name == "preferences":  # in all of these rows "yes" is what people preferred
        assert all("yes" in json.dumps(one["chosen"]).lower() for one in loaded.rows)
        assert all("yes" not in json.dumps(one["rejected"]).lower() for one in loaded.rows)


def test_the_data_page_shows_many_shapes() -> None:
    assert len(SHAPES) >= 17


# ---------------------------------------------------------------- docs/metrics.md


def tables_in(text: str) -> dict[str, set[str]]:
    """Heading -> the names in the first column of its table."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    rows = zip(parts[::2], (re.findall(r"^\| ([^|]*) \|", part, re.MULTILINE) for part in parts[1::2]), strict=True)
    return {heading: {name for row in found for name in re.findall(r"`([^`]+)`", row)} for heading, found in rows}


def test_the_metrics_page_has_every_number_that_a_run_reports(tiny_run: Path) -> None:
    page = tables_in(TEXTS[ROOT / "docs" / "metrics.md"])
    reported: dict[str, set[str]] = {stage: set() for stage in ("sft", "reward", "ppo", "compare")}
    kinds = set()
    for line in (tiny_run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        kinds.add(event["event"])
        if event["event"] in ("metrics", "finished"):
            reported[event["stage"]] |= event["values" if event["event"] == "metrics" else "metrics"].keys()
    for stage, names in reported.items():
        assert names - page[stage] - {"steps", "accuracy"} == set(), stage
    # What the page has beyond that needs another recipe: a weighted reward, `log_metric`, `engine: trl`, `use: best`,
    # `entropy_coef`, `reward.heldout`, `reward.members`, `reward.unit_tests`, `outcome_critic`, `importance_cap`,
    # `algorithm`, `kl_target`, `ptx`, `critic_learning_rate`.
    others = {"policy_entropy", "reward/NAME", "logged/NAME", "ratio_variance", "eos_tokens", "best_update"}
    others |= {"baseline", "flat_groups", "kl_coef", "ptx_loss", "critic_learning_rate"}
    others |= {"trust_kl", "surrogate_gain", "line_search_steps", "step_fraction", "step_refused"}
    others |= {"mask_kept", "mask_size"}
    others |= {"eval_heldout", "eval_heldout_se", "reward_disagreement", "eval_reward_disagreement"}
    others |= {"outcome/" + name for name in ("compile_error", "runtime_error", "failed", "passed")}
    others |= {"outcome_critic_" + name for name in ("accuracy", "loss", "majority")}
    others |= {"eval_outcome/passed", "belief", "greedy_score", "importance", "importance_capped"}
    assert page["ppo"] - reported["ppo"] == others
    assert page["compare"] == reported["compare"]
    assert kinds <= page["events.jsonl"] and page["events.jsonl"] == set(KINDS)
