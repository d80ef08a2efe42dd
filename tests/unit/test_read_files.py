"""Files of examples: how many rows they hold, and how much text at once."""

import json

import pyarrow.parquet as pq
import pytest

from s2l_ray.config import ExamplesConfig
from s2l_ray.errors import DataError
from s2l_ray.inputs import find_inputs
from s2l_ray.layouts import detect_layouts
from s2l_ray.stage_settings import PrepareSettings
from s2l_ray.stages import prepare_examples
from s2l_ray.stages.prepare_examples import FileGroup, ReadFiles
from s2l_ray.storage import Storage
from tests.unit.tiny import begun

ROWS = 50


def reader(tmp_path, rows):
    """Return what reads a file of rows, and the files."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = find_inputs(str(tmp_path / "rows.jsonl"), key="examples.path")
    settings = PrepareSettings(ExamplesConfig(path=str(tmp_path)), files, "all", 0.0, 0, "examples")
    layouts = detect_layouts(files, "auto", {}, key="examples.path")
    return ReadFiles(settings, layouts, begun(Storage.at(str(tmp_path / "storage")), "examples")), files


@pytest.mark.parametrize(
    ("rows", "characters", "groups"), [(7, 10**9, [7] * 7 + [1]), (100, 400, [5] * 10), (100, 1, [1] * ROWS)]
)
def test_row_groups_end_by_rows_and_by_text(rows, characters, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_examples, "ROW_GROUP", rows)
    monkeypatch.setattr(prepare_examples, "GROUP_CHARACTERS", characters)
    monkeypatch.setattr(prepare_examples, "PART_GROUPS", 4)
    work, files = reader(tmp_path, [{"instruction": f"{i:040d}", "output": "o" * 40} for i in range(ROWS)])
    records, note = work(FileGroup("0", files))
    found = [pq.ParquetFile(work.output.uri_of(record.path)) for record in records]
    sizes = [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in found]
    assert [size for of_file in sizes for size in of_file if size] == groups
    assert all(len(of_file) <= 4 for of_file in sizes)
    assert sum(record.rows for record in records) == note["rows_in"] == ROWS


def test_sources_of_single_rows_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_examples, "MAX_SOURCES", ROWS - 1)
    rows = [{"instruction": "a", "output": "b", "source": f"https://host/{i}"} for i in range(ROWS)]
    work, files = reader(tmp_path, rows)
    with pytest.raises(DataError, match=r"more than 49 sources, `https://host/0`.*`columns: \{source: null\}`"):
        work(FileGroup("0", files))
    work, files = reader(tmp_path, rows[:-1])
    _, note = work(FileGroup("0", files))
    assert len(note["sources"]) == ROWS - 1
