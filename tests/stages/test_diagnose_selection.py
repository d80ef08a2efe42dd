"""What is measured of clusters: as they were made, each content once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.config import ClusterConfig, PoolResources
from s2l_ray.labels import coded
from s2l_ray.stage_settings import DiagnoseSettings
from s2l_ray.stages.cluster_trajectories import Inputs, cluster_trajectories
from s2l_ray.stages.diagnose_selection import RunCheck
from tests.stages.conftest import Bench
from tests.stages.test_cluster_trajectories import T, made_inputs

ROWS, COPIES = 400, 100


class Made:
    """The inputs that clusterings are judged by, which are compared by identity."""

    def __init__(self, made: Inputs, clusters: Artifact) -> None:
        self.examples, self.trajectories, self.clusters = made.examples, made.trajectories, clusters


def checked(bench: Bench, cluster: ClusterConfig) -> RunCheck:
    """Cluster rows of which the last have one content, to be looked at."""
    made = made_inputs(bench, np.random.default_rng(3).gamma(2.0, 1.0, (ROWS, T)), copy_of=7)
    inputs: Any = Made(made, bench.run(cluster_trajectories, made, cluster))
    settings = DiagnoseSettings(0, cluster, "fp32")
    return RunCheck(inputs, settings, PoolResources(), 0, bench.output("diagnostics"))


@pytest.mark.parametrize(
    ("settings", "first"),
    [({}, 0), ({"stratify_by": "source"}, 0), ({"window": "late"}, 4)],
)
def test_silhouettes_are_those_of_what_was_clustered_in_each_stratum_and_count_a_content_once(
    bench: Bench, settings: dict[str, Any], first: int
) -> None:
    run = checked(bench, ClusterConfig(n_clusters=6, **settings))
    _, note = run._clusterings()
    table = run.inputs.clusters.read_table("assignments-").sort_by("example_id")
    kept = [i for i in range(len(table)) if i < ROWS - COPIES]
    loss = schemas.matrix(run.inputs.trajectories.read_table("trajectories-").sort_by("example_id"), "loss")
    stratum = np.array(coded(table.column("stratum"))[1])[kept]
    label, feature = table.column("cluster_id").to_numpy()[kept], loss[kept][:, first:].astype(float)
    judged = [s for s in set(stratum) if len(set(label[stratum == s])) < (stratum == s).sum()]
    expected = np.concatenate([silhouette_samples(feature[stratum == s], label[stratum == s]) for s in judged])
    assert note["rows"] == len(kept)
    assert note["silhouette"] == pytest.approx(expected.mean())
    assert bool(note["prefixes"]) == (not settings)


def test_clusters_of_hidden_states_are_not_judged_by_losses(bench: Bench) -> None:
    run = checked(bench, ClusterConfig(n_clusters=6))
    states = DiagnoseSettings(0, ClusterConfig(n_clusters=6, features="hidden_state"), "fp32")
    records, note = replace(run, config=states)._clusterings()
    assert records == []
    assert (note["silhouette"], note["prefixes"]) == (None, [])
