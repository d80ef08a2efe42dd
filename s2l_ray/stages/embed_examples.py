"""`tokens` + `proxy` -> `hidden_states`: the mean of the proxy's last hidden states over each example's response.

Only where a selector asks for them. The proxy is the one that training ended with.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.computation import memory_checked, set_attention
from s2l_ray.config import PoolResources, ResourcesConfig, ScoreConfig
from s2l_ray.errors import DataError
from s2l_ray.losses import mean_hidden_states
from s2l_ray.models import device_and_precision, load_model
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.shards import Receipt, RowRange, map_shards, row_ranges
from s2l_ray.token_rows import TokenRows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Inputs:
    """What is embedded, and the proxy that does it."""

    tokens: Artifact
    tokenizer: Artifact
    proxy: Artifact


@dataclass(frozen=True)
class EmbedShard:
    """Computes the hidden states of one shard."""

    inputs: Inputs
    config: ScoreConfig
    pool: PoolResources
    output: StagedOutput

    def __call__(self, shard: RowRange) -> Receipt:
        """Write one file of hidden states."""
        table = self.inputs.tokens.read_rows(shard.record, shard.start, shard.stop, list(TokenRows.COLUMNS))
        rows = TokenRows.from_table(table)
        device, bf16 = device_and_precision(self.config.precision, self.pool.gpus)
        with memory_checked("Lower score.batch_tokens or tokens.max_tokens, or give score_examples larger GPUs."):
            hidden_ND = mean_hidden_states(
                _loaded(self.inputs.proxy, device, bf16),
                rows,
                batch_tokens=self.config.batch_tokens,
                pad_id=self.inputs.tokenizer.summary["pad_id"],
                device=device,
                bf16=bf16,
            )
        if not np.isfinite(hidden_ND).all():
            bad = rows.example_id_N[~np.isfinite(hidden_ND).all(axis=1)][:5].tolist()
            raise DataError(
                f"the proxy's hidden states of examples {bad} hold NaN or infinity. Set `score.precision: fp32`.", bad
            )
        schema = schemas.hidden_states(hidden_ND.shape[1])
        column = pa.FixedSizeListArray.from_arrays(pa.array(hidden_ND.ravel()), hidden_ND.shape[1])
        part = pa.table([table.column("example_id"), column], schema=schema)
        return [self.output.write_parquet(f"hidden_states-{shard.piece}.parquet", [part], schema)], {}


@lru_cache(maxsize=1)
def _loaded(proxy: Artifact, device: "torch.device", bf16: bool) -> "PreTrainedModel":
    last = schemas.step_folder(proxy.summary["checkpoint_steps"][-1])
    model = load_model(proxy, last).to(device)
    set_attention(model, proxy.summary.get("attention", "auto"), in_bf16=bf16 and device.type == "cuda")
    return model


def embed_examples(
    inputs: Inputs, config: ScoreConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Compute the hidden state of every example.

    Raises:
        DataError: one holds NaN or infinity.
    """
    shards = row_ranges(inputs.tokens, "tokens-", config.shard_rows)
    work = EmbedShard(inputs, config, resources.score_examples, output)
    receipts = map_shards(work, shards, output, resources.score_examples, label="embed examples")
    records = [record for written, _ in receipts for record in written]
    return StageResult(records, {"rows": sum(record.rows or 0 for record in records)})
