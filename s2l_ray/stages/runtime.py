"""Ray: joining or starting it, what it must have, work over shards, and training runs.

Everything that is peculiar to Ray stands here; the stages say what is to be done.
"""

import functools
import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import ray

from s2l_ray import errors
from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.attempts import StagedOutput
from s2l_ray.config import PoolResources, ResourcesConfig, TrainResources
from s2l_ray.errors import ConfigError, DataError, S2LError, StageFailed
from s2l_ray.log import display
from s2l_ray.stages import metrics
from s2l_ray.stages.capacity import check_capacity, remote_options
from s2l_ray.storage import Storage

PROGRESS_SECONDS = 0.5
SHARED_SECONDS = 60.0
"""How long the other nodes may take to say whether they see the storage."""

NOISE = ("ray.data", "ray.data._internal.progress", "ray.train", "ray.tune", "ray._private.authentication")
"""Loggers of Ray that speak of its inner life in front of the user; their errors still come through."""

SETTINGS = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a stage that is cut off would start another Ray
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output prints whatever `verbose` says
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # logs that nobody reads
}
"""Ray's switches that are environment variables; what the user has set stays."""

_ray_lock = threading.RLock()


def quieten() -> None:
    """Silence Ray's notices; errors and tracebacks stay."""
    for name in NOISE:
        logging.getLogger(name).setLevel(logging.ERROR)


def connect(resources: ResourcesConfig) -> bool:
    """Join the cluster that config or `RAY_ADDRESS` names, else start a local Ray; a Ray that is there is used.

    Returns:
        Whether it is ours to leave with `disconnect`.

    Raises:
        ConfigError: the cluster cannot be reached, or cannot hold what the config asks for.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        check_capacity(resources)
        return False
    address = resources.address or os.environ.get("RAY_ADDRESS")
    verbose = bool(os.environ.get("S2L_VERBOSE"))
    if not verbose:
        quieten()
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": verbose}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **options)
        else:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            # Idle workers are kept for the next stage: what they have imported took seconds.
            system = {"num_workers_soft_limit": 4 * (os.cpu_count() or 1)}
            ray.init(address="local", include_dashboard=False, _system_config=system, **options)
    except SystemExit as error:
        # While it starts, Ray answers SIGTERM in its own way.
        raise KeyboardInterrupt("interrupted by SIGTERM") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address or 'this machine'}: {error}. "
            "Check `resources.address` and RAY_ADDRESS, or unset both to run locally."
        ) from error
    except Exception as error:
        # The bare class is what Ray raises where its processes do not come up in time, as on a machine under load.
        raise StageFailed(
            f"Ray did not start: {error} Run the same command again when the machine is less busy."
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray leaves a handler of its own behind, which prints a stack and dies.
        signal.signal(signal.SIGTERM, on_sigterm)
    check_capacity(resources)
    return True


def disconnect() -> None:
    """Leave the cluster, or end the local Ray."""
    ray.shutdown()


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
    with display.progress(label, sum(size.values()), unit) as progress:
        done = sum(size[piece] for piece in receipts)
        progress.update(done)
        for piece, receipt in _stream(work, todo, output, pool, label) if todo else ():
            receipts[piece] = receipt
            done += size[piece]
            progress.update(done)
    return [receipts[shard.piece] for shard in shards]


def _stream(
    work: Callable[[Any], Receipt], shards: Sequence[Shard], output: StagedOutput, pool: PoolResources, label: str
) -> Iterator[tuple[str, Receipt]]:
    import ray.data

    with _ray_lock:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        if not os.environ.get("S2L_VERBOSE"):
            quieten()
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


def limit_threads(threads: int) -> None:
    """Give the arithmetic libraries of this process a number of threads: Ray's own default is one for any worker."""
    import sys

    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def encode_error(error: S2LError) -> dict[str, Any]:
    """Return an error of ours as plain data."""
    return {"type": type(error).__name__, "message": str(error), "ids": list(getattr(error, "example_ids", ()))}


def decode_error(data: dict[str, Any]) -> S2LError:
    """Return the error that `encode_error` took."""
    kind = getattr(errors, data["type"])
    return DataError(data["message"], data["ids"]) if kind is DataError else kind(data["message"])


FAILURE = "failure.json"


@dataclass(frozen=True)
class TrainingRun:
    """A training function and what it gets; the function runs on every worker."""

    function: Callable[[Any], None]
    job: Any
    total_steps: int
    label: str


def train(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> None:
    """Run a training function, on a gang of workers or in a task of its own as `resources.launcher` says.

    Raises:
        S2LError: what the function raised on rank 0; never retried.
        StageFailed: workers died more often than `max_failures` allows.
    """
    import ray.train

    output.remove(FAILURE)
    launch = _train_in_task if resources.launcher == "task" else _train_on_gang
    with _shown_progress(run, output):
        try:
            launch(run, output, resources)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            _raise_failure(output)
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise StageFailed(
                f"{run.label}: the training workers failed ({last}). The same command goes on from the last "
                "checkpoint; with S2L_VERBOSE=1 it shows their output."
            ) from error
    _raise_failure(output)


def _train_on_gang(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> None:
    """Let Ray Train start the workers together, and go on from where an earlier attempt stopped."""
    import ray.train
    import ray.train.torch

    shared_gpu = 0 < resources.gpus < 1
    trainer = ray.train.torch.TorchTrainer(
        _training_worker,
        train_loop_config={"run": run, "output": output, "threads": resources.threads},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=resources.bundle,
            label_selector=resources.selector or None,
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo" if shared_gpu or not resources.gpus else "nccl"),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=output.scratch_uri,
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    trainer.fit()


def _train_in_task(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> None:
    """Train in a worker process of Ray's that may be warm from the stage before: seconds less than a gang's start."""
    task = ray.remote(_training_task).options(
        name=run.label,
        **remote_options(resources),
        max_retries=resources.max_failures,
        # Not within the placement group of a Tune trial, which holds nothing.
        scheduling_strategy="DEFAULT",
    )
    ray.get(task.remote({"run": run, "output": output, "threads": resources.threads}))


def _raise_failure(output: StagedOutput) -> None:
    failure = output.read_bytes(FAILURE)
    if failure is not None:
        raise decode_error(json.loads(failure))


def _training_worker(config: dict[str, Any]) -> None:
    import ray.train

    # Other workers wait for this one in a collective operation; its death is what ends them.
    _training_task(config, fail_together=ray.train.get_context().get_world_size() > 1)


def _training_task(config: dict[str, Any], fail_together: bool = False) -> None:
    limit_threads(config["threads"])
    import torch

    torch.set_num_threads(config["threads"])
    run: TrainingRun = config["run"]
    output: StagedOutput = config["output"]
    if output.read_bytes(FAILURE) is not None:
        return  # Ray tries again after any failure; an error of ours would only come again.
    try:
        run.function(run.job)
    except S2LError as error:
        output.write_bytes(FAILURE, json.dumps(encode_error(error)).encode())
        if fail_together:
            raise


def publish_progress(output: StagedOutput, step: int, note: str) -> None:
    """Say from a training worker how far the run is."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(f"s2l/{output.attempt}", json.dumps([step, note]), overwrite=True)


@contextmanager
def _shown_progress(run: TrainingRun, output: StagedOutput) -> Iterator[None]:
    from ray.experimental import internal_kv

    stop = threading.Event()

    def poll(progress: Any) -> None:
        while not stop.wait(PROGRESS_SECONDS):
            data = internal_kv._internal_kv_get(f"s2l/{output.attempt}")
            if data:
                step, note = json.loads(data)
                progress.update(step, note=note)

    with display.progress(run.label, run.total_steps, "steps") as progress:
        thread = threading.Thread(target=poll, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if ray.is_initialized():
                internal_kv._internal_kv_del(f"s2l/{output.attempt}")


@functools.cache
def check_shared(storage: Storage) -> None:
    """Refuse a local path as storage where it is not one and the same folder on every node that is there now.

    Raises:
        ConfigError: a node does not see what was written here, or cannot write there.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here}
    if not storage.is_local or not others:
        return
    probe = f"shared-test-{uuid.uuid4().hex}"
    storage.write_bytes(b"", probe)
    try:
        pending = {_look_for(node, storage, probe): node for node in others}
        silent = len(pending)
        for answer in ray.wait(list(pending), num_returns=len(pending), timeout=SHARED_SECONDS)[0]:
            try:
                problem = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # the node has left, or cannot run anything of ours: later stages will say which
            silent -= 1
            if problem:
                node = others[pending[answer]]["NodeManagerAddress"]
                raise ConfigError(
                    f"storage {storage.uri}: the node {node} {problem}. Expected one folder that every node shares, "
                    "as on NFS. Set `storage` (or --storage) to such a folder or to a URI such as s3://bucket/dir."
                )
        if silent:
            display.warn(
                f"{silent} of {len(others)} other nodes did not say within {SHARED_SECONDS:.0f} s whether "
                f"{storage.uri} is one folder on all of them, as it must be"
            )
    finally:
        storage.delete_file(probe)


def _look_for(node: str, storage: Storage, probe: str) -> Any:
    """Ask a node what is wrong with its view of the storage; the answer is empty where nothing is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(_problem_with).options(
        name="check storage", num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    return task.remote(storage, probe)


def _problem_with(storage: Storage, probe: str) -> str:
    if storage.read_bytes(probe) is None:
        return "does not see what was written to it here"
    try:
        storage.check_writable()
    except ConfigError as error:
        return f"sees it but cannot write there ({error})"
    return ""
