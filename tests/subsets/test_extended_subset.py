"""A subset and what tops it up: exported alone and together, laid beside each other, and explained row by row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from s2l_ray import cli
from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ArtifactError, ConfigError, DataError
from s2l_ray.experiment import Experiment, experiment_of, parse_sparse
from s2l_ray.storage import Storage
from s2l_ray.subsets.diff import compare
from s2l_ray.subsets.explain_extension import explain_added
from s2l_ray.subsets.explanation import example_lines
from s2l_ray.subsets.export import export_folder
from s2l_ray.subsets.growth import growth
from tests.subsets.selected import alpaca, experiment, extension_of, make, subset_of, write_rows

FIRST = [*alpaca(60, source="a"), *alpaca(30, 60, source="b")]
LATER = [*alpaca(30, 500, source="a"), FIRST[0], *alpaca(20, 600, source="c"), FIRST[61]]


class Extended(NamedTuple):
    """A subset of `FIRST`, and an extension of it from `LATER`; both inputs have the name `rows.jsonl`."""

    of: Experiment
    subset: Artifact
    extension: Artifact
    later: Path


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    folder = tmp_path_factory.mktemp("extended")
    storage = Storage.at(str(folder / "storage"))
    first = write_rows(folder / "first" / "rows.jsonl", FIRST)
    later = write_rows(folder / "later" / "rows.jsonl", LATER)
    # All rows are judged elsewhere, so that the first pool is the whole file.
    held_out = write_rows(folder / "held_out.jsonl", alpaca(9, 900))
    of = experiment(examples={"path": str(first)}, evaluate={"path": str(held_out)}, storage=storage.uri)
    (subset,) = make(storage, of).values()
    return Extended(of, subset, extension_of(storage, of, later), later)


def folder_of(artifact: Artifact) -> str:
    return artifact.storage.uri_of(artifact.manifest.artifact, artifact.manifest.fingerprint)


def exported(tmp_path: Path, *artifacts: Artifact, name: str = "out") -> Path:
    export_folder(artifacts, str(tmp_path / name))
    return tmp_path / name


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_in(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def loaded(folder: Path, tmp_path: Path) -> list[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).to_list()


# -------------------------------------------------------------------------------------------------------------- export


def test_extension_alone_is_exported_as_a_subset_is(extended, tmp_path):
    folder = exported(tmp_path, extended.extension)
    assert set(files_of(folder)) == {"README.md", "data/rows.jsonl", "dataset_info.json", "selection.parquet"}
    selection = pq.read_table(folder / "selection.parquet").to_pylist()
    assert [LATER[row["input_row"]] for row in selection] == rows_in(folder / "data/rows.jsonl")
    assert "part" not in selection[0]
    assert len(loaded(folder, tmp_path)) == len(selection) == extended.extension.summary["rows"]


def test_card_of_an_extension_says_what_it_tops_up_and_how_like_it_the_rows_are(extended, tmp_path):
    card = (exported(tmp_path, extended.extension) / "README.md").read_text()
    assert f"tops up | subset {extended.subset.manifest.fingerprint}, {extended.subset.summary['rows']} rows" in card
    assert "rows set aside | 2 \\(in the first pool\\)" in card
    assert "| drift | not notable" in card
    for artifact in (extended.subset, extended.extension):
        assert f"| {artifact.manifest.artifact} | {artifact.manifest.fingerprint} | {artifact.digest} |" in card


def test_lines_of_the_card_make_the_subset_and_the_extension_again(extended, tmp_path, monkeypatch):
    card = (exported(tmp_path, extended.extension) / "README.md").read_text()
    data = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    (line,) = [line for line in card.splitlines() if line.startswith("s2l extend")]
    words = line.split()
    assert words[:5] == ["s2l", "extend", "again.yaml", "--rows", "your-rows-of-the-extension"]
    assert "`your-rows-of-the-extension` stands for" in card
    data["evaluate"]["path"] = str(extended.later.parents[1] / "held_out.jsonl")
    monkeypatch.chdir(extended.later.parents[1] / "first")
    again = experiment_of(parse_sparse(data, [], origin="again.yaml", name="again"))
    budget = float(words[words.index("--budget") + 1])
    assert extension_of(extended.subset.storage, again, extended.later, budget) == extended.extension


def test_subset_and_extension_together_are_one_data_set_in_the_order_of_its_selection(extended, tmp_path):
    folder = exported(tmp_path, extended.subset, extended.extension)
    found = loaded(folder, tmp_path)
    selection = pq.read_table(folder / "selection.parquet").to_pylist()
    given = {"subset": FIRST, "extension": LATER}
    assert [given[row["part"]][row["input_row"]] for row in selection] == found
    assert len({(row["part"], row["example_id"]) for row in selection}) == len(selection)
    assert Counter(row["part"] for row in selection) == {
        "subset": extended.subset.summary["rows"],
        "extension": extended.extension.summary["rows"],
    }
    # No row of the first pool came again with the later ones.
    assert len({row["instruction"] for row in found}) == len(found)


def test_files_of_one_name_are_kept_apart_and_both_are_listed_for_llama_factory(extended, tmp_path):
    folder = exported(tmp_path, extended.subset, extended.extension)
    alone = [exported(tmp_path, a, name=a.manifest.artifact) for a in (extended.subset, extended.extension)]
    for part in alone:
        name = f"data/{part.name}/rows.jsonl"
        assert (folder / name).read_bytes() == (part / "data/rows.jsonl").read_bytes()
    info = json.loads((folder / "dataset_info.json").read_text())
    assert [entry["file_name"] for entry in info.values()] == ["data/subset/rows.jsonl", "data/extension/rows.jsonl"]
    assert f"`dataset: {','.join(info)}`" in (folder / "README.md").read_text()


def test_tables_keep_their_types_and_an_extension_of_another_format_stands_beside_them(tmp_path):
    storage = Storage.at(str(tmp_path / "storage"))
    types = pa.schema([("instruction", pa.large_string()), ("output", pa.string()), ("source", pa.string())])
    (tmp_path / "first").mkdir()
    pq.write_table(pa.Table.from_pylist(FIRST, types), tmp_path / "first" / "rows.parquet")
    of = experiment(examples={"path": str(tmp_path / "first" / "rows.parquet")}, storage=storage.uri)
    (subset,) = make(storage, of).values()
    extension = extension_of(storage, of, write_rows(tmp_path / "later.jsonl", LATER))
    folder = exported(tmp_path, subset, extension)
    assert pq.read_schema(folder / "data/subset/rows.parquet").equals(types)
    assert all(row in LATER for row in rows_in(folder / "data/extension/later.jsonl"))
    # One data set has files of one kind; the card names the other's line.
    assert "data/extension/later.jsonl" in (folder / "README.md").read_text().split("## How")[0]


def test_two_exports_of_the_same_are_equal(extended, tmp_path):
    both = (extended.subset, extended.extension)
    assert files_of(exported(tmp_path, *both)) == files_of(exported(tmp_path, *both, name="again"))


def test_what_does_not_go_together_is_refused_before_anything_is_written(extended, tmp_path):
    storage = extended.subset.storage
    other = subset_of(storage, examples={"path": str(extended.later)})
    overlapping = extension_of(storage, extended.of, extended.later, 5)
    for artifacts, error, words in (
        ((extended.extension, extended.subset), ConfigError, "is no extension of"),
        ((extended.subset, other), ConfigError, "is no extension of"),
        ((other, extended.extension), ConfigError, "is no extension of"),
        ((extended.subset, extended.extension, overlapping), DataError, "5 rows of .* stand in the extension before"),
    ):
        with pytest.raises(error, match=words):
            export_folder(artifacts, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ids_of_the_user_that_stand_for_two_rows_are_refused(tmp_path):
    storage = Storage.at(str(tmp_path / "storage"))
    first = [{**row, "id": f"r{i}"} for i, row in enumerate(alpaca(40))]
    later = [{**row, "id": f"r{i}"} for i, row in enumerate(alpaca(40, 500))]
    of = experiment(examples={"path": str(write_rows(tmp_path / "rows.jsonl", first))}, storage=storage.uri)
    (subset,) = make(storage, of).values()
    extension = extension_of(storage, of, write_rows(tmp_path / "later.jsonl", later))
    exported(tmp_path, extension, name="alone")
    with pytest.raises(DataError, match=r"ids of yours stand for two different rows.*`r\d"):
        exported(tmp_path, subset, extension)


def test_extension_whose_own_examples_are_gone_does_not_take_those_of_its_subset(tmp_path):
    storage = Storage.at(str(tmp_path / "storage"))
    of = experiment(examples={"path": str(write_rows(tmp_path / "rows.jsonl", FIRST))}, storage=storage.uri)
    make(storage, of)
    first = storage.list_folders("examples")
    extension = extension_of(storage, of, write_rows(tmp_path / "later.jsonl", LATER))
    (own,) = set(storage.list_folders("examples")) - set(first)
    storage.delete_folder("examples", own)
    with pytest.raises(ArtifactError, match="does not hold the examples that extension"):
        exported(tmp_path, extension)


# ----------------------------------------------------------------------------------------------------------------- diff


def test_growth_counts_every_row_once_and_its_shares_are_of_the_whole(extended):
    found = growth(extended.subset, extended.extension)
    assert (found["before"], found["added"]) == tuple(a.summary["rows"] for a in (extended.subset, extended.extension))
    assert (found["pool_before"], found["pool_added"]) == (len(FIRST), len(LATER) - 2)
    assert found["rows_set_aside"] == {"in the first pool": 2}
    for grouping in ("by_source", "by_cluster"):
        for name in ("before", "added", "after"):
            assert sum(row[name] for row in found[grouping]) == found[name]
        for name in ("share_before", "share_after"):
            assert sum(row[name] for row in found[grouping]) == pytest.approx(1)
    (new,) = [row for row in found["by_source"] if row["source"] == "c"]
    assert (new["before"], new["share_before"]) == (0, 0)
    assert new["share_after"] == new["added"] / found["after"] > 0


def test_two_extensions_share_what_both_took_of_the_same_rows_and_name_their_budgets(extended):
    fewer = extension_of(extended.subset.storage, extended.of, extended.later, 10)
    found = compare(fewer, extended.extension)
    assert (found["both"], found["only_a"]) == (10, 0)
    assert sum(row["both"] for row in found["by_cluster"]) == 10
    assert found["settings"] == [{"artifact": "extension", "setting": "budget", "a": 10, "b": 0.5}]


def test_extensions_of_other_rows_are_compared_by_the_clusters_that_they_share(extended, tmp_path):
    later = write_rows(tmp_path / "later.jsonl", [*LATER[:10], *alpaca(10, 700)])
    found = compare(extended.extension, extension_of(extended.subset.storage, extended.of, later))
    assert found["matched_by"] == "content"
    assert found["both"] <= 10
    assert {row["cluster_id"] for row in found["by_cluster"]} == {0, 1, 2}


def test_command_tells_growth_whichever_of_the_two_comes_first(extended, capsys):
    folders = [folder_of(extended.subset), folder_of(extended.extension)]
    said = []
    for order in (folders, folders[::-1]):
        assert cli.main(["diff", *order]) == 0
        said.append(capsys.readouterr().err)
        assert cli.main(["diff", *order, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["subset"] == folders[0]
    assert said[0] == said[1]
    assert "source c: 0, and" in said[0]


# -------------------------------------------------------------------------------------------------------------- explain


def test_every_later_row_is_told_taken_or_not_as_the_extension_has_it(extended):
    table = extended.extension.read_table("subset.parquet").to_pylist()
    ranks = {row["example_id"]: row["rank"] for row in table}
    for number in range(len(LATER)):
        told = explain_added(extended.extension, f"rows.jsonl:{number + 1}")
        fate = told["arms"]["extension"]
        assert (fate["taken"], fate["rank"]) == (told["example_id"] in ranks, ranks.get(told["example_id"]))
        if LATER[number] in FIRST:
            assert fate["why"] == "set aside: in the first pool"
        elif not fate["taken"]:
            assert int(fate["why"].split()[1]) > fate["quota"] == int(fate["why"].split()[-1])
        assert "Say" in "\n".join(example_lines(told))


def test_command_explains_a_later_row_by_the_folder_of_its_extension(extended, capsys):
    assert cli.main(["explain", folder_of(extended.extension), "--example", "rows.jsonl:31"]) == 0
    assert "extension (paper): not taken; set aside: in the first pool" in capsys.readouterr().err
    for asked in (
        [folder_of(extended.extension), "--cluster", "0"],
        [folder_of(extended.subset), "--example", "0"],
    ):
        assert cli.main(["explain", *asked]) == 2
        assert "Expected the YAML file of its experiment" in capsys.readouterr().err
    assert cli.main(["explain", folder_of(extended.extension), "--example", "rows.jsonl:99"]) == 2
    assert "there is no row rows.jsonl:99" in capsys.readouterr().err
