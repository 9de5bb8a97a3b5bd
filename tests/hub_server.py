"""A stand-in of the Hugging Face hub: repositories of small files behind its HTTP interface, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import yaml

TOKEN = "hf_right"


class Hub:
    """What the server holds, and what it was asked.

    Attributes:
        commits: for each repository its commits, the first one first, each with all files by their names.
        asked: requests, such as `GET /api/models/user/model`.
        fails_with: a status that every request is answered with, or `silence`.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.branches: dict[tuple[str, str], int] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.fails_with: int | str | None = None
        self.url = ""

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Files of the main branch."""
        return self.commits[repo_id][-1]

    def sha(self, repo_id: str, number: int) -> str:
        """The commit of a number."""
        return hashlib.sha1(f"{repo_id} {number}".encode()).hexdigest()

    def number(self, repo_id: str, revision: str) -> int | None:
        """Number of the commit that a revision names."""
        last = len(self.commits[repo_id]) - 1
        named = {self.sha(repo_id, number): number for number in range(last + 1)} | {"main": last}
        return named.get(revision)


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does to what huggingface_hub asks when it uploads and downloads a model."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        for name, value in sent.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_one(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.fails_with == "silence":
            time.sleep(5)
            return
        if isinstance(self.hub.fails_with, int):
            self.answer(self.hub.fails_with, {"error": "so it is"})
            return
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            self.api(match[1], match[2] or "", body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[1], match[2], match[3])
        else:
            self.refuse(404, "", f"no such page: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815 - the base class's names

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, asked: dict) -> None:
        if not self.authorized:
            self.refuse(401, "", "Invalid username or password.")
            return
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        there = repo_id in self.hub.commits
        if not there:
            self.hub.commits[repo_id] = [{}]
            if asked.get("visibility") == "private":
                self.hub.private.add(repo_id)
        self.answer(409 if there else 200, {"url": f"{self.hub.url}/{repo_id}", "error": "You already created it"})

    def validate(self, content: str) -> None:
        found = re.match(r"---\n(.*?)\n---\n", content, re.S)
        metadata = yaml.safe_load(found[1]) if found else None
        bad = not isinstance(metadata, dict) or metadata.get("license", "mit") not in ("mit", "apache-2.0", "other")
        errors = [{"message": '"license" must be one of [mit, apache-2.0, other]'}] if bad else []
        self.answer(400 if bad else 200, {"errors": errors, "warnings": []})

    def api(self, repo_id: str, rest: str, body: bytes) -> None:
        hub = self.hub
        if repo_id not in hub.commits or (repo_id in hub.private and not self.authorized):
            self.refuse(404 if self.authorized else 401, "RepoNotFound", "Repository not found")
            return
        what, revision, *_ = [*rest.strip("/").split("/"), "main"] if rest else ["revision", "main"]
        number = hub.number(repo_id, revision)
        if number is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = hub.commits[repo_id][number]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repo_id, "sha": hub.sha(repo_id, number), "siblings": siblings, "tags": []})
        elif what == "tree":
            self.answer(200, [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ])  # fmt: skip
        elif not self.authorized:
            self.refuse(403, "", "You don't have the rights to write to this repository")
        elif what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            self.answer(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        elif what == "commit":
            self.commit(repo_id, [json.loads(line) for line in body.splitlines()])

    def commit(self, repo_id: str, lines: list[dict]) -> None:
        files = dict(self.hub.files(repo_id))
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.hub.commits[repo_id].append(files)
        sha = self.hub.sha(repo_id, len(self.hub.commits[repo_id]) - 1)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        number = self.hub.number(repo_id, revision) if repo_id in self.hub.commits else None
        content = None if number is None else self.hub.commits[repo_id][number].get(name)
        if number is None or content is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(200, content, ETag=etag, X_Repo_Commit=self.hub.sha(repo_id, number))


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
