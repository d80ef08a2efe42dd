"""Why a row was taken or not, and what a cluster is: what the artifacts of an experiment say about one of either.

Only what is there is read; no stage runs. Arms may differ in anything, so everything is told for each distinct
clustering, with the arms that go by it.

Shape suffixes: N examples, M rows of a cluster, T checkpoints.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from s2l_ray.artifacts import Artifact
from s2l_ray.draws import Draws
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.input_files import listed, shown
from s2l_ray.subsets.arms import Arm
from s2l_ray.turns import LEARNED

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
    example_id = _find(first, examples, asked)
    (row,) = examples.read_examples("examples-", [example_id]).to_pylist()
    of_arms = {name: arm for name, arm in arms.items() if arm.need("examples").digest == examples.digest}
    return {
        **_place_and_texts(row),
        **{name: row[name] for name in ("user_id", "source", "skill")},
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
        centroid = _centroid(clusters, cluster_id, stratum)
        features = clusters.manifest.config["settings"]["features"]
        told.append({"arms": names, "features": features, **centroid, **_members(arms, names[0], clusters, centroid)})
    return {"clusterings": told}


def _find(arm: Arm, examples: Artifact, asked: str) -> int:
    """Return the id of a row.

    Raises:
        DataError: it is not among the examples; says what became of it where that is known.
    """
    wanted: pc.Expression
    if re.fullmatch(r"\d+", asked):
        wanted = pc.field("example_id") == int(asked)
    else:
        name, _, line = asked.rpartition(":")
        if not name or not re.fullmatch(r"[1-9]\d*", line):
            raise ConfigError(f"--example {asked!r}: expected an example_id, or file:line with lines counted from 1.")
        wanted = (pc.field("input_file") == name) & (pc.field("input_row") == int(line) - 1)
    columns = ["example_id", "input_file", "input_row"]
    found = examples.read_table("examples-", columns).filter(wanted)
    if found.num_rows:
        return int(found.column("example_id")[0].as_py())
    if ":" in asked:
        rejected = examples.read_table("rejected.parquet").filter(wanted).to_pylist()
        if rejected:
            raise DataError(f"{shown(asked)} was set aside as a bad row: {rejected[0]['reason']}")
    held_out = arm.artifacts.get(arm.held_out.key)
    if held_out is not None and held_out.read_table("examples-", columns).filter(wanted).num_rows:
        raise DataError(f"{shown(asked)} is held out: models are judged on it, and it is never selected.")
    files = pc.unique(examples.read_table("examples-", ["input_file"]).column("input_file")).to_pylist()
    raise DataError(f"there is no row {shown(asked)}. Expected an example_id, or file:line of {listed(files, 3)}.")


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
    told: dict[str, Any] = {"features": clusters.manifest.config["settings"]["features"]}
    for row in trajectories.read_examples("trajectories-", [example_id]).to_pylist():
        told |= {"loss_initial": row["loss_initial"], "loss": row["loss"]}
    for row in clusters.read_examples("assignments-", [example_id]).to_pylist():
        told |= {name: row[name] for name in ("stratum", "cluster_id", "distance")}
        told["size"] = _centroid(clusters, row["cluster_id"], row["stratum"])["size"]
    if clusters.files("set_aside.parquet"):
        aside = clusters.read_examples("set_aside.parquet", [example_id]).to_pylist()
        told["guard"] = f"{aside[0]['reason']}, ratio {aside[0]['ratio']:.3f}" if aside else "passed"
    return told


def _fate(arm: Arm, example_id: int) -> dict[str, Any]:
    """Say whether an arm took a row, and why."""
    subset = arm.need("subset")
    chosen = subset.read_table("subset.parquet")
    method, taken = arm.config.select.method, chosen.num_rows
    told: dict[str, Any] = {"method": method, "taken": False, "rows_taken": taken, "rank": None, "quota": None}
    for row in chosen.filter(pc.field("example_id") == example_id).to_pylist():
        told |= {"taken": True, "rank": row["rank"], "why": row["reason"]}
    clusters = arm.find("clusters")
    assigned = [] if clusters is None else clusters.read_examples("assignments-", [example_id]).to_pylist()
    if assigned:
        (own,) = assigned
        told["quota"] = chosen.filter(_is_in(own)).num_rows
    if not told["taken"]:
        told["why"] = _why_not(arm, example_id, bool(assigned), told["quota"])
    return told


def _why_not(arm: Arm, example_id: int, in_a_cluster: bool, quota: int | None) -> str:
    for model in ("target", "proxy"):
        if not arm.need(f"{model}_tokens").read_examples("tokens-", [example_id], ["example_id"]).num_rows:
            return f"no tokens for the {model}: nothing of its response fits, or it is like a held-out row"
    clusters = arm.find("clusters")
    if clusters is None:
        return "others rank before it"
    if not in_a_cluster:
        (aside,) = clusters.read_examples("set_aside.parquet", [example_id]).to_pylist()
        return f"set aside by the guard: {aside['reason']}"
    if arm.config.select.method not in _DRAWN_WITHIN_CLUSTERS:
        return f"others rank before it; its cluster gave {quota}"
    place, size = _place_in_draw(arm, clusters, example_id)
    return f"place {place} of {size} in the draw of its cluster, which gave {quota}"


def _place_in_draw(arm: Arm, clusters: Artifact, example_id: int) -> tuple[int, int]:
    """Return the place of a row, from 1, among those of its cluster that may be selected, and how many these are."""
    assigned = clusters.read_table("assignments-")
    (own,) = assigned.filter(pc.field("example_id") == example_id).to_pylist()
    id_M = assigned.filter(_is_in(own)).column("example_id").to_numpy()
    fitting = arm.need("target_tokens").read_examples("tokens-", id_M, ["example_id"])
    draws = Draws.of(arm.need("examples").read_table("examples-", list(Draws.COLUMNS)), arm.subset.seed)
    taken = draws.take(fitting.column("example_id").to_numpy())
    order = np.lexsort((taken.example_id_N, taken.draw_N))
    place = int(np.flatnonzero(taken.example_id_N[order] == example_id)[0])
    return place + 1, len(order)


def _centroid(clusters: Artifact, cluster_id: int, stratum: str | None) -> dict[str, Any]:
    table = clusters.read_table("centroids.parquet")
    found = table.filter(pc.field("cluster_id") == cluster_id).to_pylist()
    strata = [row["stratum"] for row in found]
    fitting = [row for row in found if stratum in (None, row["stratum"])]
    if len(fitting) == 1:
        return {name: fitting[0][name] for name in ("stratum", "cluster_id", "size", "centroid")}
    if fitting:
        names = ", ".join(shown(name) for name in strata[:20])
        raise ConfigError(f"{len(strata)} strata have a cluster {cluster_id}. Expected --stratum with one of {names}.")
    places = sorted(
        {(row["stratum"], row["cluster_id"]) for row in table.select(["stratum", "cluster_id"]).to_pylist()}
    )
    first = ", ".join(f"{number} of {shown(name)}" if name else str(number) for name, number in places[:5])
    of = "" if stratum is None else f" of the stratum {shown(stratum)}"
    raise ConfigError(
        f"there is no cluster {cluster_id}{of}. Expected --cluster, and --stratum where clusters have one, of the "
        f"{len(places)} there are: {first}, ..."
    )


def _members(arms: Arms, owner: str, clusters: Artifact, centroid: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many rows of a cluster each arm took, the rows nearest to its centroid, and the first ones taken."""
    examples = arms[owner].need("examples")
    rows = clusters.read_table("assignments-").filter(_is_in(centroid))
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
            **_place_and_texts(texts[example_id]),
            "distance": distances[example_id],
            "rank": ranks[owner].get(example_id),
        }

    return {
        "taken": {name: len(of_arm) for name, of_arm in ranks.items()},
        "nearest": [told(i) for i in nearest],
        "first_taken": [told(i) for i in taken],
    }


def _is_in(cluster: Mapping[str, Any]) -> pc.Expression:
    return (pc.field("stratum") == cluster["stratum"]) & (pc.field("cluster_id") == cluster["cluster_id"])


def _place_and_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a row of `examples` stands, and what is asked and answered in it."""
    return {
        "example_id": row["example_id"],
        "place": f"{row['input_file']}:{row['input_row'] + 1}",
        "prompt": " ".join(turn["content"] for turn in row["turns"] if turn["role"] not in LEARNED),
        "response": " ".join(turn["content"] for turn in row["turns"] if turn["role"] in LEARNED),
    }
