"""`subset` + `tokens` -> `target`: `model/`, a Hugging Face folder with its tokenizer, and `metrics.jsonl`.

Where a low-rank adapter was trained, `model/` has it in its weights, and `adapter/` holds it by itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.stage_settings import TargetSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.train_worker import TrainJob, run_job
from s2l_ray.training import matched_rows, steps_for


@dataclass(frozen=True)
class Inputs:
    """The rows to train on and their tokens."""

    subset: Artifact
    tokens: Artifact
    tokenizer: Artifact


@dataclass(frozen=True)
class SubsetIds:
    """Reads the ids of a subset: by id, or in order of rank."""

    subset: Artifact
    by_rank: bool

    def __call__(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return int64 [N]."""
        table = self.subset.read_table("subset.parquet", ["example_id", "rank"])
        ids_N = table.column("example_id").to_numpy()
        order = np.argsort(table.column("rank").to_numpy() if self.by_rank else ids_N, kind="stable")
        return np.asarray(ids_N[order])


def model_folder(step: int) -> str:
    """Return where the model goes; there is only the last step's."""
    return schemas.MODEL_FOLDER


def finetune_target(
    inputs: Inputs, config: TargetSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Fine-tune the target on the subset, as long as `match` says."""
    model = config.model
    n_full = inputs.subset.summary["rows_pool"]
    n_rows = inputs.subset.summary["rows"]
    total_rows = matched_rows(
        model.match,
        epochs=model.epochs,
        steps=model.steps,
        batch=model.global_batch_size,
        n_rows=n_rows,
        n_full=n_full,
        tokens=inputs.subset.summary["target_response_tokens"],
        tokens_full=inputs.subset.summary["target_response_tokens_pool"],
    )
    total_steps = steps_for(total_rows, 1, model.global_batch_size)
    job = TrainJob(
        model=model,
        key="target",
        engine=model.engine,
        zero_stage=model.zero_stage,
        lora=model.lora,
        tokens=inputs.tokens,
        tokenizer=inputs.tokenizer,
        example_ids=SubsetIds(inputs.subset, by_rank=model.order == "rank"),
        in_order=model.order == "rank",
        max_tokens=config.max_tokens,
        total_steps=total_steps,
        total_rows=total_rows,
        weights_at=(total_steps,),
        folder_of=model_folder,
        seed=seed,
        resources=resources.finetune_target,
        output=output,
    )
    records, kept = run_job(job, "fine-tune target")
    records += output.add_artifact(inputs.tokenizer, schemas.MODEL_FOLDER)
    return StageResult(
        records,
        {
            "steps": total_steps,
            "rows": n_rows,
            "rows_seen": total_rows,
            "final_loss": kept[-1]["mean_loss"],
            "trust_remote_code": model.trust_remote_code,
            "attention": model.attention,
        },
    )
