"""Turn a row's tests into checks whose expected results stay outside the sandbox.

A row's tests are one text or a list of texts of Python (assertions, as in MBPP and HumanEval), or a list of
{"input", "output"} for programs that read and print (as in APPS). `assert EXPRESSION == LITERAL` becomes a check that
evaluates EXPRESSION inside, and compares the result with LITERAL outside: the program cannot see what is expected, and
cannot claim to be equal to it. Other assertions and statements are executed inside; a program that is written to cheat
can make them pass.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhfctl.errors import RewardFailed
from rlhfctl.sandbox.values import as_text

Kind = Literal["value", "truth", "run", "io"]
_SHOWN = 80  # characters of a test in a message
_FIX = (
    "give each row its tests as Python assertions (a text or a list of texts), or as a list of "
    '{"input": ..., "output": ...}'
)


@dataclass(frozen=True)
class Check:
    """What to do inside (`kind`, `source`, see zygote.run_checks), and the text that must come out (`expected`)."""

    kind: Kind
    source: str
    expected: str

    def holds(self, result: str) -> bool:
        """Tell whether a result is the expected one; printed text is compared without white space at line ends."""
        return (_printed(result) if self.kind == "io" else result) == self.expected


def checks_of(tests: Any) -> tuple[Check, ...]:
    """Turn the tests of a row into checks. RewardFailed if they are no tests, or none at all."""
    given = [tests] if isinstance(tests, str | Mapping) else tests
    if not isinstance(given, Sequence) or not given:
        raise _no_tests(tests, "are neither text nor a list")
    checks: list[Check] = []
    for test in given:
        if isinstance(test, str):
            checks += _of_python(test)
        elif isinstance(test, Mapping) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
            checks.append(Check("io", test["input"], _printed(test["output"])))
        else:
            raise _no_tests(test, "are neither text nor input and output")
    if not checks:
        raise _no_tests(tests, "say nothing")
    return tuple(checks)


def _of_python(source: str) -> list[Check]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise _no_tests(source, f"are no Python ({error})") from error
    if not all(isinstance(node, ast.Assert) for node in tree.body):
        return [Check("run", source, "passed")]
    return [_of_assertion(node.test) for node in tree.body if isinstance(node, ast.Assert)]


def _of_assertion(test: ast.expr) -> Check:
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        try:
            expected = as_text(ast.literal_eval(test.comparators[0]))
        except ValueError:  # no literal, or a very long one
            pass
        else:
            return Check("value", ast.unparse(test.left), expected)
    return Check("truth", ast.unparse(test), as_text(True))


def _printed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _no_tests(tests: Any, why: str) -> RewardFailed:
    return RewardFailed(f"the tests of a row {why}: {str(tests)[:_SHOWN]!r}", where="reward unit_tests", fix=_FIX)
