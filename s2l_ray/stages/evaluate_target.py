"""`target` + held-out tokens -> `scores`: `predictions.parquet`, a row per held-out example, and `scores.parquet`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.answers import generate_greedily, is_exact_match, prompts_and_answers
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.attempts import StagedOutput
from s2l_ray.config import PoolResources, ResourcesConfig
from s2l_ray.draws import Draws
from s2l_ray.errors import DataError
from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.models import device_and_precision, load_model
from s2l_ray.scoring import Mean, mean_of, means_by_group, weighted_mean
from s2l_ray.stage_settings import EvaluateSettings
from s2l_ray.stages.shards import Receipt, map_shards
from s2l_ray.token_rows import TokenRows
from s2l_ray.tokens import opened_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHARD_ROWS = 1024


@dataclass(frozen=True)
class Inputs:
    """The target, what it is judged on, and the labels to group by."""

    target: Artifact
    eval_tokens: Artifact
    eval_examples: Artifact
    tokenizer: Artifact


@dataclass(frozen=True)
class IdRange:
    """Held-out examples that one worker judges, in order of id."""

    index: int
    ids: tuple[int, ...]

    @property
    def piece(self) -> str:
        """Number of the range."""
        return f"{self.index:05d}"

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.ids)


@dataclass(frozen=True)
class JudgeShard:
    """Computes losses and answers for some held-out examples."""

    inputs: Inputs
    config: EvaluateSettings
    pool: PoolResources
    output: StagedOutput

    def __call__(self, shard: IdRange) -> Receipt:
        """Write one part of the predictions."""
        rows = _token_rows(self.inputs.eval_tokens).take(np.asarray(shard.ids, np.int64))
        device, bf16 = device_and_precision(self.config.precision, self.pool.gpus)
        model = _loaded(self.inputs.target, device)
        evaluate = self.config.evaluate
        pad_id = self.inputs.tokenizer.summary["pad_id"]
        module = response_loss_module(model)
        loss_N = mean_losses(module, rows, batch_tokens=evaluate.batch_tokens, pad_id=pad_id, device=device, bf16=bf16)
        if not np.isfinite(loss_N).all():
            bad = [i for i, loss in zip(shard.ids, loss_N, strict=True) if not np.isfinite(loss)][:5]
            raise DataError(
                f"the target's loss on held-out examples {bad} is no number. Lower target.learning_rate, or set "
                "`target.precision: fp32`.",
                bad,
            )
        predictions: Sequence[str | None] = [None] * len(rows)
        matches: Sequence[bool | None] = [None] * len(rows)
        if "exact_match" in evaluate.metrics:
            predictions, matches = self._answers(model, rows)
        part = pa.table(
            {
                "example_id": list(shard.ids),
                "loss": loss_N,
                "num_response_tokens": rows.num_response_tokens_N,
                "prediction": pa.array(predictions, pa.string()),
                "exact_match": pa.array(matches, pa.bool_()),
            }
        )
        return [self.output.write_parquet(f"scratch/predictions-{shard.piece}.parquet", [part], part.schema)], {}

    def _answers(self, model: "PreTrainedModel", rows: TokenRows) -> tuple[list[str], list[bool]]:
        summary = self.inputs.tokenizer.summary
        tokenizer = opened_tokenizer(self.inputs.tokenizer)
        prompts, answers = prompts_and_answers(rows)
        generated = generate_greedily(
            model,
            prompts,
            max_new_tokens=self.config.evaluate.max_new_tokens,
            batch_tokens=self.config.evaluate.batch_tokens,
            stop_ids=summary["stop_ids"],
            device=model.device,
        )
        predictions = [tokenizer.decode(ids) for ids in generated]
        expected = [tokenizer.decode(ids.tolist()) for ids in answers]
        return predictions, [is_exact_match(p, e) for p, e in zip(predictions, expected, strict=True)]


@lru_cache(maxsize=1)
def _token_rows(tokens: Artifact) -> TokenRows:
    return TokenRows.from_table(tokens.read_table("tokens-", list(TokenRows.COLUMNS)))


@lru_cache(maxsize=1)
def _loaded(target: Artifact, device: "torch.device") -> "PreTrainedModel":
    return load_model(target, schemas.MODEL_FOLDER).to(device)


def evaluate_target(
    inputs: Inputs, config: EvaluateSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Judge the target on held-out data."""
    examples = inputs.eval_examples.read_table("examples-", ["example_id", "content_hash", "source", "skill"])
    tokenized = inputs.eval_tokens.read_table("tokens-", ["example_id"]).column("example_id").to_numpy()
    ids = _chosen(examples, tokenized, config.evaluate.max_rows)
    shards = [
        IdRange(index, tuple(ids[start : start + SHARD_ROWS].tolist()))
        for index, start in enumerate(range(0, len(ids), SHARD_ROWS))
    ]
    work = JudgeShard(inputs, config, resources.evaluate_target, output)
    pool = resources.evaluate_target
    receipts = map_shards(work, shards, output, pool, label="evaluate target")
    parts = pa.concat_tables([output.read_parquet(r.path) for written, _ in receipts for r in written])
    labels = examples.select(["example_id", "source", "skill"])
    predictions = parts.join(labels, "example_id").sort_by("example_id").select(schemas.PREDICTIONS.names)
    predictions = predictions.cast(schemas.PREDICTIONS)
    scores = _scores(predictions, config.evaluate.metrics)
    records: list[FileRecord] = [
        output.write_parquet("predictions.parquet", [predictions], schemas.PREDICTIONS),
        output.write_parquet("scores.parquet", [scores], schemas.SCORES),
    ]
    overall = {r["metric"]: r["value"] for r in scores.to_pylist() if r["group_by"] == "all"}
    return StageResult(records, {"rows": len(ids), **overall})


def _chosen(examples: pa.Table, tokenized: Any, max_rows: int | None) -> Any:
    usable = Draws.of(examples, 0).take(np.sort(tokenized))
    return np.sort(usable.example_id_N[np.lexsort((usable.example_id_N, usable.draw_N))[:max_rows]])


def _scores(predictions: pa.Table, metrics: Sequence[str]) -> pa.Table:
    rows: list[dict[str, Any]] = []

    def add(group_by: str, group: str, metric: str, mean: Mean) -> None:
        error = mean.standard_error
        rows.append(
            {
                "group_by": group_by, "group": group, "metric": metric, "value": mean.value,
                "standard_error": error, "rows": mean.rows,
            }
        )  # fmt: skip

    for metric in metrics:
        value_N = predictions.column(metric).to_numpy(zero_copy_only=False).astype(np.float64)
        add("all", "all", metric, mean_of(value_N))
        for group_by in ("skill", "source"):
            groups = predictions.column(group_by).to_pylist()
            if any(group is not None for group in groups):
                means = means_by_group(value_N, [group or "" for group in groups])
                for name, mean in means.items():
                    add(group_by, name, metric, mean)
                add("macro", group_by, metric, weighted_mean(means))
    return pa.Table.from_pylist(rows, schema=schemas.SCORES)
