"""The files of an export: what other tools can make of them, and which of them go together.

`datasets` reads the files of one configuration as one table, so they must be of one kind and have the same columns;
LLaMA-Factory goes by a file's extension and knows fewer of them.
"""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from s2l_ray.errors import DataError
from s2l_ray.formats.csv_rows import csv_delimiter
from s2l_ray.formats.row import BadRow, kind_of
from s2l_ray.formats.sniff import declared_format
from s2l_ray.input_files import InputFile, listed
from s2l_ray.raw_rows import read_rows

FOLDER = "data"
"""Where an export keeps the rows."""
_BUILDERS = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet", "arrow": "arrow", "pairs": "text"}
_ENDINGS = {kind: f".{kind}" for kind in _BUILDERS} | {"pairs": ".txt"}
_COMPRESSED_ENDINGS = {None: "", "gzip": ".gz", "zstd": ".zst"}
_UNKNOWN_ENDINGS = (".feather", ".zstd")
"""Names of formats that we read and `datasets` knows by other names only."""


@dataclass(frozen=True)
class DataFile:
    """One file of selected rows.

    Attributes:
        file: how to read it; `name` is that of the input file.
        path: where it goes in the export.
        rows: how many it holds.
        kinds: column -> the kinds of its values, in the words of JSON; nulls are of none.
        sources: those of its rows.
        delimiter: what parts the fields of CSV.
    """

    file: InputFile
    path: str
    rows: int
    kinds: Mapping[str, frozenset[str]]
    sources: frozenset[str | None]
    delimiter: str | None

    @property
    def builder(self) -> str:
        """The module of `datasets` that reads it."""
        return _BUILDERS[self.file.file_format]


@dataclass(frozen=True)
class Group:
    """Files that can be read as one table: a configuration of the data set."""

    name: str
    files: tuple[DataFile, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all of them."""
        return tuple(self.files[0].kinds)

    def has_text_alone(self, columns: Iterable[str]) -> bool:
        """Return whether columns hold nothing but text, in all of the files."""
        return all(file.kinds.get(column, frozenset()) <= {"text"} for file in self.files for column in columns)

    def front_matter(self) -> dict[str, Any]:
        """Return the entry under `configs` of a data set card."""
        # A path is a pattern there. Texts such as NA are what stands in the file, and no missing values.
        paths = [glob.escape(file.path) for file in self.files]
        options = {"sep": self.files[0].delimiter, "keep_default_na": False} if self.files[0].delimiter else {}
        return {"config_name": self.name, **options, "data_files": [{"split": "train", "path": paths}]}


def of_one_kind(groups: Sequence[Group]) -> list[Group]:
    """Return the groups that the hub can name in one data set: those whose files are read as the first one's are."""
    return [group for group in groups if group.files[0].builder == groups[0].files[0].builder]


def describe(file: InputFile, path: str, rows: int, sources: Iterable[str | None]) -> DataFile:
    """Look through the rows of a file.

    Raises:
        DataError: it cannot be read.
    """
    kinds: dict[str, set[str]] = {}
    for _, row in read_rows(file):
        if not isinstance(row, BadRow):
            for column, value in row.items():
                kinds.setdefault(column, set()).update([] if value is None else [kind_of(value)])
    delimiter = csv_delimiter(file) if file.file_format == "csv" else None
    found = {column: frozenset(values) for column, values in kinds.items()}
    return DataFile(file, path, rows, found, frozenset(sources), delimiter)


def export_paths(files: Sequence[InputFile], folder: str = FOLDER) -> list[str]:
    """Return where each file goes: its name, with an ending that says its format where the name does not.

    Args:
        files: of one part of an export.
        folder: where that part keeps its rows.

    Raises:
        DataError: two would have one name.
    """
    paths = [f"{folder}/{file.name if _is_well_named(file) else _named_well(file)}" for file in files]
    if len(set(paths)) != len(paths):
        raise DataError(
            f"files of the input would have one name in the export: {listed(sorted(paths), 6)}. Rename one."
        )
    return paths


def _is_well_named(file: InputFile) -> bool:
    name = file.name.lower()
    if file.file_format == "pairs":
        return name.endswith(_ENDINGS["pairs"] + _COMPRESSED_ENDINGS[file.compression])
    declared = declared_format(name)
    return (
        declared is not None
        and _BUILDERS[declared] == _BUILDERS[file.file_format]
        and name.endswith((".gz", ".zst")) == (file.compression is not None)
        and not name.endswith(_UNKNOWN_ENDINGS)
    )


def _named_well(file: InputFile) -> str:
    path = PurePosixPath(file.name)
    # Of `rows.txt.jsonl` other tools would not know which ending counts.
    name = path.name.replace(".", "_") + _ENDINGS[file.file_format] + _COMPRESSED_ENDINGS[file.compression]
    return str(path.with_name(name))


def grouped(files: Sequence[DataFile]) -> tuple[Group, ...]:
    """Return the files in groups that can each be read as one table, in order of their first files."""
    groups: list[list[DataFile]] = []
    alike: dict[Any, list[tuple[list[DataFile], dict[str, frozenset[str]]]]] = {}
    for file in files:
        candidates = alike.setdefault((file.builder, file.delimiter, frozenset(file.kinds)), [])
        fitting = next((candidate for candidate in candidates if _goes_with(file, candidate[1])), None)
        if fitting is None:
            fitting = ([], {})
            candidates.append(fitting)
            groups.append(fitting[0])
        members, kinds = fitting
        members.append(file)
        kinds.update((column, found) for column, found in file.kinds.items() if found)
    if len(groups) == 1:
        return (Group("default", tuple(files)),)
    names = [_source_name(group) for group in groups]
    if None in names or len(set(names)) < len(names):
        names = [f"part-{number}" for number in range(1, len(groups) + 1)]
    return tuple(Group(str(name), tuple(group)) for name, group in zip(names, groups, strict=True))


def _goes_with(file: DataFile, kinds: Mapping[str, frozenset[str]]) -> bool:
    """Return whether a file has the kinds of others in every column in which both have any."""
    return all(not found or found == kinds.get(column, found) for column, found in file.kinds.items())


def _source_name(files: Sequence[DataFile]) -> str | None:
    sources = frozenset[str | None]().union(*(file.sources for file in files))
    (source,) = sources if len(sources) == 1 else (None,)
    return source if source and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", source) else None
