"""Every model family through the whole `run`: what the engine computes is what plain transformers computes.

Which embeddings, tokenizer, template, weights and critic each family has is spread out so that each two of them meet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import CHAT, FAMILIES, Family
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhfctl import pipeline
from rlhfctl.artifacts import load_artifact
from rlhfctl.errors import RlhfctlError
from rlhfctl.events import Event, Metrics, Note, StageFinished
from rlhfctl.models.special_tokens import PAD_LOGIT
from rlhfctl.recipe.load import load_recipe
from rlhfctl.training.rl.collect import AGREEMENT
from rlhfctl.world import reviews

RECIPE = """\
name: family
model: {path: base}
lora: {r: 4, lora_alpha: 8}
data:
  demonstrations: {source: demos.jsonl}
  preferences: {source: pairs.jsonl, heldout: 0.25}
  prompts: {source: prompts.jsonl, eval: 2, test: 8}
sft:
  checkpoint_steps: 100
  trainer: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 8}
reward:
  checkpoint_steps: 100
  trainer: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 8}
ppo:
  total_episodes: 32
  per_device_train_batch_size: 16
  num_mini_batches: 2
  num_ppo_epochs: 2
  learning_rate: 1e-3
  response_length: 10
  temperature: 1.0
  checkpoint_steps: 100
  trace_every: 1
  trace_episodes: 16
  eval: {every: 100}
compare: {samples_per_prompt: 1, judges: [reward_model], bootstrap_samples: 100}
"""
STAGES = ("sft", "reward", "ppo", "compare")
CLOSE = 2e-5  # nats: float32, another order of operations


@dataclass(frozen=True)
class Ran:
    family: Family
    folder: Path
    events: list[Event]

    @property
    def run(self) -> Path:
        return self.folder / "run"


def write_rows(family: Family, folder: Path) -> None:
    """The built-in task's rows in files; as conversations where there is a template."""

    def text(value: str, role: str) -> Any:
        return value if family.template is None else [{"role": role, "content": value.strip()}]

    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    for name, rows in {
        "demos": reviews.demonstrations(16, 0),
        "pairs": reviews.preferences(20, 0, 0.0),
        "prompts": reviews.prompts(30, 0),
    }.items():
        shaped = [{key: text(row[key], role) for key, role in roles.items() if key in row} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shaped))


def prepare(family: Family, folder: Path) -> list[str]:
    """Base, data and recipe in `folder`; the overrides with which the family is trained."""
    families.write(family, folder / "base")
    write_rows(family, folder)
    (folder / "family.yaml").write_text(RECIPE)
    (folder / "chat.jinja").write_text(CHAT)
    template = [f"model.chat_template={folder / 'chat.jinja'}"] if family.template == "recipe" else []
    return [f"ppo.critic={family.critic}", *template, *(f"{stage}.lora=null" for stage in family.whole)]


def run_all(folder: Path, *overrides: str, until: str | None = None) -> list[Event]:
    events: list[Event] = []
    (folder / "run").mkdir(exist_ok=True)
    loaded = load_recipe(folder / "family.yaml", overrides)
    pipeline.run(loaded, folder / "run", pipeline.Request(until=until), events.append)
    return events


@pytest.fixture(scope="module", params=FAMILIES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    yield Ran(family, folder, run_all(folder, *prepare(family, folder)))


def plain(run: Path, part: str) -> Any:
    """What `part` of a stage holds, as anybody loads it: transformers, and peft where it is an adapter."""
    head = part in ("reward", "ppo/critic")
    kind = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    more = {"num_labels": 1} if head else {}
    folder = {"base": run / "sft", "reward": run / "reward", "policy": run / "ppo"}.get(part, run / part)
    if (folder / "adapter").is_dir() and part != "base":
        folder = folder / "adapter"
    elif (folder / "model").is_dir():
        folder = folder / "model"
    if not (folder / "adapter_config.json").is_file():
        return kind.from_pretrained(folder, **more).eval()
    base = kind.from_pretrained(run / "sft" / "model", **more)
    return PeftModel.from_pretrained(base, folder).eval()


def traces(run: Path, update: int) -> list[dict[str, Any]]:
    lines = (run / "ppo" / "traces" / f"update-{update:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ids_of(tokenizer: Any, episode: dict[str, Any]) -> tuple[list[int], list[int]]:
    return list(tokenizer(episode["prompt"], add_special_tokens=False)["input_ids"]), episode["ids"]


def logprobs(model: Any, prompt: list[int], response: list[int], pad: int) -> list[float]:
    """Of each token of the response, alone in its batch, pad masked."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logits[:, pad] = PAD_LOGIT
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0].tolist()


def test_every_stage_is_complete_and_says_so(ran: Ran) -> None:
    for stage in STAGES:
        load_artifact(ran.run / stage).verify()
    assert [event.stage for event in ran.events if isinstance(event, StageFinished)] == list(STAGES)
    for stage in STAGES[:3]:
        parts = set(load_artifact(ran.run / stage).manifest.layout)
        whole, lora = stage in ran.family.whole, {"adapter", "model"} if stage == "sft" else {"adapter"}
        assert parts & {"adapter", "model"} == ({"model"} if whole else lora), stage
    report = json.loads((ran.run / "compare" / "compare.json").read_text())
    assert report["prompts"] == 8 and report["verdict"] in ("better", "worse", "undecided", "mixed")
    assert len((ran.run / "compare" / "samples.jsonl").read_text().splitlines()) == 8


def test_rollout_update_and_reference_agree_at_the_start(ran: Ran) -> None:
    first, second = [e.values for e in ran.events if isinstance(e, Metrics) and e.stage == "ppo" and e.split == "train"]
    assert 0.0 < first["rollout_gap"] <= AGREEMENT and "rollout_gap" not in second  # so nothing is computed twice
    assert not any("round differently" in e.message for e in ran.events if isinstance(e, Note))
    assert abs(first["kl"]) < 1e-5 < 1e-4 < abs(second["kl"])
    for episode in traces(ran.run, 1):
        assert episode["policy_logprobs"] == pytest.approx(episode["reference_logprobs"], abs=AGREEMENT)


def test_what_the_engine_computes_is_what_transformers_computes(ran: Ran) -> None:
    """Each sampled token's log-probability under base*, and each response's score: row by row, without our code."""
    base, reward = plain(ran.run, "base"), plain(ran.run, "reward")
    tokenizer = AutoTokenizer.from_pretrained(ran.run / "sft" / "model")
    episodes = traces(ran.run, 1)
    window = ran.family.config.get("sliding_window", 0)
    assert all(len(episode["ids"]) + len(ids_of(tokenizer, episode)[0]) > 2 * window for episode in episodes)
    assert len(episodes) == 16 and len({len(ids_of(tokenizer, episode)[0]) for episode in episodes}) > 1
    for episode in episodes:
        prompt, response = ids_of(tokenizer, episode)
        expected = logprobs(base, prompt, response, tokenizer.pad_token_id)
        assert episode["policy_logprobs"] == pytest.approx(expected, abs=CLOSE)
        with torch.no_grad():
            score = float(reward(input_ids=torch.tensor([prompt + response])).logits)
        assert episode["raw_score"] == pytest.approx(score, abs=1e-5)
    for episode in traces(ran.run, 2):  # the policy has moved, the reference has not
        expected = logprobs(base, *ids_of(tokenizer, episode), tokenizer.pad_token_id)
        assert episode["reference_logprobs"] == pytest.approx(expected, abs=CLOSE)
        assert max(abs(a - b) for a, b in zip(episode["policy_logprobs"], expected, strict=True)) > 1e-4


def test_the_policy_loads_in_plain_transformers_and_is_not_base(ran: Ran) -> None:
    kept = json.loads((ran.run / "ppo" / "probes.json").read_text())
    ids = torch.tensor([kept["rows"][0]])
    policy, base, start = (plain(ran.run, part) for part in ("policy", "base", "../base"))
    with torch.no_grad():
        logits, of_base = policy(input_ids=ids).logits, base(input_ids=ids).logits
        before = start(input_ids=ids.clamp(max=start.config.vocab_size - 1)).logits  # a pad token may have been added
    shared = min(of_base.shape[-1], before.shape[-1])
    moved = float((of_base[..., :shared] - before[..., :shared]).abs().max())
    assert bool(torch.isfinite(logits).all()) and moved > 1e-3
    assert float((logits - of_base).abs().max()) > 1e-3
    expected = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    assert kept["logprobs"][0] == pytest.approx(expected, abs=1e-4)
    critic = plain(ran.run, "ppo/critic") if ran.family.critic != "head" or "ppo" in ran.family.whole else None
    if critic is not None:
        with torch.no_grad():
            assert bool(torch.isfinite(critic(input_ids=ids).logits).all())


def test_tokenizer_template_and_ties_travel_to_the_last_artifact(ran: Ran) -> None:
    family = ran.family
    last = ran.run / "ppo" / ("model" if "ppo" in family.whole else "adapter")
    for folder in (ran.run / "sft" / "model", last, ran.run / "ppo" / "critic"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        own = ("{{ bos_token }}" if family.bos else "") + CHAT
        assert tokenizer.chat_template == {None: None, "own": own, "recipe": CHAT}[family.template]
        assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id
        assert (tokenizer.pad_token == "<pad>") is family.pad
        assert tokenizer.eos_token == ("</s>" if family.template is None else "<|end|>")
    begin = 1 if family.bos and family.template != "recipe" else 0  # a template writes it or not
    assert all(episode["prompt"].count("<s>") == begin for episode in traces(ran.run, 1))
    model = plain(ran.run, "policy" if "ppo" in family.whole else "base")
    together = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert together is family.tied


def test_each_two_properties_meet_in_some_family() -> None:
    found = [family.axes() for family in FAMILIES.values()]
    values = {axis: {case[axis] for case in found} for axis in found[0]}
    for one, other in itertools.combinations(values, 2):
        met = {(case[one], case[other]) for case in found}
        wanted = set(itertools.product(values[one], values[other]))
        wanted -= {("adapter", True)} if (one, other) == ("critic", "whole") else set()  # an adapter needs LoRA
        assert met >= wanted, (one, other, wanted - met)


@pytest.mark.parametrize(
    ("name", "target"), [("gpt2", "wte"), ("gpt2", "lm_head"), ("gemma3", "embed_tokens"), ("opt", ".*(embed_tokens)")]
)
def test_lora_on_tied_embeddings_is_refused(name: str, target: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    overrides = [override for override in prepare(family, tmp_path) if not override.endswith("lora=null")]
    modules = f'"{target}"' if target.startswith(".") else f"[q_proj, c_attn, {target}]"
    with pytest.raises(RlhfctlError, match="LoRA on embeddings is refused: they are tied") as caught:
        run_all(tmp_path, *overrides, f"lora.target_modules={modules}", until="sft")
    assert str(caught.value.where).endswith("lora.target_modules") and "leave out" in str(caught.value.fix)
