"""What selecting costs, and what the smaller subset saves on the target: seconds as measured, tokens and FLOPs counted.

Training costs 6 FLOPs per parameter and token (4 beside a low-rank adapter), a forward pass 2 (Kaplan et al. 2020,
arXiv 2001.08361); attention and the head's smaller share are left out, so these are estimates, and the seconds are what
was measured.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact

TRAINING_FLOPS, ADAPTER_FLOPS, FORWARD_FLOPS = 6, 4, 2
"""Per parameter and token; beside an adapter the weights themselves get no gradient."""
SELECTING = ("proxy", "trajectories", "hidden_states", "clusters", "subset")
"""Artifacts that selecting is the making of."""
NOTICEABLE = 1.05
"""Less than this much more work on all rows is no saving."""
_HEADER_BYTES = 8


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes:
        seconds: as measured, on whatever it ran.
        tokens: passed through a model, counted as often as they were; None where there is no model.
        flops: estimated; None where there is no model.
    """

    name: str
    seconds: float
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Ledger:
    """What an arm cost, and what training the target on all rows costs instead.

    Attributes:
        selecting: proxy, scoring, clustering and drawing; empty of models for an arm that draws at random.
        target: fine-tuning on the subset.
        full: fine-tuning on all rows under the same `match`.
        full_is_measured: whether an arm `full` was run; else `full` follows from the target's seconds per row seen.
    """

    selecting: Sequence[Work]
    target: Work
    full: Work
    full_is_measured: bool

    @property
    def selecting_seconds(self) -> float:
        """Seconds that selecting took."""
        return sum(work.seconds for work in self.selecting)

    @property
    def saved_seconds(self) -> float:
        """Seconds that one fine-tuning on the subset saves; about 0 where arms take equal steps."""
        return self.full.seconds - self.target.seconds

    @property
    def break_even(self) -> float | None:
        """Fine-tunings after which selecting has paid for itself; None where one saves nothing."""
        return self.selecting_seconds / self.saved_seconds if self.saves and self.saved_seconds > 0 else None

    @property
    def saves(self) -> bool:
        """Whether a fine-tuning on the subset is less work: where arms take equal steps, seconds differ by noise."""
        return (self.full.tokens or 0.0) > NOTICEABLE * (self.target.tokens or 0.0)

    @property
    def break_even_ratio(self) -> float | None:
        """How many times the proxy's FLOPs per token the target must cost for one fine-tuning to pay; None: never."""
        selecting = sum(work.flops or 0.0 for work in self.selecting)
        saved = (self.full.tokens or 0.0) - (self.target.tokens or 0.0)
        proxy = next((work for work in self.selecting if work.name == PROXY), None)
        if not self.saves or proxy is None or not proxy.tokens or not proxy.flops:
            return None
        return selecting / (proxy.flops / proxy.tokens * saved)


PROXY, SCORING, EMBEDDING, CLUSTERING, DRAWING = "train proxy", "score", "embed", "cluster", "draw"
TARGET = "fine-tune target"


def ledger(made: Mapping[str, Artifact], full: Mapping[str, Artifact] | None, *, by_epochs: bool) -> Ledger:
    """Add up what an arm cost.

    Args:
        made: by name, as `plan` calls them: `proxy`, `proxy_tokens`, `trajectories`, ..., what the arm has of them.
        full: the same of an arm that trained on all rows; None where there is none.
        by_epochs: whether training on more rows takes more steps; where arms take equal steps it does not.
    """
    target = _target_work(made)
    if full is not None:
        return Ledger(_selecting(made), target, _target_work(full), True)
    subset = made["subset"].summary
    growth = subset["rows_pool"] / subset["rows"] if by_epochs else 1.0
    counted = (None if amount is None else amount * growth for amount in (target.tokens, target.flops))
    return Ledger(_selecting(made), target, Work(TARGET, target.seconds * growth, *counted), False)


def arm_seconds(made: Mapping[str, Artifact]) -> dict[str, float]:
    """Return how long an arm took: `select` (proxy, scoring, clustering, drawing) and `train` (the target) [s].

    Args:
        made: by name, what the arm has.
    """
    seconds = {name: float(artifact.manifest.run["seconds"]) for name, artifact in made.items()}
    return {"select": sum(seconds.get(artifact, 0.0) for artifact in SELECTING), "train": seconds["target"]}


def _selecting(made: Mapping[str, Artifact]) -> list[Work]:
    found = []
    if "proxy" in made:
        proxy, tokens = made["proxy"], made["proxy_tokens"].summary["tokens"]
        parameters = count_parameters(proxy, f"{schemas.step_folder(proxy.summary['checkpoint_steps'][-1])}/")
        epochs = proxy.read_table("checkpoints.parquet", ["epoch"]).column(0).to_pylist()[-1]
        found.append(_work(PROXY, proxy, tokens * epochs, TRAINING_FLOPS * parameters))
        if "trajectories" in made:
            passes = len(proxy.summary["checkpoint_steps"]) + 1
            found.append(_work(SCORING, made["trajectories"], tokens * passes, FORWARD_FLOPS * parameters))
        if "hidden_states" in made:
            found.append(_work(EMBEDDING, made["hidden_states"], tokens, FORWARD_FLOPS * parameters))
    if "clusters" in made:
        found.append(_work(CLUSTERING, made["clusters"]))
    return [*found, _work(DRAWING, made["subset"])]


def _target_work(made: Mapping[str, Artifact]) -> Work:
    target, subset = made["target"], made["subset"].summary
    tokens = subset["target_tokens"] * target.summary["rows_seen"] / max(1, subset["rows"])
    per_parameter = ADAPTER_FLOPS if target.files(f"{schemas.ADAPTER_FOLDER}/") else TRAINING_FLOPS
    return _work(TARGET, target, tokens, per_parameter * count_parameters(target, f"{schemas.MODEL_FOLDER}/"))


def _work(name: str, artifact: Artifact, tokens: float | None = None, per_token: float = 0.0) -> Work:
    seconds = float(artifact.manifest.run["seconds"])
    return Work(name, seconds, tokens, None if tokens is None else tokens * per_token)


def count_parameters(artifact: Artifact, prefix: str) -> int:
    """Count the parameters in the safetensors files below a folder of an artifact; only their headers are read."""
    total = 0
    for record in artifact.files(prefix):
        if record.path.endswith(".safetensors"):
            with artifact.storage.open_input(artifact.path(record.path)) as stream:
                size = int.from_bytes(stream.read(_HEADER_BYTES), "little")
                header: dict[str, Any] = json.loads(stream.read(size))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
