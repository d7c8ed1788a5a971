"""Scalar heads: on the weights of a base, and beside an adapter on a shared model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import TaskType
from small_models import logits_of, stir, words
from small_roles import COMMON_ARCHITECTURES, ROLE_LORA, ROWS, base, save_reward, stir_adapters

from rlhfctl.errors import HandoffError
from rlhfctl.models import (
    adapters,
    build,
    heads,
    merging,
    scoring,
)
from rlhfctl.models.adapters import (
    POLICY,
    adapter_has_head,
    add_lora,
    save_adapter,
)
from rlhfctl.models.heads import AdapterScorer, scorer_on
from rlhfctl.models.language_model import LanguageModel


def test_a_new_head_sits_on_the_weights_of_the_base() -> None:
    _, base = words()
    rows = [[2, 3, 4], [5, 6]]
    assert scoring.score_rows(scorer_on(base, seed=0, zero_head=True), rows, 1) == [0.0, 0.0]
    first, again, other = (scorer_on(base, seed=seed) for seed in (1, 1, 2))
    assert scoring.score_rows(first, rows, 1) == scoring.score_rows(again, rows, 1)
    assert scoring.score_rows(first, rows, 1) != scoring.score_rows(other, rows, 1)
    with torch.no_grad():
        hidden = base.model(input_ids=torch.tensor([rows[0]])).last_hidden_state[0, -1]
        expected = float(hidden @ first.score.weight[0])
    assert scoring.score_rows(first, rows[:1], 1)[0] == pytest.approx(expected, abs=1e-6)
    stir(first)
    assert torch.equal(logits_of(base, [2, 3]), logits_of(words()[1], [2, 3]))  # copied, not shared


def test_a_head_drawn_by_width_has_the_deviation_of_its_width() -> None:
    _, base = words()
    one, again, other = (scorer_on(base, seed=0) for _ in range(3))
    for scorer, seed in ((one, 1), (again, 1), (other, 2)):
        heads.draw_by_width(scorer, seed=seed)
    width = one.score.weight.shape[1]
    assert torch.equal(one.score.weight, again.score.weight) and not torch.equal(one.score.weight, other.score.weight)
    wide = scorer_on(base, seed=0)
    wide.score = torch.nn.Linear(20_000, 1, bias=False)
    heads.draw_by_width(wide, seed=1)
    assert float(wide.score.weight.detach().std()) == pytest.approx(20_001**-0.5, rel=0.03)
    assert float(one.score.weight.abs().max()) > 3 * 0.02 and width < 400  # far from initializer_range


@pytest.mark.parametrize("architecture", COMMON_ARCHITECTURES)
def test_a_reward_adapter_scores_on_the_policys_model_as_on_its_own(architecture: str, tmp_path: Path) -> None:
    tokenizer, model = base(architecture)
    untouched, pad = build.copy_frozen(model), tokenizer.pad_token_id
    expected = save_reward(untouched, tokenizer, tmp_path / "given")
    policy = add_lora(model, ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    stir_adapters(policy, seed=7)
    head = heads.load_scorer_adapter(policy, adapters.REWARD, tmp_path / "given")
    scorer = AdapterScorer(LanguageModel(policy, pad, adapters.REWARD), head)
    LanguageModel(policy, pad, POLICY).activate()  # another acted last
    given = scoring.score_rows(scorer, ROWS, pad)
    assert given == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert max(given) - min(given) > 1e-2

    heads.save_scorer_adapter(policy, adapters.REWARD, head, tmp_path / "saved", "base")
    assert adapter_has_head(tmp_path / "saved")
    again = merging.load_adapter(heads.scorer_on(untouched, seed=11), tmp_path / "saved")
    assert scoring.score_rows(again, ROWS, pad) == pytest.approx(given, abs=1e-5, rel=1e-5)
    assert scoring.score_rows(merging.merged(again), ROWS, pad) == pytest.approx(given, abs=1e-5, rel=1e-5)


def test_an_adapter_without_a_head_or_of_another_base_is_refused(tmp_path: Path) -> None:
    tokenizer, model = base()
    headless = add_lora(build.copy_frozen(model), ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    save_adapter(headless, tmp_path / "headless", base="base", head=False)
    policy = add_lora(model, ROLE_LORA, TaskType.CAUSAL_LM, seed=0)
    with pytest.raises(HandoffError, match="no scalar head"):
        heads.load_scorer_adapter(policy, "a", tmp_path / "headless")
    for name, changes in (("wide", {"hidden_size": 32}), ("deep", {"num_hidden_layers": 3})):
        _, other = base(**changes)
        save_reward(other, tokenizer, tmp_path / name)
        with pytest.raises(HandoffError, match="does not fit this base"):
            heads.load_scorer_adapter(policy, name, tmp_path / name)
    save_reward(base("gpt2")[1], tokenizer, tmp_path / "gpt2")
    with pytest.raises(HandoffError, match="does not fit this base"):
        heads.load_scorer_adapter(policy, "gpt2", tmp_path / "gpt2")
