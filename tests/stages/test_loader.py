"""What one stage leaves is what the next one loads, or the run stops and says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from safetensors.torch import load_file, save_file

from rlhfctl import fs
from rlhfctl.artifacts import Artifact, Source, load_artifact, resolve_source
from rlhfctl.data import templates
from rlhfctl.data.types import Rows
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import Event, Note
from rlhfctl.models import adapters, build, heads, loading, scoring, tokenizing
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Init, Lora
from rlhfctl.stages.context import Context
from rlhfctl.stages.loader import Loader, recorded_base

FLOAT = torch.float32


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def loader_of(run: Path, notes: list[str] | None = None, data: Mapping[str, Rows] | None = None) -> Loader:
    """The loader of a run's recipe; what it notes goes to `notes`."""
    recipe = load_recipe(run / "recipe.yaml").recipe
    return Loader.of(recipe, note=[].append if notes is None else notes.append, warn=pytest.fail, data=data)


def source(path: Path, role: str = "policy") -> Source:
    return resolve_source(str(path), role)


def rerecord(stage: Path) -> Artifact:
    """A manifest that agrees with what now lies in the stage's folder, as a forger would leave it."""
    manifest = json.loads((stage / "manifest.json").read_text())
    outputs = fs.hash_tree(stage, skip=frozenset({"manifest.json", "work"}))
    manifest |= {"outputs": outputs, "fingerprint": fs.hash_json(outputs)}
    (stage / "manifest.json").write_text(json.dumps(manifest))
    return load_artifact(stage)


def nudge(weights: Path, by: float = 0.05) -> None:
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_B" in name or "q_proj" in name)
    tensors[name] = tensors[name] + by
    save_file(tensors, weights, metadata={"format": "pt"})


def tokenizer_of(run: Path) -> Any:
    return tokenizing.load_tokenizer(str(run / "sft" / "model"))


# ---------------------------------------------------------------- base*


def test_what_was_saved_is_what_is_loaded(run: Path) -> None:
    notes: list[str] = []
    base = loader_of(run, notes).load_base(source(run / "sft"))
    probes = json.loads((run / "sft" / "probes.json").read_text())
    given = scoring.sequence_logprobs(base.model, probes["rows"], base.tokenizer.pad_token_id)
    for row, kept in zip(given, probes["logprobs"], strict=True):
        assert row == pytest.approx(kept, abs=1e-5)
    assert (base.path, notes) == (str(run / "sft" / "model"), [])


def test_an_altered_weight_file_is_refused_before_it_is_loaded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nudge(run / "sft" / "model" / "model.safetensors")
    monkeypatch.setattr(loading, "load_causal_lm", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(HandoffError) as caught:
        loader_of(run).load_base(source(run / "sft"))
    assert "model/model.safetensors was altered" in caught.value.what
    assert caught.value.fix is not None and "--force" in caught.value.fix


def test_other_weights_under_a_matching_manifest_are_refused(run: Path) -> None:
    nudge(run / "sft" / "model" / "model.safetensors")
    rerecord(run / "sft")
    with pytest.raises(HandoffError, match="does not give the log-probabilities it was saved with") as caught:
        loader_of(run).load_base(source(run / "sft"))
    assert caught.value.fix is not None and "--force" in caught.value.fix


def test_weights_that_are_not_numbers_are_refused(run: Path) -> None:
    nudge(run / "sft" / "model" / "model.safetensors", by=float("nan"))
    rerecord(run / "sft")
    with pytest.raises(HandoffError, match="off by nan"):
        loader_of(run).load_base(source(run / "sft"))


def test_a_tokenizer_changed_after_training_is_refused(run: Path) -> None:
    folder = run / "sft" / "model"
    tokenizer = tokenizer_of(run)
    tokenizer.add_tokens(["<|new|>"])
    tokenizing.save_tokenizer(tokenizer, folder)
    with pytest.raises(HandoffError, match="altered after its stage finished"):
        loader_of(run).load_base(source(run / "sft"))
    rerecord(run / "sft")
    with pytest.raises(HandoffError, match="the tokenizer reads differently from the one that was saved") as caught:
        loader_of(run).load_base(source(run / "sft"))
    version = load_artifact(run / "sft").manifest.versions["tokenizers"]
    assert caught.value.fix is not None and f"install tokenizers {version}" in caught.value.fix


def test_a_parent_that_changed_since_is_refused(run: Path) -> None:
    nudge(run / "sft" / "model" / "model.safetensors")
    rerecord(run / "sft")
    with pytest.raises(HandoffError, match="has changed since"):
        loader_of(run).load_base(source(run / "ppo"))


# ---------------------------------------------------------------- the reward model


def test_the_reward_model_scores_as_it_did(run: Path) -> None:
    tokenizer = tokenizer_of(run)
    model = loader_of(run).load_reward_model(source(run / "reward", "reward"), tokenizer)
    probes = json.loads((run / "reward" / "probes.json").read_text())
    assert scoring.score_rows(model, probes["rows"], tokenizer.pad_token_id) == pytest.approx(
        probes["scores"], abs=1e-6
    )
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_tampered_scores_are_found(run: Path) -> None:
    """By the hash; and with the hash made to agree, by scoring the kept pairs again."""
    probes = json.loads((run / "reward" / "probes.json").read_text())
    probes["scores"][3] += 1e-3
    (run / "reward" / "probes.json").write_text(json.dumps(probes))
    with pytest.raises(HandoffError, match=r"the file probes\.json was altered"):
        loader_of(run).load_reward_model(source(run / "reward", "reward"), tokenizer_of(run))
    rerecord(run / "reward")
    with pytest.raises(HandoffError, match=r"does not give the scores it was saved with: off by 0\.001"):
        loader_of(run).load_reward_model(source(run / "reward", "reward"), tokenizer_of(run))


def test_other_reward_weights_under_a_matching_manifest_are_found(run: Path) -> None:
    nudge(run / "reward" / "adapter" / "adapter_model.safetensors")
    rerecord(run / "reward")
    with pytest.raises(HandoffError, match="does not give the scores"):
        loader_of(run).load_reward_model(source(run / "reward", "reward"), tokenizer_of(run))


def test_a_reward_model_of_another_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    other = tokenizer_of(run)
    other.add_tokens(["<|new|>"])
    with pytest.raises(HandoffError, match="the reward model's tokenizer is not the policy's") as caught:
        loader_of(run).load_reward_model(source(run / "reward", "reward"), other)
    assert caught.value.fix is not None and "rlhfctl reward RECIPE" in caught.value.fix
    templated = tokenizer_of(run)
    templated.chat_template = "{{ messages }}"
    with pytest.raises(HandoffError, match="chat template is not the policy's"):
        loader_of(run).load_reward_model(source(run / "reward", "reward"), templated)
    # From elsewhere, without a manifest: the tokenizers themselves are compared.
    folder = foreign_scorer(run, tmp_path / "scorer")
    with pytest.raises(HandoffError, match=r"tokenizer is not the policy's .*tokens against"):
        loader_of(run).load_reward_model(source(folder, "reward"), other)


def test_a_stage_without_a_head_is_no_reward_model(run: Path) -> None:
    with pytest.raises(HandoffError, match="the sft artifact is no reward model") as caught:
        loader_of(run).load_reward_model(source(run / "sft", "reward"), tokenizer_of(run))
    assert caught.value.fix is not None and "runs/NAME/reward" in caught.value.fix


# ---------------------------------------------------------------- from elsewhere


def foreign_scorer(run: Path, folder: Path) -> Path:
    base = loading.load_causal_lm(str(run / "sft" / "model"), dtype=FLOAT)
    build.save_model(heads.scorer_on(base, seed=4), tokenizer_of(run), folder)
    return folder


def test_a_causal_model_offered_as_reward_model_is_refused(run: Path) -> None:
    with pytest.raises(HandoffError, match=r"lacks the weights score\.weight"):
        loader_of(run).load_reward_model(source(run / "sft" / "model", "reward"), tokenizer_of(run))


def test_a_plain_reward_folder_notes_what_was_not_checked(run: Path, tmp_path: Path) -> None:
    folder, tokenizer, notes = foreign_scorer(run, tmp_path / "scorer"), tokenizer_of(run), list[str]()
    model = loader_of(run, notes).load_reward_model(source(folder, "reward"), tokenizer)
    rows = [[5, 6, 7], [8, 9]]
    own = loading.load_scorer(str(folder), dtype=FLOAT)
    pad = tokenizer.pad_token_id
    assert scoring.score_rows(model, rows, pad) == scoring.score_rows(own, rows, pad)
    assert [note for note in notes if "has no manifest" in note and "could not be checked" in note]


def test_a_reward_adapter_from_elsewhere_brings_its_head(run: Path) -> None:
    """The adapter folder of a run is such a one: its base is named relative to it."""
    loader, tokenizer = loader_of(run), tokenizer_of(run)
    model = loader.load_reward_model(source(run / "reward" / "adapter", "reward"), tokenizer)
    probes = json.loads((run / "reward" / "probes.json").read_text())
    assert scoring.score_rows(model, probes["rows"], tokenizer.pad_token_id) == pytest.approx(
        probes["scores"], abs=1e-5
    )
    with pytest.raises(HandoffError, match="the adapter holds no scalar head"):
        loader.load_reward_model(source(run / "ppo" / "adapter", "reward"), tokenizer)


def test_a_plain_policy_folder_notes_what_was_not_checked(run: Path) -> None:
    notes: list[str] = []
    base = loader_of(run, notes).load_base(source(run / "sft" / "model"))
    assert [note for note in notes if "has no manifest" in note and "could not be checked" in note]
    assert base.path == str(run / "sft" / "model")


def test_a_policy_from_elsewhere_is_told_of_what_its_template_lacks_where_it_meets_conversations(run: Path) -> None:
    folder = run / "sft" / "model"
    (folder / "chat_template.jinja").write_text(templates.NAMED["chatml"], encoding="utf-8")
    turns = [{"role": "user", "content": "q"}]
    for rows, told in (([{"prompt": "q"}], False), ([{"prompt": turns}], True)):
        notes: list[str] = []
        data = {"prompts": Rows("prompts", rows, "", locations=("a:1",))}
        loader_of(run, notes, data).load_base(source(folder))
        assert any("closes turns with <|im_end|>, which is no token" in note for note in notes) is told


def test_a_plain_policy_without_pad_gets_one(tmp_path: Path, run: Path) -> None:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b"])
    tokenizer = tokenizing.train_tokenizer(init, [])
    tokenizer.pad_token = tokenizer.eos_token
    build.save_model(build.build_model(init, tokenizer, seed=0, dtype=FLOAT), tokenizer, tmp_path / "plain")
    notes: list[str] = []
    base = loader_of(run, notes).load_base(source(tmp_path / "plain"))
    assert base.tokenizer.pad_token_id not in (None, base.tokenizer.eos_token_id)
    assert any("padded with end-of-sequence" in note for note in notes)


def test_an_adapter_folder_as_policy_is_the_stage_it_came_from(run: Path) -> None:
    loader = loader_of(run)
    adapter = loader.load_base(source(run / "ppo" / "adapter"))
    probes = json.loads((run / "ppo" / "probes.json").read_text())
    given = scoring.sequence_logprobs(adapter.model, probes["rows"], adapter.tokenizer.pad_token_id)
    for row, kept in zip(given, probes["logprobs"], strict=True):
        assert row == pytest.approx(kept, abs=1e-5)
    base = loader.load_base(source(run / "sft"))
    plain = scoring.sequence_logprobs(base.model, probes["rows"], base.tokenizer.pad_token_id)
    assert plain[0] != pytest.approx(probes["logprobs"][0], abs=1e-4)  # the adapter says something


def test_an_adapters_own_tokenizer_comes_with_it(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "ppo" / "adapter", tmp_path / "mine"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(run / "sft" / "model")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tokenizer = tokenizer_of(run)
    tokenizer.chat_template = "{{ messages }}"
    tokenizing.save_tokenizer(tokenizer, folder)
    assert loader_of(run).load_base(source(folder)).tokenizer.chat_template == "{{ messages }}"


def test_an_adapter_that_names_no_base_is_refused(run: Path) -> None:
    file = run / "ppo" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(HandoffError, match="does not say which base model"):
        loader_of(run).load_base(source(run / "ppo" / "adapter"))


def test_an_adapter_of_another_shape_is_refused(run: Path, tmp_path: Path) -> None:
    init = Init(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, tokens=["a", "b"])
    tokenizer = tokenizing.train_tokenizer(init, [])
    build.save_model(build.build_model(init, tokenizer, seed=0, dtype=FLOAT), tokenizer, tmp_path / "small")
    file = run / "ppo" / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "small")}
    file.write_text(json.dumps(config))
    with pytest.raises(HandoffError, match="does not fit this base") as caught:
        loader_of(run).load_base(source(run / "ppo" / "adapter"))
    assert caught.value.fix is not None and "base_model_name_or_path" in caught.value.fix


def test_a_folder_that_holds_no_loadable_model_says_so(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(RlhfctlError, match="cannot be loaded"):
        loader_of(run).load_base(source(folder))


# ---------------------------------------------------------------- what an adapter names as its base


def test_an_adapter_names_its_base_so_that_it_is_found_again(run: Path, tmp_path: Path) -> None:
    loader = loader_of(run)
    base = loader.load_base(source(run / "sft"))
    assert recorded_base(source(run / "sft"), base.path, run, "ppo") == "../../sft/model"
    assert recorded_base(source(run / "sft"), base.path, run, "seed-1/ppo") == "../../../sft/model"
    assert recorded_base(source(run / "sft"), base.path, run, "round-2/seed-1/ppo") == "../../../../sft/model"
    config = json.loads((run / "reward" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../sft/model"
    # Another run's stage is not to be mistaken for this run's.
    other = Path(shutil.copytree(run, tmp_path / "other"))
    recorded = recorded_base(source(other / "sft"), loader.load_base(source(other / "sft")).path, run, "ppo")
    assert Path(recorded) == other / "sft" / "model"
    plain = loader.load_base(source(run / "sft" / "model"))
    assert recorded_base(source(run / "sft" / "model"), plain.path, run, "ppo") == plain.path


def test_an_adapter_on_an_adapter_is_loaded_through_both(run: Path, tmp_path: Path) -> None:
    """A reward model trained on a run's ppo stage, which is an adapter itself."""
    loader = loader_of(run)
    policy = loader.load_base(source(run / "ppo"))
    recorded = recorded_base(source(run / "ppo"), policy.path, run, "ppo")
    assert (run / "again" / "adapter" / recorded).resolve() == (run / "ppo").resolve()
    scorer = adapters.add_lora(heads.scorer_on(policy.model, seed=7), Lora(r=2, lora_alpha=4), TaskType.SEQ_CLS, seed=0)
    rows, pad = [[5, 6, 7, 8], [9, 10]], policy.tokenizer.pad_token_id
    expected = scoring.score_rows(scorer, rows, pad)
    folder = run / "again" / "adapter"
    adapters.save_adapter(scorer, folder, base=recorded, head=True)
    tokenizing.save_tokenizer(policy.tokenizer, folder)
    loaded = loader.load_reward_model(source(folder, "reward"), policy.tokenizer)
    assert scoring.score_rows(loaded, rows, pad) == pytest.approx(expected, abs=1e-5)


def test_notes_reach_the_listener(run: Path) -> None:
    heard: list[Event] = []
    ctx = Context("ppo", load_recipe(run / "recipe.yaml").recipe, RunPaths(run), {}, {}, {}, heard.append)
    ctx.loader.load_base(source(run / "sft" / "model"))
    assert [event.message for event in heard if isinstance(event, Note)] == ctx.notes != []
