"""Files of remote stores: read in few requests whatever is asked of them, and waited for with a word."""

import io
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray import filesystems
from s2l_ray.filesystems import READ_AHEAD, PatientFile, waiting_told
from s2l_ray.log import display


class Remote(io.BytesIO):
    """A file that counts its reads, the first of which fail."""

    def __init__(self, data: bytes, failures: int = 0) -> None:
        super().__init__(data)
        self.reads, self.failures = 0, failures

    def read(self, size: Any = None) -> bytes:
        self.reads += 1
        if self.reads <= self.failures:
            raise OSError("busy")
        return super().read(size)


def test_store_of_google_is_not_asked_for_longer_than_others():
    filesystem, path = filesystems.open_filesystem("gs://anonymous@bucket/a/b")
    assert (filesystem.type_name, path) == ("gcs", "bucket/a/b")
    _, (options,) = filesystem.__reduce__()
    assert (options["retry_time_limit"], options["anonymous"]) == (filesystems.GCS_RETRY, True)


def test_small_reads_one_after_the_other_are_one_request():
    data = bytes(range(256)) * 1000
    remote = Remote(data)
    file = PatientFile(remote)
    assert b"".join(file.read(100) for _ in range(2000)) == data[:200_000]
    file.seek(500)
    assert file.read(3) == data[500:503]
    assert remote.reads == 1


@pytest.mark.parametrize("size", [READ_AHEAD * 3, None, -1])
def test_all_of_a_file_is_one_request_and_no_byte_more(size):
    data = bytes(READ_AHEAD * 3)
    remote = Remote(data)
    assert PatientFile(remote).read(size) == data
    # What is left after the end is asked for once.
    assert remote.reads <= 2


@given(st.binary(max_size=50), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_bytes_at_any_place_are_those_of_the_file(data, asked):
    file = PatientFile(Remote(data))
    for place, size in asked:
        file.seek(place)
        assert file.read(size) == data[place : place + size]
        assert file.tell() == place + len(data[place : place + size])


def test_read_that_fails_is_tried_again_at_the_same_place():
    file = PatientFile(Remote(b"0123456789", failures=2))
    file.seek(4)
    assert file.read(3) == b"456"


def test_store_that_keeps_us_waiting_is_named_without_its_secret(monkeypatch):
    said, heard = list[str](), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        heard.set()

    monkeypatch.setattr(filesystems, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(display, "say", say)
    with waiting_told("s3://somebody:hunter2@bucket/x"):
        assert heard.wait(60)
    assert said[0].startswith("s3://")
    assert "bucket/x does not answer yet" in said[0]
    assert "hunter2" not in said[0]


def test_store_that_answers_at_once_is_not_spoken_of(monkeypatch):
    monkeypatch.setattr(filesystems, "SILENT_SECONDS", 3600.0)
    monkeypatch.setattr(display, "say", pytest.fail)
    with waiting_told("s3://bucket/x"):
        (timer,) = (thread for thread in threading.enumerate() if isinstance(thread, threading.Timer))
    timer.join(60)
    assert not timer.is_alive()
