"""Train small loops in one of several processes, with divided weights: `python sharded_loops.py FOLDER JSON`.

A launcher sets RANK, WORLD_SIZE and the address of the first process, which writes what came of it: found.json.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from small_loops import PROMPTS, Seen, loop_for, untimed

from rlhfctl.models import processes, scoring, sharding
from rlhfctl.models.processes import Processes

SECONDS = 280  # that all loops may take


def train(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train loops one after the other, each with the settings of one entry of `options`; return what came of them."""
    own, found = Processes.here(), {}
    for name, settings in options.items():
        loop: Seen = loop_for(folder / name, run={"processes": own}, sharded=True, **settings)
        shares = [sharding.share_here(loop.roles.modules())]
        loop.train()
        shares.append(sharding.share_here(loop.roles.modules()))
        state = {key: value.tolist() for key, value in loop.roles.state().items()}
        every = own.over(range(own.count), lambda _, now=shares: [now])
        loop.roles.policy.activate()
        sharding.reunite(loop.roles.modules(), here=own.first)
        if own.first:  # alone from here on
            found[name] = {
                "history": untimed(loop.history),
                "state": state,
                "ids": [[list(response.ids) for response in batch.responses] for batch in loop.batches],
                "shares": every,
                "logprobs": after(loop),
                "whole": sharding.share_here(loop.roles.modules()),
            }
        own.wait()
    return found


def after(loop: Seen) -> list[list[float]]:
    """The log-probabilities that the trained policy gives the prompts, by the model's own forward."""
    rows = [row for row in PROMPTS if len(row) > 1]
    loop.roles.policy.activate()
    return scoring.sequence_logprobs(loop.roles.policy.model, rows, loop.roles.policy.pad_token_id)


def in_processes(count: int, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Start `count` processes that train the loops of `options` together; return what they found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    command = [sys.executable, __file__, str(folder), json.dumps(options)]
    started = []
    for rank in range(count):
        own = (
            os.environ
            | group
            | {"PYTHONFAULTHANDLER": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        )
        with (folder / f"process-{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    try:
        ended = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert ended == [0] * count, (folder / "process-0.log").read_text()[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.join()
    result = train(Path(sys.argv[1]), json.loads(sys.argv[2]))
    if Processes.here().first:
        (Path(sys.argv[1]) / "found.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
