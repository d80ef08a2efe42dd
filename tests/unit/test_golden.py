"""The subset of a committed table of trajectories: a change that moves it must be meant, and raise a code epoch."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from s2l_ray import draws, sampling
from s2l_ray.clustering import kmeans, seeding

GOLDEN = Path(__file__).parent / "golden"


def test_subset_of_the_committed_trajectories_is_the_committed_one():
    table = pq.read_table(GOLDEN / "trajectories.parquet")
    expected = json.loads((GOLDEN / "subset.json").read_text())
    example_id_N, hash_N = table.column("example_id").to_numpy(), table.column("content_hash").to_numpy()
    loss_NT = np.stack(table.column("loss").to_numpy())
    draw_N = draws.draw_hash(hash_N, draws.occurrences(hash_N, example_id_N), expected["seed"])
    start_KT = seeding.initial_centroids(
        loss_NT[np.lexsort((example_id_N, draw_N))], expected["n_clusters"], expected["seed"]
    )
    fit = kmeans.fit(loss_NT, expected["n_clusters"], expected["seed"], start_KT=start_KT)
    rank_N = sampling.balanced_rank(fit.assignment.labels.astype(np.int64), draw_N, example_id_N)
    assert fit.inertia == pytest.approx(float.fromhex(expected["inertia"]), rel=1e-12)
    assert sorted(example_id_N[rank_N < expected["budget"]].tolist()) == expected["example_ids"]
