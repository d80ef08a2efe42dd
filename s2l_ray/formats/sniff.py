"""Which format a file is of: by its content first, and by its extension where content says nothing."""

import json
import re
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.input_files import (
    ARROW_MAGIC,
    BYTE_ORDER_MARK,
    PARQUET_MAGIC,
    Compression,
    FileFormat,
    InputFile,
    decompressed,
    random_access,
    shown,
)

SUPPORTED = (
    "JSON Lines (.jsonl, .ndjson), a JSON array or object (.json), CSV (.csv, .tsv), each as it is or compressed "
    "(.gz, .zst), Parquet (.parquet), Arrow (.arrow, .feather)"
)

_EXTENSIONS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSED_EXTENSIONS = (".gz", ".zst", ".zstd")
_COMPRESSIONS: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD_BYTES = 64 * 2**10
_JSON_START = re.compile(rb'\{\s*["}]|\[\s*[\]{]')
"""What an unknown extension must begin with to be taken for JSON: a README that starts with a link is none."""
_UNSUPPORTED_START = (*_COMPRESSIONS, b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
_ARROW_STREAM_START = b"\xff\xff\xff\xff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


class Found(NamedTuple):
    """What a file is."""

    file_format: FileFormat | None
    """None where it is blank."""
    compression: Compression | None = None


def sniff(file: InputFile, key: str, *, may_be_pairs: bool = False) -> Found:
    """Tell format and compression.

    Args:
        file: its own format and compression are not looked at.
        key: the config path of the input, for messages.
        may_be_pairs: text in a file named .txt is a question and its answer by turns, a line each.

    Raises:
        ConfigError: it is of no supported format.
        DataError: it is UTF-16 or UTF-32, is named after what it is not, or is cut off.
    """
    with random_access(file.path) as stream:
        start: bytes = stream.read(len(ARROW_MAGIC))
        stream.seek(0)
        if start.startswith(PARQUET_MAGIC):
            _check_end(file, stream, PARQUET_MAGIC, "Parquet")
            return Found("parquet")
        if start.startswith(ARROW_MAGIC):
            _check_end(file, stream, ARROW_MAGIC, "an Arrow file")
            return Found("arrow")
        if start.startswith(_ARROW_STREAM_START):
            return Found("arrow")
        compression = next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), None)
        with decompressed(stream, file, compression) as content:
            head = content.read(_HEAD_BYTES)
    is_as_named = compression is not None or not _is_named_compressed(file.name)
    declared = declared_format(file.name) if is_as_named else None
    if may_be_pairs and is_named_text(file.name) and _is_plain_text(head):
        return Found("pairs", compression)
    return Found(_sniff_text(file, head, declared, key), compression)


def declared_format(name: str) -> FileFormat | None:
    """Return the format that a name stands for."""
    return _EXTENSIONS.get(_extension(name))


def is_named_text(name: str) -> bool:
    """Return whether a name is that of a text file."""
    return _extension(name) == ".txt"


def _extension(name: str) -> str:
    path = PurePosixPath(name.lower())
    return path.with_suffix("").suffix if _is_named_compressed(name) else path.suffix


def _is_named_compressed(name: str) -> bool:
    return name.lower().endswith(_COMPRESSED_EXTENSIONS)


def _check_end(file: InputFile, stream: BinaryIO, magic: bytes, kind: str) -> None:
    stream.seek(max(0, file.bytes - len(magic)))
    if file.bytes < 3 * len(magic) or stream.read() != magic:
        raise DataError(
            f"{shown(file.name)}: begins as {kind} but its end is missing. The file is truncated or still being "
            "written; write or download it again."
        )


def _without_mark(head: bytes) -> bytes:
    return head.removeprefix(BYTE_ORDER_MARK).lstrip()


def _is_plain_text(head: bytes) -> bool:
    is_binary = head.startswith(_UNSUPPORTED_START) or _is_wide(head)
    return bool(head) and not is_binary and not _JSON_START.match(_without_mark(head))


def _sniff_text(file: InputFile, head: bytes, declared: FileFormat | None, key: str) -> FileFormat | None:
    if head.startswith((*_UNSUPPORTED_START, PARQUET_MAGIC, ARROW_MAGIC)):
        raise _unsupported(file, key)
    if declared in ("parquet", "arrow") and file.bytes:
        magic = PARQUET_MAGIC if declared == "parquet" else ARROW_MAGIC
        raise DataError(
            f"{shown(file.name)}: is named {PurePosixPath(file.name).suffix} but begins with {head[:4]!r}, expected "
            f"{magic!r}. Write it again, or rename it after what it holds."
        )
    if _is_wide(head):
        raise DataError(
            f"{shown(file.name)}: the file is UTF-16 or UTF-32, expected UTF-8; convert it, e.g. "
            "`iconv -f UTF-16 -t UTF-8`."
        )
    text = _without_mark(head)
    if declared is None and head and not _JSON_START.match(text):
        raise _unsupported(file, key)
    if declared == "csv":
        return "csv" if text else None
    return _sniff_json(text)


def is_one_object(file: InputFile) -> bool:
    """Return whether a JSON file holds a single object in a single line: it is as much JSON as JSON Lines."""
    with random_access(file.path) as stream, decompressed(stream, file, file.compression) as content:
        head = content.read(_HEAD_BYTES)
    return len(head) < _HEAD_BYTES and len(_without_mark(head).splitlines()) == 1


def _unsupported(file: InputFile, key: str) -> ConfigError:
    return ConfigError(
        f"{key}: `{shown(file.name)}` is of no supported format. Expected {SUPPORTED}; convert or unpack it, or leave "
        "it out with a pattern. Questions and answers by turns, a line each, are read as `{path, format: mathematics}`."
    )


def _is_wide(head: bytes) -> bool:
    """Tell UTF-16 and UTF-32 by their mark, or by the NUL on one side of an ASCII character, be it only a newline."""
    return head.startswith(_UTF16_MARKS) or head[:2].count(0) == 1 or (head[:3] == b"\0\0\0" and head[3:4] > b"\0")


def _sniff_json(text: bytes) -> FileFormat | None:
    """Tell JSON Lines from an array or an object over several lines, and a first line that is a (bad) row by itself."""
    if not text:
        return None
    line, _, below = text.partition(b"\n")
    if text.startswith(b"["):
        return "jsonl" if below.strip() and _is_json(line) else "json"
    if line.strip() == b"{":
        return "json"
    return "jsonl"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
