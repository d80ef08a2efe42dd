"""The section `resources`: where each stage runs. Never part of a fingerprint."""

import os
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import ByteSize, Field, field_validator

from s2l_ray.config.section import Section

MARKET_LABEL = "ray.io/market-type"
"""Ray's own label for how a node was bought: `spot` or `on-demand`."""


class Demand(Section, ABC):
    """What each worker of a stage asks of the cluster."""

    cpus: float = Field(1, gt=0)
    """CPUs per worker, as Ray counts them."""
    gpus: float = Field(0, ge=0)
    """GPUs per worker: one, or a share of one."""
    memory: ByteSize | None = None
    """Memory per worker that Ray sets aside, such as "16GiB"; it limits nothing."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Custom resources per worker, as the nodes declare them."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must carry, as Ray's label selectors are written: `{gpu-family: "in(a100, h100)"}`."""
    market: Literal["any", "spot", "on-demand"] = "any"
    """Only nodes that may be taken away at any time, or only those that may not, as Ray labels them."""
    threads: int = Field(1, ge=1)
    """Threads of the arithmetic libraries per worker."""

    counted_by: ClassVar[str]
    """The key that says how many workers."""

    @field_validator("gpus")
    @classmethod
    def _one_device(cls, value: float) -> float:
        if value > 1:
            raise ValueError(
                f"a worker computes on one GPU; expected 1 or less, and more `{cls.counted_by}` for more GPUs"
            )
        return value

    @property
    @abstractmethod
    def count(self) -> int:
        """Workers without which the stage makes no progress."""

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker asks for, by Ray's names."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory or 0), **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def total(self) -> dict[str, float]:
        """What the stage makes no progress without, by Ray's names."""
        return {name: self.count * amount for name, amount in self.bundle.items()}

    @property
    def selector(self) -> dict[str, str]:
        """What a worker's node must carry."""
        return self.labels | ({} if self.market == "any" else {MARKET_LABEL: self.market})


class TrainResources(Demand):
    """What one training run asks of the cluster."""

    counted_by: ClassVar[str] = "workers"
    workers: int = Field(1, ge=1)
    launcher: Literal["gang", "task"] = "gang"
    """`gang`: workers that Ray Train starts together. `task`: one plain Ray task, seconds quicker to start, which
    begins anew when it is killed; for `target.engine: torch` and one worker."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again when its gradient needs them, instead of keeping them: memory of one layer
    in place of all, for a forward pass more per step; the logits of responses stay. The numbers are the same."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group after a dead worker."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between the points that a killed run goes on from; a fifth of the run unless set."""

    @property
    def count(self) -> int:
        """All workers: they start together."""
        return self.workers


class PoolResources(Demand):
    """What a stage over shards asks of the cluster."""

    counted_by: ClassVar[str] = "actors"
    actors: tuple[int, int] = (1, 8)
    """Fewest and most workers; the pool grows and shrinks between them."""

    @field_validator("actors")
    @classmethod
    def _bounds(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("expected [fewest, most] with 1 <= fewest <= most")
        return value

    @property
    def count(self) -> int:
        """The fewest."""
        return self.actors[0]


GPU_STAGES = ("train_proxy", "score_examples", "finetune_target", "evaluate_target")
"""Keys of stages in which a model computes."""

_SHARED = {
    "assign_trajectories": "cluster_trajectories",
    "embed_examples": "score_examples",
    "diagnose_selection": "evaluate_target",
    "select_subset": "cluster_trajectories",
}
"""Stages that ask for what another one does."""


class ResourcesConfig(Section):
    """Where it runs. Never part of a fingerprint."""

    address: str | None = None
    """Ray cluster to join; null: `RAY_ADDRESS` where set, else a local Ray."""
    wait_seconds: float = Field(1800, gt=0)
    """Longest wait for what a stage asks for, while nodes come up or others use them [s]."""
    prepare_examples: PoolResources = PoolResources()
    tokenize_examples: PoolResources = PoolResources()
    train_proxy: TrainResources = TrainResources()
    score_examples: PoolResources = PoolResources()
    """Also for the hidden states."""
    cluster_trajectories: PoolResources = PoolResources()
    """Also for the pool that a subset is selected from."""
    finetune_target: TrainResources = TrainResources()
    evaluate_target: PoolResources = PoolResources()
    """Also for the report's checks on proxy and target."""

    @property
    def cluster(self) -> str | None:
        """The cluster to join; None where Ray starts on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    @property
    def demands(self) -> dict[str, Demand]:
        """What each key of a stage says."""
        found = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: demand for name, demand in found if isinstance(demand, Demand)}

    def of(self, stage: str) -> Demand | None:
        """Return what a stage asks for; None where it needs nothing worth asking for."""
        return self.demands.get(_SHARED.get(stage, stage))
