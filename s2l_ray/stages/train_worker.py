"""What every worker of a training run does, for the proxy and for the target.

Reads the tokens, builds the engine, goes on from the last checkpoint where there is one, trains, and writes through
the staged output: weights at the wanted steps, `metrics.jsonl`, and a checkpoint of Ray Train's to go on from.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from s2l_ray import schemas
from s2l_ray.adapters import add_adapter, merged, save_adapter
from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.computation import recompute_activations, set_attention
from s2l_ray.config import LoraConfig, ModelConfig, TrainResources
from s2l_ray.engines import (
    DeepSpeedEngine,
    Engine,
    EngineSettings,
    TorchEngine,
    is_sealed,
    load_progress,
    save_progress,
    seal,
    set_determinism,
)
from s2l_ray.models import build_model, device_and_precision, save_model, save_stops
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import metrics
from s2l_ray.stages.launch import TrainingRun, give_notice, publish_progress, take_notice, train
from s2l_ray.token_rows import TokenRows
from s2l_ray.training import BatchOrder, Plan, Position, Schedule, Share, StepReport, pauses, train_loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST_ASKED = 2
"""Step after which Ray Train is first asked whether a node is about to be taken away."""
ASK_SECONDS = 2.0
"""Seconds from one such question to the next, about; the shortest notice in use is 30 s."""
DONE = "training"
"""Piece of the output that is kept when the last step is done."""


@dataclass(frozen=True)
class TrainJob:
    """A whole training run, as every worker gets it. Cheap to pickle."""

    model: ModelConfig
    key: str
    engine: Literal["torch", "deepspeed"]
    zero_stage: int
    lora: LoraConfig | None
    tokens: Artifact
    tokenizer: Artifact
    example_ids: Callable[[], np.ndarray[Any, np.dtype[np.int64]]] | None
    """The rows to train on, in their order; all of `tokens` where None."""
    in_order: bool
    max_tokens: int
    total_steps: int
    total_rows: int
    weights_at: tuple[int, ...]
    """Steps whose weights are kept, each in a folder; 0 is before training."""
    folder_of: Callable[[int], str]
    seed: int
    resources: TrainResources
    output: StagedOutput


def train_worker(job: TrainJob) -> None:
    """Train; runs on every worker of the gang."""
    import ray.train

    context = ray.train.get_context()
    worker = _Worker(job, context.get_world_rank(), context.get_world_size())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            worker.go_on_from(Path(folder))
    take_notice(job.output)  # it was of the workers before these
    notice = PreemptionNotice(worker.engine, worker.world_size, job.output)
    worker.train(pauses(job.total_steps, job.resources.checkpoint_every), notice)


def build_trainable(
    config: ModelConfig, lora: LoraConfig | None, *, key: str, tokenizer: Artifact, max_tokens: int, seed: int
) -> "PreTrainedModel":
    """Return a model as training begins with it, its adapter in place where there is one.

    Raises:
        ConfigError: as `build_model` and `add_adapter`.
    """
    summary = tokenizer.summary
    model = build_model(
        config,
        key=key,
        vocab_size=summary["vocab_size"],
        max_tokens=max_tokens,
        eos_id=summary["eos_id"],
        seed=seed,
    )
    if lora is not None:
        add_adapter(model, lora, seed)
    return model


def train_alone(job: TrainJob) -> None:
    """Train in this process, the only worker, from the first step to the last."""
    _Worker(job, 0, 1).train(pause=frozenset())


class PreemptionNotice:
    """Asks Ray Train every few seconds whether a node of this run is about to be taken away.

    Asking makes the workers wait for one another, so they must ask at the same steps: the steps in between follow from
    the mean duration of a step over all workers.
    """

    def __init__(self, engine: Engine, world_size: int, output: StagedOutput) -> None:
        self._engine, self._world_size, self._output = engine, world_size, output
        self._next = FIRST_ASKED
        self._asked_at: tuple[int, float] | None = None
        self._is_known = False

    def __call__(self, step: int) -> bool:
        """Return whether to save what there is now; said once, for it is soon over."""
        import ray.train

        if self._is_known or step < self._next:
            return False
        now = time.monotonic()
        if self._asked_at is not None:
            steps, seconds = step - self._asked_at[0], now - self._asked_at[1]
            pace = self._engine.sum_over_workers(seconds / steps) / self._world_size
            self._next = step + max(1, int(ASK_SECONDS / pace))
        else:
            self._next = step + 1
        self._asked_at = (step, now)
        self._is_known = ray.train.get_preemption_info() is not None
        if self._is_known:
            give_notice(self._output)
        return self._is_known


class _Worker:
    def __init__(self, job: TrainJob, rank: int, world_size: int) -> None:
        self.job, self.rank, self.world_size = job, rank, world_size
        self.start = Position()
        self.steps: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        self.plan = self._plan()
        self.model, self.engine = self._engine()

    def _plan(self) -> Plan:
        job = self.job
        rows = TokenRows.from_table(job.tokens.read_table("tokens-", list(TokenRows.COLUMNS)))
        if job.example_ids is not None:
            rows = rows.take(job.example_ids())
        batch = job.model.global_batch_size
        size = min(job.model.micro_batch_size, -(-batch // self.world_size))
        return Plan(
            rows=rows,
            order=BatchOrder(len(rows), batch, job.total_rows, job.seed, job.in_order),
            schedule=Schedule(job.total_steps, job.model.learning_rate, job.model.warmup),
            share=Share(self.rank, self.world_size, size, batch),
            pad_id=job.tokenizer.summary["pad_id"],
        )

    def _engine(self) -> tuple["PreTrainedModel", Engine]:
        job = self.job
        device, bf16 = device_and_precision(job.model.precision, job.resources.gpus)
        set_determinism(job.model.deterministic)  # also off: a process may have trained another model before
        model = self._model()
        settings = EngineSettings(
            weight_decay=job.model.weight_decay,
            gradient_clipping=job.model.gradient_clipping,
            micro_batches=self.plan.share.micro_batches,
            micro_batch_size=self.plan.share.micro_batch_size,
            world_size=self.world_size,
            bf16=bf16,
        )
        engine: Engine
        if job.engine == "deepspeed":
            engine = DeepSpeedEngine(model, settings, device, job.zero_stage)
        else:
            engine = TorchEngine(model, settings, device)
        # Only now: what is found out about a model before it trains is found out in fp32.
        set_attention(model, job.model.attention, in_bf16=bf16 and device.type == "cuda")
        return model, engine

    def _model(self) -> "PreTrainedModel":
        import torch

        job = self.job
        model = build_trainable(
            job.model, job.lora, key=job.key, tokenizer=job.tokenizer, max_tokens=job.max_tokens, seed=job.seed
        )
        if job.resources.gradient_checkpointing:
            recompute_activations(model)
        torch.manual_seed(job.seed + self.rank)
        return model

    def go_on_from(self, folder: Path) -> None:
        """Take over engine, position and metrics of a checkpoint; begin anew where it is not what was saved."""
        # All or none: a node that sees other files than the rest would train from another step than they do.
        if self.engine.sum_over_workers(float(is_sealed(folder))) < self.world_size:
            publish_progress(self.job.output, 0, "the checkpoint is damaged; from the start")
            return
        self.engine.load(folder)
        progress = load_progress(folder)
        self.start = Position(**progress["position"])
        self.steps, self.kept = progress["steps"], progress["kept"]

    def train(self, pause: frozenset[int], is_urgent: Callable[[int], bool] = lambda step: False) -> None:
        """Train from where this worker stands to the end."""
        if self.start.step == 0 and 0 in self.job.weights_at:
            self.keep_weights(0)
        train_loop(
            self.engine,
            self.plan,
            start=self.start,
            keep=self.job.weights_at,
            pause=pause,
            on_step=self.on_step,
            on_keep=self.on_keep,
            on_pause=self.on_pause,
            is_urgent=is_urgent,
        )
        self.finish()

    def on_step(self, report: StepReport) -> None:
        """Note a stretch of steps."""
        self.steps.append(asdict(report))
        if self.rank == 0:
            publish_progress(self.job.output, report.step, f"loss {report.mean_loss:.3f}")
            metrics.count_tokens(self.job.key, report.response_tokens)
            metrics.set_loss(self.job.key, report.mean_loss)

    def on_keep(self, report: StepReport) -> None:
        """Keep the weights of a step."""
        self.kept.append(asdict(report))
        self.keep_weights(report.step)

    def on_pause(self, position: Position) -> None:
        """Give Ray Train a checkpoint to go on from; every worker takes part."""
        import ray.train

        with tempfile.TemporaryDirectory(prefix="s2l-") as temporary:
            folder = Path(temporary)
            self.engine.save(folder)
            if self.rank == 0:
                save_progress(folder, {"position": asdict(position), "steps": self.steps, "kept": self.kept})
            has_saved = any(folder.iterdir())
            if has_saved:
                seal(folder, self.rank)
            checkpoint = ray.train.Checkpoint.from_directory(folder) if has_saved else None
            ray.train.report({"step": position.step}, checkpoint=checkpoint)

    def keep_weights(self, step: int) -> None:
        """Write the weights of a step to the output; every worker takes part in gathering them."""
        weights = self.engine.weights()
        if weights is None:
            return
        with tempfile.TemporaryDirectory(prefix="s2l-") as temporary:
            records = []
            if self.job.lora is not None:
                adapter = Path(temporary, schemas.ADAPTER_FOLDER)
                save_adapter(self.model, weights, self.job.model, adapter)
                records += self.job.output.add_folder(adapter, schemas.ADAPTER_FOLDER)
                weights = merged(self.model, weights)
            folder = Path(temporary, schemas.MODEL_FOLDER)
            save_model(self.model, weights, folder)
            save_stops(folder, self.job.tokenizer.summary["stop_ids"])
            records += self.job.output.add_folder(folder, self.job.folder_of(step))
        self.job.output.keep(f"weights-{step}", records, {})

    def finish(self) -> None:
        """Write the metrics and say that it is done."""
        if self.rank != 0:
            return
        lines = "".join(json.dumps(entry) + "\n" for entry in self.steps).encode()
        record = self.job.output.write_bytes("metrics.jsonl", lines, len(self.steps))
        self.job.output.keep(DONE, [record], {"kept": self.kept})


def run_job(job: TrainJob, label: str) -> tuple[list[FileRecord], list[dict[str, Any]]]:
    """Train, unless an earlier attempt has; return the files of the run and its reports at the kept steps."""
    if job.output.finished(DONE) is None:
        function = train_alone if job.resources.launcher == "task" else train_worker
        train(TrainingRun(function, job, job.total_steps, label), job.output, job.resources)
    finished = job.output.finished(DONE)
    assert finished is not None
    records, note = finished
    for step in job.weights_at:
        kept = job.output.finished(f"weights-{step}")
        assert kept is not None
        records += kept[0]
    return records, note["kept"]
