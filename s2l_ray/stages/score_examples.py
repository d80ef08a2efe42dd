"""`tokens` + `proxy` -> `trajectories`: `trajectories-*.parquet`, one row per example, in one pass over the data.

A worker holds the model of every checkpoint, reads a shard of rows once, and writes finished trajectories: nothing is
pivoted or joined. Which rows share a batch depends on the shard alone, so the bits do not depend on who computes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.computation import memory_checked, set_attention
from s2l_ray.config import PoolResources, ResourcesConfig, ScoreConfig
from s2l_ray.errors import ArtifactError, DataError
from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.models import device_and_precision, load_model
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.shards import Receipt, RowRange, map_shards, row_ranges
from s2l_ray.token_rows import TokenRows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Inputs:
    """What is scored, and the checkpoints that score it."""

    tokens: Artifact
    tokenizer: Artifact
    proxy: Artifact


@dataclass(frozen=True)
class ScoreShard:
    """Scores one shard with all checkpoints."""

    inputs: Inputs
    config: ScoreConfig
    pool: PoolResources
    output: StagedOutput

    @property
    def _steps(self) -> tuple[int, ...]:
        return (0, *self.inputs.proxy.summary["checkpoint_steps"])

    def _losses(self, rows: TokenRows) -> Iterator[NDArray[np.float32]]:
        """Yield the losses of rows under one checkpoint after the other, float32 [N] [nats/token]."""
        device, bf16 = device_and_precision(self.config.precision, self.pool.gpus)
        pad_id, at_once = self.inputs.tokenizer.summary["pad_id"], self.config.checkpoints_per_pass or len(self._steps)
        for start in range(0, len(self._steps), at_once):
            if at_once < len(self._steps):
                _loaded.cache_clear()  # before the next ones come, or two passes would be in memory at once
            # Not one by one by a name of its own, which would hold the last one for a pass more.
            yield from (
                mean_losses(m, rows, batch_tokens=self.config.batch_tokens, pad_id=pad_id, device=device, bf16=bf16)
                for m in _loaded(self.inputs.proxy, self._steps[start : start + at_once], device, bf16)
            )

    def __call__(self, shard: RowRange) -> Receipt:
        """Write one file of trajectories."""
        columns = [*TokenRows.COLUMNS, "source"]
        table = self.inputs.tokens.read_rows(shard.record, shard.start, shard.stop, columns)
        rows = TokenRows.from_table(table)
        with memory_checked(
            f"Set score.checkpoints_per_pass, so that fewer of {len(self._steps)} models are there at once, lower "
            "tokens.max_tokens, or give score_examples larger GPUs."
        ):
            loss_NT = np.stack(list(self._losses(rows)), axis=1)
        self._refuse_nonfinite(rows, loss_NT)
        steps = tuple(self._steps[1:])
        schema = schemas.trajectories(len(steps), steps)
        path = f"trajectories-{shard.piece}.parquet"
        return [self.output.write_parquet(path, [_table(table, loss_NT, schema)], schema)], {}

    def _refuse_nonfinite(self, rows: TokenRows, loss_NT: NDArray[np.float32]) -> None:
        bad = ~np.isfinite(loss_NT).all(axis=1)
        if bad.any():
            ids = rows.example_id_N[bad][:5].tolist()
            raise DataError(
                f"{int(bad.sum())} examples of a shard have a NaN or infinite loss, first {ids}; a loss that is no "
                "number is never replaced by one. Set `score.precision: fp32` (or bf16 in place of fp16 weights).",
                ids,
            )


@lru_cache(maxsize=1)
def _loaded(proxy: Artifact, steps: tuple[int, ...], device: "torch.device", bf16: bool) -> "list[torch.nn.Module]":
    """Hold the models of some checkpoints: a worker process loads them once for all of its shards."""
    modules = []
    for step in steps:
        model = load_model(proxy, schemas.step_folder(step)).to(device)
        modules.append(response_loss_module(model))
        set_attention(model, proxy.summary.get("attention", "auto"), in_bf16=bf16 and device.type == "cuda")
    return modules


def _table(tokens: pa.Table, loss_NT: NDArray[np.float32], schema: pa.Schema) -> pa.Table:
    trajectory = pa.FixedSizeListArray.from_arrays(pa.array(loss_NT[:, 1:].ravel()), loss_NT.shape[1] - 1)
    columns = {
        "example_id": tokens.column("example_id"),
        "source": tokens.column("source"),
        "loss_initial": pa.array(loss_NT[:, 0]),
        "loss": trajectory,
        "num_response_tokens": tokens.column("num_response_tokens"),
    }
    return pa.table(columns).cast(schema)


def score_examples(
    inputs: Inputs, config: ScoreConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Score every example with every checkpoint of the proxy.

    Raises:
        DataError: a loss is NaN or infinite.
    """
    shards = row_ranges(inputs.tokens, "tokens-", config.shard_rows)
    work = ScoreShard(inputs, config, resources.score_examples, output)
    receipts = map_shards(work, shards, output, resources.score_examples, label="score examples")
    records = [record for written, _ in receipts for record in written]
    rows = sum(record.rows or 0 for record in records)
    if rows != inputs.tokens.summary["rows_kept"]:
        raise ArtifactError(
            f"{inputs.tokens.summary['rows_kept']} rows to score, {rows} scored. A row was lost or doubled; this is a "
            "fault of the program, please report it."
        )
    steps = inputs.proxy.summary["checkpoint_steps"]
    return StageResult(records, {"rows": rows, "n_checkpoints": len(steps), "checkpoint_steps": steps})
