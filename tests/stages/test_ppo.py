"""The ppo stage with our engine: every kind of critic is published and loads, and every kind of reward scores.

One run up to the reward stage is shared; each test trains for an update or two in a copy of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import TINY
from peft import PeftModel
from reward_server import Answer, Request, serving
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from rlhfctl import pipeline
from rlhfctl.artifacts import Artifact, Source, load_artifact, resolve_source
from rlhfctl.cli import app
from rlhfctl.data.encoding import Encoder
from rlhfctl.errors import HandoffError, RewardFailed
from rlhfctl.events import Event, Metrics, StageStarted
from rlhfctl.generation import static_decoder
from rlhfctl.generation.static_decoder import StaticDecoder
from rlhfctl.models import adapters, heads, merging, scoring, tokenizing
from rlhfctl.recipe.load import load_recipe
from rlhfctl.stages.loader import Loader
from rlhfctl.stages.ppo import can_extend

ROWS = [[20, 30, 40, 50], [60, 70], [80, 90, 100, 110, 120, 130], [33, 33, 33]]
ONE_UPDATE = ("ppo.total_episodes=16",)
KINDS: dict[str, tuple[str, ...]] = {
    "adapter": (),
    "head": ("ppo.critic=head",),
    "model": ("ppo.critic=model",),
    "head on all weights": ("ppo.critic=head", "ppo.lora=null"),
    "model beside all weights": ("ppo.lora=null",),
    "reward": ("ppo.critic=reward",),
}
SCORES = """
def length(prompts, completions):
    return [float(len(text)) for text in completions]
"""

NOTING = """
def score(prompts, completions, log_metric, log_extra):
    log_metric("letters", sum(map(len, completions)) / len(completions))
    log_extra("begins", [text[:1] for text in completions])
    return [None] * len(completions)
"""


def carry_out(folder: Path, request: pipeline.Request, *overrides: str, file: str = "tiny.yaml") -> list[Event]:
    events: list[Event] = []
    (folder / "run").mkdir(exist_ok=True)
    pipeline.run(load_recipe(folder / file, overrides), folder / "run", request, events.append)
    return events


def prepared(folder: Path, *overrides: str) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "scores.py").write_text(SCORES)
    (folder / "noting.py").write_text(NOTING)
    carry_out(folder, pipeline.Request(until="reward"), *overrides)
    return folder


@pytest.fixture(scope="module")
def until_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("ppo-stage"))


@pytest.fixture(scope="module")
def trained(until_reward: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with each kind of critic."""
    found = {}
    for kind, overrides in KINDS.items():
        found[kind] = run_ppo(until_reward, tmp_path_factory.mktemp("kind") / "copy", *ONE_UPDATE, *overrides)
    return found


def run_ppo(until_reward: Path, to: Path, *overrides: str, external: Mapping[str, str] | None = None) -> Path:
    """The run after PPO alone in a copy of the shared one."""
    shutil.copytree(until_reward, to)
    carry_out(to, pipeline.Request(only="ppo", external=external or {}), *overrides)
    return to / "run"


def loader_of(run: Path) -> Loader:
    return Loader.of(load_recipe(run / "recipe.yaml").recipe, note=[].append, warn=pytest.fail)


def artifact(run: Path) -> Artifact:
    made = load_artifact(run / "ppo")
    made.verify()
    return made


def critic_scores(run: Path) -> list[float]:
    critic = loader_of(run).load_critic(Source.of(artifact(run)))
    return scoring.score_rows(critic, ROWS, critic.config.pad_token_id)


def reward_scores(run: Path) -> list[float]:
    tokenizer = tokenizing.load_tokenizer(str(run / "sft" / "model"))
    source = Source.of(load_artifact(run / "reward"))
    return scoring.score_rows(loader_of(run).load_reward_model(source, tokenizer), ROWS, tokenizer.pad_token_id)


# ---------------------------------------------------------------- what is published


@pytest.mark.parametrize("kind", KINDS)
def test_policy_and_critic_are_published_and_load(kind: str, trained: dict[str, Path]) -> None:
    run = trained[kind]
    made, whole = artifact(run), "weights" in kind
    part = "model" if whole else "adapter"
    assert set(made.manifest.layout) == {part, "critic", "probes"}
    loader = loader_of(run)
    policy = loader.load_base(Source.of(made))  # checks the recorded log-probabilities
    base = loader.load_base(made.parent("base"))
    pad = policy.tokenizer.pad_token_id
    before, after = (scoring.sequence_logprobs(m, ROWS, pad) for m in (base.model, policy.model))
    assert max(abs(a - b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)) > 1e-3

    folder = run / "ppo" / "critic"
    scores = critic_scores(run)
    assert max(scores) - min(scores) > 1e-4
    if kind in ("adapter", "head"):
        assert adapters.adapter_has_head(folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        assert not any("critic" in name or "default" in name or "reward" in name for name in tensors)
        loaded = merging.load_adapter(heads.scorer_on(base.model, seed=9), folder)
        assert scoring.score_rows(loaded, ROWS, pad) == pytest.approx(scores, abs=1e-5)
    if kind.startswith("head"):  # it reads the policy's own states
        scorer = heads.scorer_on(policy.model, seed=9)
        if whole:
            head = load_file(folder / "model.safetensors")["score.weight"]
        else:
            head = load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]
        scorer.score.weight.data.copy_(head)
        assert scoring.score_rows(scorer, ROWS, pad) == pytest.approx(scores, abs=1e-5)
        return
    start = reward_scores(run)  # the others started as the reward model, and learnt
    gaps = [abs(a - b) for a, b in zip(scores, start, strict=True)]
    assert max(gaps) > 1e-4


@pytest.mark.parametrize("kind", ["adapter", "head", "model"])
def test_the_critic_is_exported_merged_or_with_its_base(kind: str, trained: dict[str, Path], tmp_path: Path) -> None:
    run, scores = trained[kind], critic_scores(trained[kind])
    result = CliRunner().invoke(app, ["export", str(run), "--stage", "critic", "--to", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", num_labels=1)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    pad = merged.config.pad_token_id
    assert scoring.score_rows(merged, ROWS, pad) == pytest.approx(scores, abs=1e-5)
    to = tmp_path / "adapter"
    result = CliRunner().invoke(app, ["export", str(run), "--stage", "critic", "--to", str(to), "--adapter"])
    if kind == "model":
        assert result.exit_code == 1 and "there is no adapter" in str(result.exception) and not to.exists()
        return
    assert result.exit_code == 0, result.output
    base = AutoModelForSequenceClassification.from_pretrained(to / "base", num_labels=1)
    assert scoring.score_rows(PeftModel.from_pretrained(base, to), ROWS, pad) == pytest.approx(scores, abs=1e-5)


def test_an_algorithm_without_a_critic_makes_none(until_reward: Path, tmp_path: Path) -> None:
    run = run_ppo(until_reward, tmp_path / "copy", *ONE_UPDATE, "ppo.algorithm=rloo", "ppo.num_generations=2")
    made = artifact(run)
    assert set(made.manifest.layout) == {"adapter", "probes"} and not (run / "ppo" / "critic").exists()
    adapter = load_file(run / "ppo" / "adapter" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)  # it has moved
    section = load_recipe(run / "recipe.yaml").recipe.ppo
    assert section is not None and section.critic_kind is None
    assert can_extend(made, section)  # the policy is all that it has learned
    for other in ({"algorithm": "ppo"}, {"algorithm": "reinforce"}, {"use": "best"}):
        assert not can_extend(made, section.model_copy(update=other))


# ---------------------------------------------------------------- a critic to start from


@pytest.mark.parametrize(
    ("kind", "place"), [("adapter", "ppo"), ("adapter", "ppo/critic"), ("model", "ppo"), ("reward", "ppo")]
)
def test_a_critic_goes_on_where_another_runs_stopped(
    kind: str, place: str, until_reward: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    given = trained[kind]
    still = ("ppo.learning_rate=1e-12", f"ppo.critic_from={given / place}")
    run = run_ppo(until_reward, tmp_path / "copy", *ONE_UPDATE, *KINDS[kind], *still)
    assert critic_scores(run) == pytest.approx(critic_scores(given), abs=1e-6)
    assert "critic" in artifact(run).manifest.inputs
    assert critic_scores(run) != pytest.approx(reward_scores(run), abs=1e-4)


def test_a_critic_of_the_other_kind_is_refused_or_merged(
    until_reward: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(HandoffError, match="a model of its own, not an adapter"):
        run_ppo(until_reward, tmp_path / "a", *ONE_UPDATE, f"ppo.critic_from={trained['model'] / 'ppo'}")
    still = ("ppo.learning_rate=1e-12", f"ppo.critic_from={trained['adapter'] / 'ppo'}", "ppo.critic=model")
    run = run_ppo(until_reward, tmp_path / "b", *ONE_UPDATE, *still)
    assert critic_scores(run) == pytest.approx(critic_scores(trained["adapter"]), abs=1e-5)


def test_a_head_on_the_reward_model_does_not_go_on_from_a_critic_whose_trunk_was_trained(
    until_reward: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(HandoffError, match="on the states of another reward model"):
        wrong = f"ppo.critic_from={trained['adapter'] / 'ppo'}"
        run_ppo(until_reward, tmp_path / "a", *ONE_UPDATE, *KINDS["reward"], wrong)


@pytest.mark.ci
def test_a_head_on_a_reward_model_of_its_own_is_published_and_goes_on_from_the_same_one_alone(
    until_reward: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    kind = ("ppo.critic=reward", "ppo.lora=null")
    given = run_ppo(until_reward, tmp_path / "given", *ONE_UPDATE, *kind, "ppo.learning_rate=1e-2")
    still = ("ppo.learning_rate=1e-12", f"ppo.critic_from={given / 'ppo'}")
    run = run_ppo(until_reward, tmp_path / "a", *ONE_UPDATE, *kind, *still)
    assert critic_scores(run) == pytest.approx(critic_scores(given), abs=1e-6)
    assert critic_scores(run) != pytest.approx(reward_scores(run), abs=1e-4)
    with pytest.raises(HandoffError, match="on the states of another reward model"):
        run_ppo(until_reward, tmp_path / "b", *ONE_UPDATE, *kind, f"ppo.critic_from={trained['model'] / 'ppo'}")


# ---------------------------------------------------------------- rewards


def test_rewards_are_summed_with_their_weights(until_reward: Path, tmp_path: Path) -> None:
    def raw(rewards: str) -> float:
        run = run_ppo(
            until_reward, tmp_path / str(len(list(tmp_path.iterdir()))), *ONE_UPDATE, f"ppo.rewards={rewards}"
        )
        return artifact(run).manifest.metrics["raw_score"]

    model, function = raw("{reward: 1.0}"), raw("{'scores:length': 1.0}")
    assert function == int(function * 16) / 16 > 1 and abs(model) > 1e-4
    assert raw("{reward: 2.0, 'scores:length': -0.5}") == pytest.approx(2 * model - 0.5 * function, abs=1e-4)


@pytest.mark.ci
def test_a_server_that_dies_stops_the_run_at_a_checkpoint_and_the_same_command_resumes(
    until_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhfctl.rewards.server.FIRST_PAUSE_S", 0.01)
    dead = {"from": 5, "until": 8}  # counted in requests: an update and an evaluation are some each

    def score(asked: Request) -> Answer:
        gone = dead["from"] <= asked.number < dead["until"]
        return Answer(status=503) if gone else Answer([float(len(text)) for text in asked.body["completions"]])

    folder = tmp_path / "run"
    shutil.copytree(until_reward, folder)
    with serving(score) as server:
        asks = f"{{function: '{server.url}', server: {{retries: 1, batch_size: 8}}}}"
        (folder / "served.yaml").write_text(
            f"extends: tiny.yaml\nreward: {asks}\nppo: {{rewards: {{reward: 1.0, 'scores:length': 0.5}}}}\n"
        )
        own = ("compare=null", "ppo.total_episodes=64", "ppo.checkpoint_steps=4")
        with pytest.raises(RewardFailed, match="gave no answer after 2 tries: status 503"):
            carry_out(folder, pipeline.Request(only="ppo"), *own, file="served.yaml")
        checkpoints = {path.name for path in (folder / "run" / "ppo" / "work").glob("checkpoint-*")}
        assert "checkpoint-0" in checkpoints and len(checkpoints) == 2  # the start, and the updates before it died
        dead["until"] = 0
        events = carry_out(folder, pipeline.Request(only="ppo"), *own, file="served.yaml")
    started = [event for event in events if isinstance(event, StageStarted)]
    assert started[0].resumed_from and f"checkpoint-{started[0].resumed_from}" in checkpoints
    last = [event.values for event in events if isinstance(event, Metrics) and "raw_score" in event.values][-1]
    assert last["reward/reward"] == last["reward/scores:length"] == pytest.approx(last["raw_score"] / 1.5)


def test_metrics_are_parts_of_the_reward_by_their_names(until_reward: Path, tmp_path: Path) -> None:
    run = run_ppo(until_reward, tmp_path / "copy", *ONE_UPDATE, "ppo.rewards={distinct1: 2.0, length: -0.5}")
    metrics = artifact(run).manifest.metrics
    assert metrics["reward/length"] == pytest.approx(metrics["length"]) and 0 < metrics["reward/distinct1"] <= 1
    expected = 2 * metrics["reward/distinct1"] - 0.5 * metrics["length"]
    assert metrics["raw_score"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.ci
def test_further_reward_models_and_what_functions_log_are_parts_of_the_record(
    until_reward: Path, tmp_path: Path
) -> None:
    rewards = "{reward: 1.0, './run/reward': -1.0, 'noting:score': 0.0}"
    run = run_ppo(until_reward, tmp_path / "copy", *ONE_UPDATE, f"ppo.rewards={rewards}", "ppo.trace_every=1")
    metrics = artifact(run).manifest.metrics
    assert metrics["reward/reward"] == pytest.approx(metrics["reward/./run/reward"], abs=1e-4)  # the same model
    assert metrics["raw_score"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["logged/letters"] > 0 and metrics["eval_logged/letters"] > 0
    (trace,) = (run / "ppo" / "traces").glob("*.jsonl")
    first = json.loads(trace.read_text().splitlines()[0])
    assert first["reward_extras"] == {"begins": first["response"][:1]}
    assert set(first["reward_parts"]) == {"reward", "./run/reward", "noting:score"}


def test_a_reward_model_with_another_tokenizer_scores_the_text(until_reward: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = prepared(tmp_path / "other", "model.init.vocab_size=300") / "run"
    given = {"reward": str(other / "reward")}
    tracing = ("ppo.trace_every=1", "ppo.trace_episodes=16")
    run = run_ppo(until_reward, tmp_path / "ours", *ONE_UPDATE, *tracing, external=given)
    made = artifact(run)
    assert any("a tokenizer of its own" in note for note in made.manifest.notes)
    records = [json.loads(line) for line in (run / "ppo" / "traces" / "update-000001.jsonl").read_text().splitlines()]
    theirs = tokenizing.load_tokenizer(str(other / "reward" / "adapter"))
    ours = tokenizing.load_tokenizer(str(run / "sft" / "model"))
    assert len(theirs) < len(ours)
    scorer = loader_of(other).load_reward_model(resolve_source(given["reward"], "reward"), theirs)
    rows = []
    for record in records:
        prompt, response = Encoder(theirs).pair(record["prompt"], ours.decode(record["ids"], skip_special_tokens=True))
        rows.append([*prompt, *response])
    expected = scoring.score_rows(scorer, rows, theirs.pad_token_id)
    assert [record["raw_score"] for record in records] == pytest.approx(expected, abs=1e-5)
    assert len(records) == 16 and max(expected) - min(expected) > 1e-3
    with pytest.raises(HandoffError, match="tokenizer is not the policy's"):
        run_ppo(until_reward, tmp_path / "trl", *ONE_UPDATE, "ppo.engine=trl", external=given)


# ---------------------------------------------------------------- the sampler


def test_slots_sample_the_same_episodes_in_training_and_evaluation(
    until_reward: Path, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = StaticDecoder.step

    def counted(self: StaticDecoder, tokens: Tensor, longest: int) -> None:
        rows.append(len(tokens))
        step(self, tokens, longest)

    monkeypatch.setattr(StaticDecoder, "step", counted)
    fewer = "ppo.local_rollout_forward_batch_size=5"  # slots for 16 episodes
    made = artifact(run_ppo(until_reward, tmp_path / "slots", *ONE_UPDATE, "ppo.sampler=slots", fewer))
    assert max(rows) == 5 and made.manifest.notes == artifact(trained["adapter"]).manifest.notes
    expected = artifact(trained["adapter"]).manifest.metrics
    for name in ("score", "kl", "length", "entropy"):
        assert made.manifest.metrics[name] == pytest.approx(expected[name], abs=1e-4), name


def test_a_model_that_cannot_be_sampled_in_slots_is_sampled_in_batches_and_a_note_says_so(
    until_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_decoder, "_agrees", lambda policy: False)
    monkeypatch.setattr(StaticDecoder, "step", lambda *_: pytest.fail("sampled in slots"))
    notes = artifact(run_ppo(until_reward, tmp_path / "batch", *ONE_UPDATE, "ppo.sampler=slots")).manifest.notes
    assert "llama cannot be sampled in slots: it is sampled batch by batch" in notes


# ---------------------------------------------------------------- half-width weights


@pytest.mark.parametrize("engine", ["rlhfctl", "trl"])
def test_either_engine_warns_of_weights_that_its_steps_cannot_move(
    engine: str, until_reward: Path, tmp_path: Path
) -> None:
    half = ("model.dtype=bfloat16", "ppo.lora=null", "ppo.learning_rate=1e-6", f"ppo.engine={engine}")
    notes = artifact(run_ppo(until_reward, tmp_path / "half", *ONE_UPDATE, *half)).manifest.notes
    assert sum("cannot move by a step of learning_rate 1e-06" in note for note in notes) == 1


# ---------------------------------------------------------------- the best policy


@pytest.mark.parametrize("kind", ["adapter", "head on all weights"])
def test_the_best_policy_is_handed_on(kind: str, until_reward: Path, tmp_path: Path) -> None:
    """Moving away from the reference costs so much that not having moved is best."""
    shutil.copytree(until_reward, tmp_path / "copy")
    overrides = ("ppo.use=best", "ppo.kl_coef=100.0", "ppo.learning_rate=5e-2", *KINDS[kind])
    events = carry_out(tmp_path / "copy", pipeline.Request(only="ppo"), *overrides)
    run = tmp_path / "copy" / "run"
    seen = {e.step: e.values["eval_objective"] for e in events if isinstance(e, Metrics) and e.split == "eval"}
    metrics = artifact(run).manifest.metrics
    assert set(seen) == {0, 1, 2} and max(seen.values()) > min(seen.values()) + 1
    assert metrics["eval_objective"] == max(seen.values()) == seen[0] and metrics["best_update"] == 0
    loader = loader_of(run)
    policy, base = (
        loader.load_base(Source.of(artifact(run))),
        loader.load_base(artifact(run).parent("base")),
    )
    pad = base.tokenizer.pad_token_id
    for a, b in zip(*(scoring.sequence_logprobs(m.model, ROWS, pad) for m in (policy, base)), strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert not list((run / "ppo").rglob("best-*"))
