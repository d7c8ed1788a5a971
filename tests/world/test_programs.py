"""The built-in programming tasks: determinism, tests that tell programs apart, the share of mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from rlhfctl.errors import DataError
from rlhfctl.rewards.unit_tests import shares
from rlhfctl.sandbox.checks import checks_of
from rlhfctl.sandbox.pool import Job, Sandbox
from rlhfctl.world import programs
from rlhfctl.world.programs import TESTS, Operation, Task, assertions, demonstrations, program_of, prompt_of, prompts

BY_PROMPT = {prompt_of(task): task for group in programs.tasks() for task in group}
HEAD = "def f(x):"


def job(program: str, task: Task, seed: int = 0) -> Job:
    return Job(HEAD + program, checks_of(assertions(task, np.random.default_rng(seed))))


def test_a_task_reads_as_it_is_written() -> None:
    first, sort = (one for one in programs.OPERATIONS["list"] if one.words in ("sort", "take the first 2"))
    chain: tuple[Operation, ...] = (first, sort)
    assert prompt_of(("list", chain)) == "list: take the first 2, sort\n"
    assert program_of(chain) == " x = x[:2]; x = sorted(x); return x"


def test_rows_follow_from_the_seed_and_begin_alike() -> None:
    assert demonstrations(40, 3) == demonstrations(60, 3)[:40] != demonstrations(40, 4)
    assert prompts(40, 3) == prompts(60, 3)[:40] != prompts(40, 4)


def test_prompts_are_distinct_and_none_is_demonstrated() -> None:
    asked = [row["prompt"] for row in prompts(3000, 0)]
    shown = {row["prompt"] for row in demonstrations(3000, 0)}
    assert len(set(asked)) == 3000 and not shown & set(asked)
    assert {prompt.partition(":")[0] for prompt in asked[:3]} == {"number", "list", "word"}


def test_more_prompts_than_there_are_is_refused_with_the_number() -> None:
    total = sum(map(len, programs._pools()[1]))
    assert len(prompts(total, 0)) == total
    with pytest.raises(DataError, match=f"has {total} distinct prompts"):
        prompts(total + 1, 0)


def test_tests_say_what_the_operations_give() -> None:
    for row in prompts(60, 1):
        chain = BY_PROMPT[row["prompt"]][1]
        assert len(row["tests"]) == len(set(row["tests"])) == TESTS
        for test in row["tests"]:
            given, expected = (eval(part) for part in test.removeprefix("assert f(").split(") == "))
            for operation in chain:
                given = operation.apply(given)
            assert given == expected, test


def test_every_operation_is_what_its_statement_does(confining: None) -> None:
    """One program for each chain of two operations: all pass their tests."""
    chains = [task for group in programs.tasks() for task in group if len(task[1]) == 2]
    with Sandbox(workers=1) as sandbox:
        results = sandbox.run([job(program_of(task[1]), task) for task in chains[::3]])
    assert {result.outcome for result in results} == {"passed"}


def test_demonstrations_end_in_each_way_and_habits_are_the_rule(confining: None) -> None:
    rows = demonstrations(900, 0)
    with Sandbox(workers=1) as sandbox:
        results = sandbox.run([job(row["completion"], BY_PROMPT[row["prompt"]]) for row in rows])
    found = shares([result.outcome for result in results])
    expected = {"passed": 0.53, "failed": 0.37, "compile_error": 0.05, "runtime_error": 0.05}
    assert found == pytest.approx(expected, abs=0.04)
    squares = [row["completion"] for row in rows if "square" in row["prompt"]]
    assert 0.5 < sum("x * 2;" in program for program in squares) / len(squares) < 0.8


def test_each_habit_is_a_mistake_that_runs() -> None:
    inputs = {"number": [-3, 5], "list": [[3, 4, 6, 1]], "word": ["abcd"]}
    for kind, operations in programs.OPERATIONS.items():
        for operation in operations:
            for value in inputs[kind] if operation.habit else ():
                names = {"x": value}
                exec(operation.habit, names)
                assert names["x"] != operation.apply(value), operation.words


def test_no_constant_passes_the_tests_of_a_task() -> None:
    for row in prompts(300, 2):
        assert len({test.partition(" == ")[2] for test in row["tests"]}) > 1, row
