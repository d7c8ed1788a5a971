"""Where the labelling page is served: ports, hosts, TLS files, what is announced, Ctrl-C."""

from __future__ import annotations

import importlib.util
import re
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from label_server import Client, events_of, key_of, plain_items, running

from rlhfctl.errors import RlhfctlError
from rlhfctl.labels.desk import Desk
from rlhfctl.labels.store import open_labels
from rlhfctl.labels.web import serve as module
from rlhfctl.labels.web.access import Keys
from rlhfctl.labels.web.serve import lines, place_of, serve, served_at


def refused(tmp_path: Path, **given: Any) -> str:
    with open_labels(tmp_path / "labels.sqlite") as store, pytest.raises(RlhfctlError) as caught:
        serve(Desk(plain_items(1), store), announce=print, **given)
    return str(caught.value)


def test_ctrl_c_ends_the_server_and_its_answers_stay(tmp_path: Path) -> None:
    with running(tmp_path, plain_items(2)) as server:
        ana = Client(server.address, "ana")
        assert ana.post("/answer", key=key_of(ana.get("/")[1]) or "", answer="0 1")[0] == 200
        said = server.stop()
        assert server.process.returncode == 0
    assert said.splitlines()[-1] == "Stopped. All answers that were acknowledged are saved."
    assert "Traceback" not in said and len(events_of(tmp_path)) == 1


def test_the_port_that_is_asked_for_is_taken_and_each_start_has_another_token(tmp_path: Path) -> None:
    with running(tmp_path, plain_items(2)) as first:
        port, address = first.port, first.address
        cookies = Client(address, "ana").cookies
        first.kill()
    with running(tmp_path, plain_items(2), "--port", str(port)) as second:
        assert second.port == port and second.address != address
        with pytest.raises(AssertionError, match="403"):
            Client(address, "ana")  # the token of before
        ana = Client(second.address, "ana")
        ana.cookies = cookies
        assert ana.get("/")[0] == 403
        status, said = ana.post("/answer", key="x", answer="skip")
        assert status == 403 and "started again" in said


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        said = refused(tmp_path, port=other.getsockname()[1])
    assert "cannot listen" in said and "leave out --port" in said
    assert "70000 is no port" in refused(tmp_path, port=70000)


def test_a_host_that_nobody_knows_and_one_of_another_machine_are_told(tmp_path: Path) -> None:
    assert "is not known" in refused(tmp_path, host="no such host")
    assert "cannot listen" in refused(tmp_path, host="192.0.2.1")  # reserved for examples


@pytest.mark.parametrize(("missing", "named"), [({"uvicorn"}, "uvicorn"), ({"starlette", "uvicorn"}, "starlette and")])
def test_a_missing_library_is_told_with_its_extra(
    tmp_path: Path, missing: set[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in missing else find(name))
    said = refused(tmp_path)
    assert named in said and "pip install 'rlhfctl[label]'" in said


# ---------------------------------------------------------------- what is announced


def test_on_loopback_the_address_and_no_warning_is_announced() -> None:
    place = place_of("127.0.0.1")
    served = served_at(place, 8000, encrypted=False)
    said = lines(place, served, Keys("token", "session"))
    assert said[0] == "Open http://127.0.0.1:8000/?token=token"
    assert said[-1] == "Only this machine reaches it." and "session" not in " ".join(said)
    assert served.is_host("localhost:8000") and not served.any_address


def test_ipv6_loopback_is_written_in_brackets() -> None:
    place = place_of("::1")
    served = served_at(place, 8000, encrypted=False)
    assert lines(place, served, Keys("t", "s"))[0] == "Open http://[::1]:8000/?token=t"
    assert place.loopback and served.is_host("[::1]:8000")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_beyond_loopback_without_tls_is_told_what_is_exposed(host: str) -> None:
    place = place_of(host)
    plain = " ".join(lines(place, served_at(place, 8000, encrypted=False), Keys()))
    assert "WARNING: nothing is encrypted" in plain and "ssh -L 8000:127.0.0.1:8000" in plain
    encrypted = lines(place, served_at(place, 8000, encrypted=True), Keys())
    assert encrypted[0].startswith("Open https://") and "WARNING" not in " ".join(encrypted)
    assert "give it to your annotators alone" in " ".join(encrypted)


def test_all_interfaces_answer_to_the_names_of_this_machine() -> None:
    place = place_of("0.0.0.0")
    served = served_at(place, 8000, encrypted=False)
    assert served.is_host(f"{socket.gethostname()}:8000") and served.is_host("10.1.2.3:8000")
    assert not served.is_host("evil.example:8000")
    assert socket.gethostname() in lines(place, served, Keys())[0]


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return SimpleNamespace(cert=cert, key=key)


def test_with_tls_files_the_page_is_encrypted_and_its_cookies_are_secure(
    tmp_path: Path, certificate: SimpleNamespace
) -> None:
    said: list[str] = []
    ready = threading.Event()

    def announce(line: str) -> None:
        said.append(line)
        ready.set()

    server: list[Any] = []
    real = module._server

    def kept(*given: Any) -> Any:
        server.append(real(*given))
        return server[0]

    def work() -> None:
        with open_labels(tmp_path / "labels.sqlite") as store:
            serve(Desk(plain_items(1), store), tls_cert=certificate.cert, tls_key=certificate.key, announce=announce)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_server", kept)
        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(30)
    try:
        found = re.search(r"Open (https://127\.0\.0\.1:\d+/\?token=\S+)", said[0])
        assert found is not None
        trusting = ssl.create_default_context(cafile=str(certificate.cert))
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusting), Stay())
        with pytest.raises(urllib.error.HTTPError) as caught:
            opener.open(found.group(1), timeout=30)
        assert caught.value.code == 303 and caught.value.headers["Set-Cookie"].endswith("SameSite=Strict; Secure")
    finally:
        server[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive()


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        return None


def test_tls_files_that_cannot_be_used_are_told(tmp_path: Path, certificate: SimpleNamespace) -> None:
    assert "TLS needs two files" in refused(tmp_path, tls_cert=certificate.cert)
    assert "cannot be used" in refused(tmp_path, tls_cert=certificate.key, tls_key=certificate.cert)
    assert "cannot be used" in refused(tmp_path, tls_cert=tmp_path / "none.pem", tls_key=certificate.key)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(certificate.key), "-out", str(locked)],
        check=True, capture_output=True,
    )  # fmt: skip
    assert "the key without a password" in refused(tmp_path, tls_cert=certificate.cert, tls_key=locked)
