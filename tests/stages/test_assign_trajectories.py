"""New rows joining frozen clusters in blocks: what one table says, whatever the blocks."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.clustering.drift import FAR
from s2l_ray.clustering.guard import DUPLICATE, NOT_LEARNED
from s2l_ray.config import ClusterConfig
from s2l_ray.errors import DataError
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import assign_trajectories as stage
from s2l_ray.stages import blocks, contents, trajectory_blocks
from s2l_ray.stages.cluster_trajectories import cluster_trajectories
from tests.stages.conftest import Bench

FIRST, LATER, T, K = 3000, 1200, 4, 15
GUARD = 1.1


@dataclass(frozen=True)
class Rows:
    """Rows of a pool, and the artifacts that hold them."""

    hash_N: np.ndarray
    source_N: np.ndarray
    initial_N: np.ndarray
    loss_NT: np.ndarray
    examples: Artifact
    trajectories: Artifact


def made(bench: Bench, hash_N: np.ndarray, sources: list[str | None], seed: int) -> Rows:
    generator, n = np.random.default_rng(seed), len(hash_N)
    source_N = np.array(sources, object)[generator.choice(len(sources), n)]
    loss_NT = (np.round(generator.gamma(2, 1, (n, T)) * 2**20) / 2**20).astype(np.float32)
    initial_N = loss_NT[:, 0] + np.float32(1)
    ids = np.arange(n)
    rows = [
        {"example_id": i, "input_file": "f", "input_row": i, "content_hash": h, "source": s, "turns": []}
        for i, h, s in zip(ids.tolist(), hash_N.tolist(), source_N, strict=True)
    ]
    losses = pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), T)
    table = pa.table([ids, pa.array(source_N), initial_N, losses, np.ones(n, np.int32)], schema=schemas.trajectories(T))

    def in_files(name: str, schema: pa.Schema, whole: pa.Table) -> Artifact:
        def write(output: StagedOutput) -> StageResult:
            parts = [whole.slice(start, 500) for start in range(0, n, 500)]
            files = [output.write_parquet(f"{name}-{i}.parquet", [part], schema) for i, part in enumerate(parts)]
            return StageResult(files, {})

        return bench.make(name, write)

    examples = in_files("examples", schemas.EXAMPLES, pa.Table.from_pylist(rows, schema=schemas.EXAMPLES))
    return Rows(hash_N, source_N, initial_N, loss_NT, examples, in_files("trajectories", table.schema, table))


@pytest.fixture
def pools(bench: Bench) -> tuple[Rows, Rows]:
    hash_N = np.random.default_rng(0).permutation(FIRST + LATER) * 7919 - 2**40
    later_M = hash_N[FIRST:].copy()
    later_M[100:140], later_M[200:230] = hash_N[:40], later_M[300]  # known rows, and copies
    return made(bench, hash_N[:FIRST], ["a", "b", None], 1), made(bench, later_M, ["a", "b", None, "new"], 2)


def joined(bench: Bench, first: Rows, later: Rows, config: ClusterConfig) -> tuple[Artifact, Artifact]:
    clusters = bench.run(cluster_trajectories, trajectory_blocks.Inputs(first.trajectories, first.examples), config)
    inputs = stage.Inputs(later.trajectories, later.examples, clusters, first.examples)
    return clusters, bench.run(stage.assign_trajectories, inputs, config)


def reasons_by_hand(first: Rows, later: Rows, config: ClusterConfig) -> list[str | None]:
    known, seen, reasons = set(first.hash_N.tolist()), set(), []
    is_first = [h not in seen and not seen.add(h) for h in later.hash_N.tolist()]
    floor = 0.02 * later.initial_N[is_first].mean(dtype=np.float64)
    ratio = (later.loss_NT[:, -1].astype(float) + floor) / (later.loss_NT[:, 0].astype(float) + floor)
    for number, source in enumerate(later.source_N):
        reason = None
        if config.guard is not None:
            reason = DUPLICATE if not is_first[number] else NOT_LEARNED if ratio[number] >= config.guard else None
        reason = stage.KNOWN if int(later.hash_N[number]) in known else reason
        reasons.append(stage.NO_CLUSTER if config.stratify_by and source == "new" else reason)
    return reasons


CONFIGS = [
    ClusterConfig(n_clusters=K),
    ClusterConfig(n_clusters=K, n_clusters_per="pool", stratify_by="source", guard=GUARD, window="late"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "strata and a guard"])
@pytest.mark.parametrize("block_rows", [250_000, 170])
def test_new_rows_join_the_nearest_cluster_of_their_stratum(
    block_rows: int, config: ClusterConfig, bench: Bench, pools: tuple[Rows, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = pools
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(contents, "PART_ROWS", max(100, block_rows // 2))
    clusters, found = joined(bench, first, later, config)
    assert (len(found.files("assignments-")) > 1) == (block_rows < LATER)

    reasons = reasons_by_hand(first, later, config)
    aside = found.read_table("set_aside-")
    expected_aside = [(i, reason) for i, reason in enumerate(reasons) if reason is not None]
    assert list(zip(*(aside.column(c).to_pylist() for c in ("example_id", "reason")), strict=True)) == expected_aside
    names = {reason for _, reason in expected_aside}
    assert names >= ({stage.KNOWN, stage.NO_CLUSTER, DUPLICATE, NOT_LEARNED} if config.guard else {stage.KNOWN})
    counts = {name: sum(reason == name for _, reason in expected_aside) for name in sorted(names)}
    assert found.summary["rows_set_aside"] == counts

    assigned = found.read_table("assignments-")
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    assert assigned.column("example_id").to_pylist() == kept
    assert found.summary["rows"] == len(kept)
    centroids = clusters.read_table("centroids.parquet").to_pylist()
    feature_NT = later.loss_NT[:, -schemas.matrix(clusters.read_table("centroids.parquet"), "centroid").shape[1] :]
    for row in assigned.to_pylist()[::7]:
        number = row["example_id"]
        stratum = (later.source_N[number] or "") if config.stratify_by else trajectory_blocks.ALL
        of_stratum = [c for c in centroids if c["stratum"] == stratum]
        distances = [float(((feature_NT[number].astype(float) - c["centroid"]) ** 2).sum()) for c in of_stratum]
        assert row["stratum"] == stratum
        assert row["cluster_id"] == of_stratum[int(np.argmin(distances))]["cluster_id"]
        assert row["distance"] == pytest.approx(min(distances), abs=1e-5)

    of_first = clusters.read_table("assignments-")
    far = np.quantile(of_first.column("distance").to_numpy(), FAR)
    assert found.summary["drift"]["far_share"] == (assigned.column("distance").to_numpy() > far).mean()
    share, new_share = (shares(table, centroids) for table in (of_first, assigned))
    assert found.summary["drift"]["shift"] == pytest.approx(np.abs(share - new_share).sum() / 2)


def shares(assignments: pa.Table, centroids: list[dict]) -> np.ndarray:
    rows = list(zip(*(assignments.column(c).to_pylist() for c in ("stratum", "cluster_id")), strict=True))
    return np.array([rows.count((c["stratum"], c["cluster_id"])) for c in centroids]) / len(rows)


def test_rows_that_are_all_known_leave_none_to_select_and_say_why(bench: Bench, pools: tuple[Rows, Rows]) -> None:
    first, _ = pools
    _, found = joined(bench, first, first, ClusterConfig(n_clusters=K))
    assert found.summary == {"rows": 0, "rows_set_aside": {stage.KNOWN: FIRST}, "drift": None}
    assert len(found.read_table("assignments-")) == 0


def test_new_rows_without_a_trajectory_are_refused(bench: Bench, pools: tuple[Rows, Rows]) -> None:
    first, later = pools
    nothing = bench.make("trajectories", lambda output: StageResult([], {}))
    inputs = stage.Inputs(nothing, later.examples, first.trajectories, first.examples)
    with pytest.raises(DataError, match="none of the new rows has a trajectory"):
        bench.run(stage.assign_trajectories, inputs, ClusterConfig(n_clusters=K))
