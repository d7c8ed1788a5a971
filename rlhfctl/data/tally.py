"""Count what happens to the rows of one source, so that each kind of change is said once, with its number.

Filled by columns.py, messages.py, formats.py and sources.py; load.py makes the sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What was made of rows, what was dropped, and which columns were read."""

    made: Counter[str] = field(default_factory=Counter)  # a sentence without its number -> how often
    dropped: Counter[str] = field(default_factory=Counter)  # what was left out -> how many rows or pairs
    used: set[str] = field(default_factory=set)  # columns, under our names, that something was read from
    examples: dict[str, str] = field(default_factory=dict)  # a sentence, and the first of its kind
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # "file:line", and why it gives no row
    unreadable_fix: str = ""

    def add(self, other: Tally) -> None:
        """Take in what another counted."""
        self.made.update(other.made)
        self.dropped.update(other.dropped)
        self.used |= other.used
        self.examples = other.examples | self.examples

    def read(self, *names: str) -> None:
        """Note that these columns were read."""
        self.used.update(names)

    def sentences(self) -> Iterable[str]:
        """Give a sentence for each kind of change."""
        yield from (f"{count} {what}" for what, count in sorted(self.made.items()))
        yield from (f"{what} {first}" for what, first in self.examples.items())
