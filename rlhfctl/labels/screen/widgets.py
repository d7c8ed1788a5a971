"""Draw the parts of the terminal screen: panes that scroll, one question, the closing page, help, and notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from rlhfctl.labels.desk import Question
from rlhfctl.labels.screen.ranking import Ranking
from rlhfctl.labels.screen.words import Piece, more_lines, pieces_of, title
from rlhfctl.labels.texts import turns_of

LONGEST_NOTE = 2000
_LEAST_ROWS = 3  # of a pane, with its frame


def drawn(pieces: Iterable[Piece]) -> Content:
    """Return pieces as content of a widget; nothing in them is read as markup."""
    return Content.assemble(*pieces)


class Scrolling(VerticalScroll, inherit_bindings=False):
    """A box that scrolls by the usual keys. The arrows to the left and right stay free for answers.

    Where it cannot scroll further, the key goes to the box around it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move('up')", show=False),
        Binding("down", "move('down')", show=False),
        Binding("pageup", "move('pageup')", show=False),
        Binding("pagedown,space", "move('pagedown')", show=False),
        Binding("home", "move('home')", show=False),
        Binding("end", "move('end')", show=False),
    ]

    def action_move(self, key: str) -> None:
        """Scroll without animation, so that a slow terminal keeps up."""
        forward = key in ("down", "pagedown", "end")
        if self.max_scroll_y <= 0 or self.scroll_offset.y == (self.max_scroll_y if forward else 0):
            raise SkipAction
        page = max(1, self.scrollable_content_region.height - 1)
        ways = {"up": -1, "down": 1, "pageup": -page, "pagedown": page}
        ways |= {"home": -self.max_scroll_y, "end": self.max_scroll_y}
        self.scroll_relative(y=ways[key], animate=False)


class Pane(Scrolling):
    """One text in a frame that tells how many lines are out of sight."""

    def __init__(self, text: Content, *, id: str) -> None:
        super().__init__(Static(text, markup=False), id=id)

    def on_mount(self) -> None:
        """Count the lines again whenever the text, the window or the place in it changes."""
        for name in ("virtual_size", "size", "scroll_y"):
            self.watch(self, name, self._tell, init=False)
        self.call_after_refresh(self._tell)

    def on_resize(self) -> None:
        """Count the lines again."""
        self.call_after_refresh(self._tell)

    def _tell(self) -> None:
        above = round(self.scroll_offset.y)
        self.border_subtitle = more_lines(above, max(0, round(self.max_scroll_y) - above))


class QuestionView(Vertical):
    """One question: the prompt above, the responses below, side by side where there is room."""

    def __init__(self, question: Question, ranking: Ranking) -> None:
        super().__init__(id="question")
        self.question, self.ranking = question, ranking

    def compose(self) -> ComposeResult:
        """Make the panes. Origins are not read here: the annotator must not know them."""
        prompt = Pane(drawn(pieces_of(self.question.item.prompt, self.question.item.tools)), id="prompt")
        prompt.border_title = "prompt"
        yield prompt
        responses = self.question.item.responses
        panes = [
            Pane(drawn(pieces_of(responses[of_item])), id=f"response-{place}")
            for place, of_item in enumerate(self.question.order)
        ]
        if len(panes) == 2:
            yield Container(*panes, classes="pair")
        else:
            yield Scrolling(*panes, classes="list", can_focus=False)

    def on_mount(self) -> None:
        """Begin with the first response, and with the last message of a conversation."""
        self.show_ranking(self.ranking)
        if len(turns_of(self.question.item.prompt)) > 1:
            self.query_one("#prompt", Pane).anchor()
        self.query_one("#response-0", Pane).focus(scroll_visible=False)

    def on_resize(self, event: Resize) -> None:
        """Share out the height: the prompt gets a third at most, and so does each of several responses.

        In rows, because percentages would be those of a grid's cell.
        """
        rows = event.size.height
        self.query_one("#prompt", Pane).styles.max_height = max(_LEAST_ROWS, rows // 3)
        for pane in self.query(".list > Pane"):
            pane.styles.max_height = max(_LEAST_ROWS + 1, rows // 3)

    def show_ranking(self, ranking: Ranking) -> None:
        """Write the rank of each response on its frame."""
        count = len(self.question.order)
        for place in range(count):
            pane = self.query_one(f"#response-{place}", Pane)
            pane.border_title = title(place, count, ranking)
            pane.set_class(ranking.rank_of(place) is not None, "ranked")


class Closing(Scrolling):
    """The page without a question: all is done, others hold the rest, or the labels cannot be read."""

    def __init__(self, text: str) -> None:
        super().__init__(Static(Content(text), markup=False), id="closing")


class HelpScreen(ModalScreen[None]):
    """A window with the keys; most keys close it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q,Q,question_mark", "dismiss", show=False)]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Make the window."""
        box = Scrolling(Static(Content(self._text), markup=False), id="help")
        box.border_title, box.border_subtitle = "keys", "escape closes"
        yield box


class NoteScreen(ModalScreen[str | None]):
    """A window to write a note in. It gives the text, or None if the annotator left it by escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", show=False)]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Make the window."""
        line = Input(self._text, max_length=LONGEST_NOTE, select_on_focus=False, id="note-line")
        line.border_title, line.border_subtitle = "a note on this question", "enter saves, escape leaves it"
        yield line

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Give the text."""
        self.dismiss(event.value.strip())
