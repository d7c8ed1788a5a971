"""The choice of a confinement: Landlock, else bubblewrap, else one refusal that says what to install."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rlhfctl.errors import EngineError
from rlhfctl.sandbox import confine, modes


def choose_with(monkeypatch: pytest.MonkeyPatch, *, seccomp: bool, landlock: int, bwrap: str | None) -> str:
    monkeypatch.setattr(confine, "has_seccomp", lambda: seccomp)
    monkeypatch.setattr(confine, "landlock_abi", lambda: landlock)
    monkeypatch.setattr(shutil, "which", lambda name: bwrap)
    return modes.choose()


def test_landlock_comes_before_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_with(monkeypatch, seccomp=True, landlock=1, bwrap="/usr/bin/bwrap") == "landlock"
    assert choose_with(monkeypatch, seccomp=True, landlock=0, bwrap="/usr/bin/bwrap") == "bubblewrap"


@pytest.mark.parametrize(("seccomp", "reason"), [(True, "no Landlock, and there is no bwrap"), (False, "Linux alone")])
def test_without_either_it_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, seccomp: bool, reason: str
) -> None:
    with pytest.raises(EngineError, match=reason) as refused:
        choose_with(monkeypatch, seccomp=seccomp, landlock=0 if seccomp else 5, bwrap=None)
    assert "apt-get install bubblewrap" in str(refused.value)


def test_programs_may_read_the_standard_library_and_not_the_users_files() -> None:
    folders = modes.readable_folders()
    assert str(Path(os.__file__).parent) in folders
    assert not {"/", "/home", "/etc", "/tmp", str(Path.home()), str(Path.cwd())} & set(folders)


def test_bubblewrap_shares_nothing_but_what_may_be_read() -> None:
    command = modes.command("bubblewrap")
    assert "--unshare-all" in command and "--bind" not in command
    bound = [command[i + 1] for i, part in enumerate(command) if part == "--ro-bind"]
    assert set(bound) >= {one for one in modes.readable_folders() if not one.startswith("/dev")}
