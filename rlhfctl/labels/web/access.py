"""Decide which requests the labelling page answers: Host, Origin, session cookie and size are checked first.

    wrong Host (a foreign name that points here: DNS rebinding)   -> 403
    POST from another origin, or one that names no origin         -> 403
    no session cookie (static files and the exchange need none)   -> 403
    a body that is too large                                      -> 413

Every response, refusals too, carries the Content-Security-Policy and its companions. Pure ASGI, standard library only;
reads and writes no files. Leaves out what the pages say (app.py) and where the server listens (serve.py).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 64 * 1024  # bytes of one request: a note and a few words more
LONGEST_ADDRESS = 2048  # bytes of path and query
STATIC = "/static/"
_PORTS = {"http": 80, "https": 443}
_TOO_LARGE = 413, "Not saved: this is too long; shorten the note."

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

# A cookie that is SameSite=Strict stays away from a visit that begins on another site. The page then asks for itself
# once more, and the browser sends the cookie.
_BOUNCE = '<meta http-equiv="refresh" content="0;url=/">', '<a href="/">Go on</a>'
_HTML = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">{}'
    '<meta name="viewport" content="width=device-width"><title>Labels</title>'
    '<link rel="stylesheet" href="/static/style.css"></head><body><main class="narrow"><p>{}</p></main></body></html>'
)


@dataclass(frozen=True)
class Served:
    """Where the server can be reached. `names`: host names and addresses, lower case, without a port.

    `any_address`: every numeric address is right too. A server on all interfaces needs that, and it is safe: DNS
    rebinding works with names alone.
    """

    scheme: str
    port: int
    names: frozenset[str]
    any_address: bool = False

    def is_host(self, header: str) -> bool:
        """Tell whether a Host header names this server."""
        try:
            parts = urlsplit(f"//{header}")
            name, port = parts.hostname, parts.port
        except ValueError:
            return False
        if name is None or parts.netloc != header or "@" in header:
            return False
        if (port or _PORTS[self.scheme]) != self.port:
            return False
        return name in self.names or (self.any_address and _is_address(name))


@dataclass(frozen=True)
class Keys:
    """The secrets of one start of the server: `token` stands in the address, `session` in the cookie."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def cookies_of(scope: Scope) -> dict[str, str]:
    """Return the cookies of a request by name; none if the header cannot be read."""
    header = "; ".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")
    read: SimpleCookie = SimpleCookie()
    try:
        read.load(header)
    except CookieError:
        return {}
    return {name: one.value for name, one in read.items()}


class Guard:
    """Wrap the application: refuse what may not come in, and add the headers to what goes out.

    `keys` are the secrets of this start. The session cookie has the port in its name, because browsers send cookies
    of one host to all its ports.
    """

    def __init__(self, app: App, served: Served, keys: Keys) -> None:
        self.app, self.served, self.keys = app, served, keys
        self.cookie = f"rlhfctl_session_{served.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI); other kinds of connection than HTTP are not answered."""
        if scope["type"] != "http":
            return
        sender = _with_headers(send)
        refused = self._refusal(scope)
        if refused is not None:
            await _refuse(scope, sender, *refused)
        elif self._is_exchange(scope):
            await self._exchange(scope, sender)
        elif not self._has_session(scope) and not scope["path"].startswith(STATIC):
            await self._no_session(scope, sender)
        elif (body := await _body(receive)) is None:
            await _refuse(scope, sender, *_TOO_LARGE)
        else:
            await self.app(scope, _once(body, receive), sender)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self.served.is_host(hosts[0]):
            return 403, "This server answers under its own address alone. Open the address that the terminal shows."
        if len(scope["path"]) + len(scope["query_string"]) > LONGEST_ADDRESS:
            return 414, "This address is too long."
        if scope["method"] in ("GET", "HEAD"):
            return None
        origins, sites = _values(scope, b"origin"), _values(scope, b"sec-fetch-site")
        if origins != [f"{self.served.scheme}://{hosts[0]}"] or any(site != "same-origin" for site in sites):
            return 403, "Not saved: this request comes from another page than the labelling page."
        lengths = _values(scope, b"content-length")
        if any(not length.isdecimal() or int(length) > LARGEST_BODY for length in lengths):
            return _TOO_LARGE
        return None

    def _is_exchange(self, scope: Scope) -> bool:
        query = scope["query_string"]
        return scope["path"] == "/" and scope["method"] == "GET" and b"token" in query

    async def _exchange(self, scope: Scope, send: Send) -> None:
        """Give the session cookie for the token, and lead to the address without it."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        if len(given) != 1 or not _same(given[0], self.keys.token):
            said = "This address is of an earlier start. Open the address that the terminal shows now."
            await _refuse(scope, send, 403, said)
            return
        secure = "; Secure" if self.served.scheme == "https" else ""
        cookie = f"{self.cookie}={self.keys.session}; Path=/; HttpOnly; SameSite=Strict{secure}"
        await _say(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode("ascii"))])

    def _has_session(self, scope: Scope) -> bool:
        return _same(cookies_of(scope).get(self.cookie, ""), self.keys.session)

    async def _no_session(self, scope: Scope, send: Send) -> None:
        sites = _values(scope, b"sec-fetch-site")
        if scope["method"] == "GET" and scope["path"] == "/" and sites in (["cross-site"], ["same-site"]):
            await _say(send, 200, _HTML.format(*_BOUNCE), html=True)
            return
        said = "Open the address that the terminal shows, with its token."
        if scope["method"] == "POST":
            said = f"Not saved: the server was started again since. {said} The same question comes again."
        await _refuse(scope, send, 403, said)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


def _same(given: str, right: str) -> bool:
    """Compare secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode("utf-8"))


async def _body(receive: Receive) -> bytes | None:
    """Read the body of a request; None if it is larger than the limit, or the client went away."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _once(body: bytes, receive: Receive) -> Receive:
    """Hand on a body that was read already."""
    given = False

    async def read() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _with_headers(send: Send) -> Send:
    async def write(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            have = {name for name, _ in message.get("headers", ())}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in have]
            if b"cache-control" not in have:
                more.append((b"cache-control", b"no-store"))
            message["headers"] = [*message.get("headers", ()), *more]
        await send(message)

    return write


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    """Answer with one of this file's sentences: as a page to who looks at it, as bare text to a script."""
    html = scope["method"] == "GET" and any("text/html" in value for value in _values(scope, b"accept"))
    await _say(send, status, _HTML.format("", text) if html else text, html=html)


async def _say(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None, *, html: bool = False
) -> None:
    """Answer with a short text."""
    body, kind = text.encode("utf-8"), b"text/html" if html else b"text/plain"
    sent = [(b"content-type", kind + b"; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*sent, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
