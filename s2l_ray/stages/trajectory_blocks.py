"""Trajectories, read by tasks into blocks that stay in Ray's object store: what k-means passes over.

Where the rows are cut follows from their number alone. Within a block they are in order of stratum, then id.
Legend: N rows of a block, T columns that are clustered, S strata.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.clustering import seeding
from s2l_ray.clustering.guard import SUSPICIOUS_SHARE, has_reason, set_aside
from s2l_ray.clustering.partition import window_columns
from s2l_ray.config import ClusterConfig, PoolResources
from s2l_ray.errors import ArtifactError, DataError
from s2l_ray.labels import coded
from s2l_ray.log import display
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import blocks
from s2l_ray.stages.blocks import each, rows_at_once, spans
from s2l_ray.stages.contents import Contents
from s2l_ray.stages.shared_storage import check_sign

ALL = "all"
"""The one stratum where there is no `stratify_by`."""


@dataclass(frozen=True)
class Inputs:
    """Trajectories, the examples for the hashes that draws depend on, and hidden states where they are clustered."""

    trajectories: Artifact
    examples: Artifact
    hidden_states: Artifact | None = None

    @property
    def rows(self) -> int:
        """Trajectories."""
        return self.trajectories.rows("trajectories-")


@dataclass(frozen=True)
class Overview:
    """What has to be known of all rows before any is kept.

    Attributes:
        strata: their names, in order.
        mean_initial: mean loss before training over all rows but copies, for the guard; NaN where none was looked at.
    """

    strata: tuple[str, ...]
    mean_initial: float


@dataclass(frozen=True)
class Found:
    """What the driver is told of a block: how many rows are kept of each stratum, and why others are not."""

    size_S: NDArray[np.int64]
    width: int
    rows: int
    duplicates: int
    not_learned: int


@dataclass(frozen=True)
class Block:
    """Rows in the object store.

    Attributes:
        found: about them.
        feature: refers to float32 [N, T], what is clustered: losses at the checkpoints of the window, or hidden states.
        example_id: refers to int64 [N].
        draw: refers to uint64 [N], the hashes that order the rows for the start.
        aside: refers to a table of the rows that the guard set aside, `schemas.SET_ASIDE`.
    """

    found: Found
    feature: Any
    example_id: Any
    draw: Any
    aside: Any

    @cached_property
    def start_S1(self) -> NDArray[np.int64]:
        """Where each stratum starts, and the end of the last; int64 [S + 1]."""
        return np.concatenate([[0], np.cumsum(self.found.size_S)])

    @classmethod
    def put(cls, feature_NT: NDArray[np.float32], example_id_N: NDArray[np.int64]) -> "Block":
        """Make a block of one stratum from rows in memory."""
        rows = len(example_id_N)
        found = Found(np.array([rows]), feature_NT.shape[1], rows, 0, 0)
        arrays = (feature_NT, example_id_N, example_id_N.astype(np.uint64))
        return cls(found, *(ray.put(array) for array in (*arrays, schemas.SET_ASIDE.empty_table())))


@dataclass(frozen=True)
class Reader:
    """Reads blocks. Small, and cheap to pickle."""

    inputs: Inputs
    config: ClusterConfig
    contents: Contents
    output: StagedOutput

    def overview(self, pool: PoolResources) -> Overview:
        """Find what clustering has to know of all rows, which may be nothing."""
        if self.config.stratify_by is None and self.config.guard is None:
            return Overview((ALL,), float("nan"))
        return self.look_over(pool)

    def look_over(self, pool: PoolResources) -> Overview:
        """Look through all rows, a few numbers of each."""
        sources, total, first_rows = set[str](), 0.0, 0
        for names, block_sum, count in each(_look_over, self.spans(blocks.BLOCK_ROWS), pool):
            # Losses are on a grid where float64 adds them exactly, in any order.
            sources, total, first_rows = sources | names, total + block_sum, first_rows + count
        by_source = self.config.stratify_by == "source"
        return Overview(tuple(sorted(sources)) if by_source else (ALL,), total / first_rows)

    def blocks(self, overview: Overview, pool: PoolResources) -> list[Block]:
        """Read all rows, and set aside what the guard finds.

        Raises:
            ConfigError: the guard has a single checkpoint to go by.
            DataError: a loss is NaN or infinite, or the guard leaves no row.
        """
        found: list[Block] = []
        arguments = ((*span, overview) for span in self.spans(self._block_rows()))
        with display.progress("read trajectories", self.inputs.rows, "rows") as progress:
            for block in each(_read, arguments, pool, returns=5):
                found.append(Block(*block))
                progress.advance(found[-1].found.rows)
        if self.config.guard is not None:
            _judge_guard([block.found for block in found])
        return found

    def _block_rows(self) -> int:
        artifact, prefix, column = (
            (self.inputs.trajectories, "trajectories-", "loss")
            if self.inputs.hidden_states is None
            else (self.inputs.hidden_states, "hidden_states-", "hidden_state")
        )
        width: int = artifact.read_span(prefix, 0, 1, [column]).schema.field(column).type.list_size
        return rows_at_once(self.inputs.rows, width)

    def spans(self, rows: int) -> Iterator[tuple[Any, int, int]]:
        """Cut the rows into pieces of some length: a reference to this reader, and where each starts and stops."""
        shared = ray.put(self)
        return ((shared, start, stop) for start, stop in spans(self.inputs.rows, rows))

    def read(self, start: int, stop: int, columns: list[str]) -> pa.Table:
        """Read some trajectories, in order of id."""
        check_sign(self.output)
        return schemas.in_order(self.inputs.trajectories.read_span("trajectories-", start, stop, columns))

    def features(
        self, start: int, stop: int, example_id_N: NDArray[np.int64], loss_NT: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return what is clustered of some rows.

        Raises:
            ArtifactError: hidden states are not of the same rows.
        """
        if self.inputs.hidden_states is None:
            columns = window_columns(self.config.window, loss_NT.shape[1])
            return loss_NT if len(columns) == loss_NT.shape[1] else loss_NT[:, columns]
        table = schemas.in_order(self.inputs.hidden_states.read_span("hidden_states-", start, stop))
        if not np.array_equal(table.column("example_id").to_numpy(), example_id_N):
            raise ArtifactError(
                f"{self.inputs.hidden_states.uri} and {self.inputs.trajectories.uri} are not of the same rows. "
                "Run `s2l gc`, and the same command again."
            )
        feature_NT: NDArray[np.float32] = schemas.matrix(table, "hidden_state")
        return feature_NT


def _look_over(reader: Reader, start: int, stop: int) -> tuple[set[str], float, int]:
    """Return the sources of some rows, the sum of the losses before training over all but copies, and their number."""
    table = reader.read(start, stop, ["example_id", "source", "loss_initial"])
    is_first_N = reader.contents.copies.occurrence_of(table.column("example_id").to_numpy()) == 0
    total = table.column("loss_initial").to_numpy()[is_first_N].sum(dtype=np.float64)
    return set(table.column("source").fill_null("").unique().to_pylist()), float(total), int(is_first_N.sum())


def _read(reader: Reader, start: int, stop: int, overview: Overview) -> tuple[Any, ...]:
    """Return what a `Block` consists of."""
    table = reader.read(start, stop, ["example_id", "source", "loss"])
    example_id_N, loss_NT = table.column("example_id").to_numpy(), schemas.matrix(table, "loss")
    seeding.validate_trajectories(loss_NT, example_id_N)
    draw_N, occurrence_N = reader.contents.draws_of(example_id_N)
    feature_NT = reader.features(start, stop, example_id_N, loss_NT)
    stratum_N = strata_of(table, reader.config, overview.strata)
    kept_N, aside, duplicates, not_learned = np.ones(len(example_id_N), bool), schemas.SET_ASIDE.empty_table(), 0, 0
    if reader.config.guard is not None:
        found = set_aside(loss_NT, occurrence_N, overview.mean_initial, reader.config.guard)
        kept_N, aside = found.kept_N, aside_table(example_id_N, loss_NT, found.ratio_N, found.reason_N)
        duplicates, not_learned = int(found.duplicate_N.sum()), int(found.not_learned_N.sum())
    size_S = np.bincount(stratum_N[kept_N], minlength=len(overview.strata))
    about = Found(size_S, feature_NT.shape[1], len(example_id_N), duplicates, not_learned)
    if len(overview.strata) == 1 and kept_N.all():
        return about, np.ascontiguousarray(feature_NT), example_id_N, draw_N, aside
    order = np.flatnonzero(kept_N)
    order = order[np.argsort(stratum_N[order], kind="stable")]
    return about, feature_NT[order], example_id_N[order], draw_N[order], aside


def strata_of(table: pa.Table, config: ClusterConfig, strata: Sequence[str]) -> NDArray[np.int32]:
    """Return the place of each row's stratum among the strata, -1 where it is none of them."""
    if config.stratify_by is None:
        return np.zeros(len(table), np.int32)
    names, code_N = coded(table.column("source").fill_null(""))
    place_of = {stratum: place for place, stratum in enumerate(strata)}
    stratum_N: NDArray[np.int32] = np.array([place_of.get(name, -1) for name in names], np.int32)[code_N]
    return stratum_N


def aside_table(
    example_id_N: NDArray[np.int64],
    loss_NT: NDArray[np.float32],
    ratio_N: NDArray[np.float64],
    reason_N: NDArray[np.object_],
) -> pa.Table:
    """Return the rows that have a reason to be set aside, None where there is none, as `schemas.SET_ASIDE`."""
    aside = np.flatnonzero(has_reason(reason_N))
    return pa.table(
        {
            "example_id": example_id_N[aside],
            "reason": reason_N[aside],
            "ratio": ratio_N[aside],
            "loss_first": loss_NT[aside, 0],
            "loss_last": loss_NT[aside, -1],
        },
        schema=schemas.SET_ASIDE,
    )


def not_learned_share(found: list[Found]) -> float:
    """Return the share of the rows that were not learned, copies left out."""
    judged = sum(block.rows - block.duplicates for block in found)
    return sum(block.not_learned for block in found) / max(1, judged)


def _judge_guard(found: list[Found]) -> None:
    rows = sum(block.rows for block in found)
    if not sum(int(block.size_S.sum()) for block in found):
        raise DataError(
            f"cluster.guard set all {rows} rows aside: the proxy learned none of them. Train it longer "
            "(proxy.epochs, proxy.learning_rate), or set cluster.guard to null."
        )
    if (share := not_learned_share(found)) > SUSPICIOUS_SHARE:
        display.warn(
            f"the guard set {share:.0%} of the rows aside as not learned; above "
            f"{SUSPICIOUS_SHARE:.0%} the proxy was trained too little, or much of the data is hard rather than wrong. "
            "Look at set_aside-*.parquet; train the proxy longer, or set cluster.guard to null"
        )
