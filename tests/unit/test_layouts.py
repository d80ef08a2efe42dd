import json
import pickle
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.config import FormatName, InputPath
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.inputs import find_inputs
from s2l_ray.layouts import Layout, LayoutName, detect_layout, detect_layouts

KEY = "examples.path"


@pytest.fixture
def put(tmp_path):
    def write(*rows, name="rows.jsonl", source=None, layout=None, columns=None):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        entry = InputPath(path=str(path), source=source, format=layout, columns=columns)
        return find_inputs((entry,), key=KEY)

    return write


def detect(files, layout="auto", **columns):
    return detect_layout(files, layout, columns, key=KEY)


def test_every_layout_can_be_named_in_a_config():
    assert get_args(FormatName) == ("auto", *get_args(LayoutName))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "extra": 1}, "alpaca"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"question": "a", "answer": "b"}, "question_answer"),
        ({"messages": []}, "messages"),
    ],
)
def test_auto_layout_follows_the_columns(put, row, expected):
    files = put(row)
    layout = detect(files)
    assert layout.name == expected
    assert layout == detect(files, expected)
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_auto_layout_of_parquet_follows_its_schema(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"], "id": [1]}), tmp_path / "a.parquet")
    layout = detect(find_inputs(str(tmp_path), key=KEY))
    assert (layout.name, layout.columns["id"]) == ("question_answer", "id")


def test_mapped_columns_decide_the_layout(put):
    files = put({"task": "a", "solution": "b", "origin": "c", "prompt": "", "completion": ""})
    layout = detect(files, instruction="task", output="solution", source="origin")
    assert layout.name == "alpaca"
    assert layout.columns == {
        "instruction": "task", "input": "input", "output": "solution", "system": "system", "history": "history",
        "source": "origin", "skill": "skill", "is_wrong": "is_wrong",
    }  # fmt: skip


def test_layout_skips_unusable_first_rows(put):
    assert detect(put("", "{broken", "[1]", {"prompt": "a", "completion": "b"})).name == "prompt_completion"


def test_layout_of_several_files_is_found_behind_one_without_rows(tmp_path, put):
    (tmp_path / "a.jsonl").write_text("")
    put({"prompt": "a", "completion": "b"}, name="b.jsonl")
    assert detect(find_inputs(str(tmp_path), key=KEY)).name == "prompt_completion"


def test_columns_that_fit_two_layouts_are_data_error_solved_by_a_mapping(put):
    files = put({"prompt": "a", "completion": "b", "question": "c", "answer": "d"})
    with pytest.raises(DataError, match=r"several layouts: prompt \+ completion or question \+ answer"):
        detect(files)
    assert detect(files, question="question").name == "question_answer"
    assert detect(files, "prompt_completion").name == "prompt_completion"


def test_columns_that_fit_no_layout_are_data_error_listing_found_and_expected(put):
    with pytest.raises(DataError, match=r"found the columns `body`, `label`, expected instruction \+ output or"):
        detect(put({"body": "a", "label": "b"}))


def test_plain_text_is_a_layout_where_no_other_fits(put):
    assert detect(put({"text": "a", "label": "b"})).name == "text"
    assert detect(put({"text": "a", "instruction": "b", "output": "c"})).name == "alpaca"


def test_columns_that_a_layout_may_have_are_read_where_they_are_mapped(put):
    layout = detect(put({"chat": [], "intro": "be kind"}), conversations="chat", system="intro")
    assert (layout.name, layout.columns["system"], layout.columns["tools"]) == ("sharegpt", "intro", "tools")


def test_missing_mapped_column_is_data_error_listing_found_and_nearest(put):
    files = put({"task": "a", "solution": "b"})
    with pytest.raises(DataError, match=r"`solutoin` is missing. Found `task`, `solution`; the nearest is `solution`"):
        detect(files, instruction="task", output="solutoin")


@pytest.mark.parametrize("our", ["source", "id", "skill", "input"])
def test_missing_mapped_optional_column_is_data_error(put, our):
    with pytest.raises(DataError, match="`absent` is missing"):
        detect(put({"instruction": "a", "output": "b"}), **{our: "absent"})


@pytest.mark.parametrize("our", ["source", "id", "skill", "is_wrong", "input", "system", "history"])
def test_column_that_is_null_is_not_read(put, our):
    files = put({"instruction": "a", "output": "b", our: "c"})
    assert our in detect(files).columns
    assert our not in detect(files, **{our: None}).columns
    assert detect(files, **{our: None}).columns.keys() == detect(files).columns.keys() - {our}


def test_layout_whose_column_is_null_does_not_fit(put):
    files = put({"instruction": "a", "output": "b", "messages": []})
    assert detect(files, messages=None).name == "alpaca"
    assert detect(files, output=None).name == "messages"
    with pytest.raises(ConfigError, match=r"`output` is null, but layout alpaca needs it"):
        detect(files, "alpaca", output=None)


def test_missing_column_of_a_fixed_layout_is_data_error(put):
    with pytest.raises(DataError, match=r"`output` is missing.*examples\.columns"):
        detect(put({"instruction": "a", "outputs": "b"}), "alpaca")


def test_unknown_name_of_ours_is_config_error_with_a_suggestion(put):
    with pytest.raises(ConfigError, match="did you mean `instruction`"):
        detect(put({"instruction": "a", "output": "b"}), instructions="instruction")


def test_names_of_two_layouts_are_config_error(put):
    files = put({"a": "a", "b": "b"})
    with pytest.raises(ConfigError, match="no layout has all"):
        detect(files, prompt="a", answer="b")
    with pytest.raises(ConfigError, match="layout alpaca has"):
        detect(files, "alpaca", question="a")


def test_unknown_layout_is_config_error(put):
    with pytest.raises(ConfigError, match="expected auto, alpaca"):
        detect(put({"instruction": "a", "output": "b"}), "csv")


@pytest.mark.parametrize("name", ["example_id", "content_hash", "input_file", "input_row"])
def test_column_with_a_name_of_ours_is_data_error(put, name):
    with pytest.raises(DataError, match=f"`{name}`"):
        detect(put({"instruction": "a", "output": "b", name: 1}))


def test_no_usable_row_is_data_error_with_the_first_reason(put):
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not_an_object"):
        detect(put("", "[1]", "{"))


def test_blank_files_are_data_error(put):
    with pytest.raises(DataError, match="no row found"):
        detect(put("", " "))


ALPACA = {"instruction": "a", "output": "b"}


def detect_all(files, **columns):
    return detect_layouts(files, "auto", columns, key=KEY)


def test_id_column_is_used_where_every_source_has_one(put):
    with_id = put(ALPACA | {"id": 1}, name="a.jsonl", source="a")
    without = put(ALPACA, name="b.jsonl", source="b")
    assert "id" in detect_all(with_id)["a.jsonl"].columns
    assert not any("id" in each.columns for each in detect_all(with_id + without).values())
    with pytest.raises(DataError, match=r"b\.jsonl: column `id` is missing"):
        detect_all(with_id + without, id="id")


def test_id_column_that_an_entry_maps_is_used_though_others_have_none(put):
    mapped = put(ALPACA | {"uid": 1}, name="a.jsonl", source="a", columns={"id": "uid"})
    found = detect_all(mapped + put(ALPACA, name="b.jsonl", source="b"))
    assert found["a.jsonl"].columns["id"] == "uid"
    assert "id" not in found["b.jsonl"].columns


def test_entries_of_a_mixture_are_each_laid_out_in_their_own_way(put):
    files = put(ALPACA, name="a.jsonl", source="a")
    files += put({"conversations": []}, name="b.jsonl", source="b")
    files += put({"task": "a", "answer": "b"}, name="c.jsonl", columns={"question": "task"})
    files += put({"text": "t", "question": "a", "answer": "b"}, name="d.jsonl", layout="text")
    found = detect_all(files)
    assert [layout.name for layout in found.values()] == ["alpaca", "sharegpt", "question_answer", "text"]
    assert found["c.jsonl"].columns["question"] == "task"
    # What the whole input is said to be called goes for those that say nothing of their own.
    with pytest.raises(DataError, match=r"b\.jsonl: column `instruction` is missing.*`examples\.path\[\]\.columns: "):
        detect_all(files, instruction="instruction")


def test_entries_without_a_source_are_told_apart_all_the_same(tmp_path):
    for name, row in (("a.jsonl", ALPACA), ("b.jsonl", {"question": "a", "answer": "b"})):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    files = find_inputs(tuple(InputPath(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl")), key=KEY)
    assert [layout.name for layout in detect_all(files).values()] == ["alpaca", "question_answer"]


def test_entry_that_cannot_be_read_is_named_with_where_to_say_more(put):
    files = put(ALPACA, name="a.jsonl", source="a") + put({"body": 1}, name="b.jsonl", source="b")
    with pytest.raises(DataError, match=r"b\.jsonl: found the columns `body`.*`examples\.path\[\]\.columns: \{"):
        detect_all(files)


def test_layout_without_ids_is_otherwise_the_same():
    layout = Layout("text", {"text": "body", "id": "uid"})
    assert layout.without_ids() == Layout("text", {"text": "body"})


def test_mapping_is_named_after_the_section_of_the_key(put):
    with pytest.raises(DataError, match=r"evaluate\.columns"):
        detect_layout(put({"body": "a"}), "auto", {}, key="evaluate.path")
