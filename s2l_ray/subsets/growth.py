"""A subset before and after an extension: how many rows came to it, from which sources and clusters, and how like it.

They share no row, so what is told is the whole of both: the shares of sources and clusters before and after, and how
far the new rows are from those that the clusters were made of.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from s2l_ray.artifacts import Artifact
from s2l_ray.clustering.drift import Drift
from s2l_ray.input_files import shown
from s2l_ray.subsets.lineage import required
from s2l_ray.subsets.part import Part

_SHOWN = 10
"""Clusters that are listed for a person: those whose shares change most."""
_CLUSTER = ("stratum", "cluster_id")


def growth(subset: Artifact, extension: Artifact) -> dict[str, Any]:
    """Say what an extension adds to its subset.

    Raises:
        ArtifactError: a storage does not hold what one of them was made from.
    """
    before, added = Part.of(subset), Part.of(extension)
    assigned = required(added.lineage, "assignments", extension)
    clusters = required(added.lineage, "clusters", extension)
    pools = [_counted(artifact.read_table("assignments-", list(_CLUSTER))) for artifact in (clusters, assigned)]
    taken = [_counted(part.selection.select(_CLUSTER)) for part in (before, added)]
    sources = [_counted(part.selection.select(["source"])) for part in (before, added)]
    return {
        "subset": subset.storage.uri_of("subset", subset.manifest.fingerprint),
        "extension": extension.storage.uri_of("extension", extension.manifest.fingerprint),
        **_counts(before.selection.num_rows, added.selection.num_rows),
        **{f"pool_{when}": pool.total() for when, pool in zip(("before", "added"), pools, strict=True)},
        "rows_set_aside": assigned.summary["rows_set_aside"],
        "drift": assigned.summary["drift"],
        "by_source": [{"source": source, **shares} for (source,), shares in _shares(*sources)],
        "by_cluster": [
            {
                **dict(zip(_CLUSTER, cluster, strict=True)),
                "pool_before": pools[0][cluster],
                "pool_added": pools[1][cluster],
                **shares,
            }
            for cluster, shares in _shares(*taken)
        ],
    }


def _counted(table: pa.Table) -> Counter[tuple[Any, ...]]:
    groups = table.group_by(table.column_names).aggregate([([], "count_all")])
    counts = groups.column("count_all").to_pylist()
    keys = zip(*(groups.column(name).to_pylist() for name in table.column_names), strict=True)
    return Counter(dict(zip(keys, counts, strict=True)))


def _counts(before: int, added: int) -> dict[str, int]:
    return {"before": before, "added": added, "after": before + added}


def _shares(
    before: Counter[tuple[Any, ...]], added: Counter[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield for each group of rows how many it had and has, and its share of all rows before and after."""
    n_before, n_after = before.total(), before.total() + added.total()
    for group in sorted({*before, *added}, key=lambda values: [(v is not None, v) for v in values]):
        counts = _counts(before[group], added[group])
        shares = {"share_before": counts["before"] / n_before, "share_after": counts["after"] / n_after}
        yield group, counts | shares


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an extension adds, for a person to read."""
    yield f"subset {found['subset']}"
    yield f"topped up by {found['extension']}"
    yield f"rows: {found['before']}, and {found['added']} more: {found['after']}"
    yield f"rows in clusters to take from: {found['pool_before']}, and {found['pool_added']} more"
    for reason, count in found["rows_set_aside"].items():
        yield f"{count} new rows set aside: {reason}"
    if found["drift"] is not None:
        drift = Drift(**found["drift"])
        yield f"the new rows are {'not ' if drift.is_notable else ''}like the first pool: {drift.in_words}"
    for row in found["by_source"] if len(found["by_source"]) > 1 else ():
        yield _line(f"source {shown(row['source'] or '(none)')}", row)
    moved = sorted(found["by_cluster"], key=lambda row: -abs(row["share_after"] - row["share_before"]))
    yield f"{sum(row['added'] > 0 for row in moved)} of {len(moved)} clusters gave more rows"
    for row in moved[:_SHOWN]:
        stratum = f" of {shown(row['stratum'])}" if row["stratum"] else ""
        yield _line(f"cluster {row['cluster_id']}{stratum}", row)


def _line(label: str, row: Mapping[str, Any]) -> str:
    shares = f"{row['share_before']:.1%} of the rows before, {row['share_after']:.1%} after"
    return f"{label}: {row['before']}, and {row['added']} more; {shares}"
