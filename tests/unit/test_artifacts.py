"""Artifacts: identity, all or nothing, what a manifest says, damage."""

import hashlib
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import uuid
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2l_ray.artifacts import MANIFEST, FileRecord, Manifest, canonical, find_artifact, hash_of
from s2l_ray.errors import ArtifactError
from s2l_ray.staged_output import StagedOutput
from s2l_ray.storage import Storage
from tests.unit.tiny import EXAMPLE_IDS, FINGERPRINT, begun, commit


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


# ------------------------------------------------------------------------------------------------------------- identity


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        *({1}, frozenset(), b"x", bytearray(), Path("x"), object(), Colour.RED, 1j, range(3), iter([])),
        *(np.int64(1), np.float32(1), np.bool_(True), np.zeros(2), {1: 2}, {None: 1}, {"a": [b"x"]}, (1, {2})),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_canonical_unknown_type_raises(value):
    with pytest.raises(TypeError, match="fingerprint"):
        canonical(value)


def test_canonical_tells_numbers_of_different_types_apart():
    assert len({hash_of(value) for value in (1, 1.0, True, "1", [1], None, 0, False, 0.0, "", [], {})}) == 12


def test_canonical_tells_floats_apart_to_the_last_bit():
    assert hash_of(0.1) != hash_of(np.nextafter(0.1, 1).item())
    assert hash_of(0.0) != hash_of(-0.0)


def test_canonical_does_not_depend_on_order_of_keys_or_kind_of_sequence():
    assert hash_of({"a": 1, "b": (1, 2)}) == hash_of({"b": [1, 2], "a": 1})
    assert hash_of([1, 2]) != hash_of([2, 1])
    assert hash_of([[1], 2]) != hash_of([1, [2]])


def test_hash_of_is_pinned():
    # Another value would move every artifact of every user.
    value = {"b": [1, 2.5, None, True], "a": {"x": "é\n", "y": 0.1}, "c": []}
    text = '{"a":{"x":"\\u00e9\\n","y":"0x1.999999999999ap-4"},"b":[1,"0x1.4000000000000p+1",null,true],"c":[]}'
    assert hash_of(value) == hashlib.sha256(text.encode()).hexdigest()
    assert hash_of({"a": 1, "b": [2.0]}) == "74c19e6b2556056d5f13e7e4bc72b2963cbdc2984947d1cac7045916a1c83a9d"


def test_hash_of_does_not_depend_on_the_process():
    code = "from s2l_ray.artifacts import hash_of; print(hash_of({'b': [0.1], 'a': 'x'}))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == hash_of({"a": "x", "b": [0.1]})


# ---------------------------------------------------------------------------------------------------------- all or none


def test_artifact_committed_is_found_with_all_it_was_given(storage):
    output = begun(storage)
    committed = commit(output)
    found = find_artifact(storage, "clusters", FINGERPRINT)
    assert found == committed
    assert found.manifest == committed.manifest
    assert found.summary == {"rows": 3}
    assert found.manifest.config == {"k": 1}
    assert found.manifest.inputs == {"tokens": "d"}
    assert found.manifest.run == {"seconds": 1.0, "attempt": output.attempt}
    assert Path(found.path("a.txt")).read_bytes() == b"hello"
    assert found.uri == output.uri


def test_artifact_without_manifest_does_not_exist(storage):
    begun(storage).write_bytes("a.txt", b"hello")
    assert find_artifact(storage, "clusters", FINGERPRINT) is None
    assert find_artifact(storage, "clusters", "1" * 32) is None
    assert find_artifact(storage, "nothing", FINGERPRINT) is None


def test_artifact_reads_what_the_manifest_names_and_never_looks_around(storage):
    output = begun(storage)
    table = pa.table({"example_id": [1]}, schema=EXAMPLE_IDS)
    record = output.write_parquet("part-0.parquet", [table], EXAMPLE_IDS)
    output.write_parquet("part-1.parquet", [table], EXAMPLE_IDS)
    artifact = commit(output, [record])
    assert artifact.read_table("part-").num_rows == 1
    assert [f.path for f in artifact.files()] == ["part-0.parquet"]


def test_artifact_discarded_does_not_exist_and_can_be_made_again(storage):
    first = commit(begun(storage))
    first.discard()
    assert find_artifact(storage, "clusters", FINGERPRINT) is None
    first.discard()
    assert commit(begun(storage)).digest == first.digest


def test_artifact_discarded_late_leaves_the_one_that_was_made_since(storage):
    first = commit(begun(storage))
    first.discard()  # a run finds the damage, and makes it anew
    second = commit(begun(storage))
    first.discard()  # another one was still looking at the old files
    assert find_artifact(storage, "clusters", FINGERPRINT) == second


def test_artifact_equality_is_that_of_the_address(storage):
    artifact = commit(begun(storage))
    assert artifact == find_artifact(storage, "clusters", FINGERPRINT)
    assert hash(artifact) == hash(find_artifact(storage, "clusters", FINGERPRINT))
    assert artifact != commit(begun(storage, "subset"))
    assert artifact != artifact.uri


def test_pickle_of_storage_artifact_and_output_keeps_the_address(storage):
    output = begun(storage)
    artifact = commit(output)
    assert artifact.damaged_files() == []  # the file system handle is open by now
    for thing in (storage, output, artifact):
        data = pickle.dumps(thing)
        assert len(data) < 2000
        assert pickle.loads(data) == thing
    assert pickle.loads(pickle.dumps(artifact)).manifest == artifact.manifest
    assert pickle.loads(pickle.dumps(artifact)).digest == artifact.digest


# ------------------------------------------------------------------------------------------------------------- manifest


def test_digest_follows_names_rows_and_bytes_only(storage):
    files = (FileRecord("a", 1, 2, "x"), FileRecord("b", 1, None, "y"))
    base = Manifest("clusters", FINGERPRINT, {}, {}, files, {})
    assert replace(base, run={"t": 1}, summary={"s": 1}, config={"c": 1}).digest == base.digest
    for changed in (FileRecord("c", 1, 2, "x"), FileRecord("a", 1, 3, "x"), FileRecord("a", 1, 2, "z")):
        assert replace(base, files=(changed, files[1])).digest != base.digest


def test_manifest_round_trip(storage):
    manifest = commit(begun(storage), summary={"é": [1, 2.5, None], "nested": {"a": True}}).manifest
    assert Manifest.from_json(manifest.to_json(), "x") == manifest


def test_manifest_keys_are_the_contract(storage):
    raw = json.loads(commit(begun(storage)).manifest.to_json())
    assert list(raw) == ["artifact", "fingerprint", "config", "inputs", "files", "summary", "run"]
    assert list(raw["files"][0]) == ["path", "bytes", "rows", "sha256"]
    assert raw["files"][0] == asdict(FileRecord("a.txt", 5, None, hashlib.sha256(b"hello").hexdigest()))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"[]", b"null", b"5", b'"text"', b"{}", b"\xff\xfe", b'{"files": []}', b'{"files": [5]}'),
        *(b'{"files": [{"path": "a"}], "run": {"attempt": "x"}}', b"\x00" * 50),
    ],
)
def test_manifest_garbage_is_an_artifact_error_that_says_what_to_do(storage, data):
    storage.write_bytes(data, "clusters", FINGERPRINT, MANIFEST)
    with pytest.raises(ArtifactError, match="Remove") as caught:
        find_artifact(storage, "clusters", FINGERPRINT)
    assert storage.uri_of("clusters", FINGERPRINT, MANIFEST) in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("change", [{"run": {}}, {"run": None}, {"surplus": 1}, {"files": None}, {"files": [{}]}])
def test_manifest_of_another_shape_is_an_artifact_error(storage, change):
    raw = json.loads(commit(begun(storage)).manifest.to_json()) | change
    with pytest.raises(ArtifactError):
        Manifest.from_json(json.dumps(raw).encode(), "here")


# ---------------------------------------------------------------------------------------------------------------- files


def test_damaged_files_finds_truncated_flipped_and_missing(storage):
    output = begun(storage)
    names = ("flipped", "good", "grown", "missing", "truncated")
    artifact = commit(output, [output.write_bytes(name, b"0123456789") for name in names])
    assert artifact.damaged_files() == []
    Path(artifact.path("flipped")).write_bytes(b"0123456788")
    Path(artifact.path("grown")).write_bytes(b"0123456789 ")
    Path(artifact.path("truncated")).write_bytes(b"01234")
    Path(artifact.path("missing")).unlink()
    assert artifact.damaged_files() == ["flipped", "grown", "missing", "truncated"]


@given(
    groups=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    start=st.integers(0, 35),
    stop=st.none() | st.integers(0, 35),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_rows_equals_slicing_across_row_groups(tmp_path, groups, start, stop):
    storage = Storage.at(str(tmp_path))
    output = begun(storage, fingerprint=uuid.uuid4().hex)
    n_rows = sum(groups)
    edges = np.cumsum([0, *groups])
    tables = [pa.table({"example_id": range(a, b)}, schema=EXAMPLE_IDS) for a, b in itertools.pairwise(edges)]
    record = output.write_parquet("a.parquet", tables, EXAMPLE_IDS)
    artifact = commit(output, [record])
    assert record.rows == n_rows
    assert pq.ParquetFile(artifact.path("a.parquet")).num_row_groups == len(groups)
    assert artifact.read_rows(record, start, stop).column(0).to_pylist() == list(range(n_rows))[start:stop]


def test_read_rows_touches_only_the_row_groups_that_hold_them(storage):
    output = begun(storage)
    tables = [pa.table({"example_id": np.arange(1000) + i}, schema=EXAMPLE_IDS) for i in range(4)]
    artifact = commit(output, [record := output.write_parquet("a.parquet", tables, EXAMPLE_IDS)])
    metadata = pq.ParquetFile(artifact.path("a.parquet")).metadata
    second = metadata.row_group(1).column(0)
    # Rows outside the second group are made unreadable: who reads them fails.
    data = bytearray(Path(artifact.path("a.parquet")).read_bytes())
    start = second.dictionary_page_offset or second.data_page_offset
    data[4:start] = b"\xff" * (start - 4)
    Path(artifact.path("a.parquet")).write_bytes(bytes(data))
    assert artifact.read_rows(record, 1000, 2000).num_rows == 1000
    with pytest.raises(ArtifactError, match=r"a\.parquet"):
        artifact.read_rows(record, 0, 2)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 100])
def test_read_rows_of_a_damaged_file_is_an_artifact_error(storage, damage):
    output = begun(storage)
    table = pa.table({"example_id": [1]}, schema=EXAMPLE_IDS)
    artifact = commit(output, [record := output.write_parquet("a.parquet", [table], EXAMPLE_IDS)])
    Path(artifact.path("a.parquet")).write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"a\.parquet"):
        artifact.read_rows(record)


def test_read_table_takes_files_in_order_of_path(storage):
    output = begun(storage)
    records = [
        output.write_parquet(f"p-{i}.parquet", [pa.table({"example_id": [i]}, schema=EXAMPLE_IDS)], EXAMPLE_IDS)
        for i in (2, 0, 1)
    ]
    assert commit(output, records).read_table("p-").column(0).to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("files", [[[1, 2], [5, 9]], [[5, 9], [], [2, 1]]])
def test_rows_are_read_in_order_of_id_however_they_lie(storage, files):
    vectors = pa.schema([pa.field("example_id", pa.int64()), pa.field("loss", pa.list_(pa.float32(), 2))])
    output = begun(storage)
    records = [
        output.write_parquet(
            f"p-{number}.parquet",
            [pa.table({"example_id": ids, "loss": [[i, -i] for i in ids]}, schema=vectors)],
            vectors,
        )
        for number, ids in enumerate(files)
    ]
    artifact = commit(output, records)
    id_N, loss_NT = artifact.read_matrix("p-", "loss")
    assert id_N.tolist() == [1, 2, 5, 9]
    assert loss_NT.tolist() == [[1, -1], [2, -2], [5, -5], [9, -9]]
    assert artifact.read_in_order("p-").column("loss").to_pylist() == loss_NT.tolist()


def test_read_table_of_no_file_is_an_artifact_error(storage):
    with pytest.raises(ArtifactError, match="rows-"):
        commit(begun(storage)).read_table("rows-")


@pytest.mark.parametrize("prefix", ["", "step=000005"])
def test_local_folder_of_a_remote_storage_holds_what_the_manifest_names(tmp_path, prefix):
    # A file:// URI given past `Storage.at` goes the way of any remote file system.
    storage = Storage(f"file://{tmp_path}/storage")
    assert not storage.is_local
    (tmp_path / "storage" / "clusters" / FINGERPRINT / "attempt-000000000000").mkdir(parents=True)
    output = StagedOutput(storage, "clusters", FINGERPRINT, "attempt-000000000000")
    (tmp_path / "storage" / "clusters" / FINGERPRINT / output.attempt / "step=000005").mkdir()
    records = [output.write_bytes("top", b"1"), output.write_bytes("step=000005/inner", b"2")]
    artifact = output.commit(records, config={}, inputs={}, summary={}, run={})
    with artifact.local_folder(prefix) as folder:
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == (["step=000005/inner", "top"] if not prefix else ["inner"])
