"""What processes share and tell each other; and a real group of two, joined as a launcher starts it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thread_processes import in_group
from torch import nn

from rlhfctl.errors import RewardFailed
from rlhfctl.models import processes
from rlhfctl.models.processes import ALONE, Processes


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 7, 64])
def test_shares_are_neighbours_of_nearly_equal_size_and_hold_everything(items: int, count: int) -> None:
    shares = [Processes(number, count).share(range(items)) for number in range(count)]
    assert [one for share in shares for one in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_does_all_and_sends_nothing() -> None:
    assert Processes.here() == ALONE and ALONE.first and ALONE.settings() == {}
    assert ALONE.over([3, 4], lambda items: [item * 2 for item in items]) == [6, 8]
    assert ALONE.from_first(lambda: "made") == "made"
    table, weight = torch.ones(2), nn.Parameter(torch.ones(2))
    ALONE.sum_over([table])
    ALONE.sum_gradients([weight])
    ALONE.copy_first([table])
    ALONE.wait()
    assert table.tolist() == [1, 1] and weight.grad is None


def test_work_is_done_once_and_all_get_every_result_in_order() -> None:
    done: list[int] = []

    def work(items: list[int]) -> list[int]:
        done.extend(items)
        return [item * item for item in items]

    made = in_group(3, lambda own: own.over(range(5), work))
    assert made == [[0, 1, 4, 9, 16]] * 3 and sorted(done) == [0, 1, 2, 3, 4]
    assert in_group(3, lambda own: own.over([7], work)) == [[49]] * 3


def test_the_first_makes_what_all_get_and_its_error_is_that_of_all() -> None:
    made: list[int] = []

    def make(own: Processes) -> str:
        made.append(own.number)
        return f"by {own.number}"

    assert in_group(3, lambda own: own.from_first(lambda: make(own))) == ["by 0"] * 3
    assert made == [0]

    def fail() -> None:
        raise RewardFailed("it failed", where="a:b", fix="mend it")

    def caught(own: Processes) -> str:
        with pytest.raises(RewardFailed, match="it failed") as error:
            own.from_first(fail)
        return f"{error.value.where} {error.value.fix}"

    assert in_group(2, caught) == ["a:b mend it"] * 2


def test_tables_are_summed_in_place_whatever_their_shape_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_BUCKET", 4)  # several messages

    def work(own: Processes) -> list[torch.Tensor]:
        rows = torch.zeros(4, 2)
        rows[own.share(range(4))] = float(own.number + 1)
        whole = [rows, torch.full((3,), 1.5, dtype=torch.float64), torch.full((2,), own.number, dtype=torch.bfloat16)]
        own.sum_over(whole)
        return whole

    for rows, halves, numbers in in_group(2, work):
        assert rows.tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]
        assert halves.tolist() == [3.0, 3.0, 3.0] and numbers.tolist() == [1, 1]


def test_gradients_are_summed_and_a_weight_that_no_process_used_keeps_none() -> None:
    def work(own: Processes) -> list[list[float] | None]:
        used, by_one, by_none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        used.grad = torch.full((2,), float(own.number + 1))
        if own.number == 1:
            by_one.grad = torch.ones(2)
        own.sum_gradients([used, by_one, by_none])
        return [one.grad.tolist() if one.grad is not None else None for one in (used, by_one, by_none)]

    assert in_group(2, work) == [[[3, 3], [1, 1], None]] * 2


def test_the_weights_of_the_first_overwrite_those_of_the_others() -> None:
    def work(own: Processes) -> list[float]:
        weight = nn.Parameter(torch.full((2, 3), float(own.number + 5)).T)  # not contiguous
        own.copy_first([weight])
        return weight.flatten().tolist()

    assert in_group(2, work) == [[5.0] * 6] * 2


PROGRAM = """\
import json, sys, torch
from rlhfctl.models import processes
from rlhfctl.models.processes import Processes
processes.join()
own = Processes.here()
table = torch.full((2,), float(own.number + 1))
own.sum_over([table])
weight = torch.nn.Parameter(torch.full((2,), float(own.number)))
own.copy_first([weight])
said = own.from_first(lambda: {"by": own.number})
every = own.over(range(5), lambda items: [[item, own.number] for item in items])
own.wait()
from accelerate import Accelerator
seen = Accelerator()
numbers = [own.number, own.count, table.tolist(), weight.tolist()]
print(json.dumps([*numbers, said, every, seen.num_processes, own.settings()]))
"""


@pytest.mark.ci
def test_a_real_group_of_two_says_the_same_and_accelerate_sees_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store["MASTER_PORT"] = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            env=os.environ | store | {"RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(2)
    ]
    said = [json.loads(one.communicate(timeout=240)[0].splitlines()[-1]) for one in started]
    for number, (own, count, table, weight, first, every, seen, settings) in enumerate(said):
        assert (own, count, seen, settings) == (number, 2, 2, {"processes": 2})
        assert table == [3.0, 3.0] and weight == [0.0, 0.0] and first == {"by": 0}
        assert every == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 1]]
