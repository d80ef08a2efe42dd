"""A real object store for tests: moto's S3 server in a process of its own, behind a proxy that can disturb it."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from s2l_ray.artifacts import MANIFEST
from s2l_ray.storage import Storage
from tests.nodes import free_ports

BUCKET = "bucket"
SECRET = "canary7secret"
START_SECONDS = 60
LOOPBACK = "127.0.0.1"
OF_A_HOP = ("connection", "transfer-encoding", "expect", "content-length")
"""Headers that are said anew to the next in line."""
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

Disturb = Callable[[int, str], float | None]
"""Number of a request, from 1, and `METHOD /path` -> how long it is held back [s], None: it is answered by 503."""


def undisturbed(number: int, request: str) -> float | None:
    return 0.0


class ObjectStore(ThreadingHTTPServer):
    """The proxy. Every request is noted; `disturb` says what becomes of it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: int) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.upstream = upstream
        self.requests: list[str] = []
        self.disturb: Disturb = undisturbed
        self.is_down = False
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this store as `s3://`."""
        return {
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{self.server_port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, prefix: str) -> str:
        """Return a place in the store that needs no environment but the credentials in it."""
        endpoint = f"endpoint_override={LOOPBACK}%3A{self.server_port}&scheme=http&region=us-east-1"
        return f"s3://somebody:{SECRET}@{BUCKET}/{prefix}?{endpoint}"

    def storage(self, prefix: str) -> Storage:
        return Storage.at(self.uri(prefix))

    def note(self, request: str) -> int:
        """Note a request; return its number."""
        with self._lock:
            self.requests.append(request)
            return len(self.requests)

    def calm(self) -> None:
        """Forget what was asked, and disturb nothing from now on."""
        self.disturb, self.requests = undisturbed, []

    def go_down(self) -> None:
        """Refuse every connection from now on, and drop those that are open."""
        self.is_down = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def _forward(self) -> None:
        request = f"{self.command} {self.path}"
        body = self._body()
        held_back = self.server.disturb(self.server.note(request), request)
        if self.server.is_down:
            self.close_connection = True
            return
        if held_back is None:
            self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        time.sleep(held_back)
        upstream = http.client.HTTPConnection(LOOPBACK, self.server.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_A_HOP}
        headers["Content-Length"] = str(len(body))
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        # Lists tell milliseconds, as those of many stores do; what is said of one object has whole seconds.
        answer = response.read().replace(b".000Z</LastModified>", b".250Z</LastModified>")
        self._answer(response.status, dict(response.getheaders()), answer)
        upstream.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in OF_A_HOP:
                self.send_header(name, value)
        # The length of what a HEAD speaks of stands in its headers alone.
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def object_store(log: Path) -> Iterator[ObjectStore]:
    """Start moto's server with one empty bucket, and the proxy in front of it."""
    (port,) = free_ports(1)
    with log.open("wb") as output:
        moto = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)], stdout=output, stderr=output
        )
    try:
        _wait_for(port, moto)
        store = ObjectStore(port)
        thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        filesystem, _ = pafs.FileSystem.from_uri(f"{store.uri('')}&allow_bucket_creation=true")
        filesystem.create_dir(BUCKET)
        store.calm()
        try:
            yield store
        finally:
            if not store.is_down:
                store.go_down()
    finally:
        moto.kill()
        moto.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, "moto's server ended at once"
        assert time.monotonic() < deadline, "moto's server did not start"
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.05)


def manifests(storage: Storage) -> dict[str, dict[str, Any]]:
    """Return every manifest without its `run` part, by address."""
    found = {}
    for artifact in storage.list_folders():
        for fingerprint in storage.list_folders(artifact):
            data = storage.read_bytes(artifact, fingerprint, MANIFEST)
            if data is not None:
                manifest = json.loads(data)
                manifest.pop("run")
                if artifact == "report":
                    manifest.pop("files")  # it shows the seconds that the run took
                found[f"{artifact}/{fingerprint}"] = manifest
    return found
