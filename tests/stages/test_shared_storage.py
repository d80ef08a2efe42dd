"""A local path as storage on two nodes: shared it passes, on a disk of a node's own it is refused."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from s2l_ray.stages import runtime
from s2l_ray.storage import Storage
from tests.conftest import may_unshare, run_s2l, write_config

JOIN_SECONDS = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def wait_for_nodes(count: int) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while sum(node["Alive"] for node in ray.nodes()) != count:
        assert time.monotonic() < deadline, f"there are not {count} nodes"
        time.sleep(0.2)


def test_path_that_nodes_share_passes_and_nothing_is_left_in_it(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    wait_for_nodes(2)
    runtime.check_shared(Storage.at(str(tmp_path / "storage")))
    assert list((tmp_path / "storage").iterdir()) == []
    runtime.check_shared(Storage("s3://bucket/that/is/never/opened"))
    cluster.remove_node(node)
    wait_for_nodes(1)


@pytest.mark.skipif(not may_unshare(), reason="needs the right to mount a file system over a folder (unshare -m)")
@pytest.mark.parametrize(
    ("mount", "found"),
    [
        ("mount -t tmpfs none {}", "does not see"),
        pytest.param("mount --bind -o ro {0} {0}", "cannot write", marks=pytest.mark.slow),
    ],
)
def test_path_that_a_node_does_not_share_is_refused_with_advice(
    cluster: Cluster, tmp_path: Path, mount: str, found: str
) -> None:
    config, storage = write_config(tmp_path), tmp_path / "storage"
    storage.mkdir()
    start = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=1 --block"
    # A node whose processes have another file system at this path.
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mount.format(storage)} && exec {start}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    try:
        wait_for_nodes(2)
        done = run_s2l("run", str(config), "--json", RAY_ADDRESS=cluster.address)
        assert done.returncode == 2, done.stderr
        for part in (str(storage), found, "s3://"):
            assert part in done.stderr
        assert "Traceback" not in done.stderr
        assert list(storage.iterdir()) == []
    finally:
        node.terminate()
        node.wait(timeout=60)
        wait_for_nodes(1)
