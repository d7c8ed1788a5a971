"""Answer the requests of the labelling page: hand out questions of the desk, take in answers, notes and undo.

    GET /            the question on this annotator's screen, or the form for a name
    POST /name       enter under a name
    POST /answer     an answer; the next question comes back, once the answer is on disk
    POST /note       a note on the question on the screen
    POST /undo       take back the last answer

The desk blocks while it writes to disk, so it is called in threads. What may come in at all: access.py.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import parse_qs, quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.desk import Desk, Refused
from rlhfctl.labels.store import Event, Kind
from rlhfctl.labels.web import pages
from rlhfctl.labels.web.access import App, Guard, Keys, Served, cookies_of

LONGEST_NAME = 40  # characters
LONGEST_NOTE = 4000
_RANKS = re.compile(r"[0-9]{1,2}( [0-9]{1,2}){1,15}")
_TERMINAL = logging.getLogger("uvicorn.error")
_A_YEAR_S = 365 * 24 * 3600
_ELSEWHERE = "This question was answered before, with another choice (in another window?). The first answer counts."


def make_app(desk: Desk, served: Served, keys: Keys) -> App:
    """Make the application (ASGI) that serves one desk under the addresses in `served`."""
    site = _Site(desk, served)
    routes = [
        Route("/", site.question),
        Route("/name", site.name, methods=["GET", "POST"]),
        Route("/answer", site.answer, methods=["POST"]),
        Route("/note", site.note, methods=["POST"]),
        Route("/undo", site.undo, methods=["POST"]),
        Route("/static/{name}", _static),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={RlhfctlError: _trouble}), served, keys)


class _Site:
    """The requests that need the desk."""

    def __init__(self, desk: Desk, served: Served) -> None:
        self.desk, self.served = desk, served
        # Browsers send the cookies of one host to all its ports: two servers must not share a name.
        self.cookie = f"rlhfctl_name_{served.port}"

    # ------------------------------------------------------------ who it is

    def annotator(self, request: Request) -> str | None:
        """Return the name that was entered; None before that."""
        try:
            return clean_name(unquote(cookies_of(request.scope).get(self.cookie, "")))
        except ValueError:
            return None

    async def name(self, request: Request) -> Response:
        """Ask for a name, or take it in."""
        if request.method != "POST":
            return _html(pages.name_form(self.annotator(request) or ""))
        given = (await _fields(request)).get("name", "")
        try:
            name = clean_name(given)
        except ValueError as error:
            return _html(pages.name_form(given, str(error), alone=False), status=409)
        response = Response(status_code=204, headers={"HX-Redirect": "/"})
        response.set_cookie(
            self.cookie,
            quote(name),
            max_age=_A_YEAR_S,
            httponly=True,
            samesite="strict",
            secure=self.served.scheme == "https",
        )
        return response

    # ------------------------------------------------------------ questions and answers

    async def question(self, request: Request) -> Response:
        """Show the question on this annotator's screen: the same after a reload."""
        name = self.annotator(request)
        if name is None:
            return _html(pages.name_form(""))
        return _html(pages.whole(await run_in_threadpool(self._view, name, "")))

    async def answer(self, request: Request) -> Response:
        """Take in an answer, and show the next question."""
        return await self._change(request, self._answer)

    async def undo(self, request: Request) -> Response:
        """Take back the last answer, and show its question again."""
        return await self._change(request, self._undo)

    async def note(self, request: Request) -> Response:
        """Keep a note on the question on the screen."""
        name, fields = self.annotator(request), await _fields(request)
        if name is None:
            return _nameless()
        try:
            return _html(pages.said(await run_in_threadpool(self._note, name, fields)))
        except Refused as error:
            return _html(pages.said(f"The note is not saved: {error}."), status=409)

    async def _change(self, request: Request, act: Callable[[str, dict[str, str]], str]) -> Response:
        name, fields = self.annotator(request), await _fields(request)
        if name is None:
            return _nameless()
        try:
            said, status = await run_in_threadpool(act, name, fields), 200
        except Refused as error:
            said, status = f"Not saved: {error}.", 409
        return _html(pages.part(await run_in_threadpool(self._view, name, said)), status=status)

    # ------------------------------------------------------------ in threads

    def _view(self, name: str, said: str) -> pages.View:
        question = self.desk.next(name)
        answers, last = self.desk.answers, self.desk.answers.last_of(name)
        return pages.View(
            annotator=name,
            question=question,
            progress=self.desk.progress(name),
            last=last.key if last is not None else "",
            note=answers.notes.get((name, question.item.id), "") if question is not None else "",
            said=said,
            held=self.desk.held_by_others(name) if question is None else 0,
            needed=self.desk.open_questions() if question is None else 0,
        )

    def _answer(self, name: str, fields: dict[str, str]) -> str:
        kind, ranks = read_answer(fields.get("answer", ""))
        note = _note_of(fields)
        event = self.desk.answer(name, fields.get("key", ""), kind, ranks, note=note or None)
        kept = self.desk.answers.notes.get((name, event.item))
        if kept is not None and kept != note:  # a note that was kept before is changed with the answer
            self.desk.note(name, event.item, note)
        if event.kind != kind or _on_screen(event) != ranks:
            return _ELSEWHERE
        return "Skipped." if kind == "skip" else "Saved."

    def _undo(self, name: str, fields: dict[str, str]) -> str:
        key = fields.get("last", "")
        taken = self.desk.undo(name, key) if key else None
        return "Taken back: this is the question again." if taken is not None else "There is nothing to take back."

    def _note(self, name: str, fields: dict[str, str]) -> str:
        question = self.desk.next(name)
        if question is None or question.key != fields.get("key", ""):
            raise Refused("its question is not on the screen any more")
        self.desk.note(name, question.item.id, _note_of(fields))
        return "Note saved."


def clean_name(text: str) -> str:
    """Return a name without needless spaces; ValueError with a sentence if it is none."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name:
        raise ValueError("Enter a name.")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"A name has at most {LONGEST_NAME} characters.")
    if any(unicodedata.category(char).startswith("C") for char in name):
        raise ValueError("A name is made of letters, digits and signs that can be seen.")
    return name


def read_answer(text: str) -> tuple[Kind, list[int] | None]:
    """Read an answer of the page: `bad`, `skip`, or ranks per place on the screen (`0 1 1`); Refused for others.

    Gaps between ranks are closed: `0 2 2` says the same as `0 1 1`.
    """
    if text == "bad":
        return "bad", None
    if text == "skip":
        return "skip", None
    if not _RANKS.fullmatch(text):
        raise Refused("this is no answer")
    given = [int(rank) for rank in text.split()]
    if min(given) != 0:
        raise Refused("the best response has rank 0")
    distinct = sorted(set(given))
    return "label", [distinct.index(rank) for rank in given]


def _on_screen(event: Event) -> list[int] | None:
    """Return the ranks of a stored answer per place on the screen."""
    if event.ranks is None or event.shown is None:
        return None
    return [event.ranks[place] for place in event.shown]


def _note_of(fields: dict[str, str]) -> str:
    note = fields.get("note", "").replace("\r\n", "\n").strip()
    if len(note) > LONGEST_NOTE:
        raise Refused(f"a note has at most {LONGEST_NOTE} characters")
    return note


async def _fields(request: Request) -> dict[str, str]:
    """Read a form. Of a field that comes more than once the last counts."""
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in fields.items()}


def _html(content: bytes, status: int = 200) -> Response:
    return Response(content, status_code=status, media_type="text/html")


def _nameless() -> Response:
    return Response("Not saved: enter your name first; load this page again.", 403, media_type="text/plain")


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in pages.STATIC:
        return Response("There is no such file.", 404, media_type="text/plain")
    return Response(
        pages.static_bytes(name),
        headers={"content-type": pages.STATIC[name][1], "cache-control": "public, max-age=31536000, immutable"},
    )


async def _trouble(request: Request, error: Exception) -> Response:
    """Say what went wrong with the file of labels: a full disk, a file that is locked.

    The annotator reads what happened; the terminal tells also where, and what to do.
    """
    _TERMINAL.error("%s", error)
    what = error.what if isinstance(error, RlhfctlError) else str(error)
    return Response(
        pages.writable(f"Not saved: {what}. The person at the terminal knows."), 503, media_type="text/plain"
    )
