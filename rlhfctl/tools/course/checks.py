"""Check a learner's solution of an exercise by measuring it: what the run does, not what its recipe says.

Reads the run's manifests, samples and verdict, for some exercises its reward model or data. Answers are measured by
world.py, not by the reward functions that a learner may change. Every check returns what it measured with what is
needed, and never names a key of the recipe. Writes nothing.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfctl.artifacts import load_artifact
from rlhfctl.errors import RlhfctlError
from rlhfctl.paths import RunPaths
from rlhfctl.sweeping import require_run
from rlhfctl.tools.course import world

MOST_UPDATES = 40
"""Updates of the exercises on letters: a solution that trains longer hides the fault."""

_HIDDEN_PAIRS = 200
_FAIR = ("greedy", "matched entropy")  # beginnings of names of controls: verdict.py


@dataclass(frozen=True)
class Measure:
    """One thing that a check measured: in words, its value, and the least or the most that is needed."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def passes(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


Check = Callable[[Path], list[Measure]]


# ---------------------------------------------------------------- the exercises' checks


def labels(run: Path) -> list[Measure]:
    """Measure how often the run's reward model prefers the better of two answers that it has not seen."""
    from rlhfctl.tools.score import score

    _require_stage(run, "reward")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        file.write_text("".join(json.dumps(pair) + "\n" for pair in world.hidden_pairs(_HIDDEN_PAIRS)), "utf-8")
        rows = score(run, file).rows
    right = [row["chosen_score"] > row["rejected_score"] for row in rows]
    what = f"share of {_HIDDEN_PAIRS} new pairs of which the reward model prefers the better answer"
    return [Measure(what, statistics.fmean(right), least=0.75)]


def distance(run: Path) -> list[Measure]:
    """Measure whether the answers are sentences, and say lovely things."""
    answers = _answers(run)
    return [
        Measure("share of answers in whole sentences", _mean(answers, world.is_proper), least=0.6),
        Measure(
            'share of sentences that say "lovely"',
            _mean(answers, lambda text: world.share_of_sentences(text, ["lovely"])),
            least=0.35,
        ),
    ]


def credit(run: Path) -> list[Measure]:
    """Measure how many responses begin as they should, and that training was not prolonged."""
    return [_echoes(run, least=0.6), _updates(run)]


def end(run: Path) -> list[Measure]:
    """Measure whether answers end by themselves and are kind."""
    rows = _samples(run)
    answers = [row["policy"] for row in rows]
    return [
        Measure("share of answers that end by themselves", statistics.fmean(row["policy_ended"] for row in rows), 0.9),
        Measure("share of answers in whole sentences", _mean(answers, world.is_proper), least=0.4),
        Measure("share of kind sentences", _mean(answers, _kind), least=0.6),
    ]


def length(run: Path) -> list[Measure]:
    """Measure whether answers are kind and no longer than they were."""
    answers, before = _answers(run), [row["reference"] for row in _samples(run)]
    ratio = _mean(answers, world.sentences) / _mean(before, world.sentences)
    return [
        Measure("share of kind sentences", _mean(answers, _kind), least=0.6),
        Measure("share of answers in whole sentences", _mean(answers, world.is_proper), least=0.6),
        Measure("sentences per answer, compared with the reference's", ratio, most=1.3),
    ]


def template(run: Path) -> list[Measure]:
    """Measure whether the model that PPO starts from answers in whole sentences, as it learned to."""
    before = [row["reference"] for row in _samples(run)]
    return [Measure("share of the reference's answers in whole sentences", _mean(before, world.is_proper), least=0.65)]


def leak(path: Path) -> list[Measure]:
    """Measure how many test prompts are answered in the training data. `path`: a recipe or a run."""
    from rlhfctl.data.leaks import TRAINED_ON, answered_keys, leak_key
    from rlhfctl.data.load import check_all
    from rlhfctl.data.types import PromptSplit
    from rlhfctl.recipe.load import load_recipe

    recipe = load_recipe(RunPaths(path).recipe if path.is_dir() else path).recipe
    data = check_all(recipe.data, recipe.data_seed)
    split = data["prompts"].split
    assert isinstance(split, PromptSplit)
    answered = {key for name in TRAINED_ON if name in data for row in data[name].rows for key in answered_keys(row)}
    known = [row for row in split.test if leak_key(row["prompt"]) in answered]
    return [
        Measure("test prompts that are answered in the training data", float(len(known)), most=0),
        Measure("test prompts", float(len(split.test)), least=16),
        Measure("demonstrations to learn from", float(len(data["demonstrations"].rows)), least=200),
    ]


def critic(run: Path) -> list[Measure]:
    """Measure what the critic foresees, and what the policy learned by it."""
    explained = load_artifact(run / _require_stage(run, "ppo")).manifest.metrics["explained_variance"]
    what = "share of the variation in returns that the critic foresees"
    return [Measure(what, explained, least=0.5), _echoes(run, least=0.65), _updates(run)]


def temperature(run: Path) -> list[Measure]:
    """Measure whether the verdict has stood against the explanations that cost nothing."""
    report = _compare(run)
    basis = report.get("verdict_basis") or []
    fair = [row for row in report.get("controls") or [] if row["name"] in basis]
    kinds = {row["kind"] for row in fair}
    greedy = any(row["temperature"] == 0 and row["kind"] == "equal_temperature" for row in fair)
    found = greedy + ("matched_entropy" in kinds)
    return [
        Measure("fair comparisons, beside the main one, that the verdict rests on", float(len(fair)), least=3),
        Measure("of the two that matter most here, those that were made", float(found), least=2),
    ]


def scale(run: Path) -> list[Measure]:
    """Measure how many responses begin as they should, and that training was not prolonged."""
    return [_echoes(run, least=0.6), _updates(run)]


# ---------------------------------------------------------------- reading a run


def _echoes(run: Path, *, least: float) -> Measure:
    rows = _samples(run)
    right = [row["policy"][:1] == str(row["prompt"])[-1:] for row in rows]
    return Measure("share of responses that begin with the prompt's last letter", statistics.fmean(right), least=least)


def _updates(run: Path) -> Measure:
    updates = load_artifact(run / _require_stage(run, "ppo")).manifest.metrics["updates"]
    return Measure("updates", updates, most=MOST_UPDATES)


def _kind(text: str) -> float:
    return world.share_of_sentences(text, ["lovely", "good"])


def _answers(run: Path) -> list[str]:
    return [row["policy"] for row in _samples(run)]


def _mean(texts: Sequence[str], measure: Callable[[str], float]) -> float:
    return statistics.fmean(float(measure(text)) for text in texts)


def _samples(run: Path) -> list[dict[str, Any]]:
    """Read the run's samples; the text of conversations alone."""
    file = run / _require_stage(run, "compare") / "samples.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _compare(run: Path) -> dict[str, Any]:
    file = run / _require_stage(run, "compare") / "compare.json"
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def _require_stage(run: Path, stage: str) -> str:
    """Return the stage's name; RlhfctlError where the run has not completed it."""
    require_run(run)
    if not (run / stage / "manifest.json").is_file():
        raise RlhfctlError(
            f"the run's stage {stage} is not complete, and the check measures what it made",
            where=str(run),
            fix=f"complete it: rlhfctl run RECIPE --run-dir {run}",
        )
    return stage
