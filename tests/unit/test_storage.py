"""Storage: whole files, the places that can be one, and those that cannot."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from s2l_ray.artifacts import MANIFEST, find_artifact
from s2l_ray.errors import ConfigError, S2LError, StorageError
from s2l_ray.filesystems import open_filesystem
from s2l_ray.storage import Storage
from tests.unit.tiny import EXAMPLE_IDS, FINGERPRINT, begun, commit

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


# ---------------------------------------------------------------------------------------------------------- whole files


def test_write_bytes_replaces_whole(storage):
    storage.write_bytes(b"long before", "a", "b")
    storage.write_bytes(b"short", "a", "b")
    assert storage.read_bytes("a", "b") == b"short"
    assert [p.name for p in Path(storage.path("a")).iterdir()] == ["b"]
    assert storage.read_bytes("a", "c") is None


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


def test_full_disk_is_an_error_that_names_the_storage_and_says_how_to_go_on():
    storage = Storage("/dev")
    with pytest.raises(StorageError, match="No space left") as caught, storage.open_output("/dev/full") as stream:
        stream.write(b"x")
    assert "/dev" in str(caught.value)
    assert "same command" in str(caught.value)
    assert caught.value.exit_code == 1


def test_file_that_is_not_there_is_no_failure_of_the_storage(storage):
    with pytest.raises(FileNotFoundError), storage.open_input(storage.path("none")):
        pass
    storage.delete_file("none")
    storage.delete_folder("none")


def test_storage_error_crosses_a_process_border_as_both_kinds_of_error():
    error = pickle.loads(pickle.dumps(StorageError("gone")))
    assert isinstance(error, OSError)
    assert isinstance(error, S2LError)
    assert str(error) == "gone"


# --------------------------------------------------------------------------------------------------------------- places


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
        table = pa.table({"example_id": [1]}, schema=EXAMPLE_IDS)
        artifact = commit(output, [output.write_parquet("a.parquet", [table], EXAMPLE_IDS)])
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


def test_options_of_an_s3_uri_survive():
    filesystem, path = open_filesystem(
        "s3://key:secret@bucket/a%20dir?endpoint_override=localhost%3A9&region=eu-west-3"
    )
    assert (filesystem.region, path) == ("eu-west-3", "bucket/a dir")
    _, (options,) = filesystem.__reduce__()
    assert (options["access_key"], options["endpoint_override"]) == ("key", "localhost:9")


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


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.zst", "rows.jsonl"])
def test_bytes_are_written_as_they_are_whatever_the_name(tmp_path, name):
    storage = Storage.at(str(tmp_path))
    storage.write_bytes(b"as it is", "folder", name)
    with storage.open_output(storage.path("folder", f"more.{name}")) as stream:
        stream.write(b"as it is")
    assert storage.read_bytes("folder", f"more.{name}") == (tmp_path / "folder" / name).read_bytes() == b"as it is"
