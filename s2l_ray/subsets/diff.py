"""Two subsets beside each other: which rows they share, and what was set otherwise.

`growth` tells what a subset and an extension of it are to each other. Rows are told apart by their id where both
subsets were chosen from the same examples, and by their content where they were not: copies of one content are then
numbered within each subset, so that two of them match two of them. Never by position.

Shape suffixes: N rows of one subset, C rows of both.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.artifacts import Artifact
from s2l_ray.draws import occurrences
from s2l_ray.input_files import shown
from s2l_ray.log import redacted
from s2l_ray.subsets.lineage import lineage, required
from s2l_ray.subsets.provenance import Lineage

FEWEST_RANKED = 3
"""Common rows below which their ranks are not compared."""
_SHOWN = 10
"""Clusters that are listed for a person: those whose shares differ most."""

Key = Hashable
"""What tells a row from others in both subsets."""
Rows = Mapping[Key, Mapping[str, Any]]


def compare(a: Artifact, b: Artifact) -> dict[str, Any]:
    """Compare two subsets, two extensions, or a subset with an extension of another.

    Raises:
        ArtifactError: a storage does not hold the examples that a subset was chosen from.
    """
    of_a, of_b = lineage(a), lineage(b)
    examples_a, examples_b = required(of_a, "examples", a), required(of_b, "examples", b)
    same_examples = examples_a.digest == examples_b.digest
    rows_a, rows_b = _rows(a, examples_a, same_examples), _rows(b, examples_b, same_examples)
    common = rows_a.keys() & rows_b.keys()
    clusters = {of["clusters"].digest if "clusters" in of else None for of in (of_a, of_b)}
    same_clusters = len(clusters) == 1 and None not in clusters
    return {
        "a": a.storage.uri_of(a.manifest.artifact, a.manifest.fingerprint),
        "b": b.storage.uri_of(b.manifest.artifact, b.manifest.fingerprint),
        "matched_by": "example_id" if same_examples else "content",
        **_overlap(len(common), len(rows_a), len(rows_b)),
        "rank_correlation": _rank_correlation(rows_a, rows_b),
        "by_source": _by(rows_a, rows_b, ("source",)),
        "by_stratum": _by(rows_a, rows_b, ("stratum",)) if same_clusters else None,
        "by_cluster": _by(rows_a, rows_b, ("stratum", "cluster_id")) if same_clusters else None,
        "settings": list(_differences(a, b, of_a, of_b)),
    }


def rank_correlation(rank_a_C: NDArray[Any], rank_b_C: NDArray[Any]) -> float | None:
    """Return Spearman's correlation of two rankings of the same rows, each without ties.

    Args:
        rank_a_C: ranks in one subset.
        rank_b_C: ranks of the same rows in the other.

    Returns:
        -1 to 1; None for fewer than `FEWEST_RANKED` rows.
    """
    n = len(rank_a_C)
    if n < FEWEST_RANKED:
        return None
    place_a_C, place_b_C = (np.argsort(np.argsort(rank_C)).astype(np.float64) for rank_C in (rank_a_C, rank_b_C))
    return float(1 - 6 * ((place_a_C - place_b_C) ** 2).sum() / (n * (n**2 - 1)))


def _rows(subset: Artifact, examples: Artifact, by_id: bool) -> Rows:
    chosen = subset.read_in_order("subset.parquet")
    id_N = chosen.column("example_id").to_numpy()
    told = examples.read_examples("examples-", id_N, ["example_id", "content_hash", "source"])
    hash_N = told.column("content_hash").to_numpy()
    keys = id_N.tolist() if by_id else zip(hash_N.tolist(), occurrences(hash_N, id_N).tolist(), strict=True)
    sources = told.column("source").to_pylist()
    return {key: {**row, "source": source} for key, row, source in zip(keys, chosen.to_pylist(), sources, strict=True)}


def _overlap(both: int, of_a: int, of_b: int) -> dict[str, Any]:
    return {
        "both": both,
        "only_a": of_a - both,
        "only_b": of_b - both,
        "jaccard": both / (of_a + of_b - both),
    }


def _by(rows_a: Rows, rows_b: Rows, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the overlap within each group of rows; a row of both counts where A says that it belongs."""

    def group(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column] for column in columns)

    both = Counter(group(row) for key, row in rows_a.items() if key in rows_b)
    only_a = Counter(group(row) for key, row in rows_a.items() if key not in rows_b)
    only_b = Counter(group(row) for key, row in rows_b.items() if key not in rows_a)
    groups = sorted({*both, *only_a, *only_b}, key=lambda values: [(v is not None, v) for v in values])
    return [
        {
            **dict(zip(columns, values, strict=True)),
            **_overlap(both[values], both[values] + only_a[values], both[values] + only_b[values]),
        }
        for values in groups
    ]


def _rank_correlation(rows_a: Rows, rows_b: Rows) -> float | None:
    ranks = np.array([(row["rank"], rows_b[key]["rank"]) for key, row in rows_a.items() if key in rows_b])
    return rank_correlation(ranks[:, 0], ranks[:, 1]) if len(ranks) else None


def _differences(a: Artifact, b: Artifact, of_a: Lineage, of_b: Lineage) -> Iterator[dict[str, Any]]:
    """Yield what was set otherwise anywhere on the way, and what came out otherwise though nothing was."""
    for role, one, other in [
        (a.manifest.artifact, a, b),
        *((r, of_a.get(r), of_b.get(r)) for r in sorted({*of_a, *of_b})),
    ]:
        if one is None or other is None:
            yield {"artifact": role, "setting": None, "a": _presence(one), "b": _presence(other)}
            continue
        settings_a, settings_b = (dict(_flat(redacted(artifact.manifest.config))) for artifact in (one, other))
        differing = [
            name
            for name in dict.fromkeys([*settings_a, *settings_b])
            if settings_a.get(name, ...) != settings_b.get(name, ...)
        ]
        for name in differing:
            yield {"artifact": role, "setting": name, "a": settings_a.get(name), "b": settings_b.get(name)}
        if not differing and one.manifest.inputs == other.manifest.inputs and one.digest != other.digest:
            yield {"artifact": role, "setting": None, "a": one.digest, "b": other.digest}


def _presence(artifact: Artifact | None) -> str | None:
    return None if artifact is None else artifact.digest


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}".removeprefix(".").removeprefix("settings."))
    else:
        yield name, value


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a comparison for a person to read."""
    yield f"A {found['a']}"
    yield f"B {found['b']}"
    if found["matched_by"] == "content":
        yield "They were chosen from different examples: rows are matched by their content."
    yield _overlap_line("rows", found)
    correlation = found["rank_correlation"]
    yield f"rank correlation of the common rows: {'-' if correlation is None else f'{correlation:.3f}'}"
    for row in found["by_source"] if len(found["by_source"]) > 1 else ():
        yield _overlap_line(f"source {shown(row['source'] or '(none)')}", row)
    if found["by_cluster"] is None:
        yield "They were not clustered alike: clusters are not compared."
    else:
        for row in found["by_stratum"] if len(found["by_stratum"]) > 1 else ():
            yield _overlap_line(f"stratum {shown(row['stratum'])}", row)
        yield from _cluster_lines(found["by_cluster"])
    if not found["settings"]:
        yield "nothing was set otherwise"
    for difference in found["settings"]:
        yield _difference_line(difference)


def _overlap_line(label: str, row: Mapping[str, Any]) -> str:
    return (
        f"{label}: {row['both']} in both, {row['only_a']} only in A, {row['only_b']} only in B, "
        f"Jaccard {row['jaccard']:.3f}"
    )


def _cluster_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    differing = [row for row in rows if row["only_a"] or row["only_b"]]
    yield f"{len(rows) - len(differing)} of {len(rows)} clusters gave the same rows"
    for row in sorted(differing, key=lambda row: -row["only_a"] - row["only_b"])[:_SHOWN]:
        stratum = f" of {shown(row['stratum'])}" if row["stratum"] else ""
        yield _overlap_line(f"cluster {row['cluster_id']}{stratum}", row)


def _difference_line(difference: Mapping[str, Any]) -> str:
    role, a, b = difference["artifact"], difference["a"], difference["b"]
    if difference["setting"] is not None:
        return f"{role}: {difference['setting']} is {a!r} in A, {b!r} in B"
    if a is None or b is None:
        return f"{role}: only the storage of {'B' if a is None else 'A'} holds one that it was made from"
    return f"{role}: the same settings and inputs, and other bytes"
