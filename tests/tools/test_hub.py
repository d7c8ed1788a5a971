"""Uploads to a server on this machine that speaks the Hub's protocol as far as huggingface_hub needs it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from rlhfctl.errors import RlhfctlError
from rlhfctl.tools.hub import Push


class Hub(ThreadingHTTPServer):
    """The state of a small Hub. `refuses`: path part -> status with which it answers there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, bool] = {}  # name -> private
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.refuses: dict[str, int] = {}
        self.writes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def refused(self) -> bool:
        status = next((status for part, status in self.server.refuses.items() if part in self.path), None)
        if status is not None:
            self.answer({"error": "not today"}, status)
        return status is not None

    def do_GET(self) -> None:
        if self.headers["authorization"] != "Bearer hf_right":
            return self.answer({"error": "who?"}, 401)
        if self.refused():
            return None
        if self.path == "/api/whoami-v2":
            return self.answer({"type": "user", "name": "alice", "orgs": []})
        name = self.path.removeprefix("/api/models/").partition("/revision/")[0].partition("?")[0]
        if name not in self.server.repositories:
            return self.answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")
        private = self.server.repositories[name]
        return self.answer({"id": name, "private": private, "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.refused():
            return None
        self.server.writes += 1
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'alice'}/{asked['name']}"
            exists = name in self.server.repositories
            self.server.repositories.setdefault(
                name, asked.get("visibility") == "private" or asked.get("private") is True
            )
            url = f"{self.server.url}/{name}"
            return self.answer({"url": url, "name": name, "id": name}, 409 if exists else 200)
        if self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.server.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file" and line["value"]["encoding"] == "base64"
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        commit = "1" * 40
        url = f"{self.server.url}/{name}/commit/{commit}"
        return self.answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def push(hub: Hub, name: str = "alice/policy", *, private: bool = False, token: str = "hf_right") -> Push:
    return Push(name, private, HfApi(endpoint=hub.url, token=token))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    (made / "base").mkdir(parents=True)
    (made / "README.md").write_text("---\ntags:\n- rlhf\n---\n\n# a policy\n")
    (made / "base" / "config.json").write_text("{}")
    return made


def test_a_folder_is_uploaded_as_one_commit_into_a_new_repository(hub: Hub, folder: Path) -> None:
    one = push(hub, private=True)
    one.prepare()
    assert hub.writes == 0  # nothing is made before the export
    said = one.upload(folder, "ppo of the run tiny")
    assert said == f"uploaded it to {hub.url}/alice/policy"
    assert hub.repositories == {"alice/policy": True}
    assert hub.files == {name: (folder / name).read_bytes() for name in ("README.md", "base/config.json")}
    assert hub.messages == ["rlhfctl: ppo of the run tiny"]


def test_a_repository_that_exists_gets_a_commit_and_keeps_its_visibility(hub: Hub, folder: Path) -> None:
    hub.repositories = {"alice/policy": False, "alice/hidden": True}
    one = push(hub)
    one.prepare()
    assert one.upload(folder, "ppo").endswith("(a commit was added to what was there)")
    push(hub, "alice/hidden", private=True).prepare()
    with pytest.raises(RlhfctlError, match="is public already, and --private does not change that"):
        push(hub, private=True).prepare()


def refused(one: Push) -> str:
    with pytest.raises(RlhfctlError) as caught:
        one.prepare()
    return str(caught.value)


def test_what_stands_in_the_way_is_said_before_the_export(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the Hub does not accept your token" in refused(push(hub, token="hf_wrong"))
    assert "no name of a repository" in refused(push(hub, "a/b/c"))
    hub.refuses = {"/api/models/": 403}
    said = refused(push(hub))
    assert "the Hub refused to look the repository up (403)" in said and "may write to this repository" in said
    with monkeypatch.context() as changed:
        changed.setattr("huggingface_hub.hf_api.get_token", lambda: None)
        anonymous = Push("alice/policy", api=HfApi(endpoint=hub.url))
        assert "you are not logged in to the Hub\n  fix: hf auth login" in refused(anonymous)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" in refused(push(hub))
    assert hub.writes == 0


def test_no_network_is_said(hub: Hub) -> None:
    dead = Push("alice/policy", api=HfApi(endpoint="http://127.0.0.1:9", token="hf_right"))
    assert "the Hub cannot be reached: " in refused(dead)


def test_an_upload_that_fails_leaves_the_export(hub: Hub, folder: Path) -> None:
    one = push(hub)
    one.prepare()
    hub.refuses = {"/commit/": 403}
    with pytest.raises(RlhfctlError, match=r"the Hub refused to upload \(403\)") as caught:
        one.upload(folder, "ppo")
    assert f"hf upload alice/policy {folder}" in str(caught.value)
