"""Let several machines work on the stages of one run: the first one decides and publishes, the others follow.

    first machine:  pipeline ─▶ Leader ── stage, files ──▶ ┐            ┌─▶ processes of the stage ◀─┐
    other machines:             follow ◀───────────────────┘ ─▶ start ──┘      (torch.distributed)   │
                                   └──────────────────────────▶ start ───────────────────────────────┘

The same command is given on every machine, with its number. A follower asks the first machine what to do, over one
connection per machine that lasts for the whole run. Each side takes the end of the connection for the end of the other:
nothing is left running when a machine is gone. If a follower does not find the run's folder, it works in a temporary
one, and the first machine sends the files that the stage reads.

Messages are lines of JSON; a file follows its line as plain bytes. The network between the machines must be trusted, as
torch.distributed requires, too. Leaves out the processes of one machine (launching.py).

Longer than 400 lines because the two sides of one conversation are read together.
"""

from __future__ import annotations

import json
import queue
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rlhfctl
from rlhfctl.artifacts import WORK
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Work
from rlhfctl.launching import Cause, Launcher, end, find_cause
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.schema import Launch
from rlhfctl.stage_process import TOKEN, program

_PIECE = 1 << 20  # bytes of a file that are read at once
_LOOK_EVERY_S = 0.1
_TRY_AGAIN_S = 1.0
_PATIENCE_S = 3600.0  # how long a machine waits for the first one, or the first one for the others
_FAREWELL_S = 5.0  # how long the first machine waits at the end for the others to have read what it said
_TASK = Path("process") / "task.json"

Message = dict[str, Any]


# ---------------------------------------------------------------- the connection


class _Line:
    """One connection: messages in both directions, and files."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        # Nothing is read ahead: what `select` on the connection does not see has not been read, either.
        self.reader = connection.makefile("rb", buffering=0)
        self.writer = connection.makefile("wb")
        _notice_lost_machines(connection)

    def send(self, **message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")
        self.writer.flush()

    def read(self) -> Message | None:
        """Return the next message; None if the other side is gone."""
        try:
            line = self.reader.readline()
        except OSError:
            return None
        return dict(json.loads(line)) if line.endswith(b"\n") else None

    def send_file(self, root: Path, file: Path) -> None:
        size = file.stat().st_size
        self.send(kind="file", path=file.relative_to(root).as_posix(), size=size)
        with file.open("rb") as source:
            while size and (piece := source.read(min(_PIECE, size))):
                self.writer.write(piece)
                size -= len(piece)
        self.writer.flush()
        if size:
            fix = "let nothing else write into the run folder; the same command goes on"
            raise RlhfctlError("the file became shorter while it was sent to another machine", where=str(file), fix=fix)

    def read_file(self, root: Path, message: Message) -> None:
        """Write the file that a message announces below `root`."""
        file = (root / message["path"]).resolve()
        if not file.is_relative_to(root.resolve()):
            fix = "use the same rlhfctl on all machines, and check that --main-process-ip names the first of them"
            raise RlhfctlError("the first machine sent a file outside the run folder", where=str(file), fix=fix)
        file.parent.mkdir(parents=True, exist_ok=True)
        left = int(message["size"])
        with file.open("wb") as target:
            while left:
                piece = self.reader.read(min(_PIECE, left))
                if not piece:
                    raise _gone()
                target.write(piece)
                left -= len(piece)

    def tell(self, **message: Any) -> None:
        """Send a message that the other side may no longer want: if it is gone, the next read says so."""
        with suppress(OSError):
            self.send(**message)

    def end_sending(self) -> None:
        """Let the other side read what was sent, and then the end; what it still sends is read here."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.connection.close()


def _notice_lost_machines(connection: socket.socket) -> None:
    """Let the connection end within about 20 seconds when the other machine is switched off, or its network is cut."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        with suppress(AttributeError, OSError):  # another system, or no TCP
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _gone() -> RlhfctlError:
    return RlhfctlError(
        "the first machine has ended",
        fix="see its message; then give the same commands again on all machines: the run resumes",
    )


# ---------------------------------------------------------------- the first machine


class Leader:
    """What the first machine tells the others (launching.Others): when to start which stage, with which files."""

    def __init__(self, launch: Launch, root: Path) -> None:
        self.launch = launch
        self.root = root
        self.lines: dict[int, _Line] = {}
        self.said: queue.Queue[tuple[int, Message]] = queue.Queue()  # by the other machines, while a stage runs
        self.found: Cause | None = None  # why processes of another machine ended, in the stage that runs
        self.token = ""  # of the stage that runs; an answer about an earlier one may come late, and is passed over
        self.working: dict[int, _Line] = {}  # the connections of the stage that runs
        self.changed = threading.Condition()
        assert launch.main_process_ip is not None
        try:
            self.server = socket.create_server((launch.main_process_ip, launch.main_process_port))
        except OSError as error:
            raise RlhfctlError(
                f"this machine cannot listen at {launch.main_process_ip}, port {launch.main_process_port}: "
                f"{error.strerror}",
                where="launch.main_process_ip",
                fix="give the address of the first machine, a free port (--main-process-port), and --machine-rank to "
                "all machines but the first",
            ) from error
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        """Let machines in, for as long as the server is open; a machine that comes again replaces itself."""
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(_Line(connection),), daemon=True).start()

    def _greet(self, line: _Line) -> None:
        hello = line.read() or {}
        number, wrong = hello.get("machine"), self._wrong(hello)
        if wrong is not None:
            line.tell(kind="refused", why=wrong)
            line.close()
            return
        assert isinstance(number, int)
        with self.changed:
            if (old := self.lines.get(number)) is not None:
                old.close()
            self.lines[number] = line
            self.changed.notify_all()
        while (message := line.read()) is not None:
            self.said.put((number, message))
        with self.changed:
            if self.lines.get(number) is line:
                del self.lines[number]
                self.changed.notify_all()
        self.said.put((number, {"kind": "gone", "line": line}))

    def _wrong(self, hello: Message) -> str | None:
        """Tell why a machine is not let in; None if it is."""
        expected = {
            "version": rlhfctl.__version__,
            "machines": self.launch.num_machines,
            "processes": self.launch.num_processes,
        }
        for name, value in expected.items():
            if hello.get(name) != value:
                return f"this machine has {name} {hello.get(name)}, the first one {value}"
        number = hello.get("machine")
        if not isinstance(number, int) or not 0 < number < self.launch.num_machines:
            return f"there is no machine {number}: the ranks are 0 to {self.launch.num_machines - 1}"
        return None

    def begin(self, stage: str, files: Sequence[str], token: str) -> int:
        """Wait for all machines, give them the `files` that they lack, let them start; return the port to meet at."""
        count = self.launch.num_machines - 1
        with Work(f"waiting for {count} other machine{'s' * (count > 1)}"), self.changed:
            if not self.changed.wait_for(lambda: len(self.lines) == count, _PATIENCE_S):
                raise RlhfctlError(
                    f"{count - len(self.lines)} of {count} other machines did not come",
                    fix="give the command there, too, with --machine-rank",
                )
            lines = dict(self.lines)
        self.found, self.token, self.working = None, token, lines
        for number, line in lines.items():
            with _naming(number):
                line.send(kind="stage", stage=stage, token=token)
        waiting = set(lines)
        while waiting:
            number, message = self._next_answer(None)
            if message["kind"] == "gone":
                raise RlhfctlError(f"machine {number} has gone", fix="give the command there again, and here")
            if message["kind"] == "needs":
                with _naming(number), Work(f"sending the stage's files to machine {number}"):
                    for file in _all_files(self.root, files):
                        lines[number].send_file(self.root, file)
            waiting.discard(number)
        with socket.socket() as free:
            free.bind(("", 0))
            port = int(free.getsockname()[1])
        for number, line in lines.items():
            with _naming(number):
                line.send(kind="go", port=port)
        return port

    def _next_answer(self, until: float | None) -> tuple[int, Message]:
        """Return the next message about the stage that runs, or that a machine has gone; queue.Empty after `until`."""
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            number, message = self.said.get(timeout=left)
            lost = message["kind"] == "gone" and message["line"] is self.working.get(number)
            if lost or message.get("token") == self.token:
                return number, message

    def fault(self, wait_s: float = 0.0) -> Cause | None:
        """Return why the processes of another machine ended, if they did; wait up to `wait_s` for it.

        A process that only lost its partner is the cause as long as no machine names another one.
        """
        until = time.monotonic() + wait_s
        while self.found is None or self.found.lost_partner:
            try:
                number, message = self._next_answer(until)
            except queue.Empty:
                break
            if message["kind"] == "failed":
                self.found = Cause(**message["cause"])
            elif message["kind"] == "gone":
                lines = "    (its command has ended, or it is no longer reached)"
                self.found = Cause(-1, f"is missing, because machine {number} has gone", lines, f"machine {number}")
        return self.found

    def stop(self) -> None:
        """End the processes of all other machines."""
        for line in list(self.lines.values()):
            line.tell(kind="stop")

    def close(self, *, done: bool) -> None:
        """Let the other machines go: the run is done, or this machine's command has failed.

        A connection is closed after the other machine has closed it: one that is closed earlier breaks what it sends.
        """
        self.server.close()
        for line in list(self.lines.values()):
            line.tell(kind="done" if done else "broken")
            line.end_sending()
        with self.changed:
            self.changed.wait_for(lambda: not self.lines, _FAREWELL_S)
        for line in list(self.lines.values()):
            line.close()


@contextmanager
def leading(launch: Launch | None, root: Path) -> Iterator[Leader | None]:
    """Lead the other machines of a run while the block runs; None if there are none."""
    if launch is None or launch.num_machines == 1:
        yield None
        return
    leader, done = Leader(launch, root), False
    try:
        yield leader
        done = True
    finally:
        leader.close(done=done)


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Turn the error of a broken connection into one that names the machine."""
    try:
        yield
    except OSError as error:
        raise RlhfctlError(
            f"machine {number} is no longer reached: {error}", fix="give the command there again, and here"
        ) from error


def _all_files(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """List the files of `names`, which may be folders; the work folders of complete stages are left out."""
    for name in names:
        path = root / name
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())


# ---------------------------------------------------------------- the other machines


def follow(launch: Launch, machine: int, run: Path, say: Callable[[str], None]) -> None:
    """Work on the stages that the first machine starts, until it says that the run is done.

    `run`: where the run's folder is if this machine shares it. RlhfctlError if the first machine ends before its run.
    """
    line = _reach(launch, machine, say)
    try:
        with tempfile.TemporaryDirectory(prefix="rlhfctl-") as name:
            while (message := line.read()) is not None:
                if message["kind"] == "done":
                    say("the first machine has finished the run")
                    return
                if message["kind"] == "refused":
                    raise RlhfctlError(message["why"], fix="give all machines the same command, but for --machine-rank")
                if message["kind"] == "stage":
                    _work_on(message, launch, machine, (run, Path(name)), line, say)
                if message["kind"] == "broken":
                    break
        raise _gone()
    finally:
        line.close()


def _reach(launch: Launch, machine: int, say: Callable[[str], None]) -> _Line:
    """Connect to the first machine, which may start later than this one."""
    address = (launch.main_process_ip, launch.main_process_port)
    until, waited = time.monotonic() + _PATIENCE_S, False
    while True:
        try:
            connection = socket.create_connection(address, timeout=_TRY_AGAIN_S * 10)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise RlhfctlError(
                    f"the first machine is not reached at {address[0]}, port {address[1]}: {error}",
                    where="launch.main_process_ip",
                    fix="give the command there, too (without --machine-rank), and see that the port is open",
                ) from error
            if not waited:
                say(f"waiting for the first machine at {address[0]}, port {address[1]}")
            waited = True
            time.sleep(_TRY_AGAIN_S)
    connection.settimeout(None)
    line = _Line(connection)
    sizes = {"machines": launch.num_machines, "processes": launch.num_processes}
    line.send(kind="hello", machine=machine, version=rlhfctl.__version__, **sizes)
    say(f"machine {machine} of {launch.num_machines}: connected to the first machine")
    return line


def _work_on(
    message: Message, launch: Launch, machine: int, roots: tuple[Path, Path], line: _Line, say: Callable[[str], None]
) -> None:
    """Start this machine's processes of a stage and watch them; `roots`: the shared run folder and a temporary one."""
    stage, token = message["stage"], message["token"]
    shared = _token_in(roots[0], stage) == token
    root = roots[0] if shared else roots[1]
    line.tell(kind="has" if shared else "needs", token=token)
    while True:
        message = line.read() or {"kind": "gone"}
        if message["kind"] in ("gone", "broken"):
            raise _gone()
        if message["kind"] == "stop":
            return
        if message["kind"] == "file":
            line.read_file(root, message)
        if message["kind"] == "go":
            break
    where = "the shared run folder" if shared else f"a temporary folder ({root})"
    say(f"{stage}: {launch.local_processes} of {launch.num_processes} processes, in {where}")
    folder, log = RunPaths(root).stage(stage) / WORK / _TASK.parent, RunPaths(root).log
    folder.mkdir(parents=True, exist_ok=True)
    if not shared:
        for old in (*folder.glob("process-*"), *folder.glob("launch-*")):
            old.unlink()
    process = Launcher(launch=launch, machine=machine).start(program(root, stage), folder, log, message["port"])
    stopped = False
    try:
        while process.poll() is None:
            if select.select([line.connection], [], [], _LOOK_EVERY_S)[0]:
                message = line.read() or {"kind": "gone"}
                if message["kind"] != "stop":
                    raise _gone()
                stopped = True
                break
    finally:
        end(process)
    if stopped or process.returncode == 0:
        line.tell(kind="ended", token=token)
        return
    cause = find_cause(folder, machine, log)
    say(f"{stage}: process {cause.number} {cause.what}; the first machine is told")
    line.tell(kind="failed", cause=asdict(cause), token=token)


def _token_in(run: Path, stage: str) -> str | None:
    """Return the token of the task in a run folder of this machine; None without one."""
    try:
        found = json.loads((RunPaths(run).stage(stage) / WORK / _TASK).read_text(encoding="utf-8"))[TOKEN]
    except (OSError, ValueError, KeyError):
        return None
    return str(found)
