"""`trajectories`, `clusters`, both models and `subset` of an arm -> `diagnostics`: what the method rests on, tried.

`health-*.parquet`: how each row was learned. `silhouettes.parquet` and `prefixes.parquet`: how well the clusters hang
together, and how many checkpoints would have been enough, on a sample. `gradients.parquet`: whether rows of a cluster
have alike gradients, for the proxy and for the target. `losses.parquet`: both models' losses on the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.clustering.partition import window_columns
from s2l_ray.computation import memory_checked
from s2l_ray.config import PoolResources, ResourcesConfig
from s2l_ray.diagnostics import (
    HEALTH,
    gradient_similarity,
    learned_level,
    prefix_agreement,
    rank_correlation,
    roughness,
    sample_clusters,
    silhouette,
    trajectory_health,
)
from s2l_ray.draws import Draws, occurrences
from s2l_ray.gradients import example_gradients
from s2l_ray.labels import coded
from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.models import device_and_precision, load_model
from s2l_ray.sampling import cluster_keys
from s2l_ray.stage_settings import DiagnoseSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.shards import Receipt, RowRange, map_shards, row_ranges
from s2l_ray.token_rows import TokenRows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEALTH_ROWS = 250_000
"""Rows of trajectories that are judged at once."""
CLUSTERING_ROWS = 5_000
"""Rows on which clusterings are compared: a silhouette costs the square of them."""
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Inputs:
    """Everything about one arm."""

    examples: Artifact
    proxy_tokens: Artifact
    trajectories: Artifact
    clusters: Artifact
    subset: Artifact
    target: Artifact
    target_tokens: Artifact
    target_tokenizer: Artifact
    proxy: Artifact | None = None
    """None, as its tokenizer, where the trajectories come from elsewhere."""
    proxy_tokenizer: Artifact | None = None


@dataclass(frozen=True)
class Piece:
    """A check as a unit of work."""

    piece: str
    rows: int
    step: int = 0
    """Step of the proxy, for a check of its gradients."""


@dataclass(frozen=True)
class JudgeHealth:
    """Judges the trajectories of some rows."""

    inputs: Inputs
    mean_initial: float
    learned: float
    output: StagedOutput

    def __call__(self, shard: RowRange) -> Receipt:
        """Write one file of health classes."""
        columns = ["example_id", "loss_initial", "loss"]
        table = self.inputs.trajectories.read_rows(shard.record, shard.start, shard.stop, columns)
        loss_NT, initial_N = schemas.matrix(table, "loss"), table.column("loss_initial").to_numpy()
        health_N = trajectory_health(initial_N, loss_NT, self.mean_initial, self.learned)
        part = pa.table(
            {
                "example_id": table.column("example_id"),
                "health": pa.array([HEALTH[i] for i in health_N], pa.string()),
                "roughness": roughness(initial_N, loss_NT, self.mean_initial),
            },
            schema=schemas.TRAJECTORY_HEALTH,
        )
        record = self.output.write_parquet(f"health-{shard.piece}.parquet", [part], schemas.TRAJECTORY_HEALTH)
        counts = np.bincount(health_N, minlength=len(HEALTH)).tolist()
        return [record], {"counts": counts}


@dataclass(frozen=True)
class RunCheck:
    """Runs one check in a worker; the note is what the report says of it."""

    inputs: Inputs
    config: DiagnoseSettings
    pool: PoolResources
    seed: int
    output: StagedOutput

    def __call__(self, piece: Piece) -> Receipt:
        """Write the files of a check."""
        if piece.piece == "clusterings":
            return self._clusterings()
        with memory_checked(
            "Gradients take the weights in fp32, twice. Give evaluate_target larger GPUs, or leave them out by "
            "report.sample: 0; what was trained and scored is kept."
        ):
            return self._target() if piece.piece == "target" else self._proxy(piece)

    def _clusterings(self) -> Receipt:
        rows, cluster = clustered_rows(self.inputs, self.seed), self.config.cluster
        # In order of draw: the start of a clustering depends on the order of its rows, and files are no part of it.
        chosen = np.lexsort((rows.example_id_N, rows.draw_N))[:CLUSTERING_ROWS]
        note: dict[str, Any] = {"rows": len(chosen), "silhouette": None, "prefixes": [], "ceiling": None}
        if cluster.features != "loss":
            return [], note
        loss_MT = rows.losses(self.inputs.trajectories, chosen)
        records = []
        place_P, value_P = self._silhouettes(rows, chosen, loss_MT)
        if len(value_P):
            columns = {"example_id": rows.example_id_N[chosen[place_P]], "silhouette": value_P}
            table = pa.table(columns, schema=schemas.SILHOUETTES)
            records.append(self.output.write_parquet("silhouettes.parquet", [table], schemas.SILHOUETTES))
            note |= {"silhouette": float(value_P.mean())}
        # Clusters of a window, or within strata, are no ones that the first checkpoints of all rows could give.
        if cluster.window == "all" and not np.ptp(rows.stratum_N[chosen]):
            n_clusters = min(cluster.n_clusters, len(chosen))
            agreements, ceiling = prefix_agreement(loss_MT, n_clusters, cluster.max_iter, self.seed)
            prefixes = pa.Table.from_pylist([asdict(a) for a in agreements], schema=schemas.PREFIXES)
            records.append(self.output.write_parquet("prefixes.parquet", [prefixes], schemas.PREFIXES))
            note |= {"prefixes": [asdict(a) for a in agreements], "ceiling": ceiling}
        return records, note

    def _silhouettes(
        self, rows: "ClusteredRows", chosen: NDArray[np.int64], loss_MT: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the silhouettes of the rows that have one, as rows were clustered: each stratum on its own.

        Returns:
            int64 [P], places among the chosen rows, ascending, and float64 [P].
        """
        feature_MT = loss_MT[:, window_columns(self.config.cluster.window, loss_MT.shape[1])]
        label_M, stratum_M = rows.label_N[chosen], rows.stratum_N[chosen]
        value_M = np.full(len(chosen), np.nan)
        for stratum in np.unique(stratum_M):
            of_stratum = np.flatnonzero(stratum_M == stratum)
            found = silhouette(feature_MT[of_stratum], label_M[of_stratum])
            if found is not None:
                value_M[of_stratum] = found
        place_P = np.flatnonzero(~np.isnan(value_M))
        return place_P, value_M[place_P]

    def _proxy(self, piece: Piece) -> Receipt:
        assert self.inputs.proxy is not None
        assert self.inputs.proxy_tokenizer is not None
        model = load_model(self.inputs.proxy, schemas.step_folder(piece.step))
        rows, label_M = self._sample(self.inputs.proxy_tokens)
        return [], self._similarity(model, rows, label_M, self.inputs.proxy_tokenizer)

    def _target(self) -> Receipt:
        model = load_model(self.inputs.target, schemas.MODEL_FOLDER)
        rows, label_M = self._sample(self.inputs.target_tokens)
        device, bf16 = device_and_precision(self.config.target_precision, self.pool.gpus)
        module = response_loss_module(model.to(device))
        pad_id = self.inputs.target_tokenizer.summary["pad_id"]
        target_M = mean_losses(module, rows, batch_tokens=BATCH_TOKENS, pad_id=pad_id, device=device, bf16=bf16)
        table = self._losses(rows.example_id_N, target_M)
        record = self.output.write_parquet("losses.parquet", [table], schemas.PAIRED_LOSSES)
        note = self._similarity(model, rows, label_M, self.inputs.target_tokenizer)
        return [record], note | {"correlation": _correlation(table)}

    def _sample(self, tokens: Artifact) -> tuple[TokenRows, NDArray[np.int64]]:
        """Return the tokens and clusters of the sampled rows that both models can read, in order of id."""
        clustered = clustered_rows(self.inputs, self.seed)
        chosen = sample_clusters(clustered.label_N, clustered.draw_N, self.config.sample)
        wanted = clustered.example_id_N[chosen]
        for artifact in dict.fromkeys((self.inputs.proxy_tokens, self.inputs.target_tokens)):
            there = artifact.read_examples("tokens-", wanted, ["example_id"]).column("example_id").to_numpy()
            wanted = wanted[np.isin(wanted, there)]
        rows = TokenRows.from_table(tokens.read_examples("tokens-", wanted, list(TokenRows.COLUMNS)))
        return rows, clustered.label_N[np.searchsorted(clustered.example_id_N, rows.example_id_N)]

    def _similarity(
        self, model: "PreTrainedModel", rows: TokenRows, label_M: NDArray[np.int64], tokenizer: Artifact
    ) -> dict[str, Any]:
        device: torch.device = device_and_precision("fp32", self.pool.gpus)[0]
        gradient_MD, exact = example_gradients(
            model.float(), rows, pad_id=tokenizer.summary["pad_id"], device=device, seed=self.seed
        )
        found = gradient_similarity(gradient_MD, label_M, self.seed)
        return {"rows": len(rows), "exact": exact, "similarity": None if found is None else asdict(found)}

    def _losses(self, example_id_M: NDArray[np.int64], target_M: NDArray[np.float32]) -> pa.Table:
        proxy = self.inputs.trajectories.read_examples("trajectories-", example_id_M, ["example_id", "loss"])
        chosen = self.inputs.subset.read_table("subset.parquet", ["example_id"]).column("example_id").to_numpy()
        columns = {
            "example_id": example_id_M,
            "in_subset": np.isin(example_id_M, chosen),
            "proxy_loss": schemas.matrix(proxy, "loss")[:, -1],
            "target_loss": target_M,
        }
        return pa.table(columns, schema=schemas.PAIRED_LOSSES)


@dataclass(frozen=True)
class ClusteredRows:
    """The rows that are in a cluster, in order of id, each content once: copies are alike whatever is measured.

    Attributes:
        example_id_N: int64 [N].
        stratum_N: int32 [N], a number per stratum.
        label_N: int64 [N], a number per stratum and cluster.
        draw_N: uint64 [N], the hash that orders samples.
    """

    example_id_N: NDArray[np.int64]
    stratum_N: NDArray[np.int32]
    label_N: NDArray[np.int64]
    draw_N: NDArray[np.uint64]

    def losses(self, trajectories: Artifact, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the trajectories of some of the rows, float32 [M, T], in the order they are asked for."""
        by_id = schemas.matrix(
            trajectories.read_examples("trajectories-", self.example_id_N[chosen], ["example_id", "loss"]), "loss"
        )
        return by_id[np.argsort(np.argsort(chosen))]


@lru_cache(maxsize=1)
def clustered_rows(inputs: Inputs, seed: int) -> ClusteredRows:
    """Read which row is in which cluster."""
    table = inputs.clusters.read_in_order("assignments-", ["example_id", "stratum", "cluster_id"])
    draws = Draws.of(inputs.examples.read_table("examples-", list(Draws.COLUMNS)), seed)
    draws = draws.take(table.column("example_id").to_numpy())
    first_N = np.flatnonzero(occurrences(draws.content_hash_N, draws.example_id_N) == 0)
    stratum_N = coded(table.column("stratum"))[1]
    label_N = cluster_keys(stratum_N, table.column("cluster_id").to_numpy())
    return ClusteredRows(draws.example_id_N[first_N], stratum_N[first_N], label_N[first_N], draws.draw_N[first_N])


def _correlation(table: pa.Table) -> dict[str, float | int | None]:
    """Return the rank correlation on all sampled rows, and on those that the target was not trained on."""
    proxy_M, target_M = table.column("proxy_loss").to_numpy(), table.column("target_loss").to_numpy()
    unseen_M = ~table.column("in_subset").to_numpy()
    return {
        "all": rank_correlation(proxy_M, target_M),
        "unseen": rank_correlation(proxy_M[unseen_M], target_M[unseen_M]),
        "rows_unseen": int(unseen_M.sum()),
    }


def diagnose_selection(
    inputs: Inputs, config: DiagnoseSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Judge trajectories and clusters, and compare gradients and losses on a sample."""
    initial_N, last_N = _ends(inputs.trajectories)
    learned = learned_level(initial_N, last_N)
    shards = row_ranges(inputs.trajectories, "trajectories-", HEALTH_ROWS)
    pool = resources.evaluate_target
    judge = JudgeHealth(inputs, float(initial_N.mean(dtype=np.float64)), learned, output)
    # No model computes there.
    without_gpus = pool.model_copy(update={"gpus": 0.0})
    judged = map_shards(judge, shards, output, without_gpus, label="judge trajectories")
    checks = [Piece("clusterings", CLUSTERING_ROWS)]
    if config.sample and inputs.proxy is not None:
        steps = inputs.proxy.summary["checkpoint_steps"]
        middle, last = steps[(len(steps) - 1) // 2], steps[-1]
        checks += [Piece(f"proxy-{step}", config.sample, step) for step in dict.fromkeys((middle, last))]
    if config.sample:
        checks.append(Piece("target", config.sample))
    work = RunCheck(inputs, config, pool, seed, output)
    checked = map_shards(work, checks, output, pool, label="check clusters")
    notes = {check.piece: note for check, (_, note) in zip(checks, checked, strict=True)}
    records = [record for written, _ in (*judged, *checked) for record in written]
    counts = np.sum([note["counts"] for _, note in judged], axis=0)
    gradients = _gradients(inputs, checks, notes)
    records.append(output.write_parquet("gradients.parquet", [gradients], schemas.GRADIENTS))
    summary = {
        "health": dict(zip(HEALTH, counts.tolist(), strict=True)),
        "learned_level": learned,
        "roughness": float(np.median(np.concatenate([_roughness(record, output) for (record,), _ in judged]))),
        "clusterings": notes["clusterings"],
        "gradients": gradients.to_pylist(),
        "correlation": notes.get("target", {}).get("correlation"),
    }
    return StageResult(records, summary)


def _roughness(record: FileRecord, output: StagedOutput) -> NDArray[np.float64]:
    return np.asarray(output.read_parquet(record.path, ["roughness"]).column(0).to_numpy())


def _ends(trajectories: Artifact) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each row's loss before training and at the last checkpoint, a file in memory at a time."""
    parts = []
    for record in trajectories.files("trajectories-"):
        table = trajectories.read_rows(record, columns=["loss_initial", "loss"])
        parts.append((table.column("loss_initial").to_numpy(), schemas.matrix(table, "loss")[:, -1].copy()))
    return np.concatenate([initial for initial, _ in parts]), np.concatenate([last for _, last in parts])


def _gradients(inputs: Inputs, checks: Sequence[Piece], notes: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    rows = []
    for check in checks:
        similarity = notes[check.piece].get("similarity")
        if similarity is not None:
            model = "target" if check.piece == "target" else "proxy"
            step = inputs.target.summary["steps"] if model == "target" else check.step
            facts = {name: notes[check.piece][name] for name in ("rows", "exact")}
            rows.append({"model": model, "step": step, **facts, **similarity})
    return pa.Table.from_pylist(rows, schema=schemas.GRADIENTS)
