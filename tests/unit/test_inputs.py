import bz2
import gzip
import json
import lzma
import os
import pickle

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from s2l_ray import input_files, inputs
from s2l_ray.config import InputPath
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.input_files import check_unchanged, open_input
from s2l_ray.inputs import find_inputs

KEY = "examples.path"
ROW = b'{"instruction": "a", "output": "b"}\n'


def write(path, content=ROW):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(files):
    return [file.name for file in files]


def zipped(content: bytes) -> bytes:
    """Without the time of day: test processes side by side must agree on what a case is called."""
    return gzip.compress(content, mtime=0)


def parquet_bytes():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"]}), sink)
    return sink.getvalue().to_pybytes()


def test_find_single_file_is_named_by_its_base_name_with_size_and_time(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    (file,) = find_inputs(str(path), key=KEY)
    assert (file.path, file.name, file.index, file.file_format) == (str(path), "rows.jsonl", 0, "jsonl")
    assert (file.bytes, file.modified_ns, file.source) == (len(ROW), path.stat().st_mtime_ns, None)
    assert pickle.loads(pickle.dumps(file)) == file


def test_find_folder_walks_in_name_order_and_leaves_hidden_names_out(tmp_path):
    for name in (
        "b.jsonl",
        "a/z.jsonl",
        "a/b/c.ndjson",
        ".hidden.jsonl",
        "_SUCCESS",
        "_temporary/x.jsonl",
        "a/.d/x.jsonl",
    ):
        write(tmp_path / name)
    files = find_inputs(str(tmp_path), key=KEY)
    assert names(files) == ["a/b/c.ndjson", "a/z.jsonl", "b.jsonl"]
    assert [file.index for file in files] == [0, 1, 2]


def test_find_hidden_file_named_directly_is_read(tmp_path):
    assert names(find_inputs(str(write(tmp_path / "_rows.jsonl")), key=KEY)) == ["_rows.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[b-z].jsonl", ["b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "sub/c.jsonl"]),
        ("_*.jsonl", ["_d.jsonl"]),
    ],
)
def test_find_glob_matches_files(tmp_path, pattern, expected):
    for name in ("a.jsonl", "b.jsonl", "sub/c.jsonl", "_d.jsonl", "e.txt"):
        write(tmp_path / name)
    assert names(find_inputs(str(tmp_path / pattern), key=KEY)) == expected


def test_find_existing_path_with_glob_characters_is_taken_as_it_stands(tmp_path):
    path = write(tmp_path / "a[1]*.jsonl")
    assert find_inputs(str(path), key=KEY)[0].path == str(path)


def test_find_path_with_spaces_unicode_and_home_works(tmp_path, monkeypatch):
    write(tmp_path / "mes données" / "ряд 1.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(find_inputs("~/mes données", key=KEY)) == ["ряд 1.jsonl"]


def test_find_relative_path_becomes_absolute(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert find_inputs("rows.jsonl", key=KEY)[0].path == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("spell", [lambda p: p.as_uri(), lambda p: f"file://{p}"])
def test_find_file_uri_with_a_space_is_local(tmp_path, spell):
    path = write(tmp_path / "a b.jsonl")
    assert find_inputs(spell(path), key=KEY)[0].path == str(path)


def test_find_remote_folder_gives_uris_that_open(tmp_path, monkeypatch):
    write(tmp_path / "data/a b.jsonl")
    write(tmp_path / "data/_SUCCESS", b"")
    write(tmp_path / "data/sub/c.jsonl")
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())

    class Remote:
        @staticmethod
        def from_uri(uri):
            return remote, inputs.unquote(inputs.urlsplit(uri).path.lstrip("/"))

    monkeypatch.setattr(inputs.pafs, "FileSystem", Remote)
    files = find_inputs("s3://user:secret@bucket/data/?region=x", key=KEY)
    assert names(files) == ["a b.jsonl", "sub/c.jsonl"]
    assert files[0].path == "s3://user:secret@bucket/data/a%20b.jsonl?region=x"
    with open_input(files[0]) as stream:
        assert stream.read() == ROW
    with pytest.raises(ConfigError) as error:
        find_inputs("s3://user:secret@bucket/none", key=KEY)
    assert "secret" not in str(error.value)


def test_find_unknown_scheme_is_config_error_without_the_password():
    with pytest.raises(ConfigError, match="pyarrow") as error:
        find_inputs("nosuch://user:secret@host/rows", key=KEY)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("call", ["from_uri", "get_file_info", "open_input_file"])
def test_find_store_that_does_not_answer_is_config_error_without_the_password(monkeypatch, call):
    uri = "s3://user:secret@bucket/rows.jsonl"

    class Unreachable:
        type_name = "unreachable"

        @classmethod
        def from_uri(cls, uri):
            cls.fail_at("from_uri", uri)
            return cls(), "bucket/rows.jsonl"

        def get_file_info(self, path):
            self.fail_at("get_file_info", uri)
            return pafs.FileInfo(path, pafs.FileType.File, size=10)

        def open_input_file(self, path):
            self.fail_at("open_input_file", uri)

        @staticmethod
        def fail_at(name, uri):
            if name == call:
                raise OSError(f"AWS Error NETWORK_CONNECTION at {uri}")

    monkeypatch.setattr(inputs.pafs, "FileSystem", Unreachable)
    with pytest.raises(ConfigError, match=r"examples\.path.*s3://bucket.*NETWORK_CONNECTION.*credentials") as error:
        find_inputs(uri, key=KEY)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", ROW, "jsonl"),
        ("a.jsonl", b"\xef\xbb\xbf \n" + ROW, "jsonl"),
        ("a.jsonl", b"not json\n", "jsonl"),
        ("a.jsonl", b"[1, 2]\n" + ROW, "jsonl"),
        ("a.json", ROW + ROW, "jsonl"),
        ("a.jsonl", b"[" + ROW + b"]", "json"),
        ("a.json", b"\xef\xbb\xbf[\n  " + ROW + b"]\n", "json"),
        ("a.json", b"[]", "json"),
        ("a.parquet", parquet_bytes(), "parquet"),
        ("a.jsonl", parquet_bytes(), "parquet"),
        ("a", ROW, "jsonl"),
        ("a.txt", ROW, "jsonl"),
        ("a.jsonl.gz", zipped(ROW), "jsonl"),
        ("a.jsonl", zipped(ROW), "jsonl"),
        ("a.json.gz", zipped(b"[" + ROW + b"]"), "json"),
        ("a.csv", b"question,answer\na,b\n", "csv"),
        ("a.tsv.gz", zipped(b"question\tanswer\na\tb\n"), "csv"),
    ],
)
def test_find_decides_the_format_by_content_first(tmp_path, name, content, expected):
    assert find_inputs(str(write(tmp_path / name, content)), key=KEY)[0].file_format == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", b"instruction,output\na,b\n"),
        ("rows.jsonl.gz", b"\x1f"),
        ("rows.jsonl.bz2", bz2.compress(ROW)),
        ("rows.jsonl.xz", lzma.compress(ROW)),
        ("rows.parquet.gz", zipped(parquet_bytes())),
        ("rows.jsonl.gz", zipped(zipped(ROW))),
        ("README.md", b"[a link](there)\n"),
    ],
)
def test_find_unsupported_file_is_config_error_that_lists_what_is(tmp_path, name, content):
    write(tmp_path / name, content)
    with pytest.raises(ConfigError, match=r"JSON Lines .*Parquet") as error:
        find_inputs(str(tmp_path), key=KEY)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00rest"),
        ("a.jsonl", zipped(ROW)[:-4]),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdrest"),
        ("a.arrow", b"ARROW1\0\0"),
        ("a.arrow", ROW),
    ],
)
def test_find_file_that_is_cut_off_or_not_what_it_is_named_is_data_error(tmp_path, name, content):
    with pytest.raises(DataError, match=rf"^{name}: "):
        find_inputs(str(write(tmp_path / name, content)), key=KEY)


@pytest.mark.parametrize("content", [b"PAR1", parquet_bytes()[:-10], b"PAR1 and more"])
def test_find_truncated_parquet_is_data_error(tmp_path, content):
    with pytest.raises(DataError, match="truncated"):
        find_inputs(str(write(tmp_path / "a.parquet", content)), key=KEY)


def test_find_parquet_without_magic_is_data_error(tmp_path):
    with pytest.raises(DataError, match="PAR1"):
        find_inputs(str(write(tmp_path / "a.parquet", ROW)), key=KEY)


@pytest.mark.parametrize("before", ["", "\n", " "])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_find_utf16_is_data_error_that_says_how_to_convert(tmp_path, encoding, before):
    path = write(tmp_path / "a.jsonl", (before + ROW.decode()).encode(encoding))
    with pytest.raises(DataError, match="iconv"):
        find_inputs(str(path), key=KEY)


def test_find_object_over_several_lines_is_json(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"instruction": "a"}, indent=2).encode())
    (file,) = find_inputs(str(path), key=KEY)
    assert file.file_format == "json"


@pytest.mark.parametrize("name", ["a.txt", "algebra__linear_1d.TXT", "a.txt.gz"])
def test_find_lines_by_turns_only_where_the_entry_names_their_set(tmp_path, name):
    content = b"Solve x + 1 = 3.\n2\n"
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ConfigError, match="format: mathematics"):
        find_inputs(str(path), key=KEY)
    (file,) = find_inputs((InputPath(path=str(path), format="mathematics"),), key=KEY)
    assert file.file_format == "pairs"


def test_find_lines_by_turns_only_in_files_named_text(tmp_path):
    write(tmp_path / "a.txt", b"1 + 1?\n2\n")
    write(tmp_path / "README.md", b"# Sums\nThese are sums.\n")
    with pytest.raises(ConfigError, match=r"`README\.md` is of no supported format"):
        find_inputs((InputPath(path=str(tmp_path), format="mathematics"),), key=KEY)


@pytest.mark.parametrize("content", [b"PK\x03\x04...", b"\x1f\x8bno", "Q\nA\n".encode("utf-16")])
def test_find_what_is_no_text_by_turns_is_refused(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises((ConfigError, DataError)):
        find_inputs((InputPath(path=str(path), format="mathematics"),), key=KEY)


@pytest.mark.parametrize("path", ["", "none.jsonl", "none/*.jsonl", "*.jsonl", "a\0b"])
def test_find_without_a_match_is_config_error_that_names_the_key(tmp_path, path):
    with pytest.raises(ConfigError, match=r"examples\.path"):
        find_inputs(path and f"{tmp_path}/{path}", key=KEY)


def test_find_empty_folder_is_config_error(tmp_path):
    write(tmp_path / "_SUCCESS", b"")
    with pytest.raises(ConfigError, match="holds no file"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_only_empty_files_is_data_error(tmp_path):
    write(tmp_path / "a.jsonl", b"")
    with pytest.raises(DataError, match="empty"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_empty_file_among_many_is_kept_with_a_warning(tmp_path):
    write(tmp_path / "a.parquet", b"")
    write(tmp_path / "b.jsonl")
    warnings = []
    files = find_inputs(str(tmp_path), key=KEY, on_warning=warnings.append)
    assert [(file.name, file.file_format) for file in files] == [("a.parquet", "jsonl"), ("b.jsonl", "jsonl")]
    assert files[0].bytes == 0
    assert len(warnings) == 1
    assert "a.parquet" in warnings[0]


def test_find_mixed_formats_in_a_folder_is_config_error_that_names_one_of_each(tmp_path):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.parquet", parquet_bytes())
    with pytest.raises(ConfigError, match=r"mixes formats.*a\.jsonl.*b\.parquet"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_files_of_one_object_each_are_json_on_however_many_lines(tmp_path):
    write(tmp_path / "1.json", b'{"problem": "1?"}\n')
    write(tmp_path / "2.json", b'{\n "problem": "2?"\n}')
    assert [file.file_format for file in find_inputs(str(tmp_path), key=KEY)] == ["json", "json"]
    write(tmp_path / "3.json", b'{"problem": "3?"}\n{"problem": "4?"}\n')
    with pytest.raises(ConfigError, match=r"mixes formats: json .*, jsonl .`3\.json`"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_special_file_is_config_error_and_is_not_waited_for(tmp_path):
    write(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(ConfigError, match=r"b\.jsonl' is a special file"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_folder_links_that_lead_to_each_other_are_config_error(tmp_path):
    for one, other in ("ab", "ba"):
        (tmp_path / one).mkdir()
        (tmp_path / one / "over").symlink_to(tmp_path / other)
    with pytest.raises(ConfigError, match="leads back"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_folder_link_to_a_folder_above_is_config_error(tmp_path):
    write(tmp_path / "a/rows.jsonl")
    (tmp_path / "a/back").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads back"):
        find_inputs(str(tmp_path), key=KEY)


@pytest.mark.parametrize("target", ["link.jsonl", "nowhere.jsonl"])
@pytest.mark.parametrize("named", ["", "link.jsonl"])
def test_find_link_to_itself_or_nowhere_is_config_error(tmp_path, target, named):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match="leads nowhere or to itself"):
        find_inputs(str(tmp_path / named), key=KEY)


def test_find_link_to_a_file_elsewhere_is_followed(tmp_path):
    write(tmp_path / "store/rows.jsonl")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.jsonl").symlink_to(tmp_path / "store/rows.jsonl")
    assert names(find_inputs(str(tmp_path / "in"), key=KEY)) == ["rows.jsonl"]


def test_find_file_name_that_is_not_utf8_is_config_error(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "wb") as stream:
        stream.write(ROW)
    with pytest.raises(ConfigError, match="not UTF-8"):
        find_inputs(str(tmp_path), key=KEY)


def test_find_mixture_carries_sources_and_sorts_over_all_entries(tmp_path):
    entries = (
        InputPath(path=str(write(tmp_path / "b.jsonl")), source="code"),
        InputPath(path=str(write(tmp_path / "a.parquet", parquet_bytes())), source="math"),
    )
    files = find_inputs(entries, key=KEY)
    assert [(f.name, f.index, f.source) for f in files] == [("a.parquet", 0, "math"), ("b.jsonl", 1, "code")]
    assert find_inputs(entries[::-1], key=KEY) == files


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("math", "code"), ["code/rows.jsonl", "math/rows.jsonl"]),
        (("math", "math"), ["entry-0/rows.jsonl", "entry-1/rows.jsonl"]),
        ((None, "code"), ["code/rows.jsonl", "entry-0/rows.jsonl"]),
        (("../../out", "a/b"), ["entry-0/rows.jsonl", "entry-1/rows.jsonl"]),
    ],
)
def test_find_mixture_with_equal_file_names_makes_them_unique(tmp_path, sources, expected):
    entries = tuple(
        InputPath(path=str(write(tmp_path / str(i) / "rows.jsonl")), source=source) for i, source in enumerate(sources)
    )
    assert names(find_inputs(entries, key=KEY)) == expected


def test_find_same_file_by_two_entries_is_config_error(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    entries = (InputPath(path=str(path)), InputPath(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="twice"):
        find_inputs(entries, key=KEY)


def test_find_missing_mixture_entry_names_its_position(tmp_path):
    entries = (InputPath(path=str(write(tmp_path / "a.jsonl"))), InputPath(path=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"examples\.path\[1\]\.path"):
        find_inputs(entries, key=KEY)


def test_find_empty_mixture_is_config_error():
    with pytest.raises(ConfigError, match="empty list"):
        find_inputs((), key=KEY)


def test_find_ten_thousand_small_files_lists_all(tmp_path):
    for i in range(10_000):
        (tmp_path / f"{i:05}.jsonl").write_bytes(ROW)
    files = find_inputs(str(tmp_path), key=KEY)
    assert len(files) == 10_000
    assert files[-1].index == 9999


def test_shown_text_is_short_printable_and_encodable():
    assert input_files.shown("a\n\x1b[31m\ud800é") == "a\\n\\x1b[31m\\ud800é"
    assert len(input_files.shown("x" * 10_000)) < 100


def test_file_that_changes_while_a_run_goes_on_is_refused_but_a_jobs_own_may_be_unpacked_again(tmp_path):
    own = tmp_path / "_ray_pkg_0a1b2c" / "data"
    own.mkdir(parents=True)
    for folder, is_refused in ((tmp_path, True), (own, False)):
        path = write(folder / "rows.jsonl")
        (file,) = find_inputs(str(path), key=KEY)
        check_unchanged(file)
        os.utime(path, ns=(1, 1))  # another node of the cluster unpacks what a job brings at another time
        if is_refused:
            with pytest.raises(DataError, match="has changed since the run began"):
                check_unchanged(file)
        else:
            check_unchanged(file)
            path.write_bytes(ROW * 2)
            with pytest.raises(DataError, match="has changed since the run began"):
                check_unchanged(file)
