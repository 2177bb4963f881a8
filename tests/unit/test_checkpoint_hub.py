"""Loading from a hub: a small one runs on this machine, and huggingface_hub in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import daybreak

TOKEN = "hf_of_the_test"
SHARD = "model_00001-of-00001.safetensors"
"""As the largest BLOOM's shards are called."""
COMMITS = {"main": "a" * 40, "step1": "b" * 40}


@dataclass
class Hub:
    """What the server holds and what it was asked."""

    files: dict[str, dict[str, dict[str, bytes]]]
    """repository -> commit -> file name -> contents"""
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    address: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            if "/maker/" in self.path:  # the client asks for more than repositories
                hub.tokens.add(self.headers.get("Authorization"))
            path = self.path.split("?")[0].strip("/").split("/")
            if path[:2] == ["api", "models"] and len(path) == 6:
                self.api("/".join(path[2:4]), path[4], path[5])
            elif len(path) == 5 and path[2] == "resolve":
                self.file("/".join(path[:2]), path[3], path[4])
            else:
                self.answer(404, b"{}")

        def api(self, repository: str, kind: str, revision: str) -> None:
            commits = hub.files.get(repository)
            commit = COMMITS.get(revision, revision)
            if commits is None or self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif commit not in commits:
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif kind == "tree":
                self.answer(200, json.dumps([_entry(*item) for item in commits[commit].items()]).encode())
            else:
                siblings = [{"rfilename": name} for name in commits[commit]]
                answer = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings}
                self.answer(200, json.dumps(answer).encode())

        def file(self, repository: str, commit: str, name: str) -> None:
            contents = hub.files[repository][commit].get(name)
            if contents is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                tag = {"ETag": f'"{hashlib.sha1(contents).hexdigest()}"', "X-Repo-Commit": commit}
                self.answer(200, contents, tag)

        def answer(self, status: int, contents: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(contents))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(contents)

    return Handler


def _entry(name: str, contents: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(contents), "oid": hashlib.sha1(contents).hexdigest()}


def contents(seed: int, folder: Path) -> dict[str, bytes]:
    shape = {"vocabulary": 31, "context": 8, "layers": 1, "width": 12, "heads": 2, "inner": 48}
    daybreak.create("gpt2", seed=seed, **shape).save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    scratch = tmp_path_factory.mktemp("repositories")
    main, step = contents(0, scratch / "main"), contents(1, scratch / "step")
    torch.save(load_file(scratch / "main/model.safetensors"), scratch / "pytorch_model.bin")
    pickled = (scratch / "pytorch_model.bin").read_bytes()
    unneeded = {"pytorch_model.bin": pickled, "tf_model.h5": b"tf", "model.fp16.safetensors": b"variant"}
    old = {name: value for name, value in main.items() if not name.endswith(".safetensors")}
    index = {"weight_map": {name: SHARD for name in load_file(scratch / "main/model.safetensors")}}
    bloom = {
        **old,
        SHARD: main["model.safetensors"],
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model.fp16-00001-of-00001.safetensors": b"variant",
        "pytorch_model_00001-of-00001.bin": pickled,
    }
    hub = Hub(
        {
            "maker/bloom": {COMMITS["main"]: bloom},
            "maker/model": {COMMITS["main"]: {**main, **unneeded}, COMMITS["step1"]: step},
            "maker/old": {COMMITS["main"]: {**old, "pytorch_model.bin": pickled, "flax_model.msgpack": b"f"}},
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


LOADS = """
import json, sys, warnings
from daybreak.checkpoint.hub import resolve
from daybreak.errors import DaybreakError
for case in json.loads(sys.argv[1]):
    try:
        folder = resolve(**case)
        print(json.dumps({"folder": str(folder), "files": sorted(file.name for file in folder.iterdir())}))
    except DaybreakError as error:
        print(json.dumps({"error": str(error)}))
"""
NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    raise SystemExit("a request was made")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def resolved(
    hub: Hub, home: Path, *cases: dict[str, Any], code: str = LOADS, **environment: str
) -> list[Any]:
    """What `resolve` finds in a fresh process, for every case in turn."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS"))
    }
    inherited.update(HF_HOME=str(home), HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN, **environment)
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cases)], capture_output=True, text=True, env=inherited
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress where nobody watches
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def home(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache into which three checkpoints were downloaded."""
    home = tmp_path_factory.mktemp("home")
    cases = [
        {"source": "maker/model"},
        {"source": "maker/model", "revision": "step1"},
        {"source": "maker/old"},
    ]
    main, step, old = resolved(hub, home, *cases)
    assert main["files"] == step["files"] == ["config.json", "model.safetensors"]
    assert old["files"] == ["config.json", "pytorch_model.bin"]
    snapshots = home / "hub/models--maker--model/snapshots"
    assert main["folder"] == str(snapshots / COMMITS["main"])
    assert step["folder"] == str(snapshots / COMMITS["step1"])
    return home


def test_what_was_downloaded_loads(home: Path) -> None:
    tokens = torch.arange(6)[None]
    at = home / "hub/models--maker--model/snapshots"
    main, step = (daybreak.load(at / COMMITS[revision]).logits(tokens) for revision in ("main", "step1"))
    old = daybreak.load(home / "hub/models--maker--old/snapshots" / COMMITS["main"]).logits(tokens)
    assert torch.equal(main, old)
    assert not torch.equal(main, step)


def test_only_what_is_needed_was_fetched_with_the_token(hub: Hub, home: Path) -> None:
    files = {path.rsplit("/", 1)[-1] for path in hub.asked if "/resolve/" in path}
    assert files == {"config.json", "model.safetensors", "pytorch_model.bin"}
    assert not any(f"model/resolve/{COMMITS['main']}/pytorch_model.bin" in path for path in hub.asked)
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_shards_named_with_an_underscore(hub: Hub, tmp_path: Path) -> None:
    (answer,) = resolved(hub, tmp_path, {"source": "maker/bloom"})
    assert answer["files"] == ["config.json", "model.safetensors.index.json", SHARD]
    assert daybreak.load(answer["folder"]).architecture.layers == 1


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_nothing_is_asked(how: str, hub: Hub, home: Path) -> None:
    option = {"local_files_only": True} if how == "local_files_only" else {}
    environment = {"HF_HUB_OFFLINE": "1"} if how == "HF_HUB_OFFLINE" else {}
    cases = [
        {"source": "maker/model", **option},
        {"source": "maker/model", "revision": "step1", **option},
        {"source": "maker/old", **option},
        {"source": "maker/never", **option},
    ]
    before = len(hub.asked)
    main, step, old, never = resolved(hub, home, *cases, code=NO_NETWORK + LOADS, **environment)
    assert main["files"] == step["files"] == ["config.json", "model.safetensors"]
    assert (Path(main["folder"]).name, Path(step["folder"]).name) == (COMMITS["main"], COMMITS["step1"])
    assert old["files"] == ["config.json", "pytorch_model.bin"]
    assert (
        "maker/never at revision main: there is no such folder here, it is not in the local cache"
        in never["error"]
    )
    assert "HF_HUB_OFFLINE" in never["error"]
    assert len(hub.asked) == before


def test_errors_name_repository_revision_and_remedy(hub: Hub, tmp_path: Path) -> None:
    cases = [
        {"source": "maker/nothing"},
        {"source": "maker/model", "revision": "step2"},
        {"source": "maker/model", "revision": "c" * 40},
        {"source": "pythia-70m"},
    ]
    nothing, branch, commit, size = (answer["error"] for answer in resolved(hub, tmp_path, *cases))
    assert "maker/nothing at revision main" in nothing and "HF_TOKEN" in nothing
    assert "maker/model at revision step2" in branch and "no such branch, tag or commit" in branch
    assert f"maker/model at revision {'c' * 40}" in commit and "no such branch, tag or commit" in commit
    assert "EleutherAI/pythia-70m at revision main" in size  # a published size stands for its repository


def test_a_hub_that_cannot_be_reached(hub: Hub, tmp_path: Path) -> None:
    gone = Hub({}, address="http://127.0.0.1:9")
    (answer,) = resolved(gone, tmp_path, {"source": "maker/model"})
    assert (
        "maker/model at revision main: there is no such folder here, it is not in the local cache"
        in answer["error"]
    )
