"""k-means over blocks of rows in Ray's object store: a task per unit of rows, and the driver merges sums.

Sums of losses on their grid are exact, so neither blocks nor units nor the order of merging can be seen in the result;
hidden states are not on it, and their blocks depend on their number alone.
Legend: N rows, T columns that are clustered, K clusters, M rows of the start's sample.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from s2l_ray.clustering import bounds, nearest, partials, relocation
from s2l_ray.config import PoolResources
from s2l_ray.stages.blocks import as_task, each, rows_at_once, value_of
from s2l_ray.stages.trajectory_blocks import Block

Places = tuple[tuple[int, int], ...]
"""Rows start:stop of each block of a unit."""


@dataclass(frozen=True)
class _Unit:
    """Rows of one stratum that a task passes over, of several blocks where each has few of them."""

    blocks: tuple[Block, ...]
    places: Places

    def columns(self, *names: str) -> list[Any]:
        """Return references to columns of the blocks: one column of all blocks after the other."""
        return [getattr(block, name) for name in names for block in self.blocks]


@dataclass(frozen=True)
class Sample:
    """The rows that the start is chosen from, in order of draw; equal draws by id."""

    feature_MT: NDArray[np.float32]
    example_id_M: NDArray[np.int64]
    draw_M: NDArray[np.uint64]

    def merged(self, other: "Sample", n: int) -> "Sample":
        """Return the n rows of lowest draw of both."""
        return Sample(
            np.concatenate([self.feature_MT, other.feature_MT]),
            np.concatenate([self.example_id_M, other.example_id_M]),
            np.concatenate([self.draw_M, other.draw_M]),
        ).lowest(n)

    def lowest(self, n: int) -> "Sample":
        """Return the n rows of lowest draw."""
        order = np.lexsort((self.example_id_M, self.draw_M))[:n]
        return Sample(self.feature_MT[order], self.example_id_M[order], self.draw_M[order])


class StratumRows:
    """The rows of one stratum, wherever they are."""

    def __init__(self, blocks: Sequence[Block], stratum: int, pool: PoolResources) -> None:
        """Take the rows that some blocks hold of a stratum, by its number."""
        self._pool = pool
        self._units = _units(blocks, stratum)
        self._order = list(range(len(self._units)))
        self._near: list[Any] = []
        self.rows = sum(stop - start for unit in self._units for start, stop in unit.places)

    def sample(self, n: int) -> Sample:
        """Return the n rows of lowest draw; all of them where there are fewer."""
        arguments = ((unit.places, n, *unit.columns("feature", "example_id", "draw")) for unit in self._units)
        return _merged(each(_lowest, arguments, self._pool), n)

    def step(self) -> bounds.BoundedStep:
        """Return the pass over all rows."""
        return bounds.BoundedStep(self._first, self._again)

    def _first(self, centroid_KT: NDArray[np.float64], origin_T: NDArray[np.float64]) -> partials.Partial:
        return self._look(_first_pass, [()] * len(self._units), centroid_KT, origin_T)

    def _again(self, centroid_KT: NDArray[np.float64], moves: bounds.Moves) -> partials.Partial | None:
        try:
            return self._look(_next_pass, [(near,) for near in self._near], centroid_KT, moves)
        except ray.exceptions.ObjectLostError:
            return None  # with the node that kept it

    def _look(
        self, function: Callable[..., Any], known: Sequence[tuple[Any, ...]], *arguments: Any
    ) -> partials.Partial:
        """Run a pass on every unit, keep what it now knows of the rows where it is, and merge the sums."""
        shared = [ray.put(argument) for argument in arguments]
        task = as_task(function, self._pool, returns=2)
        # Back from where the last pass ended: where not all rows fit into memory, the last ones are still there.
        self._order.reverse()
        pending = {
            u: task.remote(self._units[u].places, *shared, *known[u], *self._units[u].columns("feature"))
            for u in self._order
        }
        self._near = [pending[u][0] for u in range(len(pending))]
        return partials.merge(value_of(pending[u][1]) for u in self._order)

    def farthest(self, centroid_KT: NDArray[np.float64], n: int) -> relocation.Candidates:
        """Return the rows farthest from their centroids, for empty clusters."""
        shared = ray.put(centroid_KT)
        arguments = ((unit.places, shared, n, *unit.columns("feature", "example_id")) for unit in self._units)
        return relocation.merge_farthest(each(_farthest, arguments, self._pool), n)


def _units(blocks: Sequence[Block], stratum: int) -> list[_Unit]:
    spans = [(block, tuple(block.start_S1[stratum : stratum + 2].tolist())) for block in blocks]
    there = [(block, start, stop) for block, (start, stop) in spans if start < stop]
    most = rows_at_once(sum(stop - start for _, start, stop in there), there[0][0].found.width)
    units: list[list[tuple[Block, int, int]]] = []
    rows = most
    for block, start, stop in there:
        if rows + stop - start > most:
            units.append([])
            rows = 0
        units[-1].append((block, start, stop))
        rows += stop - start
    return [_Unit(tuple(b for b, _, _ in unit), tuple((start, stop) for _, start, stop in unit)) for unit in units]


def _cut(places: Places, arrays: Sequence[Any]) -> list[list[Any]]:
    """Return the unit's rows of each column, a list over blocks, from `_Unit.columns`."""
    n = len(places)
    columns = (arrays[first : first + n] for first in range(0, len(arrays), n))
    return [[array[start:stop] for (start, stop), array in zip(places, column, strict=True)] for column in columns]


def _lowest(places: Places, n: int, *arrays: Any) -> Sample:
    # A block at a time: features of all rows together would be as much memory again.
    parts = (Sample(*columns).lowest(n) for columns in zip(*_cut(places, arrays), strict=True))
    return _merged(parts, n)


def _merged(samples: Iterable[Sample], n: int) -> Sample:
    return reduce(lambda found, sample: found.merged(sample, n), samples)


def _first_pass(places: Places, centroid_KT: Any, origin_T: Any, *arrays: Any) -> tuple[Any, partials.Partial]:
    (features,) = _cut(places, arrays)
    found = [bounds.first_pass(feature_NT, centroid_KT, origin_T) for feature_NT in features]
    return [near for near, _ in found], partials.merge(sums for _, sums in found)


def _next_pass(
    places: Places, centroid_KT: Any, moves: bounds.Moves, nears: Sequence[bounds.Near], *arrays: Any
) -> tuple[Any, partials.Partial]:
    (features,) = _cut(places, arrays)
    parts = zip(features, nears, strict=True)
    found = [bounds.next_pass(feature_NT, near, centroid_KT, moves) for feature_NT, near in parts]
    return [near for near, _ in found], partials.merge(sums for _, sums in found)


def _farthest(places: Places, centroid_KT: Any, n: int, *arrays: Any) -> relocation.Candidates:
    parts = zip(*_cut(places, arrays), strict=True)
    found = (
        relocation.farthest(feature_NT, nearest.assign(feature_NT, centroid_KT), id_N, n) for feature_NT, id_N in parts
    )
    return relocation.merge_farthest(found, n)
