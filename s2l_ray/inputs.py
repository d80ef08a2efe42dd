"""The input files: which there are, of which format, and how they are named and opened.

`find_inputs` turns what the config says into a sorted list of `InputFile`s. It opens every file, reads its first
64 KiB and decides the format by that content first and by the extension second, so that a wrong file is met before
anything expensive starts. What is in the rows is the matter of `raw_rows` and `examples`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow.fs as pafs

from s2l_ray import hub
from s2l_ray.config import InputPath
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.filesystems import is_missing, waiting_told
from s2l_ray.formats.sniff import SUPPORTED, Found, declared_format, is_named_text, is_one_object, sniff
from s2l_ray.input_files import InputFile, Warn, change_ns, filesystem_of, is_remote, listed, public, shown

MAX_FILES = 2**23
"""Files of one dataset: what the high bits of an `example_id` can number."""

PAIRS = "mathematics"
"""The layout whose rows may lie in text files, by turns."""

_PLAIN_NAME = re.compile(r"\w[\w .-]*")
_WILDCARD = re.compile(r"[*?\[]")


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
    found = [
        [replace(file, entry=place) for file in _find_reachable(entry, where)]
        for place, (entry, where) in enumerate(zip(entries, keys, strict=True))
    ]
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


def _find_reachable(entry: InputPath, key: str) -> list[InputFile]:
    """Return the files of one entry; a store that does not answer is said now, while nothing has been computed."""
    try:
        return _find_entry(entry, key)
    except OSError as error:
        if not is_remote(entry.path):
            raise
        problem = shown(str(error.__cause__ or error).replace(entry.path, "...").rstrip("."), 300)
        raise ConfigError(
            f"{key}: {public(entry.path)!r} cannot be reached: {problem}. Expected a store that answers and lets us "
            "read; check the address, the network and the credentials, or copy the files to a local folder."
        ) from error


def _as_json(found: Found, file: InputFile) -> Found:
    is_one = found.file_format == "jsonl" and is_one_object(replace(file, compression=found.compression))
    return found._replace(file_format="json") if is_one else found


def _find_entry(entry: InputPath, key: str) -> list[InputFile]:
    """Return the files of one entry, not numbered yet; empty ones take the format of the others."""
    unsniffed = list(_remote(entry, key) if is_remote(entry.path) else _local(entry, key))
    if not unsniffed:
        raise ConfigError(
            f"{key}: {public(entry.path)!r} holds no file. Expected {SUPPORTED}; names that begin with `.` or `_` "
            "are left out."
        )
    for file in unsniffed:
        if file.name.encode("utf-8", "replace").decode() != file.name:
            raise ConfigError(f"{key}: the file name {file.name!a} is not UTF-8; rename the file.")
    # Threads hide the latency of object stores; sniffing itself costs nothing.
    with ThreadPoolExecutor(16) as pool:
        may_be_pairs = entry.format == PAIRS
        found = list(pool.map(lambda file: sniff(file, key, may_be_pairs=may_be_pairs), unsniffed))
    if {each.file_format for each in found} >= {"json", "jsonl"}:
        # Among files that hold one object each, some may hold it in one line.
        found = [_as_json(each, file) for each, file in zip(found, unsniffed, strict=True)]
    formats = [each.file_format for each in found]
    first = {kind: file.name for kind, file in zip(reversed(formats), reversed(unsniffed), strict=True) if kind}
    if len(first) > 1:
        examples = ", ".join(f"{kind} (`{shown(name)}`)" for kind, name in sorted(first.items()))
        raise ConfigError(
            f"{key}: {public(entry.path)!r} mixes formats: {examples}. Expected one; give a pattern such as "
            "`folder/*.jsonl`, or list the inputs as `{path, source}` entries."
        )
    common = next(iter(first), None)
    return [
        replace(
            file,
            file_format=each.file_format or common or declared_format(file.name) or "jsonl",
            compression=each.compression,
            layout=entry.format,
            columns=entry.columns,
        )
        for file, each in zip(unsniffed, found, strict=True)
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
            yield InputFile(
                str(file), name, 0, "jsonl", status.st_size, change_ns(status.st_mtime_ns, str(file)), entry.source
            )
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
    of_hub = entry.path.startswith(hub.SCHEME)
    address = hub.at_commit(entry.path, key) if of_hub else entry.path
    filesystem, root = filesystem_of(address, key)
    with waiting_told(address):
        info = filesystem.get_file_info(root)
    if info.type == pafs.FileType.File:
        infos, base = [info], root.rpartition("/")[0]
    elif info.type == pafs.FileType.Directory:
        infos, base = filesystem.get_file_info(pafs.FileSelector(root, recursive=True)), root.rstrip("/")
    else:
        hint = "Patterns work for local paths only; give the folder. " if _WILDCARD.search(root) else ""
        raise ConfigError(
            f"{key}: {public(entry.path)!r} does not exist: {_first_missing(filesystem, root)}. {hint}Expected a file "
            "or a folder with files; check the name and the address of the store."
        )
    for file in sorted(infos, key=lambda file: str(file.path)):
        name = file.path.removeprefix(base).lstrip("/")
        if file.type != pafs.FileType.File or (file is not info and any(map(_is_hidden, name.split("/")))):
            continue
        is_data = declared_format(name) is not None or (entry.format == PAIRS and is_named_text(name))
        if of_hub and file is not info and not is_data:
            continue  # every data set of the hub has a card beside its data
        uri = address
        if file is not info and of_hub:
            uri = f"{address.rstrip('/')}/{name}"  # no URI to fsspec, which takes every character for itself
        elif file is not info:
            parts = urlsplit(address)
            uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        yield InputFile(uri, name, 0, "jsonl", file.size or 0, change_ns(file.mtime_ns, uri), entry.source)


def _first_missing(filesystem: pafs.FileSystem, path: str) -> str:
    """Say which part of the path of a file is not there, by the nearest folder above it that is."""
    above, missing = path.rstrip("/"), ""
    while not missing or is_missing(filesystem, above):
        above, _, missing = above.rpartition("/")
        if not above:
            return f"there is no {shown(missing)!r}"
    return f"{shown(above)!r} is there and holds no {shown(missing)!r}"


def _check_no_file_twice(found: Sequence[Sequence[InputFile]], key: str) -> None:
    counts = Counter(file.path for group in found for file in group)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(f"{key}: two entries reach {public(twice[0])!r}; its rows would count twice. Remove one.")


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
