"""Attempts: one winner, adoption of what was cut short, heartbeats, what nobody works on."""

import hashlib
import io
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray import attempts, heartbeats, staged_output
from s2l_ray.artifacts import MANIFEST, Artifact, FileRecord, find_artifact
from s2l_ray.attempts import begin, orphans
from s2l_ray.errors import ArtifactError
from s2l_ray.filesystems import file_digest
from s2l_ray.heartbeats import STALE_SECONDS
from s2l_ray.staged_output import HEARTBEAT, SCRATCH, HashingSink, StagedOutput
from s2l_ray.storage import Storage
from tests.unit.tiny import EXAMPLE_IDS, FINGERPRINT, begun, commit


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


@pytest.fixture(autouse=True)
def short_look(monkeypatch):
    monkeypatch.setattr(heartbeats, "LOOK_BEATS", 0.02)


def beat_every(seconds: float, monkeypatch) -> None:
    for module in (heartbeats, staged_output):
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", seconds)


def heartbeat(output: StagedOutput, **changes) -> None:
    beat = {"host": heartbeats.host(), "pid": os.getpid(), "nonce": "n", "time": time.time()} | changes
    output.storage.write_bytes(json.dumps(beat).encode(), *output._parts(HEARTBEAT))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# --------------------------------------------------------------------------------------------------------------- commit


def test_commit_of_two_runs_equal_outside_run(tmp_path):
    manifests = []
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        output = begun(Storage.at(str(tmp_path / name)))
        records = [output.write_bytes(path, path.encode()) for path in (("b", "a") if name == "one" else ("a", "b"))]
        manifests.append(json.loads(commit(output, records, run={"seconds": seconds}).manifest.to_json()))
    runs = [manifest.pop("run") for manifest in manifests]
    assert manifests[0] == manifests[1]
    assert runs[0] != runs[1]


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


def test_commit_of_a_run_that_slept_and_was_taken_over_is_refused_and_leaves_the_adopter_alone(storage, monkeypatch):
    beat_every(0.2, monkeypatch)
    output = begun(storage)
    with pytest.raises(ArtifactError, match="took this work over"), output.alive():
        heartbeat(output, host="elsewhere", process="another")
        time.sleep(0.5)  # time for this run to say again that it is at work
        commit(output)
    assert find_artifact(storage, "clusters", FINGERPRINT) is None
    assert output.heartbeat().process == "another"
    assert begin(storage, "clusters", FINGERPRINT) is None
    assert orphans(storage) == []


def test_commit_of_an_adopter_is_not_refused_for_the_heartbeat_that_it_found(storage):
    heartbeat(begun(storage), host="elsewhere", process="another", time=0)
    output = begun(storage)
    with output.alive():
        committed = commit(output)
    assert committed.manifest.run["attempt"] == output.attempt


# ------------------------------------------------------------------------------------------------------------- adoption


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


def test_begin_leaves_an_attempt_alone_whose_clock_is_behind_while_its_heartbeat_changes(storage, monkeypatch):
    monkeypatch.setattr(heartbeats, "LOOK_BEATS", 3)
    beat_every(0.2, monkeypatch)
    output = begun(storage)

    def beat(second: float) -> None:
        heartbeat(output, host="elsewhere", time=time.time() - 2 * STALE_SECONDS + second)

    beat(0)
    later = threading.Timer(0.3, beat, [0.3])
    later.start()
    assert begin(storage, "clusters", FINGERPRINT) is None
    later.join()
    assert begun(storage) == output  # it has fallen silent


def test_begin_with_a_dead_attempt_beside_a_live_one_waits(storage):
    dead, live = (StagedOutput(storage, "clusters", FINGERPRINT, f"attempt-{i:012x}") for i in range(2))
    heartbeat(dead, pid=dead_pid())
    heartbeat(live)
    assert begin(storage, "clusters", FINGERPRINT) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no state of a process")
def test_begin_adopts_an_attempt_whose_process_has_ended_and_was_not_waited_for(storage):
    output = begun(storage)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        heartbeat(output, pid=process.pid, started=heartbeats.started(process.pid))
        assert begin(storage, "clusters", FINGERPRINT) is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert begun(storage) == output


def test_find_or_make_finds_what_was_committed_between_its_two_looks(storage, monkeypatch):
    output = begun(storage)
    heartbeat(output)
    look = attempts.begin

    def commits_in_between(*where):
        monkeypatch.setattr(attempts, "begin", look)
        with output.alive():
            commit(output, [output.write_bytes("a", b"x")])
        return look(*where)

    monkeypatch.setattr(attempts, "begin", commits_in_between)
    found = attempts.find_or_make(storage, "clusters", FINGERPRINT, lambda _: pytest.fail("made again"))
    assert found.manifest.run["attempt"] == output.attempt
    assert found.damaged_files() == []


def test_begin_adopts_an_attempt_killed_before_its_first_heartbeat(storage):
    output = begun(storage)
    output.write_bytes("a", b"x")
    assert begun(storage) == output


@pytest.mark.parametrize("data", [b"", b"{", b"\x00"])
def test_begin_adopts_an_attempt_with_an_unreadable_heartbeat(storage, data):
    output = begun(storage)
    storage.write_bytes(data, *output._parts(HEARTBEAT))
    assert begun(storage) == output


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_begin_leaves_a_live_attempt_alone(storage, host):
    output = begun(storage)
    heartbeat(output, host=host or heartbeats.host())
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


# ------------------------------------------------------------------------------------------------------------ heartbeat


def test_heartbeat_that_cannot_be_written_leaves_the_stage_alone(storage, monkeypatch):
    output = begun(storage)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Storage, "write_bytes", fail)
    with pytest.raises(RuntimeError, match="the stage's own"), output.alive():
        raise RuntimeError("the stage's own")


def test_heartbeat_that_failed_once_over_that_of_a_dead_run_is_said_again(storage, monkeypatch):
    beat_every(0.01, monkeypatch)
    heartbeat(begun(storage), host="elsewhere", process="another", time=0)
    output, write, calls = begun(storage), Storage.write_bytes, []

    def fail_once(self: Storage, data: bytes, *parts: str) -> None:
        calls.append(parts)
        if len(calls) == 1:
            raise OSError("for a moment")
        write(self, data, *parts)

    monkeypatch.setattr(Storage, "write_bytes", fail_once)
    with output.alive():
        deadline = time.monotonic() + 10
        while output.heartbeat().process == "another" and time.monotonic() < deadline:
            time.sleep(0.01)
        committed = commit(output)
    assert committed.manifest.run["attempt"] == output.attempt


def test_heartbeat_repeats_while_the_block_runs(storage, monkeypatch):
    beat_every(0.01, monkeypatch)
    output = begun(storage)
    times = set()
    with output.alive():
        deadline = time.monotonic() + 10
        while len(times) < 3 and time.monotonic() < deadline:
            times.add(getattr(output.heartbeat(), "time", None))
    assert len(times - {None}) >= 2
    assert output.heartbeat().time == 0
    assert socket.gethostname() in output.heartbeat().host


# -------------------------------------------------------------------------------------------------------------- orphans


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


@pytest.mark.parametrize("abandon", [abandon_released, abandon_dead, abandon_stale, abandon_unborn])
def test_remove_orphan_leaves_what_a_run_has_taken_up_since(storage, abandon):
    output = begun(storage)
    abandon(output)
    (orphan,) = orphans(storage)
    assert begun(storage) == output  # it has a claim, and no heartbeat yet
    assert not attempts.remove_orphan(storage, orphan)
    with output.alive():
        assert not attempts.remove_orphan(storage, orphan)
        artifact = commit(output, [output.write_bytes("a", b"x")])
    assert not attempts.remove_orphan(storage, orphan)
    assert artifact.damaged_files() == []


@pytest.mark.parametrize("abandon", [abandon_released, abandon_dead, abandon_stale, abandon_unborn])
def test_remove_orphan_removes_what_nobody_has(storage, abandon):
    output = begun(storage)
    abandon(output)
    (orphan,) = orphans(storage)
    assert attempts.remove_orphan(storage, orphan)
    assert storage.list_folders("clusters", FINGERPRINT) == []


def test_orphans_of_a_storage_that_does_not_exist_are_none(storage):
    assert orphans(storage) == []
    assert not Path(storage.uri).exists()


# ---------------------------------------------------------------------------------------------------------------- files


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


@pytest.mark.parametrize("path", ["../x", "a/../b", "/x", "a//b", ""])
def test_open_outside_the_attempt_is_refused(storage, path):
    with pytest.raises(ArtifactError, match="no path"):
        begun(storage).write_bytes(path, b"x")


@pytest.mark.parametrize("data", [b"", b'{"records": [', b"\x00\x00"])
def test_finished_with_a_torn_receipt_means_not_finished(storage, data):
    output = begun(storage)
    storage.write_bytes(data, *output._parts(f"{SCRATCH}/receipts/shard-1.json"))
    assert output.finished("shard-1") is None


def test_write_parquet_casts_to_the_schema_and_counts_rows(storage):
    output = begun(storage)
    record = output.write_parquet("a.parquet", [pa.table({"example_id": pa.array([1, 2], pa.int32())})], EXAMPLE_IDS)
    assert record.rows == 2
    assert output.read_parquet("a.parquet").schema.equals(EXAMPLE_IDS)


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
    tables = [pa.table({"example_id": range(100)}, schema=EXAMPLE_IDS)] * 3
    record = output.write_parquet("deep/er/a.parquet", tables, EXAMPLE_IDS)
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
