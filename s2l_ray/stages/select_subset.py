"""`clusters` and tokens -> `subset`: `subset.parquet` and `rows/`, the selected rows in the input's own format.

Every selector is a ranking of the pool (the rows that both models can be trained on); a budget takes a prefix of it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.attempts import StagedOutput
from s2l_ray.budgets import parse_budget, rows_in_budget
from s2l_ray.config import ResourcesConfig, SelectConfig
from s2l_ray.draws import Draws
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.examples import location
from s2l_ray.facility_location import facility_location_rank
from s2l_ray.input_files import InputFile, check_unchanged
from s2l_ray.inputs import find_inputs
from s2l_ray.labels import NONE, coded, labelled
from s2l_ray.log import display
from s2l_ray.raw_rows import copy_rows
from s2l_ray.sampling import (
    Earlier,
    ScoredMethod,
    balanced_rank,
    cluster_keys,
    official_rank,
    order_of,
    random_per_source_rank,
    random_rank,
    score_rank,
    selection_score,
)
from s2l_ray.stage_settings import SelectSettings

REASONS = {
    "paper": "even share of its cluster",
    "official": "even share of its source and cluster",
    "guarded": "share of its cluster, after the guard",
    "embedding_kmeans": "even share of its cluster of hidden states",
    "random": "drawn from all rows",
    "random_per_source": "even share of its source",
    "full": "every row",
    "longest": "long response",
    "least_confidence": "high loss after training",
    "middle_perplexity": "perplexity near the median",
    "high_learnability": "large drop of the loss",
    "curriculum": "low loss after training",
    "facility_location": "hidden state unlike those taken before",
}


@dataclass(frozen=True)
class Inputs:
    """The pool, and what the selector goes by."""

    examples: Artifact
    proxy_tokens: Artifact
    target_tokens: Artifact
    clusters: Artifact | None = None
    trajectories: Artifact | None = None
    hidden_states: Artifact | None = None
    assignments: Artifact | None = None
    """Of rows that came later: how they join `clusters`, and what was taken of these before."""
    subset: Artifact | None = None

    @property
    def assigned(self) -> Artifact | None:
        """What says which cluster each row is in."""
        return self.assignments or self.clusters


@dataclass(frozen=True)
class Names:
    """What the numbers of sources and strata stand for."""

    sources: list[str]
    strata: list[str]


@dataclass(frozen=True)
class Pool:
    """The rows to choose from, in order of id.

    Attributes:
        example_id_N: int64 [N].
        draw_N: uint64 [N].
        source_N: int32 [N], number of its source, -1 where a row has none.
        target_tokens_N: int32 [N], tokens of the whole example for the target.
        response_tokens_N: int32 [N], response tokens for the target.
        stratum_N: int32 [N], number of its stratum, -1 where a row is in no cluster.
        cluster_id_N: int32 [N], -1 where a row is in no cluster.
    """

    example_id_N: NDArray[np.int64]
    draw_N: NDArray[np.uint64]
    source_N: NDArray[np.int32]
    target_tokens_N: NDArray[np.int32]
    response_tokens_N: NDArray[np.int32]
    stratum_N: NDArray[np.int32]
    cluster_id_N: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.example_id_N)

    def where(self, mask_N: NDArray[np.bool_]) -> "Pool":
        """Return some of the rows; where they are all of them, without a copy."""
        if mask_N.all():
            return self
        return Pool(*(getattr(self, field.name)[mask_N] for field in fields(self)))


def select_subset(
    inputs: Inputs, config: SelectSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Rank the pool, take what the budget holds, and copy those rows out of the input.

    Raises:
        ConfigError: the budget does not fit the pool, or what the guard leaves of it.
    """
    pool, names = _read_pool(inputs, seed)
    # The guard keeps rows of the pool out of the clusters, and later rows may have none to join.
    candidates = pool if inputs.assigned is None else pool.where(pool.cluster_id_N >= 0)
    budget = parse_budget(1.0 if config.select.method == "full" else config.select.budget)
    n_wanted = None if budget.kind == "tokens" else rows_in_budget(budget, len(pool))
    _check_left(n_wanted, len(pool), len(candidates))
    rank_N = _rank(candidates, names, config.select, inputs, len(candidates) if n_wanted is None else n_wanted)
    order = order_of(rank_N)
    n_rows = n_wanted or rows_in_budget(budget, len(candidates), candidates.target_tokens_N[order])
    taken = np.zeros(len(candidates), bool)
    taken[order[:n_rows]] = True
    chosen = candidates.where(taken)
    table = pa.table(
        {
            "example_id": chosen.example_id_N,
            "stratum": labelled(chosen.stratum_N, names.strata),
            "cluster_id": pa.array(chosen.cluster_id_N, mask=chosen.cluster_id_N < 0),
            "rank": rank_N[taken],
            "reason": [REASONS[config.select.method]] * len(chosen),
        },
        schema=schemas.SUBSET,
    )
    pool_facts = {"rows_pool": len(pool), "target_response_tokens_pool": int(pool.response_tokens_N.sum())}
    # In the file as well, so that the digest, and all that depends on it, follows the pool.
    schema = schemas.SUBSET.with_metadata({name: str(value) for name, value in pool_facts.items()})
    records = [output.write_parquet("subset.parquet", [table.cast(schema)], schema)]
    records += _copy_rows(inputs, config.files, chosen.example_id_N, output)
    return StageResult(
        records,
        {
            "rows": len(chosen),
            **pool_facts,
            "rows_set_aside": len(pool) - len(candidates),
            "target_tokens": int(chosen.target_tokens_N.sum()),
            "target_response_tokens": int(chosen.response_tokens_N.sum()),
            "rows_per_source": _counts(chosen.source_N, names.sources),
        },
    )


def _check_left(n_wanted: int | None, n_pool: int, n_left: int) -> None:
    if n_wanted is not None and n_wanted > n_left:
        raise ConfigError(
            f"the budget asks for {n_wanted} of {n_pool} rows, but {n_pool - n_left} were set aside and {n_left} are "
            f"left. Lower it to {n_left} rows or less, or, where the guard set rows aside, set cluster.guard to null."
        )


def _read_pool(inputs: Inputs, seed: int) -> tuple[Pool, Names]:
    draws = Draws.of(inputs.examples.read_table("examples-", list(Draws.COLUMNS)), seed)
    id_N, draw_N = draws.example_id_N, draws.draw_N
    del draws  # and with it the hashes: of each row there are only so many numbers at once
    lengths, responses, in_pool = _token_counts(inputs, id_N)
    strata, stratum_N = list[str](), np.full(len(id_N), NONE, dtype=np.int32)
    cluster_id_N = np.full(len(id_N), -1, dtype=np.int32)
    if inputs.assigned is not None:
        table = inputs.assigned.read_table("assignments-", ["example_id", "stratum", "cluster_id"])
        position = np.searchsorted(id_N, table.column("example_id").to_numpy())
        strata, stratum_N[position] = coded(table.column("stratum"))
        cluster_id_N[position] = table.column("cluster_id").to_numpy()
    sources, source_N = coded(inputs.examples.read_in_order("examples-", ["example_id", "source"]).column("source"))
    if not in_pool.any():
        raise DataError("no row has response tokens for both proxy and target. Raise tokens.max_tokens.")
    pool = Pool(id_N, draw_N, source_N, lengths, responses, stratum_N, cluster_id_N)
    return pool.where(in_pool), Names(sources, strata)


def _token_counts(
    inputs: Inputs, id_N: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    import pyarrow.compute as pc

    lengths, responses = np.zeros(len(id_N), np.int32), np.zeros(len(id_N), np.int32)
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


def _rank(pool: Pool, names: Names, select: SelectConfig, inputs: Inputs, n_wanted: int) -> NDArray[np.int64]:
    draw_N, tie_N = pool.draw_N, pool.example_id_N
    match select.method:
        case "paper" | "guarded" | "embedding_kmeans":
            cluster_N = cluster_keys(pool.stratum_N, pool.cluster_id_N)
            return balanced_rank(cluster_N, draw_N, tie_N, select.quota_exponent or 0.0, _earlier(pool, names, inputs))
        case "official":
            return official_rank(pool.source_N, pool.cluster_id_N, draw_N, tie_N)
        case "random_per_source":
            return random_per_source_rank(pool.source_N, draw_N, tie_N)
        case "random" | "full":
            return random_rank(draw_N, tie_N)
        case "facility_location":
            return _facility_location_rank(pool, inputs, n_wanted)
        case _:
            return score_rank(_score(pool, select.method, inputs), draw_N, tie_N)


def _earlier(pool: Pool, names: Names, inputs: Inputs) -> Earlier | None:
    """Count what each row's cluster held and gave before the rows came."""
    if inputs.clusters is None or inputs.subset is None:
        return None
    stratum_N = np.array([*names.strata, None], dtype=object)[pool.stratum_N]
    counts = []
    for artifact, prefix in ((inputs.clusters, "assignments-"), (inputs.subset, "subset.parquet")):
        table = artifact.read_table(prefix, ["stratum", "cluster_id"])
        strata = np.concatenate([stratum_N, table.column("stratum").to_numpy(zero_copy_only=False)])
        key_N = cluster_keys(strata, np.concatenate([pool.cluster_id_N, table.column("cluster_id").to_numpy()]))
        earlier_K = np.bincount(key_N[len(pool) :], minlength=int(key_N.max()) + 1)
        counts.append(earlier_K[key_N[: len(pool)]])
    return Earlier(*counts)


def _score(pool: Pool, method: ScoredMethod, inputs: Inputs) -> NDArray[np.float64]:
    initial_N = last_N = np.zeros(len(pool), np.float32)
    if inputs.trajectories is not None:
        table = inputs.trajectories.read_in_order("trajectories-", ["example_id", "loss_initial", "loss"])
        place_N = np.searchsorted(table.column("example_id").to_numpy(), pool.example_id_N)
        initial_N = table.column("loss_initial").to_numpy()[place_N]
        last_N = schemas.matrix(table, "loss")[place_N, -1]
    return selection_score(
        method, loss_initial_N=initial_N, loss_last_N=last_N, response_tokens_N=pool.response_tokens_N
    )


def _facility_location_rank(pool: Pool, inputs: Inputs, n_wanted: int) -> NDArray[np.int64]:
    assert inputs.hidden_states is not None
    example_id_N, hidden_ND = inputs.hidden_states.read_matrix("hidden_states-", "hidden_state")
    place_N = np.searchsorted(example_id_N, pool.example_id_N)
    if len(place_N) < len(example_id_N):
        hidden_ND = hidden_ND[place_N]
    with display.progress("facility location", n_wanted, "rows") as progress:
        return facility_location_rank(hidden_ND, pool.draw_N, pool.example_id_N, n_wanted, on_progress=progress.update)


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


def _counts(code_N: NDArray[np.int32], names: list[str]) -> Mapping[str, int]:
    # Rows without a source are the last.
    count_S = np.bincount(code_N % (len(names) + 1), minlength=len(names) + 1)
    counts: Counter[str] = Counter()
    for name, count in zip([*names, ""], count_S.tolist(), strict=True):
        counts[name] += count
    return {name: count for name, count in sorted(counts.items()) if count}
