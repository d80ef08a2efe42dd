"""Input files -> `examples` or `eval_examples`: `examples-*.parquet`, `rejected.parquet`.

Every file is read once, by one worker. Rows in = rows kept + rows rejected + rows on the other side of the
hash-held-out split, checked before the commit. The embedded corpus is written as `input.jsonl`
and read like any other file.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import FileRecord, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import ArtifactError, DataError
from s2l_ray.examples import (
    Example,
    RejectedRow,
    bad_row_error,
    examples_table,
    find_duplicate_user_ids,
    held_out,
    read_examples,
)
from s2l_ray.input_files import InputFile, check_unchanged, listed
from s2l_ray.inputs import find_inputs
from s2l_ray.layouts import Layout, detect_layouts, distinct
from s2l_ray.log import display
from s2l_ray.needs import check_rejected
from s2l_ray.stage_settings import PrepareSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.shards import Receipt, map_shards

ROW_GROUP = 4096
GROUP_CHARACTERS = 2**24
"""A row group ends earlier where its texts are long: a worker holds one, whatever rows look like."""
PART_GROUPS = 16
"""Row groups per file: what later stages read at once, however large an input file is."""
GROUP_BYTES = 64 << 20
MAX_WARNINGS = 5
MAX_SOURCES = 100_000
"""Whose rows are counted; where there are more, these are addresses or numbers of rows, and no sources."""


@dataclass(frozen=True)
class Inputs:
    """Files only; no artifact."""


@dataclass(frozen=True)
class FileGroup:
    """Files that one worker reads."""

    piece: str
    files: tuple[InputFile, ...]

    @property
    def rows(self) -> int:
        """Size for the progress bar [KiB]."""
        return max(1, sum(file.bytes for file in self.files) >> 10)


@dataclass(frozen=True)
class ReadFiles:
    """Reads a group of files into one file of examples and one of rejected rows."""

    settings: PrepareSettings
    layouts: Mapping[str, Layout]
    """Name of a file -> how its rows are read."""
    output: StagedOutput

    def __call__(self, group: FileGroup) -> Receipt:
        """Write `examples-*` and, to be merged, rejected rows; the note counts rows and holds warnings."""
        tally = _Tally()
        tables = self._tables(group, tally)
        records: list[FileRecord] = []
        for first in tables:
            part = itertools.chain([first], itertools.islice(tables, PART_GROUPS - 1))
            path = f"examples-{group.piece}-{len(records):05d}.parquet"
            records.append(self.output.write_parquet(path, part, schemas.EXAMPLES))
        for file in group.files:
            check_unchanged(file)
        if tally.rejected:
            self.output.write_bytes(_rejected_path(group), json.dumps(tally.rejected).encode())
        note = {"rows_in": tally.rows_in, "rows_other": tally.rows_other, "rows_rejected": len(tally.rejected)}
        return records, {**note, "sources": dict(tally.sources), "warnings": tally.warnings}

    def _tables(self, group: FileGroup, tally: "_Tally") -> Iterator[pa.Table]:
        kept: list[Example] = []
        characters = 0
        for file in group.files:
            for item in read_examples(file, self.layouts[file.name], on_warning=tally.warnings.append):
                tally.rows_in += 1
                if isinstance(item, RejectedRow):
                    if self.settings.examples.on_bad_row == "error":
                        raise bad_row_error(item)
                    tally.rejected.append([item.input_file, item.input_row, item.reason])
                    continue
                kept.append(item)
                characters += sum(len(turn.content) for turn in item.turns)
                if len(kept) == ROW_GROUP or characters >= GROUP_CHARACTERS:
                    yield self._side(kept, tally)
                    kept, characters = [], 0
        yield self._side(kept, tally)

    def _side(self, examples: list[Example], tally: "_Tally") -> pa.Table:
        if self.settings.held_out:
            held = held_out(np.array([e.content_hash for e in examples], np.int64), self.settings.held_out)
            wanted = held if self.settings.part == "held_out" else ~held
            tally.rows_other += int(len(examples) - wanted.sum())
            examples = [e for e, take in zip(examples, wanted, strict=True) if take]
        tally.sources.update(e.source or "" for e in examples)
        _check_sources(self.settings.key, tally.sources)
        return examples_table(examples)


@dataclass
class _Tally:
    rows_in: int = 0
    rows_other: int = 0
    rejected: list[list[Any]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def prepare_examples(
    inputs: Inputs, config: PrepareSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Read the input, keep what is an example, and account for every row.

    Raises:
        DataError: a bad row where none is allowed, too many of them, duplicated ids, or nothing kept.
    """
    records: list[FileRecord] = []
    files = config.files
    if config.examples.synthetic is not None:
        record = output.write_bytes(schemas.SYNTHETIC_INPUT, _synthetic_lines(config))
        records.append(record)
        files = find_inputs(output.uri_of(schemas.SYNTHETIC_INPUT), key="examples.synthetic")
    layouts = detect_layouts(files, config.examples.format, config.examples.columns, key=config.key)
    groups = _groups(files)
    work = ReadFiles(config, layouts, output)
    pool = resources.prepare_examples
    receipts = map_shards(work, groups, output, pool, label="prepare examples", unit="KiB")
    notes = [note for _, note in receipts]
    records += [record for written, _ in receipts for record in written]
    warnings = [warning for note in notes for warning in note["warnings"]]
    for warning in warnings[:MAX_WARNINGS]:
        display.warn(warning)
    if len(warnings) > MAX_WARNINGS:
        display.warn(f"and {len(warnings) - MAX_WARNINGS} more like these, of other files")
    rejected = [row for g in groups for row in json.loads(output.read_bytes(_rejected_path(g)) or b"[]")]
    records.append(output.write_parquet("rejected.parquet", [_rejected_table(rejected)], schemas.REJECTED))
    told = [layout.as_json() for layout in distinct(layouts)]
    summary = _account(config, receipts, len(rejected)) | {"layouts": told}
    _check_user_ids(output, receipts)
    return StageResult(records, summary)


def _groups(files: tuple[InputFile, ...]) -> list[FileGroup]:
    groups: list[list[InputFile]] = []
    size = 0
    for file in files:
        if not groups or size + file.bytes > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.bytes
    return [FileGroup(f"{index:05d}", tuple(group)) for index, group in enumerate(groups)]


def _synthetic_lines(config: PrepareSettings) -> bytes:
    from s2l_ray.synthetic import SyntheticSpec, generate_eval_rows, generate_rows

    assert config.examples.synthetic is not None
    spec = SyntheticSpec(**config.examples.synthetic.model_dump())
    make = generate_eval_rows if config.part == "eval" else generate_rows
    return "".join(json.dumps(row) + "\n" for row in make(spec, config.synthetic_seed)).encode()


def _rejected_path(group: FileGroup) -> str:
    return f"scratch/rejected-{group.piece}.json"


def _rejected_table(rows: list[list[Any]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, schemas.REJECTED, strict=True)], schema=schemas.REJECTED
    )


def _account(config: PrepareSettings, receipts: list[Receipt], rows_rejected: int) -> dict[str, Any]:
    notes = [note for _, note in receipts]
    rows_in = sum(note["rows_in"] for note in notes)
    rows_other = sum(note["rows_other"] for note in notes)
    rows_kept = sum(record.rows or 0 for written, _ in receipts for record in written)
    if rows_in != rows_kept + rows_rejected + rows_other:
        raise ArtifactError(
            f"{rows_in} rows in, but {rows_kept} kept + {rows_rejected} rejected + {rows_other} on the other side. "
            "A row was lost; this is a fault of the program, please report it."
        )
    check_rejected(config.examples, rows_rejected, rows_in)
    if rows_kept == 0 and rows_other:
        side = "held out" if config.part == "held_out" else "left to train on"
        raise DataError(
            f"{config.key}: none of {rows_other} usable rows is {side} with evaluate.held_out = {config.held_out:g}. "
            "Change that share, or name held-out data of its own with evaluate.path."
        )
    if rows_kept == 0:
        raise DataError(f"{config.key}: no row is left of {rows_in}. Expected at least one usable row.")
    sources: Counter[str] = Counter()
    for note in notes:
        sources.update(note["sources"])
    _check_sources(config.key, sources)
    return {
        "rows_in": rows_in,
        "rows_kept": rows_kept,
        "rows_rejected": rows_rejected,
        "rows_other_side": rows_other,
        "rows_per_source": dict(sorted(sources.items())),
    }


def _check_sources(key: str, sources: Counter[str]) -> None:
    if len(sources) > MAX_SOURCES:
        raise DataError(
            f"{key}: found more than {MAX_SOURCES} sources, {listed(list(itertools.islice(sources, 3)))} among them; "
            "expected the data sets that rows come from. Name another column with `columns: {source: ...}`, or leave "
            "it unread with `columns: {source: null}`."
        )


def _written(output: StagedOutput, receipts: list[Receipt], columns: list[str]) -> Iterator[pa.Table]:
    for records, _ in receipts:
        for record in records:
            yield output.read_parquet(record.path, columns)


def _check_user_ids(output: StagedOutput, receipts: list[Receipt]) -> None:
    repeated = find_duplicate_user_ids(t.column("user_id") for t in _written(output, receipts, ["user_id"]))
    if repeated:
        raise DataError(
            f"these ids stand on more than one row: {listed(repeated)}. Ids must be unique; mend the "
            "data, or say that the column holds no ids with `columns: {id: null}`."
        )
