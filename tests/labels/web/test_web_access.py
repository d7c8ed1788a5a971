"""What the guard before the labelling page lets in: Host, Origin, session, size; and the headers that go out."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from label_server import Client, Running, events_of, key_of, plain_items, running

from rlhfctl.labels.web.access import LARGEST_BODY, LONGEST_ADDRESS, POLICY, Served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(folder, plain_items(5)) as found:
        yield found


@pytest.fixture(scope="module")
def ana(server: Running) -> Client:
    return Client(server.address, "ana")


def ask(
    server: Running, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b""
) -> tuple[int, dict[str, str], str]:
    """Send exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def own(server: Running, ana: Client) -> dict[str, str]:
    """The headers with which the page's own requests come."""
    return {
        "Host": f"127.0.0.1:{server.port}",
        "Cookie": "; ".join(f"{name}={value}" for name, value in ana.cookies.items()),
        "Origin": server.base,
        "Sec-Fetch-Site": "same-origin",
    }


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("header", "right"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST:8000", True),
        ("[::1]:8000", True),
        ("127.0.0.1", False),
        ("127.0.0.1:80", False),
        ("127.0.0.1:8001", False),
        ("evil.example:8000", False),
        ("localhost.evil.example:8000", False),
        ("user@localhost:8000", False),
        ("localhost:8000/x", False),
        ("localhost:port", False),
        ("localhost:8000,evil.example", False),
        ("", False),
    ],
)
def test_a_host_is_right_with_its_name_and_port_alone(header: str, right: bool) -> None:
    assert Served("http", 8000, frozenset({"127.0.0.1", "localhost", "::1"})).is_host(header) is right


def test_a_server_on_all_interfaces_takes_every_address_and_no_foreign_name() -> None:
    served = Served("https", 443, frozenset({"box"}), any_address=True)
    assert served.is_host("192.168.7.3") and served.is_host("box:443") and served.is_host("[fe80::1]")
    assert not served.is_host("evil.example") and not served.is_host("192.168.7.3:8443")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1"])
@pytest.mark.parametrize("path", ["/", "/static/style.css", "/?token={token}", "/answer"])
def test_a_request_for_another_host_is_refused_even_with_session_and_token(
    server: Running, ana: Client, host: str, path: str
) -> None:
    token = server.address.partition("token=")[2]
    headers = own(server, ana) | {"Host": host.format(port=server.port)}
    headers["Origin"] = f"http://{headers['Host']}"
    status, sent, _ = ask(server, "POST" if path == "/answer" else "GET", path.format(token=token), [*headers.items()])
    assert status == 403 and "set-cookie" not in sent


def test_a_request_without_a_host_or_with_two_is_refused(server: Running, ana: Client) -> None:
    rest = [item for item in own(server, ana).items() if item[0] != "Host"]
    assert ask(server, "GET", "/", rest)[0] in (400, 403)
    both = [("Host", f"127.0.0.1:{server.port}"), ("Host", "evil.example")]
    assert ask(server, "GET", "/", [*both, *rest])[0] in (400, 403)


# ---------------------------------------------------------------- origins


@pytest.mark.parametrize(
    "changed",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": None},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_a_post_from_another_origin_is_refused_and_saves_nothing(
    server: Running, folder: Path, ana: Client, changed: dict[str, str | None]
) -> None:
    key = key_of(ana.get("/")[1])
    headers = own(server, ana)
    for name, value in changed.items():
        headers.pop(name)
        if value is not None:
            headers[name] = value.format(port=server.port)
    for path in ("/answer", "/note", "/undo", "/name"):
        body = f"key={key}&answer=0+1&note=x&name=eve".encode()
        status, _, said = ask(server, "POST", path, [*headers.items()], body)
        assert (status, said[:10]) == (403, "Not saved:")
    assert events_of(folder) == []


# ---------------------------------------------------------------- session and token


@pytest.mark.parametrize("path", ["/", "/name", "/nowhere"])
@pytest.mark.parametrize("cookie", [None, "wrong", ""])
def test_nothing_is_shown_without_the_session(server: Running, ana: Client, path: str, cookie: str | None) -> None:
    headers = own(server, ana) | {"Sec-Fetch-Site": "none"}
    headers["Cookie"] = f"rlhfctl_name_{server.port}=ana"
    if cookie is not None:
        headers["Cookie"] += f"; rlhfctl_session_{server.port}={cookie}"
    status, _, said = ask(server, "GET", path, [*headers.items()])
    assert status == 403 and "token" in said and "question" not in said
    assert ask(server, "POST", "/answer", [*headers.items()], b"key=x&answer=skip")[0] == 403


@pytest.mark.parametrize("token", ["", "wrong", "%00", "ä", "{token}&token=wrong", "{token}x"])
def test_a_wrong_token_gives_no_session(server: Running, token: str) -> None:
    right = server.address.partition("token=")[2]
    path = "/?token=" + token.format(token=right).encode("utf-8").decode("latin-1").replace("ä", "%C3%A4")
    path = path.encode("ascii", "ignore").decode()
    status, sent, said = ask(server, "GET", path, [("Host", f"127.0.0.1:{server.port}")])
    assert status == 403 and "set-cookie" not in sent and right not in said


def test_the_token_is_exchanged_for_a_strict_cookie_and_leaves_the_address(server: Running) -> None:
    address = urlsplit(server.address)
    host = [("Host", address.netloc)]
    for _ in range(2):  # a second annotator opens the same address
        status, sent, body = ask(server, "GET", f"/?{address.query}", host)
        assert (status, sent["location"], body) == (303, "/", "")
        name, *rest = sent["set-cookie"].split("; ")
        assert rest == ["Path=/", "HttpOnly", "SameSite=Strict"]
        assert address.query.removeprefix("token=") not in name  # the cookie is another secret
    status, sent, page = ask(server, "GET", "/", [*host, ("Cookie", name)])
    assert status == 200 and "Your name" in page


def test_a_visit_that_begins_on_another_site_asks_once_more_from_here(server: Running) -> None:
    """Browsers hold a strict cookie back until then."""
    headers = [("Host", f"127.0.0.1:{server.port}"), ("Sec-Fetch-Site", "cross-site")]
    status, _, page = ask(server, "GET", "/", headers)
    assert (
        status == 200 and 'http-equiv="refresh" content="0;url=/"' in page and "name" not in page.partition("body")[2]
    )
    assert ask(server, "GET", "/name", headers)[0] == 403


# ---------------------------------------------------------------- size and headers


def test_a_body_that_is_too_large_is_refused(server: Running, ana: Client) -> None:
    headers = [*own(server, ana).items()]
    large = b"note=" + b"x" * LARGEST_BODY
    assert ask(server, "POST", "/note", headers, large)[0] == 413
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)  # without a length that would tell it
    assert ask(server, "POST", "/note", [*headers, ("Transfer-Encoding", "chunked")], chunk)[0] == 413
    assert ask(server, "GET", "/?" + "x" * LONGEST_ADDRESS, headers)[0] == 414


def test_every_answer_carries_the_policy(server: Running, ana: Client) -> None:
    headers = [*own(server, ana).items()]
    assert POLICY.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in POLICY and "*" not in POLICY
    kinds = {"/": 200, "/static/page.js": 200, "/static/none": 404, "/nowhere": 404}
    for path, expected in kinds.items():
        status, sent, _ = ask(server, "GET", path, headers)
        assert status == expected
        assert sent["content-security-policy"] == POLICY and sent["x-content-type-options"] == "nosniff"
        assert sent["referrer-policy"] == "no-referrer" and "server" not in sent
    refused = ask(server, "GET", "/", [("Host", "evil.example")])
    assert refused[0] == 403 and refused[1]["content-security-policy"] == POLICY
    assert ask(server, "GET", "/", headers)[1]["cache-control"] == "no-store"


def test_other_methods_and_paths_out_of_the_folder_are_refused(server: Running, ana: Client) -> None:
    headers = [*own(server, ana).items()]
    assert ask(server, "GET", "/answer", headers)[0] == 405
    assert ask(server, "PUT", "/answer", headers, b"x")[0] == 405
    assert ask(server, "GET", "/static/../app.py", headers)[0] == 404
    assert ask(server, "GET", "/static/..%2fapp.py", headers)[0] == 404
