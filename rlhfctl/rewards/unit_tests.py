"""Score a response by running it: it is a Python program, and its row holds the tests.

The outcomes compile error, runtime error, failed and passed have the scores -1, -0.6, -0.3 and +1 of CodeRL (Le et al.
2022, section 3.3.1), or those of the recipe. Programs run in the sandbox (rlhfctl/sandbox/) and nowhere else.
Leaves out what the outcomes teach a critic (training/rl/coderl.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rlhfctl.errors import RewardFailed
from rlhfctl.events import transcript
from rlhfctl.models.processes import ALONE, Processes
from rlhfctl.recipe.sections.unit_tests import PROMPT, RESPONSE, UnitTests
from rlhfctl.rewards.episode import Episode
from rlhfctl.sandbox.checks import checks_of
from rlhfctl.sandbox.pool import OUTCOMES, Job, Limits, Outcome, Result, Sandbox

_FENCED = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@lru_cache(maxsize=4)
def shared_sandbox(limits: Limits, workers: int | None) -> Sandbox:
    """Return the process's sandbox with these limits: PPO, evaluation and judges share its results. See Sandbox."""
    return Sandbox(limits, workers)


def program_of(prompt: Any, completion: Any, template: str = RESPONSE) -> str:
    """Make the program: `template` with the response, or its first fenced block of code, and the prompt's text."""
    text = transcript(completion)
    fenced = _FENCED.search(text)
    response = fenced.group(1) if fenced is not None else text
    asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    parts = re.split(f"({re.escape(RESPONSE)}|{re.escape(PROMPT)})", template)
    return "".join({RESPONSE: response, PROMPT: asked}.get(part, part) for part in parts)


class UnitTestsReward:
    """Run each response with its row's tests; the outcome's score is the response's.

    `outcomes`: those of the last call. With several `processes` the first one runs all programs, so that the others
    get the same outcomes. RewardFailed if a row has no tests; EngineError if there is no sandbox.
    """

    def __init__(self, section: UnitTests, processes: Processes = ALONE) -> None:
        self.section = section
        self.processes = processes
        self.outcomes: list[Outcome] = []
        if processes.first:
            self._sandbox()  # refuses now what it would refuse later

    def _sandbox(self) -> Sandbox:
        return shared_sandbox(Limits(self.section.seconds, self.section.memory_mb), self.section.workers)

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        self.outcomes = [result.outcome for result in self.results(episodes)]
        scores = self.section.outcomes.model_dump()
        return [float(scores[outcome]) for outcome in self.outcomes]

    def results(self, episodes: Sequence[Episode]) -> list[Result]:
        """Return how each program ended. Programs that ran before with the same tests do not run again."""
        return self.processes.from_first(lambda: self._sandbox().run([self._job(episode) for episode in episodes]))

    def _job(self, episode: Episode) -> Job:
        column = self.section.tests
        if column not in episode.row:
            raise RewardFailed(
                f"a row has no column {column!r} with tests; its columns are: {', '.join(sorted(episode.row))}",
                where="reward.unit_tests.tests",
                fix="name the column that holds the tests, or add it to the prompts",
            )
        program = program_of(episode.prompt, episode.completion, self.section.program)
        return Job(program, checks_of(episode.row[column]))


class PassRate(UnitTestsReward):
    """Score a response 1 if it passes all its tests, else 0: the mean over responses is the pass rate."""

    def __call__(self, episodes: Sequence[Episode], /) -> list[float]:
        self.outcomes = [result.outcome for result in self.results(episodes)]
        return [float(outcome == "passed") for outcome in self.outcomes]


def shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Compute the share of each outcome; 0 for one that does not occur."""
    counts = Counter(outcomes)
    return {name: counts[name] / len(outcomes) for name in OUTCOMES}


def unit_tests_in(reward: Any) -> UnitTestsReward | None:
    """Find the unit tests in a reward: the reward itself, or one part of a weighted sum; None without any."""
    if isinstance(reward, UnitTestsReward):
        return reward
    scorers = getattr(reward, "scorers", {})
    return next((scorer for scorer, _ in scorers.values() if isinstance(scorer, UnitTestsReward)), None)


def outcomes_of(reward: Any) -> list[str]:
    """Return the outcomes of the reward's last call, one per program; empty without unit tests."""
    tester = unit_tests_in(reward)
    return [] if tester is None else list(tester.outcomes)


def outcome_metrics(reward: Any) -> dict[str, float]:
    """Return the metrics `outcome/NAME` of the reward's last call: the share of each outcome. Empty without tests."""
    tester = unit_tests_in(reward)
    if tester is None or not tester.outcomes:
        return {}
    return {f"outcome/{name}": share for name, share in shares(tester.outcomes).items()}
