"""File systems of all kinds: opened by their URI, read patiently, and asked no more often than is needed."""

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pyarrow.fs as pafs

from s2l_ray.log import display, without_user_info

CHUNK = 1 << 22
"""Bytes that are read at once."""
READ_AHEAD = 1 << 20
"""Bytes that a small read of a remote file fetches: as many as Arrow reads of a column at once, and never more."""
SILENT_SECONDS = 3.0
"""How long a store may take to answer before a word is said about it."""
S3_RETRIES = 10
"""How often a request to S3 is sent again before it has failed. The waits double from 25 ms to half a minute in all."""
GCS_RETRY = timedelta(seconds=30)
"""The same of a request to Google's store."""
PATIENCE_SECONDS = 25.0
"""How long a read that fails at once is tried again: less than what the retries of a request take, which is enough."""


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI, and the path in it.

    Raises:
        ArrowException, OSError, ValueError: it is none that pyarrow can open.
    """
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if filesystem.type_name == "s3":
        # A URI cannot ask for more attempts, nor for one request a small file where there were three. Its other
        # options are Arrow's to read; the pickled form is where they can be had.
        _, (options,) = filesystem.__reduce__()
        # Not the "standard" strategy: it stops for good after 100 retries, however many requests succeed between.
        retries = pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_RETRIES)
        filesystem = pafs.S3FileSystem(**{**options, "allow_delayed_open": True, "retry_strategy": retries})
    if filesystem.type_name == "gcs":
        # Left to itself it asks a store that does not answer for a quarter of an hour, deaf to signals.
        _, (options,) = filesystem.__reduce__()
        given = {name: value for name, value in options.items() if value}
        filesystem = pafs.GcsFileSystem(**{"retry_time_limit": GCS_RETRY, **given})
    return filesystem, path


class PatientFile(io.BufferedReader):
    """A file of a remote store, whose reads are tried again for a while, and fetch what comes next along with it.

    A Parquet file is read a column at a time: without this, small ones would cost a request for each.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(_PatientReads(file), READ_AHEAD)


class _PatientReads(io.RawIOBase):
    """Reads that are tried again.

    The answer of a store that is busy is longer than the room for a small read, and pyarrow takes that for the end.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all that is left."""
        position, deadline, pause = self._file.tell(), time.monotonic() + PATIENCE_SECONDS, 0.05
        while True:
            try:
                self._file.seek(position)
                return bytes(self._file.read(None if size is None or size < 0 else size))
            except OSError:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause *= 2

    def readall(self) -> bytes:
        """Read all that is left, in one request."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return how much."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._file.tell())


@contextmanager
def waiting_told(uri: str) -> Iterator[None]:
    """Say that a store does not answer if the block takes long: its requests are sent again for half a minute."""
    text = f"{without_user_info(uri)} does not answer yet; asking again for half a minute"
    timer = threading.Timer(SILENT_SECONDS, display.say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def opened(filesystem: pafs.FileSystem, path: str) -> Iterator[Any]:
    """Open a file to be read at any position, patiently where it is not local."""
    with filesystem.open_input_file(path) as file:
        yield file if filesystem.type_name == "local" else PatientFile(file)


def is_missing(filesystem: pafs.FileSystem, path: str) -> bool:
    """Tell whether a store says that a bucket or folder is not there; where it may not be asked, it may be there."""
    try:
        return bool(filesystem.get_file_info(path).type == pafs.FileType.NotFound)
    except OSError:  # whoever may read one folder of a bucket may not be let see the whole
        return False


def reads_in_threads(file: Any) -> bool:
    """Return whether pyarrow's own threads may read a file of `opened`, or fetch its parts ahead.

    A thread that has called Python may come back for it when the process is at its end, and then aborts it.
    """
    return not isinstance(file, PatientFile)


def file_digest(filesystem: pafs.FileSystem, path: str) -> str:
    """Return the SHA-256 of a file's bytes."""
    with opened(filesystem, path) as stream:
        return digest_of(stream)[1]


def digest_of(stream: Any) -> tuple[int, str]:
    """Return the length and the SHA-256 of what is left of a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()
