"""A cache of fixed shape whose rows stand at different positions gives the states of whole forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_small_decoder import NOT_TAKEN, TAKEN, adapted, model_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhfctl.generation import static_decoder
from rlhfctl.generation.static_decoder import StaticDecoder, supports
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.models.packing import packed


def policy_of(name: str) -> LanguageModel:
    return LanguageModel(model_of((TAKEN | NOT_TAKEN)[name], torch.float64), 1)


def whole(policy: LanguageModel, ids: list[int]) -> Tensor:
    return policy.hidden(torch.tensor([ids]))[0, -1]


@torch.no_grad()
def test_rows_come_and_go_at_their_own_positions() -> None:
    policy = policy_of("grouped heads")
    decoder = StaticDecoder(policy, 3, 20)
    texts: dict[int, list[int]] = {0: [2, 3, 4], 2: [5]}
    decoder.admit([0, 2], [texts[0], texts[2]])
    for number, token in enumerate((6, 7, 8, 9, 2, 3)):
        if number == 2:
            texts[1] = [4, 4, 4, 4, 4]
            decoder.admit([1], [texts[1]])
        if number == 4:
            decoder.free([0])
            texts[0] = [9, 8]
            decoder.admit([0], [texts[0]])
        decoder.step(torch.tensor([token, token - 1, 2]), max(map(len, texts.values())))
        for row, new in enumerate((token, token - 1, 2)):
            if row in texts:
                texts[row] = [*texts[row], new]
                torch.testing.assert_close(decoder.states[row], whole(policy, texts[row]))


@torch.no_grad()
def test_rows_that_are_kept_move_to_the_first_places() -> None:
    policy = policy_of("another shape")  # positions are looked up, not turned
    decoder = StaticDecoder(policy, 4, 10)
    texts = [[2, 3, 4], [5], [6, 7], [8, 8, 8, 8]]
    decoder.admit(range(4), texts)
    decoder.keep([3, 1])
    decoder.step(torch.tensor([5, 6]), 4)
    assert len(decoder.states) == 4 and decoder.rows == 2
    for row, ids in enumerate(([8, 8, 8, 8, 5], [5, 6])):
        torch.testing.assert_close(decoder.states[row], whole(policy, ids))


@torch.no_grad()
def test_a_step_reads_no_more_columns_than_it_needs() -> None:
    policy = policy_of("llama")
    decoder = StaticDecoder(policy, 1, 60)
    assert decoder.place.columns == 64
    decoder.admit([0], [[2, 3]])
    widths = []
    for length in (2, 15, 16, 40):
        decoder.step(torch.tensor([4]), length)
        widths.append(decoder.place.width)
    assert widths == [16, 16, 32, 48]


@torch.no_grad()
def test_a_row_that_stays_free_writes_within_its_memory() -> None:
    policy = policy_of("llama")
    decoder = StaticDecoder(policy, 2, 8)
    decoder.admit([0], [[2]])
    for _ in range(20):
        decoder.free([0])
        decoder.admit([0], [[2]])
        decoder.step(torch.tensor([3, 3]), 1)
    torch.testing.assert_close(decoder.states[0], whole(policy, [2, 3]))
    assert int(decoder.place.positions[1]) == 7 and bool(decoder.states.isfinite().all())


@pytest.mark.parametrize("name", [*TAKEN, *NOT_TAKEN])
def test_which_models_are_taken(name: str) -> None:
    policy = policy_of(name)
    refused = name in ("a window", "angles that depend on the length")
    assert supports(policy) is not refused
    with packed(policy.trunk):
        assert supports(policy) is not refused
    policy.config._attn_implementation = "eager"
    assert not supports(policy)
    policy.config._attn_implementation = "sdpa"  # the configuration is that of other tests, too


class Recordable(TorchDispatchMode):
    """Refuses what a CUDA graph cannot record: numbers that are asked of the device, or given to it by the host."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "repeat_interleave.Tensor")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(function) for name in self.REFUSED), f"cannot be recorded: {function}"
        return function(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("name", [*TAKEN, "norms inside attention", "another shape"])
def test_a_step_asks_nothing_of_the_device_and_gives_it_nothing(name: str) -> None:
    policy = LanguageModel(adapted(model_of((TAKEN | NOT_TAKEN)[name])), 1, "default")
    policy.activate()
    decoder = StaticDecoder(policy, 2, 16)
    decoder.admit([0, 1], [[2, 3, 4], [5]])
    decoder.step(torch.tensor([6, 7]), 3)
    before, decoder.place.positions[:2] = decoder.states.clone(), torch.tensor([3, 1])
    with Recordable():
        decoder._recorder.run((2, 8), lambda: _in_slots(decoder))
    torch.testing.assert_close(decoder.states, before)  # the same step again


def _in_slots(decoder: StaticDecoder) -> None:
    with static_decoder._attending(decoder.policy.config, static_decoder.SLOTS):
        decoder._forward()


@pytest.mark.parametrize("name", ["grouped heads", "another shape"])
def test_steps_under_autocast_are_taken_too(name: str) -> None:
    policy = LanguageModel(model_of((TAKEN | NOT_TAKEN)[name]), 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert supports(policy)


def test_weights_in_16_bits_are_taken() -> None:
    assert supports(LanguageModel(model_of(TAKEN["grouped heads"], torch.bfloat16), 1))


def test_other_numbers_than_the_models_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("llama")
    monkeypatch.setattr(static_decoder._SlotLayer, "move", lambda *_: None)
    assert supports(policy)
    policy.decodes_in_slots = None
    update = static_decoder._SlotLayer.update
    monkeypatch.setattr(static_decoder._SlotLayer, "update", lambda self, k, v, *_, **__: update(self, k * 1.001, v))
    assert not supports(policy)


def test_adapters_are_in_the_states() -> None:
    policy = LanguageModel(adapted(model_of(TAKEN["qwen2"], torch.float64)).double(), 1, "default")
    assert supports(policy)
    with torch.no_grad():
        decoder = StaticDecoder(policy, 1, 8)
        decoder.admit([0], [[2, 3]])
        torch.testing.assert_close(decoder.states[0], whole(policy, [2, 3]))


def test_a_shape_is_recorded_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of recording and replaying, with a stand-in for CUDA's graph."""
    did: list[str] = []

    class Graph:
        def replay(self) -> None:
            did.append("replay")

    recorder = static_decoder._Recorder(policy_of("llama"))
    assert not recorder.records  # there is no GPU

    def forward() -> None:
        did.append("run")

    def recorded(given: Callable[[], None]) -> Any:
        did.append("record")
        return Graph()

    recorder.run((4, 16), forward)
    assert did == ["run"]
    recorder = static_decoder._Recorder(policy_of("llama"))
    recorder.records = True
    monkeypatch.setattr(recorder, "_recorded", recorded)
    did.clear()
    for _ in range(5):
        recorder.run((4, 16), forward)
    recorder.run((2, 16), forward)
    assert did == ["run", "run", "record", "replay", "replay", "replay", "run"]


def test_a_step_that_cannot_be_recorded_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    did: list[str] = []
    recorder = static_decoder._Recorder(policy_of("llama"))
    recorder.records = True
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", refuses)
    for _ in range(5):
        recorder.run((4, 16), lambda: did.append("run"))
    assert did == ["run"] * 5 and not recorder.records
