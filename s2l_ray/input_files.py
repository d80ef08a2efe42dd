"""One input file: what is known of it, and how it is opened, wherever it lies and however it is compressed."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from s2l_ray.errors import ConfigError, DataError, StorageError
from s2l_ray.filesystems import open_filesystem, opened

FileFormat = Literal["jsonl", "json", "csv", "parquet", "arrow", "pairs"]
Compression = Literal["gzip", "zstd"]
Warn = Callable[[str], None]
Columns = Mapping[str, str | None]
"""Our name -> the data's column; None leaves unread what has our name."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"

_BUFFER_BYTES = 2**20
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OF_A_JOB = re.compile(r"/_ray_pkg_[0-9a-f]+/")
"""The folder of a job's files, which Ray names by their content."""
_DECOMPRESSION_FAILED = re.compile("compressed stream|inflate|ZSTD|[Dd]ecompress")


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: absolute local path or full URI; how to open it.
        name: path relative to the input's root, with `/`; unique among the files of a dataset.
        index: position in the list of files, sorted by name; the high bits of an `example_id`.
        file_format: by content.
        bytes: size, as it is stored.
        modified_ns: time of the last change [ns since 1970], of a remote file in whole seconds; 0 where the filesystem
            does not say.
        source: from the entry of a mixture.
        compression: of the whole file; Parquet and Arrow compress within and have none.
        entry: place of its entry in a mixture.
        layout: how its rows are laid out, where the entry of a mixture says so.
        columns: our name -> the data's column, where the entry of a mixture says so.
    """

    path: str
    name: str
    index: int
    file_format: FileFormat
    bytes: int
    modified_ns: int
    source: str | None
    compression: Compression | None = None
    entry: int = field(default=0, compare=False)
    layout: str | None = None
    columns: Columns | None = field(default=None, hash=False)


def check_unchanged(file: InputFile) -> None:
    """Refuse a file that is not the one that was found: its rows would no longer be those that were chosen.

    Raises:
        DataError: size or time of change differ, or it is gone.
    """
    filesystem, path = filesystem_of(file.path)
    with answered(file.path):
        info = filesystem.get_file_info(path)
    modified_ns = change_ns(info.mtime_ns, file.path)
    if info.type != pafs.FileType.File or info.size != file.bytes or modified_ns != file.modified_ns:
        raise DataError(
            f"{shown(file.name)} has changed since the run began. Leave the input as it is while a run goes on, and "
            "run the same command again."
        )


def change_ns(told_ns: int | None, path: str) -> int:
    """Return when a file was last changed, to be compared with what is said of it at another time and elsewhere.

    Many stores tell milliseconds when they list a folder, and whole seconds when they are asked for one file. What a
    job brings along cannot change, and every node of the cluster unpacks it at a time of its own.
    """
    if _OF_A_JOB.search(path):
        return 0
    told_ns = int(told_ns or 0)
    return told_ns - told_ns % 10**9 if is_remote(path) else told_ns


@contextmanager
def open_input(file: InputFile) -> Iterator[BinaryIO]:
    """Open a file for buffered reading from the start, decompressed.

    Raises:
        DataError: the file is gone or may not be read, or its compressed data are cut off or broken.
        StorageError: its store fails.
    """
    with random_access(file.path) as raw, decompressed(raw, file, file.compression) as stream:
        yield stream


@contextmanager
def decompressed(raw: Any, file: InputFile, compression: Compression | None) -> Iterator[BinaryIO]:
    """Read what an open file holds when it is unpacked.

    Raises:
        DataError: the compressed data are cut off or broken.
    """
    source = raw if compression is None else pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)
    try:
        with io.BufferedReader(source, _BUFFER_BYTES) as stream:
            yield cast(BinaryIO, stream)
    except OSError as error:
        # Arrow reports broken data as it does a network that fails.
        if compression is None or not _DECOMPRESSION_FAILED.search(str(error)):
            raise
        raise DataError(
            f"{shown(file.name)}: the {compression} data are truncated or corrupt: {shown(str(error), 200)}. "
            "Write or download the file again."
        ) from error


@contextmanager
def random_access(path: str) -> Iterator[Any]:
    """Open a local path or a URI to be read at any position.

    Raises:
        DataError: the file is gone or may not be read.
        StorageError: its store fails.
    """
    filesystem, inner = filesystem_of(path)
    with answered(path), opened(filesystem, inner) as stream:
        yield stream


def is_remote(path: str) -> bool:
    """Tell whether a path is a URI of another filesystem; `file://` is local."""
    return bool(_URI.match(path)) and not path.lower().startswith("file://")


def shown(text: str, limit: int = 80) -> str:
    """Return text from the data as it may stand in a message: short, printable, encodable."""
    cut = text if len(text) <= limit else f"{text[:limit]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Return names for a message: quoted, and not more than `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"`{shown(name)}`" for name in names[:limit]) + more


def filesystem_of(path: str, key: str = "input") -> tuple[Any, str]:
    """Return the file system of a local path or a URI, and the path in it.

    Raises:
        ConfigError: it is a URI that pyarrow does not know.
    """
    if not is_remote(path):
        return pafs.LocalFileSystem(), path
    try:
        filesystem, inner = open_filesystem(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as error:
        written = quote(public(path), safe=":/")
        hint = "" if written == public(path) else f" In a URI other characters are written with %: `{written}`."
        raise ConfigError(
            f"{key}: {public(path)!r} cannot be opened: {str(error).replace(path, '...')}. Expected a local path or a "
            f"URI that pyarrow.fs knows, e.g. `s3://bucket/folder`.{hint}"
        ) from error
    if not inner:
        raise ConfigError(f"{key}: {public(path)!r} names no bucket. Expected a URI such as `s3://bucket/folder`.")
    return filesystem, str(inner)


@contextmanager
def answered(path: str) -> Iterator[None]:
    """Say in words of ours that a file cannot be opened or read in the block, and whether its store is the cause."""
    try:
        yield
    except StorageError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(
            f"{public(path)} cannot be read: {error.strerror or 'gone, or not permitted'}. Expected the file that was "
            "there at the start; put it back and run the same command again."
        ) from error
    except OSError as error:
        if not is_remote(path):
            raise
        problem = shown(str(error).replace(path, "...").rstrip("."), 300)
        raise StorageError(
            f"{public(path)} cannot be read: {problem}. Check the store, the network and the credentials; the same "
            "command goes on from what is finished."
        ) from error


def public(path: str) -> str:
    """Return a path as it may stand in a message: a URI without user, password and query."""
    if not is_remote(path):
        return path
    parts = urlsplit(path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
