"""The cache of answers: what was said is there again, also after a kill, and for another process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfctl.errors import RlhfctlError
from rlhfctl.judging.cache import Answer, open_cache

ANSWER = Answer('{"choice": "A"}', "stop", "judge-1", 2, 100, None)


def test_an_answer_is_kept_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / "run" / "judge-cache.sqlite"
    with open_cache(path) as cache:
        assert cache.get("k") is None
        cache.put("k", ANSWER)
        cache.put("other", Answer("B"))
        cache.put("other", Answer("A"))
    with open_cache(path) as cache:
        assert cache.get("k") == ANSWER
        assert cache.get("other") == Answer("A")
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # the log of WAL is merged when it closes


def test_an_answer_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "judge-cache.sqlite"
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom rlhfctl.judging.cache import Answer, open_cache\n"
        "with open_cache(Path(sys.argv[1])) as cache:\n    cache.put('k', Answer('A'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    with open_cache(path) as cache:
        assert cache.get("k") == Answer("A")


def test_it_is_in_write_ahead_mode(tmp_path: Path) -> None:
    with open_cache(tmp_path / "c.sqlite") as cache:
        assert cache.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("damage", ["text", "newer"])
def test_a_file_that_is_no_cache_is_named_with_a_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "judge-cache.sqlite"
    if damage == "text":
        path.write_text("this is no data base, but long enough to be looked at as one\n" * 20)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 9")
        connection.close()
    with pytest.raises(RlhfctlError, match="move the file away") as caught, open_cache(path):
        pass
    assert caught.value.where == str(path)
