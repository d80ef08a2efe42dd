"""What artifacts hold of one row, and of the cluster that it is in.

Shape suffixes: M rows of a cluster.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from s2l_ray.artifacts import Artifact
from s2l_ray.draws import Draws
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.input_files import listed, shown
from s2l_ray.turns import LEARNED

_PLACE = ["example_id", "input_file", "input_row", "user_id"]
_LARGEST = 2**63 - 1
"""No row has this number, or a larger one."""


def find_row(examples: Artifact, asked: str, held_out: Artifact | None = None) -> int:
    """Return the id of a row.

    Args:
        examples: that it is sought in.
        asked: its `example_id`, `file:line` with lines counted from 1, or the id that the data give it.
        held_out: where it may be instead.

    Raises:
        ConfigError: it names no row.
        DataError: it is not among the examples; says what became of it where that is known.
    """
    table = examples.read_table("examples-", _PLACE)
    name, _, line = asked.rpartition(":")
    is_place = bool(name and re.fullmatch(r"[1-9]\d*", line))
    by_user = pc.field("user_id") == asked
    if is_place:
        wanted = (pc.field("input_file") == name) & (pc.field("input_row") == min(int(line) - 1, _LARGEST))
    elif re.fullmatch(r"\d+", asked):
        wanted = pc.field("example_id") == min(int(asked), _LARGEST)
    elif table.column("user_id").null_count < len(table):
        wanted = by_user
    else:
        raise ConfigError(f"--example {asked!r}: expected an example_id, or file:line with lines counted from 1.")
    for way in (wanted, by_user):  # an id of theirs may look like one of ours
        if (found := table.filter(way)).num_rows:
            return int(found.column("example_id")[0].as_py())
    if is_place:
        rejected = examples.read_table("rejected.parquet").filter(wanted).to_pylist()
        if rejected:
            raise DataError(f"{shown(asked)} was set aside as a bad row: {rejected[0]['reason']}")
    if held_out is not None and held_out.read_table("examples-", _PLACE).filter(wanted | by_user).num_rows:
        raise DataError(f"{shown(asked)} is held out: models are judged on it, and it is never selected.")
    files = pc.unique(examples.read_table("examples-", ["input_file"]).column("input_file")).to_pylist()
    raise DataError(
        f"there is no row {shown(asked)}. Expected an example_id, or file:line of {listed(files, 3)}; for a row that "
        "came later, give the folder of its extension in place of the config."
    )


def place_and_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a row of `examples` stands, and what is asked and answered in it."""
    return {
        "example_id": row["example_id"],
        "place": f"{row['input_file']}:{row['input_row'] + 1}",
        "prompt": " ".join(turn["content"] for turn in row["turns"] if turn["role"] not in LEARNED),
        "response": " ".join(turn["content"] for turn in row["turns"] if turn["role"] in LEARNED),
    }


def described(examples: Artifact, example_id: int) -> dict[str, Any]:
    """Return what a row is."""
    (row,) = examples.read_examples("examples-", [example_id]).to_pylist()
    return {**place_and_texts(row), **{name: row[name] for name in ("user_id", "source", "skill")}}


def clustered(
    example_id: int, trajectories: Artifact, assigned: Artifact, clusters: Artifact | None = None
) -> dict[str, Any]:
    """Return how a row was learned, and which cluster it is in.

    Args:
        example_id: of the row.
        trajectories: of its pool.
        assigned: `clusters`, or `assignments` to them.
        clusters: that are joined, where `assigned` says to which.
    """
    told: dict[str, Any] = {"features": assigned.manifest.config["settings"]["features"]}
    for row in trajectories.read_examples("trajectories-", [example_id]).to_pylist():
        told |= {"loss_initial": row["loss_initial"], "loss": row["loss"]}
    for row in assigned.read_examples("assignments-", [example_id]).to_pylist():
        told |= {name: row[name] for name in ("stratum", "cluster_id", "distance")}
        told["size"] = centroid_of(clusters or assigned, row["cluster_id"], row["stratum"])["size"]
    return told


def place_in_draw(example_id: int, examples: Artifact, assigned: Artifact, tokens: Artifact, seed: int) -> str:
    """Say where a row comes in the draw of its cluster.

    Args:
        example_id: of a row that is in a cluster.
        examples: of its pool.
        assigned: which cluster each of them is in.
        tokens: of those that may be selected, for the target.
        seed: of the draw.
    """
    table = assigned.read_table("assignments-")
    (own,) = table.filter(pc.field("example_id") == example_id).to_pylist()
    id_M = table.filter(is_in(own)).column("example_id").to_numpy()
    fitting = tokens.read_examples("tokens-", id_M, ["example_id"])
    draws = Draws.of(examples.read_table("examples-", list(Draws.COLUMNS)), seed)
    taken = draws.take(fitting.column("example_id").to_numpy())
    order = np.lexsort((taken.example_id_N, taken.draw_N))
    place = int(np.flatnonzero(taken.example_id_N[order] == example_id)[0])
    return f"place {place + 1} of {len(order)} in the draw of its cluster"


def centroid_of(clusters: Artifact, cluster_id: int, stratum: str | None) -> dict[str, Any]:
    """Return a cluster's stratum, number, size and centroid.

    Args:
        clusters: that it is one of.
        cluster_id: its number, within its stratum.
        stratum: needed where several strata have such a cluster.

    Raises:
        ConfigError: there is none, or there are several.
    """
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


def is_in(cluster: Mapping[str, Any]) -> pc.Expression:
    """Return what is true of the rows of a cluster."""
    return (pc.field("stratum") == cluster["stratum"]) & (pc.field("cluster_id") == cluster["cluster_id"])


def fate_of(example_id: int, chosen: Artifact, assigned: Artifact | None) -> dict[str, Any]:
    """Say whether a row is among the chosen ones, and how many of its cluster are; where it is not, not why."""
    table = chosen.read_table("subset.parquet")
    told: dict[str, Any] = {"taken": False, "rows_taken": table.num_rows, "rank": None, "quota": None}
    for row in table.filter(pc.field("example_id") == example_id).to_pylist():
        told |= {"taken": True, "rank": row["rank"], "why": row["reason"]}
    for own in [] if assigned is None else assigned.read_examples("assignments-", [example_id]).to_pylist():
        told["quota"] = table.filter(is_in(own)).num_rows
    return told


def without_tokens(example_id: int, tokens: Mapping[str, Artifact]) -> str | None:
    """Say which model cannot be trained on a row; None where each can.

    Args:
        example_id: of the row.
        tokens: by model.
    """
    for model, artifact in tokens.items():
        if not artifact.read_examples("tokens-", [example_id], ["example_id"]).num_rows:
            return f"no tokens for the {model}: nothing of its response fits, or it is like a held-out row"
    return None
