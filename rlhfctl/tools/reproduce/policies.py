"""Measure the policies that runs end with: gold, the reward model's score and the KL of several answers to each prompt.

    base, policies ──▶ answers to the eval prompts ──▶ gold, reward model, exact KL ──▶ RUN/measured.json

The reference answers the same prompts with random numbers of its own, so that a policy that is the reference wins half
of the comparisons. What is measured already, by the fingerprints of the models, is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhfctl import fs
from rlhfctl.artifacts import Source, load_artifact, read_json
from rlhfctl.data.types import PromptSplit, Row
from rlhfctl.events import Event, report_progress_to
from rlhfctl.paths import RunPaths
from rlhfctl.recipe.load import load_recipe
from rlhfctl.recipe.schema import Recipe

MEASURED = "measured.json"  # in the folder of a run
_STREAM, _STREAM_OF_REFERENCE = 6 << 32, 7 << 32  # streams of random numbers that no stage uses
_BATCH = 256  # responses sampled at once


@dataclass(frozen=True)
class Policy:
    """A policy to measure: the run's folder within that of the seed, and its stage (ppo or dpo)."""

    run: str
    stage: str


@dataclass(frozen=True)
class Answers:
    """What a policy's answers are worth, each (prompts, answers): gold, the reward model's score, the KL in nats."""

    gold: list[list[float]]
    score: list[list[float]]
    kl: list[list[float]]


def read_answers(run: Path) -> Answers:
    """Read what was measured of the policy of a run, or of the reference in the folder of the base."""
    return Answers(**read_json(run / MEASURED)["answers"])


def measure_all(
    base: Path,
    reward: Path,
    policies: Sequence[Policy],
    answers: int,
    listen: Callable[[Event], None],
    say: Callable[[str], None],
) -> None:
    """Measure the reference and the policies of the runs beside `base`, where that has not been done.

    `base`: the run that made base*; its recipe names prompts and sampling. `reward`: the reward model's folder.
    `answers`: to each eval prompt.
    """
    todo = {}
    shared = [load_artifact(path).fingerprint for path in (base / "sft", reward)]
    for name, folder in [(base.name, None), *((one.run, base.parent / one.run / one.stage) for one in policies)]:
        of = [*shared, *([] if folder is None else [load_artifact(folder).fingerprint]), str(answers)]
        file = base.parent / name / MEASURED
        if not file.is_file() or read_json(file)["of"] != of:
            todo[name] = (folder, of, file)
    if not todo:
        return
    with report_progress_to(listen, "measure"):
        measuring = _Measuring(base, reward, answers)
        for name, (folder, of, file) in todo.items():
            say(f"{base.parent.name}: {'the reference' if folder is None else name} answers the eval prompts")
            fs.write_json(file, {"of": of, "answers": asdict(measuring(folder))})


class _Measuring:
    """Measure one policy after the other; prompts and reference are loaded once."""

    def __init__(self, base: Path, reward: Path, answers: int) -> None:
        from rlhfctl.models import loading
        from rlhfctl.stages import door
        from rlhfctl.training.trl.quiet import quiet_libraries

        self.reward, self.answers = reward, answers
        self.recipe: Recipe = load_recipe(RunPaths(base).recipe).recipe
        door.load_data_libraries()
        split = door.load_data(self.recipe.data, self.recipe.data_seed, ["prompts"])["prompts"].split
        assert isinstance(split, PromptSplit)
        self.quiet, self.silent = lambda: quiet_libraries(RunPaths(base).log), loading.silence_libraries
        self.reference = self._load(base / "sft")
        self.rows, self.prompts = self._fitting(split.eval)

    def __call__(self, policy: Path | None) -> Answers:
        from rlhfctl.generation import local
        from rlhfctl.generation.generator import sampling_for
        from rlhfctl.generation.kl import exact_kl
        from rlhfctl.rewards.episode import make_episode
        from rlhfctl.tools.score import score_responses
        from rlhfctl.world import gold

        section = self.recipe.ppo
        assert section is not None
        own = self.reference if policy is None else self._load(policy)
        stream = _STREAM_OF_REFERENCE if policy is None else _STREAM
        sampling = sampling_for(section, own.tokenizer, seed=self.recipe.seed, stream=stream)
        rows = [row for row in self.rows for _ in range(self.answers)]
        prompts = [ids for ids in self.prompts for _ in range(self.answers)]
        with self.quiet():
            drawn = local.sample(own.model, prompts, own.tokenizer, replace(sampling, batch_size=_BATCH))
            ids = [response.ids for response in drawn]
            episodes = [
                make_episode(own.tokenizer, row, prompt, response, sampling.stop_strings)
                for row, prompt, response in zip(rows, prompts, ids, strict=True)
            ]
            models = (own.model, self.reference.model)
            pad = own.tokenizer.pad_token_id
            kl = exact_kl(*models, prompts, ids, pad, temperature=section.temperature, batch_size=_BATCH)
        texts = [(str(episode.prompt), str(episode.completion)) for episode in episodes]
        worth = gold.score([prompt for prompt, _ in texts], [response for _, response in texts])
        score = score_responses(self.reward, texts, batch_size=_BATCH)
        return Answers(*(self._by_prompt(values) for values in (worth, score, kl)))

    def _load(self, folder: Path) -> Any:
        from rlhfctl.stages.loader import Loader

        recipe = load_recipe(RunPaths(folder.parent).recipe).recipe
        with self.silent():
            loader = Loader.of(recipe, note=lambda sentence: None, warn=lambda sentence: None)
            return loader.load_base(Source.of(load_artifact(folder)))

    def _fitting(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[list[int]]]:
        from rlhfctl.data.fitting import encode_prompts
        from rlhfctl.models.architecture import context_of

        assert self.recipe.ppo is not None
        context, length = context_of(self.reference.model.config), self.recipe.ppo.response_length
        return encode_prompts(rows, self.reference.tokenizer, context, length, self.recipe.data, lambda sentence: None)

    def _by_prompt(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values[at : at + self.answers]) for at in range(0, len(values), self.answers)]
