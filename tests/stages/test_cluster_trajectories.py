"""Clustering under Ray: equal to scikit-learn, and the same bits for any number of workers, blocks and units."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from sklearn.cluster import KMeans

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.clustering import seeding
from s2l_ray.clustering.guard import DUPLICATE, NOT_LEARNED, set_aside
from s2l_ray.config import ClusterConfig, ResourcesConfig
from s2l_ray.draws import Draws, occurrences
from s2l_ray.errors import DataError
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import blocks, contents
from s2l_ray.stages import cluster_trajectories as stage
from tests.stages.conftest import Bench

N, T, K = 3000, 6, 20


@pytest.fixture
def inputs(bench: Bench) -> stage.Inputs:
    return made_inputs(bench)


def made_inputs(
    bench: Bench, loss_NT: np.ndarray | None = None, copy_of: int | None = None, order_N: np.ndarray | None = None
) -> stage.Inputs:
    """Write trajectories, in an order of their own where one is given, and their examples.

    Of the examples the last 100 have the content of one row, `copy_of`.
    """
    if loss_NT is None:
        generator = np.random.default_rng(5)
        centres = generator.gamma(1.5, 1.5, (2 * K, T))
        loss_NT = centres[generator.zipf(1.4, N) % (2 * K)] + generator.normal(0, 0.2, (N, T))
    loss_NT = (np.round(loss_NT * 2**20) / 2**20).astype(np.float32)
    n = len(loss_NT)
    ids = np.arange(n, dtype=np.int64)
    sources = [None if i % 100 == 0 else "a" if i % 3 else "b" for i in range(n)]
    contents = [i if copy_of is None or i < n - 100 else copy_of for i in range(n)]

    def examples(output: StagedOutput) -> StageResult:
        hashes = [int.from_bytes(hashlib.sha256(str(i).encode()).digest()[:7], "big") for i in contents]
        rows = [
            {"example_id": i, "input_file": "f", "input_row": i, "content_hash": h, "source": s, "turns": []}
            for i, h, s in zip(ids.tolist(), hashes, sources, strict=True)
        ]
        table = pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)
        parts = [("examples-0.parquet", table[: n // 2]), ("examples-1.parquet", table[n // 2 :])]
        return StageResult([output.write_parquet(name, [part], schemas.EXAMPLES) for name, part in parts], {})

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
        table = table if order_N is None else table.take(order_N)
        halves = [("trajectories-0.parquet", table[: n // 3]), ("trajectories-1.parquet", table[n // 3 :])]
        return StageResult([output.write_parquet(name, [part], schema) for name, part in halves], {})

    return stage.Inputs(bench.make("trajectories", trajectories), bench.make("examples", examples))


def checksums(artifact: Artifact) -> list[str]:
    return [file.sha256 for file in artifact.manifest.files]


def tables(artifact: Artifact) -> list[pa.Table]:
    """Return what an artifact holds, however it is cut into files."""
    prefixes = [p for p in ("assignments-", "centroids", "iterations", "set_aside-") if artifact.files(p)]
    return [artifact.read_table(prefix) for prefix in prefixes]


def pool(workers: int) -> ResourcesConfig:
    return ResourcesConfig.model_validate({"cluster_trajectories": {"actors": [1, workers], "cpus": 1}})


def test_bits_do_not_depend_on_workers_or_blocks(
    bench: Bench, inputs: stage.Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClusterConfig(n_clusters=K)
    monkeypatch.setattr(blocks, "LARGE_BLOCK_ROWS", 1)  # however many blocks there are
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 400)
    reference = bench.run(stage.cluster_trajectories, inputs, config, pool(1))
    assert len(reference.files("assignments-")) > 4
    for workers in (2, 4):
        found = bench.run(stage.cluster_trajectories, inputs, config, pool(workers))
        assert checksums(found) == checksums(reference)
    for block_rows in (100, 700, 1000):
        monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
        found = bench.run(stage.cluster_trajectories, inputs, config, pool(2))
        assert len(found.files("assignments-")) == -(-N // block_rows)
        assert tables(found) == tables(reference)
        assert found.summary == reference.summary


def test_strata_and_the_guard_give_the_same_bits_for_any_blocks_and_parts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = made_inputs(bench, copy_of=7)
    config = ClusterConfig(n_clusters=12, n_clusters_per="pool", stratify_by="source", guard=1.0, init_rows=200)
    reference = bench.run(stage.cluster_trajectories, inputs, config)
    assert reference.summary["strata"] == 3
    assert reference.summary["rows_duplicate"] == 100
    for block_rows, part_rows in ((100, 10), (700, 1000), (1000, 400)):
        monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
        monkeypatch.setattr(contents, "PART_ROWS", part_rows)
        found = bench.run(stage.cluster_trajectories, inputs, config)
        assert tables(found) == tables(reference)
        assert found.summary == reference.summary


def test_the_order_of_rows_in_files_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ClusterConfig(n_clusters=12, stratify_by="source", guard=1.0, init_rows=200)
    reference = bench.run(stage.cluster_trajectories, made_inputs(bench, copy_of=7), config)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 400)
    shuffled = made_inputs(bench, copy_of=7, order_N=np.random.default_rng(9).permutation(N))
    found = bench.run(stage.cluster_trajectories, shuffled, config)
    for prefix in ("assignments-", "set_aside-"):
        assert found.read_table(prefix).sort_by("example_id").equals(reference.read_table(prefix).sort_by("example_id"))
    assert found.read_table("centroids").equals(reference.read_table("centroids"))
    assert found.summary == reference.summary


def test_the_guard_finds_over_all_blocks_what_it_finds_in_one_table(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = made_inputs(bench, copy_of=7)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K, guard=1.0))
    table, examples = inputs.trajectories.read_table("trajectories-"), inputs.examples.read_table("examples-")
    id_N, loss_NT = table.column("example_id").to_numpy(), schemas.matrix(table, "loss")
    occurrence_N = occurrences(examples.column("content_hash").to_numpy(), id_N)
    mean_initial = float(table.column("loss_initial").to_numpy()[occurrence_N == 0].mean(dtype=np.float64))
    expected = set_aside(loss_NT, occurrence_N, mean_initial, 1.0)
    aside = found.read_table("set_aside-")
    assert aside.column("example_id").to_pylist() == id_N[~expected.kept_N].tolist()
    assert aside.column("reason").to_pylist() == expected.reason_N[~expected.kept_N].tolist()
    assert set(aside.column("reason").to_pylist()) == {DUPLICATE, NOT_LEARNED}
    assert found.read_table("assignments-").column("example_id").to_pylist() == id_N[expected.kept_N].tolist()
    n_judged = (~expected.duplicate_N).sum()
    assert found.summary["not_learned_share"] == expected.not_learned_N.sum() / n_judged


def test_a_guard_that_finds_nothing_says_so_with_an_empty_file(bench: Bench, inputs: stage.Inputs) -> None:
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K, guard=1e6))
    assert len(found.read_table("set_aside-")) == 0
    assert found.summary["rows_not_learned"] == 0
    assert not bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K)).files("set_aside-")


def test_a_stratum_that_the_guard_empties_has_no_clusters(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 30)
    loss_NT = np.linspace(4, 1, T) + np.random.default_rng(2).gamma(1, 0.1, (300, T))
    loss_NT[::100] = 5.0  # the rows without a source, which are the first of some blocks
    config = ClusterConfig(n_clusters=3, stratify_by="source", guard=0.9)
    found = bench.run(stage.cluster_trajectories, made_inputs(bench, loss_NT), config)
    assert found.read_table("set_aside-").column("example_id").to_pylist() == [0, 100, 200]
    assert set(found.read_table("centroids").column("stratum").to_pylist()) == {"a", "b"}
    assert found.summary["strata"] == 2
    assert found.summary["rows"] == 297


def test_hidden_states_are_clustered_in_place_of_losses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND = np.random.default_rng(4).normal(0, 1, (N, 16)).astype(np.float32)
    hidden_ND[: N // 2] += 20
    schema = schemas.hidden_states(16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(hidden_ND.ravel()), 16)
    table = pa.table([np.arange(N), column], schema=schema)

    def write(output: StagedOutput) -> StageResult:
        parts = [("hidden_states-0.parquet", table[:100]), ("hidden_states-1.parquet", table[100:])]
        return StageResult([output.write_parquet(name, [part], schema) for name, part in parts], {})

    losses = made_inputs(bench)
    inputs = stage.Inputs(losses.trajectories, losses.examples, bench.make("hidden_states", write))
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 16 * 700)
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=2, features="hidden_state"))
    assert len(found.files("assignments-")) == -(-N // 700)
    labels = found.read_table("assignments-").column("cluster_id").to_numpy()
    assert len(set(labels[: N // 2])) == len(set(labels[N // 2 :])) == 1
    assert labels[0] != labels[-1]


def test_a_loss_that_is_no_number_is_refused_by_the_ids_of_its_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)
    loss_NT = np.random.default_rng(1).gamma(2, 1, (N, T))
    loss_NT[1234, 3] = np.nan
    with pytest.raises(DataError, match=r"NaN or infinite loss \(example_id 1234; checkpoint index 3\)") as caught:
        bench.run(stage.cluster_trajectories, made_inputs(bench, loss_NT), ClusterConfig(n_clusters=K))
    assert caught.value.example_ids == (1234,)


def test_labels_and_inertia_equal_scikit_learn_from_the_same_start(bench: Bench, inputs: stage.Inputs) -> None:
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K, max_iter=20))
    table = inputs.trajectories.read_table("trajectories-").sort_by("example_id")
    loss_NT = np.stack(table.column("loss").to_numpy()).astype(np.float64)
    draws = Draws.of(inputs.examples.read_table("examples-", list(Draws.COLUMNS)), 0)
    order = np.lexsort((draws.example_id_N, draws.draw_N))
    start_KT = seeding.initial_centroids(loss_NT[order], K, 0)
    peer = KMeans(K, init=start_KT, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(loss_NT)
    labels = found.read_table("assignments-").sort_by("example_id").column("cluster_id").to_numpy()
    assert np.array_equal(labels, peer.labels_)
    assert found.summary["inertia"] == pytest.approx(peer.inertia_, rel=1e-9)


def test_stratified_by_source_clusters_each_source_alone(bench: Bench, inputs: stage.Inputs) -> None:
    found = bench.run(stage.cluster_trajectories, inputs, ClusterConfig(n_clusters=K, stratify_by="source"))
    assignments = found.read_table("assignments-").to_pandas()
    sources = inputs.examples.read_table("examples-").to_pandas().set_index("example_id")["source"].fillna("")
    assert (assignments["stratum"].to_numpy() == sources.loc[assignments["example_id"]].to_numpy()).all()
    assert found.summary["n_clusters"] == 3 * K


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
