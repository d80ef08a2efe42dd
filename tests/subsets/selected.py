"""Experiments as a run leaves them at their subsets: real examples and subsets, the models' work made up."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult, find_artifact
from s2l_ray.attempts import begin
from s2l_ray.clustering.guard import set_aside
from s2l_ray.config import InputPath, ResourcesConfig
from s2l_ray.digests import DigestCache
from s2l_ray.draws import occurrences
from s2l_ray.examples import Example, RejectedRow, examples_table, held_out, read_examples
from s2l_ray.experiment import Experiment, experiment_of, parse_sparse
from s2l_ray.extension import arm_to_extend, build_extension
from s2l_ray.graph import Node, Pipeline, examine
from s2l_ray.layouts import detect_layouts, distinct
from s2l_ray.plan import build_pipeline
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import assign_trajectories, import_trajectories, select_subset
from s2l_ray.storage import Storage
from s2l_ray.tokens import TokenizedExample, tokens_table

T = 4
FRESH = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LAST = ("target", "scores", "comparison", "eval_tokens")
VERSIONS = {"s2l-ray": "0.1.0", "python": "3.11"}


def experiment(**sections: Any) -> Experiment:
    """An experiment with models of random weights; `sections` as in a file."""
    data = {
        "proxy": {"model": FRESH},
        "target": {"model": FRESH},
        "evaluate": {"held_out": 0.1},
        "cluster": {"n_clusters": 3},
        "select": {"budget": 0.5},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return experiment_of(parse_sparse(data, [], origin="x.yaml", name="x"))


def make(storage: Storage, of: Experiment, until: str = "select_subset") -> dict[str, Artifact]:
    """Make what leads to the subsets of an experiment; return these by arm, as far as they go."""
    pipeline = build_pipeline(of)
    known = _make_all(storage, pipeline, [node.stage for node in pipeline.until(until).nodes])
    subsets = {arm: pipeline.comparison.inputs[f"subset/{arm}"].key for arm in of.arms}
    return {arm: known[key] for arm, key in subsets.items() if key in known}


def extension_of(storage: Storage, of: Experiment, rows: Path, budget: int | float | str | None = None) -> Artifact:
    """Make an extension of the subset of an experiment's only arm that can have one."""
    pipeline = build_extension(of, arm_to_extend(of, None), InputPath(path=str(rows)), budget)
    known = _make_all(storage, pipeline, [node.stage for node in pipeline.nodes])
    return known[pipeline.nodes[-1].key]


def _make_all(storage: Storage, pipeline: Pipeline, stages: list[str]) -> dict[str, Artifact]:
    """Make what is missing of a pipeline's stages; return what is there, by node key."""
    while True:
        digests = DigestCache(storage)
        for node in pipeline.nodes:
            if node.outside is not None and node.outside.files:
                digests.compute(node.outside.files, node.outside.facts)
        states = list(examine(pipeline, storage, digests))
        known = {state.node.key: state.artifact for state in states if state.artifact}
        todo = [s for s in states if s.artifact is None and s.fingerprint and s.node.stage in stages]
        if not todo:
            return known
        for state in todo:
            if find_artifact(storage, state.node.artifact, state.fingerprint) is None:
                _make(storage, state.node, state.fingerprint, known)


def subset_of(storage: Storage, **sections: Any) -> Artifact:
    """Make the subset of an experiment of one arm."""
    return make(storage, experiment(**sections))["main"]


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def alpaca(n: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}", "output": f"It is {i}.", **more} for i in range(start, start + n)]


def _make(storage: Storage, node: Node, fingerprint: str, known: Mapping[str, Artifact]) -> None:
    inputs = {name: known[parent.key] for name, parent in node.inputs.items()}
    output = begin(storage, node.artifact, fingerprint)
    assert output is not None
    maker: Callable[..., StageResult] = _MAKERS[node.stage]
    result = maker(inputs, node, output)
    output.commit(
        result.files,
        config={"settings": dict(node.settings), "seed": node.seed},
        inputs={name: artifact.digest for name, artifact in inputs.items()},
        summary=result.summary,
        run={"seconds": 1.0, "finished": "2024-01-01T00:00:00Z", "versions": VERSIONS},
    )


def _examples(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    config = node.config
    layouts = detect_layouts(config.files, config.examples.format, config.examples.columns, key=config.key)
    items = [item for file in config.files for item in read_examples(file, layouts[file.name])]
    kept = [item for item in items if isinstance(item, Example)]
    rejected = [item for item in items if isinstance(item, RejectedRow)]
    if config.held_out:
        held = held_out(np.array([e.content_hash for e in kept], np.int64), config.held_out)
        kept = [e for e, h in zip(kept, held, strict=True) if h == (config.part == "held_out")]
    bad = pa.Table.from_pylist([{n: getattr(r, n) for n in schemas.REJECTED.names} for r in rejected], schemas.REJECTED)
    records = [output.write_parquet("examples-00000.parquet", [examples_table(kept)], schemas.EXAMPLES)]
    records.append(output.write_parquet("rejected.parquet", [bad], schemas.REJECTED))
    told = [layout.as_json() for layout in distinct(layouts)]
    summary = {"rows_in": len(items), "rows_kept": len(kept), "rows_rejected": len(rejected), "layouts": told}
    return StageResult(records, summary)


def _tokens(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    ids = inputs["examples"].read_table("examples-", ["example_id"]).column("example_id").to_pylist()
    last = node.config.max_tokens
    rows = [TokenizedExample([2, 3 + i % 9, last], [1], [3], truncated=False) for i in range(len(ids))]
    table = tokens_table(ids, [None] * len(ids), rows)
    return StageResult([output.write_parquet("tokens-00000.parquet", [table], table.schema)], {})


def _trajectories(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    ids = inputs["tokens"].read_table("tokens-", ["example_id"]).column("example_id").to_numpy()
    fall_N = np.random.default_rng(int(inputs["proxy"].manifest.config["seed"]) % 2**32).random(len(ids))
    loss_NT = (4 - 3 * fall_N[:, None] * np.linspace(0.1, 1, T)).astype(np.float32)
    schema = schemas.trajectories(T)
    table = pa.table(
        {
            "example_id": ids,
            "source": pa.nulls(len(ids), pa.string()),
            "loss_initial": np.full(len(ids), 4, np.float32),
            "loss": pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), T),
            "num_response_tokens": np.full(len(ids), 2, np.int32),
        },
        schema=schema,
    )
    return StageResult([output.write_parquet("trajectories-00000.parquet", [table], schema)], {"n_checkpoints": T})


def _clusters(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    """Cut the last losses into equal parts, within each source where it is asked for."""
    table = inputs["trajectories"].read_table("trajectories-").sort_by("example_id")
    examples = inputs["examples"].read_table("examples-").sort_by("example_id")
    id_N, loss_NT = table.column("example_id").to_numpy(), schemas.matrix(table, "loss")
    hash_N = examples.column("content_hash").to_numpy()
    kept_N, records = np.ones(len(id_N), bool), []
    if node.config.guard is not None:
        occurrence_N = occurrences(hash_N, id_N)
        mean_initial = float(table.column("loss_initial").to_numpy()[occurrence_N == 0].mean(dtype=np.float64))
        found = set_aside(loss_NT, occurrence_N, mean_initial, node.config.guard)
        kept_N, aside = found.kept_N, np.flatnonzero(~found.kept_N)
        columns = [id_N[aside], found.reason_N[aside], found.ratio_N[aside], loss_NT[aside, 0], loss_NT[aside, -1]]
        records.append(
            output.write_parquet(
                "set_aside-00000.parquet", [pa.table(columns, schema=schemas.SET_ASIDE)], schemas.SET_ASIDE
            )
        )
    by_source = node.config.stratify_by == "source"
    stratum_N = np.array([s or "" if by_source else "" for s in examples.column("source").to_pylist()], object)[kept_N]
    last_N = loss_NT[kept_N, -1]
    edges = np.quantile(last_N, np.linspace(0, 1, node.config.n_clusters + 1)[1:-1])
    cluster_N = np.searchsorted(edges, last_N).astype(np.int32)
    assigned, centroids = [], []
    for stratum in sorted(set(stratum_N)):
        for cluster in range(node.config.n_clusters):
            mine = (stratum_N == stratum) & (cluster_N == cluster)
            if mine.any():
                centre = loss_NT[kept_N][mine].mean(axis=0, dtype=np.float64)
                centroids.append((stratum, cluster, int(mine.sum()), centre.tolist()))
                square_M = ((loss_NT[kept_N][mine] - centre) ** 2).sum(axis=1)
                assigned += [
                    (int(i), stratum, cluster, float(d)) for i, d in zip(id_N[kept_N][mine], square_M, strict=True)
                ]
    for name, rows, schema in (
        ("assignments-00000.parquet", sorted(assigned), schemas.ASSIGNMENTS),
        ("centroids.parquet", centroids, schemas.centroids(T)),
    ):
        table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
        records.append(output.write_parquet(name, [table], schema))
    return StageResult(records, {"n_clusters": len(centroids), "rows": int(kept_N.sum())})


def _imported(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    return import_trajectories.import_trajectories(
        import_trajectories.Inputs(**inputs), node.config, ResourcesConfig(), output, seed=node.seed
    )


def _subset(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    return select_subset.select_subset(
        select_subset.Inputs(**inputs), node.config, ResourcesConfig(), output, seed=node.seed
    )


def _assignments(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    return assign_trajectories.assign_trajectories(
        assign_trajectories.Inputs(**inputs), node.config, ResourcesConfig(), output, seed=node.seed
    )


def _stub(inputs: Mapping[str, Artifact], node: Node, output: StagedOutput) -> StageResult:
    """Something that follows from the settings and the seed."""
    data = f"{sorted(node.settings.items(), key=str)} {node.seed}".encode()
    return StageResult([output.write_bytes("a", data)], {"model": None})


_MAKERS = {
    "prepare_examples": _examples,
    "measure_overlap": _stub,
    "prepare_tokenizer": _stub,
    "tokenize_examples": _tokens,
    "train_proxy": _stub,
    "score_examples": _trajectories,
    "import_trajectories": _imported,
    "cluster_trajectories": _clusters,
    "assign_trajectories": _assignments,
    "select_subset": _subset,
}
