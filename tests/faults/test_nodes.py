"""The same checkpoints give the same trajectories, clusters and subset on one node, on three, and when one dies."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from s2l_ray.config import ClusterConfig, ResourcesConfig
from s2l_ray.stages import blocks
from s2l_ray.stages import cluster_trajectories as stage
from s2l_ray.stages.distributed_kmeans import StratumRows
from tests.conftest import command, run_s2l, write_config
from tests.faults.test_kills import at_work_on, manifests, wait_for
from tests.nodes import Nodes
from tests.stages.conftest import Bench
from tests.stages.test_cluster_trajectories import checksums, made_inputs

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MANY_SHARDS = {"score": {"shard_rows": 50}}
SPREAD = {"resources": {"score_examples": {"actors": [1, 3]}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a storage that holds a trained proxy."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_s2l("run", str(write_config(folder, **MANY_SHARDS, **SPREAD)), "--until", "train_proxy")
    assert done.returncode == 0, done.stderr
    return folder


def copied(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained / "storage", folder / "storage")
    return write_config(folder, **MANY_SHARDS, **SPREAD)


@pytest.fixture(scope="module")
def on_one_node(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("one")
    done = run_s2l("run", str(copied(trained, folder)), "--until", "select_subset")
    assert done.returncode == 0, done.stderr
    return manifests(folder / "storage")


@pytest.mark.parametrize("dies", [False, True])
def test_three_nodes_select_what_one_does(
    dies: bool, trained: Path, on_one_node: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    config = copied(trained, tmp_path)
    with Nodes(head_cpus=1) as nodes:
        others = [nodes.add(1), nodes.add(1)]
        run = command("run", str(config), "--until", "select_subset", "--json")
        process = subprocess.Popen([*run, "--set", f"resources.address={nodes.address}"], stdout=subprocess.PIPE)
        if dies:
            wait_for(at_work_on(tmp_path / "storage", "trajectories", "scratch/receipts/*.json"), process)
            nodes.kill(others[0])
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0
        assert "trajectories" in json.loads(said)["ran"]
    assert manifests(tmp_path / "storage") == on_one_node


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    small = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    ray.init(address=found.address, logging_level="error", log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_node_that_dies_during_k_means_changes_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks that Ray does not keep with the driver, as it does with small objects.
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 10_000)
    monkeypatch.setattr(blocks, "SMALL_BLOCK_ROWS", 10_000)
    bench, config = Bench(tmp_path / "storage"), ClusterConfig(n_clusters=20, max_iter=40)
    inputs = made_inputs(bench, np.random.default_rng(6).gamma(2, 1, (60_000, 6)))
    three = ResourcesConfig.model_validate({"cluster_trajectories": {"actors": [1, 3]}})
    alone = checksums(bench.run(stage.cluster_trajectories, inputs, config))
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20) for _ in range(2)]
    iterations, killed = 0, threading.Event()
    look = StratumRows._look

    def counted(self: StratumRows, *arguments: object) -> object:
        nonlocal iterations
        iterations += 1
        if iterations == 2:
            cluster.remove_node(nodes[0], allow_graceful=False)
            killed.set()
        return look(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StratumRows, "_look", counted)
    assert checksums(bench.run(stage.cluster_trajectories, inputs, config, three)) == alone
    assert killed.is_set()
    assert iterations > 2
