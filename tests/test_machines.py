"""The first machine and the others: who is let in, which files are sent, what is told, and what ends with what."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhfctl import machines
from rlhfctl.errors import RlhfctlError
from rlhfctl.launching import Launcher, end
from rlhfctl.machines import Leader, follow, leading
from rlhfctl.recipe.schema import Launch

TOKEN = "abc"
WELL = "pass"
FAILS = "import sys; sys.exit(3)"
RUNS_ON = "import sys; sys.stdin.read()"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def launch() -> Launch:
    port = free_port()
    return Launch(num_processes=2, num_machines=2, main_process_ip="127.0.0.1", main_process_port=port)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on the first machine, with a finished sft and a ppo under way."""
    root = tmp_path / "run"
    for name, text in (
        ("recipe.yaml", "name: x"),
        ("sft/manifest.json", "{}"),
        ("sft/model/weights", "w" * 3_000_000),
        ("reward/other", "not needed"),
        ("ppo/work/process/task.json", json.dumps({"token": TOKEN})),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


NEEDED = ["recipe.yaml", "ppo/work/process/task.json", "sft"]


class Follower:
    """A machine beside the first one, in a thread; `started`: where its processes were started."""

    def __init__(self, launch: Launch, run: Path, program: str, monkeypatch: pytest.MonkeyPatch, rank: int = 1) -> None:
        self.said: list[str] = []
        self.started: list[Path] = []
        self.files: dict[str, int] = {}
        self.error: BaseException | None = None

        def start(launcher: Launcher, words: Any, folder: Path, log: Path, port: int = 0) -> subprocess.Popen[bytes]:
            assert words[:2] == ["-m", "rlhfctl.stage_process"] and port > 0 and launcher.machine == rank
            root = log.parent
            self.started.append(root)
            self.files = {p.relative_to(root).as_posix(): p.stat().st_size for p in root.rglob("*") if p.is_file()}
            (folder / "process-1.log").write_text("the last line\n")
            return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)

        monkeypatch.setattr(Launcher, "start", start)
        self.thread = threading.Thread(target=self._work, args=(launch, run, rank))
        self.thread.start()

    def _work(self, launch: Launch, run: Path, rank: int) -> None:
        try:
            follow(launch, rank, run, self.said.append)
        except BaseException as error:  # noqa: BLE001 - tests look at it
            self.error = error

    def end(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def following(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def make(run: Path, program: str, launched: Launch = launch, rank: int = 1) -> Follower:
        made.append(Follower(launched, run, program, monkeypatch, rank))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_a_machine_with_a_folder_of_its_own_gets_the_files_that_it_needs(
    launch: Launch, run: Path, tmp_path: Path, following: Callable[..., Follower]
) -> None:
    with leading(launch, run) as leader:
        assert leader is not None
        other = following(tmp_path / "elsewhere", WELL)
        for _ in range(2):  # two stages
            leader.begin("ppo", NEEDED, TOKEN)
            leader.stop()
    other.end()
    assert other.error is None and other.said[-1] == "the first machine has finished the run"
    assert len(other.started) == 2 and other.started[0] == other.started[1] != run
    needed = {"recipe.yaml", "ppo/work/process/task.json", "sft/manifest.json", "sft/model/weights"}
    assert set(other.files) == needed
    assert other.files["sft/model/weights"] == 3_000_000
    assert not other.started[0].exists() and not (tmp_path / "elsewhere").exists()


def test_a_machine_that_shares_the_folder_works_in_it(
    launch: Launch, run: Path, following: Callable[..., Follower]
) -> None:
    with leading(launch, run) as leader:
        assert leader is not None
        other = following(run, WELL)
        leader.begin("ppo", NEEDED, TOKEN)
    other.end()
    assert other.started == [run] and "the shared run folder" in " ".join(other.said)


def test_the_first_machine_hears_of_a_process_that_fails_elsewhere(
    launch: Launch, run: Path, following: Callable[..., Follower]
) -> None:
    with leading(launch, run) as leader:
        assert leader is not None
        following(run, FAILS)
        leader.begin("ppo", NEEDED, TOKEN)
        cause = leader.fault(20)
        assert cause is not None and cause.what == "ended"
        assert leader.fault() is cause  # it is not forgotten when it has been asked for once
        leader.stop()


def test_processes_elsewhere_are_stopped_with_those_of_the_first(
    launch: Launch, run: Path, following: Callable[..., Follower]
) -> None:
    with leading(launch, run) as leader:
        assert leader is not None
        other = following(run, RUNS_ON)
        leader.begin("ppo", NEEDED, TOKEN)
        assert leader.fault(0.2) is None
        leader.stop()
    other.end()
    assert other.error is None


def test_a_machine_ends_when_the_first_one_has_failed(
    launch: Launch, run: Path, following: Callable[..., Follower]
) -> None:
    with pytest.raises(KeyboardInterrupt), leading(launch, run) as leader:
        assert leader is not None
        other = following(run, RUNS_ON)
        leader.begin("ppo", NEEDED, TOKEN)
        raise KeyboardInterrupt
    other.end()
    assert isinstance(other.error, RlhfctlError) and "the first machine has ended" in str(other.error)


def test_a_machine_that_goes_away_is_a_fault(launch: Launch, run: Path) -> None:
    with leading(launch, run) as leader:
        assert leader is not None
        with socket.create_connection(("127.0.0.1", launch.main_process_port)) as other:
            hello = {"kind": "hello", "machine": 1, "version": machines.rlhfctl.__version__}
            lines = [hello | {"machines": 2, "processes": 2}, {"kind": "has", "token": TOKEN}]
            other.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            leader.begin("ppo", NEEDED, TOKEN)
        cause = leader.fault(20)
        assert cause is not None and "machine 1 has gone" in cause.what


def test_an_answer_about_an_earlier_stage_is_not_taken_for_one_about_this_stage(
    launch: Launch, run: Path, tmp_path: Path, following: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []

    def slowly(process: Any) -> None:  # the first machine is ahead: at the next stage, and then at its end
        time.sleep(0.7)
        end(process)
        ended.append(time.monotonic())

    monkeypatch.setattr(machines, "end", slowly)
    with leading(launch, run) as leader:
        assert leader is not None
        other = following(tmp_path / "elsewhere", RUNS_ON)
        for token in (TOKEN, "another"):
            (run / "ppo" / "work" / "process" / "task.json").write_text(json.dumps({"token": token}))
            leader.begin("ppo", NEEDED, token)
            assert leader.fault() is None
            leader.stop()
    assert len(ended) == 2  # the first machine leaves when the other one has ended
    other.end()
    assert other.error is None and other.said[-1] == "the first machine has finished the run"
    assert "sft/model/weights" in other.files and len(other.started) == 2


def test_an_end_that_comes_together_with_the_beginning_is_heard(
    launch: Launch, run: Path, following: Callable[..., Follower]
) -> None:
    with socket.create_server(("127.0.0.1", launch.main_process_port)) as server:
        other = following(run, RUNS_ON)
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)  # hello
            said = [{"kind": "stage", "stage": "ppo", "token": TOKEN}, {"kind": "go", "port": 1}, {"kind": "stop"}]
            connection.sendall(b"".join(json.dumps(one).encode() + b"\n" for one in said))
            heard = b""
            connection.settimeout(20)
            while b"ended" not in heard:  # TimeoutError if its process runs on
                heard += connection.recv(1 << 16)
            connection.sendall(json.dumps({"kind": "done"}).encode() + b"\n")
            other.end()
    assert other.error is None and len(other.started) == 1


@pytest.mark.parametrize(
    ("changed", "rank", "why"),
    [({"num_processes": 4}, 1, "has processes 4, the first one 2"), ({}, 2, "there is no machine 2")],
)
def test_a_machine_of_another_command_is_not_let_in(
    changed: dict[str, Any], rank: int, why: str, launch: Launch, run: Path, following: Callable[..., Follower]
) -> None:
    with leading(launch, run):
        other = following(run, WELL, launch.model_copy(update=changed), rank)
        other.end()
    assert isinstance(other.error, RlhfctlError) and why in str(other.error)


def test_a_file_for_a_place_outside_the_run_is_refused(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(RlhfctlError, match="outside the run folder"):
        machines._Line(one).read_file(tmp_path / "run", {"path": "../evil", "size": 0})
    assert not (tmp_path / "evil").exists()


def test_an_address_that_cannot_be_used_is_one_message(run: Path, launch: Launch) -> None:
    with pytest.raises(RlhfctlError, match="this machine cannot listen at 203"):
        Leader(launch.model_copy(update={"main_process_ip": "203.0.113.1"}), run)
    with leading(None, run) as none, leading(Launch(num_processes=2), run) as alone:
        assert none is None and alone is None
