"""The pool that is selected from, in blocks read by tasks: the driver sees sizes of groups, then rows that matter.

A group is what a selector can tell apart without looking at a draw: rows of one source, stratum and cluster.
Legend: N rows of a block, G groups, C classes of groups.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from s2l_ray.artifacts import Artifact
from s2l_ray.config import PoolResources
from s2l_ray.draws import Copies, draw_hash, position_in_group
from s2l_ray.id_index import IdIndex
from s2l_ray.labels import coded
from s2l_ray.schemas import in_order, is_ascending
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.blocks import each, rows_at_once, spans
from s2l_ray.stages.contents import find_copies
from s2l_ray.stages.shared_storage import check_sign

EXAMPLES = "examples-"
DEVIATIONS = 6.0
"""How far the draws of the rows that are wanted of a class may be from what is expected before all blocks are asked
again, in standard deviations."""


class Group(NamedTuple):
    """Rows that differ in their draws only; None where there is no source, or no cluster."""

    source: str | None
    stratum: str | None
    cluster_id: int

    @property
    def order(self) -> tuple[str, str, int]:
        """What groups are sorted by."""
        return (self.source or "", self.stratum or "", self.cluster_id)


class Rows(NamedTuple):
    """Columns of some rows, in the object store or in memory.

    Attributes:
        example_id: int64 [N].
        draw: uint64 [N].
        group: int32 [N], number of its group.
        target_tokens: int32 [N], tokens of the whole example for the target.
        response_tokens: int32 [N], response tokens for the target.
    """

    example_id: Any
    draw: Any
    group: Any
    target_tokens: Any
    response_tokens: Any

    def take(self, index: Any) -> "Rows":
        """Return some of the rows."""
        return Rows(*(column[index] for column in self))


@dataclass(frozen=True)
class Counts:
    """What the driver is told of a block: the pool, and of the rows that may be selected how many each group has.

    Attributes:
        rows_pool: rows that both models can read, those among them that cannot be selected.
        response_tokens_pool: their response tokens for the target.
        target_tokens: of the rows that may be selected.
        groups: that they are of.
        size_G: int64 [G], rows of each.
    """

    rows_pool: int
    response_tokens_pool: int
    target_tokens: int
    groups: tuple[Group, ...]
    size_G: NDArray[np.int64]


@dataclass(frozen=True)
class PoolReader:
    """Reads the pool a block at a time: examples that both models can be trained on. Small, and cheap to pickle.

    Attributes:
        examples: all of them.
        copies: among them.
        proxy_tokens: None where the target's tokens are the proxy's as well.
        target_tokens: of the target.
        assigned: clusters of the rows; where it is given, rows without one are not selected.
        seed: of the draws.
        output: the attempt that tasks are to see.
    """

    examples: Artifact
    copies: Copies
    proxy_tokens: IdIndex | None
    target_tokens: IdIndex
    assigned: IdIndex | None
    seed: int
    output: StagedOutput

    def read(self, start: int, stop: int) -> tuple[Counts, Rows]:
        """Read some of the examples, by their places."""
        table = in_order(self.examples.read_span(EXAMPLES, start, stop, ["example_id", "content_hash", "source"]))
        id_N = table.column("example_id").to_numpy()
        draw_N = draw_hash(table.column("content_hash").to_numpy(), self.copies.occurrence_of(id_N), self.seed)
        length_N, response_N, in_pool_N = self._tokens(id_N)
        strata, stratum_N = list[str](), np.full(len(id_N), -1, np.int32)
        cluster_id_N, may_be_taken_N = np.full(len(id_N), -1, np.int32), in_pool_N
        if self.assigned is not None:
            parts = list(self.assigned.parts(id_N, ["stratum", "cluster_id"]))
            if parts:
                place = np.concatenate([place for place, _ in parts])
                table_M = pa.concat_tables([part for _, part in parts])
                strata, stratum_N[place] = coded(table_M.column("stratum"))
                cluster_id_N[place] = table_M.column("cluster_id").to_numpy()
            # The guard keeps rows of the pool out of the clusters, and later rows may have none to join.
            may_be_taken_N = in_pool_N & (cluster_id_N >= 0)
        sources, source_N = coded(table.column("source"))
        kept = np.flatnonzero(may_be_taken_N)
        groups, group_M, size_G = _grouped(sources, strata, source_N[kept], stratum_N[kept], cluster_id_N[kept])
        counts = Counts(int(in_pool_N.sum()), _total(response_N[in_pool_N]), _total(length_N[kept]), groups, size_G)
        return counts, Rows(id_N[kept], draw_N[kept], group_M, length_N[kept], response_N[kept])

    def _tokens(self, id_N: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """Return the target's tokens and response tokens of each row, and whether both models can read it."""
        length_N, response_N = np.zeros(len(id_N), np.int32), np.zeros(len(id_N), np.int32)
        in_pool_N = np.zeros(len(id_N), bool)
        for place, table in self.target_tokens.parts(id_N, ["input_ids", "num_response_tokens"]):
            length_N[place] = pc.list_value_length(table.column("input_ids")).to_numpy()
            response_N[place] = table.column("num_response_tokens").to_numpy()
            in_pool_N[place] = True
        if self.proxy_tokens is not None:
            readable_N = np.zeros(len(id_N), bool)
            for place, _ in self.proxy_tokens.parts(id_N, []):
                readable_N[place] = True
            in_pool_N &= readable_N
        return length_N, response_N, in_pool_N


def _total(tokens_M: NDArray[np.int32]) -> int:
    return int(tokens_M.sum(dtype=np.int64))


def _grouped(
    sources: list[str],
    strata: list[str],
    source_M: NDArray[np.int32],
    stratum_M: NDArray[np.int32],
    cluster_id_M: NDArray[np.int32],
) -> tuple[tuple[Group, ...], NDArray[np.int32], NDArray[np.int64]]:
    """Return the groups that occur, the number of each row's among them, and their sizes."""
    # One number for all three, each of which may be -1.
    shape = (len(sources) + 1, len(strata) + 1, int(cluster_id_M.max(initial=-1)) + 2)
    key_M = np.ravel_multi_index((source_M + 1, stratum_M + 1, cluster_id_M + 1), shape)
    key_G, group_M, size_G = np.unique(key_M, return_inverse=True, return_counts=True)
    places = zip(*(column.tolist() for column in np.unravel_index(key_G, shape)), strict=True)
    groups = tuple(Group([None, *sources][s], [None, *strata][t], cluster - 1) for s, t, cluster in places)
    return groups, group_M.astype(np.int32), size_G


@dataclass(frozen=True)
class PoolBlocks:
    """The rows that may be selected, in the object store, and what the driver knows of them."""

    counts: tuple[Counts, ...]
    blocks: tuple[Rows, ...]
    pool: PoolResources

    @classmethod
    def read(cls, reader: PoolReader, pool: PoolResources) -> "PoolBlocks":
        """Read the whole pool."""
        rows = reader.examples.rows(EXAMPLES)
        shared = ray.put(reader)
        arguments = ((shared, *span) for span in spans(rows, rows_at_once(rows)))
        found = list(each(_read, arguments, pool, returns=1 + len(Rows._fields)))
        return cls(tuple(counts for counts, *_ in found), tuple(Rows(*columns) for _, *columns in found), pool)

    @property
    def rows_pool(self) -> int:
        """Rows of the pool, those among them that cannot be selected."""
        return sum(counts.rows_pool for counts in self.counts)

    @property
    def response_tokens_pool(self) -> int:
        """Their response tokens for the target."""
        return sum(counts.response_tokens_pool for counts in self.counts)

    @property
    def target_tokens(self) -> int:
        """Tokens, for the target, of the rows that may be selected."""
        return sum(counts.target_tokens for counts in self.counts)

    @property
    def rows_left(self) -> int:
        """Rows that may be selected."""
        return int(self.size_G.sum())

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in order."""
        return tuple(sorted({group for counts in self.counts for group in counts.groups}, key=lambda g: g.order))

    @cached_property
    def size_G(self) -> NDArray[np.int64]:
        """Rows of each group that may be selected."""
        size: Counter[Group] = Counter()
        for counts in self.counts:
            size.update(dict(zip(counts.groups, counts.size_G.tolist(), strict=True)))
        return np.array([size[group] for group in self.groups], np.int64)

    def lowest(self, class_G: NDArray[np.int64], most_C: NDArray[np.int64]) -> Rows:
        """Return the rows of lowest draw of each class of groups, in order of id; their groups by `groups`.

        Draws are spread evenly, so that few rows have to be looked at: those below what is expected of the last one
        that is wanted, and some more. Where chance has it that these are too few, all blocks are asked again.

        Args:
            class_G: class of each group, 0 to C - 1.
            most_C: rows wanted of each class.
        """
        size_C = np.bincount(class_G, weights=self.size_G, minlength=len(most_C)).astype(np.int64)
        wanted_C, deviations = np.minimum(most_C, size_C), DEVIATIONS
        while True:
            found = self._below(class_G, _limits(wanted_C, size_C, deviations))
            class_M = class_G[found.group]
            if (np.bincount(class_M, minlength=len(most_C)) >= wanted_C).all():
                break
            deviations *= 4
        rows = found
        if (wanted_C < size_C).any():
            place_M = position_in_group(class_M, (found.draw, found.example_id))
            rows = found.take(np.flatnonzero(place_M < wanted_C[class_M]))
        return rows if is_ascending(rows.example_id) else rows.take(np.argsort(rows.example_id))

    def _below(self, class_G: NDArray[np.int64], limit_C: NDArray[np.float64]) -> Rows:
        number = {group: index for index, group in enumerate(self.groups)}
        arguments = []
        for counts, block in zip(self.counts, self.blocks, strict=True):
            group_of = np.array([number[group] for group in counts.groups], np.int32)
            arguments.append((group_of, limit_C[class_G[group_of]], *block))
        parts: Sequence[Rows] = list(each(_below_limits, arguments, self.pool))
        return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _limits(wanted_C: NDArray[np.int64], size_C: NDArray[np.int64], deviations: float) -> NDArray[np.float64]:
    """Return the draw, as a share of the largest, below which the wanted rows of each class are expected."""
    expected_C = (wanted_C + deviations * np.sqrt(wanted_C) + deviations**2) / np.maximum(size_C, 1)
    return np.where((wanted_C == size_C) | (expected_C >= 1), np.inf, np.where(wanted_C == 0, -1.0, expected_C))


def _read(reader: PoolReader, start: int, stop: int) -> tuple[Any, ...]:
    check_sign(reader.output)
    counts, rows = reader.read(start, stop)
    return counts, *rows


def _below_limits(group_of: NDArray[np.int32], limit_G: NDArray[np.float64], *columns: Any) -> Rows:
    """Return the rows of a block whose draw is below the limit of their group, with the groups' numbers in all."""
    rows = Rows(*columns)
    found = rows.take(np.flatnonzero(rows.draw.astype(np.float64) / 2.0**64 <= limit_G[rows.group]))
    return found._replace(group=group_of[found.group])


def read_pool(
    examples: Artifact,
    proxy_tokens: Artifact,
    target_tokens: Artifact,
    assigned: Artifact | None,
    pool: PoolResources,
    output: StagedOutput,
    *,
    seed: int,
) -> PoolBlocks:
    """Read the rows that both models can be trained on and, where they are in clusters, which."""
    reader = PoolReader(
        examples,
        find_copies(examples, pool, output),
        None if proxy_tokens == target_tokens else IdIndex.of(proxy_tokens, "tokens-"),
        IdIndex.of(target_tokens, "tokens-"),
        None if assigned is None else IdIndex.of(assigned, "assignments-"),
        seed,
        output,
    )
    return PoolBlocks.read(reader, pool)
