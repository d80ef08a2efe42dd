"""Seconds per row as the data grows: reading and tokenizing, and clustering and selecting what is on disk."""

import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import begin
from s2l_ray.config import Config, ResourcesConfig
from s2l_ray.experiment import experiment_of, parse_sparse
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.log import display
from s2l_ray.plan import build_pipeline
from s2l_ray.stage_settings import SelectSettings
from s2l_ray.stages import cluster_trajectories, runtime, select_subset
from s2l_ray.stages.run import Runner
from s2l_ray.storage import Storage
from tests.benchmarks.harness import Benchmark, Ratio
from tests.benchmarks.kmeans import T, trajectories

WORDS = [f"{first}{second}" for first in ("ba", "ke", "lo", "mu", "ny", "sir", "tor", "ven") for second in "aeiouxyz"]
MIB = 2**20
PART_ROWS = 65_536
"""As `prepare_examples` has it."""
FRESH = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def measure_reading(sizes: tuple[int, ...]) -> Iterator[Ratio]:
    """Time `prepare_examples` and `tokenize_examples` on files of about 100 words a row."""
    display.quiet = True
    per_row: dict[int, float] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
            path = Path(folder, "rows.jsonl")
            _write_rows(path, rows)
            data = {
                "storage": str(Path(folder, "storage")),
                "examples": {"path": str(path)},
                "proxy": {"model": FRESH},
                "target": {"model": FRESH},
            }
            experiment = experiment_of(parse_sparse(data, [], origin="benchmark", name="benchmark"))
            pipeline = build_pipeline(experiment).until("tokenize_examples")
            made = Runner(pipeline, Storage(data["storage"]), experiment.shared.resources).run()
            wanted = [node for node in pipeline.nodes if node.artifact in ("examples", "tokens")]
            seconds = sum(made.artifacts[node.key].manifest.run["seconds"] for node in wanted)
            per_row[rows] = 1e6 * seconds / rows
    smallest = sizes[0]
    for rows in sizes[1:]:
        work, peer = f"preparing and tokenizing {rows:,} rows", f"{smallest:,} rows"
        yield Ratio(work, peer, per_row[rows], per_row[smallest], "us per row")


def _write_rows(path: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            words = [WORDS[place] for place in generator.integers(0, len(WORDS), 100)]
            row = {"instruction": f"{number} " + " ".join(words[:55]), "output": " ".join(words[55:])}
            stream.write(json.dumps(row) + "\n")


@dataclass(frozen=True)
class Selected:
    """What clustering and selecting came to."""

    rows: int
    clustering: float
    selecting: float
    grown_clustering: float
    """Most that the driver's memory grew meanwhile [MiB]; then the same of both stages."""
    grown_selecting: float


def measure_selecting(sizes: tuple[int, ...]) -> Iterator[Ratio]:
    """Time `cluster_trajectories` and `select_subset` from Parquet to the rows of the subset."""
    # A process each: memory that one frees is not always given back.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        found = list(processes.map(_select, sizes))
    first = found[0]
    for each in found[1:]:
        work, peer = f"to a subset of 10 %, {each.rows:,} trajectories", f"{first.rows:,}"
        for name in ("clustering", "selecting"):
            ours, theirs = (1e6 * getattr(one, name) / one.rows for one in (each, first))
            yield Ratio(f"{name} {work}", peer, ours, theirs, "us per row")
        for name in ("clustering", "selecting"):
            ours, theirs = (getattr(one, f"grown_{name}") for one in (each, first))
            yield Ratio(f"the driver's memory, {name} {each.rows:,} trajectories", peer, ours, theirs, "MiB")


def _select(rows: int) -> Selected:
    display.quiet = True
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        return _select_in(Path(folder), rows)


def _select_in(folder: Path, rows: int) -> Selected:
    storage, resources = Storage(str(folder / "storage")), ResourcesConfig()
    config = Config.model_validate({"examples": {"path": "x"}, "proxy": {"model": FRESH}, "target": {"model": FRESH}})
    files = _raw(folder / "rows.jsonl", rows)
    examples, tokens, losses = (_made(storage, name, rows) for name in ("examples", "tokens", "trajectories"))
    runtime.connect(resources)
    started = time.perf_counter()
    try:
        memory = _Peak()
        output = begin(storage, "clusters", "c" * 32)
        assert output is not None
        inputs = cluster_trajectories.Inputs(trajectories=losses, examples=examples)
        clusters = _committed(
            output, cluster_trajectories.cluster_trajectories(inputs, config.cluster, resources, output, seed=0)
        )
        clustered, grown_clustering = time.perf_counter(), memory.grown()
        output = begin(storage, "subset", "d" * 32)
        assert output is not None
        chosen = select_subset.Inputs(examples, tokens, tokens, clusters)
        settings = SelectSettings(config.select.model_copy(update={"budget": 0.1}), files)
        select_subset.select_subset(chosen, settings, resources, output, seed=0)
        ended = time.perf_counter()
        grown_selecting = memory.grown()
        memory.stop()
    finally:
        runtime.disconnect()
    return Selected(rows, clustered - started, ended - clustered, grown_clustering / MIB, grown_selecting / MIB)


class _Peak:
    """Looks some times a second at this process's own memory: the object store, which it shares, is left out."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._most = self._own()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            self._most = max(self._most, self._own())

    def _own(self) -> int:
        memory = self._process.memory_info()
        return int(memory.rss - memory.shared)

    def grown(self) -> int:
        """Return by how much it grew at most until now [bytes]."""
        return self._most - self._before

    def stop(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()


def _raw(path: Path, rows: int) -> tuple[InputFile, ...]:
    with path.open("w", encoding="utf-8") as stream:
        for start in range(0, rows, 100_000):
            numbers = range(start, min(rows, start + 100_000))
            stream.write("".join(f'{{"instruction": "Say {n}", "output": "It is {n}."}}\n' for n in numbers))
    return find_inputs(str(path), key="examples.path")


def _made(storage: Storage, name: str, rows: int) -> Artifact:
    output = begin(storage, name, name[0] * 32)
    assert output is not None
    schema = {
        "examples": schemas.EXAMPLES,
        "tokens": schemas.TOKENS,
        "trajectories": schemas.trajectories(T, tuple(range(1, T + 1))),
    }[name]
    records = []
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        part = _part(name, start, min(rows, start + PART_ROWS), number).cast(schema)
        records.append(output.write_parquet(f"{name}-{number:05d}.parquet", [part], schema))
    return _committed(output, StageResult(records, {"rows": rows, "rows_kept": rows}))


def _part(name: str, start: int, stop: int, number: int) -> pa.Table:
    count = stop - start
    id_N = np.arange(start, stop)
    none, text = pa.nulls(count, pa.string()), pa.array(["x"]).take(pa.array(np.zeros(count, np.int64)))
    if name == "trajectories":
        loss = pa.FixedSizeListArray.from_arrays(pa.array(trajectories(count, number).ravel()), T)
        initial = np.full(count, 9, np.float32)
        columns: dict[str, Any] = {"source": none, "loss_initial": initial, "loss": loss}
        columns["num_response_tokens"] = np.full(count, 2, np.int32)
    elif name == "tokens":
        offsets = pa.array(np.arange(count + 1), pa.int32())
        single = pa.ListArray.from_arrays(offsets, pa.array(np.ones(count, np.int32)))
        double = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * 3), pa.array(np.ones(3 * count, np.int32)))
        stops = pa.ListArray.from_arrays(offsets, pa.array(np.full(count, 3, np.int32)))
        columns = {"source": none, "input_ids": double, "response_start": single, "response_stop": stops}
        columns |= {"num_response_tokens": np.full(count, 2, np.int32), "truncated": np.zeros(count, bool)}
    else:
        hash_N = np.random.default_rng(number).integers(-(2**62), 2**62, count)
        offsets = pa.array(np.zeros(count + 1, np.int32))
        turns = pa.ListArray.from_arrays(offsets, pa.array([], schemas.EXAMPLES.field("turns").type.value_type))
        columns = {"user_id": none, "input_file": text, "input_row": id_N, "content_hash": hash_N, "source": none}
        columns |= {"skill": none, "is_wrong": pa.nulls(count, pa.bool_()), "turns": turns}
    return pa.table({"example_id": id_N, **columns})


def _committed(output: Any, result: StageResult) -> Artifact:
    return output.commit(result.files, config={}, inputs={}, summary=result.summary, run={"seconds": 0.0})


READING = Benchmark(
    "reading", "rows prepared and tokenized, as they get more", lambda: measure_reading((10_000, 100_000))
)
READING_LARGE = Benchmark(
    "reading-1m", "the same, a million rows", lambda: measure_reading((100_000, 1_000_000)), is_large=True
)
SELECTING = Benchmark(
    "selecting", "trajectories on disk to a subset, as they get more", lambda: measure_selecting((100_000, 1_000_000))
)
SELECTING_LARGE = Benchmark(
    "selecting-10m", "the same, ten million", lambda: measure_selecting((1_000_000, 10_000_000)), is_large=True
)
