"""`tokens` -> `proxy`: model folders `step=.../`, `checkpoints.parquet`, `metrics.jsonl`.

`step=000000/` is the model before training; T more follow.
"""

from dataclasses import dataclass

import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.log import display
from s2l_ray.stage_settings import ProxySettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.train_worker import TrainJob, run_job
from s2l_ray.training import checkpoint_steps, rows_for, steps_for


@dataclass(frozen=True)
class Inputs:
    """Tokens and the tokenizer that made them."""

    tokens: Artifact
    tokenizer: Artifact


def train_proxy(
    inputs: Inputs, config: ProxySettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Train the proxy on all rows and keep T checkpoints."""
    model = config.model
    n_rows = inputs.tokens.summary["rows_kept"]
    batch = model.global_batch_size
    total_rows = model.steps * batch if model.steps else rows_for(n_rows, model.epochs)
    total_steps = steps_for(total_rows, 1, batch)
    steps = checkpoint_steps(total_steps, model.checkpoints)
    wanted = model.checkpoints if isinstance(model.checkpoints, int) else len(model.checkpoints)
    if len(steps) < wanted:
        display.warn(
            f"proxy.checkpoints is {wanted}, but the run has {total_steps} steps; trajectories get T = {len(steps)}"
        )
    if len(steps) == 1:
        display.warn("one checkpoint says little: a trajectory of length 1 is a loss")
    job = TrainJob(
        model=model,
        key="proxy",
        engine="torch",
        zero_stage=0,
        lora=None,
        tokens=inputs.tokens,
        tokenizer=inputs.tokenizer,
        example_ids=None,
        in_order=False,
        max_tokens=config.max_tokens,
        total_steps=total_steps,
        total_rows=total_rows,
        weights_at=(0, *steps),
        folder_of=schemas.step_folder,
        seed=seed,
        resources=resources.train_proxy,
        output=output,
    )
    records, kept = run_job(job, "train proxy")
    by_step = {stop["step"]: stop for stop in kept}
    first = {"step": 0, "epoch": 0.0, "learning_rate": 0.0, "mean_loss": None}
    rows = [
        {
            "index": index,
            **{name: (by_step.get(step, first))[name] for name in ("step", "epoch", "learning_rate", "mean_loss")},
        }
        for index, step in enumerate(job.weights_at)
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.CHECKPOINTS)
    records.append(output.write_parquet("checkpoints.parquet", [table], schemas.CHECKPOINTS))
    summary = {
        "steps": total_steps,
        "checkpoint_steps": list(steps),
        "final_loss": kept[-1]["mean_loss"],
        "trust_remote_code": model.trust_remote_code,
        "attention": model.attention,
    }
    return StageResult(records, summary)
