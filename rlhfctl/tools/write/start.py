"""Start `rlhfctl label --write`: load the model of a run that suggests answers, and open the files to write into."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rlhfctl.errors import RlhfctlError
from rlhfctl.models import loading
from rlhfctl.tools.chat.conversation import Answer
from rlhfctl.tools.chat.models import Settings, Speaker
from rlhfctl.tools.chat.screen import Screen, open_screen
from rlhfctl.tools.chat.session import load_speaker, settings_of
from rlhfctl.tools.chat.stages import RunModels, reads_conversations
from rlhfctl.tools.label import user_name
from rlhfctl.tools.write.book import open_book
from rlhfctl.tools.write.conversation import Prompt
from rlhfctl.tools.write.loop import write_until_the_end
from rlhfctl.tools.write.writer import Writer


@dataclass
class Model:
    """A loaded model that suggests answers: equal prompt, seed and number of the draw give the same answer."""

    speaker: Speaker
    settings: Settings
    screen: Screen

    def __call__(self, prompt: Prompt, draw: int, place: int) -> Answer:
        """Draw an answer; in a terminal it is seen while it grows."""
        with loading.silence_libraries():  # the error says it, where a prompt is too long
            draft = self.speaker.begin(prompt, self.settings, draw)
        grows = self.screen.answering([f"suggestion {place}"]) if self.screen.together else nullcontext(_unseen)
        with grows as show:
            for text in draft.tokens():
                show(0, text)
        return draft.answer(None)


def _unseen(index: int, text: str) -> None:
    """Draw nothing: a script reads whole suggestions."""


def write(
    what: Path,
    *,
    annotator: str | None = None,
    turns: int | None = None,
    count: int | None = None,
    to: Path | None = None,
    stage: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    screen: Screen | None = None,
) -> None:
    """Let a person write conversations beside suggestions of a run's model until the input ends.

    What is None is as usual: two suggestions of the last policy, sampled as the recipe says.
    """
    run = RunModels(what)
    screen = screen if screen is not None else open_screen()
    with open_book(run.paths, to, annotator or user_name()) as book:
        choice = run.choose(stage)
        asked = reads_conversations(run)
        speaker = load_speaker(choice, screen, roles=asked)
        roles = asked and speaker.base.tokenizer.chat_template is not None
        if turns is not None and turns > 1 and not roles:
            raise RlhfctlError(
                "the prompts of this run are plain texts: each stands alone with its answer",
                where="--turns",
                fix="leave it out, or name a run whose model has a chat template",
            )
        settings = settings_of(run.recipe, temperature, seed, None)
        writer = Writer(screen, book, Model(speaker, settings, screen), roles, longest=turns)
        writer.count = writer.count if count is None else count
        kind = "Each conversation" if roles else "Each prompt with its answer"
        screen.note(
            f"You write both sides; {choice.name} of {what} suggests answers (seed {settings.seed}). {kind} is kept in "
            f"{book.to}, what you say about suggestions in {run.paths.labels}."
        )
        screen.note("/help lists the commands; Ctrl-D leaves.")
        write_until_the_end(writer)
