"""A real model behind a real server judges: `transformers serve` on a tiny random one, also slow, wrong and dead.

The model answers with one token, by its random weights: A, B, tie, or x, which is no answer. Its verdicts mean nothing;
what is tested is all between them and compare.json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import invoke, jsonl, report_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhfctl.judging import client

pytestmark = pytest.mark.slow

ANSWERS = ("A", "B", "tie", "x")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PROMPTS = 40


def make_model(folder: Path) -> None:
    """Make a model from a config whose output layer knows four tokens, and one token per byte for its input."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=259, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["tie tie tie"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8192, initializer_range=0.6, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    known = torch.zeros(len(tokenizer), 1)
    known[tokenizer.convert_tokens_to_ids(list(ANSWERS))] = 1
    with torch.no_grad():
        model.lm_head.weight.mul_(known)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "model"
    make_model(folder)
    return folder


class Server:
    """`transformers serve` in a process of its own."""

    def __init__(self, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        command = [Path(sys.executable).parent / "transformers", "serve", model, "--host", "127.0.0.1"]
        self.log = (model.parent / f"{self.port}.log").open("w")
        self.process = subprocess.Popen(
            [*map(str, command), "--port", str(self.port), "--device", "cpu"], stdout=self.log, stderr=self.log
        )

    def wait(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            assert self.process.poll() is None, Path(self.log.name).read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(Path(self.log.name).read_text())

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def server(model: Path) -> Iterator[Server]:
    serving = Server(model)
    try:
        serving.wait()
        yield serving
    finally:
        serving.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.05)


def compare(recipe: Path, folder: Path, server: Server, model: Path | str, run: Path, **section: Any) -> Any:
    for name in ("ours", "theirs"):
        texts = [f"{name} say {n * n} and {'more ' * (n % 5)}" for n in range(PROMPTS)]
        jsonl(folder / f"{name}.jsonl", [{"prompt": f"prompt {n}", "response": text} for n, text in enumerate(texts)])
    endpoint = json.dumps(
        {"base_url": server.url, "model": str(model), "key_env": None, "max_tokens": 1, "max_failed": 1.0} | section
    )
    return invoke(
        "compare", recipe, "--policy-samples", folder / "ours.jsonl", "--reference-samples", folder / "theirs.jsonl",
        "--run-dir", run, "--set", "compare.judges=[endpoint]", "--set", f"compare.endpoint={endpoint}",
    )  # fmt: skip


def test_a_real_model_judges_and_its_unreadable_answers_are_counted(
    tiny_recipe: Path, tmp_path: Path, server: Server, model: Path
) -> None:
    run = tmp_path / "run"
    result = compare(tiny_recipe, tmp_path, server, model, run)
    assert result.exit_code == 0, (result.output, result.exception)
    report = report_of(run)
    block, judge = report["endpoint"], report["judges"]["endpoint"]
    told = [json.loads(line) for line in (run / "compare" / "judgements.jsonl").read_text().splitlines()]
    failures = Counter(row["failure"] for row in told if row["failure"])
    # A question without a readable answer is asked twice; some answers become readable by that.
    assert len(told) == 2 * PROMPTS and 2 * PROMPTS + failures.total() <= block["calls"] <= 4 * PROMPTS
    said = {row["answer"] for row in told}
    assert said <= {*ANSWERS, ""} and len(said) >= 3 and failures.total() > 0  # without a token there is no answer
    for row in told:  # a token is the whole answer, so what is no choice was cut
        assert (row["choice"], row["failure"]) in [(row["answer"], None), (None, "cut at max_tokens")]
        assert (row["answer"] in ("x", "")) is (row["choice"] is None)
    # Values by hand, from the answers.
    points = {"A": 1.0, "tie": 0.5, "B": 0.0}
    values, places = [], []
    for ours, theirs in zip(told[::2], told[1::2], strict=True):
        assert (ours["first"], theirs["first"]) == ("policy", "reference")
        if ours["choice"] and theirs["choice"]:
            values.append((points[ours["choice"]] + 1 - points[theirs["choice"]]) / 2)
            places.append(points[ours["choice"]] + points[theirs["choice"]] - 1)
    assert block["failed"] == PROMPTS - len(values) > 0 and judge["prompts"] == len(values) > 0
    assert judge["policy_mean"] == pytest.approx(sum(values) / len(values))
    assert block["position_bias"] == pytest.approx(sum(places) / len(places))
    assert block["failures"] == failures
    assert block["input_tokens"] > block["calls"] * 1000 and block["output_tokens"] == block["calls"]
    assert len(block["answered_by"]) == 1 and str(model) in block["answered_by"][0]
    assert f"{block['failed']} without a usable answer are left out" in " ".join(result.output.split())
    # By default a tenth may fail: then the stage stops, and says what to do.
    strict = compare(tiny_recipe, tmp_path, server, model, tmp_path / "strict", max_failed=0.0)
    assert "gives no usable answer about" in str(strict.exception) and "raise compare.endpoint.max_tokens" in str(
        strict.exception
    )


def test_a_server_without_that_model_is_named(tiny_recipe: Path, tmp_path: Path, server: Server) -> None:
    result = compare(tiny_recipe, tmp_path, server, "another/model", tmp_path / "run")
    assert "refuses a short question: status 400" in str(result.exception)
    assert "requested 'another/model'" in str(result.exception)


def test_a_server_that_hangs_and_dies_leaves_what_goes_on(
    tiny_recipe: Path, tmp_path: Path, server: Server, model: Path
) -> None:
    """It is stopped in the middle (slow), and killed (dead). A new one at another address is another judge."""
    run = tmp_path / "run"
    options: dict[str, Any] = {"timeout": 1.0, "retries": 1, "concurrency": 2}
    warm = compare(tiny_recipe, tmp_path, server, model, tmp_path / "warm", timeout=60.0)
    assert warm.exit_code == 0, warm.exception
    log = Path(server.log.name)
    before = log.read_text().count("POST /v1/chat")
    pid = os.fork()
    if pid == 0:  # stops the server once some of the questions are answered
        while log.read_text().count("POST /v1/chat") < before + 20:
            time.sleep(0.005)
        os.kill(server.process.pid, signal.SIGSTOP)
        os._exit(0)
    slow = compare(tiny_recipe, tmp_path, server, model, run, **options)
    os.waitpid(pid, 0)
    assert "does not answer after 2 tries: no answer in 1 seconds" in str(slow.exception), slow.output
    assert not (run / "compare" / "manifest.json").exists()
    server.process.send_signal(signal.SIGCONT)
    done = compare(tiny_recipe, tmp_path, server, model, run, **options | {"timeout": 60.0})
    assert done.exit_code == 0, done.exception
    assert report_of(run)["endpoint"]["cached"] >= 10 and report_of(run)["endpoint"]["calls"] > 0
    server.process.kill()
    dead = compare(tiny_recipe, tmp_path, server, model, tmp_path / "new", **options)
    assert "does not answer after 2 tries: no connection" in str(dead.exception)
    again = compare(tiny_recipe, tmp_path, server, model, run, **options | {"criteria": "The kinder one."})
    assert "does not answer" in str(again.exception)
