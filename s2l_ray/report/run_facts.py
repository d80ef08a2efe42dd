"""What the report of a run is made of, as the stage has read it: nothing here is a file, and nothing is judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s2l_ray.costs import Ledger
from s2l_ray.report.blocks import ExampleRow, Number, Value

Scored = tuple[Number, Number, Number]
"""A value and the ends of its interval."""


@dataclass(frozen=True)
class Composition:
    """How a property is spread before and after.

    Attributes:
        groups: label, share of the pool, share of the subset.
    """

    name: str
    groups: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class Centroid:
    """One cluster."""

    name: str
    size: int
    taken: int
    losses: Sequence[float]


@dataclass(frozen=True)
class ClusterFacts:
    """A clustering, of one arm or of several that share it.

    Attributes:
        steps: the checkpoints that were clustered; empty where hidden states were.
        inertia: per iteration, over all strata.
        set_aside: what the guard found, by reason; empty without one.
    """

    arms: Sequence[str]
    steps: Sequence[int]
    centroids: Sequence[Centroid]
    inertia: Sequence[float]
    set_aside: Mapping[str, int]
    rows: int
    diagnostics: Mapping[str, Any]


@dataclass(frozen=True)
class ArmFacts:
    """One arm.

    Attributes:
        metrics: metric -> value and its interval over held-out rows.
        baseline: the arm that gains are over; None where there are none.
        gains: metric -> gain over it on the same rows, and its interval.
        reason: why its rows were taken, in words.
    """

    name: str
    method: str
    budget: str
    reason: str
    rows: int
    rows_pool: int
    rows_set_aside: int
    metrics: Mapping[str, Scored]
    baseline: str | None
    gains: Mapping[str, Scored]
    composition: Sequence[Composition]
    ledger: Ledger


@dataclass(frozen=True)
class RunFacts:
    """A run, read.

    Attributes:
        overlap: grade -> held-out rows that are like a training row; of `rows_held_out`.
        examples: rows of the data, none where the config keeps them out.
        provenance: what -> digest or version.
    """

    name: str
    arms: Sequence[ArmFacts]
    clusterings: Sequence[ClusterFacts]
    overlap: Mapping[str, int]
    rows_held_out: int
    examples: Sequence[ExampleRow]
    text: str
    provenance: Sequence[tuple[str, Value]] = field(default_factory=tuple)
