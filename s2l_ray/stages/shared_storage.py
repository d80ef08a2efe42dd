"""A storage that is a local path must be one folder on all nodes: those that are there, and those that come later."""

import functools
import socket
import time
import uuid
from typing import Any

import ray

from s2l_ray.errors import ConfigError
from s2l_ray.log import display
from s2l_ray.staged_output import SCRATCH, StagedOutput
from s2l_ray.storage import Storage

SHARED_SECONDS = 60.0
"""How long the other nodes may take to say whether they see the storage, and a shared file system to show a file."""
SIGN = f"{SCRATCH}/seen"


@functools.cache
def check_shared(storage: Storage) -> None:
    """Refuse a local path as storage where it is not one and the same folder on every node that is there now.

    Raises:
        ConfigError: a node does not see what was written here, or cannot write there.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here}
    if not storage.is_local or not others:
        return
    probe = f"shared-test-{uuid.uuid4().hex}"
    storage.write_bytes(b"", probe)
    try:
        pending = {_look_for(node, storage, probe): node for node in others}
        silent = len(pending)
        for answer in ray.wait(list(pending), num_returns=len(pending), timeout=SHARED_SECONDS)[0]:
            try:
                problem = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # the node has left, or cannot run anything of ours: later stages will say which
            silent -= 1
            if problem:
                node = others[pending[answer]]["NodeManagerAddress"]
                raise _not_shared(storage, node, problem)
        if silent:
            display.warn(
                f"{silent} of {len(others)} other nodes did not say within {SHARED_SECONDS:.0f} s whether "
                f"{storage.uri} is one folder on all of them, as it must be"
            )
    finally:
        storage.delete_file(probe)


def leave_sign(output: StagedOutput) -> None:
    """Leave in an attempt what its workers are to see, wherever they run."""
    if output.storage.is_local:
        output.write_bytes(SIGN, b"\n")


def check_sign(output: StagedOutput) -> None:
    """Refuse to work on a node that does not see what was left for it: what it wrote would be lost.

    Raises:
        ConfigError: the sign does not come.
    """
    until = time.monotonic() + SHARED_SECONDS
    while output.storage.is_local and output.read_bytes(SIGN) is None:
        if time.monotonic() > until:
            raise _not_shared(output.storage, socket.gethostname(), "does not see what was written to it elsewhere")
        time.sleep(1)


def _not_shared(storage: Storage, node: str, problem: str) -> ConfigError:
    return ConfigError(
        f"storage {storage.uri}: the node {node} {problem}. Expected one folder that every node shares, as on NFS. "
        "Set `storage` (or --storage) to such a folder or to a URI such as s3://bucket/dir."
    )


def _look_for(node: str, storage: Storage, probe: str) -> Any:
    """Ask a node what is wrong with its view of the storage; the answer is empty where nothing is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(_problem_with).options(
        name="check storage", num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    return task.remote(storage, probe)


def _problem_with(storage: Storage, probe: str) -> str:
    if storage.read_bytes(probe) is None:
        return "does not see what was written to it here"
    try:
        storage.check_writable()
    except ConfigError as error:
        return f"sees it but cannot write there ({error})"
    return ""
