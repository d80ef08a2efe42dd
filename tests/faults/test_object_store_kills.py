"""kill -9 where the storage is an object store: what is committed stays, and the same command goes on."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from tests.conftest import command, run_s2l, write_config
from tests.faults.test_kills import wait_for
from tests.object_store import BUCKET, SECRET, ObjectStore, manifests, object_store

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 600


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("moto") / "log") as store:
        yield store


@pytest.fixture(scope="module")
def undisturbed(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    config = write_config(tmp_path_factory.mktemp("undisturbed"), storage=store.uri("undisturbed"))
    done = run_s2l("run", str(config), "--json", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return manifests(store.storage("undisturbed"))


@pytest.mark.parametrize(
    "sign",
    [
        # Weights of step 15: a checkpoint of Ray Train's to go on from lies in the store at step 10.
        "PUT /bucket/{}/proxy/*/step%3D000015/",
        "PUT /bucket/{}/trajectories/*/scratch/receipts/",
        "PUT /bucket/{}/subset/*/manifest.json",
    ],
)
def test_driver_killed_at_work_same_command_gives_the_same_bytes(
    sign: str, store: ObjectStore, tmp_path: Path, undisturbed: dict[str, dict[str, object]]
) -> None:
    prefix = f"killed-{sign.split('/')[3]}"
    config, storage = write_config(tmp_path, storage=store.uri(prefix)), store.storage(prefix)
    start, _, end = sign.format(prefix).partition("*")
    store.calm()
    process = subprocess.Popen(command("run", str(config), "--json"), stdout=subprocess.DEVNULL)
    wait_for(lambda: any(r.startswith(start) and end in r for r in list(store.requests)), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = set(manifests(storage))
    done = run_s2l("run", str(config), "--json", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert manifests(storage) == undisturbed
    assert len(json.loads(done.stdout)["ran"]) == len(undisturbed) - len(before)
    # The address of this store holds credentials, and none of its files may.
    assert [path for path, data in contents(store, prefix) if SECRET.encode() in data] == []


def contents(store: ObjectStore, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files that are not packed, so that text may stand in them."""
    filesystem = store.storage(prefix).filesystem
    for info in filesystem.get_file_info(pafs.FileSelector(f"{BUCKET}/{prefix}", recursive=True)):
        if info.type == pafs.FileType.File and not info.path.endswith((".safetensors", ".parquet")):
            with filesystem.open_input_stream(info.path) as stream:
                yield info.path, stream.read()
