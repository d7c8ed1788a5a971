"""Count the changes to the rows of one source, so that each kind of change is reported once, with its number.

columns.py, messages.py, formats.py and sources.py count; load.py reports the sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of changed and dropped rows, and the columns that were read."""

    made: Counter[str] = field(default_factory=Counter)  # a sentence without its number -> number of rows
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> number of rows or pairs left out
    used: set[str] = field(default_factory=set)  # columns that were read, under rlhfctl's names
    examples: dict[str, str] = field(default_factory=dict)  # a sentence -> its first example
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # "file:line", and the reason why it gives no row
    unreadable_fix: str = ""

    def add(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.made.update(other.made)
        self.dropped.update(other.dropped)
        self.used |= other.used
        self.examples = other.examples | self.examples

    def read(self, *names: str) -> None:
        """Record that these columns were read."""
        self.used.update(names)

    def sentences(self) -> Iterable[str]:
        """Return a sentence for each kind of change."""
        yield from (f"{count} {what}" for what, count in sorted(self.made.items()))
        yield from (f"{what} {first}" for what, first in self.examples.items())
