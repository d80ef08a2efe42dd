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

from s2l_ray.attempts import begin
from s2l_ray.errors import ConfigError
from s2l_ray.stages import shared_storage
from s2l_ray.stages.shared_storage import check_shared, check_sign, leave_sign
from s2l_ray.storage import Storage
from tests.conftest import command, may_unshare, run_s2l, write_config

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
    check_shared(Storage.at(str(tmp_path / "storage")))
    assert list((tmp_path / "storage").iterdir()) == []
    check_shared(Storage("s3://bucket/that/is/never/opened"))
    cluster.remove_node(node)
    wait_for_nodes(1)


def node_apart(cluster: Cluster, mount: str, *more: str) -> "subprocess.Popen[bytes]":
    """Start a node whose processes have another file system at some path."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
    return subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *start, "--block", *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )


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
    node = node_apart(cluster, mount.format(storage))
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


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="needs the right to mount a file system over a folder (unshare -m)")
def test_path_that_a_node_does_not_share_which_comes_later_is_refused_by_its_first_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    resources = {"score_examples": {"custom": {"late": 1}}, "train_proxy": {"launcher": "task"}}
    config = write_config(tmp_path, proxy={"steps": 4000}, score={"shard_rows": 10}, resources=resources)
    storage = tmp_path / "storage"
    storage.mkdir()
    good = cluster.add_node(num_cpus=1, resources={"late": 1})
    wait_for_nodes(2)
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    run = subprocess.Popen(command("run", str(config), "--json"), stderr=subprocess.PIPE, env=environment)
    bad = None
    try:
        deadline = time.monotonic() + JOIN_SECONDS
        while not list(storage.glob("proxy/*/*")):  # by then those that were there have been asked
            assert time.monotonic() < deadline, "the proxy was never trained"
            time.sleep(0.1)
        bad = node_apart(cluster, f"mount -t tmpfs none {storage}", "--resources", '{"late": 1}')
        _, said = run.communicate(timeout=280)
        assert run.returncode == 2, said.decode()
        assert "does not see what was written to it" in said.decode()
    finally:
        run.kill()
        cluster.remove_node(good)
        if bad is not None:
            bad.terminate()
            bad.wait(timeout=60)
        wait_for_nodes(1)


def test_sign_is_seen_where_it_was_left_and_waited_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_storage, "SHARED_SECONDS", 0.1)
    here, elsewhere = (begin(Storage(str(tmp_path / name)), "tokens", "0" * 32) for name in ("a", "b"))
    assert here is not None
    assert elsewhere is not None
    leave_sign(here)
    check_sign(here)
    with pytest.raises(ConfigError, match="does not see what was written to it elsewhere"):
        check_sign(elsewhere)
