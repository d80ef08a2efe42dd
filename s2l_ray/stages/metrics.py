"""Prometheus metrics, through Ray: they stand beside Ray's own, with the prefix `ray_`, wherever a cluster is scraped.

Each is told from the process that knows it; Prometheus adds up over processes and derives rates such as tokens/s.
"""

from functools import cache

import ray
from ray.util.metrics import Counter, Gauge


def count_rows(stage: str, rows: int) -> None:
    """Add rows that a stage has written."""
    _counter("s2l_rows", "Rows that a stage has written").inc(rows, {"stage": stage})


def count_tokens(stage: str, tokens: int) -> None:
    """Add response tokens that a model was trained on."""
    _counter("s2l_tokens", "Response tokens that a model was trained on").inc(tokens, {"stage": stage})


def set_loss(stage: str, loss: float) -> None:
    """Set the training loss [nats/token]."""
    _gauge("s2l_loss_nats_per_token", "Training loss").set(loss, {"stage": stage})


def set_inertia(stratum: str, inertia: float) -> None:
    """Set the inertia of the clustering that is under way."""
    _gauge("s2l_kmeans_inertia", "Inertia after the last iteration of k-means").set(inertia, {"stage": stratum})


def set_stage_seconds(stage: str, seconds: float) -> None:
    """Set what a stage took."""
    if ray.is_initialized():  # not every stage needs it
        _gauge("s2l_stage_seconds", "What a stage took, the last time it ran").set(seconds, {"stage": stage})


@cache
def _counter(name: str, description: str) -> Counter:
    return Counter(name, description, tag_keys=("stage",))


@cache
def _gauge(name: str, description: str) -> Gauge:
    return Gauge(name, description, tag_keys=("stage",))
