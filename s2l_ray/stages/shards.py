"""Work over shards: Ray Data streams them through a pool of workers, and every finished one leaves a receipt."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import ray

from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.config import PoolResources
from s2l_ray.errors import S2LError, decode_error, encode_error
from s2l_ray.log import display
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import metrics
from s2l_ray.stages.capacity import remote_options
from s2l_ray.stages.runtime import limit_threads, quieten
from s2l_ray.stages.shared_storage import check_sign, leave_sign

_ray_lock = threading.RLock()
"""Stages that run side by side share the settings of Ray Data."""


class Shard(Protocol):
    """A unit of work over rows."""

    @property
    def piece(self) -> str:
        """Name of the unit, unique and stable within the artifact."""

    @property
    def rows(self) -> int:
        """Its size, for the progress bar."""


@dataclass(frozen=True)
class ExamplesFile:
    """A file of examples as a unit of work."""

    record: FileRecord

    @property
    def piece(self) -> str:
        """Number of the file."""
        return self.record.path.removeprefix("examples-").removesuffix(".parquet")

    @property
    def rows(self) -> int:
        """Its rows."""
        return self.record.rows or 0


@dataclass(frozen=True)
class RowRange:
    """Rows `start:stop` of one Parquet file of an artifact: a unit of work over a large file."""

    piece: str
    record: FileRecord
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


def row_ranges(artifact: Artifact, prefix: str, most: int) -> list[RowRange]:
    """Cut the files whose path starts with `prefix` into ranges of `most` rows, each named by its file and first row.

    The cuts depend on the artifact alone, so what is computed within a range does too.
    """
    return [
        RowRange(
            f"{record.path.removeprefix(prefix).removesuffix('.parquet')}-{start:010d}",
            record,
            start,
            min(start + most, record.rows or 0),
        )
        for record in artifact.files(prefix)
        for start in range(0, record.rows or 0, most)
    ]


Receipt = tuple[list[FileRecord], dict[str, Any]]
"""The files that a unit of work wrote, and what it has to say."""


def map_shards(
    work: Callable[[Any], Receipt],
    shards: Sequence[Shard],
    output: StagedOutput,
    pool: PoolResources,
    *,
    label: str,
    unit: str = "rows",
) -> list[Receipt]:
    """Run `work` over shards with Ray Data and return the receipts in order of the shards.

    The pool grows and shrinks between its bounds. A shard that an earlier attempt finished is not done again.

    Args:
        work: picklable; called in a worker, returns what it wrote through `output`.
        shards: the units of work.
        output: where receipts are kept.
        pool: how many workers and what each gets.
        label: for the progress bar.
        unit: of `Shard.rows`.

    Raises:
        S2LError: what `work` raised; never retried.
    """
    receipts = {shard.piece: kept for shard in shards if (kept := output.finished(shard.piece)) is not None}
    todo = [shard for shard in shards if shard.piece not in receipts]
    size = {shard.piece: shard.rows for shard in shards}
    leave_sign(output)
    with display.progress(label, sum(size.values()), unit) as progress:
        done = sum(size[piece] for piece in receipts)
        progress.update(done)
        for piece, receipt in _stream(work, todo, output, pool, label) if todo else ():
            receipts[piece] = receipt
            done += size[piece]
            progress.update(done)
    return [receipts[shard.piece] for shard in shards]


@contextmanager
def quiet_data() -> Iterator[None]:
    """Let a stage lay out a dataset whose execution prints nothing."""
    import ray.data

    with _ray_lock:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        quieten()
        yield


def _stream(
    work: Callable[[Any], Receipt], shards: Sequence[Shard], output: StagedOutput, pool: PoolResources, label: str
) -> Iterator[tuple[str, Receipt]]:
    import ray.data

    with quiet_data():
        items = ray.data.range(len(shards), override_num_blocks=len(shards))
        arguments = {
            "work": work,
            "shards": ray.put(list(shards)),
            "output": output,
            "threads": pool.threads,
            "label": label,
        }
        options = remote_options(pool)
        # A GPU belongs to a process for good, so there it is a pool of actors. On CPUs plain tasks do the same with
        # fewer process starts, which weigh more than the arithmetic of a small run: the next stage finds them warm.
        if pool.gpus:
            most = min(pool.actors[1], len(shards))
            strategy = ray.data.ActorPoolStrategy(min_size=min(pool.actors[0], most), max_size=most)
            results = items.map(
                _titled(_ShardActor, label), fn_constructor_kwargs=arguments, compute=strategy, **options
            )
        else:
            strategy = ray.data.TaskPoolStrategy(size=min(pool.actors[1], len(shards)))
            results = items.map(_titled(_ShardTask, label)(), fn_kwargs=arguments, compute=strategy, **options)
    for row in results.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise decode_error(answer["error"])
        yield answer["piece"], ([FileRecord(**record) for record in answer["records"]], answer["note"])


def _titled(base: type, label: str) -> type:
    """Return a class under the name that Ray's dashboard is to show for a stage."""
    return type(label.title().replace(" ", ""), (base,), {})


def _run_shard(
    row: dict[str, Any], work: Callable[[Any], Receipt], shards: Any, output: StagedOutput, threads: int, label: str
) -> dict[str, str]:
    limit_threads(threads)
    shard = ray.get(shards)[row["id"]]
    try:
        check_sign(output)
        records, note = work(shard)
        output.keep(shard.piece, records, note)
    except S2LError as error:
        # Raised inside Ray Data it would arrive wrapped in a traceback of other people's code.
        return {"answer": json.dumps({"error": encode_error(error)})}
    metrics.count_rows(label, shard.rows)
    return {"answer": json.dumps({"piece": shard.piece, "records": [asdict(r) for r in records], "note": note})}


class _ShardTask:
    def __call__(self, row: dict[str, Any], **arguments: Any) -> dict[str, str]:
        return _run_shard(row, **arguments)


class _ShardActor:
    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return _run_shard(row, **self._arguments)
