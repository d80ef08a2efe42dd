"""Artifacts: identity, all or nothing, one winner, adoption of what was cut short, damage."""

import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2l_ray import attempts
from s2l_ray.artifacts import MANIFEST, Artifact, FileRecord, Manifest, canonical, find_artifact, hash_of
from s2l_ray.attempts import SCRATCH, STALE_SECONDS, HashingSink, StagedOutput, begin, orphans
from s2l_ray.errors import ArtifactError, ConfigError
from s2l_ray.storage import Storage, file_digest

FINGERPRINT = "0" * 32
SCHEMA = pa.schema([pa.field("example_id", pa.int64())])
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


def commit(output: StagedOutput, records=None, **changes) -> Artifact:
    arguments = {"config": {"k": 1}, "inputs": {"tokens": "d"}, "summary": {"rows": 3}, "run": {"seconds": 1.0}}
    if records is None:
        records = [output.write_bytes("a.txt", b"hello")]
    return output.commit(records, **(arguments | changes))


def begun(storage: Storage, artifact: str = "clusters", fingerprint: str = FINGERPRINT) -> StagedOutput:
    output = begin(storage, artifact, fingerprint)
    assert output is not None
    return output


def heartbeat(output: StagedOutput, **changes) -> None:
    beat = {"host": attempts._host(), "pid": os.getpid(), "nonce": "n", "time": time.time()} | changes
    output.storage.write_bytes(json.dumps(beat).encode(), *output._parts(attempts.HEARTBEAT))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ----------------------------------------------------------------------------------------------------------- identity


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        *({1}, frozenset(), b"x", bytearray(), Path("x"), object(), Colour.RED, 1j, range(3), iter([])),
        *(np.int64(1), np.float32(1), np.bool_(True), np.zeros(2), {1: 2}, {None: 1}, {"a": [b"x"]}, (1, {2})),
    ],
    ids=repr,
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


# --------------------------------------------------------------------------------------------------------- all or none


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
    table = pa.table({"example_id": [1]}, schema=SCHEMA)
    record = output.write_parquet("part-0.parquet", [table], SCHEMA)
    output.write_parquet("part-1.parquet", [table], SCHEMA)
    artifact = commit(output, [record])
    assert artifact.read_table("part-").num_rows == 1
    assert [f.path for f in artifact.files()] == ["part-0.parquet"]


def test_artifact_discarded_does_not_exist_and_can_be_made_again(storage):
    first = commit(begun(storage))
    first.discard()
    assert find_artifact(storage, "clusters", FINGERPRINT) is None
    first.discard()
    assert commit(begun(storage)).digest == first.digest


def test_commit_of_two_runs_equal_outside_run(tmp_path):
    manifests = []
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        output = begun(Storage.at(str(tmp_path / name)))
        records = [output.write_bytes(path, path.encode()) for path in (("b", "a") if name == "one" else ("a", "b"))]
        manifests.append(json.loads(commit(output, records, run={"seconds": seconds}).manifest.to_json()))
    runs = [manifest.pop("run") for manifest in manifests]
    assert manifests[0] == manifests[1]
    assert runs[0] != runs[1]


def test_digest_follows_names_rows_and_bytes_only(storage):
    files = (FileRecord("a", 1, 2, "x"), FileRecord("b", 1, None, "y"))
    base = Manifest("clusters", FINGERPRINT, {}, {}, files, {})
    assert replace(base, run={"t": 1}, summary={"s": 1}, config={"c": 1}).digest == base.digest
    for changed in (FileRecord("c", 1, 2, "x"), FileRecord("a", 1, 3, "x"), FileRecord("a", 1, 2, "z")):
        assert replace(base, files=(changed, files[1])).digest != base.digest


def test_commit_with_two_files_of_one_path_is_refused(storage):
    output = begun(storage)
    with pytest.raises(ArtifactError, match="same path"):
        commit(output, [output.write_bytes("a", b"1"), output.write_bytes("a", b"2")])
    assert find_artifact(storage, "clusters", FINGERPRINT) is None


def test_commit_drops_the_scratch_folder(storage):
    output = begun(storage)
    output.keep("piece", [], {})
    output.write_bytes(f"{SCRATCH}/big.bin", b"x")
    artifact = commit(output)
    assert not (Path(artifact.uri) / SCRATCH).exists()
    assert artifact.damaged_files() == []


def test_manifest_round_trip(storage):
    manifest = commit(begun(storage), summary={"é": [1, 2.5, None], "nested": {"a": True}}).manifest
    assert Manifest.from_json(manifest.to_json(), "x") == manifest


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


# -------------------------------------------------------------------------------------------------------- one winner


def test_commit_second_returns_the_first(storage):
    one = StagedOutput(storage, "clusters", FINGERPRINT, "attempt-" + "1" * 12)
    two = StagedOutput(storage, "clusters", FINGERPRINT, "attempt-" + "2" * 12)
    first = commit(one, [one.write_bytes("a", b"one")])
    second = commit(two, [two.write_bytes("a", b"two")])
    assert second == first
    assert second.manifest == first.manifest
    assert Path(second.path("a")).read_bytes() == b"one"


def test_commit_of_racing_threads_has_exactly_one_winner(storage):
    barrier = threading.Barrier(8)

    def run(index: int) -> Artifact:
        output = StagedOutput(storage, "clusters", FINGERPRINT, f"attempt-{index:012x}")
        record = output.write_bytes("a", str(index).encode())
        barrier.wait()
        return commit(output, [record])

    with ThreadPoolExecutor(8) as threads:
        committed = list(threads.map(run, range(8)))
    assert len({a.manifest.run["attempt"] for a in committed}) == 1
    assert find_artifact(storage, "clusters", FINGERPRINT).manifest == committed[0].manifest
    assert committed[0].damaged_files() == []
    assert [p.name for p in Path(storage.path("clusters", FINGERPRINT)).iterdir() if p.is_file()] == [MANIFEST]


def _commit_in_process(uri: str, index: int, barrier, answers) -> None:
    output = StagedOutput(Storage(uri), "clusters", FINGERPRINT, f"attempt-{index:012x}")
    record = output.write_bytes("a", str(index).encode())
    barrier.wait()
    answers.put(commit(output, [record]).manifest.run["attempt"])


def test_commit_of_racing_processes_has_exactly_one_winner(storage):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_commit_in_process, args=(storage.uri, i, barrier, answers)) for i in range(3)]
    for worker in workers:
        worker.start()
    winners = {answers.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join(30)
    assert winners == {find_artifact(storage, "clusters", FINGERPRINT).manifest.run["attempt"]}


def test_create_exclusively_leaves_no_partial_file_behind(storage):
    assert storage.create_exclusively(b"1", "x", "f")
    assert not storage.create_exclusively(b"2", "x", "f")
    assert storage.read_bytes("x", "f") == b"1"
    assert [p.name for p in Path(storage.path("x")).iterdir()] == ["f"]


def test_create_exclusively_on_an_object_store_keeps_the_first(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    monkeypatch.setattr(Storage, "is_local", property(lambda self: False))
    monkeypatch.setitem(storage.__dict__, "_resolved", (pafs.LocalFileSystem(), str(tmp_path)))
    assert storage.create_exclusively(b"1", "f")
    assert not storage.create_exclusively(b"2", "f")
    assert storage.read_bytes("f") == b"1"


# ----------------------------------------------------------------------------------------------------------- adoption


def test_begin_with_nothing_there_is_a_new_attempt_each_time(storage):
    assert begun(storage).attempt != begun(storage).attempt


def test_begin_adopts_an_attempt_released_in_good_order(storage):
    output = begun(storage)
    with output.alive():
        output.write_bytes("a", b"x")
    assert begun(storage) == output


def test_begin_adopts_an_attempt_given_up_by_an_exception(storage):
    output = begun(storage)
    output.write_bytes("a", b"x")
    with pytest.raises(RuntimeError, match="boom"), output.alive():
        raise RuntimeError("boom")
    assert begun(storage) == output


def test_begin_adopts_an_attempt_whose_process_is_dead(storage):
    output = begun(storage)
    heartbeat(output, pid=dead_pid())
    assert begun(storage) == output


def test_begin_adopts_an_attempt_gone_stale_on_another_machine(storage):
    output = begun(storage)
    heartbeat(output, host="elsewhere", time=time.time() - STALE_SECONDS - 1)
    assert begun(storage) == output


def test_begin_adopts_an_attempt_killed_before_its_first_heartbeat(storage):
    output = begun(storage)
    output.write_bytes("a", b"x")
    assert begun(storage) == output


@pytest.mark.parametrize("data", [b"", b"{", b"\x00"])
def test_begin_adopts_an_attempt_with_an_unreadable_heartbeat(storage, data):
    output = begun(storage)
    storage.write_bytes(data, *output._parts(attempts.HEARTBEAT))
    assert begun(storage) == output


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_begin_leaves_a_live_attempt_alone(storage, host):
    output = begun(storage)
    heartbeat(output, host=host or attempts._host())
    assert begin(storage, "clusters", FINGERPRINT) is None


def test_begin_leaves_an_attempt_alone_while_its_block_runs(storage):
    output = begun(storage)
    with output.alive():
        for _ in range(100):
            if output.heartbeat():
                break
            time.sleep(0.01)
        assert begin(storage, "clusters", FINGERPRINT) is None
        assert orphans(storage) == []


def test_begin_does_not_mix_up_artifacts_and_fingerprints(storage):
    begun(storage).write_bytes("a", b"x")
    other = begin(storage, "clusters", "1" * 32)
    assert other.fingerprint == "1" * 32
    assert begin(storage, "subset", FINGERPRINT).artifact == "subset"


def abandon_released(output: StagedOutput) -> None:
    with output.alive():
        output.write_bytes("a", b"x")


def abandon_dead(output: StagedOutput) -> None:
    heartbeat(output, pid=dead_pid())


def abandon_stale(output: StagedOutput) -> None:
    # On another host only the clock tells; on this one the process itself does.
    heartbeat(output, host="elsewhere", time=time.time() - 2 * STALE_SECONDS)


def abandon_unborn(output: StagedOutput) -> None:
    output.write_bytes("a", b"x")


@pytest.mark.parametrize("abandon", [abandon_released, abandon_dead, abandon_stale, abandon_unborn])
def test_begin_of_racing_adopters_gives_the_attempt_to_one(storage, abandon):
    output = begun(storage)
    abandon(output)
    barrier = threading.Barrier(6)

    def adopt(_: int) -> StagedOutput | None:
        barrier.wait()
        return begin(storage, "clusters", FINGERPRINT)

    with ThreadPoolExecutor(6) as threads:
        taken = list(threads.map(adopt, range(6)))
    assert taken.count(output) == 1
    assert taken.count(None) == 5


@pytest.mark.parametrize("abandon", [abandon_released, abandon_dead, abandon_stale, abandon_unborn])
def test_begin_after_an_adopter_was_killed_before_its_heartbeat_does_not_wait_for_ever(storage, abandon, monkeypatch):
    output = begun(storage)
    abandon(output)
    assert begun(storage) == output  # and dies here
    assert begin(storage, "clusters", FINGERPRINT) is None
    now = time.time()
    monkeypatch.setattr(attempts.time, "time", lambda: now + STALE_SECONDS + 1)
    assert begun(storage) != output


def test_begin_adopts_again_and_again(storage):
    output = begun(storage)
    for _ in range(3):
        with output.alive():
            output.write_bytes("a", b"x")
        output = begun(storage)
    assert len(storage.list_folders("clusters", FINGERPRINT)) == 1


def test_heartbeat_that_cannot_be_written_leaves_the_stage_alone(storage, monkeypatch):
    output = begun(storage)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Storage, "write_bytes", fail)
    with pytest.raises(RuntimeError, match="the stage's own"), output.alive():
        raise RuntimeError("the stage's own")


def test_heartbeat_repeats_while_the_block_runs(storage, monkeypatch):
    monkeypatch.setattr(attempts, "HEARTBEAT_SECONDS", 0.01)
    output = begun(storage)
    times = set()
    with output.alive():
        deadline = time.monotonic() + 10
        while len(times) < 3 and time.monotonic() < deadline:
            times.add((output.heartbeat() or {"time": None})["time"])
    assert len(times - {None}) >= 2
    assert output.heartbeat()["time"] == 0
    assert socket.gethostname() in output.heartbeat()["host"]


def test_finished_returns_what_was_kept(storage):
    output = begun(storage)
    records = [output.write_bytes("a", b"1", 2), output.write_bytes("b", b"345")]
    assert output.finished("shard-1") is None
    output.keep("shard-1", records, {"rows": 5, "é": [1]})
    adopted = StagedOutput(storage, "clusters", FINGERPRINT, output.attempt)
    assert adopted.finished("shard-1") == (records, {"rows": 5, "é": [1]})
    assert adopted.finished("shard-2") is None


def test_finished_with_a_file_of_another_size_means_not_finished(storage):
    output = begun(storage)
    output.keep("shard-1", [output.write_bytes("a", b"whole")], {})
    Path(storage.path(*output._parts("a"))).write_bytes(b"wh")
    assert output.finished("shard-1") is None


def test_begin_of_a_run_that_slept_on_this_host_leaves_it_alone(storage):
    heartbeat(begun(storage), time=time.time() - 100 * STALE_SECONDS)
    assert begin(storage, "clusters", FINGERPRINT) is None


def test_begin_with_the_pid_of_another_process_adopts(storage):
    output = begun(storage)
    heartbeat(output, started="1")
    assert begin(storage, "clusters", FINGERPRINT) == output


def test_begin_after_discard_never_adopts_the_discarded_attempt(storage):
    committed = commit(begun(storage))
    committed.discard()
    fresh = begin(storage, "clusters", FINGERPRINT)
    assert fresh is not None
    assert fresh.attempt != committed.manifest.run["attempt"]


@pytest.mark.parametrize("path", ["../x", "a/../b", "/x", "a//b", ""])
def test_open_outside_the_attempt_is_refused(storage, path):
    with pytest.raises(ArtifactError, match="no path"):
        begun(storage).write_bytes(path, b"x")


@pytest.mark.parametrize("data", [b"", b'{"records": [', b"\x00\x00"])
def test_finished_with_a_torn_receipt_means_not_finished(storage, data):
    output = begun(storage)
    storage.write_bytes(data, *output._parts(f"{SCRATCH}/receipts/shard-1.json"))
    assert output.finished("shard-1") is None


# ----------------------------------------------------------------------------------------------------------------- gc


def test_orphans_are_abandoned_attempts_only(storage):
    abandoned = begun(storage, "proxy")
    abandoned.write_bytes("a", b"x")
    live = begun(storage, "target")
    heartbeat(live)
    committed = commit(begun(storage, "clusters"))
    loser = StagedOutput(storage, "clusters", FINGERPRINT, "attempt-" + "f" * 12)
    loser.write_bytes("a", b"x")
    assert sorted(orphans(storage)) == sorted(
        [("proxy", FINGERPRINT, abandoned.attempt), ("clusters", FINGERPRINT, loser.attempt)]
    )
    for orphan in orphans(storage):
        storage.delete_folder(*orphan)
    assert orphans(storage) == []
    assert committed.damaged_files() == []


def test_orphans_include_scratch_that_a_kill_left_after_the_commit(storage):
    artifact = commit(output := begun(storage))
    output.keep("piece", [], {})
    assert orphans(storage) == [("clusters", FINGERPRINT, output.attempt, SCRATCH)]
    storage.delete_folder(*orphans(storage)[0])
    assert artifact.damaged_files() == []
    assert orphans(storage) == []


@pytest.mark.parametrize("path", ["src/lib/core/main.py", "home/me/attempt-photos/cat.jpg", "a/b/attempt-1/x"])
def test_orphans_never_include_folders_that_are_not_ours(tmp_path, path):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    assert orphans(Storage.at(str(tmp_path))) == []


@pytest.mark.parametrize("abandon", [abandon_released, abandon_dead, abandon_stale, abandon_unborn])
def test_orphans_do_not_include_an_attempt_just_adopted(storage, abandon):
    output = begun(storage)
    abandon(output)
    assert len(orphans(storage)) == 1
    assert begun(storage) == output  # the adopter has not had the time for a heartbeat
    assert orphans(storage) == []


def test_orphans_do_not_include_an_attempt_committed_while_they_are_listed(storage, monkeypatch):
    output = begun(storage)
    output.write_bytes("a", b"x")
    heartbeat(output)
    read = StagedOutput.heartbeat

    def commits_in_between(self: StagedOutput):
        beat = read(self)
        monkeypatch.setattr(StagedOutput, "heartbeat", read)
        commit(output)
        monkeypatch.setattr(StagedOutput, "heartbeat", commits_in_between)
        heartbeat(output, pid=-1, time=0)
        return beat

    monkeypatch.setattr(StagedOutput, "heartbeat", commits_in_between)
    assert orphans(storage) == []
    monkeypatch.setattr(StagedOutput, "heartbeat", read)
    assert orphans(storage) == []


def test_orphans_of_a_storage_that_does_not_exist_are_none(storage):
    assert orphans(storage) == []
    assert not Path(storage.uri).exists()


# --------------------------------------------------------------------------------------------------------------- files


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
    tables = [pa.table({"example_id": range(a, b)}, schema=SCHEMA) for a, b in itertools.pairwise(edges)]
    record = output.write_parquet("a.parquet", tables, SCHEMA)
    artifact = commit(output, [record])
    assert record.rows == n_rows
    assert pq.ParquetFile(artifact.path("a.parquet")).num_row_groups == len(groups)
    assert artifact.read_rows(record, start, stop).column(0).to_pylist() == list(range(n_rows))[start:stop]


def test_read_rows_touches_only_the_row_groups_that_hold_them(storage):
    output = begun(storage)
    tables = [pa.table({"example_id": np.arange(1000) + i}, schema=SCHEMA) for i in range(4)]
    artifact = commit(output, [record := output.write_parquet("a.parquet", tables, SCHEMA)])
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
    table = pa.table({"example_id": [1]}, schema=SCHEMA)
    artifact = commit(output, [record := output.write_parquet("a.parquet", [table], SCHEMA)])
    Path(artifact.path("a.parquet")).write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"a\.parquet"):
        artifact.read_rows(record)


def test_read_table_takes_files_in_order_of_path(storage):
    output = begun(storage)
    records = [
        output.write_parquet(f"p-{i}.parquet", [pa.table({"example_id": [i]}, schema=SCHEMA)], SCHEMA)
        for i in (2, 0, 1)
    ]
    assert commit(output, records).read_table("p-").column(0).to_pylist() == [0, 1, 2]


def test_read_table_of_no_file_is_an_artifact_error(storage):
    with pytest.raises(ArtifactError, match="rows-"):
        commit(begun(storage)).read_table("rows-")


def test_write_parquet_casts_to_the_schema_and_counts_rows(storage):
    output = begun(storage)
    record = output.write_parquet("a.parquet", [pa.table({"example_id": pa.array([1, 2], pa.int32())})], SCHEMA)
    assert record.rows == 2
    assert output.read_parquet("a.parquet").schema.equals(SCHEMA)


@given(chunks=st.lists(st.binary(max_size=20), max_size=8))
@settings(max_examples=50, deadline=None)
def test_hashing_sink_agrees_with_hashlib(chunks):
    stream = io.BytesIO()
    sink = HashingSink(stream, "a")
    for chunk in chunks:
        assert sink.write(memoryview(chunk)) == len(chunk)
    whole = b"".join(chunks)
    assert stream.getvalue() == whole
    assert sink.record(7) == FileRecord("a", len(whole), 7, hashlib.sha256(whole).hexdigest())


def test_file_record_of_a_parquet_file_is_what_lies_on_disk(storage):
    output = begun(storage)
    tables = [pa.table({"example_id": range(100)}, schema=SCHEMA)] * 3
    record = output.write_parquet("deep/er/a.parquet", tables, SCHEMA)
    data = Path(output.uri, "deep/er/a.parquet").read_bytes()
    assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert file_digest(pafs.LocalFileSystem(), f"{output.uri}/deep/er/a.parquet") == record.sha256


@pytest.mark.parametrize("prefix", ["", "model"])
def test_add_folder_copies_every_file_below_the_prefix(storage, tmp_path, prefix):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "b.txt").write_bytes(b"b")
    (source / "sub" / "a.txt").write_bytes(b"a")
    artifact = commit(output := begun(storage), output.add_folder(source, prefix))
    start = f"{prefix}/" if prefix else ""
    assert [f.path for f in artifact.files()] == [f"{start}b.txt", f"{start}sub/a.txt"]
    with artifact.local_folder(prefix) as folder:
        assert (folder / "sub" / "a.txt").read_bytes() == b"a"


def test_remove_takes_a_file_away_and_minds_nothing_missing(storage):
    output = begun(storage)
    output.write_bytes("a", b"x")
    output.remove("a")
    output.remove("a")
    assert output.read_bytes("a") is None


def test_write_bytes_replaces_whole(storage):
    storage.write_bytes(b"long before", "a", "b")
    storage.write_bytes(b"short", "a", "b")
    assert storage.read_bytes("a", "b") == b"short"
    assert [p.name for p in Path(storage.path("a")).iterdir()] == ["b"]
    assert storage.read_bytes("a", "c") is None


# -------------------------------------------------------------------------------------------------------------- places


def test_storage_relative_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.delenv(JOB, raising=False)
    monkeypatch.chdir(tmp_path)
    assert Storage.at("./.s2l").uri == str(tmp_path / ".s2l")


def test_storage_relative_path_in_a_submitted_job_is_refused(monkeypatch):
    monkeypatch.setenv(JOB, "{}")
    with pytest.raises(ConfigError, match="absolute") as caught:
        Storage.at("./.s2l")
    assert "--storage" in str(caught.value)
    assert Storage.at("/absolute").uri == "/absolute"


def test_storage_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(JOB, "{}")
    assert Storage.at("~/x").uri == str(tmp_path / "x")


@pytest.mark.parametrize("name", ["mit Leerzeichen", "ünïcode-数据-😀", "a'b\"c", "%41", "a?b#c", "[x]*", "tilde~"])
def test_storage_of_an_odd_name_works_throughout(tmp_path, name):
    storage = Storage.at(str(tmp_path / name))
    storage.check_writable()
    output = begun(storage)
    with output.alive():
        table = pa.table({"example_id": [1]}, schema=SCHEMA)
        artifact = commit(output, [output.write_parquet("a.parquet", [table], SCHEMA)])
    assert find_artifact(storage, "clusters", FINGERPRINT).read_table("a").num_rows == 1
    assert artifact.damaged_files() == []
    assert Path(artifact.uri).is_dir()
    assert (tmp_path / name / "clusters" / FINGERPRINT / MANIFEST).is_file()


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_storage_where_a_file_stands_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        Storage.at(str(tmp_path / "file" / below))


@pytest.mark.parametrize("uri", ["", " ", "nonsense://x", "s3://", "~no-such-user-at-all/x", "/" + "x" * 5000])
def test_storage_that_cannot_be_is_a_config_error(uri):
    with pytest.raises(ConfigError) as caught:
        Storage.at(uri)
    assert "storage" in str(caught.value)
    assert caught.value.exit_code == 2


def test_storage_file_uri_is_the_local_path(tmp_path):
    storage = Storage.at(f"file://{tmp_path}/with%20space")
    assert storage == Storage.at(str(tmp_path / "with space"))
    assert storage.is_local
    storage.check_writable()


def test_storage_uri_keeps_its_query_at_the_end():
    storage = Storage("s3://bucket/dir?endpoint_override=localhost%3A9000&scheme=http")
    assert storage.uri_of("a", "b") == "s3://bucket/dir/a/b?endpoint_override=localhost%3A9000&scheme=http"
    assert storage.path("a", "b") == "bucket/dir/a/b"


@pytest.mark.parametrize("path", ["/proc/s2l-test", "/sys/s2l-test", "/dev/null/s2l"])
def test_check_writable_read_only_is_refused(path):
    with pytest.raises(ConfigError, match="written") as caught:
        Storage(path).check_writable()
    assert path in str(caught.value)


def test_check_writable_leaves_nothing_behind(storage):
    storage.check_writable()
    assert list(Path(storage.uri).iterdir()) == []


def test_check_writable_of_two_runs_at_once(storage):
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            list(threads.map(lambda _: storage.check_writable(), range(8)))


def test_check_writable_without_hard_links_says_so_before_anything_runs(storage, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ConfigError, match="not supported"):
        storage.check_writable()
    assert list(Path(storage.uri).iterdir()) == []


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


def test_artifact_equality_is_that_of_the_address(storage):
    artifact = commit(begun(storage))
    assert artifact == find_artifact(storage, "clusters", FINGERPRINT)
    assert hash(artifact) == hash(find_artifact(storage, "clusters", FINGERPRINT))
    assert artifact != commit(begun(storage, "subset"))
    assert artifact != artifact.uri


def test_commit_of_an_attempt_that_another_process_took_over_is_refused(storage):
    output = begun(storage)
    heartbeat(output, host="elsewhere", process="another")
    with pytest.raises(ArtifactError, match="took this work over"):
        commit(output)
    assert find_artifact(storage, "clusters", FINGERPRINT) is None


def test_commit_of_an_attempt_that_another_process_took_over_and_finished_returns_its_result(storage):
    output = begun(storage)
    finished = commit(output)
    heartbeat(output, host="elsewhere", process="another")
    assert commit(output) == finished


def test_manifest_keys_are_the_contract(storage):
    raw = json.loads(commit(begun(storage)).manifest.to_json())
    assert list(raw) == ["artifact", "fingerprint", "config", "inputs", "files", "summary", "run"]
    assert list(raw["files"][0]) == ["path", "bytes", "rows", "sha256"]
    assert raw["files"][0] == asdict(FileRecord("a.txt", 5, None, hashlib.sha256(b"hello").hexdigest()))


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
