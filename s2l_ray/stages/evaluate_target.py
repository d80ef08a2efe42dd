"""`target` + held-out tokens -> `scores`: `predictions.parquet`, a row per held-out example, and `scores.parquet`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.answers import before_stop, generate_greedily, prompts_and_answers
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.computation import memory_checked
from s2l_ray.config import PoolResources, ResourcesConfig
from s2l_ray.draws import Draws
from s2l_ray.errors import DataError
from s2l_ray.judging.metrics import (
    METRICS,
    Aids,
    Answered,
    answer_metrics,
    check_metrics,
    is_share,
    judges_of,
    verdict_columns,
)
from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.models import device_and_precision, load_model
from s2l_ray.scoring import Mean, bounds_of_shares, mean_of, means_by_group, weighted_mean
from s2l_ray.stage_settings import EvaluateSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.generate_with_vllm import Vllm, answer_shards, kept_answers
from s2l_ray.stages.shards import Receipt, map_shards
from s2l_ray.token_rows import TokenRows
from s2l_ray.tokens import opened_tokenizer
from s2l_ray.turns import Turn, last_exchange, lost_an_answer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHARD_ROWS = 1024
LABELS = ("source", "skill")


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
        with memory_checked("Lower evaluate.batch_tokens or tokens.max_tokens, or give evaluate_target larger GPUs."):
            return self._predictions(shard)

    def _predictions(self, shard: IdRange) -> Receipt:
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
        schema = _schema_of_part(evaluate.metrics)
        columns, unsettled = self._judged(model, rows, shard)
        columns |= {
            "example_id": list(shard.ids),
            "loss": loss_N,
            "num_response_tokens": rows.num_response_tokens_N,
        }
        missing = {name: [None] * len(rows) for name in schema.names if name not in columns}
        part = pa.table(columns | missing, schema=schema)
        record = self.output.write_parquet(f"scratch/predictions-{shard.piece}.parquet", [part], schema)
        return [record], {"unsettled": unsettled}

    def _judged(
        self, model: "PreTrainedModel", rows: TokenRows, shard: IdRange
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the answers and the verdicts on them by column, and how many comparisons had no end."""
        metrics = answer_metrics(self.config.evaluate.metrics)
        if not metrics:
            return {}, {}
        check_metrics(metrics, allow_code_execution=self.config.allow_code_execution)
        turns = self._turns(shard)
        answers = self._answers(model, rows, shard, turns)
        aids = Aids(self.config.evaluate.encoder, str(model.device))
        judged = {name: metric.judge(answers, aids) for name, metric in metrics.items()}
        # What was cut off with its answer was not asked: the judge's question and reference are not the model's.
        is_cut, spans_N = _cut_ids(self.inputs.eval_tokens), np.diff(rows.span_offset)
        is_other_N = np.array(
            [id_ in is_cut and lost_an_answer(row, n) for id_, row, n in zip(shard.ids, turns, spans_N, strict=True)]
        )
        columns: dict[str, Any] = {"prediction": [answer.prediction for answer in answers]}
        for name, found in judged.items():
            is_left_out_N = is_other_N & bool(metrics[name].judged_by)
            columns[name] = [None if out else v for v, out in zip(found.verdicts, is_left_out_N, strict=True)]
        return columns, {name: found.unsettled for name, found in judged.items()}

    def _turns(self, shard: IdRange) -> list[list[Turn]]:
        columns = ["example_id", "turns"]
        asked = self.inputs.eval_examples.read_examples("examples-", np.asarray(shard.ids, np.int64), columns)
        return [[Turn(**turn) for turn in row] for row in asked.column("turns").to_pylist()]

    def _answers(
        self, model: "PreTrainedModel", rows: TokenRows, shard: IdRange, turns: Sequence[Sequence[Turn]]
    ) -> list[Answered]:
        tokenizer = opened_tokenizer(self.inputs.tokenizer)
        stops = self.config.evaluate.stop
        prompts, answers = prompts_and_answers(rows)
        generated = self._generated(model, prompts, shard)
        return [
            Answered(
                question, reference, tokenizer.decode(expected.tolist()), before_stop(tokenizer.decode(said), stops)
            )
            for (question, reference), expected, said in zip(map(last_exchange, turns), answers, generated, strict=True)
        ]

    def _generated(
        self, model: "PreTrainedModel", prompts: Sequence[NDArray[np.int32]], shard: IdRange
    ) -> list[list[int]]:
        """Return the token ids of the answers: those that vLLM has left, or the model's."""
        evaluate = self.config.evaluate
        if evaluate.engine == "vllm":
            said = kept_answers(self.output, shard.piece)
            return [said[example_id] for example_id in shard.ids]
        tokenizer, stops = opened_tokenizer(self.inputs.tokenizer), evaluate.stop
        return generate_greedily(
            model,
            prompts,
            max_new_tokens=evaluate.max_new_tokens,
            batch_tokens=evaluate.batch_tokens,
            stop_ids=self.inputs.tokenizer.summary["stop_ids"],
            device=model.device,
            is_ended=(lambda said: any(stop in tokenizer.decode(said) for stop in stops)) if stops else None,
        )


def _schema_of_part(metrics: Sequence[str]) -> pa.Schema:
    """Return the schema of predictions without the labels, which are joined at the end."""
    return pa.schema([field for field in schemas.predictions(verdict_columns(metrics)) if field.name not in LABELS])


@lru_cache(maxsize=1)
def _token_rows(tokens: Artifact) -> TokenRows:
    return TokenRows.from_table(tokens.read_table("tokens-", list(TokenRows.COLUMNS)))


@lru_cache(maxsize=1)
def _cut_ids(tokens: Artifact) -> frozenset[int]:
    table = tokens.read_table("tokens-", ["example_id", "truncated"])
    return frozenset(table.column("example_id").filter(table.column("truncated")).to_pylist())


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
    if config.evaluate.engine == "vllm" and answer_metrics(config.evaluate.metrics):
        _answer_with_vllm(inputs, config, shards, pool, output)
    receipts = map_shards(work, shards, output, pool, label="evaluate target")
    parts = pa.concat_tables([output.read_parquet(r.path) for written, _ in receipts for r in written])
    schema = schemas.predictions(verdict_columns(config.evaluate.metrics))
    predictions = _labelled(parts.sort_by("example_id"), examples).select(schema.names).cast(schema)
    scores = _scores(predictions, config.evaluate.metrics)
    records: list[FileRecord] = [
        output.write_parquet("predictions.parquet", [predictions], schema),
        output.write_parquet("scores.parquet", [scores], schemas.SCORES),
    ]
    overall = {r["metric"]: r["value"] for r in scores.to_pylist() if r["group_by"] == "all"}
    judging = _judging(predictions, config.evaluate.metrics, [note["unsettled"] for _, note in receipts])
    return StageResult(records, {"rows": len(ids), **overall, **judging})


def _answer_with_vllm(
    inputs: Inputs, config: EvaluateSettings, shards: Sequence[IdRange], pool: PoolResources, output: StagedOutput
) -> None:
    """Let vLLM answer what the shards are judged on, before the GPUs are the judges' own."""
    vllm = Vllm(
        target=inputs.target,
        in_bf16=config.precision == "bf16",
        max_new_tokens=config.evaluate.max_new_tokens,
        stop_ids=tuple(inputs.tokenizer.summary["stop_ids"]),
        stops=config.evaluate.stop,
        pool=pool,
    )
    rows = _token_rows(inputs.eval_tokens)
    prompts = {
        shard.piece: dict(
            zip(shard.ids, prompts_and_answers(rows.take(np.asarray(shard.ids, np.int64)))[0], strict=True)
        )
        for shard in shards
    }
    answer_shards(prompts, vllm, output)


def _labelled(predictions: pa.Table, examples: pa.Table) -> pa.Table:
    """Add the labels; Arrow joins no tables that hold lists."""
    place_N = pc.index_in(predictions.column("example_id"), examples.column("example_id"))
    for name in LABELS:
        predictions = predictions.append_column(name, examples.column(name).take(place_N))
    return predictions


def _judging(predictions: pa.Table, metrics: Sequence[str], unsettled: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Say of every metric with a judge which it was, how many rows it judged, and how many comparisons had no end."""
    judges = {
        name: {
            "judge": judge,
            "rows": len(predictions) - predictions.column(name).null_count,
            "unsettled": sum(counts[name] for counts in unsettled),
        }
        for name, judge in judges_of(metrics).items()
    }
    return {"judges": judges} if judges else {}


def _chosen(examples: pa.Table, tokenized: Any, max_rows: int | None) -> Any:
    usable = Draws.of(examples, 0).take(np.sort(tokenized))
    return np.sort(usable.example_id_N[np.lexsort((usable.example_id_N, usable.draw_N))[:max_rows]])


def _scores(predictions: pa.Table, metrics: Sequence[str]) -> pa.Table:
    rows: list[dict[str, Any]] = []

    def add(group_by: str, group: str, metric: str, mean: Mean) -> None:
        low, high = mean.interval
        rows.append(
            {
                "group_by": group_by, "group": group, "metric": metric, "value": mean.value,
                "standard_error": mean.standard_error, "low": low, "high": high, "rows": mean.rows,
            }
        )  # fmt: skip

    for metric in metrics:
        judged = predictions.filter(pc.is_valid(predictions.column(metric)))
        if not judged.num_rows:
            raise DataError(
                f"evaluate.metrics: {metric} could judge none of {len(predictions)} held-out rows. Raise "
                "evaluate.max_rows, or leave the metric out."
            )
        value_N = np.asarray(judged.column(metric).to_pylist(), np.float64)
        mean = METRICS[metric].mean if metric in METRICS else mean_of
        add("all", "all", metric, mean(value_N))
        for group_by in LABELS[::-1]:
            groups = judged.column(group_by).to_pylist()
            if any(group is not None for group in groups):
                means = means_by_group(value_N, [group or "" for group in groups], mean)
                for name, of_group in means.items():
                    add(group_by, name, metric, of_group)
                bounds = bounds_of_shares if is_share(metric) else None
                add("macro", group_by, metric, weighted_mean(means, bounds=bounds))
    return pa.Table.from_pylist(rows, schema=schemas.SCORES)
