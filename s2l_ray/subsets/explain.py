"""Why a row was taken or not, and what a cluster is: what the artifacts of an experiment say about one of either.

Only what is there is read; no stage runs. Arms may differ in anything, so everything is told for each distinct
clustering, with the arms that go by it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ConfigError
from s2l_ray.subsets.arms import Arm
from s2l_ray.subsets.one_row import (
    centroid_of,
    clustered,
    described,
    fate_of,
    find_row,
    is_in,
    place_and_texts,
    place_in_draw,
    without_tokens,
)

NEAREST, TAKEN = 5, 5
"""Rows of a cluster that are shown."""
_DRAWN_WITHIN_CLUSTERS = ("paper", "guarded", "embedding_kmeans")
"""Methods that take the rows of a cluster in the order of their draws."""

Arms = Mapping[str, Arm]


def explain_example(arms: Arms, asked: str) -> dict[str, Any]:
    """Say of a row what it is, how it was learned and clustered, and what each arm made of it.

    Args:
        arms: of the experiment.
        asked: its `example_id`, or `file:line` with lines counted from 1.

    Raises:
        ConfigError: an artifact is not there yet.
        DataError: there is no such row among those that may be selected.
    """
    first = next(iter(arms.values()))
    examples = first.need("examples")
    example_id = find_row(examples, asked, first.artifacts.get(first.held_out.key))
    of_arms = {name: arm for name, arm in arms.items() if arm.need("examples").digest == examples.digest}
    return {
        **described(examples, example_id),
        "clusterings": [
            {"arms": names, **_clustered(clusters, trajectories, example_id)}
            for clusters, trajectories, names in _clusterings(of_arms)
        ],
        "arms": {name: _fate(arm, example_id) for name, arm in of_arms.items()},
    }


def explain_cluster(arms: Arms, cluster_id: int, stratum: str | None) -> dict[str, Any]:
    """Say of a cluster how large it is, how it was learned, how many rows each arm took, and show some of them.

    Args:
        arms: of the experiment.
        cluster_id: its number, within its stratum.
        stratum: needed where several strata have such a cluster.

    Raises:
        ConfigError: an artifact is not there yet, no arm clusters, or there is no such cluster.
    """
    clusterings = list(_clusterings(arms))
    if not clusterings:
        raise ConfigError("no arm of this experiment clusters. Expected a select.method such as paper.")
    told = []
    for clusters, _, names in clusterings:
        centroid = centroid_of(clusters, cluster_id, stratum)
        features = clusters.manifest.config["settings"]["features"]
        told.append({"arms": names, "features": features, **centroid, **_members(arms, names[0], clusters, centroid)})
    return {"clusterings": told}


def _clusterings(arms: Arms) -> Iterator[tuple[Artifact, Artifact, list[str]]]:
    """Yield each distinct clustering, the trajectories behind it, and the arms that go by it."""
    names: dict[Artifact, list[str]] = {}
    trajectories: dict[Artifact, Artifact] = {}
    for name, arm in arms.items():
        clusters = arm.find("clusters")
        if clusters is not None:
            names.setdefault(clusters, []).append(name)
            trajectories[clusters] = arm.need("trajectories")
    for clusters, of in names.items():
        yield clusters, trajectories[clusters], of


def _clustered(clusters: Artifact, trajectories: Artifact, example_id: int) -> dict[str, Any]:
    told = clustered(example_id, trajectories, clusters)
    if clusters.files("set_aside-"):
        aside = clusters.read_examples("set_aside-", [example_id]).to_pylist()
        told["guard"] = f"{aside[0]['reason']}, ratio {aside[0]['ratio']:.3f}" if aside else "passed"
    return told


def _fate(arm: Arm, example_id: int) -> dict[str, Any]:
    """Say whether an arm took a row, and why."""
    clusters = arm.find("clusters")
    told = {"method": arm.config.select.method, **fate_of(example_id, arm.need("subset"), clusters)}
    if not told["taken"]:
        told["why"] = _why_not(arm, example_id, clusters, told["quota"])
    return told


def _why_not(arm: Arm, example_id: int, clusters: Artifact | None, quota: int | None) -> str:
    tokens = {model: arm.need(f"{model}_tokens") for model in ("target", "proxy")}
    lacking = without_tokens(example_id, tokens)
    if lacking is not None:
        return lacking
    if clusters is None:
        return "others rank before it"
    if quota is None:
        (aside,) = clusters.read_examples("set_aside-", [example_id]).to_pylist()
        return f"set aside by the guard: {aside['reason']}"
    if arm.config.select.method not in _DRAWN_WITHIN_CLUSTERS:
        return f"others rank before it; its cluster gave {quota}"
    place = place_in_draw(example_id, arm.need("examples"), clusters, tokens["target"], arm.subset.seed)
    return f"{place}, which gave {quota}"


def _members(arms: Arms, owner: str, clusters: Artifact, centroid: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many rows of a cluster each arm took, the rows nearest to its centroid, and the first ones taken."""
    examples = arms[owner].need("examples")
    rows = clusters.read_table("assignments-").filter(is_in(centroid))
    distances = dict(zip(rows.column("example_id").to_pylist(), rows.column("distance").to_pylist(), strict=True))
    ranks: dict[str, dict[int, int]] = {}
    for name, arm in arms.items():
        if arm.need("examples").digest == examples.digest:
            chosen = arm.need("subset").read_examples("subset.parquet", list(distances), ["example_id", "rank"])
            ranks[name] = dict(zip(*(chosen.column(c).to_pylist() for c in ("example_id", "rank")), strict=True))
    nearest = sorted(distances, key=lambda i: (distances[i], i))[:NEAREST]
    taken = sorted(ranks[owner], key=ranks[owner].__getitem__)[:TAKEN]
    texts = {row["example_id"]: row for row in examples.read_examples("examples-", [*nearest, *taken]).to_pylist()}

    def told(example_id: int) -> dict[str, Any]:
        return {
            **place_and_texts(texts[example_id]),
            "distance": distances[example_id],
            "rank": ranks[owner].get(example_id),
        }

    return {
        "taken": {name: len(of_arm) for name, of_arm in ranks.items()},
        "nearest": [told(i) for i in nearest],
        "first_taken": [told(i) for i in taken],
    }
