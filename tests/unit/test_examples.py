import csv
import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2l_ray import schemas, turns
from s2l_ray.config import InputPath
from s2l_ray.draws import draw_hash
from s2l_ray.errors import DataError
from s2l_ray.examples import (
    Example,
    RejectedRow,
    Turn,
    bad_row_error,
    content_hash,
    example_id,
    examples_table,
    find_duplicate_user_ids,
    held_out,
    locations,
    read_examples,
)
from s2l_ray.formats.row import UnusableRowError
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.layouts import Layout, detect_layout
from s2l_ray.raw_rows import read_rows

GOLDEN = -3463304362674469291
GOOD = {"instruction": "ask", "output": "answer"}
NASTY = "\U0001f600 \u202e\u05e9\u05dc\u05d5\u05dd\u202c \x00 \u2028 \x85 \x1c <|endoftext|> {{ x }} {% raw %}"

texts = st.text(st.characters(codec="utf-8"), max_size=20)


def dumped(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def read(tmp_path):
    """Return a function that writes rows as JSON Lines and reads them with the layout `auto`."""

    def read_rows(*rows, columns=None, source=None, name="rows.jsonl", on_warning=None):
        (tmp_path / name).write_text(dumped(*rows))
        files = find_inputs((InputPath(path=str(tmp_path / name), source=source),), key="examples.path")
        layout = detect_layout(files, "auto", columns or {}, key="examples.path")
        return list(read_examples(files[0], layout, on_warning=on_warning))

    return read_rows


@pytest.fixture
def reject(read):
    """Return the reason why a row is rejected when it stands behind a good one."""

    def reason(row, good=GOOD):
        first, second = read(good, row)
        assert isinstance(first, Example)
        assert isinstance(second, RejectedRow)
        assert (second.input_file, second.input_row) == ("rows.jsonl", 1)
        second.reason.encode()
        return second.reason

    return reason


def chat(*turns):
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}


GOOD_CHAT = chat(("user", "hi"), ("assistant", "hello"))

# Layouts


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (GOOD, [("user", "ask"), ("assistant", "answer")]),
        (GOOD | {"input": ""}, [("user", "ask"), ("assistant", "answer")]),
        (GOOD | {"input": None}, [("user", "ask"), ("assistant", "answer")]),
        (GOOD | {"input": " "}, [("user", "ask"), ("input", " "), ("assistant", "answer")]),
        ({"instruction": "", "output": "x"}, [("user", ""), ("assistant", "x")]),
        ({"prompt": "p", "completion": " c\n"}, [("user", "p"), ("assistant", " c\n")]),
        ({"question": "q", "answer": "a", "input": "not ours"}, [("user", "q"), ("assistant", "a")]),
        (
            chat(("system", ""), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b"), ("user", "v")),
            [("system", ""), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b"), ("user", "v")],
        ),
        (
            {
                "messages": [
                    {"from": "human", "value": "u"},
                    {"from": "gpt", "value": "a"},
                    {"from": "system", "value": "s"},
                ]
            },
            [("user", "u"), ("assistant", "a"), ("system", "s")],
        ),
        (
            {
                "tools": "[]",
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a", "tool_calls": "[]"},
                ],
            },
            [("user", "u"), ("assistant", "a")],
        ),
        ({"text": " all of it\n"}, [("text", " all of it\n")]),
        (
            {"instruction": "i", "output": "o", "system": "s", "history": [["a", "b"]]},
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i"), ("assistant", "o")],
        ),
        (
            {
                "tools": '[{"name": "add"}]',
                "system": "s",
                "conversations": [
                    {"from": "human", "value": "u"},
                    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                    {"from": "observation", "value": "1"},
                    {"from": "gpt", "value": "a"},
                ],
            },
            [
                ("tools", '[{"name": "add"}]'),
                ("system", "s"),
                ("user", "u"),
                ("tool_calls", '[{"name": "add", "arguments": {"a": 1}}]'),
                ("tool", "1"),
                ("assistant", "a"),
            ],
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "ä"}}],
                "messages": [
                    {"role": "developer", "content": "s"},
                    {"role": "assistant", "content": "wait", "tool_calls": [{"function": {"name": "ä"}}]},
                    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "b"}}]},
                ],
            },
            [
                ("tools", '[{"type": "function", "function": {"name": "ä"}}]'),
                ("system", "s"),
                ("assistant", "wait"),
                ("tool_calls", '[{"function": {"name": "ä"}}]'),
                ("tool_calls", '[{"function": {"name": "b"}}]'),
            ],
        ),
    ],
)
def test_row_of_each_layout_becomes_its_turns_in_order(read, row, turns):
    (example,) = read(row)
    assert example.turns == tuple(turns)
    assert all(isinstance(turn, Turn) for turn in example.turns)


def test_mapped_columns_are_read(read):
    row = {"task": "t", "more": "m", "solution": "s", "origin": "o", "topic": 7, "uid": "u", "bad": True}
    columns = {"instruction": "task", "input": "more", "output": "solution", "source": "origin"}
    (example,) = read(row, columns=columns | {"skill": "topic", "id": "uid", "is_wrong": "bad"})
    assert example.turns == (("user", "t"), ("input", "m"), ("assistant", "s"))
    assert (example.source, example.skill, example.user_id, example.is_wrong) == ("o", "7", "u", True)


def test_parquet_rows_give_the_same_examples_as_jsonl(read, tmp_path):
    rows = [GOOD | {"id": i, "source": "s", "input": NASTY * (i % 2)} for i in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    files = find_inputs(str(tmp_path / "rows.parquet"), key="examples.path")
    from_parquet = list(read_examples(files[0], detect_layout(files, "auto", {}, key="examples.path")))
    assert [dataclasses.replace(e, input_file="rows.jsonl") for e in from_parquet] == read(*rows)


def test_parquet_chats_and_nulls_are_read(tmp_path):
    rows = [GOOD_CHAT, {"messages": None}, {"messages": [{"role": "assistant", "content": None}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    files = find_inputs(str(tmp_path), key="examples.path")
    items = list(read_examples(files[0], detect_layout(files, "auto", {}, key="examples.path")))
    assert items[0].turns == (("user", "hi"), ("assistant", "hello"))
    assert [item.reason.partition(":")[0] for item in items[1:]] == ["wrong_type", "bad_turn"]


def test_parquet_chats_of_both_spellings_in_one_column_are_read(tmp_path):
    chats = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], GOOD_CHAT["messages"]
    kind = pa.list_(pa.struct({name: pa.string() for name in ("role", "content", "from", "value")}))
    column = pa.array([[*chats[0], *chats[1]], *chats], kind)
    pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    files = find_inputs(str(tmp_path), key="examples.path")
    items = list(read_examples(files[0], detect_layout(files, "auto", {}, key="examples.path")))
    assert [item.turns for item in items[1:]] == [
        (("user", "u"), ("assistant", "a")),
        (("user", "hi"), ("assistant", "hello")),
    ]
    assert items[0].turns == items[1].turns + items[2].turns


@pytest.mark.parametrize("lost", ["output", "id", "origin"])
def test_parquet_file_without_a_needed_column_is_data_error(tmp_path, lost):
    rows = {"instruction": ["a"], "output": ["b"], "id": ["1"], "origin": ["o"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    pq.write_table(pa.table({k: v for k, v in rows.items() if k != lost}), tmp_path / "b.parquet")
    files = find_inputs(str(tmp_path), key="examples.path")
    layout = detect_layout(files, "auto", {"source": "origin"}, key="examples.path")
    assert len(list(read_examples(files[0], layout))) == 1
    with pytest.raises(DataError, match=rf"b\.parquet: column `{lost}` is missing"):
        list(read_examples(files[1], layout))


# Rejected rows


@pytest.mark.parametrize(
    ("row", "code", "names"),
    [
        ({"instruction": "a"}, "missing_column", "`output` is not among `instruction`"),
        ({"output": "a"}, "missing_column", "`instruction`"),
        (GOOD | {"output": 3}, "wrong_type", "`output` holds a number"),
        (GOOD | {"output": None}, "wrong_type", "`output` holds null"),
        (GOOD | {"instruction": ["a"]}, "wrong_type", "`instruction` holds a list"),
        (GOOD | {"input": {"a": 1}}, "wrong_type", "`input` holds an object"),
        (GOOD | {"output": True}, "wrong_type", "`output` holds true or false"),
        (GOOD | {"output": ""}, "blank_output", "`output`"),
        (GOOD | {"output": " \n\u3000"}, "blank_output", "`output`"),
        (GOOD | {"system": 1}, "wrong_type", "`system` holds a number"),
        (GOOD | {"history": "a"}, "wrong_type", "`history` holds text"),
        (GOOD | {"history": [["a", "b"], ["c"]]}, "bad_turn", "pair 2 of `history`"),
        (GOOD | {"history": [["a", " "]]}, "blank_output", "pair 1 of `history`"),
        (GOOD | {"source": 1.5}, "wrong_type", "`source`"),
        (GOOD | {"skill": ["a"]}, "wrong_type", "`skill`"),
        (GOOD | {"is_wrong": 1}, "wrong_type", "`is_wrong`"),
        ('{"instruction": "\\ud800", "output": "b"}', "lone_surrogate", "surrogate"),
        ('{"instruction": "a", "output": "b", "source": "\\udc00"}', "lone_surrogate", "`source`"),
        ('{"instruction": "a", "\\ud800": "b"}', "missing_column", "\\ud800"),
        ('{"instruction": "a", "output": "b", "x": NaN}', "nan_literal", "NaN"),
        ('{"instruction": "a", "output": ', "malformed_json", "column"),
        ("[]", "not_an_object", "a list"),
    ],
)
def test_unusable_row_is_rejected_with_code_and_column(reject, row, code, names):
    reason = reject(row)
    assert reason.startswith(f"{code}: ")
    assert names in reason


@pytest.mark.parametrize(
    ("row", "code", "names"),
    [
        ({"messages": []}, "empty_messages", "`messages`"),
        ({"messages": "hi"}, "wrong_type", "`messages` holds text"),
        ({"messages": None}, "wrong_type", "`messages` holds null"),
        ({"other": 1}, "missing_column", "`messages`"),
        (chat(("user", "a"), ("bot", "b")), "bad_role", "turn 2 has the role `bot`"),
        ({"messages": [{"content": "a"}]}, "bad_role", "turn 1 has the role null"),
        ({"messages": [{"role": 3, "content": "a"}]}, "bad_role", "turn 1 has the role a number"),
        (chat(("user", "a"), ("system", "b")), "no_assistant_turn", "user, system"),
        (chat(("user", [{"type": "text", "text": "a"}]), ("assistant", "b")), "bad_turn", "turn 1 is a list of parts"),
        (chat(("user", "a"), ("assistant", None)), "bad_turn", "turn 2 is null"),
        ({"messages": [{"role": "assistant"}]}, "bad_turn", "turn 1 is null"),
        ({"messages": ["hi"]}, "bad_turn", "turn 1 is text"),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " ")), "blank_output", "turn 4"),
        (GOOD_CHAT | {"tools": "add"}, "bad_tools", "`tools` holds text that is no JSON"),
        (GOOD_CHAT | {"tools": {"name": "add"}}, "wrong_type", "`tools` holds an object"),
        (GOOD_CHAT | {"tools": "[" * 100_000}, "bad_tools", "`tools` holds text that is no JSON"),
        (chat(("user", "a"), ("function_call", "[" * 100_000)), "bad_turn", "the tool calls of turn 2 are no JSON"),
        (chat(("user", "a"), ("function_call", "add(1)")), "bad_turn", "the tool calls of turn 2 are no JSON"),
        (chat(("user", "a"), ("function_call", "[]")), "bad_turn", "turn 2 calls no tool"),
        (chat(("user", "a"), ("function_call", "[{}]")), "bad_turn", "a tool call of turn 2 names no function"),
        (
            {"messages": [{"role": "user", "content": None, "tool_calls": [{"name": "x"}]}]},
            "bad_turn",
            "turn 1 is null",
        ),
    ],
)
def test_unusable_chat_is_rejected_naming_the_turn(reject, row, code, names):
    reason = reject(row, GOOD_CHAT)
    assert reason.startswith(f"{code}: ")
    assert names in reason


def test_tools_of_a_table_that_json_cannot_hold_make_a_bad_row(tmp_path):
    rows = [GOOD_CHAT | {"tools": [{"name": "add", "since": date(2026, 1, 1)}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chats.parquet")
    (file,) = find_inputs(str(tmp_path / "chats.parquet"), key="examples.path")
    (found,) = [row for _, row in read_rows(file)]
    with pytest.raises(UnusableRowError, match="bad_tools: column `tools` holds what JSON cannot"):
        turns._tools("tools", found["tools"])


def test_bad_row_error_names_file_line_reason_and_the_mend():
    error = bad_row_error(RejectedRow("a/rows.jsonl", 6, "blank_output: column `output` has no text"))
    assert isinstance(error, DataError)
    assert str(error).startswith("a/rows.jsonl:7: blank_output: column `output` has no text. ")
    assert "examples.on_bad_row: reject" in str(error)


def test_row_with_a_name_of_ours_is_data_error_with_its_file(read):
    filler = [GOOD] * 100
    with pytest.raises(DataError, match=r"rows\.jsonl.*`input_row`"):
        read(*filler, GOOD | {"input_row": 3})


# Ids, labels, texts


@pytest.mark.parametrize("uid", ["a/../b", "..", "line\nbreak", "x" * 10_000, "", NASTY])
def test_user_id_is_an_opaque_text(read, uid):
    (example,) = read(GOOD | {"id": uid})
    assert example.user_id == uid


def test_user_id_of_whole_numbers_is_stored_as_text(read):
    assert [e.user_id for e in read(GOOD | {"id": -7}, GOOD | {"id": 2**70})] == ["-7", str(2**70)]


@pytest.mark.parametrize("uid", [1.0, True, ["a"], {}])
def test_user_id_of_another_type_is_rejected(reject, uid):
    assert reject(GOOD | {"id": uid}, GOOD | {"id": "1"}).startswith("wrong_type: column `id`")


@pytest.mark.parametrize("our", ["id", "source", "skill", "is_wrong"])
def test_column_of_another_kind_is_left_unread_where_the_config_says_so(read, reject, our):
    row = GOOD | {our: {"page": 1}}
    assert f"`columns: {{{our}: null}}`" in reject(row, GOOD | {our: True if our == "is_wrong" else "a"})
    (example,) = read(row, columns={our: None})
    assert (example.user_id, example.source, example.skill, example.is_wrong) == (None, None, None, None)


@pytest.mark.parametrize("row", [GOOD | {"id": None}, GOOD])
def test_null_user_id_is_data_error_with_its_line(read, row):
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the id in column `id` is null or missing"):
        read(GOOD | {"id": "1"}, row)


def test_data_without_ids_has_null_user_ids(read):
    assert [example.user_id for example in read(GOOD, GOOD)] == [None, None]


def test_source_of_the_row_goes_before_that_of_the_entry(read):
    examples = read(GOOD | {"source": "own"}, GOOD, GOOD | {"source": None}, source="entry")
    assert [example.source for example in examples] == ["own", "entry", "entry"]


def test_example_is_numbered_by_file_and_physical_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(dumped(GOOD))
    (tmp_path / "b.jsonl").write_text(dumped("", GOOD, "", GOOD))
    files = find_inputs(str(tmp_path), key="examples.path")
    layout = detect_layout(files, "auto", {}, key="examples.path")
    examples = list(read_examples(files[1], layout))
    assert [e.input_row for e in examples] == [1, 3]
    index_N, row_N = locations(np.array([e.example_id for e in examples]))
    assert (index_N.tolist(), row_N.tolist()) == ([1, 1], [1, 3])
    assert {e.input_file for e in examples} == {"b.jsonl"}


def test_nasty_text_survives_to_the_table_to_the_byte(read):
    (example,) = read({"instruction": NASTY, "input": NASTY, "output": NASTY})
    contents = [turn["content"] for turn in examples_table([example]).column("turns").to_pylist()[0]]
    assert [c.encode() for c in contents] == [NASTY.encode()] * 3


def test_warnings_of_the_rows_reach_the_caller(read):
    warnings = []
    read('{"instruction": "a", "instruction": "b", "output": "c"}', on_warning=warnings.append)
    assert len(warnings) == 1


mostly_good = st.fixed_dictionaries(
    {"instruction": texts, "output": texts | st.none() | st.integers()}, optional={"input": texts, "x": texts}
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(mostly_good | st.none(), max_size=12), ascii_only=st.booleans())
def test_reading_loses_no_row_and_changes_no_text(tmp_path, rows, ascii_only):
    lines = ["" if row is None else json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    content = "\n".join(lines).encode()
    (tmp_path / "rows.jsonl").write_bytes(content)
    file = InputFile(str(tmp_path / "rows.jsonl"), "rows.jsonl", 0, "jsonl", len(content), 0, None)
    names = ("instruction", "input", "output", "source", "skill", "is_wrong")
    items = list(read_examples(file, Layout("alpaca", {name: name for name in names})))
    assert [item.input_row for item in items] == [i for i, row in enumerate(rows) if row is not None]
    for item in items:
        row = rows[item.input_row]
        if isinstance(item, Example):
            expected = [("user", row["instruction"]), ("input", row.get("input", "")), ("assistant", row["output"])]
            assert list(item.turns) == [turn for turn in expected if turn[1] or turn[0] != "input"]
        else:
            assert not isinstance(row["output"], str) or not row["output"].strip()


# Table, ids, hashes


def test_table_of_examples_has_the_artifact_schema_and_values(read):
    examples = read(GOOD | {"id": "1", "is_wrong": False}, GOOD | {"id": "2", "input": "i", "skill": "s"})
    table = examples_table(examples)
    assert table.schema.equals(schemas.EXAMPLES)
    table.validate(full=True)
    expected = [dataclasses.asdict(e) | {"turns": [t._asdict() for t in e.turns]} for e in examples]
    assert table.to_pylist() == expected


def test_table_of_no_examples_is_empty_with_the_schema():
    assert examples_table([]).equals(schemas.EXAMPLES.empty_table())


def test_examples_cross_a_process_border(read):
    examples = read(GOOD, "3")
    assert pickle.loads(pickle.dumps(examples)) == examples


@given(st.integers(0, 2**23 - 1), st.integers(0, 2**40 - 1))
def test_locations_invert_example_id_within_int64(file_index, row):
    number = example_id(file_index, row)
    assert 0 <= number < 2**63
    assert locations(np.array([number])) == (np.array([file_index]), np.array([row]))


@pytest.mark.parametrize(("file_index", "row"), [(2**23, 0), (0, 2**40), (-1, 0), (0, -1)])
def test_example_id_out_of_range_is_value_error(file_index, row):
    with pytest.raises(ValueError, match="do not fit"):
        example_id(file_index, row)


def test_content_hash_is_this_number_on_every_platform():
    program = "from s2l_ray.examples import content_hash; print(content_hash([('user', 'é'), ('assistant', 'b')]))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout
    assert int(printed) == content_hash([Turn("user", "é"), Turn("assistant", "b")]) == GOLDEN
    digest = hashlib.blake2b("4:user2:é9:assistant1:b".encode(), digest_size=8).digest()
    assert int.from_bytes(digest, "big", signed=True) == GOLDEN


@given(st.lists(st.lists(st.tuples(texts, texts), max_size=3), min_size=2, max_size=2, unique_by=tuple))
def test_content_hash_tells_different_turns_apart(pair):
    one, other = pair
    assert content_hash(one) != content_hash(other)
    assert -(2**63) <= content_hash(one) < 2**63


def test_content_hash_sees_where_a_text_ends():
    hashes = {content_hash(t) for t in ([("a", "bc")], [("ab", "c")], [("a", "b"), ("", "c")], [("", "a1:bc")])}
    assert len(hashes) == 4


def some_hashes(n, seed=0):
    return np.random.default_rng(seed).integers(-(2**63), 2**63, n, dtype=np.int64)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_held_out_share_is_close_to_what_was_asked(share):
    found = held_out(some_hashes(100_000), share)
    assert found.dtype == np.bool_
    assert abs(found.mean() - share) < 5 * np.sqrt(share * (1 - share) / 100_000) + 1e-12


def test_held_out_is_even_for_neighbouring_hashes():
    assert abs(held_out(np.arange(100_000), 0.1).mean() - 0.1) < 0.005


def test_held_out_depends_on_the_content_alone_and_grows_with_the_share():
    hashes = some_hashes(1000)
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(held_out(hashes[order], 0.2), held_out(hashes, 0.2)[order])
    assert not (held_out(hashes, 0.1) & ~held_out(hashes, 0.2)).any()


def test_held_out_of_no_rows_is_empty():
    assert held_out(np.array([], dtype=np.int64), 0.5).shape == (0,)


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_held_out_does_not_go_with_the_draw_of_selection(seed):
    hashes = some_hashes(200_000, seed)
    draw = draw_hash(hashes, np.zeros_like(hashes), seed).astype(np.float64)
    inside, outside = draw[held_out(hashes, 0.1)], draw[~held_out(hashes, 0.1)]
    assert abs(inside.mean() - outside.mean()) < 5 * 2**64 / np.sqrt(12 * len(inside))
    lowest = draw < np.quantile(draw, 0.1)
    assert abs(held_out(hashes, 0.1)[lowest].mean() - 0.1) < 0.012


def test_duplicate_user_ids_are_found_over_columns_and_nulls_are_none():
    columns = [pa.chunked_array([["a", "b", None], ["c"]]), pa.chunked_array([["b", None, "A"], ["c", "b"]])]
    assert find_duplicate_user_ids(columns) == ["b", "c"]
    assert find_duplicate_user_ids(columns, limit=1) == ["b"]


def test_unique_user_ids_have_no_duplicates():
    assert find_duplicate_user_ids([pa.chunked_array([[str(i) for i in range(1000)]])]) == []
    assert find_duplicate_user_ids([]) == []
    assert find_duplicate_user_ids([pa.chunked_array([], pa.string())]) == []


# Real data


@pytest.mark.parametrize(
    ("name", "layout", "rows"),
    [
        ("math_train.jsonl", "alpaca", 14_546),
        ("clinical_train.jsonl", "alpaca", 1201),
        ("code_train.jsonl", "alpaca", 964),
        ("eval_gsm8k.jsonl", "question_answer", 1319),
        ("eval_math500.jsonl", "question_answer", 500),
    ],
)
def test_real_data_is_read_in_full(name, layout, rows):
    if "S2L_TEST_DATA" not in os.environ:
        pytest.skip("S2L_TEST_DATA is not set: the folder of real data to test with")
    files = find_inputs(str(Path(os.environ["S2L_TEST_DATA"]) / name), key="examples.path")
    detected = detect_layout(files, "auto", {}, key="examples.path")
    items = list(read_examples(files[0], detected))
    assert detected.name == layout
    assert len(items) == rows
    assert all(isinstance(item, Example) and item.source for item in items)


def test_csv_gives_the_examples_of_the_same_rows_in_json(tmp_path):
    rows = [
        {"instruction": "a, b", "output": 'c "d"\ne', "input": "", "skill": "x", "is_wrong": "True"},
        {"instruction": "f", "output": "g", "input": "h", "skill": "", "is_wrong": ""},
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = tmp_path / "rows.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    def read_all(path):
        files = find_inputs(str(path), key="examples.path")
        layout = detect_layout(files, "auto", {}, key="examples.path")
        return [(e.turns, e.skill, e.is_wrong, e.content_hash) for e in read_examples(files[0], layout)]

    assert read_all(table) == read_all(lines)
    assert [is_wrong for _, _, is_wrong, _ in read_all(table)] == [True, None]
