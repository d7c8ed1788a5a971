"""Read what a person types for each side of a conversation, and do what it says, until the input ends."""

from __future__ import annotations

import re

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.chat.loop import checked
from rlhfctl.tools.write.commands import obey
from rlhfctl.tools.write.writer import Writer

_CHOICE = re.compile(r"\s*[0-9]+\s*([>=]\s*[0-9]+\s*)*")


def write_until_the_end(writer: Writer) -> None:
    """Read and obey lines until the input ends. Without a person the first error ends it."""
    screen = writer.screen
    writer.resume()
    while True:
        try:
            _step(writer)
        except EOFError:
            writer.leave()
            return
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
            screen.note("\nCtrl-D leaves; what is written stays")
        except RlhfctlError as error:
            if writer.ending or not screen.interactive:
                raise
            screen.error(str(error))


def _step(writer: Writer) -> None:
    """Read a line of the side whose turn it is. An empty one ends the conversation, or takes the best suggestion."""
    turn = writer.conversation.waiting
    if turn is not None and writer.since is None:
        writer.show(turn)
    text = checked(writer.screen.read(writer.sides[0 if turn is None else 1]))
    if text.startswith("/") and not text.startswith("//"):
        obey(text, writer)
        return
    said = text[1:] if text.startswith("//") else text
    if turn is None:
        if said.strip():
            writer.say(said)
        elif writer.conversation.turns:
            writer.end()
    elif _CHOICE.fullmatch(said):
        writer.choose(turn, said)
    elif said.strip():
        writer.answer(turn, said)
    else:
        writer.take_best(turn)
