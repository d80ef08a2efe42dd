"""What a cluster cannot hold is refused at the start; what may still come is waited for, and not for ever."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from s2l_ray.config import MARKET_LABEL, PoolResources, ResourcesConfig, TrainResources
from s2l_ray.errors import ConfigError, StageFailed
from s2l_ray.stages.capacity import Claims, at_once, check_capacity, remote_options, wait_for

GIB = 2**30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Nodes as Ray counts them: a head, and one that has what the demands below ask for."""
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20},
    )
    found.add_node(
        num_cpus=3,
        num_gpus=8,
        resources={"scratch": 2},
        labels={"tier": "fast", "rack": "b"},
        object_store_memory=100 * 2**20,
    )
    ray.init(address=found.address, logging_level="error", log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def check(**demands: Any) -> None:
    check_capacity(ResourcesConfig.model_validate(demands))


@pytest.mark.parametrize(
    ("pool", "starves"),
    [
        ({"actors": [4, 8], "cpus": 1, "gpus": 1}, True),
        ({"actors": [4, 4], "cpus": 0.8, "gpus": 0.5}, True),
        ({"actors": [3, 8], "cpus": 1, "gpus": 1}, False),
        ({"actors": [4, 4], "cpus": 0.75, "gpus": 1}, False),
        ({"actors": [4, 4], "cpus": 1, "gpus": 0}, False),
    ],
)
def test_gpu_actors_that_leave_no_cpu_to_read_with_are_refused(
    cluster: Cluster, pool: dict[str, object], starves: bool
) -> None:
    if not starves:
        check(score_examples=pool)
        return
    with pytest.raises(
        ConfigError, match=r"resources\.score_examples asks for .* Lower resources\.score_examples\.cpus"
    ):
        check(score_examples=pool)


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        ({"train_proxy": {"workers": 9}}, r"train_proxy asks for 9 x 1 CPU, the cluster has 4. Lower .*\.workers"),
        ({"finetune_target": {"workers": 9, "cpus": 0.1, "gpus": 1}}, r"9 x 1 GPU, the cluster has 8"),
        ({"prepare_examples": {"actors": [5, 8]}}, r"Lower resources\.prepare_examples\.cpus .* \S+\.actors"),
        ({"score_examples": {"custom": {"tpu": 1}}}, r"Set resources\.score_examples\.custom\.tpu to 0"),
        ({"train_proxy": {"memory": "900 TiB"}}, r"1 x 921600 GiB memory, the cluster has"),
        ({"train_proxy": {"cpus": 4}}, r"asks for 4 CPU on one node, and no node"),
        ({"train_proxy": {"labels": {"tier": "slow"}}}, r"1 CPU, tier=slow on one node, and no node"),
        ({"train_proxy": {"market": "spot"}}, rf"1 CPU, {MARKET_LABEL}=spot on one node, and no node"),
        ({"score_examples": {"custom": {"scratch": 3}}}, r"1 x 3 scratch, the cluster has 2"),
    ],
)
def test_demands_beyond_the_cluster_are_refused_with_the_key_to_change(
    cluster: Cluster, demands: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(**demands)


@pytest.mark.parametrize(
    "demand",
    [
        {"workers": 4, "cpus": 1},
        {"workers": 2, "cpus": 1.5, "gpus": 1, "custom": {"scratch": 1}},
        {"labels": {"tier": "fast"}},
        {"labels": {"rack": "in(a, b)"}, "market": "any"},
        {"memory": "1 MiB"},
    ],
)
def test_demands_that_fit_pass(cluster: Cluster, demand: dict[str, object]) -> None:
    check(train_proxy=demand)


def test_gpus_that_no_stage_asks_for_are_said(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    check(score_examples={"gpus": 0.5})
    assert "GPUs" not in capsys.readouterr().err
    check()
    said = capsys.readouterr().err
    assert "the cluster has 8 GPUs, and no stage asks for one" in said
    assert "resources.finetune_target.gpus" in said


def test_a_worker_runs_on_the_node_that_has_what_it_asks_for(cluster: Cluster) -> None:
    @ray.remote
    def labels() -> dict[str, str]:
        return ray.get_runtime_context().get_node_labels()

    demand = PoolResources(cpus=0.5, labels={"tier": "fast"}, custom={"scratch": 0.5}, memory="1 MiB")
    assert ray.get(labels.options(**remote_options(demand)).remote())["rack"] == "b"


def test_how_many_trials_the_cluster_holds(cluster: Cluster) -> None:
    assert at_once(TrainResources(workers=2, cpus=0.5)) == 4
    assert at_once(PoolResources(actors=(4, 9), cpus=0.1, gpus=1)) == 2


def test_what_does_not_come_in_time_ends_the_stage_with_what_was_asked_for(cluster: Cluster) -> None:
    demand = TrainResources(workers=2, cpus=3, labels={"tier": "fast"})
    with pytest.raises(StageFailed, match=r"train proxy: waited .* for 2 x 3 CPU, tier=fast; the cluster has .*4 CPU"):
        wait_for(demand, "train proxy", 1.5)
    wait_for(TrainResources(workers=4), "train proxy", 60)  # nothing is held back


def test_what_the_run_itself_uses_is_waited_for_as_long_as_it_does(cluster: Cluster) -> None:
    holder = ray.util.placement_group([{"GPU": 8}])
    assert holder.wait(60)
    at_work = threading.Event()
    at_work.set()

    def end() -> None:
        ray.util.remove_placement_group(holder)
        at_work.clear()

    ends = threading.Timer(6, end)
    ends.start()
    wait_for(TrainResources(workers=8, cpus=0.1, gpus=1), "fine-tune target", 3, at_work.is_set)
    ends.join()


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ({"workers": 8, "gpus": 1, "cpus": 0.1}, {"gpus": 1, "cpus": 0.1}, False),
        ({"workers": 4, "gpus": 1, "cpus": 0.1}, {"workers": 4, "gpus": 1, "cpus": 0.1}, True),
        ({"workers": 3}, {"workers": 2}, False),
        ({"custom": {"scratch": 2}}, {"custom": {"scratch": 1}}, False),
        ({"memory": "1MiB", "workers": 2}, {"workers": 2}, True),
    ],
)
def test_a_stage_has_room_beside_another_where_all_that_both_ask_for_is_there(
    cluster: Cluster, first: dict[str, Any], second: dict[str, Any], fits: bool
) -> None:
    demands = TrainResources.model_validate(first), TrainResources.model_validate(second)
    claims = Claims()
    assert claims.has_room_for(demands[0])
    claims.add(demands[0])
    assert claims.has_room_for(None)
    assert claims.has_room_for(demands[1]) == fits
    claims.remove(demands[0])
    assert claims.has_room_for(demands[1])


def test_nodes_that_come_late_are_waited_for(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    finished = threading.Event()

    def wait() -> None:
        wait_for(TrainResources(workers=2, cpus=2, custom={"late": 1}), "train proxy", 120)
        finished.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(2)
    assert not finished.is_set()
    nodes = [cluster.add_node(num_cpus=2, resources={"late": 1}, object_store_memory=100 * 2**20) for _ in range(2)]
    assert finished.wait(90)
    for node in nodes:
        cluster.remove_node(node)
