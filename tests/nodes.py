"""A Ray cluster of real processes on this machine, whose nodes come and go as a cloud's do."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psutil

RAY = str(Path(sys.executable).parent / "ray")
STORE = 100 * 2**20
ATTEMPTS = 3
NOTICE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "12"}
"""Seconds between a SIGTERM and the end of a node."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens to, all different."""
    with ExitStack() as open_ones:
        found = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in found]


class Nodes:
    """A head, and nodes that are added one by one; all end with the block."""

    def __init__(self, head_cpus: float = 1) -> None:
        self._head_cpus = head_cpus
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Nodes":
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder.name}"]
        self._start(*head, f"--num-cpus={self._head_cpus:g}")
        return self

    def add(self, cpus: float, resources: str = "{}") -> "subprocess.Popen[bytes]":
        """Add a node and wait until the cluster has it."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus:g}", f"--resources={resources}")

    def take_away(self, node: "subprocess.Popen[bytes]") -> None:
        """Send a node what a cloud sends when it wants a spot machine back."""
        node.send_signal(signal.SIGTERM)

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """End a node without a word, with everything on it."""
        for member in _family(node):
            member.kill()
        node.wait()

    def worker_processes(self) -> list[psutil.Process]:
        """Return the processes that run tasks and actors, on all nodes; Ray names them after what they do.

        Its agents are named alike, but a node dies with them, and with the head's node the cluster.
        """
        members = [member for node in self._processes if node.poll() is None for member in _family(node)]
        titles = {member: _title(member) for member in members}
        return [member for member, title in titles.items() if title.startswith("ray::") and "Agent" not in title]

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a node. `ray start` gives up after half a minute, which a busy machine may need: try again."""
        said = b""
        for _ in range(ATTEMPTS):
            process, said = self._try_to_start(*arguments)
            if process.poll() is None:
                return process
        raise AssertionError(f"ray start ended {ATTEMPTS} times: {said.decode(errors='replace')}")

    def _try_to_start(self, *arguments: str) -> "tuple[subprocess.Popen[bytes], bytes]":
        # Nobody reads what its log monitor would pass on.
        quiet = ("--disable-usage-stats", "--include-log-monitor=false")
        started = [RAY, "start", *arguments, f"--object-store-memory={STORE}", *quiet, "--block"]
        process = subprocess.Popen(
            started,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **NOTICE},
            start_new_session=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        # Two nodes that start at once on one host fight for a socket: one after the other.
        said = b""
        while b"--block" not in said:
            line = process.stdout.readline()
            if not line:
                process.wait()
                break
            said += line
        return process, said

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                self.kill(process)
        self._folder.cleanup()


def _family(node: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    process = psutil.Process(node.pid)
    return [*process.children(recursive=True), process]


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
        return ""
