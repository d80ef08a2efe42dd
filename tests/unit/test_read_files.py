"""Files of examples: how many rows they hold, and how much text at once."""

import json

import pyarrow.parquet as pq
import pytest

from s2l_ray.config import ExamplesConfig
from s2l_ray.inputs import find_inputs
from s2l_ray.layouts import detect_layouts
from s2l_ray.stage_settings import PrepareSettings
from s2l_ray.stages import prepare_examples
from s2l_ray.stages.prepare_examples import FileGroup, ReadFiles
from s2l_ray.storage import Storage
from tests.unit.tiny import begun

ROWS = 50


@pytest.mark.parametrize(
    ("rows", "characters", "groups"), [(7, 10**9, [7] * 7 + [1]), (100, 400, [5] * 10), (100, 1, [1] * ROWS)]
)
def test_row_groups_end_by_rows_and_by_text(rows, characters, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_examples, "ROW_GROUP", rows)
    monkeypatch.setattr(prepare_examples, "GROUP_CHARACTERS", characters)
    monkeypatch.setattr(prepare_examples, "PART_GROUPS", 4)
    lines = [json.dumps({"instruction": f"{i:040d}", "output": "o" * 40}) for i in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    files = find_inputs(str(tmp_path / "rows.jsonl"), key="examples.path")
    settings = PrepareSettings(ExamplesConfig(path=str(tmp_path)), files, "all", 0.0, 0, "examples")
    output = begun(Storage.at(str(tmp_path / "storage")), "examples")
    layouts = detect_layouts(files, "auto", {}, key="examples.path")
    records, note = ReadFiles(settings, layouts, output)(FileGroup("0", files))
    found = [pq.ParquetFile(output.uri_of(record.path)) for record in records]
    sizes = [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in found]
    assert [size for of_file in sizes for size in of_file if size] == groups
    assert all(len(of_file) <= 4 for of_file in sizes)
    assert sum(record.rows for record in records) == note["rows_in"] == ROWS
