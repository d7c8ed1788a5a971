"""Define `reward.unit_tests`: the response is a program, the row holds its tests, and the outcome is the score.

The outcomes and their scores are those of CodeRL (Le et al. 2022, "CodeRL: Mastering Code Generation through Pretrained
Models and Deep Reinforcement Learning", NeurIPS 2022, section 3.3.1).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section

RESPONSE, PROMPT = "{response}", "{prompt}"  # what `program` may hold


class OutcomeScores(Section):
    """The score of each outcome of a program."""

    compile_error: float = Field(-1.0, description="Score of a program that is no Python.")
    runtime_error: float = Field(-0.6, description="Score of one that raises an error, or reaches a limit.")
    failed: float = Field(-0.3, description="Score of one that runs, and fails a test.")
    passed: float = Field(1.0, description="Score of one that passes all its tests.")


class UnitTests(Section):
    """Tests of the response as a Python program, run in a sandbox."""

    tests: str = Field(
        "tests",
        min_length=1,
        description="Column of the prompts with the tests of a row: Python assertions (a text or a list of texts), or "
        "a list of {input, output} for programs that read and print.",
    )
    program: str = Field(
        RESPONSE,
        description="What the program is: {response} (its first fenced block of code, if it has one) alone, or with "
        "{prompt} and text around it.",
    )
    outcomes: OutcomeScores = Field(OutcomeScores(), description="The score of each outcome of a program.")
    seconds: float = Field(2.0, gt=0, le=600, description="Time limit of a program with all its tests (wall clock).")
    memory_mb: int = Field(
        256, ge=64, description="Memory limit of a program in MiB, with the 40 that Python itself takes."
    )
    workers: int | None = Field(None, gt=0, description="Programs that run at the same time (null: one per core).")

    def as_input(self) -> dict[str, Any]:
        """Return the keys that decide on the scores: how many programs run at once does not."""
        return self.model_dump(mode="json", exclude={"workers"})

    RULES: ClassVar[tuple[Rule[UnitTests], ...]] = (
        Rule(
            "program",
            "holds no {{response}}: every program would be the same",
            "write {{response}} where the response belongs",
            lambda tests: RESPONSE not in tests.program,
        ),
    )
