"""Training runs under Ray: a gang that Ray Train starts and restarts, or one plain task; and how far they are."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from s2l_ray.background import repeated
from s2l_ray.computation import memory_checked
from s2l_ray.config import TrainResources
from s2l_ray.errors import S2LError, StageFailed, decode_error, encode_error
from s2l_ray.log import display
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import runtime
from s2l_ray.stages.capacity import one_shot_on_gpu, remote_options
from s2l_ray.stages.shared_storage import check_sign, leave_sign

PROGRESS_SECONDS = 0.5
PROGRESS, NOTICE, FAILURE = "progress", "notice", "failure"
"""What a training worker may have to say."""


@dataclass(frozen=True)
class TrainingRun:
    """A training function and what it gets; the function runs on every worker."""

    function: Callable[[Any], None]
    job: Any
    total_steps: int
    label: str


def train(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> None:
    """Run a training function, on a gang of workers or in a task of its own as `resources.launcher` says.

    Raises:
        S2LError: what the function raised on rank 0; never retried.
        StageFailed: workers died more often than `max_failures` allows.
    """
    import ray.train

    _take_failure(output)
    leave_sign(output)
    launch = _train_in_task if resources.launcher == "task" else _train_on_gang
    with _shown_progress(run, output):
        try:
            launch(run, output, resources)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            if failure := _take_failure(output):
                raise failure from None
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise StageFailed(
                f"{run.label}: the training workers failed ({last}). The same command goes on from the last "
                "checkpoint; with S2L_VERBOSE=1 it shows their output."
            ) from error
    if failure := _take_failure(output):
        raise failure


def _train_on_gang(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> None:
    """Let Ray Train start the workers together, and go on from where an earlier attempt stopped."""
    import ray.train

    while True:
        try:
            _trainer(run, output, resources).fit()
            return
        except ray.train.TrainingFailedError:
            # Where a node goes a moment before Ray Train has expected it, its end counts as a failure of ours.
            if not take_notice(output):
                raise
            display.say(f"{run.label}: a node was taken away; on from the checkpoint that was saved on its notice")


def _trainer(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> Any:
    import ray.train
    import ray.train.torch

    shared_gpu = 0 < resources.gpus < 1
    return _trainer_class()(
        _training_worker,
        train_loop_config={"run": run, "output": output, "threads": resources.threads},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=resources.bundle,
            label_selector=resources.selector or None,
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo" if shared_gpu or not resources.gpus else "nccl"),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=output.scratch_uri,
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def _trainer_class() -> Any:
    if runtime.ends_with_us():
        from s2l_ray.stages.local_trainer import LocalTrainer

        return LocalTrainer
    from ray.train.torch import TorchTrainer

    return TorchTrainer


def _train_in_task(run: TrainingRun, output: StagedOutput, resources: TrainResources) -> None:
    """Train in a worker process of Ray's that may be warm from the stage before: seconds less than a gang's start."""
    task = one_shot_on_gpu(_training_task, resources.gpus).options(
        name=run.label,
        **remote_options(resources),
        max_retries=resources.max_failures,
        # Not within the placement group of a Tune trial, which holds nothing.
        scheduling_strategy="DEFAULT",
    )
    ray.get(task.remote({"run": run, "output": output, "threads": resources.threads}))


def _training_worker(config: dict[str, Any]) -> None:
    import ray.train

    # Other workers wait for this one in a collective operation; its death is what ends them.
    _training_task(config, fail_together=ray.train.get_context().get_world_size() > 1)


def _training_task(config: dict[str, Any], fail_together: bool = False) -> None:
    runtime.limit_threads(config["threads"])
    import torch

    torch.set_num_threads(config["threads"])
    run: TrainingRun = config["run"]
    output: StagedOutput = config["output"]
    if _told(output, FAILURE) is not None:
        return  # Ray tries again after any failure; an error of ours would only come again.
    try:
        check_sign(output)
        with memory_checked(
            f"For {run.label}: lower its micro_batch_size or tokens.max_tokens, set gradient_checkpointing in its "
            "resources, or give it more or larger GPUs (ZeRO 3 shares weights and moments over all of them)."
        ):
            run.function(run.job)
    except S2LError as error:
        _tell(output, FAILURE, encode_error(error))
        if fail_together:
            raise


def publish_progress(output: StagedOutput, step: int, note: str) -> None:
    """Say from a training worker how far the run is."""
    _tell(output, PROGRESS, [step, note])


def give_notice(output: StagedOutput) -> None:
    """Say from a training worker that a node of this run is to be taken away."""
    _tell(output, NOTICE, True)


def take_notice(output: StagedOutput) -> bool:
    """Return whether notice was given since it was last taken."""
    return _take(output, NOTICE) is not None


def _take_failure(output: StagedOutput) -> S2LError | None:
    failure = _take(output, FAILURE)
    return None if failure is None else decode_error(failure)


def _tell(output: StagedOutput, subject: str, word: Any) -> None:
    """Leave a word with Ray's head: what fails may be the storage itself."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(_key(output, subject), json.dumps(word), overwrite=True)


def _told(output: StagedOutput, subject: str) -> Any:
    from ray.experimental import internal_kv

    word = internal_kv._internal_kv_get(_key(output, subject))
    return None if word is None else json.loads(word)


def _take(output: StagedOutput, subject: str) -> Any:
    from ray.experimental import internal_kv

    word = _told(output, subject)
    internal_kv._internal_kv_del(_key(output, subject))
    return word


def _key(output: StagedOutput, subject: str) -> str:
    return f"s2l/{output.attempt}/{subject}"


@contextmanager
def _shown_progress(run: TrainingRun, output: StagedOutput) -> Iterator[None]:
    with display.progress(run.label, run.total_steps, "steps") as progress:

        def show() -> None:
            said = _told(output, PROGRESS)
            if said is not None:
                step, note = said
                progress.update(step, note=note)

        try:
            with repeated(show, PROGRESS_SECONDS, f"progress-{run.label}"):
                yield
        finally:
            if ray.is_initialized():
                _take(output, PROGRESS)
