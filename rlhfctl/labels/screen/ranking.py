"""Keep the ranking of several responses while an annotator types it: best first, with ties. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

KEYS = "123456789acdefgh"
"""The key of each place on the screen. `b` is missing: it means that all responses are bad."""


@dataclass(frozen=True)
class Ranking:
    """What is ranked so far of `count` responses. Each method returns a new ranking.

    `groups`: places on the screen, best first; the places of one group are equally good. `tie`: the next place that is
    chosen joins the last group.
    """

    count: int
    groups: tuple[tuple[int, ...], ...] = ()
    tie: bool = False

    def choose(self, place: int) -> Ranking:
        """Rank a place next; a place that has its rank, or does not exist, changes nothing."""
        if place >= self.count or self.rank_of(place) is not None:
            return self
        if self.tie:
            return replace(self, groups=(*self.groups[:-1], (*self.groups[-1], place)), tie=False)
        return replace(self, groups=(*self.groups, (place,)))

    def toggle_tie(self) -> Ranking:
        """Say that the next place is as good as the one before, or take that back."""
        return replace(self, tie=not self.tie) if self.groups and self.left else self

    def back(self) -> Ranking:
        """Take back the last thing typed: the tie, else the last place."""
        if self.tie or not self.groups:
            return replace(self, tie=False)
        rest = self.groups[-1][:-1]
        return replace(self, groups=(*self.groups[:-1], rest) if rest else self.groups[:-1])

    def rank_of(self, place: int) -> int | None:
        """Return the rank of a place, 0 for the best; None if it has none yet."""
        return next((rank for rank, group in enumerate(self.groups) if place in group), None)

    @property
    def left(self) -> list[int]:
        """The places without a rank, in the order of the screen."""
        return [place for place in range(self.count) if self.rank_of(place) is None]

    def finished(self) -> Ranking | None:
        """Return the ranking with all places ranked; None while more than one place is left.

        A single place that is left is the worst, or as good as the one before if a tie was typed.
        """
        left = self.left
        if len(left) > 1:
            return None
        return self.choose(left[0]) if left else self

    def ranks(self) -> list[int]:
        """Return the rank of each place on the screen; ValueError if one has none."""
        found = [self.rank_of(place) for place in range(self.count)]
        if any(rank is None for rank in found):
            raise ValueError("not every response has a rank")
        return [rank for rank in found if rank is not None]

    def __str__(self) -> str:
        """Write the keys of the places, best first: `2 = 1 > 3`."""
        said = " > ".join(" = ".join(KEYS[place] for place in group) for group in self.groups)
        return f"{said} =" if self.tie else said
