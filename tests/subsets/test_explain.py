"""Why a row was taken, and what a cluster is: what is said agrees with what the artifacts hold."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray import cli
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.experiment import Experiment
from s2l_ray.storage import Storage
from s2l_ray.strict_yaml import dump_yaml
from s2l_ray.subsets.arms import Arm, arms_of
from s2l_ray.subsets.explain import explain_cluster, explain_example
from s2l_ray.subsets.explanation import cluster_lines, example_lines, sparkline
from tests.subsets.selected import alpaca, experiment, make, write_rows

ARMS = {
    "s2l": {"select.method": "paper"},
    "guarded": {"select.method": "guarded"},
    "random": {"select.method": "random"},
}
SPITEFUL = "\x1b[31m[bold]red\u202e"
ROWS = [*alpaca(60, source="a"), {"instruction": SPITEFUL, "output": "x" * 9000, "source": "b"}, {"output": "lost"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Storage, Experiment]:
    folder = tmp_path_factory.mktemp("explain")
    storage = Storage.at(str(folder / "storage"))
    examples = {"path": str(write_rows(folder / "rows.jsonl", ROWS)), "on_bad_row": "reject", "max_rejected": 0.1}
    of = experiment(examples=examples, arms=ARMS, select={"budget": 0.3}, storage=storage.uri)
    make(storage, of)
    return storage, of


@pytest.fixture
def arms(made) -> dict[str, Arm]:
    return arms_of(made[1], made[0])


def ids_of(arms: dict[str, Arm], name: str = "examples") -> list[int]:
    prefix = {"examples": "examples-", "eval_examples": "examples-", "subset": "subset.parquet"}[name]
    artifact = arms["s2l"].artifacts[arms["s2l"].held_out.key] if name == "eval_examples" else arms["s2l"].need(name)
    return artifact.read_table(prefix).column("example_id").to_pylist()


# -------------------------------------------------------------------------------------------------------------- a row


def test_every_row_is_told_taken_or_not_as_each_subset_has_it(arms):
    ranks = {}
    for name, arm in arms.items():
        table = arm.need("subset").read_table("subset.parquet")
        ranks[name] = dict(zip(table.column("example_id").to_pylist(), table.column("rank").to_pylist(), strict=True))
    for example_id in ids_of(arms):
        for name, fate in explain_example(arms, str(example_id))["arms"].items():
            assert fate["rank"] == ranks[name].get(example_id)
            assert fate["taken"] == (example_id in ranks[name])


def test_row_that_is_not_taken_stands_behind_its_clusters_quota_in_the_draw(arms):
    places: dict[int, list[int]] = {}
    for example_id in ids_of(arms):
        told = explain_example(arms, str(example_id))
        (clustering,) = [c for c in told["clusterings"] if c["arms"] == ["s2l"]]
        fate = told["arms"]["s2l"]
        if not fate["taken"]:
            words = fate["why"].split()
            assert words[0] == "place"
            assert int(words[1]) > fate["quota"] == int(words[-1])
            assert int(words[3]) == clustering["size"]
            places.setdefault(clustering["cluster_id"], []).append(int(words[1]))
    assert len(places) == 3
    for found in places.values():
        assert sorted(found) == list(range(min(found), min(found) + len(found)))


def test_row_that_the_guard_set_aside_says_so_and_why(arms):
    aside = arms["guarded"].need("clusters").read_table("set_aside-").to_pylist()
    assert aside
    for row in aside:
        told = explain_example(arms, str(row["example_id"]))
        assert told["arms"]["guarded"]["why"] == f"set aside by the guard: {row['reason']}"
        (guarded,) = [c for c in told["clusterings"] if c["arms"] == ["guarded"]]
        assert guarded["guard"] == f"{row['reason']}, ratio {row['ratio']:.3f}"
        assert "cluster_id" not in guarded


def test_row_is_found_by_file_and_line(arms):
    for example_id in ids_of(arms)[:5]:
        told = explain_example(arms, str(example_id))
        assert explain_example(arms, told["place"]) == told
        assert json.loads(json.dumps(told)) == told


def test_row_is_found_by_the_id_that_the_data_give_it(tmp_path):
    names = ["12345678901234567890", "q/1", *(f"q{number}" for number in range(2, 40))]
    rows = [{**row, "id": name} for row, name in zip(alpaca(40, source="a"), names, strict=True)]
    storage = Storage.at(str(tmp_path / "storage"))
    of = experiment(examples={"path": str(write_rows(tmp_path / "rows.jsonl", rows))}, storage=storage.uri)
    make(storage, of)
    found = arms_of(of, storage)
    (arm,) = found.values()
    held_out = arm.artifacts[arm.held_out.key].read_table("examples-").column("user_id").to_pylist()
    for line, name in enumerate(names, start=1):
        if name in held_out:
            with pytest.raises(DataError, match="is held out"):
                explain_example(found, name)
        else:
            assert explain_example(found, name) == explain_example(found, f"rows.jsonl:{line}")
    with pytest.raises(DataError, match="no row q/2"):
        explain_example(found, "q/2")


def test_losses_are_those_of_the_trajectory(arms):
    table = arms["s2l"].need("trajectories").read_table("trajectories-").to_pylist()
    row = next(row for row in table if row["example_id"] == ids_of(arms)[0])
    clustering = explain_example(arms, str(row["example_id"]))["clusterings"][0]
    assert (clustering["loss_initial"], clustering["loss"]) == (row["loss_initial"], row["loss"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("rows.jsonl:62", "bad row: missing"),
        ("rows.jsonl:63", "no row"),
        ("99", "no row"),
        ("12345678901234567890", "no row"),
        ("rows.jsonl:12345678901234567890", "no row"),
        ("other.jsonl:1", "no row"),
    ],
)
def test_row_that_is_no_example_is_said_with_what_became_of_it(arms, asked, words):
    with pytest.raises(DataError, match=words):
        explain_example(arms, asked)


def test_held_out_row_is_said_to_be(arms):
    with pytest.raises(DataError, match="is held out"):
        explain_example(arms, str(ids_of(arms, "eval_examples")[0]))


@pytest.mark.parametrize("asked", ["", "rows.jsonl:", "rows.jsonl:0", ":3", "-1", "1.5"])
def test_what_names_no_row_is_refused(arms, asked):
    with pytest.raises(ConfigError, match="expected an example_id, or file:line"):
        explain_example(arms, asked)


def test_texts_of_the_data_are_short_and_escaped_for_a_person(arms):
    told = explain_example(arms, "rows.jsonl:61")
    assert told["response"] == "x" * 9000
    text = "\n".join(example_lines(told))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(len, text.splitlines())) < 400


def test_missing_stage_is_named_with_the_first_that_is_missing(tmp_path):
    storage = Storage.at(str(tmp_path / "storage"))
    of = experiment(examples={"path": str(write_rows(tmp_path / "rows.jsonl", alpaca(40)))}, storage=storage.uri)
    with pytest.raises(ConfigError, match=r"examples .* not there yet.*--until prepare_examples"):
        explain_example(arms_of(of, storage), "0")
    make(storage, of, until="train_proxy")
    with pytest.raises(ConfigError, match=r"clusters .* trajectories is missing before it.*--until cluster"):
        explain_cluster(arms_of(of, storage), 0, None)


# ---------------------------------------------------------------------------------------------------------- a cluster


def test_cluster_says_its_size_and_how_many_rows_each_arm_took(arms):
    clusters = arms["s2l"].need("clusters").read_table("assignments-").to_pylist()
    taken = {
        name: set(arm.need("subset").read_table("subset.parquet")["example_id"].to_pylist())
        for name, arm in arms.items()
    }
    for cluster_id in range(3):
        members = {row["example_id"] for row in clusters if row["cluster_id"] == cluster_id}
        told = explain_cluster({name: arms[name] for name in ("s2l", "random")}, cluster_id, None)
        (clustering,) = told["clusterings"]
        assert clustering["size"] == len(members)
        assert clustering["taken"] == {name: len(members & taken[name]) for name in ("s2l", "random")}


def test_cluster_shows_the_rows_nearest_to_its_centroid_and_the_first_taken(arms):
    (clustering,) = explain_cluster({"s2l": arms["s2l"]}, 1, None)["clusterings"]
    rows = [
        row for row in arms["s2l"].need("clusters").read_table("assignments-").to_pylist() if row["cluster_id"] == 1
    ]
    nearest = sorted(rows, key=lambda row: row["distance"])[:5]
    assert [row["example_id"] for row in clustering["nearest"]] == [row["example_id"] for row in nearest]
    ranks = [row["rank"] for row in clustering["first_taken"]]
    assert ranks == sorted(ranks)
    assert "Say" in "\n".join(cluster_lines({"clusterings": [clustering]}))


def test_cluster_that_strata_share_the_number_of_needs_the_stratum(tmp_path):
    storage = Storage.at(str(tmp_path / "storage"))
    rows = write_rows(tmp_path / "rows.jsonl", [*alpaca(20, source="a"), *alpaca(20, 50, source="b")])
    of = experiment(examples={"path": str(rows)}, select={"method": "official"}, storage=storage.uri)
    make(storage, of)
    with pytest.raises(ConfigError, match=r"2 strata have a cluster 0. Expected --stratum with one of a, b"):
        explain_cluster(arms_of(of, storage), 0, None)
    sizes = [explain_cluster(arms_of(of, storage), 0, stratum)["clusterings"][0]["size"] for stratum in "ab"]
    table = arms_of(of, storage)["main"].need("clusters").read_table("centroids.parquet").to_pylist()
    assert sizes == [row["size"] for row in table if row["cluster_id"] == 0]


@pytest.mark.parametrize(("cluster_id", "stratum"), [(99, None), (-1, None), (0, "nowhere")])
def test_unknown_cluster_is_refused_with_those_there_are(arms, cluster_id, stratum):
    with pytest.raises(ConfigError, match="there is no cluster"):
        explain_cluster({"s2l": arms["s2l"]}, cluster_id, stratum)


def test_experiment_that_does_not_cluster_has_no_cluster_to_explain(arms):
    with pytest.raises(ConfigError, match="no arm of this experiment clusters"):
        explain_cluster({"random": arms["random"]}, 0, None)


# ------------------------------------------------------------------------------------------------ bars, and the command


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_sparkline_has_a_bar_for_each_value_and_rises_with_it(values):
    bars = sparkline(values)
    assert len(bars) == len(values)
    assert [bars[i] for i in np.argsort(values, kind="stable")] == sorted(bars)
    assert max(values) == 0 or bars[int(np.argmax(values))] == "█"


def test_command_explains_from_the_config_alone_and_starts_nothing(made, tmp_path, capsys):
    config = tmp_path / "x.yaml"
    config.write_text(dump_yaml(dict(made[1].sparse)))
    before = sorted(Path(made[0].uri).rglob("*"))
    assert cli.main(["explain", str(config), "--example", "rows.jsonl:61"]) == 0
    said = capsys.readouterr().err
    assert "s2l (paper): " in said
    assert (
        cli.main(
            ["explain", str(config), "--cluster", "1", "--stratum", "a", "--set", "select.method=guarded", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["clusterings"][0]["arms"] == ["main"]
    assert sorted(Path(made[0].uri).rglob("*")) == before
