"""The program that `execution` starts: runs one Python program that it trusts not, and says what came of it.

Reads the program from standard input, writes one JSON object. It is a file of its own so that namespaces and limits
are set in a process that has one thread and nothing to lose. See `execution` for what is contained and what is not.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

NEW_USER, NEW_MOUNTS, NEW_IPC, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x00020000, 0x08000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
"""The system call's number is that of x86-64 and of arm64."""
NOBODY = 65534
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run standard input as `argv` says: JSON of the limits."""
    limits = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read()
    isolated = isolate(limits["file_bytes"])
    Path("program.py").write_bytes(program)
    read_end, write_end = os.pipe()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        become_program(limits, write_end)
    os.close(write_end)
    output, ended = follow(child, read_end, limits)
    print(json.dumps({"output": output.decode("utf-8", "replace"), "ended": ended, "isolated": isolated}))


def isolate(disk_bytes: int) -> bool:
    """Move into namespaces: no network, no other process in sight, no writing but in a folder in memory.

    Returns:
        False where the kernel does not allow all of it.
    """
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_USER | NEW_MOUNTS | NEW_IPC | NEW_PIDS | NEW_NETWORK):
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
    except OSError:
        return False
    here = os.fsencode(Path.cwd())
    if libc.mount(b"none", here, b"tmpfs", 0, f"size={disk_bytes}".encode()):
        return False
    os.chdir(here)
    return set_read_only(b"/", True) and set_read_only(here, False)


def set_read_only(mount: bytes, value: bool) -> bool:
    """Make a mount and all below it read-only, or not; return whether the kernel did."""
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY * value, READ_ONLY * (not value), 0, 0)
    size = ctypes.sizeof(attributes)
    return bool(libc.syscall(MOUNT_SETATTR, AT_FDCWD, mount, AT_RECURSIVE, attributes, size) == 0)


def become_program(limits: dict[str, int], write_end: int) -> None:
    """Turn the child into the program; never returns."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if program := os.fork():
        # The first process of a namespace is deaf to most signals, its own limits' among them, so that is not the
        # program; with its end all others end.
        os.close(write_end)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (write_end, 1), (write_end, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    for name, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))
    os.execve(sys.executable, [sys.executable, "-I", "program.py"], {})


def follow(child: int, read_end: int, limits: dict[str, int]) -> tuple[bytes, str]:
    """Collect the program's output until it ends, has said too much, or its time is over; leave nothing running.

    Returns:
        What it wrote, and how it ended: its exit code (128 + n by the signal n), `clock` or `output`.
    """
    deadline, output, ended = time.monotonic() + limits["wall_seconds"], b"", ""
    is_open = True
    while not ended:
        if is_open and select.select([read_end], [], [], 0.02)[0]:
            output += (more := os.read(read_end, 65536))
            is_open = bool(more)
        if len(output) > limits["output_bytes"]:
            ended = "output"
        elif time.monotonic() > deadline:
            ended = "clock"
        elif not is_open or not select.select([read_end], [], [], 0)[0]:
            done, status = os.waitpid(child, os.WNOHANG)
            ended = str(os.waitstatus_to_exitcode(status)) if done else ""
            if not done and not is_open:
                time.sleep(0.01)
    kill_all(child)
    return output[: limits["output_bytes"]], ended


def kill_all(child: int) -> None:
    """Kill the program and what it has started, also what left its group: orphans become our children."""
    waiting = [child]
    while waiting:
        for process in waiting:
            for kill in (os.killpg, os.kill):
                try:
                    kill(process, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        waiting = [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        time.sleep(0.005)


if __name__ == "__main__":
    main()
