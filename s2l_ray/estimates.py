"""What is still to be computed, in tokens, time and memory, before it starts: the models' part of a plan.

Tokens are counted, since the tokens are there; speed and memory were measured on one worker by `stages.probe`. What is
left out is small, or not known before: starting processes, reading and clustering, and how evenly workers share.

Sources:
    Memory of weights, gradients and the optimizer's moments over workers: Rajbhandari et al. 2020 (arXiv 1910.02054).
    FLOPs: see `costs`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from s2l_ray.artifacts import Artifact
from s2l_ray.budgets import parse_budget, rows_in_budget
from s2l_ray.config import Demand, ModelConfig, ProxyConfig, SelectConfig, TargetConfig
from s2l_ray.costs import ADAPTER_FLOPS, FORWARD_FLOPS, TRAINING_FLOPS
from s2l_ray.graph import Node
from s2l_ray.log import duration
from s2l_ray.training import checkpoint_steps, matched_rows, rows_for, steps_for

MODEL_STAGES = ("train_proxy", "score_examples", "embed_examples", "finetune_target")
"""The stages whose time is the models'."""
UNITS = ("GPU hours", "CPU hours")
WEIGHT, GRADIENT, MOMENTS = 4, 4, 8
"""Bytes of a parameter in fp32, of its gradient, and of the two moments that AdamW keeps of it."""


@dataclass(frozen=True)
class Pace:
    """How fast one worker is with a model.

    Attributes:
        parameters: all of them.
        trained: those that training changes; fewer beside an adapter.
        tokens_per_second: passed through the model; None where it is too large for one worker by itself.
        memory: most that the process held [bytes], on a GPU most that was allocated there; None as above.
    """

    parameters: int
    trained: int
    tokens_per_second: float | None
    memory: int | None


@dataclass(frozen=True)
class Estimate:
    """What one artifact will take.

    Attributes:
        label: the artifact, as the plan calls it.
        tokens: that pass through the model, counted as often as they do.
        flops: of all workers together.
        seconds: from start to end; None where there was nothing to go by.
        unit_hours: time that is taken up on all processors, in `unit`.
        unit: of `UNITS`, the latter where no GPU is asked for.
        memory: per worker [bytes].
        is_measured: whether this model was timed; else the time follows from another model's FLOPs per second, and the
            memory is that of weights, gradients and moments alone.
    """

    label: str
    tokens: float
    flops: float
    seconds: float | None
    unit_hours: float | None
    unit: str
    memory: int
    is_measured: bool

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A node's work for a model.

    Attributes:
        model: whose section of the config.
        key: `proxy` or `target`.
        trains: else the model only reads.
        demand: what its stage asks of the cluster.
        workers: how many share the work.
        tokens: passed through the model, as `Estimate.tokens`.
    """

    node: Node
    model: ModelConfig
    key: str
    trains: bool
    demand: Demand
    workers: int
    tokens: float

    @property
    def flops_per_parameter(self) -> int:
        """Per token."""
        if not self.trains:
            return FORWARD_FLOPS
        return ADAPTER_FLOPS if isinstance(self.model, TargetConfig) and self.model.lora else TRAINING_FLOPS


def task_of(node: Node, tokens: Artifact, demand: Demand, workers: int) -> Task:
    """Return what a node that is to be made asks of a model.

    Args:
        node: of one of `MODEL_STAGES`.
        tokens: what it reads.
        demand: what its stage asks of the cluster.
        workers: how many will share the work.
    """
    counted, n_rows = tokens.summary["tokens"], tokens.summary["rows_kept"]
    if node.stage == "finetune_target":
        target: TargetConfig = node.config.model
        rows_seen = _target_rows(target, node.inputs["subset"].config.select, tokens)
        return Task(node, target, "target", True, demand, workers, counted / n_rows * rows_seen)
    proxy: ProxyConfig = (node if node.stage == "train_proxy" else node.inputs["proxy"]).config.model
    seen = proxy.steps * proxy.global_batch_size if proxy.steps else rows_for(n_rows, proxy.epochs)
    if node.stage == "train_proxy":
        return Task(node, proxy, "proxy", True, demand, workers, counted / n_rows * seen)
    checkpoints = checkpoint_steps(steps_for(seen, 1, proxy.global_batch_size), proxy.checkpoints)
    passes = 1 if node.stage == "embed_examples" else len(checkpoints) + 1
    return Task(node, proxy, "proxy", False, demand, workers, float(counted * passes))


def _target_rows(target: TargetConfig, select: SelectConfig, tokens: Artifact) -> int:
    """Return the rows that fine-tuning sees; those of the subset are taken to be as long as others."""
    n_rows = n_full = tokens.summary["rows_kept"]
    budget = parse_budget(select.budget)
    if select.method != "full" and budget.kind == "tokens":
        n_rows = min(n_full, max(1, round(n_full * budget.amount / tokens.summary["tokens"])))
    elif select.method != "full":
        n_rows = rows_in_budget(budget, n_full)
    return matched_rows(
        target.match,
        epochs=target.epochs,
        steps=target.steps,
        batch=target.global_batch_size,
        n_rows=n_rows,
        n_full=n_full,
        tokens=n_rows,
        tokens_full=n_full,
    )


def estimates(tasks: Mapping[str, Task], paces: Mapping[str, Pace]) -> Iterator[Estimate]:
    """Yield what every task will take.

    Args:
        tasks: label -> task.
        paces: the same labels.
    """
    measured = [
        pace.tokens_per_second * pace.parameters * tasks[label].flops_per_parameter
        for label, pace in paces.items()
        if pace.tokens_per_second is not None and tasks[label].trains
    ]
    for label, task in tasks.items():
        pace = paces[label]
        per_token = pace.parameters * task.flops_per_parameter
        rate = pace.tokens_per_second
        if rate is None and measured:
            rate = max(measured) / per_token
        seconds = None if rate is None else task.tokens / (rate * task.workers)
        per_worker = task.demand.gpus or task.demand.cpus
        yield Estimate(
            label=label,
            tokens=task.tokens,
            flops=task.tokens * per_token,
            seconds=seconds,
            unit_hours=None if seconds is None else seconds * task.workers * per_worker / 3600,
            unit=UNITS[0] if task.demand.gpus else UNITS[1],
            memory=_memory(task, pace),
            is_measured=pace.tokens_per_second is not None,
        )


def state_bytes(task: Task, pace: Pace, workers: int = 1) -> int:
    """Return the bytes of weights, gradients and moments that one of some workers holds."""
    weights = WEIGHT * pace.parameters
    gradients, moments = (each * pace.trained if task.trains else 0 for each in (GRADIENT, MOMENTS))
    stage = task.model.zero_stage if isinstance(task.model, TargetConfig) and task.model.engine == "deepspeed" else 0
    parts = ((moments, 1), (gradients, 2), (weights, 3))
    return sum(amount // workers if stage >= least else amount for amount, least in parts)


def _memory(task: Task, pace: Pace) -> int:
    shared = state_bytes(task, pace, task.workers)
    return shared if pace.memory is None else pace.memory - state_bytes(task, pace) + shared


def table_of(found: Sequence[Estimate]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of a table."""
    rows = [
        [
            each.label,
            f"{each.tokens:.3g}",
            f"{each.flops:.2g}",
            "?" if each.seconds is None else f"{'' if each.is_measured else 'about '}{duration(each.seconds)}",
            "?" if each.unit_hours is None else f"{each.unit_hours:.2g} {each.unit}",
            f"{'' if each.is_measured else 'over '}{each.memory / 2**30:.1f} GiB",
        ]
        for each in found
    ]
    known = [each for each in found if each.seconds is not None]
    hours = {unit: sum(each.unit_hours or 0.0 for each in known if each.unit == unit) for unit in UNITS}
    total = ", ".join(f"{amount:.2g} {unit}" for unit, amount in hours.items() if amount)
    one_by_one = duration(sum(each.seconds or 0.0 for each in known))
    rows.append(["together, one after the other", "", "", one_by_one, total, ""])
    return ["artifact", "tokens", "FLOPs", "time", "processors", "memory per worker"], rows
