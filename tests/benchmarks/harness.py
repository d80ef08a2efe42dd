"""What a benchmark is, the machine's own limits, and the table in which the results are printed."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SLOW_SECONDS = 0.2


@dataclass(frozen=True)
class Ratio:
    """One figure against its peer's.

    Attributes:
        work: what was done.
        ours, peer: medians over the rounds, in `unit`.
        peer_name: who else did it, or what it is held against.
    """

    work: str
    peer_name: str
    ours: float
    peer: float
    unit: str
    rounds: int = 1

    @property
    def value(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {**asdict(self), "ratio": round(self.value, 4)}

    def __str__(self) -> str:
        figures = f"{self.ours:.3g} against {self.peer:.3g} {self.unit}"
        return f"  {self.value:6.2f}  {self.work}: {figures} of {self.peer_name}"


@dataclass(frozen=True)
class Benchmark:
    """A named measurement.

    Attributes:
        is_large: left out unless asked for by name or with `--all`.
    """

    name: str
    says: str
    measure: Callable[[], Iterator[Ratio]]
    is_large: bool = False


def alternate(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Run both sides by turns, so that what disturbs the machine disturbs both; return their median seconds."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            started = time.perf_counter()
            (ours, peer)[side]()
            seconds[side].append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def peaks() -> dict[str, float | int | str]:
    """Measure what the machine can do: large matrix products [GFLOP/s] and a memory copy [GB/s], all cores."""
    import torch

    found: dict[str, float | int | str] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
    }
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"{name}_gflops"] = _product_gflops(dtype)
    block = np.ones(1 << 26, np.uint8)
    found["copy_gb_per_s"] = round(2 * block.nbytes / _best(block.copy) / 1e9, 1)
    return found


def _product_gflops(dtype: "torch.dtype") -> float:
    """Multiply matrices of up to 2,048 rows; smaller ones where that takes seconds, as bf16 on a CPU without it."""
    import torch

    for size in (512, 1024, 2048):
        a = torch.randn(size, size).to(dtype)
        seconds = _best(lambda a=a: a @ a)
        if seconds > SLOW_SECONDS:
            break
    return round(2 * size**3 / seconds / 1e9, 1)


def _best(work: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
