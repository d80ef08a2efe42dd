"""The quickstart on `s3://`: examples read from there, artifacts kept there, and what is to hold when it falters."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts import find_artifact
from s2l_ray.attempts import orphans
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.input_files import check_unchanged
from s2l_ray.inputs import find_inputs
from s2l_ray.raw_rows import read_rows
from s2l_ray.staged_output import StagedOutput
from s2l_ray.storage import Storage
from s2l_ray.synthetic import SyntheticSpec, generate_rows
from tests.conftest import FinishedRun, artifacts_of, command, run_s2l, write_config
from tests.object_store import BUCKET, SECRET, Disturb, ObjectStore, manifests, object_store
from tests.unit.tiny import FINGERPRINT, commit

QUICKSTART = Path(__file__).parents[2] / "workflows" / "quickstart.yaml"
ROWS = f"s3://{BUCKET}/data/rows.jsonl"
SMALL = (
    f"examples={{path: '{ROWS}'}}",
    "proxy.steps=30",
    "proxy.checkpoints=6",
    "proxy.model.hidden_size=16",
    "score.shard_rows=300",
    "cluster.n_clusters=12",
    "target.steps=20",
    "target.model.hidden_size=32",
    # Warm tasks of Ray's instead of a gang for every arm: seconds each.
    "target.engine=torch",
    "resources.finetune_target.launcher=task",
    "report.sample=40",
)
PLACE = f"s3://{BUCKET}/finished/run"
LONG = 900

pytestmark = pytest.mark.timeout(LONG)


def run_quickstart(store: ObjectStore, storage: str) -> "subprocess.CompletedProcess[str]":
    sets = [part for override in SMALL for part in ("--set", override)]
    arguments = ("run", str(QUICKSTART), "--json", "--storage", storage, *sets)
    return run_s2l(*arguments, timeout=LONG, **store.environment)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("moto") / "log") as store:
        rows = generate_rows(SyntheticSpec(rows=600, skills=8), seed=0)
        store.storage("data").write_bytes("\n".join(map(json.dumps, rows)).encode(), "rows.jsonl")
        yield store


@pytest.fixture(scope="module")
def storage(store: ObjectStore, finished_run: FinishedRun) -> Storage:
    """What a finished run has left in a store."""
    storage = store.storage("finished/run")
    there = finished_run.storage
    pafs.copy_files(there.path(), storage.path(), there.filesystem, storage.filesystem)
    return storage


@pytest.fixture(scope="module")
def quickstart(store: ObjectStore) -> Storage:
    """What the quickstart, small and on rows in a store, has left there."""
    done = run_quickstart(store, f"s3://{BUCKET}/quick/start")
    assert done.returncode == 0, done.stderr
    return store.storage("quick/start")


def test_run_leaves_whole_artifacts_and_nothing_else(storage: Storage, finished_run: FinishedRun) -> None:
    assert len(finished_run.ran) == len(manifests(storage))
    for name in storage.list_folders():
        assert [found.damaged_files() for found in artifacts_of(storage, name) if found.damaged_files()] == []
    assert orphans(storage) == []


def test_second_run_does_nothing_and_asks_little(
    storage: Storage, store: ObjectStore, finished_run: FinishedRun
) -> None:
    store.calm()
    done = run_s2l("run", str(finished_run.config), "--json", "--storage", PLACE, **store.environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ran"] == []
    # A manifest is looked for and read; what else is asked does not grow with the artifacts.
    assert len(store.requests) <= 2 * len(finished_run.ran) + 30
    assert sum("list-type" in request for request in store.requests) <= 2


def test_process_that_has_read_parquet_from_the_store_ends_in_good_order(storage: Storage, store: ObjectStore) -> None:
    # It did not, most of the time: threads of pyarrow's came back for a file of Python's.
    code = (
        "from s2l_ray.storage import Storage\n"
        "from s2l_ray.artifacts import find_artifact\n"
        f"storage = Storage({PLACE!r})\n"
        "(comparison,) = (find_artifact(storage, 'comparison', f) for f in storage.list_folders('comparison'))\n"
        "assert comparison.read_table('arms.parquet').num_rows\n"
    )
    store.calm()
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **store.environment}, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_inspect_shows_the_storage_and_one_artifact(store: ObjectStore, storage: Storage) -> None:
    whole = run_s2l("inspect", PLACE, "--json", **store.environment)
    assert whole.returncode == 0, whole.stderr
    assert set(json.loads(whole.stdout)["artifacts"]) == set(manifests(storage))
    (proxy,) = artifacts_of(storage, "proxy")
    one = run_s2l("inspect", f"{PLACE}/proxy/{proxy.manifest.fingerprint}", "--json", **store.environment)
    assert one.returncode == 0, one.stderr
    found = json.loads(one.stdout)
    assert (found["digest"], found["checksums"]) == (proxy.digest, "good")


def test_gc_names_what_was_abandoned_and_takes_it_only_without_dry_run(
    store: ObjectStore, storage: Storage, finished_run: FinishedRun
) -> None:
    left = StagedOutput(storage, "clusters", FINGERPRINT, "attempt-" + "a" * 12)
    left.write_bytes("half.parquet", b"half")
    for flags, is_there in ((["--dry-run"], True), ([], False)):
        done = run_s2l("gc", "--storage", PLACE, "--json", *flags, **store.environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["removed"] == [f"clusters/{FINGERPRINT}/{left.attempt}"]
        assert (left.read_bytes("half.parquet") is not None) == is_there
    assert len(manifests(storage)) == len(finished_run.ran)


# ------------------------------------------------------------------------------------------------ data and other places

NOT_THERE = {
    "@bukket/a/rows.jsonl": "there is no 'bukket'",
    f"@{BUCKET}/data/rowz.jsonl": f"'{BUCKET}/data' is there and holds no 'rowz.jsonl'",
    f"@{BUCKET}/empty/below/": f"'{BUCKET}' is there and holds no 'empty'",
    f"@{BUCKET}/data/*.jsonl": "Patterns work for local paths only",
}


@pytest.mark.parametrize("place", NOT_THERE)
def test_input_that_is_not_there_is_said_with_the_first_part_that_is_missing(place: str, store: ObjectStore) -> None:
    with pytest.raises(ConfigError, match=re.escape(NOT_THERE[place])) as caught:
        find_inputs(store.uri("").replace(f"@{BUCKET}/", place), key="examples.path")
    assert SECRET not in str(caught.value)


def test_files_of_a_folder_are_unchanged_until_they_change(store: ObjectStore) -> None:
    store.storage("data").write_bytes(b'{"instruction": "a", "output": "b"}\n', "folder", "rows.jsonl")
    (file,) = find_inputs(store.uri("data/folder"), key="examples.path")
    check_unchanged(file)
    store.storage("data").write_bytes(b'{"instruction": "a", "output": "c"}\n', "folder", "rows.jsonl")
    while find_inputs(store.uri("data/folder"), key="examples.path") == (file,):  # within the same second
        store.storage("data").write_bytes(b'{"instruction": "a", "output": "c"}\n', "folder", "rows.jsonl")
    with pytest.raises(DataError, match="has changed since"):
        check_unchanged(file)


def test_storage_in_a_bucket_that_is_not_there_is_refused_and_in_a_new_folder_not(store: ObjectStore) -> None:
    assert store.storage("new/folder").list_folders() == []
    with pytest.raises(ConfigError, match="there is no bucket 'bukket'") as caught:
        Storage.at(store.uri("a").replace(f"@{BUCKET}/", "@bukket/"))
    assert SECRET not in str(caught.value)


def test_chats_in_parquet_are_read_in_few_requests_and_are_those_that_were_written(store: ObjectStore) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("calls", pa.list_(pa.string()))])
    rows = [
        {"id": f"c{i}", "messages": [{"role": "user", "content": f"Say {i}", "calls": None}] * 3, "tools": None}
        for i in range(600)
    ]
    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(turn)), ("tools", pa.string())])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, row_group_size=20)
    store.storage("data").write_bytes(sink.getvalue().to_pybytes(), "chats.parquet")
    (file,) = find_inputs(store.uri("data/chats.parquet"), key="examples.path")
    store.calm()
    assert [row for _, row in read_rows(file)] == rows
    assert len(store.requests) <= 5


# -------------------------------------------------------------------------------------------------------------- commits


def test_commits_at_once_leave_one_artifact_that_every_reader_sees(store: ObjectStore) -> None:
    storage = store.storage("race")
    for round_ in range(5):
        fingerprint = f"{round_:032x}"
        outputs = [StagedOutput(storage, "clusters", fingerprint, f"attempt-{i:012x}") for i in range(4)]
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda output: commit(output, [output.write_bytes("a", b"same")]), outputs))
        winner = find_artifact(storage, "clusters", fingerprint)
        assert winner is not None
        assert winner.manifest.run["attempt"] in {output.attempt for output in outputs}
        assert {artifact.digest for artifact in made} == {winner.digest}
        assert commit(outputs[0], [outputs[0].write_bytes("a", b"late")]) == winner


def test_commit_that_is_overtaken_between_check_and_write_leaves_both_attempts_whole(store: ObjectStore) -> None:
    storage = store.storage("overtaken")
    slow, fast = (StagedOutput(storage, "clusters", FINGERPRINT, f"attempt-{i:012x}") for i in range(2))
    slow_checked = threading.Event()

    def hold_back_the_first(number: int, request: str) -> float:
        if request.startswith("PUT") and request.endswith("manifest.json") and not slow_checked.is_set():
            slow_checked.set()
            return 3.0
        return 0.0

    store.calm()
    store.disturb = hold_back_the_first
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(commit, slow, [slow.write_bytes("a", b"slow")])
        assert slow_checked.wait(timeout=60)
        early = commit(fast, [fast.write_bytes("a", b"fast")])
        assert early.manifest.run["attempt"] == fast.attempt
        last = late.result(timeout=60)
    store.calm()
    assert find_artifact(storage, "clusters", FINGERPRINT) == last
    for artifact, content in ((early, b"fast"), (last, b"slow")):
        assert artifact.damaged_files() == []
        with storage.open_input(artifact.path("a")) as stream:
            assert stream.read() == content


# ------------------------------------------------------------------------------------------------- a store that falters


def now_and_then(number: int, request: str) -> float | None:
    """Refuse every fifth request; answer every eleventh late."""
    return None if number % 5 == 0 else 0.5 if number % 11 == 0 else 0.0


def breaks_at(sign: str, only: str = "") -> Disturb:
    """From the first request on that has `sign` in it refuse everything, or what has `only` in it."""
    is_broken = threading.Event()

    def disturb(number: int, request: str) -> float | None:
        if sign in request:
            is_broken.set()
        return None if is_broken.is_set() and only in request else 0.0

    return disturb


def assert_clean_abort(done: "subprocess.CompletedProcess[str]", code: int, place: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert place in message


@pytest.mark.faults
def test_store_that_refuses_every_other_request_is_asked_again_however_often(store: ObjectStore) -> None:
    storage = store.storage("refusing")
    store.calm()
    store.disturb = lambda number, request: None if number % 2 else 0.0
    for i in range(50):
        storage.write_bytes(b"%d" % i, "file")
        assert storage.read_bytes("file") == b"%d" % i
    assert len(store.requests) == 300
    store.calm()


@pytest.mark.slow
def test_rows_of_the_subset_are_those_of_the_input(quickstart: Storage) -> None:
    lines = (quickstart.filesystem.open_input_stream(f"{BUCKET}/data/rows.jsonl")).read().splitlines()
    for subset in artifacts_of(quickstart, "subset"):
        with quickstart.filesystem.open_input_file(subset.path("subset.parquet")) as stream:
            chosen = pq.read_table(stream).column("example_id").to_pylist()
        with quickstart.filesystem.open_input_stream(subset.path("rows/rows.jsonl")) as stream:
            assert stream.read().splitlines() == [lines[i] for i in sorted(chosen)]


@pytest.mark.slow
def test_model_folder_of_every_target_is_there(quickstart: Storage) -> None:
    targets = artifacts_of(quickstart, "target")
    assert len(targets) == 3
    for target in targets:
        infos = quickstart.filesystem.get_file_info(pafs.FileSelector(target.path("model")))
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {info.base_name for info in infos}


@pytest.mark.faults
@pytest.mark.slow
def test_store_that_refuses_and_dawdles_now_and_then_changes_nothing(store: ObjectStore, quickstart: Storage) -> None:
    store.calm()
    store.disturb = now_and_then
    done = run_quickstart(store, f"s3://{BUCKET}/faltering")
    refused = len(store.requests) // 5
    store.calm()
    assert done.returncode == 0, done.stderr
    assert refused > 100
    assert manifests(store.storage("faltering")) == manifests(quickstart)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(
    "sign",
    [
        pytest.param("step%3D000010", id="in a training worker"),
        pytest.param("trajectories-", id="in a task of Ray Data"),
        pytest.param("assignments-", id="in the driver"),
    ],
)
def test_store_that_fails_for_good_ends_the_run_with_one_message_and_the_same_command_goes_on(
    sign: str, store: ObjectStore, quickstart: Storage
) -> None:
    prefix = f"broken/{zlib.crc32(sign.encode())}"  # not the sign itself
    place = f"s3://{BUCKET}/{prefix}"
    store.calm()
    store.disturb = breaks_at(sign)
    done = run_quickstart(store, place)
    store.calm()
    assert_clean_abort(done, 1, place)
    here, undisturbed = manifests(store.storage(prefix)), manifests(quickstart)
    assert set(here) < set(undisturbed)
    again = run_quickstart(store, place)
    assert again.returncode == 0, again.stderr
    assert manifests(store.storage(prefix)) == undisturbed
    assert len(json.loads(again.stdout)["ran"]) == len(undisturbed) - len(here)


@pytest.mark.faults
@pytest.mark.slow
def test_input_whose_store_fails_ends_the_run_with_one_message(store: ObjectStore) -> None:
    store.calm()
    store.disturb = breaks_at("heartbeat.json", only="rows.jsonl")
    done = run_quickstart(store, f"s3://{BUCKET}/unread")
    store.calm()
    assert_clean_abort(done, 1, f"s3://{BUCKET}/data/rows.jsonl")
    assert manifests(store.storage("unread")) == {}


@pytest.mark.faults
@pytest.mark.slow
def test_store_that_goes_away_ends_the_run_and_the_next_is_refused_at_once(tmp_path: Path) -> None:
    with object_store(tmp_path / "log") as store:
        config = write_config(tmp_path, storage=f"s3://{BUCKET}/x")
        process = subprocess.Popen(
            command("run", str(config)), stderr=subprocess.PIPE, text=True, env={**os.environ, **store.environment}
        )
        deadline = time.monotonic() + LONG / 3
        while not any("tokenizer" in request for request in store.requests):
            assert time.monotonic() < deadline, "the run did not get that far"
            time.sleep(0.05)
        store.go_down()
        _, stderr = process.communicate(timeout=LONG / 2)
        done = subprocess.CompletedProcess([], process.returncode, "", stderr)
        assert_clean_abort(done, 1, f"s3://{BUCKET}/x")
        again = run_s2l("run", str(config), **store.environment)
        assert_clean_abort(again, 2, f"s3://{BUCKET}/x")
