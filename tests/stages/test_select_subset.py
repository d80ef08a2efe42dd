"""Selecting from a pool in blocks: every method takes what it takes from one table, whatever the blocks."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray import sampling, schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import SelectConfig
from s2l_ray.draws import Draws
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.facility_location import facility_location_rank
from s2l_ray.inputs import find_inputs
from s2l_ray.stage_settings import SelectSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import blocks, contents, pool_blocks
from s2l_ray.stages import select_subset as stage
from tests.stages.conftest import Bench

N, T, K, D = 2000, 3, 12, 5


@dataclass(frozen=True)
class Made:
    """Artifacts, and what is in them: rows of the pool are those that both models can read."""

    inputs: stage.Inputs
    table: dict[str, np.ndarray]
    settings: SelectSettings


@pytest.fixture
def made(bench: Bench, tmp_path: Path) -> Made:
    generator = np.random.default_rng(3)
    id_N = np.arange(N)
    sources = np.array(["a", "b", "c", None], object)[generator.choice(4, N, p=[0.6, 0.3, 0.05, 0.05])]
    hash_N = generator.integers(-(2**62), 2**62, N)
    hash_N[-50:] = hash_N[0]  # copies
    cluster_N = (generator.zipf(1.5, N) % K).astype(np.int32)
    strata = np.where(sources == "a", "x", "y").astype(object)
    loss_NT = (np.round(generator.gamma(2, 1, (N, T)) * 2**20) / 2**20).astype(np.float32)
    length_N = generator.integers(2, 40, N)
    readable = {"proxy": id_N % 17 > 0, "target": id_N % 13 > 0}
    clustered_N = id_N % 11 > 0

    def in_files(name: str, schema: pa.Schema, table: pa.Table) -> Artifact:
        def write(output: StagedOutput) -> StageResult:
            edges = np.linspace(0, len(table), 6).astype(int)
            parts = [table.slice(a, b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
            return StageResult(
                [output.write_parquet(f"{name}-{i}.parquet", [p], schema) for i, p in enumerate(parts)], {}
            )

        return bench.make(name, write)

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"{i}", "output": "x"}) + "\n" for i in range(N)))
    examples = [
        {"example_id": i, "input_file": "f", "input_row": i, "content_hash": h, "source": s, "turns": []}
        for i, h, s in zip(id_N.tolist(), hash_N.tolist(), sources, strict=True)
    ]
    rows = {
        model: [
            {"example_id": i, "source": None, "input_ids": [1] * n, "response_start": [1], "response_stop": [n]}
            | {"num_response_tokens": n - 1, "truncated": False}
            for i, n in zip(id_N[mask].tolist(), length_N[mask].tolist(), strict=True)
        ]
        for model, mask in readable.items()
    }
    losses = pa.FixedSizeListArray.from_arrays(pa.array(loss_NT.ravel()), T)
    trajectories = pa.table(
        [id_N, pa.array(sources), loss_NT[:, 0] + 1, losses, length_N.astype(np.int32) - 1],
        schema=schemas.trajectories(T),
    )
    columns = [id_N[clustered_N], strata[clustered_N], cluster_N[clustered_N], np.ones(clustered_N.sum())]
    assigned = pa.table(columns, schema=schemas.ASSIGNMENTS)
    hidden_ND = generator.normal(size=(N, D)).astype(np.float32)
    hidden = pa.table(
        [id_N, pa.FixedSizeListArray.from_arrays(pa.array(hidden_ND.ravel()), D)], schema=schemas.hidden_states(D)
    )
    inputs = stage.Inputs(
        examples=in_files("examples", schemas.EXAMPLES, pa.Table.from_pylist(examples, schemas.EXAMPLES)),
        proxy_tokens=in_files("tokens", schemas.TOKENS, pa.Table.from_pylist(rows["proxy"], schemas.TOKENS)),
        target_tokens=in_files("tokens", schemas.TOKENS, pa.Table.from_pylist(rows["target"], schemas.TOKENS)),
        clusters=in_files("assignments", schemas.ASSIGNMENTS, assigned),
        trajectories=in_files("trajectories", schemas.trajectories(T), trajectories),
        hidden_states=in_files("hidden_states", schemas.hidden_states(D), hidden),
    )
    draws = Draws.of(inputs.examples.read_table("examples-", list(Draws.COLUMNS)), 0)
    pool = readable["proxy"] & readable["target"]
    table = {"id": id_N, "draw": draws.draw_N, "source": sources, "stratum": strata, "cluster": cluster_N}
    table |= {"length": length_N, "clustered": clustered_N, "initial": loss_NT[:, 0] + 1, "last": loss_NT[:, -1]}
    table |= {"hidden": hidden_ND}
    files = find_inputs(str(path), key="examples.path")
    settings = SelectSettings(SelectConfig(method="paper", budget=0.1), files)
    return Made(inputs, {name: column[pool] for name, column in table.items()}, settings)


def expected_order(table: dict[str, np.ndarray], select: SelectConfig, n_wanted: int) -> np.ndarray:
    """Rank all rows at once; return their ids in that order, of which so many are wanted."""
    draw, ids = table["draw"], table["id"]
    source = np.array([s or "" for s in table["source"]])
    match select.method:
        case "paper" | "guarded":
            key = sampling.cluster_keys(table["stratum"].astype(str), table["cluster"])
            rank = sampling.balanced_rank(key, draw, ids, select.quota_exponent or 0.0)
        case "official":
            rank = sampling.official_rank(source, table["cluster"], draw, ids)
        case "random_per_source":
            rank = sampling.random_per_source_rank(source, draw, ids)
        case "random" | "full":
            rank = sampling.random_rank(draw, ids)
        case "facility_location":
            rank = facility_location_rank(table["hidden"], draw, ids, n_wanted)
        case method:
            score = sampling.selection_score(
                method,
                loss_initial_N=table["initial"],
                loss_last_N=table["last"],
                response_tokens_N=table["length"] - 1,
            )
            rank = sampling.score_rank(score, draw, ids)
    return ids[sampling.order_of(rank)]


def run(bench: Bench, made: Made, select: dict[str, Any]) -> tuple[Artifact, SelectConfig]:
    config = SelectConfig.model_validate(select)
    clusters = made.inputs.clusters if config.method in ("paper", "guarded", "official") else None
    inputs = stage.Inputs(
        made.inputs.examples,
        made.inputs.proxy_tokens,
        made.inputs.target_tokens,
        clusters,
        made.inputs.trajectories,
        made.inputs.hidden_states,
    )
    return bench.run(stage.select_subset, inputs, SelectSettings(config, made.settings.files)), config


METHODS = ["paper", "guarded", "official", "random", "random_per_source", "full", "facility_location"]
METHODS += get_args(sampling.ScoredMethod)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 0.1, 0.8, "3k tokens"])
def test_takes_from_blocks_what_it_takes_from_one_table(
    method: str, budget: Any, bench: Bench, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)
    monkeypatch.setattr(contents, "PART_ROWS", 500)
    exponent = {"quota_exponent": 0.5} if method == "guarded" else {}
    found, config = run(bench, made, {"method": method, "budget": budget, **exponent})
    table = made.table
    if method in ("paper", "guarded", "official"):
        table = {name: column[table["clustered"]] for name, column in table.items()}
    # The order of facility location is that of all rows only as far as it was asked for.
    order = expected_order(table, config, len(table["id"]) if budget == "3k tokens" else found.summary["rows"])
    subset = found.read_table("subset.parquet").sort_by("rank")
    assert subset.column("rank").to_pylist() == list(range(len(subset)))
    assert subset.column("example_id").to_pylist() == order[: len(subset)].tolist()
    in_pool = len(made.table["id"])
    assert found.summary["rows_pool"] == in_pool
    length_of = dict(zip(made.table["id"].tolist(), made.table["length"].tolist(), strict=True))
    taken = [length_of[i] for i in order[: len(subset) + 1].tolist()]
    assert found.summary["target_tokens"] == sum(taken[: len(subset)])
    if method == "full":
        assert len(subset) == in_pool
    elif budget == "3k tokens":
        assert sum(taken[: len(subset)]) <= 3000 < sum(taken)
    else:
        assert len(subset) == (1 if budget == 1 else int(in_pool * budget))
    lines = b"".join(Path(found.path(f.path)).read_bytes() for f in found.files("rows/")).splitlines()
    assert [int(json.loads(line)["instruction"]) for line in lines] == sorted(subset.column("example_id").to_pylist())


@pytest.mark.parametrize("exponent", [0.0, 0.5])
@pytest.mark.parametrize("budget", [40, 0.3])
def test_rows_that_came_later_fill_up_what_clusters_gave_before(
    exponent: float, budget: Any, bench: Bench, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)
    table = {name: column[made.table["clustered"]] for name, column in made.table.items()}
    key_N = np.char.add(table["stratum"].astype(str), table["cluster"].astype(str))
    keys = sorted({(str(s), int(c)) for s, c in zip(table["stratum"], table["cluster"], strict=True)})
    generator = np.random.default_rng(0)
    had = dict(zip(keys, generator.integers(0, 300, len(keys)).tolist(), strict=True))
    gave = {key: int(generator.integers(0, min(size, 30) + 1)) for key, size in had.items()}
    first = [(stratum, cluster) for (stratum, cluster), count in gave.items() for _ in range(count)]
    chosen = {"example_id": range(len(first)), "stratum": [s for s, _ in first], "cluster_id": [c for _, c in first]}
    chosen |= {"rank": range(len(first)), "reason": ["x"] * len(first)}
    centroids = {
        "stratum": [s for s, _ in keys],
        "cluster_id": [c for _, c in keys],
        "size": [had[key] for key in keys],
    }
    inputs = replace(
        made.inputs,
        assignments=made.inputs.clusters,
        clusters=_of_one_file(
            bench, "centroids", centroids | {"centroid": [[0.0] * T] * len(keys)}, schemas.centroids(T)
        ),
        subset=_of_one_file(bench, "subset", chosen, schemas.SUBSET),
    )
    config = SelectConfig(method="guarded", budget=budget, quota_exponent=exponent)
    found = bench.run(stage.select_subset, inputs, SelectSettings(config, made.settings.files))
    names, cluster_N = np.unique(key_N, return_inverse=True)
    of_name = {f"{stratum}{cluster}": (had[stratum, cluster], gave[stratum, cluster]) for stratum, cluster in keys}
    size_K, taken_K = np.array([of_name[name] for name in names.tolist()]).T
    beside = sampling.Beside(size_K[cluster_N], taken_K[cluster_N])
    rank = sampling.balanced_rank(
        sampling.cluster_keys(table["stratum"].astype(str), table["cluster"]),
        table["draw"],
        table["id"],
        exponent,
        beside,
    )
    subset = found.read_table("subset.parquet").sort_by("rank")
    assert len(subset) == (budget if budget == 40 else int(budget * len(made.table["id"])))
    assert subset.column("example_id").to_pylist() == table["id"][sampling.order_of(rank)][: len(subset)].tolist()


def test_few_rows_are_fetched_where_few_are_wanted(bench: Bench, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)
    fetched: list[int] = []
    below = pool_blocks.PoolBlocks._below

    def counted(self: pool_blocks.PoolBlocks, *arguments: Any) -> pool_blocks.Rows:
        rows = below(self, *arguments)
        fetched.append(len(rows.example_id))
        return rows

    monkeypatch.setattr(pool_blocks.PoolBlocks, "_below", counted)
    monkeypatch.setattr(pool_blocks, "DEVIATIONS", 2.0)
    for budget in (60, "1k tokens"):
        for method in ("random", "random_per_source", "paper"):
            run(bench, made, {"method": method, "budget": budget})
    assert 60 <= fetched[0] < 120
    assert max(fetched) < len(made.table["id"]) / 2


def test_draws_that_are_not_spread_evenly_are_asked_for_again(
    bench: Bench, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_blocks, "DEVIATIONS", -3.0)  # fewer rows than are expected
    reference, _ = run(bench, made, {"method": "random", "budget": 200})
    monkeypatch.setattr(pool_blocks, "DEVIATIONS", 6.0)
    found, _ = run(bench, made, {"method": "random", "budget": 200})
    assert found.digest == reference.digest


def test_a_guess_of_too_few_rows_for_a_budget_in_tokens_is_mended(
    bench: Bench, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected = {"method": "paper", "budget": "5k tokens"}
    expected, _ = run(bench, made, selected)
    monkeypatch.setattr(stage, "TOKENS_MARGIN", 0.01)
    assert run(bench, made, selected)[0].digest == expected.digest
    shortest = int(made.table["length"].min())
    first = made.table["length"][np.argmin(made.table["draw"])]
    assert first > shortest
    with pytest.raises(ConfigError, match=rf"has {first} \(the smallest has {shortest}\)"):
        run(bench, made, {"method": "random", "budget": f"{shortest} tokens"})


def test_a_budget_beyond_what_is_left_is_refused_with_what_there_is(bench: Bench, made: Made) -> None:
    left = int(made.table["clustered"].sum())
    with pytest.raises(ConfigError, match=rf"by the guard and {left} are left.*set cluster\.guard to null"):
        run(bench, made, {"method": "paper", "budget": left + 1})
    later = _with_summary(bench, made.inputs.clusters, {"rows_set_aside": {"in the first pool": 9, "not learned": 3}})
    tokens = (made.inputs.proxy_tokens, made.inputs.target_tokens)
    inputs = stage.Inputs(made.inputs.examples, *tokens, made.inputs.clusters, assignments=later)
    with pytest.raises(ConfigError, match=rf"\(9 in the first pool, 3 not learned\) and {left} are left") as caught:
        too_much = SelectConfig(method="paper", budget=left + 1)
        bench.run(stage.select_subset, inputs, SelectSettings(too_much, made.settings.files))
    assert "guard" not in str(caught.value)


def test_a_pool_without_rows_is_refused(bench: Bench, made: Made) -> None:
    with pytest.raises(DataError, match="no row has response tokens"):
        nothing = stage.Inputs(made.inputs.examples, *[_none_of(bench, made.inputs.target_tokens)] * 2)
        bench.run(stage.select_subset, nothing, made.settings)


def _with_summary(bench: Bench, clusters: Artifact | None, summary: dict[str, Any]) -> Artifact:
    assert clusters is not None
    table = clusters.read_table("assignments-")

    def write(output: StagedOutput) -> StageResult:
        record = output.write_parquet("assignments-0.parquet", [table], schemas.ASSIGNMENTS)
        return StageResult([record], summary)

    return bench.make("assignments", write)


def _of_one_file(bench: Bench, name: str, columns: dict[str, Any], schema: pa.Schema) -> Artifact:
    table = pa.table(columns, schema=schema)
    return bench.make(name, lambda output: StageResult([output.write_parquet(f"{name}.parquet", [table], schema)], {}))


def _none_of(bench: Bench, tokens: Artifact) -> Artifact:
    table = tokens.read_table("tokens-").slice(0, 0)
    return bench.make(
        "tokens", lambda output: StageResult([output.write_parquet("tokens-0.parquet", [table], schemas.TOKENS)], {})
    )
