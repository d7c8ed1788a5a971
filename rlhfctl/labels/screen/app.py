"""Lead an annotator through the questions of a desk in a terminal: keys in, labels to the store, the next question.

Each answer is stored in a thread, so that a slow or locked disk does not freeze the screen. Keys that arrive meanwhile
do nothing: the annotator has not yet seen the question that they would answer. Leaves out what is drawn (widgets.py)
and what is written (words.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.events import Resize
from textual.widgets import Static

from rlhfctl.dashboard.text import one_line
from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.desk import Desk, Progress, Question, Refused
from rlhfctl.labels.screen import words
from rlhfctl.labels.screen.ranking import KEYS, Ranking
from rlhfctl.labels.screen.widgets import Closing, HelpScreen, NoteScreen, QuestionView, drawn
from rlhfctl.labels.store import Event, Kind

WIDE = 100
"""Columns from which two responses stand side by side."""

PAUSE_S = 0.25
"""Seconds in which a new question takes no answer: a key that is held down must not answer several questions."""

LOOK_AGAIN_S = 5.0
"""Seconds between looks for a question while there is none."""

_LOW = 16  # rows below which the texts need the rows of the keys

_PLACES = [Binding(key, f"choose({place})", show=False) for place, key in enumerate(KEYS)]


_STYLE = """
#top { height: 1; text-style: reverse; padding: 0 1; }
#top Static { text-wrap: nowrap; text-overflow: ellipsis; }
#annotator { width: 1fr; text-style: reverse bold; }
#progress { width: auto; max-width: 80%; text-style: reverse; padding: 0 0 0 2; }
#body { height: 1fr; }
Pane { border: round $foreground 50%; border-title-style: bold; padding: 0 1;
       scrollbar-size-vertical: 1; min-height: 3; }
Pane:focus { border: heavy $foreground; }
Pane.ranked { border-title-style: reverse bold; }
#prompt { height: auto; }
.pair { height: 1fr; layout: vertical; overflow-y: auto; }
.pair Pane { height: 1fr; }
.list { height: 1fr; layout: vertical; scrollbar-size-vertical: 1; }
.list Pane { height: auto; }
.-wide .pair { layout: horizontal; }
.-wide .list { layout: grid; grid-size: 2; grid-rows: auto; }
#closing { padding: 1 2; }
#ranking, #note { height: auto; max-height: 2; padding: 0 1; display: none; }
#ranking { text-style: bold; }
#status { height: auto; max-height: 4; min-height: 1; padding: 0 1; }
#status.error { text-style: bold; color: $text-error; }
#keys { height: auto; max-height: 3; text-wrap: nowrap; }
.-low #keys { max-height: 1; }
.-wide #keys { padding: 0 1; }
HelpScreen, NoteScreen { align: center middle; }
#help { width: 76; max-width: 100%; height: auto; max-height: 100%; border: heavy $foreground; padding: 0 1;
        background: $surface; scrollbar-size-vertical: 1; }
#note-line { width: 76; max-width: 100%; border: heavy $foreground; }
"""


_KEYS: list[BindingType] = [
    *_PLACES,
    Binding("left", "side(0)", show=False),
    Binding("right", "side(1)", show=False),
    Binding("t,T,equals_sign", "tie", show=False),
    Binding("b,B", "bad", show=False),
    Binding("s,S", "skip", show=False),
    Binding("u,U", "undo", show=False),
    Binding("n,N", "note", show=False),
    Binding("r,R", "look_again", show=False),
    Binding("enter", "send", show=False),
    Binding("backspace", "take_back", show=False),
    Binding("question_mark", "help", show=False),
    Binding("q,Q,ctrl+c", "quit", show=False),
]


class LabelApp(App[None]):
    """The screen of one annotator. `pause_s` is for tests."""

    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 textual declares it so
    VERTICAL_BREAKPOINTS = [(0, "-low"), (_LOW, "-high")]  # noqa: RUF012
    CSS = _STYLE
    BINDINGS: ClassVar[list[BindingType]] = _KEYS

    def __init__(self, desk: Desk, annotator: str, *, pause_s: float = PAUSE_S) -> None:
        super().__init__()
        self.animation_level = "none"  # scrolling in steps would flicker over a slow line
        self.desk, self.annotator = desk, annotator
        self.question: Question | None = None
        self.ranking = Ranking(0)
        self._pause_s = pause_s
        self._quiet_until = 0.0
        self._busy = self._leaving = False
        self._given: set[str] = set()  # keys of the answers of this sitting
        self._begun: dict[str, Ranking] = {}  # by the key of the question: undo leaves a ranking half done
        self._drafts: dict[str, str] = {}  # by item: notes that could not be stored

    @property
    def labels_given(self) -> int:
        """How many labels of this sitting stand: neither skips, nor what was taken back."""
        history = self.desk.answers.history.get(self.annotator, ())
        return sum(event.key in self._given and event.kind != "skip" for event in history)

    def compose(self) -> ComposeResult:
        """Make the frame around the questions."""
        with Horizontal(id="top"):
            yield Static(drawn([(one_line(self.annotator), "")]), id="annotator", markup=False)
            yield Static(id="progress", markup=False)
        yield Container(id="body")
        for name in ("ranking", "note", "status", "keys"):
            yield Static(id=name, markup=False)

    def on_mount(self) -> None:
        """Show the first question."""
        self.set_interval(LOOK_AGAIN_S, self.action_look_again)
        self._start(self._show_next)

    def on_resize(self, event: Resize) -> None:
        """Write the keys for the new width."""
        self._show_keys(event.size.width)

    # ------------------------------------------------------------ keys

    def action_side(self, place: int) -> None:
        """Prefer one of two responses by an arrow."""
        if self._count == 2:
            self.action_choose(place)

    def action_choose(self, place: int) -> None:
        """Prefer one of two responses, or rank the next best of several."""
        if self._count == 2 and place < 2:
            self._send("label", [int(other != place) for other in range(2)], f"{KEYS[place]} is better")
        elif self._count > 2 and place < self._count:
            if self.ranking.rank_of(place) is not None:
                self._say(f"{KEYS[place]} has its rank already; backspace takes the last one back")
            else:
                self._rank(self.ranking.choose(place))

    def action_tie(self) -> None:
        """Call two responses equal, or the next of several as good as the one before."""
        if self._count == 2:
            self._send("label", [0, 0], "tie")
        elif self._count > 2:
            self._rank(self.ranking.toggle_tie())

    def action_take_back(self) -> None:
        """Take back the last key of a ranking."""
        if self._count > 2:
            self._rank(self.ranking.back())

    def action_send(self) -> None:
        """Send a ranking."""
        if self._count > 2:
            finished = self.ranking.finished()
            if finished is None:
                self._say("not sent: more than one response has no rank yet")
            else:
                self._send("label", finished.ranks(), str(finished))

    def action_bad(self) -> None:
        """Call all responses bad."""
        self._send("bad", None, "both are bad" if self._count == 2 else "all are bad")

    def action_skip(self) -> None:
        """Leave the question out."""
        self._send("skip", None, "skipped")

    def action_undo(self) -> None:
        """Take the last answer back."""
        self._start(self._undo)

    def action_note(self) -> None:
        """Open the window for a note on the question."""
        question = self.question
        if question is None or self._busy:
            return
        item = question.item.id

        def keep(text: str | None) -> None:
            if text is not None and text != self.desk.answers.notes.get((self.annotator, item), ""):
                self._drafts[item] = text
                self._start(self._keep_note)

        self.push_screen(
            NoteScreen(self._drafts.get(item, self.desk.answers.notes.get((self.annotator, item), ""))), keep
        )

    def action_look_again(self) -> None:
        """Look whether there is a question now."""
        if self.question is None:
            self._start(self._show_next)

    def action_help(self) -> None:
        """Open the window with the keys."""
        self.push_screen(HelpScreen(words.help_text(self._count, wide=self.size.width >= WIDE)))

    async def action_quit(self) -> None:
        """End the app, after the answer that is being stored."""
        self._leaving = True
        if not self._busy:
            self.exit()

    # ------------------------------------------------------------ the desk

    @property
    def _count(self) -> int:
        return 0 if self.question is None else len(self.question.order)

    def _start(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take one step with the store, unless another one is under way."""
        if not self._busy:
            self._busy = True
            self.run_worker(self._taken(step))

    async def _taken(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except RlhfctlError as error:
            self._leaving = False  # the annotator must see this
            self._say(f"not saved: {error}\nNothing is lost: press the key again, or q to quit.", error=True)
        finally:
            self._busy = False
        if self._leaving:
            self.exit()

    def _send(self, kind: Kind, ranks: list[int] | None, said: str) -> None:
        question = self.question
        if question is None or self._busy:
            return
        now = self.desk.clock()
        if now < self._quiet_until:
            self._quiet_until = now + self._pause_s  # as long as the key is held down
            self._say("the question has just appeared: press again")
            return

        async def answer() -> None:
            self._say("saving ...")
            try:
                event = await asyncio.to_thread(self.desk.answer, self.annotator, question.key, kind, ranks)
            except Refused as error:
                self._say(f"not taken: {error}", error=True)
            else:
                self._given.add(event.key)
                self._begun.pop(question.key, None)
                stands = "" if _says(event, kind, ranks) else " (not this key: the question had your answer already)"
                self._say(f"saved{stands or f': {said}'}")
            await self._show_next()

        self._start(answer)

    async def _undo(self) -> None:
        question = await asyncio.to_thread(self.desk.undo, self.annotator)
        if question is None:
            self._say("there is no answer of yours to take back")
            return
        self._say("taken back: answer anew")
        await self._show(question)

    async def _keep_note(self) -> None:
        if self.question is not None and (text := self._drafts.get(self.question.item.id)) is not None:
            item = self.question.item.id
            await asyncio.to_thread(self.desk.note, self.annotator, item, text)
            del self._drafts[item]
            self._show_note()
            self._say("saved: the note")

    # ------------------------------------------------------------ what is shown

    async def _show_next(self) -> None:
        try:
            question = await asyncio.to_thread(self.desk.next, self.annotator)
        except RlhfctlError as error:
            self.question = None
            await self._show_body(Closing(f"The next question cannot be read.\n\n{error}\n\nr tries again, q quits."))
            return
        await self._show(question)

    async def _show(self, question: Question | None) -> None:
        same = question is not None and self.question is not None and question.key == self.question.key
        progress, held, wanted = await asyncio.to_thread(_counts, self.desk, self.annotator)
        self.question = question
        if question is None:
            await self._show_body(Closing(words.closing(progress, self.labels_given, held, wanted)))
        elif not same:
            self.ranking = self._begun.get(question.key, Ranking(len(question.order)))
            await self._show_body(QuestionView(question, self.ranking))
            self._quiet_until = self.desk.clock() + self._pause_s
        self.query_one("#progress", Static).update(drawn([(words.header(progress), "")]))

    async def _show_body(self, view: QuestionView | Closing) -> None:
        body = self.query_one("#body", Container)
        with self.batch_update():
            await body.remove_children()
            await body.mount(view)
            self._show_ranking()
            self._show_note()
            self._show_keys(self.size.width)

    def _rank(self, ranking: Ranking) -> None:
        if self.question is not None and not self._busy:
            self.ranking = self._begun[self.question.key] = ranking
            self.query_one(QuestionView).show_ranking(ranking)
            self._show_ranking()
            self._say("")

    def _show_ranking(self) -> None:
        line = self.query_one("#ranking", Static)
        line.display = self._count > 2
        if self._count > 2:
            line.update(drawn([(words.so_far(self.ranking), "")]))

    def _show_note(self) -> None:
        text = "" if self.question is None else _stored_note(self.desk, self.annotator, self.question)
        line = self.query_one("#note", Static)
        line.display = bool(text)
        line.update(drawn([("note: ", words.BOLD), (one_line(text), "")]))

    def _show_keys(self, width: int) -> None:
        self.query_one("#keys", Static).update(
            drawn(words.footer(self._count, width - 2 * (width >= WIDE), wide=width >= WIDE))
        )

    def _say(self, text: str, *, error: bool = False) -> None:
        self.query_one("#status", Static).set_class(error, "error").update(drawn([(text, "")]))


def _says(event: Event, kind: Kind, ranks: list[int] | None) -> bool:
    """Tell whether a stored answer is the one that was sent, whose ranks are those of places on the screen."""
    stored = None if event.ranks is None else [event.ranks[place] for place in event.shown or ()]
    return (event.kind, stored) == (kind, ranks)


def _counts(desk: Desk, annotator: str) -> tuple[Progress, int, int]:
    return desk.progress(annotator), desk.held_by_others(annotator), desk.open_questions()


def _stored_note(desk: Desk, annotator: str, question: Question) -> str:
    return desk.answers.notes.get((annotator, question.item.id), "")
