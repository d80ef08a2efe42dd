"""Two subsets beside each other: what they share, by id or by content, and what was set otherwise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from s2l_ray import cli
from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ArtifactError
from s2l_ray.storage import Storage
from s2l_ray.subsets.diff import compare, lines, rank_correlation
from tests.subsets.selected import alpaca, subset_of, write_rows

ROWS = [*alpaca(40, source="a"), *alpaca(20, 40, source="b")]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "rows.jsonl", ROWS))


def ids_of(subset: Artifact) -> set[int]:
    return set(subset.read_table("subset.parquet").column("example_id").to_pylist())


def contents_of(subset: Artifact) -> list[str]:
    with subset.local_folder("rows") as rows:
        return sorted(line for file in rows.iterdir() for line in file.read_text().splitlines())


def counts(found: dict[str, Any]) -> tuple[int, int, int]:
    return found["both"], found["only_a"], found["only_b"]


def test_rows_of_the_same_examples_are_counted_by_their_ids(storage, path):
    a = subset_of(storage, examples={"path": path}, select={"seed": 1})
    b = subset_of(storage, examples={"path": path}, select={"seed": 2, "budget": 0.3})
    found = compare(a, b)
    both = ids_of(a) & ids_of(b)
    assert counts(found) == (len(both), len(ids_of(a) - both), len(ids_of(b) - both))
    assert found["jaccard"] == len(both) / len(ids_of(a) | ids_of(b))
    assert found["matched_by"] == "example_id"


def test_groups_add_up_to_the_whole(storage, path):
    cluster = {"stratify_by": "source"}
    a = subset_of(storage, examples={"path": path}, cluster=cluster, select={"seed": 1})
    b = subset_of(storage, examples={"path": path}, cluster=cluster, select={"seed": 2, "quota_exponent": 1})
    found = compare(a, b)
    for grouping in ("by_source", "by_stratum", "by_cluster"):
        assert tuple(map(sum, zip(*map(counts, found[grouping]), strict=True))) == counts(found)
    assert [row["source"] for row in found["by_source"]] == ["a", "b"]
    assert {(row["stratum"], row["cluster_id"]) for row in found["by_cluster"]} == {
        (s, k) for s in "ab" for k in range(3)
    }


def test_exchanged_subsets_exchange_their_sides(storage, path):
    a = subset_of(storage, examples={"path": path}, select={"seed": 1})
    b = subset_of(storage, examples={"path": path}, select={"budget": 9})
    one, other = compare(a, b), compare(b, a)
    assert counts(one) == (counts(other)[0], counts(other)[2], counts(other)[1])
    assert one["rank_correlation"] == other["rank_correlation"]
    swapped = [{**d, "a": d["b"], "b": d["a"]} for d in other["settings"]]
    assert one["settings"] == swapped


def test_subset_beside_itself_differs_in_nothing(storage, path):
    a = subset_of(storage, examples={"path": path})
    found = compare(a, a)
    assert (found["jaccard"], found["rank_correlation"], found["settings"]) == (1.0, 1.0, [])
    assert list(lines(found))[-1] == "nothing was set otherwise"


def test_prefix_of_a_ranking_has_its_rows_in_the_same_order(storage, path):
    a = subset_of(storage, examples={"path": path}, select={"budget": 30})
    b = subset_of(storage, examples={"path": path}, select={"budget": 10})
    found = compare(a, b)
    assert counts(found) == (10, 20, 0)
    assert found["rank_correlation"] == 1.0
    assert found["settings"] == [{"artifact": "subset", "setting": "budget", "a": 30, "b": 10}]


def test_rows_of_other_examples_are_matched_by_their_content_and_never_by_place(storage, tmp_path, path):
    other = write_rows(tmp_path / "other" / "rows.jsonl", [*alpaca(7, 900, source="a"), *reversed(ROWS)])
    a = subset_of(storage, examples={"path": path}, select={"method": "random"})
    elsewhere = Storage.at(str(tmp_path / "elsewhere"))
    b = subset_of(elsewhere, examples={"path": str(other)}, select={"method": "random"})
    found = compare(a, b)
    shared = set(contents_of(a)) & set(contents_of(b))
    assert found["matched_by"] == "content"
    assert found["both"] == len(shared) > 10
    assert found["by_cluster"] is None
    assert "chosen from different examples" in "\n".join(lines(found))


def test_copies_of_one_content_match_as_often_as_both_have_them(storage, tmp_path):
    three = write_rows(tmp_path / "three" / "rows.jsonl", [ROWS[0]] * 3 + ROWS[1:5])
    two = write_rows(tmp_path / "two" / "rows.jsonl", ROWS[1:5] + [ROWS[0]] * 2)
    every = {"select": {"method": "full"}, "evaluate": {"path": str(write_rows(tmp_path / "e.jsonl", alpaca(3, 500)))}}
    a = subset_of(storage, examples={"path": str(three)}, **every)
    b = subset_of(storage, examples={"path": str(two)}, **every)
    assert counts(compare(a, b)) == (6, 1, 0)


def test_settings_are_named_wherever_on_the_way_they_differ(storage, path):
    a = subset_of(storage, examples={"path": path})
    b = subset_of(storage, examples={"path": path}, cluster={"n_clusters": 4}, tokens={"max_tokens": 99})
    named = {(d["artifact"], d["setting"]): (d["a"], d["b"]) for d in compare(a, b)["settings"]}
    assert named["clusters", "n_clusters"] == (3, 4)
    assert named["proxy_tokens", "max_tokens"] == named["target_tokens", "max_tokens"] == (512, 99)
    assert ("subset", "method") not in named


def test_clusters_are_not_compared_where_rows_were_clustered_otherwise(storage, path):
    a = subset_of(storage, examples={"path": path})
    b = subset_of(storage, examples={"path": path}, proxy={"seed": 3})
    assert compare(a, b)["by_cluster"] is None
    assert "not clustered alike" in "\n".join(lines(compare(a, b)))


def test_subset_whose_examples_are_gone_is_refused(storage, path):
    a = subset_of(storage, examples={"path": path})
    storage.delete_folder("examples")
    with pytest.raises(ArtifactError, match="does not hold the examples"):
        compare(a, a)


@given(st.permutations(range(12)), st.integers(0, 12))
def test_rank_correlation_is_spearmans(other, n):
    rank_a, rank_b = np.arange(12)[:n] * 7, np.array(other)[:n] * 3
    if n < 3:
        assert rank_correlation(rank_a, rank_b) is None
    else:
        assert rank_correlation(rank_a, rank_b) == pytest.approx(spearmanr(rank_a, rank_b).statistic, abs=1e-12)


def test_command_prints_the_whole_as_json(storage, path, capsys):
    a = subset_of(storage, examples={"path": path})
    b = subset_of(storage, examples={"path": path}, select={"budget": 5})
    assert cli.main(["diff", a.uri, f"{b.uri}/rows", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare(a, b)))
    assert cli.main(["diff", a.uri, storage.uri]) == 2
    assert "expected the folder of a subset" in capsys.readouterr().err
