"""The account of fields: each is carried, changed or left out once, and none is lost."""

from __future__ import annotations

from typing import Any

from rlhfctl.importing.findings import UNKNOWN, Draft, Fields, Job, shown


def fields(draft: Draft | None = None, **given: Any) -> tuple[Fields, Draft]:
    draft = draft or Draft()
    return Fields(Job("TRL", "ppo", given, "x.sh"), draft), draft


def told(draft: Draft) -> list[tuple[str, str]]:
    return [(finding.kind, str(finding)) for _, finding in draft.findings]


def test_a_field_is_accounted_for_once() -> None:
    given, draft = fields(a=1, b=2.0, c=None, d=True, e="x")
    given.carry("a", "ppo.a")
    given.carry("a", "ppo.again")
    given.carry("b", "ppo.b", 20, "in tenths")
    given.carry("c", "ppo.c")
    given.same("d", "as always")
    given.default("f", "ppo.f", 3)
    given.default("a", "ppo.g", 4)  # it is stated
    given.finish()
    assert draft.recipe == {"ppo": {"a": 1, "b": 20, "f": 3}}
    assert told(draft) == [
        ("carried", "a: 1 -> ppo.a: 1"),
        ("changed", "b: 2 -> ppo.b: 20 (in tenths)"),
        ("dropped", "c: null (null: the default)"),
        ("carried", "d: true (as always)"),
        ("default", "ppo.f: 3 (f)"),
        ("dropped", f"e: x ({UNKNOWN})"),
    ]


def test_two_jobs_that_disagree_about_one_key_are_told() -> None:
    _, draft = fields()
    first, _ = fields(draft, seed=1)
    first.carry("seed", "seed")
    same, _ = fields(draft, seed=1)
    same.carry("seed", "seed")
    other, _ = fields(draft, seed=2)
    other.carry("seed", "seed")
    assert draft.recipe == {"seed": 1} and [kind for kind, _ in told(draft)] == ["carried", "carried", "dropped"]
    assert "seed has one value for the whole recipe: it stays 1" in told(draft)[-1][1]


def test_values_are_shown_as_yaml_writes_them() -> None:
    assert shown([1, None, True, {"a": 1e-6}, "x"]) == "[1, null, true, {a: 1e-06}, x]"
