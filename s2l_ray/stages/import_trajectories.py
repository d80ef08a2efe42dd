"""Losses from elsewhere + `examples` + tokens -> `trajectories`, as if `score_examples` had written them.

Every example that the target can be trained on needs its trajectory; what is there beyond that (held-out rows, rows
set aside) is counted and left out.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import DataError
from s2l_ray.examples import locations
from s2l_ray.imported import KEY, ImportedLosses, place_of, read_losses
from s2l_ray.log import display
from s2l_ray.losses import rounded
from s2l_ray.stage_settings import ImportSettings
from s2l_ray.staged_output import StagedOutput

FILE_ROWS = 250_000
"""Rows of a file of trajectories."""


@dataclass(frozen=True)
class Inputs:
    """The examples, those of them that have response tokens, and the other side of the split where there is one."""

    examples: Artifact
    tokens: Artifact
    held_out: Artifact | None = None


def import_trajectories(
    inputs: Inputs, config: ImportSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Give every example the losses that stand under its id.

    Raises:
        DataError: the files cannot be used, examples have no losses, or losses are NaN or infinite.
    """
    losses = read_losses(config.files, config.columns)
    tokens = inputs.tokens.read_table("tokens-", ["example_id", "source", "num_response_tokens"])
    tokens = tokens.sort_by("example_id")
    place_N = _places(inputs, losses, tokens.column("example_id"))
    loss_NT = rounded(losses.loss_NT[place_N])
    initial_N = loss_NT[:, 0] if losses.loss_initial_N is None else rounded(losses.loss_initial_N[place_N])
    _refuse_nonfinite(tokens.column("example_id").to_numpy(), loss_NT, initial_N)
    _warn(losses, loss_NT)
    schema = schemas.trajectories(loss_NT.shape[1], losses.steps)
    table = tokens.append_column("loss_initial", pa.array(initial_N)).append_column(
        "loss", pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), loss_NT.shape[1])
    )
    table = table.select(schema.names).cast(schema)
    records = [
        output.write_parquet(f"trajectories-{number:05d}.parquet", [table.slice(start, FILE_ROWS)], schema)
        for number, start in enumerate(range(0, len(table), FILE_ROWS))
    ]
    summary = {
        "rows": len(table),
        "rows_unused": len(losses.keys) - len(table),
        "n_checkpoints": loss_NT.shape[1],
        "checkpoint_steps": list(losses.steps),
        "loss_initial": "first checkpoint" if losses.loss_initial_N is None else "imported",
    }
    return StageResult(records, summary)


def _places(inputs: Inputs, losses: ImportedLosses, example_ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return where the losses of each example stand."""
    examples = inputs.examples.read_in_order("examples-", ["example_id", "user_id"])
    examples = examples.filter(pc.is_in(examples.column("example_id"), value_set=example_ids.combine_chunks()))
    wanted = example_ids
    if losses.identity == "user_id":
        wanted = examples.column("user_id")
        if wanted.null_count:
            raise DataError(
                f"{KEY} knows its losses by `user_id`, but {wanted.null_count} examples have none. Name the column "
                "that holds it with `examples.columns: {id: ...}`."
            )
    elif losses.identity == "row":
        wanted = _rows(inputs, losses, example_ids)
    place_N, missing_N = place_of(wanted.combine_chunks(), losses.keys)
    if missing_N.any():
        ids = example_ids.to_numpy()[missing_N][:5].tolist()
        names = [str(name) for name in wanted.filter(pa.array(missing_N)).slice(0, 5).to_pylist()]
        raise DataError(
            f"{KEY} has {len(losses.keys)} trajectories, but none for {int(missing_N.sum())} of {len(wanted)} "
            f"examples, first {losses.identity} {', '.join(names)}. Expected one for every example with response "
            "tokens.",
            ids,
        )
    return place_N


def _rows(inputs: Inputs, losses: ImportedLosses, example_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which row of the file each example is, once it is certain that the losses count the same rows.

    An `example_id` holds the line; lines without a row (a header, blank ones) are none to a program that reads rows.
    """
    parts = [part for part in (inputs.examples, inputs.held_out) if part is not None]
    all_ids = pa.concat_tables([part.read_table("examples-", ["example_id"]) for part in parts]).column(0)
    index_N, line_N = locations(all_ids.to_numpy())
    rejected = inputs.examples.read_table("rejected.parquet", ["input_row"]).column(0).to_numpy()
    line_R = np.unique(np.concatenate([line_N, rejected]))
    rows_in = inputs.examples.summary["rows_in"]
    if index_N.any() or not len(line_R) == rows_in == len(losses.keys):
        files = len(np.unique(index_N))
        raise DataError(
            f"{KEY} has {len(losses.keys)} losses per checkpoint, in the order of one training file; the examples are "
            f"{rows_in} rows of {files} file{'s' if files > 1 else ''}, of which {len(line_R)} are known. Expected the "
            "very file that the proxy was trained on."
        )
    return pa.chunked_array([pa.array(np.searchsorted(line_R, locations(example_ids.to_numpy())[1]))])


def _refuse_nonfinite(
    example_id_N: NDArray[np.int64], loss_NT: NDArray[np.float32], initial_N: NDArray[np.float32]
) -> None:
    bad_N = ~(np.isfinite(loss_NT).all(axis=1) & np.isfinite(initial_N))
    if bad_N.any():
        ids = example_id_N[bad_N][:5].tolist()
        raise DataError(
            f"{KEY}: {int(bad_N.sum())} examples have a NaN or infinite loss, first {ids}. A loss that is no number is "
            "never replaced by one: leave such rows out of the data, or raise what cut their answers away.",
            ids,
        )


def _warn(losses: ImportedLosses, loss_NT: NDArray[np.float32]) -> None:
    if losses.loss_initial_N is None:
        display.warn(
            f"{KEY} has no loss before training; the first checkpoint's stands in for it, in the guard, in "
            "high_learnability and in the report's health classes"
        )
    zero_N = (loss_NT == 0).all(axis=1)
    if zero_N.any():
        display.warn(
            f"{int(zero_N.sum())} trajectories are 0 throughout: some programs write that for answers that were cut "
            "away, which then look perfectly learned"
        )
