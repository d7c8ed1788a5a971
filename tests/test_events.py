"""Long work: said when it lasts, seldom, with the right counts, to whoever listens, and otherwise not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY

from rlhfctl import events
from rlhfctl.events import Event, FanOut, Work, Working, from_record, report_progress_to
from rlhfctl.pipeline import Request, run
from rlhfctl.recipe.load import load_recipe


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(events, "time", found)
    return found


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    found: list[Event] = []
    with report_progress_to(found.append, "sft"):
        yield found


def said(heard: list[Event]) -> list[tuple[str, int, int | None, float, bool]]:
    assert all(isinstance(event, Working) and event.stage == "sft" for event in heard)
    return [(e.what, e.done, e.total, e.seconds, e.over) for e in heard if isinstance(e, Working)]


def test_quick_work_is_silent_if_it_is_counted(clock: Clock, heard: list[Event]) -> None:
    for _ in Work("encoding", 90).through(range(90)):
        clock.now += 0.01
    assert heard == []
    with Work("loading"):
        clock.now += 0.01
    assert said(heard) == [("loading", 0, None, 0.0, False), ("loading", 0, None, 0.01, True)]


def test_long_work_is_said_at_most_four_times_a_second_and_once_at_its_end(clock: Clock, heard: list[Event]) -> None:
    for _ in Work("encoding", 1000, "pair").through(range(1000)):
        clock.now += 0.01
    lines = said(heard)
    assert lines[0] == ("encoding", 100, 1000, 1.0, False)
    assert [round(line[3], 2) for line in lines[:3]] == [1.0, 1.25, 1.5]
    assert 35 <= len(lines) <= 1 + 36 + 1  # ten seconds
    assert lines[-1] == ("encoding", 1000, 1000, 10.0, True)
    assert {event.unit for event in heard if isinstance(event, Working)} == {"pair"}


def test_an_error_ends_it_too_and_work_may_lie_in_work(clock: Clock, heard: list[Event]) -> None:
    with pytest.raises(ZeroDivisionError), Work("loading x"):
        for index in Work("loading weights", 4, "part").through(range(4)):
            clock.now += 1.0
            assert index < 2 or 1 / 0
    assert [(what, done, over) for what, done, _, _, over in said(heard)] == [
        ("loading x", 0, False),
        ("loading weights", 1, False),
        ("loading weights", 2, False),
        ("loading weights", 2, True),
        ("loading x", 0, True),
    ]


def test_without_anybody_to_tell_it_is_silent(clock: Clock) -> None:
    found: list[Event] = []
    with report_progress_to(found.append, "sft"):
        pass
    for _ in Work("encoding", 9).through(range(9)):
        clock.now += 1.0
    with Work("loading"):
        clock.now += 1.0
    assert found == []


def test_it_reads_back_as_what_it_was(clock: Clock, heard: list[Event]) -> None:
    with Work("loading"):
        pass
    assert [from_record(event.to_record()) for event in heard] == heard


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Working]]:
    """All that a whole run says about its work where none is too quick for a word: (stage, what) -> in order."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "tiny.yaml").write_text(TINY.replace("reward:\n", "reward:\n  lora: null\n"), encoding="utf-8")
    (folder / "run").mkdir()
    found: dict[tuple[str, str], list[Working]] = defaultdict(list)

    def listen(event: Event) -> None:
        if isinstance(event, Working):
            found[event.stage, event.what.replace(str(folder), "")].append(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "WORK_QUIET_S", 0.0)
        patch.setattr(events, "WORK_EVERY_S", 0.0)
        loaded = load_recipe(folder / "tiny.yaml", ["reward.trainer.eval_strategy=epoch"])
        run(loaded, folder / "run", Request(), FanOut([listen]))
    return found


@pytest.mark.parametrize(
    ("stage", "what", "unit", "total"),
    [
        ("run", "checking demonstrations", "row", 96),
        ("run", "checking preferences", "row", 64),
        ("run", "checking prompts", "row", 60),
        ("sft", "encoding demonstrations", "row", 96),
        ("sft", "loading weights", "part", None),
        ("reward", "encoding pairs", "pair", 48),
        ("reward", "evaluating", "batch", 2),
        ("reward", "scoring the held-out pairs", "response", 32),
        ("reward", "writing model shards", "part", 1),
        ("ppo", "encoding prompts", "prompt", 42),
        ("ppo", "answering the eval prompts", "response", 6),
        ("ppo", "sampling", "response", 16),
        ("ppo", "scoring", "response", 16),
        ("ppo", "asking the reference", "batch", 1),
        ("ppo", "asking the critic", "batch", 1),
        ("ppo", "learning", "minibatch", 4),
        ("compare", "sampling the policy", "response", 12),
        ("compare", "sampling the reference", "response", 12),
        ("compare", "scoring", "response", 24),
        ("compare", "measuring KL", "response", 12),
    ],
)
def test_a_run_counts_its_work(
    told: dict[tuple[str, str], list[Working]], stage: str, what: str, unit: str, total: int | None
) -> None:
    lines = told[stage, what]
    ends = [line for line in lines if line.over]
    assert ends, sorted(told)
    for line in ends:
        assert line.done == line.total and line.unit == unit
    assert total is None or total in {line.total for line in ends}
    before = 0
    for line in lines:
        assert 0 <= before <= line.done <= (line.total or 0)
        before = 0 if line.over else line.done


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        ("run", "making prompts"),
        ("sft", "loading libraries"),
        ("sft", "learning the vocabulary"),
        ("sft", "preparing the batches"),
        ("reward", "loading /run/sft/model"),
        ("reward", "checking the files of /run/sft"),
        ("ppo", "hashing what was made"),
        ("compare", "merging the adapter"),
        ("compare", "judging with gold"),
    ],
)
def test_a_run_says_what_cannot_be_counted(told: dict[tuple[str, str], list[Working]], stage: str, what: str) -> None:
    lines = told[stage, what]
    assert len(lines) % 2 == 0 and len(lines) > 0, sorted(told)
    assert [line.over for line in lines] == [False, True] * (len(lines) // 2)
    assert all(line.total is None for line in lines)


def test_a_large_file_is_counted_by_its_lines(
    tmp_path: Path, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhfctl.data.sources import read_file

    monkeypatch.setattr(events, "WORK_QUIET_S", 0.0)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n' * 50)
    (tmp_path / "a.csv").write_text("prompt\n" + "x\n" * 50)
    for name, lines in (("a.jsonl", 50), ("a.csv", 51)):
        heard.clear()
        assert len(read_file(tmp_path / name)[0]) == 50
        assert [(e.what, e.done, e.total, e.unit) for e in heard[-1:] if isinstance(e, Working) and e.over] == [
            (f"reading {name}", lines, lines, "line")
        ]
