"""Heartbeats: what the process at work on an attempt says every few seconds, and whether it is still alive.

They save work and guard nothing: what an artifact is, its manifest alone decides.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A heartbeat of another host that is older than this says that its process is dead."""
LOOK_BEATS = 3
"""For how many heartbeats an attempt of another host is watched before it is taken for dead."""
CLOCK_SECONDS = 3600.0
"""How far the clocks of two hosts may be apart."""
PROCESS = uuid.uuid4().hex
"""Tells this process from any other that ever wrote a heartbeat."""


@dataclass(frozen=True)
class Heartbeat:
    """What a process says of its work on an attempt.

    Attributes:
        host: name, boot and process namespace of where it runs.
        started: when the process started, as `_started` tells it; None where it was not said.
        nonce: tells this work on the attempt from that of an earlier run.
        time: when it was said, by its host's clock [s]; 0: it has signed off.
        since: when the work began [s].
        doing: how far it is; empty where it has not said so yet.
    """

    host: str
    pid: int
    nonce: str
    time: float
    since: float | None = None
    started: str | None = None
    process: str = PROCESS
    doing: str = ""

    @classmethod
    def of_this_process(cls) -> "Heartbeat":
        """Return the first one of work that begins now."""
        now = time.time()
        return cls(host(), os.getpid(), uuid.uuid4().hex, now, since=now, started=started(os.getpid()))

    @classmethod
    def parse(cls, data: bytes | None) -> "Heartbeat | None":
        """Read one; None where there is none, or one that cannot be read."""
        try:
            raw = json.loads(data or b"")
            return cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})
        except (ValueError, TypeError):
            return None

    def to_json(self) -> bytes:
        """Return the file's content."""
        return json.dumps(asdict(self)).encode()

    def again(self, doing: str) -> "Heartbeat":
        """Return the next one."""
        return replace(self, time=time.time(), doing=doing)

    def signed_off(self) -> "Heartbeat":
        """Return the last one: what was given up in good order is free at once, for every reader."""
        return replace(self, pid=-1, time=0)

    @property
    def is_ours(self) -> bool:
        """Whether this process has said it."""
        return self.process == PROCESS

    @property
    def is_alive(self) -> bool:
        """Whether its process is at work as far as can be told at once."""
        if self.host != host():
            return time.time() - self.time <= STALE_SECONDS
        # On the same host the process itself tells, and a laptop that slept for an hour has not died of it.
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return self.time > 0 and self.started in (None, started(self.pid))

    def is_followed(self, read: Callable[[], "Heartbeat | None"]) -> bool:
        """Return whether one of another host that looks dead is followed by others: its clock may differ from ours.

        Args:
            read: what stands there now.
        """
        if self.host == host() or abs(time.time() - self.time) > CLOCK_SECONDS:
            return False
        until = time.monotonic() + LOOK_BEATS * HEARTBEAT_SECONDS
        while time.monotonic() < until:
            time.sleep(HEARTBEAT_SECONDS / 2)
            if read() != self:
                return True
        return False


def host() -> str:
    """Return what tells this host, its boot and its view of processes from any other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{boot}/{namespace}"


def started(pid: int) -> str:
    """Return when a process started [clock ticks since boot], so that a number used again is not taken for it.

    Empty where that cannot be known, and for a process that has ended and that its parent has not asked about yet.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    except (OSError, ValueError, IndexError):
        return ""
