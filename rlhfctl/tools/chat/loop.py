"""Talk: read a line, do what it says, until the input ends: `rlhfctl chat`."""

from __future__ import annotations

from pathlib import Path

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat.commands import obey
from rlhfctl.tools.chat.screen import Screen, open_screen
from rlhfctl.tools.chat.session import Session
from rlhfctl.tools.chat.stages import RunModels

WELCOME = "/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat."


def talk(
    run: Path,
    *,
    stage: str | None = None,
    against: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    prompts: str | None = None,
    screen: Screen | None = None,
) -> None:
    """Talk to a model of the run until the input ends. Without a person the first error ends the chat."""
    screen = screen if screen is not None else open_screen()
    session = Session.open(
        RunModels(run),
        screen,
        stage=stage,
        against=against,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        prompts=prompts,
    )
    screen.note(session.described())
    screen.note(WELCOME)
    while True:
        try:
            obey(checked(screen.read()), session)
        except EOFError:
            screen.note("")
            return
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
            screen.note("\nCtrl-D ends the chat")
        except RlhfctlError as error:
            if not screen.interactive:
                raise
            screen.error(str(error))


def checked(text: str) -> str:
    """Return the user's text; RlhfctlError if its bytes are no characters, which no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RlhfctlError("the text is not UTF-8", where="standard input", fix="write it in UTF-8") from None
    return text
