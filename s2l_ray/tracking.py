"""Experiment trackers: what a run came to, told to TensorBoard, MLflow or Weights & Biases.

Each arm is a run of the tracker's own, with the arm's config, the losses of proxy and target by step, and the final
metrics. Told once, at the end, by the process that started the run: workers need neither the packages nor a password.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from s2l_ray.config import TrackingConfig

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker -> the module that speaks to it."""


@dataclass(frozen=True)
class Tracked:
    """What there is to tell of one arm.

    Attributes:
        config: all settings, flat, by dotted path, secrets left out.
        losses: model (`proxy` or `target`) -> step -> loss [nats/token].
        metrics: final score by name.
    """

    name: str
    config: Mapping[str, Any]
    losses: Mapping[str, Mapping[int, float]]
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """One tracker, told one arm at a time."""

    def tell(self, tracked: Tracked) -> None:
        """Write an arm as a run of its own."""


def trackers(config: TrackingConfig) -> Iterator[Tracker]:
    """Yield the trackers that a run is told to."""
    kinds: dict[str, type[TensorBoard | MLflow | WandB]] = {
        "tensorboard": TensorBoard,
        "mlflow": MLflow,
        "wandb": WandB,
    }
    for name in config.to:
        yield kinds[name](config)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted path."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}.")
        else:
            found[path] = value
    return found


@dataclass(frozen=True)
class TensorBoard:
    """Event files below `tracking.uri`, a folder."""

    config: TrackingConfig

    def tell(self, tracked: Tracked) -> None:
        """See `Tracker`."""
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(Path(self.config.uri or "runs") / tracked.name)) as writer:
            writer.add_text("config", f"```\n{json.dumps(dict(tracked.config), indent=1)}\n```")
            for model, losses in tracked.losses.items():
                for step, loss in losses.items():
                    writer.add_scalar(f"{model}/loss", loss, step)
            for name, value in tracked.metrics.items():
                writer.add_scalar(f"final/{name}", value, 0)


@dataclass(frozen=True)
class MLflow:
    """Runs of the experiment `tracking.project`, at `tracking.uri` or where MLflow's environment says."""

    config: TrackingConfig

    def tell(self, tracked: Tracked) -> None:
        """See `Tracker`."""
        import mlflow

        if self.config.uri:
            mlflow.set_tracking_uri(self.config.uri)
        mlflow.set_experiment(self.config.project)
        with mlflow.start_run(run_name=tracked.name):
            mlflow.log_params({name: str(value)[:500] for name, value in tracked.config.items()})
            for model, losses in tracked.losses.items():
                for step, loss in losses.items():
                    mlflow.log_metric(f"{model}/loss", loss, step=step)
            mlflow.log_metrics(dict(tracked.metrics))


@dataclass(frozen=True)
class WandB:
    """Runs of the project `tracking.project`; WANDB_MODE=offline keeps them in the folder `tracking.uri`."""

    config: TrackingConfig

    def tell(self, tracked: Tracked) -> None:
        """See `Tracker`."""
        import wandb

        with _run(wandb, self.config, tracked) as run:
            # Proxy and target have steps of their own.
            for model, losses in tracked.losses.items():
                run.define_metric(f"{model}/step")
                run.define_metric(f"{model}/loss", step_metric=f"{model}/step")
                for step, loss in losses.items():
                    run.log({f"{model}/step": step, f"{model}/loss": loss})
            run.summary.update(dict(tracked.metrics))


@contextmanager
def _run(wandb: Any, config: TrackingConfig, tracked: Tracked) -> Iterator[Any]:
    run = wandb.init(
        project=config.project, name=tracked.name, config=dict(tracked.config), dir=config.uri, reinit="finish_previous"
    )
    try:
        yield run
    finally:
        run.finish()
