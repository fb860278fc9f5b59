"""A Hugging Face Hub on the loopback that fails when it is told to, and the process that reads from it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT, NEWER = "c0ffee" * 6 + "beef", "decade" * 6 + "cafe"
STATUS = {"429": 429, "502": 502, "503": 503}
API = re.compile(
    r"/api/(?:datasets|models)/(?P<name>[^/]+/[^/]+)(/(?P<kind>revision|tree)/(?P<revision>[^/]+))?/?(?P<under>.*)"
)
RESOLVE = re.compile(r"(?:/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repository:
    """A data set or a model, and what becomes of its requests."""

    files: dict[str, bytes]
    newer: dict[str, bytes] | None = None
    """What was committed after `files`."""
    fault: Callable[[str], str | None] = lambda request: None
    """Gets "METHOD path"; returns 429, 502, 503, late (no answer in time), cut (in the middle of the body) or None."""
    requests: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return COMMIT if self.newer is None else NEWER

    def files_at(self, revision: str | None) -> dict[str, bytes] | None:
        if revision in (None, "main"):
            revision = self.commit
        return {COMMIT: self.files, NEWER: self.newer}.get(revision)


def in_a_row(pattern: str, *kinds: str | None) -> Callable[[str], str | None]:
    """These faults, one for every request that the pattern is found in, then none."""
    following = iter(kinds)
    return lambda request: next(following, None) if re.search(pattern, request) else None


class Hub(ThreadingHTTPServer):
    """Data sets and models by their names."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if not found or found["name"] not in self.server.repositories:
            self.answer(401, b"", {"X-Error-Message": "Invalid username or password."})
            return
        repository = self.server.repositories[found["name"]]
        request = f"{self.command} {path} {self.headers.get('Range', '')}".strip()
        with self.server.lock:
            repository.requests.append(request)
            fault = repository.fault(request)
        if fault == "late":
            self.connection.recv(1)  # until the client has had enough
            self.close_connection = True
        elif fault in STATUS:
            self.answer(STATUS[fault], b"not now", {"Retry-After": "7"} if fault == "429" else {})
        else:
            self.serve(repository, found.groupdict(), fault == "cut")

    do_HEAD = do_GET  # noqa: N815

    def serve(self, repository: Repository, asked: dict[str, Any], cut: bool) -> None:
        files = repository.files_at(asked["revision"])
        commit = asked["revision"] if asked["revision"] in (COMMIT, NEWER) else repository.commit
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "file" in asked:
            self.send_file(files.get(asked["file"]), commit, cut)
        elif asked["kind"] == "tree":
            self.send_json(list(entries(files, asked["under"])), cut)
        else:
            siblings = [{"rfilename": name} for name in files]
            self.send_json({"id": asked["name"], "sha": commit, "private": False, "siblings": siblings}, cut)

    def send_json(self, document: Any, cut: bool) -> None:
        self.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, cut)

    def send_file(self, content: bytes | None, commit: str, cut: bool) -> None:
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"ETag": f'"{tag(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(200, content, headers, cut)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], headers, cut)

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *arguments: Any) -> None:
        pass


def entries(files: dict[str, bytes], directory: str) -> Iterator[dict[str, Any]]:
    """What the Hub lists: the files of a directory, and the directories in it."""
    inside = {name: name.removeprefix(directory).lstrip("/") for name in files if name.startswith(directory)}
    for name, rest in inside.items():
        if "/" not in rest:
            yield {"type": "file", "oid": tag(files[name])[:40], "size": len(files[name]), "path": name}
    for name in sorted({name[: -len(rest)] + rest.partition("/")[0] for name, rest in inside.items() if "/" in rest}):
        yield {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}


def tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ask(hub: Hub, home: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `hub_client.py` makes of each job, in a process of its own: the Hub's address is read at import."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    script = Path(__file__).with_name("hub_client.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        input=json.dumps(jobs), capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
