"""Clustering under Ray: equal to scikit-learn, and the same bits for any number of workers and blocks."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from sklearn.cluster import KMeans

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import StagedOutput
from s2l_ray.clustering import seeding
from s2l_ray.config import ClusterConfig, ResourcesConfig
from s2l_ray.stages import cluster_trajectories as stage
from tests.stages.conftest import Bench

N, T, K = 3000, 6, 20


@pytest.fixture
def inputs(bench: Bench) -> stage.Inputs:
    return made_inputs(bench)


def made_inputs(
    bench: Bench, loss_NT: np.ndarray | None = None, sources: list[str | None] | None = None
) -> stage.Inputs:
    if loss_NT is None:
        generator = np.random.default_rng(5)
        centres = generator.gamma(1.5, 1.5, (2 * K, T))
        loss_NT = centres[generator.zipf(1.4, N) % (2 * K)] + generator.normal(0, 0.2, (N, T))
    loss_NT = (np.round(loss_NT * 2**20) / 2**20).astype(np.float32)
    n = len(loss_NT)
    ids = np.arange(n, dtype=np.int64)
    sources = ["a" if i % 3 else "b" for i in range(n)]

    def examples(output: StagedOutput) -> StageResult:
        hashes = [int.from_bytes(hashlib.sha256(str(i).encode()).digest()[:7], "big") for i in range(n)]
        rows = [
            {"example_id": i, "input_file": "f", "input_row": i, "content_hash": h, "source": s, "turns": []}
            for i, h, s in zip(ids.tolist(), hashes, sources, strict=True)
        ]
        table = pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)
        return StageResult([output.write_parquet("examples-0.parquet", [table], schemas.EXAMPLES)], {})

    def trajectories(output: StagedOutput) -> StageResult:
        schema = schemas.trajectories(T)
        columns = {
            "example_id": ids,
            "source": sources,
            "loss_initial": loss_NT[:, 0],
            "loss": pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), T),
            "num_response_tokens": np.ones(n, np.int32),
        }
        table = pa.table(columns).cast(schema)
        halves = [("trajectories-0.parquet", table[: n // 3]), ("trajectories-1.parquet", table[n // 3 :])]
        return StageResult([output.write_parquet(name, [part], schema) for name, part in halves], {})

    return stage.Inputs(bench.make("trajectories", trajectories), bench.make("examples", examples))


def checksums(artifact: Artifact) -> list[str]:
    return [file.sha256 for file in artifact.manifest.files]


def pool(workers: int) -> ResourcesConfig:
    return ResourcesConfig.model_validate({"cluster_trajectories": {"actors": [1, workers], "cpus": 1}})


def test_bits_do_not_depend_on_workers_or_blocks(
    bench: Bench, inputs: stage.Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClusterConfig(n_clusters=K)
    reference = checksums(bench.run(stage.cluster_trajectories, inputs, config, pool(1)))
    for workers, block_rows in ((1, 100), (2, 700), (4, 1000), (4, 10_000)):
        monkeypatch.setattr(stage, "BLOCK_ROWS", block_rows)
        assert checksums(bench.run(stage.cluster_trajectories, inputs, config, pool(workers))) == reference


def test_labels_and_inertia_equal_scikit_learn_from_the_same_start(bench: Bench, inputs: stage.Inputs) -> None:
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K, max_iter=20))
    table = inputs.trajectories.read_table("trajectories-").sort_by("example_id")
    loss_NT = np.stack(table.column("loss").to_numpy()).astype(np.float64)
    _, rows, _ = stage._read(inputs, ClusterConfig(n_clusters=K), 0)
    order = np.lexsort((rows.example_id_N, rows.draw_N))
    start_KT = seeding.initial_centroids(rows.feature_NT[order], K, 0)
    peer = KMeans(K, init=start_KT, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(loss_NT)
    labels = found.read_table("assignments-").sort_by("example_id").column("cluster_id").to_numpy()
    assert np.array_equal(labels, peer.labels_)
    assert found.summary["inertia"] == pytest.approx(peer.inertia_, rel=1e-9)


def test_stratified_by_source_clusters_each_source_alone(bench: Bench, inputs: stage.Inputs) -> None:
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K, stratify_by="source"))
    assignments = found.read_table("assignments-").to_pandas()
    sources = inputs.examples.read_table("examples-").to_pandas().set_index("example_id")["source"]
    assert (assignments["stratum"].to_numpy() == sources.loc[assignments["example_id"]].to_numpy()).all()
    assert found.summary["n_clusters"] == 2 * K


@pytest.mark.parametrize(("n_rows", "n_clusters"), [(1, 1), (7, 7), (50, 1)])
def test_smallest_sizes_work(bench: Bench, n_rows: int, n_clusters: int) -> None:
    inputs = made_inputs(bench, np.random.default_rng(1).gamma(2, 1, (n_rows, T)))
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=n_clusters))
    assert found.summary["n_clusters"] == n_clusters
    assert sum(found.read_table("centroids").column("size").to_pylist()) == n_rows


def test_equal_trajectories_give_one_cluster_and_no_nan(bench: Bench) -> None:
    inputs = made_inputs(bench, np.full((40, T), 1.5))
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=5))
    centroids = np.stack(found.read_table("centroids").column("centroid").to_numpy())
    assert centroids.shape == (1, T)
    assert np.array_equal(centroids[0], np.full(T, 1.5))
