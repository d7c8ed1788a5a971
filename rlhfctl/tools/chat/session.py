"""Run a chat: ask one or two models of a run, score their answers, and keep the conversation.

The screen draws and reads; commands.py says what `/words` do. Two models get the same random numbers, as in the
comparison. Ctrl-C stops an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlhfctl.dashboard.terminal.progress import progress_bar
from rlhfctl.errors import HandoffError, RlhfctlError
from rlhfctl.events import report_progress_to
from rlhfctl.models import devices
from rlhfctl.recipe.schema import Recipe
from rlhfctl.tools.chat.conversation import Answer, Conversation, Prompt, Turn
from rlhfctl.tools.chat.models import Draft, Scorer, Settings, Speaker
from rlhfctl.tools.chat.screen import Screen
from rlhfctl.tools.chat.stages import Choice, RunModels, reads_conversations

NOBODY = "none"  # after /against: no second model


@dataclass
class Session:
    """One chat. `left` answers; `right` answers beside it, if there is one."""

    run: RunModels
    screen: Screen
    left: Speaker
    settings: Settings
    conversation: Conversation
    right: Speaker | None = None
    scorer: Scorer | None = None
    draws: int = 0  # answers drawn so far: each has random numbers of its own

    @classmethod
    def open(
        cls,
        run: RunModels,
        screen: Screen,
        *,
        stage: str | None = None,
        against: str | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        prompts: str | None = None,
    ) -> Session:
        """Load the models. What is None is as the run's recipe says; `prompts`: text or conversation."""
        choice = run.choose(stage)
        other = run.choose(against) if against is not None else None  # a wrong name is told before weights load
        asked = reads_conversations(run) if prompts is None else prompts == "conversation"
        left = load_speaker(choice, screen, roles=asked)
        roles = asked and left.base.tokenizer.chat_template is not None
        if prompts == "conversation" and not roles:
            raise _no_template(left)
        settings = settings_of(run.recipe, temperature, seed, max_new_tokens)
        session = cls(run, screen, left, settings, Conversation(roles))
        if other is not None:
            session.set_right(other)
        session._find_scorer(choice)
        return session

    def _find_scorer(self, choice: Choice) -> None:
        """Load the reward that scores answers; say so if it cannot be used."""
        said: list[str] = []
        try:
            scorer = Scorer.of(self.run.reward(choice), self.run.recipe, said.append)
            if scorer is not None:
                with _loading():
                    scorer.scorer(self.left.base.tokenizer)
            self.scorer = scorer
        except HandoffError as error:
            said.append(f"answers are not scored: {error}")
        for sentence in said:
            self.screen.note(sentence)

    def described(self) -> str:
        """Describe the chat in a few sentences: models, sampling, kind of prompts, what scores."""
        beside = "" if self.right is None else f" beside {self.right.name}"
        longest = self.settings.max_new_tokens or self.left.sampling.max_new_tokens
        temperature = f"temperature {self.settings.temperature:g}" if self.settings.temperature else "greedy"
        kind = (
            "The model reads the whole conversation."
            if self.conversation.roles
            else "Each text is a prompt of its own, which the model completes: it reads nothing that was said before."
        )
        score = "" if self.scorer is None else f" Scores are those of {self.scorer.name}."
        goes_on = " The conversation goes on with the left answer, or with the one that you prefer."
        both = goes_on if self.right is not None and self.conversation.roles else ""
        return (
            f"{self.left.name}{beside} of {self.run.paths.root}, {temperature}, seed {self.settings.seed}, up to "
            f"{longest} tokens. {kind}{both}{score}"
        )

    # ---------------------------------------------------------------- models

    def set_left(self, choice: Choice) -> None:
        """Let another model answer from here on."""
        self.left = self._speaker(choice, self.right)
        devices.release_memory()

    def set_right(self, choice: Choice | None) -> None:
        """Let a second model answer beside the first; None: no second model."""
        self.right = None if choice is None else self._speaker(choice, self.left)
        devices.release_memory()

    def _speaker(self, choice: Choice, loaded: Speaker | None) -> Speaker:
        """Load a model, or take the one that is `loaded` if it is the same."""
        if loaded is not None and loaded.choice.source == choice.source:
            return Speaker(choice, loaded.base, loaded.sampling, loaded.model, loaded.context)
        speaker = load_speaker(choice, self.screen, roles=self.conversation.roles)
        if self.conversation.roles and speaker.base.tokenizer.chat_template is None:
            raise _no_template(speaker)
        return speaker

    # ---------------------------------------------------------------- turns

    def say(self, text: str) -> None:
        """Ask the models, and keep the turn."""
        prompt = self.conversation.prompt(text)
        self.conversation.turns.append(Turn(text, prompt, self._ask(prompt)))

    def again(self) -> None:
        """Draw the last answers anew. A single model's earlier answer stays on the left, the new one is right."""
        last = self.conversation.last
        self.conversation.turns.pop()
        try:
            prompt = self.conversation.prompt(last.text)
            answers = self._ask(prompt)
        except BaseException:
            self.conversation.turns.append(last)
            raise
        turn = Turn(last.text, prompt, answers)
        if len(answers) == 1 and prompt == last.prompt:
            turn = Turn(last.text, prompt, [last.answers[last.used], *answers], used=1)
            self.screen.note("left: the answer before; right: this one (/prefer)")
        self.conversation.turns.append(turn)

    def _ask(self, prompt: Prompt) -> list[Answer]:
        """Ask each model for an answer to `prompt`."""
        speakers = [self.left] if self.right is None else [self.left, self.right]
        drafts = [speaker.begin(prompt, self.settings, self.draws) for speaker in speakers]
        for draft in drafts:
            if draft.short:
                left, context = draft.sampling.max_new_tokens, draft.speaker.context
                self.screen.note(f"{draft.speaker.name}: {left} of the context's {context} tokens are left to answer")
        self.draws += 1
        groups = [drafts] if self.screen.together else [[draft] for draft in drafts]
        return [answer for group in groups for answer in self._answers(group)]

    def _answers(self, drafts: Sequence[Draft]) -> list[Answer]:
        """Draw the answers of `drafts`, a token of each in turn, and score those that are over."""
        scores: dict[int, float] = {}
        trouble: RlhfctlError | None = None
        with self.screen.answering([draft.speaker.name for draft in drafts]) as show:
            try:
                running = [(index, draft, draft.tokens()) for index, draft in enumerate(drafts)]
                while running:
                    for one in list(running):
                        index, draft, tokens = one
                        if next(tokens, None) is None:
                            running.remove(one)
                        show(index, draft.text)
                for index, draft in enumerate(drafts):
                    if self.scorer is not None:
                        scores[index] = self.scorer.score(draft)
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
            except RlhfctlError as error:  # of the reward: the answers are there
                trouble, self.scorer = error, None
        answers = [draft.answer(scores.get(index)) for index, draft in enumerate(drafts)]
        self.screen.answered(answers)
        if trouble is not None:
            self.screen.error(f"answers are not scored any more: {trouble}")
        return answers


def settings_of(recipe: Recipe, temperature: float | None, seed: int | None, max_new_tokens: int | None) -> Settings:
    """Return how answers are sampled: what is None is as the recipe says."""
    warmth = recipe.ppo.temperature if recipe.ppo else recipe.compare.temperature if recipe.compare else 1.0
    return Settings(
        warmth if temperature is None else temperature, recipe.seed if seed is None else seed, max_new_tokens
    )


def load_speaker(choice: Choice, screen: Screen, *, roles: bool) -> Speaker:
    """Load a model with a progress bar, and say then what was noticed."""
    said: list[str] = []
    with _loading():
        speaker = Speaker.load(choice, roles=roles, say=said.append)
    for sentence in said:
        screen.note(sentence)
    return speaker


@contextmanager
def _loading() -> Iterator[None]:
    """Draw a progress bar of the loading inside the block."""
    with progress_bar() as emit, report_progress_to(emit, "chat"):
        yield


def _no_template(speaker: Speaker) -> RlhfctlError:
    return RlhfctlError(
        f"{speaker.name} has no chat template, and the prompts of this chat are conversations",
        where=speaker.choice.source.name,
        fix="name another model, or begin the chat with --prompts text",
    )
