"""Rows found by id: whatever the order of files and of rows in them, and without files that cannot hold them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts import Artifact
from s2l_ray.attempts import begin
from s2l_ray.errors import ArtifactError
from s2l_ray.id_index import IdIndex
from s2l_ray.storage import Storage

SCHEMA = pa.schema([pa.field("example_id", pa.int64()), pa.field("value", pa.int64())])
FILES = [[3, 1, 2], [], [10, 12, 11], [20]]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    output = begin(Storage.at(str(tmp_path)), "values", "a" * 32)
    assert output is not None
    records = [
        output.write_parquet(f"values-{n}.parquet", [pa.table([ids, [i * 7 for i in ids]], schema=SCHEMA)], SCHEMA)
        for n, ids in enumerate(FILES)
    ]
    return output.commit(records, config={}, inputs={}, summary={}, run={"seconds": 0.0})


def found(index: IdIndex, ids: list[int]) -> dict[int, int]:
    wanted, values = np.array(ids, np.int64), {}
    for place, table in index.parts(wanted, ["value"]):
        assert table.column_names == ["value"]
        values |= dict(zip(wanted[place].tolist(), table.column("value").to_pylist(), strict=True))
    return values


@pytest.mark.parametrize("ids", [[1, 2, 3], [2, 11], [0, 4, 9, 13], [12, 20], [], [1, 2, 3, 10, 11, 12, 20, 99]])
def test_rows_are_found_by_id_and_others_are_left_out(artifact: Artifact, ids: list[int]) -> None:
    there = {i for file in FILES for i in file}
    assert found(IdIndex.of(artifact, "values-"), ids) == {i: i * 7 for i in ids if i in there}


def test_files_that_cannot_hold_the_ids_are_not_read(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    index = IdIndex.of(artifact, "values-")
    assert [(int(a), int(b)) for a, b in zip(index.first_F, index.last_F, strict=True)] == [(1, 3), (10, 12), (20, 20)]
    read: list[str] = []
    rows = Artifact.read_rows

    def noted(self: Artifact, record: object, **options: object) -> pa.Table:
        read.append(record.path)  # type: ignore[attr-defined]
        return rows(self, record, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Artifact, "read_rows", noted)
    assert found(index, [10, 12]) == {10: 70, 12: 84}
    assert read == ["values-2.parquet"]


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 3), (2, 4), (3, 6), (6, 7), (1, 2)])
def test_a_span_is_the_same_rows_of_the_whole(artifact: Artifact, start: int, stop: int) -> None:
    whole = artifact.read_table("values-")
    assert artifact.rows("values-") == len(whole) == 7
    assert artifact.read_span("values-", start, stop, ["value"]) == whole.select(["value"]).slice(start, stop - start)


def test_a_file_without_its_end_is_named_with_what_to_do(artifact: Artifact) -> None:
    path = Path(artifact.path("values-2.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"values-2\.parquet cannot be read .*the stage will run again"):
        IdIndex.of(artifact, "values-")
