"""Running a program that a model wrote: contained as far as the kernel allows, and no sandbox.

The program is `python -I` with an empty environment, in an empty folder of its own, with limits on CPU seconds,
memory, open files, file sizes and processes, a wall clock, and a cap on its output; at the end everything that it
started is killed. Where the kernel gives an unprivileged process namespaces, it has no network, sees and can signal
no other process, and can write nowhere but in its folder, which is in memory. `Outcome.isolated` says whether it had
them; without, a program may use the network, signal this user's processes, and write where this user may.

What is never contained: it can *read* every file that this user can read, and a fault of the kernel. The limit of
processes does not bind root. Run evaluations of programs as a user without secrets, in a container.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from s2l_ray.errors import ConfigError, StageFailed

NOT_ISOLATED = (
    "this machine's kernel gives programs no namespaces of their own: what the target writes may use the network, "
    "signal this user's processes and write this user's files. Run it in a container that has neither."
)
GRACE_SECONDS = 30
"""What starting and clearing up may take on a busy machine, beyond the wall clock."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    cpu_seconds: int = 5
    wall_seconds: int = 10
    memory_bytes: int = 2**30
    """Address space."""
    file_bytes: int = 2**20
    """Of a file, and of all files together where the folder is in memory."""
    output_bytes: int = 2**16
    open_files: int = 64
    processes: int = 1
    """Of this user, as the kernel counts them: none beside the program's own."""


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        output: what it wrote to standard output and standard error.
        ended: its exit code as text (128 + n by the signal n), or which limit it was: `clock` or `output`.
        isolated: whether the kernel gave it namespaces of its own.
    """

    output: str
    ended: str
    isolated: bool

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself and without an error."""
        return self.ended == "0"


def check_allowed(metric: str, allow_code_execution: bool) -> None:
    """Refuse to run programs unless the command line says so.

    Args:
        metric: what would run them, for messages.
        allow_code_execution: what the command line says.

    Raises:
        ConfigError: it does not, or this system has not what contains them.
    """
    if not allow_code_execution:
        raise ConfigError(
            f"evaluate.metrics: {metric} runs programs that the target writes, which no config may ask for by itself. "
            "Repeat the command with --allow-code-execution where that does no harm, or leave the metric out."
        )
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"evaluate.metrics: {metric} runs programs on Linux alone, found {sys.platform}.")


def is_isolated() -> bool:
    """Return whether programs get namespaces of their own here."""
    return run_program("").isolated


def run_program(program: str, limits: Limits = Limits()) -> Outcome:
    """Run Python source and return what came of it; nothing that it started is left.

    Raises:
        StageFailed: the process that watches over it was killed.
    """
    watcher = Path(__file__).with_name("execution_process.py")
    with tempfile.TemporaryDirectory(prefix="s2l-program-") as folder:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(watcher), json.dumps(asdict(limits))],
            input=program.encode("utf-8", "replace"),
            capture_output=True,
            cwd=folder,
            env={},
            timeout=limits.wall_seconds + GRACE_SECONDS,
            check=False,
            start_new_session=True,
        )
    if done.returncode:
        raise StageFailed(
            f"the process that runs a model's program ended with {done.returncode}: {done.stderr[-500:]!r}"
        )
    return Outcome(**json.loads(done.stdout))
