"""Digests of what comes from outside: they follow content and names, and never hash twice."""

import json
import os
from pathlib import Path

import pytest

from s2l_ray import digests
from s2l_ray.digests import CACHE, DigestCache, OutsideFile, model_files
from s2l_ray.errors import DataError
from s2l_ray.storage import Storage


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


def outside(path: Path, name: str | None = None) -> OutsideFile:
    stat = path.stat()
    return OutsideFile(str(path), name or path.name, stat.st_size, stat.st_mtime_ns)


def write(path: Path, text: str) -> OutsideFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return outside(path)


def refuse_to_hash(*_: object) -> str:
    raise AssertionError("content was read")


def test_known_never_reads_content(storage, tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", "x")
    monkeypatch.setattr(digests, "file_digest", refuse_to_hash)
    assert DigestCache(storage).known([file], {}) is None


def test_computed_digest_is_known_from_then_on_and_to_others(storage, tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", "x")
    cache = DigestCache(storage)
    digest = cache.compute([file], {"revision": None})
    monkeypatch.setattr(digests, "file_digest", refuse_to_hash)
    assert cache.known([file], {"revision": None}) == digest
    assert DigestCache(storage).known([file], {"revision": None}) == digest
    assert DigestCache(storage).compute([file], {"revision": None}) == digest


def test_runs_side_by_side_keep_what_the_other_has_found_out(storage, tmp_path):
    files = [write(tmp_path / name, name) for name in "ab"]
    caches = [DigestCache(storage) for _ in files]
    for cache, file in zip(caches, files, strict=True):
        cache.compute([file], {})
    assert all(DigestCache(storage).known([file], {}) for file in files)


def test_computing_hashes_only_what_is_new(storage, tmp_path, monkeypatch):
    first = write(tmp_path / "a", "x")
    DigestCache(storage).compute([first], {})
    hashed = []
    real = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda fs, path: hashed.append(path) or real(fs, path))
    second = write(tmp_path / "b", "y")
    DigestCache(storage).compute([first, second], {})
    assert hashed == [second.path]


def test_digest_moves_with_content_name_order_and_facts(storage, tmp_path):
    cache = DigestCache(storage)
    a, b = write(tmp_path / "a", "x"), write(tmp_path / "b", "y")
    digest = cache.compute([a, b], {})
    others = [
        cache.compute([a], {}),
        cache.compute([b, a], {}),
        cache.compute([a, b], {"model": "m"}),
        cache.compute([a, b], {"model": None}),
        cache.compute([outside(tmp_path / "a", "c"), b], {}),
        cache.compute([write(tmp_path / "other" / "a", "z"), b], {}),
    ]
    assert len({digest, *others}) == 7


def test_same_data_elsewhere_is_the_same_input(storage, tmp_path):
    here, there = write(tmp_path / "here" / "a", "x"), write(tmp_path / "there" / "a", "x")
    os.utime(there.path, ns=(1, 1))
    cache = DigestCache(storage)
    assert cache.compute([here], {}) == cache.compute([outside(Path(there.path))], {})


def test_touched_file_is_hashed_again_and_gives_the_same_digest(storage, tmp_path):
    file = write(tmp_path / "a", "x")
    cache = DigestCache(storage)
    digest = cache.compute([file], {})
    os.utime(file.path, ns=(1, 1))
    touched = outside(Path(file.path))
    assert cache.known([touched], {}) is None
    assert cache.compute([touched], {}) == digest


def test_changed_file_of_equal_size_is_another_input(storage, tmp_path):
    file = write(tmp_path / "a", "x")
    cache = DigestCache(storage)
    digest = cache.compute([file], {})
    (tmp_path / "a").write_text("y")
    os.utime(tmp_path / "a", ns=(1, file.modified_ns + 1))
    changed = outside(tmp_path / "a")
    assert changed.bytes == file.bytes
    assert cache.compute([changed], {}) != digest


def test_no_files_have_a_digest_of_their_facts(storage):
    cache = DigestCache(storage)
    pinned = cache.known([], {"model": "m", "revision": "a"})
    assert pinned is not None
    assert pinned != cache.known([], {"model": "m", "revision": "b"})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xff", b"[1]", b"5"])
def test_cache_that_cannot_be_read_costs_a_hash_and_no_more(storage, tmp_path, data):
    file = write(tmp_path / "a", "x")
    digest = DigestCache(storage).compute([file], {})
    storage.write_bytes(data, CACHE)
    cache = DigestCache(storage)
    assert cache.known([file], {}) is None
    assert cache.compute([file], {}) == digest
    assert DigestCache(storage).known([file], {}) == digest


def test_file_gone_before_it_was_hashed_is_a_data_error(storage, tmp_path):
    file = write(tmp_path / "rows.jsonl", "x")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl") as caught:
        DigestCache(storage).compute([file], {})
    assert caught.value.exit_code == 2


def test_cache_holds_no_password_of_a_uri(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_digest", lambda file: "0" * 64)
    file = OutsideFile("s3://canary-user:canary-password@bucket/a", "a", 1, 1)
    DigestCache(storage).compute([file], {})
    data = storage.read_bytes(CACHE)
    assert json.loads(data)
    assert b"canary" not in data


def test_keys_differ_by_path_size_and_time():
    base = OutsideFile("p", "n", 1, 2)
    keys = {base.key, OutsideFile("q", "n", 1, 2).key, OutsideFile("p", "n", 3, 2).key, OutsideFile("p", "n", 1, 3).key}
    assert len(keys) == 4
    assert OutsideFile("p|1", "n", 2, 3).key != OutsideFile("p", "n", 1, 2).key


def test_model_files_are_what_decides_weights_text_and_code(tmp_path):
    decides = ["config.json", "model.safetensors", "chat_template.jinja", "merges.txt", "spiece.model", "modeling_x.py"]
    for name in [*decides, "README.md", "pytorch_model.bin", ".gitattributes"]:
        (tmp_path / name).write_text(name)
    assert [file.name for file in model_files(tmp_path)] == sorted(decides)
    assert all(Path(file.path).is_absolute() for file in model_files(tmp_path))
