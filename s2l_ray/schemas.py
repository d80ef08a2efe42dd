"""The Arrow schemas of the artifacts: what other tools may rely on.

A schema change that a reader could notice raises `SCHEMA_VERSION`, which is part of every fingerprint.
Legend: T checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

SCHEMA_VERSION = 1

SYNTHETIC_INPUT = "input.jsonl"
"""The embedded corpus as a file of `examples`."""
MODEL_FOLDER = "model"
"""Where `target` keeps its model."""
ADAPTER_FOLDER = "adapter"
"""Where it keeps the adapter by itself, if one was trained; the model has it in its weights."""
REPORT = "report.html"
"""The page of a `report`."""


def step_folder(step: int) -> str:
    """Return where `proxy` keeps the model of a step."""
    return f"step={step:06d}"


def matrix(table: pa.Table, column: str) -> NDArray[Any]:
    """Return a column of fixed-size lists as a matrix, a row for each of the table's."""
    lists = table.column(column)
    values: NDArray[Any] = lists.combine_chunks().flatten().to_numpy()
    return values.reshape(len(table), lists.type.list_size)


def is_ascending(example_id_N: NDArray[Any]) -> bool:
    """Return whether ids are in order, none of them twice."""
    return bool((example_id_N[1:] > example_id_N[:-1]).all())


def in_order(table: pa.Table) -> pa.Table:
    """Return a table in order of id; rows that are in order already, as they mostly are, are not copied."""
    return table if is_ascending(table.column("example_id").to_numpy()) else table.sort_by("example_id")


TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
"""The roles are those of `turns`; tools and calls of tools are JSON."""

EXAMPLES = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("input_file", pa.string(), nullable=False),
        pa.field("input_row", pa.int64(), nullable=False),
        pa.field("content_hash", pa.int64(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("skill", pa.string()),
        pa.field("is_wrong", pa.bool_()),
        pa.field("turns", pa.list_(TURN), nullable=False),
    ]
)
"""`skill` and `is_wrong` are labels for the comparison; no stage before it reads them."""

REJECTED = pa.schema(
    [
        pa.field("input_file", pa.string(), nullable=False),
        pa.field("input_row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

OVERLAP = pa.schema(
    [pa.field("example_id", pa.int64(), nullable=False), pa.field("grade", pa.string(), nullable=False)]
)
"""Examples of one side that are like one of the other; grades: exact, digit_blind, ngram."""

TOKENS = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_start", pa.list_(pa.int32()), nullable=False),
        pa.field("response_stop", pa.list_(pa.int32()), nullable=False),
        pa.field("num_response_tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)
"""Response spans are half-open: tokens at positions start <= i < stop count."""

CHECKPOINTS = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("epoch", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("mean_loss", pa.float64()),
    ]
)
"""Index 0 is the model before training, at step 0; `mean_loss` [nats/token] is over the steps since the last."""


def trajectories(n_checkpoints: int, steps: tuple[int, ...] = ()) -> pa.Schema:
    """Return the schema of trajectories with T = `n_checkpoints`; `steps` goes into the metadata."""
    return pa.schema(
        [
            pa.field("example_id", pa.int64(), nullable=False),
            pa.field("source", pa.string()),
            pa.field("loss_initial", pa.float32(), nullable=False),
            pa.field("loss", pa.list_(pa.float32(), n_checkpoints), nullable=False),
            pa.field("num_response_tokens", pa.int32(), nullable=False),
        ],
        metadata={"checkpoint_steps": ",".join(map(str, steps))},
    )


def hidden_states(n_dims: int) -> pa.Schema:
    """Return the schema of hidden states with `n_dims` dimensions: the mean over an example's response tokens."""
    return pa.schema(
        [
            pa.field("example_id", pa.int64(), nullable=False),
            pa.field("hidden_state", pa.list_(pa.float32(), n_dims), nullable=False),
        ]
    )


ASSIGNMENTS = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("cluster_id", pa.int32(), nullable=False),
        pa.field("distance", pa.float64(), nullable=False),
    ]
)
"""`distance` is the squared Euclidean distance to the own centroid [nats^2]."""


def centroids(n_checkpoints: int) -> pa.Schema:
    """Return the schema of centroids with T = `n_checkpoints`."""
    return pa.schema(
        [
            pa.field("stratum", pa.string(), nullable=False),
            pa.field("cluster_id", pa.int32(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("centroid", pa.list_(pa.float64(), n_checkpoints), nullable=False),
        ]
    )


SET_ASIDE = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("ratio", pa.float64(), nullable=False),
        pa.field("loss_first", pa.float32(), nullable=False),
        pa.field("loss_last", pa.float32(), nullable=False),
    ]
)
"""What the guard kept out of the clusters; losses at the first and the last checkpoint [nats/token]."""

ITERATIONS = pa.schema(
    [
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("inertia", pa.float64(), nullable=False),
        pa.field("shift", pa.float64(), nullable=False),
        pa.field("empty", pa.int32(), nullable=False),
    ]
)

SUBSET = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("stratum", pa.string()),
        pa.field("cluster_id", pa.int32()),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

PREDICTIONS = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("skill", pa.string()),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("num_response_tokens", pa.int32(), nullable=False),
        pa.field("prediction", pa.string()),
        pa.field("exact_match", pa.bool_()),
    ]
)


def predictions(verdicts: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema of predictions with a verdict for each of some metrics; null where there was none to give."""
    more = [pa.field(name, column) for name, column in verdicts.items() if name not in PREDICTIONS.names]
    return pa.schema([*PREDICTIONS, *more])


SCORES = pa.schema(
    [
        pa.field("group_by", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
"""`low` and `high` bound a 95 % interval over held-out rows; null where there is only one, as is the error."""

ARMS = pa.schema(
    [
        pa.field("arm", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
"""`low` and `high` as in `SCORES`: over held-out rows, not over seeds."""

GAINS = pa.schema(
    [
        pa.field("arm", pa.string(), nullable=False),
        pa.field("baseline", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("gain", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
"""How much better an arm's target is than its baseline's on the same held-out rows; above 0 is better, also of a loss.
The interval is that of the paired difference, again over rows and not over seeds, each comparison alone. `rows` were
judged on both sides. Arms that were judged otherwise have none, nor have metrics that are no mean over rows."""

TRAJECTORY_HEALTH = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("health", pa.string(), nullable=False),
        pa.field("roughness", pa.float64(), nullable=False),
    ]
)
"""How a row was learned, a word of `diagnostics.HEALTH`; a roughness of 1 is a trajectory that only falls or rises."""

SILHOUETTES = pa.schema(
    [pa.field("example_id", pa.int64(), nullable=False), pa.field("silhouette", pa.float64(), nullable=False)]
)
"""On a sample; 1: far from every other cluster, 0: between two, -1: in the wrong one."""

PREFIXES = pa.schema(
    [pa.field("checkpoints", pa.int32(), nullable=False), pa.field("adjusted_rand", pa.float64(), nullable=False)]
)
"""Agreement of the clusters of the first checkpoints alone with those of all; 1: the same, 0: chance."""

GRADIENTS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),
        pa.field("within", pa.float64(), nullable=False),
        pa.field("between", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("pairs_within", pa.int64(), nullable=False),
        pa.field("pairs_between", pa.int64(), nullable=False),
    ]
)
"""Mean cosine of the gradients of two rows of one cluster, and of different ones; `low` and `high` bound a 95 %
interval of their difference; not `exact` where gradients were sketched."""

PAIRED_LOSSES = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("in_subset", pa.bool_(), nullable=False),
        pa.field("proxy_loss", pa.float32(), nullable=False),
        pa.field("target_loss", pa.float32(), nullable=False),
    ]
)
"""Losses after training [nats/token] on the same rows."""
