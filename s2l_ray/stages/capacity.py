"""Capacity: what stages ask of the cluster, whether it can ever be there, and waiting until it is.

Ray itself waits for ever, in silence, for what will never come.
"""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from s2l_ray.config import GPU_STAGES, Demand, PoolResources, ResourcesConfig
from s2l_ray.errors import ConfigError, StageFailed
from s2l_ray.log import display, duration

READ_CPUS = 1
"""CPUs that a read task of Ray Data asks for."""
LOOK_SECONDS = 1.0
REFUSALS = 5
"""How often in a row the autoscaler has to say that it cannot; right after its start it knows of no nodes."""
UNITS = {"memory": 2**30}
"""What amounts are divided by for the reader."""

PLAIN_LABEL = r"[A-Za-z0-9][\w.-]*"
"""A label selector that is a value, and no `in(...)` or `!...`."""

Amounts = Mapping[str, float]


def remote_options(demand: Demand) -> dict[str, Any]:
    """Return what a task or an actor of a stage asks for, by the names of Ray's options."""
    options: dict[str, Any] = {"num_cpus": demand.cpus, "num_gpus": demand.gpus or None}
    if demand.memory:
        options["memory"] = float(demand.memory)
    if demand.custom:
        options["resources"] = dict(demand.custom)
    if demand.selector:
        options["label_selector"] = demand.selector
    return options


def one_shot_on_gpu(function: Callable[..., Any], gpus: float) -> Any:
    """Return a remote function whose process ends with it where it has GPUs.

    CUDA goes on with the GPU that a process began on, whichever Ray gives it next, and keeps its memory. Ray sees to
    that itself only where GPUs are named as a function is made remote, not in its options.
    """
    return ray.remote(max_calls=1)(function) if gpus else ray.remote(function)


def at_once(demand: Demand) -> float:
    """Return how many times the cluster holds a stage; what an autoscaler may add is not known before it has."""
    if Autoscaler.ask().is_there:
        return math.inf
    have = ray.cluster_resources()
    return min(float(have.get(name, 0.0)) / amount for name, amount in demand.total.items())


class Claims:
    """What the stages of a run that are under way cannot do without: one that would only wait for them comes later."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()  # of floats

    def has_room_for(self, demand: Demand | None) -> bool:
        """Return whether a stage fits beside them; where an autoscaler may bring more only CPUs are counted."""
        if demand is None or not self._held:
            return True
        have, kinds = ray.cluster_resources(), ["CPU"] if Autoscaler.ask().is_there else demand.total
        return all(self._held[kind] + demand.total[kind] <= have.get(kind, 0.0) for kind in kinds)

    def add(self, demand: Demand | None) -> None:
        """Count a stage that begins."""
        if demand is not None:
            self._held.update(demand.total)

    def remove(self, demand: Demand | None) -> None:
        """Count it no longer: it has ended."""
        if demand is not None:
            self._held.subtract(demand.total)


def check_capacity(resources: ResourcesConfig) -> None:
    """Refuse demands that this cluster can never meet; where it can grow, `wait_for` finds that out.

    Raises:
        ConfigError: a stage wants more of something than there is, more on a node than any has, or its actors leave
            no CPU to read with.
    """
    if Autoscaler.ask().is_there:
        return
    have = ray.cluster_resources()
    cpus = float(have.get("CPU", 0.0))
    for name, demand in resources.demands.items():
        for kind, amount in demand.total.items():
            if amount > have.get(kind, 0.0):
                raise ConfigError(_too_much(name, demand, kind, have.get(kind, 0.0)))
        if not any(_holds(node, demand) for node in ray.nodes() if node["Alive"]):
            raise ConfigError(
                f"resources.{name} asks for {_amounts(demand.bundle)}{_where(demand)} on one node, and no node of this "
                f"cluster has that. Ask for less, or join a cluster that has it."
            )
        _check_pool(name, demand, cpus)
        threads = demand.count * demand.threads
        if demand.gpus == 0 and threads > max(cpus, os.cpu_count() or 1):
            display.warn(
                f"resources.{name}: {demand.count} workers x {demand.threads} threads on {cpus:g} CPUs; "
                "they will wait for one another"
            )
    if have.get("GPU") and not any(demand.gpus for demand in resources.demands.values()):
        display.warn(
            f"the cluster has {have['GPU']:g} GPUs, and no stage asks for one: models compute on CPUs. Set "
            f"{', '.join(f'resources.{name}.gpus' for name in GPU_STAGES)} to 1"
        )


def _too_much(name: str, demand: Demand, kind: str, there: float) -> str:
    each = demand.bundle[kind]
    share = {"CPU": "cpus", "GPU": "gpus"}.get(kind, kind if kind == "memory" else f"custom.{kind}")
    mend = f"Lower resources.{name}.{share} (fractions such as 0.5 are allowed) or resources.{name}.{demand.counted_by}"
    return (
        f"resources.{name} asks for {demand.count} x {_amounts({kind: each})}, the cluster has "
        f"{there / UNITS.get(kind, 1):g}. {mend if there else f'Set resources.{name}.{share} to 0'}, or join a cluster "
        "that has them."
    )


def _check_pool(name: str, demand: Demand, cpus: float) -> None:
    # Actors keep what they claim, and Ray Data waits for them before its read tasks get a CPU; tasks give it back.
    is_actor_pool = isinstance(demand, PoolResources) and demand.gpus > 0
    if is_actor_pool and demand.total["CPU"] > cpus - READ_CPUS:
        raise ConfigError(
            f"resources.{name} asks for {demand.count} x {demand.cpus:g} CPU for actors on GPUs, the cluster has "
            f"{cpus:g} and needs {READ_CPUS} of them to read what the actors work on. Lower resources.{name}.cpus "
            f"(fractions such as 0.5 are allowed) or the first number of resources.{name}.actors."
        )


def _holds(node: Mapping[str, Any], demand: Demand) -> bool:
    """Return whether one worker fits on a node; of label selectors only plain values are judged here."""
    labels = node.get("Labels", {})
    carries = all(
        labels.get(name) == value for name, value in demand.selector.items() if re.fullmatch(PLAIN_LABEL, value)
    )
    return carries and all(node["Resources"].get(kind, 0.0) >= each for kind, each in demand.bundle.items())


@dataclass(frozen=True)
class Autoscaler:
    """What the autoscaler of the cluster says.

    Attributes:
        is_there: whether the cluster has one.
        pending_nodes: nodes that it has asked for and that have not come yet.
        infeasible: names of placement groups that none of its node types can hold, or not within their limits.
    """

    is_there: bool
    pending_nodes: int = 0
    infeasible: frozenset[str] = frozenset()

    @classmethod
    def ask(cls) -> "Autoscaler":
        """Ask it, if there is one. There is no public way to; `ray status` asks like this."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        reply = GetClusterStatusReply()
        reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
        state = reply.autoscaling_state
        pending = sum(request.count for request in state.pending_instance_requests)
        details = (request.details for request in state.infeasible_gang_resource_requests)
        return cls(state.autoscaler_state_version > 0, pending + len(state.pending_instances), frozenset(details))

    def cannot_hold(self, group: Any) -> bool:
        """Return whether it has given a placement group up."""
        return any(group.id.hex() in details for details in self.infeasible)

    def __str__(self) -> str:
        nodes = f"{self.pending_nodes} node{'s' if self.pending_nodes != 1 else ''} pending"
        return f", {nodes}" if self.is_there else ""


def wait_for(demand: Demand, label: str, seconds: float, is_ours: Callable[[], bool] = lambda: False) -> None:
    """Wait until the cluster holds a stage's workers, and show that and what it waits for.

    A placement group asks: it is what an autoscaler heeds, and it is ready only when all workers fit at once.

    Args:
        label: the stage, for messages.
        seconds: longest wait.
        is_ours: whether the run itself is using what it waits for just now, which ends by itself; not counted.

    Raises:
        ConfigError: the autoscaler says that it cannot bring them.
        StageFailed: they did not come in time.
    """
    group = ray.util.placement_group(
        [demand.bundle] * demand.count, bundle_label_selector=[demand.selector] * demand.count
    )
    asked = f"{demand.count} x {_amounts(demand.bundle)}{_where(demand)}"
    started = since = time.monotonic()
    refused = 0
    try:
        with display.progress(f"{label}: waiting for {asked}") as progress:
            while not group.wait(LOOK_SECONDS):
                now, autoscaler = time.monotonic(), Autoscaler.ask()
                since = now if is_ours() else since
                waited = now - since
                refused = refused + 1 if autoscaler.cannot_hold(group) else 0
                if refused > REFUSALS:
                    raise ConfigError(
                        f"{label} asks for {asked}, and no node type of this cluster's autoscaler holds that, or not "
                        "within its limits. Ask for less, or give the cluster such nodes."
                    )
                if waited > seconds:
                    raise StageFailed(
                        f"{label}: waited {duration(waited)} for {asked}; the cluster has "
                        f"{_amounts(ray.available_resources())} free{autoscaler}. `ray status` says what it waits for. "
                        "Ask for less, or raise resources.wait_seconds; the same command goes on from here."
                    )
                progress.update(now - started, note=str(autoscaler))
    finally:
        ray.util.remove_placement_group(group)


def _where(demand: Demand) -> str:
    return "".join(f", {name}={value}" for name, value in demand.selector.items())


def _amounts(amounts: Amounts) -> str:
    """Write amounts for the reader, without what Ray counts for itself."""
    shown = {name: each for name, each in amounts.items() if ":" not in name and name != "object_store_memory"}
    named = ", ".join(
        f"{math.floor(each / UNITS.get(name, 1) * 100) / 100:g} {'GiB memory' if name == 'memory' else name}"
        for name, each in shown.items()
    )
    return named if len(shown) == 1 else f"({named})"
