"""Generate the data sets of `builtin:programs`: small programming tasks, with tests, and demonstrations.

A task is a chain of two or three operations on a number, a list of small numbers or a word, said in plain words:

    list: sort, take the first 2, sum

A program does one operation per statement, as the body of `def f(x):`, so that its beginnings are programs, too:

    x = sorted(x); x = x[:2]; x = sum(x); return x

Each task has tests on inputs that are drawn for it. Many demonstrations are wrong, as programs of many authors are:
some operations are mostly written with the same mistake (`habit`: `x = x * 2` for a square), and a share of all
programs has another operation, a name that does not exist, or broken syntax. A model that imitates the demonstrations
makes these mistakes, the habitual ones also greedily, and must learn from the tests what is right.

Demonstrations and prompts have no task in common. Each set has a random stream of its own, and its first n rows do not
depend on the number of rows.

Reads and writes no files, and runs none of the programs: the expected values are computed by the operations themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from rlhfctl.errors import DataError

NUMBER, LIST, WORD = "number", "list", "word"
TESTS = 5
"""Tests of a task, on different inputs where there are as many."""
HABIT_RATE = 0.65
"""Share of the operations with a habitual mistake that demonstrations write in this way."""
SLIP_RATE = 0.15
"""Share of the demonstrations that have one more mistake."""
SLIPS = {"other": 0.4, "name": 0.3, "syntax": 0.3}
"""What this mistake is: another operation, an unknown name (runtime error), or no Python."""
SHARE_OF_DEMONSTRATIONS = 0.5
"""Share of all tasks that demonstrations are drawn from; prompts have the rest."""
_DEMONSTRATIONS, _PROMPTS = range(2)


@dataclass(frozen=True)
class Operation:
    """One operation: what it is called, its statement, what it does to a value, and how it is often mistaken."""

    words: str
    code: str
    apply: Callable[[Any], Any]
    habit: str = ""  # a wrong statement that many write; "" if there is none


Task = tuple[str, tuple[Operation, ...]]
"""What the task works on, and its operations."""


def _with(number: int, words: str, code: str, apply: Callable[[Any, int], Any], habit: str = "") -> Operation:
    numbers = {"k": number, "less": number - 1}
    return Operation(
        words.format(**numbers), code.format(**numbers), lambda value: apply(value, number), habit.format(**numbers)
    )


_SLICES = [
    *(_with(k, "take the first {k}", "x = x[:{k}]", lambda x, k: x[:k], "x = x[:{less}]") for k in (2, 3)),
    *(_with(k, "drop the first {k}", "x = x[{k}:]", lambda x, k: x[k:]) for k in (1, 2)),
    Operation("reverse", "x = x[::-1]", lambda x: x[::-1]),
]
OPERATIONS: dict[str, list[Operation]] = {
    NUMBER: [
        *(_with(k, "add {k}", "x = x + {k}", lambda x, k: x + k) for k in (1, 2, 3, 4, 5)),
        *(_with(k, "subtract {k}", "x = x - {k}", lambda x, k: x - k) for k in (1, 2, 3, 4, 5)),
        *(_with(k, "multiply by {k}", "x = x * {k}", lambda x, k: x * k) for k in (2, 3, 4)),
        *(_with(k, "subtract from {k}", "x = {k} - x", lambda x, k: k - x, "x = x - {k}") for k in (7, 8, 9)),
        Operation("square", "x = x ** 2", lambda x: x**2, "x = x * 2"),
        Operation("negate", "x = -x", lambda x: -x),
    ],
    LIST: [
        *_SLICES,
        *(_with(k, "add {k} to each", "x = [i + {k} for i in x]", lambda x, k: [i + k for i in x]) for k in (1, 2, 3)),
        Operation("sort", "x = sorted(x)", sorted),
        Operation("double each", "x = [i * 2 for i in x]", lambda x: [i * 2 for i in x]),
        Operation(
            "keep the even",
            "x = [i for i in x if i % 2 == 0]",
            lambda x: [i for i in x if i % 2 == 0],
            "x = [i for i in x if i % 2]",
        ),
    ],
    WORD: [
        *_SLICES,
        *(_with(k, "repeat {k} times", "x = x * {k}", lambda x, k: x * k) for k in (2, 3)),
        *(
            Operation(f"append {end}", f"x = x + '{end}'", lambda x, end=end: x + end)  # type: ignore[misc]
            for end in ("a", "b", "c")
        ),
        Operation("upper case", "x = x.upper()", str.upper, "x = x.title()"),
    ],
}
"""Operations that give what they take, by what they work on."""
ENDINGS: dict[str, list[Operation]] = {
    LIST: [
        Operation("sum", "x = sum(x)", sum),
        Operation("count", "x = len(x)", len),
    ],
    WORD: [Operation("count", "x = len(x)", len)],
}
"""Operations that turn a list or a word into a number: they come last."""


@cache
def tasks() -> tuple[tuple[Task, ...], ...]:
    """List all tasks, one tuple for each thing that they work on: chains of two and of three operations.

    Chains that give nearly every input the same result are left out.
    """
    found = []
    for kind, operations in OPERATIONS.items():
        chains: list[tuple[Operation, ...]] = [*product(operations, repeat=2), *product(operations, repeat=3)]
        for length in (1, 2):
            begins = product(operations, repeat=length)
            chains += [(*begin, ending) for begin in begins for ending in ENDINGS.get(kind, ())]
        found.append(tuple((kind, chain) for chain in chains if _is_telling(kind, chain)))
    return tuple(found)


def _is_telling(kind: str, chain: Sequence[Operation]) -> bool:
    """Tell whether a chain gives several results on a few inputs: a constant would pass the tests of others."""
    return len({repr(_applied(chain, value)) for value in _inputs(np.random.default_rng(0), kind)}) > TESTS // 2


def prompt_of(task: Task) -> str:
    """Write a task as a prompt: what it works on, and its operations in words."""
    kind, chain = task
    return f"{kind}: {', '.join(operation.words for operation in chain)}\n"


def program_of(chain: Sequence[Operation]) -> str:
    """Write the statements of a chain as the body of a function, with a space before it."""
    return _body([operation.code for operation in chain])


def _body(statements: Sequence[str]) -> str:
    return " " + "; ".join([*statements, "return x"])


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, 1])


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


@cache
def _pools() -> tuple[tuple[tuple[Task, ...], ...], ...]:
    """Divide the tasks: for demonstrations and for prompts, by what they work on."""
    rng = np.random.default_rng(0)
    pools: tuple[list[tuple[Task, ...]], list[tuple[Task, ...]]] = ([], [])
    for group in tasks():
        order = rng.permutation(len(group))
        cut = round(len(group) * SHARE_OF_DEMONSTRATIONS)
        for pool, part in zip(pools, (order[:cut], order[cut:]), strict=True):
            pool.append(tuple(group[int(index)] for index in part))
    return tuple(tuple(pool) for pool in pools)


def _input(rng: np.random.Generator, kind: str) -> Any:
    if kind == NUMBER:
        return int(rng.integers(-9, 10))
    count = int(rng.integers(3, 6))
    if kind == LIST:
        return [int(value) for value in rng.integers(0, 10, count)]
    return "".join(_pick(rng, "abcdefgh") for _ in range(count))


def _applied(chain: Sequence[Operation], value: Any) -> Any:
    for operation in chain:
        value = operation.apply(value)
    return value


def _inputs(rng: np.random.Generator, kind: str) -> list[Any]:
    inputs: list[Any] = []
    while len(inputs) < TESTS:
        if (drawn := _input(rng, kind)) not in inputs:
            inputs.append(drawn)
    return inputs


def assertions(task: Task, rng: np.random.Generator) -> list[str]:
    """Write the tests of a task on TESTS different inputs: assertions on the function `f`."""
    kind, chain = task
    while True:
        inputs = _inputs(rng, kind)
        results = [repr(_applied(chain, value)) for value in inputs]
        if len(set(results)) > 1:  # else a constant would pass
            return [f"assert f({value!r}) == {result}" for value, result in zip(inputs, results, strict=True)]


def _written(task: Task, rng: np.random.Generator) -> str:
    """Write a program as one of many authors might: with habitual mistakes, and sometimes a slip."""
    chain, slip = task[1], ""
    if rng.random() < SLIP_RATE:
        slip = list(SLIPS)[int(rng.choice(len(SLIPS), p=list(SLIPS.values())))]
    if slip == "other":
        chain = tuple(_other_chain(task, rng))
    mistaken = rng.random(len(chain)) < HABIT_RATE
    statements = [one.habit if one.habit and wrong else one.code for one, wrong in zip(chain, mistaken, strict=True)]
    place = int(rng.integers(len(chain)))
    if slip == "name":
        statements[place] = "x = y"
    elif slip == "syntax":
        statements[place] = statements[place].replace("= ", "", 1)
    return _body(statements)


def _other_chain(task: Task, rng: np.random.Generator) -> list[Operation]:
    """Replace one operation by another that gives another result on some input."""
    kind, chain = task
    inputs = _inputs(rng, kind)
    wanted = [_applied(chain, value) for value in inputs]
    for place in rng.permutation(len(chain)):
        options = OPERATIONS[kind] + (ENDINGS.get(kind, []) if place == len(chain) - 1 else [])
        for index in rng.permutation(len(options)):
            other = [*chain[:place], options[int(index)], *chain[place + 1 :]]
            if [_applied(other, value) for value in inputs] != wanted:
                return other
    raise AssertionError("unreachable: a task that gives several results has an operation that matters")


def demonstrations(rows: int, seed: int) -> list[dict[str, str]]:
    """Generate tasks with programs, many of them wrong: rows of prompt and completion."""
    rng = _stream(seed, _DEMONSTRATIONS)
    pool, result = _pools()[_DEMONSTRATIONS], []
    for _ in range(rows):
        task: Task = _pick(rng, _pick(rng, pool))
        result.append({"prompt": prompt_of(task), "completion": _written(task, rng)})
    return result


def prompts(rows: int, seed: int) -> list[dict[str, Any]]:
    """Generate distinct tasks with their tests, as many on numbers as on lists and words while there are such.

    Raises DataError if `rows` is more than there are.
    """
    groups = _pools()[_PROMPTS]
    total = sum(map(len, groups))
    if not 0 <= rows <= total:
        raise DataError(
            f"builtin:programs has {total} distinct prompts, {rows} were asked for",
            fix=f"set rows between 0 and {total}",
        )
    rng = _stream(seed, _PROMPTS)
    orders = [list(rng.permutation(len(group))) for group in groups]
    result: list[dict[str, Any]] = []
    while len(result) < rows:
        for group, order in zip(groups, orders, strict=True):
            if order and len(result) < rows:
                task = group[int(order.pop())]
                result.append({"prompt": prompt_of(task), "tests": assertions(task, rng)})
    return result
