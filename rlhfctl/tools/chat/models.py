"""Load the models of a chat, sample their answers token by token, and score them with the run's reward.

Prompts, the pad mask, stop tokens and stop strings are those of PPO and of the comparison. Keeps the models that are
asked in memory; reads and writes no files beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rlhfctl.artifacts import Source
from rlhfctl.data.encoding import Encoder
from rlhfctl.errors import RlhfctlError
from rlhfctl.generation.generator import Sampling, sampling_for
from rlhfctl.generation.streaming import readable, stream
from rlhfctl.models import devices, loading
from rlhfctl.models.architecture import context_of
from rlhfctl.models.classifiers import Classifier
from rlhfctl.models.language_model import LanguageModel
from rlhfctl.recipe.schema import Ppo, Recipe
from rlhfctl.recipe.sections.scorers import REWARD_FUNCTION, REWARD_MODEL
from rlhfctl.rewards.build import LoadedRewardModel, Resources, build_scorer
from rlhfctl.rewards.episode import Episode, RewardFunction, make_episode
from rlhfctl.stages.loader import Base, Loader
from rlhfctl.tools.chat.conversation import Answer, Prompt
from rlhfctl.tools.chat.stages import Choice

Say = Callable[[str], None]


@dataclass
class Speaker:
    """A loaded model that answers. `sampling`: how its recipe samples; `context`: tokens that it reads, None: any."""

    choice: Choice
    base: Base
    sampling: Sampling
    model: LanguageModel
    context: int | None

    @classmethod
    def load(cls, choice: Choice, *, roles: bool, say: Say) -> Speaker:
        """Load a model and verify it. `roles`: prompts are conversations."""
        loader = replace(Loader.of(choice.recipe, note=say, warn=say), conversations=roles)
        with loading.silence_libraries():
            base = loader.load_base(choice.source)
        base.model.to(devices.device()).eval()
        recipe = choice.recipe
        sampling = sampling_for(recipe.ppo or Ppo(), base.tokenizer, seed=recipe.seed, stream=0)
        if recipe.ppo is None and recipe.compare is not None and recipe.compare.max_new_tokens is not None:
            sampling = replace(sampling, max_new_tokens=recipe.compare.max_new_tokens)
        model = LanguageModel(base.model, base.tokenizer.pad_token_id)
        return cls(choice, base, sampling, model, context_of(base.model.config))

    @property
    def name(self) -> str:
        return self.choice.name

    def begin(self, prompt: Prompt, settings: Settings, draw: int) -> Draft:
        """Begin an answer; RlhfctlError if the prompt leaves no room. `draw`: decides its random numbers."""
        tokenizer = self.base.tokenizer
        ids = Encoder(tokenizer).prompt(prompt)
        room = settings.max_new_tokens or self.sampling.max_new_tokens
        left = None if self.context is None else self.context - len(ids)
        if left is not None and left < 1:
            raise RlhfctlError(
                f"the prompt has {len(ids)} tokens, and the model reads {self.context}: no room is left for an answer",
                where=self.name,
                fix="/new begins a new conversation, /undo takes the last turn back; or write less",
            )
        wanted = room
        room = room if left is None else min(room, left)
        sampling = replace(
            self.sampling,
            max_new_tokens=room,
            temperature=settings.temperature or None,  # 0 is greedy
            seed=settings.seed,
        )
        return Draft(self, prompt, ids, sampling, draw, short=room < wanted)


@dataclass(frozen=True)
class Settings:
    """How answers are sampled: temperature (0: greedy), seed, longest answer in tokens (None: as the recipe says)."""

    temperature: float
    seed: int
    max_new_tokens: int | None = None


@dataclass
class Draft:
    """An answer under way. `short`: the context leaves less room than an answer may need."""

    speaker: Speaker
    prompt: Prompt
    prompt_ids: list[int]
    sampling: Sampling
    draw: int
    short: bool
    ids: list[int] = field(default_factory=list)
    text: str = ""  # as far as it is certain
    ended: bool = False
    over: bool = False

    def tokens(self) -> Iterator[str]:
        """Sample the answer; yield the text so far after each token."""
        tokenizer, stops = self.speaker.base.tokenizer, self.sampling.stop_strings
        for token, ended in stream(self.speaker.model, self.prompt_ids, tokenizer, self.sampling, self.draw):
            self.ids.append(token)
            self.ended = ended
            self.text = readable(self.ids, tokenizer, stops)
            yield self.text
        self.text, self.over = self._whole_text(), True

    def episode(self) -> Episode:
        """Return the prompt and the answer as rewards read them in PPO."""
        row = {"prompt": self.prompt}
        tokenizer, stops = self.speaker.base.tokenizer, self.sampling.stop_strings
        return make_episode(tokenizer, row, self.prompt_ids, self.ids, stops)

    def answer(self, score: float | None) -> Answer:
        """Return the answer as it is now; one that is not over was stopped."""
        return Answer(self.speaker.name, self.text, len(self.ids), self.ended, not self.over, score)

    def _whole_text(self) -> str:
        completion = self.episode().completion
        return completion if isinstance(completion, str) else str(completion[-1]["content"])


class Scorer:
    """Score answers with the reward of a run: its reward model, which is loaded once, or its function."""

    def __init__(self, source: Source | None, recipe: Recipe, say: Say) -> None:
        self.source, self.recipe = source, recipe
        self.loader = Loader.of(recipe, note=say, warn=say)
        self.loaded: LoadedRewardModel | None = None
        self.built: list[tuple[Any, RewardFunction]] = []  # a policy's tokenizer, and what scores its ids

    @classmethod
    def of(cls, source: Source | None, recipe: Recipe, say: Say) -> Scorer | None:
        """Make the scorer of a run: its reward model `source`, or its function; None if it has neither."""
        function = recipe.reward.function if recipe.reward is not None else None
        return cls(source, recipe, say) if source is not None or function is not None else None

    @property
    def name(self) -> str:
        """The name of the reward for people: that of its stage, function or folder."""
        section = self.recipe.reward
        if self.source is None:
            return f"{section.function}" if section is not None else "reward"
        return self.source.name if self.source.artifact is None else str(self.source.artifact.stage)

    def score(self, draft: Draft) -> float:
        """Score an answer that is over, as PPO scores it: before any penalty for a missing end."""
        with loading.silence_libraries():
            return float(self.scorer(draft.speaker.base.tokenizer)([draft.episode()])[0])

    def scorer(self, tokenizer: Any) -> RewardFunction:
        """Return what scores the ids of a policy with this tokenizer; load the reward model first if need be."""
        known = next((scorer for one, scorer in self.built if one is tokenizer), None)
        if known is None:
            with loading.silence_libraries():
                known = self._build(tokenizer)
            self.built.append((tokenizer, known))
        return known

    def _build(self, tokenizer: Any) -> RewardFunction:
        resources = replace(Resources.of(self.recipe), batch_size=1, function_batch_size=1, warn=self.loader.warn)
        if self.source is None:
            return build_scorer(REWARD_FUNCTION, resources)
        if self.loaded is None:
            self.loaded = self.loader.load_scoring_model(self.source, tokenizer)
        if isinstance(self.loaded.model, Classifier):
            loaded = self.loaded
        else:
            other = self.loader.other_tokenizer(self.source, tokenizer)
            loaded = LoadedRewardModel(self.loaded.model, tokenizer.pad_token_id, other)
        return build_scorer(REWARD_MODEL, replace(resources, reward_model=lambda: loaded))
