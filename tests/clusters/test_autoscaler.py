"""The node types of aws.yaml under Ray's real autoscaler: the right ones come for what stages ask, and go when idle.

The nodes are Ray nodes on this machine that claim the CPUs and GPUs of their type; no cloud is asked.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import load_experiment
from tests.nodes import free_ports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
AWS = ROOT / "cluster_configs" / "aws.yaml"
HEAD_ID = "f" * 51 + "00000"
FAKE_HEAD_TYPE = "ray.head.default"
"""The fake provider knows the head by this name only."""
KEPT = {"cpu": 1}
"""The worker that aws.yaml keeps."""
OBJECT_STORE = 100 * 2**20
IDLE_MINUTES = 0.05
UP_SECONDS = 120
"""Longest wait for the head, for nodes to come, and for them to go [s]."""


def fake_config(gcs_address: str) -> dict[str, Any]:
    """Return aws.yaml as shipped, but for who makes the nodes, and how soon idle ones go."""
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load(AWS.read_text(encoding="utf-8")))
    types = config["available_node_types"]
    types[FAKE_HEAD_TYPE] = types.pop(config["head_node_type"])
    for node_type in types.values():
        node_type["resources"]["object_store_memory"] = OBJECT_STORE
    commands = [name for name in config if name.endswith("_commands")]
    config |= {
        "head_node_type": FAKE_HEAD_TYPE,
        "idle_timeout_minutes": IDLE_MINUTES,
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in commands},
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": gcs_address,
        },
    }
    return config


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + UP_SECONDS
    while not holds():
        assert time.monotonic() < end, f"{what} took more than {UP_SECONDS} s"
        time.sleep(0.25)


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def stopped(head: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert head.poll() is None, log.read_text()
    return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A head with the autoscaler and no workers, joined by this process."""
    import ray

    # Not pytest's folder: Ray's sockets lie below it, and their paths have a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="as-"))
    host, (port,) = ray.util.get_node_ip_address(), free_ports(1)
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(fake_config(f"{host}:{port}")))
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    command = [
        str(Path(sys.executable).parent / "ray"),
        *("start", "--head", "--block", f"--port={port}", f"--node-ip-address={host}", "--num-cpus=0"),
        *("--include-dashboard=false", f"--object-store-memory={OBJECT_STORE}", f"--temp-dir={folder}"),
        *(f"--autoscaling-config={path}", "--disable-usage-stats"),
    ]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(host, port) or stopped(head, folder / "head.log"), "the start of Ray's head")
        ray.init(address=f"{host}:{port}", log_to_driver=False, logging_level="error")
        yield
    finally:
        ray.shutdown()
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def workers() -> Counter[str]:
    """Return how many nodes of each type there are besides the head, by what they claim."""
    import ray

    types = {
        (node["resources"].get("CPU", 0), node["resources"].get("GPU", 0)): name
        for name, node in yaml.safe_load(AWS.read_text(encoding="utf-8"))["available_node_types"].items()
    }
    alive = [node for node in ray.nodes() if node["Alive"]]
    found = Counter(types[node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)] for node in alive)
    found.pop("head", None)
    return found


def asked_for(*overrides: str) -> ResourcesConfig:
    """Return what the quickstart asks for, with `--set` lines."""
    experiment = load_experiment(ROOT / "workflows" / "quickstart.yaml", list(overrides))
    return experiment.arms["s2l"].resources


def get(resources: ResourcesConfig, stage: str) -> Counter[str]:
    """Wait for what a stage asks for, as a run does, and return the nodes that are there then."""
    from s2l_ray.stages.capacity import wait_for

    demand = resources.of(stage)
    assert demand is not None
    wait_for(demand, stage, UP_SECONDS)
    return workers()


def test_shipped_node_types_come_for_what_stages_ask_and_go_when_idle(cluster: None) -> None:
    import ray

    wait_until(lambda: workers() == KEPT, "the start of the node that is always there")

    # The quickstart: gangs and tasks of one CPU. That node holds them, and no other is started.
    quickstart = asked_for()
    assert get(quickstart, "train_proxy") == KEPT

    @ray.remote(num_cpus=quickstart.score_examples.cpus)
    def where(seconds: float) -> str:
        time.sleep(seconds)
        return str(ray.get_runtime_context().get_node_id())

    fewest = [where.remote(0.5) for _ in range(quickstart.score_examples.actors[1])]
    assert len(set(ray.get(fewest, timeout=UP_SECONDS))) == 1
    assert workers() == KEPT

    # More than one node's worth of them: another CPU node, and no GPU is wasted on it.
    more = asked_for("resources.train_proxy={workers: 12}")
    assert get(more, "train_proxy") == {"cpu": 2}

    # Single GPUs, and a gang that only the large machine holds.
    single = asked_for("resources.train_proxy={workers: 2, gpus: 1, cpus: 8, market: on-demand}")
    assert get(single, "train_proxy")["gpu"] == 2
    large = asked_for("resources.finetune_target={workers: 4, gpus: 1, cpus: 12}")
    assert get(large, "finetune_target")["gpu_x4"] == 1

    wait_until(lambda: workers() == KEPT, "the leave of idle nodes")


def test_what_no_node_type_holds_is_refused_instead_of_waited_for(cluster: None) -> None:
    from s2l_ray.stages.capacity import wait_for

    spot = asked_for("resources.train_proxy={workers: 1, gpus: 1, market: spot}").train_proxy
    with pytest.raises(ConfigError, match=r"1 x .*market-type=spot, and no node type"):
        wait_for(spot, "train_proxy", UP_SECONDS)
    many = asked_for("resources.train_proxy={workers: 100, gpus: 1}").train_proxy
    with pytest.raises(ConfigError, match=r"100 x .*1 GPU.*within its limits"):
        wait_for(many, "train_proxy", UP_SECONDS)
    assert workers() == KEPT


def test_run_is_not_refused_for_nodes_that_the_autoscaler_may_still_bring(cluster: None) -> None:
    from s2l_ray.stages.capacity import check_capacity

    check_capacity(asked_for("resources.train_proxy={workers: 2, gpus: 1, cpus: 4}"))
