"""Training: which examples make up which step, at which learning rate, and the one loop over an engine.

What a step computes is a function of the config, the rows and the step's number alone; how many workers share it
changes only the order of additions. A step's loss is the sum of token losses over the number of response tokens
in the *global* batch.
Legend: N examples, B global batch.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from s2l_ray.config import derive_seed
from s2l_ray.engines import Engine
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.token_rows import Batch, TokenRows

LOG_STEPS = 10


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine that would be zero one step after `total_steps`."""

    total_steps: int
    peak: float
    warmup: float

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step 1..total_steps."""
        warmup_steps = math.ceil(self.warmup * self.total_steps)
        if step <= warmup_steps:
            return self.peak * step / warmup_steps
        done = (step - 1 - warmup_steps) / max(1, self.total_steps - warmup_steps)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


def checkpoint_steps(total_steps: int, wanted: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the steps after which a checkpoint is kept.

    A number is spread evenly and capped by the number of steps; the last step is always among them.

    Raises:
        ConfigError: a listed step lies beyond the run.
    """
    if isinstance(wanted, int):
        count = min(wanted, total_steps)
        return tuple(round(total_steps * (i + 1) / count) for i in range(count))
    if wanted[-1] > total_steps:
        raise ConfigError(
            f"proxy.checkpoints: found step {wanted[-1]}, but the run has {total_steps} steps. Drop those beyond it."
        )
    return wanted


def steps_for(n_rows: int, epochs: float, global_batch_size: int) -> int:
    """Return the optimizer steps that `epochs` passes over `n_rows` rows take."""
    return max(1, math.ceil(n_rows * _exact(epochs) / global_batch_size))


def rows_for(n_rows: int, epochs: float) -> int:
    """Return the rows that `epochs` passes see, counted with repetition."""
    return math.ceil(n_rows * _exact(epochs))


def _exact(epochs: float) -> Fraction:
    # In floats 70 rows * 1.1 epochs is above 77, which would be one row, or one empty step, too many.
    return Fraction(str(epochs))


@dataclass(frozen=True)
class BatchOrder:
    """Which examples each step sees: epochs of permutations behind one another, cut into global batches.

    With `in_order` every epoch runs through the rows as they are.
    """

    n_rows: int
    global_batch_size: int
    total_rows: int
    seed: int
    in_order: bool = False

    def global_batch(self, step: int) -> NDArray[np.int64]:
        """Return the row positions of step 1, 2, ..."""
        start = (step - 1) * self.global_batch_size
        stop = min(start + self.global_batch_size, self.total_rows)
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.n_rows)
            take = min(stop - start, self.n_rows - offset)
            parts.append(self._epoch(epoch)[offset : offset + take])
            start += take
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(self.n_rows) if self.in_order else _permutation(self.n_rows, self.seed, epoch)


@lru_cache(maxsize=1)
def _permutation(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n_rows)


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one worker computes."""

    rank: int
    world_size: int
    micro_batch_size: int
    global_batch_size: int

    @property
    def micro_batches(self) -> int:
        """Forward passes per step: the same for every worker and step, since engines synchronise on them."""
        return math.ceil(math.ceil(self.global_batch_size / self.world_size) / self.micro_batch_size)

    def cut(self, positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return this worker's micro-batches of a global batch; the last ones may be empty."""
        own = positions[self.rank :: self.world_size]
        size = self.micro_batch_size
        return [own[i * size : (i + 1) * size] for i in range(self.micro_batches)]


@dataclass(frozen=True)
class StepReport:
    """What a stretch of steps came to, over all workers."""

    step: int
    epoch: float
    learning_rate: float
    mean_loss: float
    """Mean over the steps since the last report [nats/token]."""
    response_tokens: int
    """Since the last report."""


@dataclass(frozen=True)
class Plan:
    """A whole training run, before it starts."""

    rows: TokenRows
    order: BatchOrder
    schedule: Schedule
    share: Share
    pad_id: int

    def micro_batches(self, step: int) -> tuple[list[Batch | None], int]:
        """Return this worker's batches of a step (None: nothing to do) and the response tokens of the global batch."""
        positions = self.order.global_batch(step)
        tokens = int(self.rows.num_response_tokens_N[positions].sum())
        # Which examples make up the step is settled; within it, examples of like length share a forward pass, so that
        # little is padded and workers have equal shares.
        lengths = self.rows.token_offset[positions + 1] - self.rows.token_offset[positions]
        positions = positions[np.argsort(-lengths, kind="stable")]
        batches = [self.rows.batch(part, self.pad_id) if len(part) else None for part in self.share.cut(positions)]
        return batches, tokens

    def epoch_of(self, step: int) -> float:
        """Return the passes over the rows after a step."""
        return min(step * self.order.global_batch_size, self.order.total_rows) / self.order.n_rows

    def seed_of(self, step: int) -> int:
        """Return the seed of this worker's dropout in a step, so that a resumed run draws what it would have drawn."""
        return derive_seed(self.order.seed, f"step {step} rank {self.share.rank}")


@dataclass(frozen=True)
class Position:
    """Where a run stands: what is needed, besides the engine's state, to go on as if it had not stopped."""

    step: int = 0
    loss_sum: float = 0.0
    """Of all workers, since the last kept step [nats]."""
    tokens: int = 0
    """Response tokens since the last kept step."""
    log_loss_sum: float = 0.0
    """Of all workers, since the last report [nats]."""
    log_tokens: int = 0
    """Response tokens since the last report."""


def pauses(total_steps: int, every: int | None) -> frozenset[int]:
    """Return the steps after which a run may be left and gone on from: about every `every` steps, a fifth unless set.

    They fall on steps where losses are summed anyway, so that they cannot be seen in any reported number.
    """
    wanted = every or max(1, total_steps // 5)
    stride = math.ceil(wanted / LOG_STEPS) * LOG_STEPS
    return frozenset(range(stride, total_steps, stride))


def train_loop(
    engine: Engine,
    plan: Plan,
    *,
    start: Position,
    keep: Collection[int],
    pause: Collection[int],
    on_step: Callable[[StepReport], None],
    on_keep: Callable[[StepReport], None],
    on_pause: Callable[[Position], None],
    is_urgent: Callable[[int], bool] = lambda step: False,
) -> None:
    """Train from after `start` to the end.

    Args:
        engine: holds the model; computes and applies a step.
        plan: what every step does.
        start: steps done already.
        keep: steps after which `on_keep` is called, with the losses since the last of them.
        pause: steps after which `on_pause` is called, last of all; from `pauses`.
        on_step: called every `LOG_STEPS` steps and at the end, with the losses since the last call.
        is_urgent: asked after a step whether to pause there too; all workers must answer alike.

    Raises:
        DataError: the loss is NaN or infinite.
    """
    log, kept = _Tally(start.log_loss_sum, start.log_tokens), _Tally(start.loss_sum, start.tokens)
    own = _Tally()
    total = plan.schedule.total_steps
    for step in range(start.step + 1, total + 1):
        batches, tokens = plan.micro_batches(step)
        rate = plan.schedule.learning_rate(step)
        own.add(engine.train_step(batches, tokens, rate, plan.seed_of(step)), tokens)
        at_log = step % LOG_STEPS == 0 or step == total
        leave = step in pause or is_urgent(step)
        if not (at_log or step in keep or leave):
            continue
        seen = _over_workers(engine, own, step)
        own = _Tally()
        for tally in (log, kept):
            tally.add(seen.loss_sum, seen.tokens)
        if at_log:
            on_step(log.report(step, plan.epoch_of(step), rate))
            log = _Tally()
        if step in keep:
            on_keep(kept.report(step, plan.epoch_of(step), rate))
            kept = _Tally()
        if leave:
            on_pause(Position(step, kept.loss_sum, kept.tokens, log.loss_sum, log.tokens))


@dataclass
class _Tally:
    loss_sum: float = 0.0
    tokens: int = 0

    def add(self, loss_sum: float, tokens: int) -> None:
        self.loss_sum += loss_sum
        self.tokens += tokens

    def report(self, step: int, epoch: float, rate: float) -> StepReport:
        return StepReport(step, epoch, rate, self.loss_sum / max(1, self.tokens), self.tokens)


def _over_workers(engine: Engine, own: _Tally, step: int) -> _Tally:
    loss_sum = engine.sum_over_workers(own.loss_sum)
    if not math.isfinite(loss_sum):
        raise DataError(
            f"the training loss is {loss_sum} at step {step}. Lower the learning rate, or train in another precision "
            "(`precision: bf16` or `fp32`)."
        )
    return _Tally(loss_sum, own.tokens)


def matched_rows(
    match: Literal["epochs", "steps", "tokens"],
    *,
    epochs: float,
    steps: int | None,
    batch: int,
    n_rows: int,
    n_full: int,
    tokens: int,
    tokens_full: int,
) -> int:
    """Return how many rows a run over a subset sees in all, counted with repetition.

    `epochs`: its own passes. `steps`: as many as a run over the full data would. `tokens`: as many response tokens,
    in expectation. Explicit `steps` win over all three.
    """
    if steps is not None:
        return steps * batch
    if match == "steps":
        return steps_for(n_full, epochs, batch) * batch
    if match == "tokens":
        return math.ceil(_exact(epochs) * tokens_full * n_rows / tokens)
    return rows_for(n_rows, epochs)
