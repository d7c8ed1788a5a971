"""Errors become exit codes: one message for what a person can mend, a traceback for a defect."""

from __future__ import annotations

import pytest
import torch

import rlhfctl.__main__
import rlhfctl.cli


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_one_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(rlhfctl.cli, "app", fails)
    with pytest.raises(SystemExit) as left:
        rlhfctl.__main__.main()
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert said.startswith("error: memory ran out") and "halve per_device_train_batch_size" in said
    assert "See the documentation" not in said and str(error).partition("\n")[0] in said


def test_what_is_no_lack_of_memory_is_shown_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(rlhfctl.cli, "app", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        rlhfctl.__main__.main()
