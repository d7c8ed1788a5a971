"""Serve the labelling page with uvicorn: choose a port, announce the address, stop at Ctrl-C.

The address holds a token that is drawn anew at every start. Whoever opens the address gets a session cookie for it, and
the browser is led on to the address without the token; several annotators open the same one. The server listens on this
machine alone unless another host is named, and then says what that exposes. Reads the TLS files; writes nothing itself.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.desk import Desk
from rlhfctl.labels.web.access import Keys, Served

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"
_WAITING = 128  # connections that wait to be taken
_IDLE_S = 75  # seconds: an annotator who thinks for a minute finds the connection open still
_GRACE_S = 3  # seconds for requests that are under way at Ctrl-C


@dataclass(frozen=True)
class Place:
    """Where the server listens. `name`: the host as people type it. `loopback`: only this machine reaches it."""

    family: socket.AddressFamily
    address: str
    name: str
    loopback: bool


def serve(
    desk: Desk,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    announce: Callable[[str], None],
) -> None:
    """Serve one desk until Ctrl-C. RlhfctlError if it cannot listen there, or a library or a TLS file is missing.

    `port`: None takes a free one. `announce` is called with each line for the person at the terminal; the address is
    valid by then.
    """
    _require_libraries()
    tls = _tls(tls_cert, tls_key)
    place = place_of(host)
    with _listening(place, port) as listener:
        served = served_at(place, listener.getsockname()[1], encrypted=tls is not None)
        keys = Keys()
        server = _server(desk, served, keys, tls)
        for line in lines(place, served, keys):
            announce(line)
        with suppress(KeyboardInterrupt):  # uvicorn has finished what was under way, and raises the signal anew
            server.run(sockets=[listener])
    announce("Stopped. All answers that were acknowledged are saved.")


def _require_libraries() -> None:
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise RlhfctlError(
            f"labelling in the browser needs {' and '.join(missing)}, which is not installed",
            fix="pip install 'rlhfctl[label]'",
        )


def _server(desk: Desk, served: Served, keys: Keys, tls: tuple[Path, Path] | None) -> uvicorn.Server:
    import uvicorn

    from rlhfctl.labels.web.app import make_app

    cert, key = (str(tls[0]), str(tls[1])) if tls is not None else (None, None)
    # No proxy headers: behind loopback anybody could write them. No access log: addresses hold the token.
    config = uvicorn.Config(
        make_app(desk, served, keys),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=cert,
        ssl_keyfile=key,
    )
    return uvicorn.Server(config)


def place_of(host: str) -> Place:
    """Find out where a host is; RlhfctlError if it is none of this machine's names or addresses."""
    bare = host.strip("[]")
    try:
        family, _, _, _, where = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise RlhfctlError(f"the host {host} is not known: {error}", where="--host", fix="leave out --host") from error
    address = str(where[0])
    return Place(family, address, bare.lower(), ipaddress.ip_address(address.partition("%")[0]).is_loopback)


def served_at(place: Place, port: int, *, encrypted: bool) -> Served:
    """Return the names under which the server answers."""
    names = {place.name, place.address} | ({"localhost"} if place.loopback else set())
    everywhere = ipaddress.ip_address(place.address.partition("%")[0]).is_unspecified
    if everywhere:
        own = socket.gethostname().lower()
        names |= {"localhost", own, socket.getfqdn().lower(), f"{own.partition('.')[0]}.local"}
    return Served("https" if encrypted else "http", port, frozenset(names), any_address=everywhere)


def lines(place: Place, served: Served, keys: Keys) -> list[str]:
    """Write what the person at the terminal is told: the address, who can use it, and what is exposed."""
    shown = socket.gethostname() if served.any_address else place.name
    host = f"[{shown}]" if ":" in shown else shown
    found = [
        f"Open {served.scheme}://{host}:{served.port}/?token={keys.token}",
        "Each annotator opens this address and enters a name. It is valid until the server stops (Ctrl-C).",
    ]
    if place.loopback:
        found.append("Only this machine reaches it.")
        return found
    found.append(
        "Everybody who has this address can read the prompts and responses and label under any name: "
        "give it to your annotators alone."
    )
    if served.scheme == "http":
        found.append(
            "WARNING: nothing is encrypted. Who can listen on this network reads the token, the texts and the labels, "
            "and can change them. Give --tls-cert and --tls-key, or leave out --host and use a tunnel: "
            f"ssh -L {served.port}:127.0.0.1:{served.port} THIS_MACHINE"
        )
    return found


def _listening(place: Place, port: int | None) -> socket.socket:
    """Open the socket; it takes connections from now on."""
    if port is not None and not 0 < port < 65536:
        raise RlhfctlError(f"{port} is no port", where="--port", fix="give a number from 1 to 65535, or leave it out")
    listener = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place.address, port or 0))
        listener.listen(_WAITING)
    except OSError as error:
        listener.close()
        raise RlhfctlError(
            f"the server cannot listen at {place.address}, port {port or 'any'}: {error.strerror or error}",
            where="--host, --port",
            fix="leave out --port (a free one is taken), and name a host of this machine",
        ) from error
    return listener


def _tls(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Check the TLS files before anything is announced."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise RlhfctlError("TLS needs two files", where="--tls-cert, --tls-key", fix="give both, or neither")

    def no_password() -> str:
        raise ValueError("the key is encrypted")

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, password=no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise RlhfctlError(
            f"the TLS files cannot be used: {error}",
            where=f"{cert}, {key}",
            fix="give a certificate and its key, both PEM, the key without a password",
        ) from error
    return cert, key
