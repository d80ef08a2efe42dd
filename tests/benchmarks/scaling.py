"""One worker against two: what Ray's pools reach of what two bare processes do in the same run.

Scoring is timed at two sizes, and the difference counts: a pool starts anew for every stage, whatever its size.
"""

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import begin
from s2l_ray.clustering import kmeans, partials, seeding
from s2l_ray.config import PoolResources, ResourcesConfig, ScoreConfig
from s2l_ray.log import display
from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import runtime, score_examples
from s2l_ray.stages.distributed_kmeans import StratumRows
from s2l_ray.storage import Storage
from s2l_ray.token_rows import TokenRows
from s2l_ray.tokens import TokenizedExample, tokens_table
from tests.benchmarks.harness import Benchmark, Ratio
from tests.benchmarks.kmeans import K, blocks_of, trajectories

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 16_384,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FEW, MANY, SHARD_ROWS, TOKENS = 100, 400, 25, 160
ROWS, ITERATIONS, ROUNDS = 4_000_000, 20, 3


def measure_scoring() -> Iterator[Ratio]:
    """Time the stage with a pool of one worker and of two, each with a core of its own, and bare processes between."""
    display.quiet = True
    ours: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    runtime.connect(ResourcesConfig())
    try:
        _score(FEW, 2)  # the workers' first task imports torch
        for _, workers in itertools.product(range(ROUNDS), (1, 2)):
            few, many = (_score(rows, workers) for rows in (FEW, MANY))
            ours[workers].append(many - few)
            bare[workers].append(_bare_seconds(_score_bare, workers))
    finally:
        runtime.disconnect()
    faster, bare_faster = (statistics.median(each[1]) / statistics.median(each[2]) for each in (ours, bare))
    work = f"scoring {MANY - FEW} rows, two workers over one"
    yield Ratio(work, "two bare processes over one", faster, bare_faster, "times as fast", ROUNDS)


def measure_kmeans() -> Iterator[Ratio]:
    """Time the iterations with one worker and with two; both are warm."""
    loss_NT = trajectories(ROWS)
    start_KT = seeding.initial_centroids(loss_NT[:65_536], K, 0)
    runtime.connect(ResourcesConfig())
    try:
        seconds, blocks = {}, blocks_of(loss_NT)
        for workers in (1, 2):
            rows = StratumRows(blocks, 0, PoolResources(actors=(workers, workers), cpus=2 / workers))
            seconds[workers] = min(_timed(lambda r=rows: _iterate(r, start_KT)) for _ in range(ROUNDS))
    finally:
        runtime.disconnect()
    work = f"k-means on {ROWS:,} rows, two workers over one"
    bare = [_bare_seconds(_cluster_bare, processes) for processes in (1, 2)]
    yield Ratio(work, "two bare processes over one", seconds[1] / seconds[2], bare[0] / bare[1], "times as fast")


def _iterate(rows: StratumRows, start_KT: np.ndarray) -> None:
    kmeans.lloyd(rows.step(), start_KT, ITERATIONS, relocate=rows.farthest)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ------------------------------------------------------------------------------------------------------ bare processes


def _bare_seconds(work: Callable[[int, int, "Barrier", Any], None], processes: int) -> float:
    """Return how long some processes take that share the work evenly."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = [context.Process(target=work, args=(i, processes, barrier, results)) for i in range(processes)]
    for process in started:
        process.start()
    seconds: float = max(results.get() for _ in started)
    for process in started:
        process.join()
    return seconds


def _score_bare(part: int, parts: int, barrier: "Barrier", results: Any) -> None:
    import torch

    torch.set_num_threads(1)
    module, rows = response_loss_module(_model()), TokenRows.from_table(_tokens(MANY - FEW))
    mine = rows.take(rows.example_id_N[part::parts])

    def work() -> None:
        for start in range(0, len(mine), SHARD_ROWS):
            shard = mine.take(mine.example_id_N[start : start + SHARD_ROWS])
            for _ in range(2):
                mean_losses(module, shard, batch_tokens=4096, pad_id=0, device=torch.device("cpu"), bf16=False)

    barrier.wait()
    results.put(_timed(work))


def _cluster_bare(part: int, parts: int, barrier: "Barrier", results: Any) -> None:
    from s2l_ray.clustering import bounds

    runtime.limit_threads(1)
    whole_NT = trajectories(ROWS)
    start_KT = seeding.initial_centroids(whole_NT[:65_536], K, 0)
    blocks = np.array_split(whole_NT[part::parts], 16 // parts)
    near: list[Any] = [None] * len(blocks)

    def first(centroid_KT: np.ndarray, origin_T: np.ndarray) -> partials.Partial:
        found = [bounds.first_pass(block, centroid_KT, origin_T) for block in blocks]
        near[:] = [each for each, _ in found]
        return partials.merge(sums for _, sums in found)

    def again(centroid_KT: np.ndarray, moves: bounds.Moves) -> partials.Partial:
        found = [bounds.next_pass(block, known, centroid_KT, moves) for block, known in zip(blocks, near, strict=True)]
        near[:] = [each for each, _ in found]
        return partials.merge(sums for _, sums in found)

    def work() -> None:
        kmeans.lloyd(bounds.BoundedStep(first, again), start_KT, ITERATIONS)

    work()
    barrier.wait()
    results.put(min(_timed(work) for _ in range(ROUNDS)))


# ------------------------------------------------------------------------------------------------- artifacts to score


def _score(rows: int, workers: int) -> float:
    """Return how long the stage takes, in a storage of its own."""
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        storage = Storage(folder)

        def made(name: str, write: Callable[[StagedOutput], StageResult]) -> Artifact:
            output = begin(storage, name, "0" * 32)
            assert output is not None
            result = write(output)
            return output.commit(result.files, config={}, inputs={}, summary=result.summary, run={"seconds": 0.0})

        inputs = score_examples.Inputs(
            tokens=made("tokens", lambda output: _write_tokens(output, rows)),
            tokenizer=made("tokenizer", lambda output: StageResult([], {"pad_id": 0})),
            proxy=made("proxy", _write_proxy),
        )
        pool = ResourcesConfig.model_validate({"score_examples": {"actors": [workers, workers], "cpus": 1}})
        config = ScoreConfig(shard_rows=SHARD_ROWS, batch_tokens=4096)
        return _timed(
            lambda: made(
                "trajectories", lambda output: score_examples.score_examples(inputs, config, pool, output, seed=0)
            )
        )


def _write_tokens(output: StagedOutput, rows: int) -> StageResult:
    record = output.write_parquet("tokens-00000.parquet", [_tokens(rows)], schemas.TOKENS)
    return StageResult([record], {"rows_kept": rows})


def _tokens(rows: int) -> Any:
    ids = np.random.default_rng(0).integers(1, SHAPE["vocab_size"], (rows, TOKENS)).tolist()
    made = [TokenizedExample(row, [TOKENS // 2], [TOKENS], truncated=False) for row in ids]
    return tokens_table(range(rows), [None] * rows, made)


def _write_proxy(output: StagedOutput) -> StageResult:
    from transformers.utils import logging

    logging.disable_progress_bar()
    records = []
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        for step in (0, 1):
            _model().save_pretrained(Path(folder, schemas.step_folder(step)))
        records += output.add_folder(Path(folder), "")
    return StageResult(records, {"checkpoint_steps": [1]})


def _model() -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **SHAPE)).eval()


SCORING = Benchmark("scaling-scoring", "scoring with two workers against one", measure_scoring, is_large=True)
KMEANS = Benchmark("scaling-kmeans", "k-means with two workers against one", measure_kmeans, is_large=True)
