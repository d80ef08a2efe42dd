"""`clusters` and tokens -> `subset`: `subset.parquet` and `rows/`, the selected rows in the input's own format.

Every selector is a ranking of the pool (the rows that both models can be trained on); a budget takes a prefix of it.
Where the ranking is one of draws within groups, only rows that the prefix can hold reach the driver: it grows with the
subset and not with the pool.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.budgets import Budget, parse_budget, rows_in_budget
from s2l_ray.config import PoolResources, ResourcesConfig, SelectConfig
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.examples import locations
from s2l_ray.input_files import InputFile, check_unchanged
from s2l_ray.inputs import find_inputs
from s2l_ray.labels import labelled
from s2l_ray.log import display
from s2l_ray.raw_rows import copy_rows
from s2l_ray.sampling import order_of
from s2l_ray.stage_settings import SelectSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.blocks import each
from s2l_ray.stages.candidates import Before, Candidates, fetch_candidates
from s2l_ray.stages.pool_blocks import PoolBlocks, read_pool
from s2l_ray.stages.selectors import Selector, selector_of
from s2l_ray.stages.shared_storage import check_sign, leave_sign

TOKENS_MARGIN = 1.1
"""How many rows more than the mean length says are looked at for a budget in tokens."""


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


def select_subset(
    inputs: Inputs, config: SelectSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Rank the pool, take what the budget holds, and copy those rows out of the input.

    Raises:
        ConfigError: the budget does not fit the pool, or what the guard leaves of it.
    """
    workers, tokens = resources.cluster_trajectories, (inputs.proxy_tokens, inputs.target_tokens)
    leave_sign(output)
    pool = read_pool(inputs.examples, *tokens, inputs.assigned, workers, output, seed=seed)
    if not pool.rows_pool:
        raise DataError("no row has response tokens for both proxy and target. Raise tokens.max_tokens.")
    before = Before.of(inputs.clusters, inputs.subset) if inputs.clusters and inputs.subset else None
    selector = selector_of(config.select, inputs.trajectories, inputs.hidden_states)
    ranking = _Ranking(pool, selector, before, inputs.assignments)
    candidates, rank_N, n_rows = ranking.to(parse_budget(_budget(config.select)))
    taken = np.sort(order_of(rank_N)[:n_rows])
    chosen, cluster_id_M = candidates.rows.take(taken), candidates.cluster_id_N[taken]
    table = pa.table(
        {
            "example_id": chosen.example_id,
            "stratum": labelled(candidates.stratum_N[taken], candidates.groups.strata),
            "cluster_id": pa.array(cluster_id_M, mask=cluster_id_M < 0),
            "rank": rank_N[taken],
            "reason": pa.repeat(selector.reason, n_rows),
        },
        schema=schemas.SUBSET,
    )
    pool_facts = {"rows_pool": pool.rows_pool, "target_response_tokens_pool": pool.response_tokens_pool}
    # In the file as well, so that the digest, and all that depends on it, follows the pool.
    schema = schemas.SUBSET.with_metadata({name: str(value) for name, value in pool_facts.items()})
    records = [output.write_parquet("subset.parquet", [table.cast(schema)], schema)]
    records += _copy_rows(inputs, config.files, chosen.example_id, workers, output)
    return StageResult(
        records,
        {
            "rows": n_rows,
            **pool_facts,
            "rows_set_aside": pool.rows_pool - pool.rows_left,
            "target_tokens": int(chosen.target_tokens.sum()),
            "target_response_tokens": int(chosen.response_tokens.sum()),
            "rows_per_source": _counts(candidates.source_N[taken], candidates.groups.sources),
        },
    )


def _budget(select: SelectConfig) -> int | float | str:
    return 1.0 if select.method == "full" else select.budget


@dataclass(frozen=True)
class _Ranking:
    """The pool as a selector orders it, of which only the first rows are worked out."""

    pool: PoolBlocks
    selector: Selector
    before: Before | None
    assignments: Artifact | None

    def to(self, budget: Budget) -> tuple[Candidates, NDArray[np.int64], int]:
        """Return rows, their rank, and how many of the first the budget takes.

        Raises:
            ConfigError: the budget does not fit what is left of the pool.
        """
        if budget.kind == "tokens":
            return self._to_tokens(budget)
        n_rows = rows_in_budget(budget, self.pool.rows_pool)
        _check_left(n_rows, self.pool, self.assignments)
        return *self.first(n_rows), n_rows

    def _to_tokens(self, budget: Budget) -> tuple[Candidates, NDArray[np.int64], int]:
        """Take rows of mean length as a guess, and twice as many until their tokens are too many."""
        _check_left(1, self.pool, self.assignments)
        n_left = self.pool.rows_left
        n_rows = math.ceil(TOKENS_MARGIN * budget.amount * n_left / max(1, self.pool.target_tokens))
        while True:
            n_rows = min(n_rows, n_left)
            candidates, rank_N = self.first(n_rows)
            tokens = candidates.rows.target_tokens[order_of(rank_N)[:n_rows]]
            if n_rows == n_left or int(tokens.sum(dtype=np.int64)) > budget.amount >= tokens[0]:
                return candidates, rank_N, rows_in_budget(budget, n_rows, tokens)
            # Also where the first row is too long: the message names the shortest of all.
            n_rows = 2 * n_rows if tokens[0] <= budget.amount else n_left

    def first(self, n_rows: int) -> tuple[Candidates, NDArray[np.int64]]:
        """Return rows and their rank, which is that in the whole pool for as many as are asked for."""
        candidates = fetch_candidates(self.pool, self.selector, self.before, n_rows)
        return candidates, self.selector.rank(candidates, n_rows)


def _check_left(n_wanted: int, pool: PoolBlocks, assignments: Artifact | None) -> None:
    n_left = pool.rows_left
    if n_wanted <= n_left:
        return
    found = f"the budget asks for {n_wanted} of {pool.rows_pool} rows, but {pool.rows_pool - n_left} were set aside"
    lower = f"{n_left} are left. " + (f"Lower it to {n_left} rows or less, or " if n_left else "Expected to ")
    if assignments is None:
        raise ConfigError(f"{found} by the guard and {lower}set cluster.guard to null.")
    reasons = ", ".join(f"{count} {reason}" for reason, count in assignments.summary["rows_set_aside"].items())
    raise ConfigError(f"{found} ({reasons}) and {lower}bring more new rows.")


def _copy_rows(
    inputs: Inputs, files: tuple[InputFile, ...], ids: NDArray[np.int64], pool: PoolResources, output: StagedOutput
) -> list[FileRecord]:
    """Copy the chosen rows out of each file that has some, in a task a file."""
    if not files:
        files = find_inputs(inputs.examples.uri_of(schemas.SYNTHETIC_INPUT), key="examples.synthetic")
    index_M, row_M = locations(ids)
    with_rows, first = np.unique(index_M, return_index=True)
    parts = zip(with_rows.tolist(), np.split(row_M, first[1:]), strict=True)
    arguments = ((files[index], rows, output) for index, rows in parts)
    records = []
    with display.progress("copy selected rows", len(ids), "rows") as progress:
        for record in each(_copy_file, arguments, pool):
            records.append(record)
            progress.advance(record.rows)
    return records


def _copy_file(file: InputFile, row_M: NDArray[np.int64], output: StagedOutput) -> FileRecord:
    check_sign(output)
    check_unchanged(file)
    with output.open(f"rows/{file.name}") as sink:
        copied = copy_rows(file, row_M.tolist(), cast(BinaryIO, sink))
    check_unchanged(file)
    return sink.record(copied)


def _counts(code_N: NDArray[np.int32], names: list[str]) -> Mapping[str, int]:
    # Rows without a source are the last.
    count_S = np.bincount(code_N % (len(names) + 1), minlength=len(names) + 1)
    counts: Counter[str] = Counter()
    for name, count in zip([*names, ""], count_S.tolist(), strict=True):
        counts[name] += count
    return {name: count for name, count in sorted(counts.items()) if count}
