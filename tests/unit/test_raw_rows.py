import csv
import gzip
import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2l_ray.config import InputPath
from s2l_ray.errors import DataError
from s2l_ray.formats import json_rows
from s2l_ray.formats import row as limits
from s2l_ray.formats.csv_rows import csv_delimiter
from s2l_ray.formats.row import BadRow
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.raw_rows import columns_of, copy_rows, read_rows

NASTY = "\U0001f600 \u202e\u05e9\u05dc\u05d5\u05dd\u202c \x00 \u2028 \u2029 \x85 \x0b \x0c \x1c <|endoftext|> {{ x }}"

texts = st.text(st.characters(codec="utf-8"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=5,
)
rows_of_json = st.lists(st.dictionaries(texts, values, max_size=4), min_size=1, max_size=8)


@pytest.fixture
def put(tmp_path):
    def write(content, name="rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return find_inputs(str(path), key="examples.path")[0]

    return write


def in_memory(folder, content, kind):
    path = folder / f"rows.{kind}"
    path.write_bytes(content)
    return InputFile(str(path), path.name, 0, kind, len(content), 0, None)


def read(file, **kwargs):
    return list(read_rows(file, **kwargs))


def copied(file, rows):
    sink = io.BytesIO()
    assert copy_rows(file, rows, sink) == len(rows)
    return sink.getvalue()


def reason(item):
    assert isinstance(item, BadRow)
    return item.reason.partition(":")[0]


# JSON Lines


def test_jsonl_blank_lines_count_and_are_no_rows(put):
    assert read(put('\n{"a": 1}\n  \t\n\r\n{"a": 2}')) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    "content",
    ['\ufeff{"a": 1}\n{"a": 2}\n', '{"a": 1}\r\n{"a": 2}\r\n', '{"a": 1}\n{"a": 2}'],
    ids=["byte order mark", "crlf", "no newline at the end"],
)
def test_jsonl_of_other_systems_reads_the_same(put, content):
    assert read(put(content)) == [(0, {"a": 1}), (1, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"a": ', "malformed_json"),
        ("{'a': 1}", "malformed_json"),
        ('{"a": 1} {"a": 2}', "malformed_json"),
        ('{"a": "raw\ttab"}', "malformed_json"),
        ('{"a": ' + "[" * 100_000, "malformed_json"),
        ('{"a": ' + "1" * 5000 + "}", "malformed_json"),
        ("3", "not_an_object"),
        ("null", "not_an_object"),
        ('"text"', "not_an_object"),
        ("[1, 2]", "not_an_object"),
        ('{"a": NaN}', "nan_literal"),
        ('{"a": [{"b": -Infinity}]}', "nan_literal"),
    ],
)
def test_jsonl_bad_line_is_a_bad_row_and_the_next_one_is_read(put, line, code):
    (zero, first), (one, second), (two, third) = read(put(f'{{"a": 0}}\n{line}\n{{"a": 2}}\n'))
    assert (zero, one, two) == (0, 1, 2)
    assert (first, third) == ({"a": 0}, {"a": 2})
    assert reason(second) == code


@pytest.mark.parametrize("cut", [1, 2, 3, 8])
def test_jsonl_truncated_last_line_is_a_bad_row(put, cut):
    content = '{"a": 0}\n{"a": "\U0001f600"}'.encode()
    assert reason(read(put(content[:-cut]))[-1][1]) == "malformed_json"


def test_jsonl_truncated_within_a_character_is_a_bad_row(put):
    content = '{"a": 0}\n{"a": "\U0001f600'.encode()[:-1]
    assert reason(read(put(content))[-1][1]) == "malformed_json"


def test_jsonl_invalid_utf8_is_data_error_with_line_offset_and_advice(put):
    content = b'{"a": 0}\r\n\n{"a": "caf\xe9 au lait"}\n'
    with pytest.raises(DataError, match=r"rows\.jsonl:3: byte 0xE9 at offset 21 .*1252.*iconv"):
        read(put(content))
    assert content[21] == 0xE9


def test_jsonl_nasty_characters_survive_reading_and_copying(put):
    raw = "".join(c for c in NASTY if c >= " ")
    lines = [json.dumps({"a": NASTY}), json.dumps({"a": raw}, ensure_ascii=False)]
    file = put("\n".join(lines) + "\n")
    assert [row for _, row in read(file)] == [json.loads(line) for line in lines]
    assert copied(file, [1]) == lines[1].encode() + b"\n"


def test_jsonl_row_above_the_limit_is_a_bad_row_and_its_neighbours_are_read(put, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 1000)
    exact = json.dumps({"a": "x" * 991})
    assert len(exact) == 1000
    file = put(f'{exact}\n{{"a": "{"y" * 5000}"}}\n{{"a": 2}}\n{{"a": "{"z" * 5000}"}}')
    (_, first), (_, second), (_, third), (_, fourth) = read(file)
    assert first == json.loads(exact)
    assert third == {"a": 2}
    assert reason(second) == reason(fourth) == "row_too_large"


def test_jsonl_huge_row_is_not_held_in_memory(put):
    file = put(b'{"a": "' + b"x" * (200 * 2**20) + b'"}\n{"a": 1}\n')
    tracemalloc.start()
    rows = read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason(rows[0][1]) == "row_too_large"
    assert rows[1] == (1, {"a": 1})
    assert peak < 2.5 * limits.MAX_ROW_BYTES


def test_jsonl_fifty_megabyte_row_is_read(put):
    text = "x" * (50 * 2**20)
    assert read(put(f'{{"a": "{text}"}}\n')) == [(0, {"a": text})]


def test_repeated_key_takes_the_last_value_and_warns_once_with_the_first_line(put):
    warnings = []
    rows = read(put('{"a": 1}\n{"a": 1, "b": 0, "a": 2}\n{"c": [{"d": 1, "d": 2}]}\n'), on_warning=warnings.append)
    assert rows[1:] == [(1, {"a": 2, "b": 0}), (2, {"c": [{"d": 2}]})]
    assert len(warnings) == 1
    assert "2 rows" in warnings[0]
    assert "line 2 (`a`)" in warnings[0]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "jsonl"), (b"\n \n", "jsonl"), (b"\xef\xbb\xbf", "jsonl"), (b"[ ]", "json"), (b"", "parquet")],
)
def test_file_without_rows_yields_nothing_and_warns(tmp_path, content, kind):
    warnings = []
    assert read(in_memory(tmp_path, content, kind), on_warning=warnings.append) == []
    assert len(warnings) == 1


def test_file_that_is_gone_is_data_error(tmp_path, put):
    file = put('{"a": 1}\n')
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=rows_of_json, ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]), data=st.data()
)
def test_jsonl_round_trip_gives_the_same_rows_and_byte_identical_lines(tmp_path, rows, ascii_only, end, data):
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    content = "".join(line + end for line in lines).encode()
    file = in_memory(tmp_path, content, "jsonl")
    read_back = read(file)
    assert [row for _, row in read_back] == rows
    physical = content.split(b"\n")
    assert [physical[number].rstrip(b"\r").decode() for number, _ in read_back] == lines
    chosen = data.draw(st.sets(st.sampled_from([number for number, _ in read_back])))
    assert copied(file, sorted(chosen)) == b"".join(physical[number] + b"\n" for number in sorted(chosen))


# JSON arrays


def test_json_array_elements_are_numbered_and_bad_ones_are_bad_rows(put):
    rows = read(put('\ufeff [ {"a": 1} , 3,\n[4] ,{"a": NaN}, {"a": {"b": []}}\n]\n', "rows.json"))
    assert [number for number, _ in rows] == [0, 1, 2, 3, 4]
    assert [reason(row) for _, row in rows[1:4]] == ["not_an_object", "not_an_object", "nan_literal"]
    assert (rows[0][1], rows[4][1]) == ({"a": 1}, {"a": {"b": []}})


@pytest.mark.parametrize("end", ["", "\n", "\n \n"])
def test_json_object_over_several_lines_is_one_row(put, end):
    row = {"problem": "x" * 2_000_000, "level": {"n": 1}}
    file = put(json.dumps(row, indent=4) + end, "1.json")
    assert read(file) == [(0, row)]
    assert json.loads(copied(file, [0])) == [row]


def test_json_objects_one_after_the_other_are_data_error(put):
    with pytest.raises(DataError, match=r"rows\.json:4: found text after the end of the only object"):
        read(put('{\n"a": 1\n}\n{\n"a": 2\n}\n', "rows.json"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"a": 1},\n{"a": ', 2),
        ('[{"a": 1},\n{"a": 2}', 2),
        ('[{"a": 1},\n{"a": 2},', 2),
        ('[{"a": 1},\n]', 2),
        ('[{"a": 1}\n{"a": 2}]', 2),
        ('[{"a": 1},\n{a: 2}]', 2),
        ('[{"a": 1},\n{"a": 2}{"a": 3}]', 2),
        ("[0.]", 1),
        ('[{"a": 1}]\n\n[{"a": 2}]', 3),
        ('[{"a": ' + "[" * 100_000 + "]", 1),
        ("[", 1),
    ],
)
def test_json_array_that_is_broken_is_data_error_with_its_line(put, content, line):
    file = put(content, "rows.json")
    object.__setattr__(file, "file_format", "json")
    with pytest.raises(DataError, match=rf"rows\.json:{line}:"):
        read(file)


def test_json_array_broken_early_in_a_large_file_is_told_where(put):
    content = '[{"a": 1},\n{"a" 2},\n' + '{"a": 3},\n' * 300_000 + "]"
    with pytest.raises(DataError, match=r"rows\.json:2:.*row 1, counted from 0"):
        read(put(content, "rows.json"))


def test_json_array_invalid_utf8_is_data_error_with_its_offset(put):
    content = b'\xef\xbb\xbf[{"a": "' + b"x" * 3_000_000 + b'"},\n{"a": "\xe9"}]'
    with pytest.raises(DataError, match=rf"rows\.json:2: byte 0xE9 at offset {content.index(0xE9)} "):
        read(put(content, "rows.json"))


def test_json_array_longer_than_the_window_is_read_in_bounded_memory(put):
    rows = [{"a": i, "b": "\U0001f600é" * 20} for i in range(40_000)]
    file = put(json.dumps(rows, ensure_ascii=False), "rows.json")
    assert file.bytes > 5 * 2**20
    tracemalloc.start()
    count = sum(row == rows[number] for number, row in read_rows(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(rows)
    assert peak < 16 * 2**20


def test_json_array_row_above_the_limit_is_data_error(put, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 1000)
    with pytest.raises(DataError, match="longer than 1000"):
        read(put('[{"a": "' + "x" * 5_000_000 + '"}]', "rows.json"))


@pytest.mark.parametrize("chunk", range(1, 9))
def test_json_array_number_cut_by_the_window_is_read_whole(put, monkeypatch, chunk):
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", chunk)
    rows = read(put('[0.5, -1E+5, 12345678901234567890, {"a": 2.5e-7}]', "rows.json"))
    assert [reason(row) for _, row in rows[:3]] == ["not_an_object"] * 3
    assert rows[3] == (3, {"a": 2.5e-7})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(values, max_size=8), indent=st.sampled_from([None, 2]), chunk=st.integers(1, 40), data=st.data())
def test_json_array_round_trip_gives_the_same_rows_and_texts_at_any_chunk_size(tmp_path, rows, indent, chunk, data):
    file = in_memory(tmp_path, json.dumps(rows, indent=indent, ensure_ascii=False).encode(), "json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK_BYTES", chunk)
        got = read(file)
        chosen = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1)))) if rows else []
        text = copied(file, chosen)
    assert len(got) == len(rows)
    for (_, row), want in zip(got, rows, strict=True):
        assert row == want if isinstance(want, dict) else reason(row) == "not_an_object"
    assert json.loads(text) == [rows[i] for i in chosen]


def test_copied_json_array_keeps_the_text_of_each_element(put):
    file = put('[{"a":1.0e0,  "b": "\\u00e9"}, {"a": 2},\n  {"c":\n null, "c": 1}]', "rows.json")
    assert copied(file, [0, 2]) == b'[\n{"a":1.0e0,  "b": "\\u00e9"},\n{"c":\n null, "c": 1}\n]\n'


# Parquet


def parquet(put, table, **kwargs):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **kwargs)
    return put(sink.getvalue().to_pybytes(), "rows.parquet")


def test_parquet_reads_wanted_columns_of_every_row(put):
    table = pa.table(
        {"a": [NASTY, None] * 500, "m": [[{"role": "user", "content": "hi"}], []] * 500, "other": range(1000)}
    )
    rows = read(parquet(put, table, row_group_size=300), columns={"a", "m", "absent"})
    assert [number for number, _ in rows] == list(range(1000))
    assert [row for _, row in rows] == table.select(["a", "m"]).to_pylist()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_of_any_arrow_type_is_read_as_text(put, kind):
    table = pa.table({"a": pa.array(["x", "é", None]).cast(kind)})
    assert [row["a"] for _, row in read(parquet(put, table))] == ["x", "é", None]


def test_parquet_value_that_python_cannot_hold_is_a_bad_row_and_its_neighbours_are_read(put):
    far = pa.array([0, 2**62, None], pa.timestamp("us"))
    file = parquet(put, pa.table({"a": ["x", "y", "z"], "when": far}))
    (_, first), (number, second), (_, third) = read(file)
    assert (first["a"], number, third) == ("x", 1, {"a": "z", "when": None})
    assert reason(second) == "unreadable_value"
    assert "`when`" in second.reason


def test_parquet_row_above_the_limit_is_a_bad_row(put, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 1000)
    rows = read(parquet(put, pa.table({"a": ["x", "y" * 5000, "z"]})))
    assert [row for _, row in rows][::2] == [{"a": "x"}, {"a": "z"}]
    assert reason(rows[1][1]) == "row_too_large"


@pytest.mark.parametrize("seed", range(8))
def test_parquet_with_flipped_bytes_never_yields_other_rows(put, tmp_path, seed):
    table = pa.table({"a": [f"text {i} {'x' * (i % 50)}" for i in range(2000)]})
    file = parquet(put, table, write_page_checksum=True, compression="none", use_dictionary=False)
    path = tmp_path / "rows.parquet"
    content = bytearray(path.read_bytes())
    for at in np.random.default_rng(seed).integers(4, len(content) // 2, 3):
        content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or corrupt"):
        read(file)


def test_parquet_cut_off_after_it_was_found_is_data_error(put, tmp_path):
    file = parquet(put, pa.table({"a": ["x"] * 10}))
    path = tmp_path / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated or corrupt"):
        read(file)


def test_parquet_text_that_is_not_utf8_is_data_error(put):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    with pytest.raises(DataError, match="corrupt"):
        read(parquet(put, pa.table({"a": bad})))


def test_parquet_with_two_columns_of_one_name_is_data_error(put):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    with pytest.raises(DataError, match="same name"):
        read(parquet(put, table))


def test_copied_parquet_keeps_schema_metadata_and_rows(put):
    schema = pa.schema(
        [
            pa.field("a", pa.string(), nullable=False, metadata={"unit": "none"}),
            pa.field("d", pa.dictionary(pa.int32(), pa.string())),
            pa.field("extra", pa.list_(pa.struct([("x", pa.float32())]))),
        ],
        metadata={"huggingface": "{}"},
    )
    n = 3000
    columns = [[f"{i}" for i in range(n)], [f"{i % 7}" for i in range(n)], [[{"x": i}] * (i % 3) for i in range(n)]]
    table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    chosen = [0, 1, 299, 300, 301, 1500, 2999]
    file = parquet(put, table, row_group_size=300)
    result = pq.read_table(io.BytesIO(copied(file, chosen)))
    assert result.schema.equals(pq.read_table(file.path).schema, check_metadata=True)
    assert result.schema.metadata == schema.metadata
    assert result.to_pylist() == table.take(chosen).to_pylist()


def test_copied_parquet_has_few_row_groups(put):
    table = pa.table({"a": [str(i) for i in range(20_000)]})
    content = copied(parquet(put, table, row_group_size=500), list(range(0, 20_000, 10)))
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 1


def test_parquet_copy_leaves_an_error_of_the_sink_as_it_is(put):
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, _):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        copy_rows(parquet(put, pa.table({"a": ["x"]})), [0], Full())


# All formats


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
class TestCopyOfAnyFormat:
    @pytest.fixture
    def file(self, put, kind):
        if kind == "parquet":
            return parquet(put, pa.table({"a": [0, 1]}))
        return put('{"a": 0}\n{"a": 1}\n' if kind == "jsonl" else '[{"a": 0}, {"a": 1}]')

    def test_copy_of_no_rows_is_a_file_without_rows(self, put, file, kind):
        content = copied(file, [])
        if kind == "parquet":
            assert pq.read_table(io.BytesIO(content)).num_rows == 0
        else:
            assert content.split() == ([] if kind == "jsonl" else [b"[", b"]"])

    def test_copy_of_a_row_that_is_not_there_is_data_error(self, file):
        with pytest.raises(DataError, match="1 of 2"):
            copy_rows(file, [1, 7], io.BytesIO())

    @pytest.mark.parametrize("rows", [[1, 0], [0, 0], [-1]])
    def test_copy_of_rows_that_do_not_rise_is_value_error(self, file, rows):
        with pytest.raises(ValueError, match="rising"):
            copy_rows(file, rows, io.BytesIO())


# Compressed JSON Lines, arrays and CSV


@pytest.fixture
def put_pairs(tmp_path):
    def write(content, name="rows.txt"):
        (tmp_path / name).write_bytes(content)
        entry = InputPath(path=str(tmp_path / name), format="mathematics")
        return find_inputs((entry,), key="examples.path")[0]

    return write


def test_pairs_of_lines_are_numbered_by_the_question_and_copied_to_the_byte(put_pairs):
    content = "\ufeffIs 3 < 4?\nTrue\r\n  2 + 2 = ?\n4\n\n\n".encode()
    file = put_pairs(content)
    assert read(file) == [
        (0, {"question": "Is 3 < 4?", "answer": "True"}),
        (2, {"question": "  2 + 2 = ?", "answer": "4"}),
    ]
    assert copied(file, [2]) == b"  2 + 2 = ?\n4\n"
    assert columns_of(file) == ("question", "answer")


def test_blank_lines_between_pairs_part_no_question_from_its_answer(put_pairs):
    content = b"\nq1\na1\n\nq2\na2\n\n\nq3\n\nq4\na4\n"
    file = put_pairs(content)
    rows = read(file)
    assert [number for number, _ in rows] == [1, 4, 8, 10]
    assert [row["answer"] for _, row in rows if isinstance(row, dict)] == ["a1", "a2", "a4"]
    assert reason(rows[2][1]) == "no_answer"
    assert copied(file, [4, 10]) == b"q2\na2\nq4\na4\n"


def test_question_without_an_answer_at_the_end_is_a_bad_row(put_pairs):
    (_, whole), (number, cut) = read(put_pairs(b"a\nb\nc"))
    assert (whole, number, reason(cut)) == ({"question": "a", "answer": "b"}, 2, "no_answer")


def test_pairs_of_lines_that_are_no_utf8_are_data_error_with_line_and_offset(put_pairs):
    with pytest.raises(DataError, match=r"rows\.txt:4: byte 0xE9 at offset 6 "):
        read(put_pairs(b"a\nb\nc\n\xe9\n"))


def test_pair_of_lines_above_the_limit_is_data_error(put_pairs, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 1000)
    with pytest.raises(DataError, match=r"rows\.txt:2: the line is longer"):
        read(put_pairs(b"a\n" + b"x" * 1001))


LINES = "".join(json.dumps({"n": n, "text": NASTY * 20}) + "\n" for n in range(500)).encode()


def packed(content, kind):
    return pa.Codec(kind).compress(content, asbytes=True) if kind == "zstd" else gzip.compress(content, mtime=0)


@pytest.mark.parametrize(("kind", "extension"), [("gzip", "gz"), ("zstd", "zst")])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.json", b"[" + b",\n".join(LINES.splitlines()) + b"]"),
        ("rows.csv", b"n,text\n" + b"".join(b'%d,"a\n%d"\n' % (n, n) for n in range(500))),
    ],
)
def test_compressed_file_reads_and_copies_as_the_plain_one(put, name, content, kind, extension):
    plain, compressed = put(content, name), put(packed(content, kind), f"{name}.{extension}")
    assert (compressed.file_format, compressed.compression) == (plain.file_format, kind)
    rows = read(compressed)
    assert len(rows) == 500
    assert rows == read(plain)
    chosen = [number for number, _ in rows[::7]]
    again = put(copied(compressed, chosen), f"again.{name}.{extension}")
    assert again.compression == kind
    assert [row for _, row in read(again)] == [row for _, row in rows[::7]]
    assert copied(compressed, chosen) == copied(compressed, chosen)


def test_gzip_of_several_members_is_read_to_its_end(put):
    parts = LINES.splitlines(keepends=True)
    file = put(b"".join(packed(b"".join(parts[i : i + 100]), "gzip") for i in range(0, 500, 100)), "rows.jsonl.gz")
    assert len(read(file)) == 500


@pytest.mark.parametrize(("kind", "extension"), [("gzip", "gz"), ("zstd", "zst")])
def test_compressed_file_that_is_cut_off_or_changed_is_data_error(tmp_path, kind, extension):
    noise = "".join(json.dumps({"text": str(n**20)}) + "\n" for n in range(20_000)).encode()
    whole = packed(noise, kind)
    path = tmp_path / f"rows.jsonl.{extension}"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    # What `zstd` itself writes has a checksum as gzip has; what Arrow's codec writes has none.
    for content in (whole[: len(whole) // 2], whole[:-3], *([bytes(flipped)] if kind == "gzip" else [])):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{kind} data are truncated or corrupt"):
            read(find_inputs(str(path), key="examples.path")[0])


# CSV

TABLE = b'id,question,answer\n1,"what, why?",x\n\n2,"two\nlines","a ""b"""\n3,\xc3\xa9,\n'


def test_csv_records_are_numbered_by_line_and_keep_commas_quotes_and_line_ends(put):
    assert read(put(TABLE, "rows.csv")) == [
        (1, {"id": "1", "question": "what, why?", "answer": "x"}),
        (3, {"id": "2", "question": "two\nlines", "answer": 'a "b"'}),
        (5, {"id": "3", "question": "é", "answer": ""}),
    ]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_of_another_delimiter_a_byte_order_mark_and_crlf_reads_the_same(put, mark):
    rows = [("id", "question"), ("1", "a, b"), ("2", "c")]
    content = "\ufeff" + "".join(mark.join(row) + "\r\n" for row in rows)
    file = put(content, "rows.csv")
    assert [row for _, row in read(file)] == [{"id": "1", "question": "a, b"}, {"id": "2", "question": "c"}]
    assert copied(file, [2]) == f"\ufeffid{mark}question\r\n2{mark}c\r\n".encode()


def test_copied_csv_has_the_header_and_the_bytes_of_the_records(put):
    file = put(TABLE.removesuffix(b"\n"), "rows.csv")
    assert copied(file, [3, 5]) == b'id,question,answer\n2,"two\nlines","a ""b"""\n3,\xc3\xa9,\n'
    assert copied(file, []) == b"id,question,answer\n"


def test_csv_bad_records_are_bad_rows_and_the_next_one_is_read(put):
    rows = read(put('a,b\n1,2,3\n"x"y,2\n4\n5,6\n', "rows.csv"))
    assert [number for number, _ in rows] == [1, 2, 3, 4]
    assert [reason(row) for _, row in rows[:3]] == ["wrong_field_count", "malformed_csv", "wrong_field_count"]
    assert rows[3][1] == {"a": "5", "b": "6"}


def test_csv_quotation_without_end_is_data_error_with_its_line(put):
    with pytest.raises(DataError, match=r"rows\.csv:3: the file ends within a quotation"):
        read(put('a,b\n1,2\n3,"never closed\n4,5\n', "rows.csv"))


@pytest.mark.parametrize("look", [read, csv_delimiter])
def test_csv_whose_lines_end_with_a_carriage_return_alone_is_data_error(put, look):
    with pytest.raises(DataError, match=r"rows\.csv:1: lines seem to end with a carriage return alone"):
        look(put("a,b\r1,2\r3,4\r", "rows.csv"))


def test_csv_record_above_the_limit_is_data_error_with_its_line(put, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 1000)
    with pytest.raises(DataError, match=r"rows\.csv:3: the record .* longer than 1000 bytes"):
        read(put('a,b\n1,2\n3,"never closed\n' + "4,5\n" * 1000, "rows.csv"))


@pytest.mark.parametrize("content", ["a,a\n1,2\n", '"a"x,b\n1,2\n'])
def test_csv_with_a_header_that_names_no_columns_is_data_error(put, content):
    with pytest.raises(DataError, match=r"rows\.csv"):
        read(put(content, "rows.csv"))


def test_csv_that_is_not_utf8_is_data_error_with_its_offset(put):
    with pytest.raises(DataError, match=r"rows\.csv:3: byte 0xE9 at offset 9 "):
        read(put(b"a,b\n1,2\n3\xe9,4\n", "rows.csv"))


fields = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(fields, fields), min_size=1, max_size=8), st.data())
def test_csv_round_trip_gives_the_same_rows_at_any_choice(tmp_path, rows, data):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    file = in_memory(tmp_path, text.getvalue().encode(), "csv")
    got = read(file)
    assert [tuple(row.values()) for _, row in got] == rows
    chosen = data.draw(st.sets(st.integers(0, len(rows) - 1)))
    again = in_memory(tmp_path, copied(file, [got[i][0] for i in sorted(chosen)]), "csv")
    assert [tuple(row.values()) for _, row in read(again)] == [rows[i] for i in sorted(chosen)]


# Arrow files and streams


def arrow_bytes(table, new, rows_per_batch=100):
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    return sink.getvalue()


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_reads_wanted_columns_and_copies_with_schema_and_metadata(put, new):
    labels = pa.array([f"s{n % 3}" for n in range(1000)]).dictionary_encode()
    table = pa.table({"n": range(1000), "text": [f"é{n}" for n in range(1000)], "label": labels})
    table = table.replace_schema_metadata({"huggingface": "{}"})
    file = put(arrow_bytes(table, new), "rows.arrow")
    assert file.file_format == "arrow"
    assert [row for _, row in read(file, columns={"text", "label", "none"})] == table.select(
        ["text", "label"]
    ).to_pylist()
    chosen = [0, 99, 100, 555, 999]
    content = copied(file, chosen)
    assert content[:6] == arrow_bytes(table, new)[:6]
    opener = pa.ipc.open_file if new is pa.ipc.new_file else pa.ipc.open_stream
    again = opener(content).read_all()
    assert again.schema.equals(table.schema, check_metadata=True)
    assert again.to_pylist() == table.take(chosen).to_pylist()


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_that_is_cut_off_is_data_error(put, new):
    table = pa.table({"text": [str(n) * 9 for n in range(5000)]})
    whole = arrow_bytes(table, new)
    with pytest.raises(DataError, match=r"truncated|Arrow"):
        read(put(whole[: len(whole) // 2], "rows.arrow"))


def test_arrow_record_above_the_limit_is_a_bad_row(put, monkeypatch):
    file = put(arrow_bytes(pa.table({"a": ["x", "y" * 2000, "z"]}), pa.ipc.new_stream), "rows.arrow")
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 1000)
    rows = read(file)
    assert reason(rows[1][1]) == "row_too_large"
    assert [row for _, row in rows][::2] == [{"a": "x"}, {"a": "z"}]


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_whose_dictionary_grows_is_copied(put, new):
    sink = io.BytesIO()
    batches = [pa.record_batch({"label": pa.array(labels).dictionary_encode()}) for labels in (["a"], ["a", "b"])]
    with new(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    again = put(copied(put(sink.getvalue(), "rows.arrow"), [0, 2]), "again.arrow")
    assert [row["label"] for _, row in read(again)] == ["a", "b"]


def test_arrow_copy_leaves_an_error_of_the_sink_as_it_is(put):
    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError("full")

    file = put(arrow_bytes(pa.table({"a": ["x"]}), pa.ipc.new_stream), "rows.arrow")
    with pytest.raises(OSError, match="full"):
        copy_rows(file, [0], Full())
