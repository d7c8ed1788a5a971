"""The outcome critic learns planted outcomes, from whole programs and from their beginnings, and survives saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_loops import make_roles

from rlhfctl.models.packing import Sequences
from rlhfctl.recipe.sections.outcome_critic import Learns
from rlhfctl.recipe.sections.outcome_critic import OutcomeCritic as Section
from rlhfctl.training.rl import outcome_critic
from rlhfctl.training.rl.outcome_critic import OUTCOMES, PASSED, OutcomeCritic, Programs, collected

CPU = torch.device("cpu")
GOOD, BAD = 2, 3  # tokens that decide at which they stand what becomes of the program


def planted(count: int = 240) -> Programs:
    """Programs of six tokens: the third decides, a good one passes and a bad one fails; the others say nothing."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(4, 10, (count, 6), generator=draw)
    good = torch.rand(count, generator=draw) < 0.5
    rows[:, 2] = torch.where(good, GOOD, BAD)
    prompts = [[4 + number % 6, 4 + number % 5] for number in range(count)]
    return Programs(prompts, rows.tolist(), [PASSED if one else OUTCOMES.index("failed") for one in good.tolist()])


def critic_on_random_weights() -> OutcomeCritic:
    return OutcomeCritic.on(make_roles(None, lora=False)[1].reference.model, seed=0)


@pytest.mark.parametrize("learns", ["whole", "beginnings"])
def test_it_learns_what_decides_and_where(learns: Learns) -> None:
    critic, programs = critic_on_random_weights(), planted()
    before = {name: value.clone() for name, value in critic.model.state_dict().items()}
    section = Section(samples=240, epochs=12, batch_size=24, learning_rate=1e-2, learns=learns)
    measures = outcome_critic.train(critic, programs, section, seed=0)
    assert measures["outcome_critic_accuracy"] > 0.95 > 0.7 > measures["outcome_critic_majority"]
    assert measures["outcome_critic_loss"] < 0.3
    moved = [name for name, value in critic.model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) == len(before) and not any(one.requires_grad for one in critic.model.parameters())
    chances = critic.pass_chances(Sequences.of([[4, 4]] * 2, [[5, 6, GOOD, 7, 8], [5, 6, BAD, 7, 8]], CPU))
    assert chances[0][:2] == pytest.approx(chances[1][:2], abs=1e-5)  # nothing is decided yet
    assert chances[0][2] > chances[1][2] + 0.5
    if learns == "beginnings":
        assert 0.2 < chances[0][1] < 0.8  # an undecided program is as likely to pass as not


def test_programs_of_held_out_prompts_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs([[1], [2], [1], [3], [2]] * 4, [[5]] * 20, [0] * 20)
    learned, heldout = outcome_critic._divided(programs)
    assert {tuple(one) for one in heldout.prompts} == {(3,)} and len(heldout.prompts) == 4
    assert {tuple(one) for one in learned.prompts} == {(1,), (2,)} and len(learned.prompts) == 16


def test_it_reads_the_same_after_saving(tmp_path: Path) -> None:
    tokenizer, _ = make_roles(None, lora=False)
    critic = critic_on_random_weights()
    critic.save(tmp_path / "critic", tokenizer)
    again = OutcomeCritic.load(tmp_path / "critic", CPU)
    sequences = Sequences.of([[4, 5], [6]], [[7, 8, 9], [5]], CPU)
    assert again.pass_chances(sequences) == critic.pass_chances(sequences)
    assert again.model.config.id2label == dict(enumerate(OUTCOMES))


def test_programs_are_sampled_for_the_prompts_in_turn() -> None:
    asked: list[int] = []

    def sample(indices: list[int]) -> list[list[int]]:
        asked.extend(indices)
        return [[index] for index in indices]

    programs = collected([[7], [8]], 5, sample, lambda indices, responses: ["passed"] * len(responses))  # type: ignore[arg-type]
    assert asked == [0, 1, 0, 1, 0] and programs.prompts == [[7], [8], [7], [8], [7]]
    assert programs.responses == [[0], [1], [0], [1], [0]] and programs.outcomes == [PASSED] * 5
