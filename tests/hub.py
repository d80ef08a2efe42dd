"""A server on loopback that answers as the Hugging Face hub does, for what this project asks of it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

DATASET, MODEL, GATED_MODEL = "somebody/rows", "somebody/model", "somebody/gated"
API = {f"api/datasets/{DATASET}": DATASET, f"api/models/{MODEL}": MODEL}
FILES = (f"datasets/{DATASET}/resolve/", f"{MODEL}/resolve/")
TOKEN = "hf_canary7token"
LOOPBACK = "127.0.0.1"


class Hub(ThreadingHTTPServer):
    """Holds one repository, whose every revision is a set of files: a data set and a model, by two names.

    It exists from its first commit on.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.is_private = True
        self.refuses = False
        """Whether it lets nobody write."""
        self.created: list[dict[str, object]] = []
        """What was asked for where a data set was to be made."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this hub, and to be let in."""
        return {"HF_ENDPOINT": f"http://{LOOPBACK}:{self.server_port}", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put a new revision on a branch and return its name."""
        sha = hashlib.sha1(json.dumps({name: data.hex() for name, data in files.items()}).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files_at(self, revision: str) -> dict[str, bytes] | None:
        """Return the files of a branch or a commit."""
        return self.commits.get(self.branches.get(revision, revision))


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if path.startswith(f"api/models/{GATED_MODEL}"):
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        resolve = next((prefix for prefix in FILES if path.startswith(prefix)), None)
        if resolve is not None:
            revision, _, name = path.removeprefix(resolve).partition("/")
            self._send_file(revision, name)
            return
        if self.command == "POST" and self.server.refuses and not path.endswith("paths-info/main"):
            self._send(403, json.dumps({"error": f"Bearer {TOKEN} may not write"}).encode(), {})
            return
        if path == "api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
            return
        if path == "api/repos/create":
            self._create(json.loads(body))
            return
        api = next((prefix for prefix in API if path.startswith(prefix)), None)
        if api is None or not self.server.branches:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        what, _, rest = path.removeprefix(api).strip("/").partition("/")
        revision, _, name = rest.partition("/")
        files = self.server.files_at(revision or "main")
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what in ("", "revision"):
            sha = self.server.branches.get(revision or "main", revision)
            about = {"id": API[api], "sha": sha, "private": self.server.is_private, "tags": [], "downloads": 0}
            self._send_json({**about, "siblings": [{"rfilename": name} for name in files]})
        elif what == "tree":
            self._send_json(_tree(files, name))
        elif what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            self._send_json([entry for entry in _tree(files, "") if entry["path"] in wanted])
        elif what == "preupload":
            wanted = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send_json({"files": wanted})
        elif what == "commit":
            self._commit(body, files, revision)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _create(self, asked: dict[str, object]) -> None:
        self.server.created.append(asked)
        url = {"url": f"http://{LOOPBACK}:{self.server.server_port}/datasets/{DATASET}"}
        if self.server.branches:
            self._send(409, json.dumps({**url, "error": "it exists"}).encode(), {})
            return
        self.server.is_private = asked.get("private", asked.get("visibility") == "private") is True
        self.server.commit({".gitattributes": b""})
        self._send_json(url)

    def _commit(self, body: bytes, files: dict[str, bytes], branch: str) -> None:
        """Take a commit as lines of JSON: a header, files with their content, and files to remove."""
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server.commit(files, branch)
        url = f"http://{LOOPBACK}:{self.server.server_port}/datasets/{DATASET}/commit/{sha}"
        self._send_json({"commitUrl": url, "commitOid": sha, "success": True, "hookOutput": ""})

    def _send_file(self, revision: str, name: str) -> None:
        data = (self.server.files_at(revision) or {}).get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        asked = self.headers.get("Range")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        if asked is None:
            self._send(200, data, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        self._send(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree(files: dict[str, bytes], below: str) -> list[dict[str, object]]:
    """List files and the folders above them, as a recursive listing does."""
    inside = {name: data for name, data in files.items() if not below or name.startswith(f"{below}/")}
    folders = {"/".join(name.split("/")[:depth]) for name in inside for depth in range(1, name.count("/") + 1)}
    listed: list[dict[str, object]] = [
        {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders - {below})
    ]
    for name, data in sorted(inside.items()):
        listed.append({"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)})
    return listed


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve a hub for the length of the block."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
