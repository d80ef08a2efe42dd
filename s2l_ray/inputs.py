"""The input files: which there are, of which format, and how they are named and opened.

`find_inputs` turns what the config says into a sorted list of `InputFile`s. It opens every file, reads its first
64 KiB and decides the format by that content first and by the extension second, so that a wrong file is met before
anything expensive starts. What is in the rows is the matter of `raw_rows` and `examples`.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from s2l_ray.config import InputPath
from s2l_ray.errors import ConfigError, DataError, StorageError
from s2l_ray.storage import open_filesystem, opened

FileFormat = Literal["jsonl", "json", "parquet"]
Warn = Callable[[str], None]

MAX_FILES = 2**23
"""Files of one dataset: what the high bits of an `example_id` can number."""

SUPPORTED = "JSON Lines (.jsonl, .ndjson), a JSON array (.json), Parquet (.parquet)"

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_MAGIC = b"PAR1"

_EXTENSIONS: dict[str, FileFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_HEAD_BYTES = 64 * 2**10
_BUFFER_BYTES = 2**20
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PLAIN_NAME = re.compile(r"\w[\w .-]*")
_WILDCARD = re.compile(r"[*?\[]")
_JSON_START = re.compile(rb'\{\s*["}]|\[\s*[\]{]')
"""What an unknown extension must begin with to be taken for JSON: a README that starts with a link is none."""
_COMPRESSED_START = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: absolute local path or full URI; how to open it.
        name: path relative to the input's root, with `/`; unique among the files of a dataset.
        index: position in the list of files, sorted by name; the high bits of an `example_id`.
        file_format: by content.
        bytes: size.
        modified_ns: time of the last change [ns since 1970]; 0 where the filesystem does not say.
        source: from the entry of a mixture.
    """

    path: str
    name: str
    index: int
    file_format: FileFormat
    bytes: int
    modified_ns: int
    source: str | None


def find_inputs(
    path: str | tuple[InputPath, ...], *, key: str, on_warning: Warn | None = None
) -> tuple[InputFile, ...]:
    """Find the input files, sorted by name.

    A folder is read with all its subfolders; files and folders whose names begin with `.` or `_` are left out, so
    that `_SUCCESS` and the like are no data. Files of 0 bytes stay in the list, with a warning.

    Args:
        path: file, folder or glob (`*`, `?`, `[...]`, `**`; local paths only), a `pyarrow.fs` URI, or the entries
            of a mixture.
        key: the config path of `path`, for messages, e.g. `examples.path`.
        on_warning: is told what is odd but no error.

    Raises:
        ConfigError: nothing matches, a folder is empty or leads back into itself, a store does not answer, a format
            is not supported, formats are mixed within one entry, or two entries reach the same file.
        DataError: all files are empty, a file is UTF-16, or a Parquet file is none or is cut off.
    """
    entries = (InputPath(path=path),) if isinstance(path, str) else path
    keys = [key] if isinstance(path, str) else [f"{key}[{i}].path" for i in range(len(entries))]
    if not entries:
        raise ConfigError(f"{key}: found an empty list, expected at least one `{{path, source}}` entry.")
    found = [_find_reachable(entry, where) for entry, where in zip(entries, keys, strict=True)]
    _check_no_file_twice(found, key)
    files = sorted((file for group in _unique_names(found) for file in group), key=lambda file: file.name)
    if len(files) > MAX_FILES:
        raise ConfigError(f"{key}: found {len(files)} files, at most {MAX_FILES} can be numbered; merge them.")
    empty = [file.name for file in files if file.bytes == 0]
    if len(empty) == len(files):
        raise DataError(f"{key}: every file is empty (0 bytes): {listed(empty)}. Give files with rows.")
    if empty and on_warning:
        on_warning(f"{key}: {len(empty)} of {len(files)} files are empty (0 bytes): {listed(empty)}.")
    return tuple(replace(file, index=index) for index, file in enumerate(files))


def check_unchanged(file: InputFile) -> None:
    """Refuse a file that is not the one that was found: its rows would no longer be those that were chosen.

    Raises:
        DataError: size or time of change differ, or it is gone.
    """
    filesystem, path = filesystem_of(file.path)
    with answered(file.path):
        info = filesystem.get_file_info(path)
    modified_ns = info.mtime_ns or 0
    if info.type != pafs.FileType.File or info.size != file.bytes or modified_ns != file.modified_ns:
        raise DataError(
            f"{shown(file.name)} has changed since the run began. Leave the input as it is while a run goes on, and "
            "run the same command again."
        )


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """Open a local path or a URI for buffered reading from the start.

    Raises:
        DataError: the file is gone or may not be read.
        StorageError: its store fails.
    """
    filesystem, inner = filesystem_of(path)
    with answered(path), opened(filesystem, inner) as raw, io.BufferedReader(raw, _BUFFER_BYTES) as stream:
        yield cast(BinaryIO, stream)


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


def _find_reachable(entry: InputPath, key: str) -> list[InputFile]:
    """Return the files of one entry; a store that does not answer is said now, while nothing has been computed."""
    try:
        return _find_entry(entry, key)
    except OSError as error:
        if not is_remote(entry.path):
            raise
        problem = shown(str(error.__cause__ or error).replace(entry.path, "..."), 300)
        raise ConfigError(
            f"{key}: {_public(entry.path)!r} cannot be reached: {problem}. Expected a store that answers and lets us "
            "read; check the address, the network and the credentials, or copy the files to a local folder."
        ) from error


def _find_entry(entry: InputPath, key: str) -> list[InputFile]:
    """Return the files of one entry, not numbered yet; empty ones take the format of the others."""
    unsniffed = list(_remote(entry, key) if is_remote(entry.path) else _local(entry, key))
    if not unsniffed:
        raise ConfigError(
            f"{key}: {_public(entry.path)!r} holds no file. Expected {SUPPORTED}; names that begin with `.` or `_` "
            "are left out."
        )
    for file in unsniffed:
        if file.name.encode("utf-8", "replace").decode() != file.name:
            raise ConfigError(f"{key}: the file name {file.name!a} is not UTF-8; rename the file.")
    # Threads hide the latency of object stores; sniffing itself costs nothing.
    with ThreadPoolExecutor(16) as pool:
        formats = list(pool.map(lambda file: _sniff(file, key), unsniffed))
    first = {kind: file.name for kind, file in zip(reversed(formats), reversed(unsniffed), strict=True) if kind}
    if len(first) > 1:
        examples = ", ".join(f"{kind} (`{shown(name)}`)" for kind, name in sorted(first.items()))
        raise ConfigError(
            f"{key}: {_public(entry.path)!r} mixes formats: {examples}. Expected one; give a pattern such as "
            "`folder/*.jsonl`, or list the inputs as `{path, source}` entries."
        )
    common = next(iter(first), None)
    return [
        replace(file, file_format=kind or common or _EXTENSIONS.get(_extension(file.name), "jsonl"))
        for file, kind in zip(unsniffed, formats, strict=True)
    ]


def _local(entry: InputPath, key: str) -> Iterator[InputFile]:
    text = entry.path
    if text.lower().startswith("file://"):
        text = unquote(urlsplit(text).path)
    if not text:
        raise ConfigError(f"{key}: found an empty path, expected a file, a folder, a glob or a URI.")
    try:
        path = Path(text).expanduser().absolute()
        root, paths = _expand(path, key)
        for file in paths:
            if not file.is_file():
                raise ConfigError(f"{key}: {str(file)!r} is {_kind(file)}, expected a file.")
            status = file.stat()
            name = file.relative_to(root).as_posix()
            yield InputFile(str(file), name, 0, "jsonl", status.st_size, status.st_mtime_ns, entry.source)
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a link loop, a NUL in the path
        raise ConfigError(f"{key}: {entry.path!r} cannot be read: {error}.") from error


def _expand(path: Path, key: str) -> tuple[Path, Iterator[Path]]:
    """Return the root that names are relative to, and the files."""
    if path.is_dir():
        return path, _walk(path, (), key)
    if path.exists():
        return path.parent, iter([path])
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if _WILDCARD.search(part)), None)
    if first is None:
        what = "is a link that leads nowhere or to itself" if path.is_symlink() else "does not exist"
        raise ConfigError(
            f"{key}: {str(path)!r} {what}. Expected a file, a folder or a glob; relative paths count "
            "from the working directory."
        )
    root, pattern = Path(*parts[:first]), Path(*parts[first:])
    asked_for = any(_is_hidden(part) for part in pattern.parts)
    matches = (
        match
        for match in root.glob(str(pattern))
        if match.is_file() and (asked_for or not any(map(_is_hidden, match.relative_to(root).parts)))
    )
    return root, iter(sorted(matches))


def _walk(folder: Path, above: tuple[tuple[int, int], ...], key: str) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise ConfigError(f"{key}: {str(folder)!r} is a link that leads back to a folder above it; remove the link.")
    for path in sorted(folder.iterdir()):
        if _is_hidden(path.name):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here), key)
        else:
            yield path


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "_"))


def _kind(path: Path) -> str:
    return "a link that leads nowhere or to itself" if path.is_symlink() else "a special file"


def _remote(entry: InputPath, key: str) -> Iterator[InputFile]:
    filesystem, root = filesystem_of(entry.path, key)
    info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.File:
        infos, base = [info], root.rpartition("/")[0]
    elif info.type == pafs.FileType.Directory:
        infos, base = filesystem.get_file_info(pafs.FileSelector(root, recursive=True)), root.rstrip("/")
    else:
        hint = " Patterns work for local paths only; give the folder." if _WILDCARD.search(root) else ""
        raise ConfigError(f"{key}: {_public(entry.path)!r} does not exist.{hint}")
    for file in sorted(infos, key=lambda file: str(file.path)):
        name = file.path.removeprefix(base).lstrip("/")
        if file.type != pafs.FileType.File or (file is not info and any(map(_is_hidden, name.split("/")))):
            continue
        uri = entry.path
        if file is not info:
            parts = urlsplit(entry.path)
            uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        yield InputFile(uri, name, 0, "jsonl", file.size or 0, file.mtime_ns or 0, entry.source)


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
        raise ConfigError(
            f"{key}: {_public(path)!r} cannot be opened: {str(error).replace(path, '...')}. Expected a local path or a "
            "URI that pyarrow.fs knows, e.g. `s3://bucket/folder`."
        ) from error
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
            f"{_public(path)} cannot be read: {error.strerror or 'gone, or not permitted'}. Expected the file that was "
            "there at the start; put it back and run the same command again."
        ) from error
    except OSError as error:
        if not is_remote(path):
            raise
        problem = shown(str(error).replace(path, "...").rstrip("."), 300)
        raise StorageError(
            f"{_public(path)} cannot be read: {problem}. Check the store and the network; the same command goes on "
            "from what is finished."
        ) from error


def _public(path: str) -> str:
    """Return a path as it may stand in a message: a URI without user, password and query."""
    if not is_remote(path):
        return path
    parts = urlsplit(path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _sniff(file: InputFile, key: str) -> FileFormat | None:
    """Return the format by content; None where the file is blank."""
    with random_access(file.path) as stream:
        head: bytes = stream.read(_HEAD_BYTES)
        if head.startswith(PARQUET_MAGIC):
            stream.seek(max(0, file.bytes - len(PARQUET_MAGIC)))
            if file.bytes < 3 * len(PARQUET_MAGIC) or stream.read() != PARQUET_MAGIC:
                raise DataError(
                    f"{shown(file.name)}: begins as Parquet but its end is missing. The file is truncated "
                    "or still being written; write or download it again."
                )
            return "parquet"
    declared = _EXTENSIONS.get(_extension(file.name))
    if declared == "parquet" and file.bytes:
        raise DataError(
            f"{shown(file.name)}: is named .parquet but begins with {head[:4]!r}, expected "
            f"{PARQUET_MAGIC!r}. Write it again, or rename it after what it holds."
        )
    if _is_wide(head):
        raise DataError(
            f"{shown(file.name)}: the file is UTF-16 or UTF-32, expected UTF-8; convert it, e.g. "
            "`iconv -f UTF-16 -t UTF-8`."
        )
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    unknown = declared is None and file.bytes > 0 and not _JSON_START.match(text)
    if unknown or head.startswith(_COMPRESSED_START):
        raise ConfigError(
            f"{key}: `{shown(file.name)}` is of no supported format. Expected {SUPPORTED}, not "
            "compressed; convert or unpack it, or leave it out with a pattern."
        )
    return _sniff_json(text, file.name)


def _is_wide(head: bytes) -> bool:
    """Tell UTF-16 and UTF-32 by their mark, or by the NUL on one side of an ASCII character, be it only a newline."""
    return head.startswith(_UTF16_MARKS) or head[:2].count(0) == 1 or (head[:3] == b"\0\0\0" and head[3:4] > b"\0")


def _sniff_json(text: bytes, name: str) -> FileFormat | None:
    """Tell JSON Lines from an array. A first line that is a whole array, with more below, is a (bad) row."""
    if not text:
        return None
    line, _, below = text.partition(b"\n")
    if text.startswith(b"["):
        return "jsonl" if below.strip() and _is_json(line) else "json"
    if line.strip() == b"{":
        raise DataError(
            f"{shown(name)}: holds a JSON object that runs over several lines. Expected one row per "
            "line, or an array of rows."
        )
    return "jsonl"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _check_no_file_twice(found: Sequence[Sequence[InputFile]], key: str) -> None:
    counts = Counter(file.path for group in found for file in group)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(f"{key}: two entries reach {_public(twice[0])!r}; its rows would count twice. Remove one.")


def _unique_names(found: list[list[InputFile]]) -> list[list[InputFile]]:
    """Tell files of the same name in different entries apart by their sources, else by the entries' positions."""
    if len({file.name for group in found for file in group}) == sum(map(len, found)):
        return found
    sources = [group[0].source for group in found]
    by_source = len(set(sources)) == len(sources) and all(s is None or _PLAIN_NAME.fullmatch(s) for s in sources)
    labels = [str(s) if by_source and s is not None else f"entry-{i}" for i, s in enumerate(sources)]
    return [
        [replace(file, name=f"{label}/{file.name}") for file in group]
        for label, group in zip(labels, found, strict=True)
    ]
