"""`clusters` and tokens -> `subset`: `subset.parquet` and `rows/`, the selected rows in the input's own format.

Every selector is a ranking of the pool (the rows that both models can be trained on); a budget takes a prefix of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, FileRecord, StagedOutput, StageResult
from s2l_ray.config import ResourcesConfig, SelectConfig
from s2l_ray.errors import DataError
from s2l_ray.examples import location
from s2l_ray.inputs import InputFile, check_unchanged, find_inputs
from s2l_ray.log import display
from s2l_ray.plan import SelectSettings
from s2l_ray.raw_rows import copy_rows
from s2l_ray.sampling import (
    balanced_rank,
    cluster_keys,
    draw_hash,
    occurrences,
    official_rank,
    order_of,
    parse_budget,
    random_per_source_rank,
    random_rank,
    rows_in_budget,
)

REASONS = {
    "paper": "even share of its cluster",
    "official": "even share of its source and cluster",
    "random": "drawn from all rows",
    "random_per_source": "even share of its source",
    "full": "every row",
}


@dataclass(frozen=True)
class Inputs:
    """The pool, and the clusters where the selector needs them."""

    examples: Artifact
    proxy_tokens: Artifact
    target_tokens: Artifact
    clusters: Artifact | None = None


@dataclass(frozen=True)
class Pool:
    """The rows to choose from, in order of id.

    Attributes:
        example_id_N: int64 [N].
        draw_N: uint64 [N].
        source_N: object [N], None where a row has no source.
        target_tokens_N: int64 [N], tokens of the whole example for the target.
        response_tokens_N: int64 [N], response tokens for the target.
        stratum_N: object [N], None without clusters.
        cluster_id_N: int32 [N], -1 without clusters.
    """

    example_id_N: NDArray[np.int64]
    draw_N: NDArray[np.uint64]
    source_N: NDArray[np.object_]
    target_tokens_N: NDArray[np.int64]
    response_tokens_N: NDArray[np.int64]
    stratum_N: NDArray[np.object_]
    cluster_id_N: NDArray[np.int32]


def select_subset(
    inputs: Inputs, config: SelectSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Rank the pool, take what the budget holds, and copy those rows out of the input.

    Raises:
        ConfigError: the budget does not fit the pool.
    """
    pool = _read_pool(inputs, seed)
    rank_N = _rank(pool, config.select)
    order = order_of(rank_N)
    budget = parse_budget(1.0 if config.select.method == "full" else config.select.budget)
    n_rows = rows_in_budget(budget, len(order), pool.target_tokens_N[order])
    chosen = np.sort(order[:n_rows])
    clustered = inputs.clusters is not None
    table = pa.table(
        {
            "example_id": pool.example_id_N[chosen],
            "stratum": pa.array(pool.stratum_N[chosen], pa.string()),
            "cluster_id": pa.array(pool.cluster_id_N[chosen], mask=np.full(len(chosen), not clustered)),
            "rank": rank_N[chosen],
            "reason": [REASONS[config.select.method]] * len(chosen),
        },
        schema=schemas.SUBSET,
    )
    pool_facts = {"rows_pool": len(order), "target_response_tokens_pool": int(pool.response_tokens_N.sum())}
    # In the file as well, so that the digest, and all that depends on it, follows the pool.
    schema = schemas.SUBSET.with_metadata({name: str(value) for name, value in pool_facts.items()})
    records = [output.write_parquet("subset.parquet", [table.cast(schema)], schema)]
    records += _copy_rows(inputs, config.files, pool.example_id_N[chosen], output)
    return StageResult(
        records,
        {
            "rows": len(chosen),
            **pool_facts,
            "target_tokens": int(pool.target_tokens_N[chosen].sum()),
            "target_response_tokens": int(pool.response_tokens_N[chosen].sum()),
            "rows_per_source": _counts(pool.source_N[chosen]),
        },
    )


def _read_pool(inputs: Inputs, seed: int) -> Pool:
    examples = inputs.examples.read_table("examples-", ["example_id", "content_hash", "source"]).sort_by("example_id")
    id_N = examples.column("example_id").to_numpy()
    hash_N = examples.column("content_hash").to_numpy()
    draw_N = draw_hash(hash_N, occurrences(hash_N, id_N), seed)
    lengths, responses, in_pool = _token_counts(inputs, id_N)
    stratum_N = np.full(len(id_N), None, dtype=object)
    cluster_id_N = np.full(len(id_N), -1, dtype=np.int32)
    if inputs.clusters is not None:
        table = inputs.clusters.read_table("assignments-", ["example_id", "stratum", "cluster_id"])
        position = np.searchsorted(id_N, table.column("example_id").to_numpy())
        stratum_N[position] = table.column("stratum").to_numpy(zero_copy_only=False)
        cluster_id_N[position] = table.column("cluster_id").to_numpy()
        in_pool &= cluster_id_N >= 0
    source_N = examples.column("source").to_numpy(zero_copy_only=False).astype(object)
    keep = np.flatnonzero(in_pool)
    if not len(keep):
        raise DataError("no row has response tokens for both proxy and target. Raise tokens.max_tokens.")
    return Pool(
        id_N[keep], draw_N[keep], source_N[keep], lengths[keep], responses[keep], stratum_N[keep], cluster_id_N[keep]
    )


def _token_counts(
    inputs: Inputs, id_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    import pyarrow.compute as pc

    lengths, responses = np.zeros(len(id_N), np.int64), np.zeros(len(id_N), np.int64)
    in_pool = np.zeros(len(id_N), bool)
    for record in inputs.target_tokens.files("tokens-"):
        table = inputs.target_tokens.read_rows(record, columns=["example_id", "input_ids", "num_response_tokens"])
        position = np.searchsorted(id_N, table.column("example_id").to_numpy())
        lengths[position] = pc.list_value_length(table.column("input_ids")).to_numpy()
        responses[position] = table.column("num_response_tokens").to_numpy()
        in_pool[position] = True
    if inputs.proxy_tokens != inputs.target_tokens:
        readable = np.zeros(len(id_N), bool)
        ids = inputs.proxy_tokens.read_table("tokens-", ["example_id"]).column("example_id").to_numpy()
        readable[np.searchsorted(id_N, ids)] = True
        in_pool &= readable
    return lengths, responses, in_pool


def _rank(pool: Pool, select: SelectConfig) -> NDArray[np.int64]:
    match select.method:
        case "paper":
            keys = cluster_keys(pool.stratum_N, pool.cluster_id_N)
            return balanced_rank(keys, pool.draw_N, pool.example_id_N, select.quota_exponent)
        case "official":
            return official_rank(pool.source_N, pool.cluster_id_N, pool.draw_N, pool.example_id_N)
        case "random_per_source":
            return random_per_source_rank(pool.source_N, pool.draw_N, pool.example_id_N)
        case "random" | "full":
            return random_rank(pool.draw_N, pool.example_id_N)


def _copy_rows(
    inputs: Inputs, files: tuple[InputFile, ...], ids: NDArray[np.int64], output: StagedOutput
) -> list[FileRecord]:
    if not files:
        files = find_inputs(inputs.examples.uri_of(schemas.SYNTHETIC_INPUT), key="examples.synthetic")
    by_file: dict[int, list[int]] = {}
    for example_id in ids.tolist():
        index, row = location(example_id)
        by_file.setdefault(index, []).append(row)
    records = []
    with display.progress("copy selected rows", len(ids), "rows") as progress:
        for index, rows in sorted(by_file.items()):
            check_unchanged(files[index])
            with output.open(f"rows/{files[index].name}") as sink:
                copied = copy_rows(files[index], rows, cast(BinaryIO, sink))
            check_unchanged(files[index])
            records.append(sink.record(copied))
            progress.advance(len(rows))
    return records


def _counts(values: NDArray[np.object_]) -> Mapping[str, int]:
    names, counts = np.unique([v or "" for v in values], return_counts=True)
    found: dict[str, Any] = dict(zip(names.tolist(), counts.tolist(), strict=True))
    return found
