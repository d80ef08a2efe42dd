"""Tokens: Stanford Alpaca's own prompts, exact spans, text that stays text, and batches that lose nothing."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from s2l_ray import tokens
from s2l_ray.errors import ArtifactError, ConfigError
from s2l_ray.token_rows import TokenRows
from s2l_ray.tokens import ExampleTokenizer, Segment, TokenizedExample, render, tokens_table

TEXTS = [
    "Below is an instruction that describes a task. Name the capital of France. Paris",
    "### Instruction: ### Response: Translate to German: water. Wasser",
    "def add(a, b):\n    return a + b\n",
    "the sum of 12 and 30 is 42; the sum of 7 and 5 is 12",
]
# Copied from `PROMPT_DICT` of train.py in tatsu-lab/stanford_alpaca.
ALPACA = {
    "prompt_input": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    ),
    "prompt_no_input": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    ),
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def save(folder, tokenizer, max_tokens=64):
    tokens.save_tokenizer(tokenizer, folder, max_tokens)
    return ExampleTokenizer(folder)


def change(folder, edit):
    """Edit tokenizer.json through the `tokenizers` library and open it again."""
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    edit(tokenizer)
    tokenizer.save(file)
    return ExampleTokenizer(folder)


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory):
    return save(tmp_path_factory.mktemp("byte_bpe"), tokens.train_tokenizer(TEXTS, "byte_bpe", 400))


@pytest.fixture
def byte_bpe_folder(tmp_path):
    save(tmp_path, tokens.train_tokenizer(TEXTS, "byte_bpe", 300))
    return tmp_path


def one(tokenizer, segments, max_tokens=10_000):
    (example,) = tokenizer.tokenize([segments], max_tokens)
    return example


def prompt_and_response(prompt, response):
    return [Segment(prompt, is_response=False), Segment(response, is_response=True)]


# Templates


def test_render_alpaca_without_input_is_stanford_alpacas_prompt():
    prompt, response = render([("user", "Name a {fruit}."), ("assistant", "Fig")], "alpaca")
    assert prompt.text == ALPACA["prompt_no_input"].format(instruction="Name a {fruit}.")
    assert (response.text, prompt.is_response, response.is_response) == ("Fig", False, True)


def test_render_alpaca_with_input_is_stanford_alpacas_prompt():
    prompt, _ = render([("user", "Add."), ("input", "1 2"), ("assistant", "3")], "alpaca")
    assert prompt.text == ALPACA["prompt_input"].format(instruction="Add.", input="1 2")


def test_render_system_text_takes_the_preambles_place():
    prompt, _ = render([("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")], "alpaca")
    assert prompt.text == "Be brief.\n\n### Instruction:\nHi\n\n### Response:"


def test_render_multi_turn_alternates_and_holds_every_text_once():
    turns = [("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("tool", "t2"), ("assistant", "a2")]
    for template in ("alpaca", "plain"):
        segments = render(turns, template)
        assert [s.is_response for s in segments] == [False, True, False, True]
        assert [s.text for s in segments if s.is_response] == ["a1", "a2"]
        text = "".join(s.text for s in segments)
        assert [text.count(content) for _, content in turns] == [1] * 5


def test_render_every_system_text_stands_where_it_was_said():
    turns = [("system", "s1"), ("system", "s2"), ("user", "u1"), ("assistant", "a1"), ("system", "s3"), ("user", "u2")]
    for template in ("alpaca", "plain"):
        text = "".join(s.text for s in render([*turns, ("assistant", "a2")], template))
        places = [text.index(content) for _, content in turns]
        assert places == sorted(places)
        assert [text.count(content) for _, content in turns] == [1] * len(turns)


def test_render_braces_in_the_data_stay_as_they_are():
    prompt, response = render([("user", "{{ x }} {0} %s"), ("assistant", "{instruction}")], "alpaca")
    assert "{{ x }} {0} %s" in prompt.text
    assert response.text == "{instruction}"


# Spans


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_tokenize_spans_decode_to_response_and_eos(byte_bpe, template):
    turns = [("user", "Über 😀"), ("assistant", " a\n b "), ("user", "more"), ("assistant", "Paris")]
    example = one(byte_bpe, render(turns, template))
    raw = byte_bpe._tokenizer
    spans = list(zip(example.response_start, example.response_stop, strict=True))
    decoded = [raw.decode(example.input_ids[a:b], skip_special_tokens=False) for a, b in spans]
    assert decoded == [" a\n b " + tokens.EOS, "Paris" + tokens.EOS]
    assert byte_bpe.decode(example.input_ids[slice(*spans[0])]) == " a\n b "
    assert example.num_response_tokens == sum(b - a for a, b in spans)
    outside = [i for i, _ in enumerate(example.input_ids) if not any(a <= i < b for a, b in spans)]
    prompt = "".join(s.text for s in render(turns, template) if not s.is_response)
    assert byte_bpe.decode([example.input_ids[i] for i in outside]) == prompt


@given(max_tokens=st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_tokenize_truncation_is_the_cut_of_the_whole(byte_bpe, max_tokens):
    segments = render([("user", "a b"), ("assistant", "12"), ("user", "c"), ("assistant", "34")], "plain")
    whole, cut = one(byte_bpe, segments), one(byte_bpe, segments, max_tokens)
    counted = [i for a, b in zip(whole.response_start, whole.response_stop, strict=True) for i in range(a, b)]
    kept = [i for a, b in zip(cut.response_start, cut.response_stop, strict=True) for i in range(a, b)]
    assert cut.input_ids == whole.input_ids[:max_tokens]
    assert kept == [i for i in counted if i < max_tokens]
    assert cut.num_response_tokens == len(kept)
    assert cut.truncated == (len(whole.input_ids) > max_tokens)
    assert all(a < b for a, b in zip(cut.response_start, cut.response_stop, strict=True))


def test_tokenize_when_the_prompt_fills_everything_no_response_token_is_left(byte_bpe):
    example = one(byte_bpe, prompt_and_response("x" * 50, "yes"), 10)
    assert (example.num_response_tokens, example.truncated, example.response_start) == (0, True, [])


def test_tokenize_exactly_at_the_limit_is_not_truncated(byte_bpe):
    segments = prompt_and_response("x", "yes")
    length = len(one(byte_bpe, segments).input_ids)
    assert not one(byte_bpe, segments, length).truncated
    assert one(byte_bpe, segments, length - 1).truncated


def test_tokenize_empty_prompt_the_first_token_never_counts(byte_bpe):
    example = one(byte_bpe, prompt_and_response("", "Paris"))
    assert example.response_start == [1]
    assert example.num_response_tokens == len(example.input_ids) - 1
    nothing = one(byte_bpe, prompt_and_response("", ""))
    assert (nothing.input_ids, nothing.num_response_tokens) == ([byte_bpe.eos_id], 0)


def test_tokenize_does_not_depend_on_its_neighbours(byte_bpe):
    rendered = [prompt_and_response(text, text[:i]) for i, text in enumerate(TEXTS)]
    assert byte_bpe.tokenize(rendered, 50) == [one(byte_bpe, segments, 50) for segments in rendered]
    assert byte_bpe.tokenize([], 50) == []


# Text stays text


def test_byte_bpe_text_like_a_special_token_stays_text(byte_bpe):
    text = f"a{tokens.EOS}b {tokens.PAD} {tokens.UNK}"
    example = one(byte_bpe, prompt_and_response(text, text))
    ids = example.input_ids
    assert [i for i, token in enumerate(ids) if token in (0, 1, 2)] == [len(ids) - 1]
    assert byte_bpe.decode(ids[: example.response_start[0]]) == text
    assert byte_bpe.decode(ids[example.response_start[0] :]) == text


@pytest.mark.parametrize("kind", ["byte_bpe", "word_level"])
def test_trained_on_special_token_texts_they_stay_text(tmp_path, kind):
    text = f"yes {tokens.EOS} no {tokens.PAD} {tokens.UNK} x{tokens.EOS}"
    tokenizer = save(tmp_path, tokens.train_tokenizer([text] * 50, kind, 400))
    example = one(tokenizer, prompt_and_response(text, text))
    special = {tokenizer.eos_id, tokenizer.pad_id, tokenizer._tokenizer.token_to_id(tokens.UNK)}
    assert [i for i, token in enumerate(example.input_ids) if token in special] == [len(example.input_ids) - 1]


def test_added_special_token_in_the_data_stays_text(byte_bpe_folder):
    tokenizer = change(
        byte_bpe_folder, lambda t: t.add_special_tokens([AddedToken("[TOOL]", special=True, normalized=False)])
    )
    added = tokenizer._tokenizer.token_to_id("[TOOL]")
    example = one(tokenizer, prompt_and_response("a [TOOL] b", "[TOOL]"))
    assert added not in example.input_ids
    assert tokenizer.decode(example.input_ids) == "a [TOOL] b[TOOL]"
    assert tokenizer.vocab_size == added + 1


@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_byte_bpe_gives_any_text_back(byte_bpe, text):
    example = one(byte_bpe, prompt_and_response(text, text))
    stop = len(example.input_ids) - 1
    assert byte_bpe.decode(example.input_ids[: stop // 2]) == text
    assert byte_bpe.decode(example.input_ids[stop // 2 :]) == text
    assert max(example.input_ids) < byte_bpe.vocab_size


def test_word_level_unknown_words_become_the_unknown_token(tmp_path):
    tokenizer = save(tmp_path, tokens.train_tokenizer(["red green blue"], "word_level", 16))
    unknown = tokenizer._tokenizer.token_to_id(tokens.UNK)
    example = one(tokenizer, prompt_and_response("red mauve", "blue"))
    assert example.input_ids[1] == unknown
    assert [i for i, token in enumerate(example.input_ids) if token == unknown] == [1]
    assert tokenizer.decode(example.input_ids[example.response_start[0] :]) == "blue"


# Training and saving a tokenizer


@pytest.mark.parametrize("kind", ["byte_bpe", "word_level"])
def test_train_tokenizer_same_texts_in_any_order_give_the_same_tokenizer(kind):
    first = tokens.train_tokenizer(TEXTS, kind, 300).to_str()
    assert tokens.train_tokenizer(iter(TEXTS), kind, 300).to_str() == first
    assert tokens.train_tokenizer(TEXTS[::-1], kind, 300).to_str() == first


@pytest.mark.parametrize(("kind", "limit"), [("byte_bpe", 259), ("byte_bpe", 270), ("word_level", 16)])
def test_train_tokenizer_stays_within_vocab_size(kind, limit):
    texts = [f"word{i} other{i}" for i in range(200)]
    assert tokens.train_tokenizer(texts, kind, limit).get_vocab_size() == limit


def test_train_tokenizer_no_room_for_the_bytes_is_a_config_error():
    with pytest.raises(ConfigError, match="259"):
        tokens.train_tokenizer(TEXTS, "byte_bpe", 258)


@pytest.mark.parametrize("kind", ["byte_bpe", "word_level"])
def test_saved_tokenizer_loads_with_transformers_and_gives_the_same_ids(tmp_path, kind):
    from transformers import AutoTokenizer

    ours = save(tmp_path, tokens.train_tokenizer(TEXTS, kind, 300), 77)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "never seen 😀  \n"]:
        example = one(ours, prompt_and_response(text, "Paris"))
        assert theirs(text).input_ids == example.input_ids[: example.response_start[0]]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)
    assert theirs.model_max_length == 77
    assert len(theirs) == ours.vocab_size
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    segments = render([("user", "Name a city"), ("assistant", "Paris")], "alpaca")
    assert one(ExampleTokenizer(again), segments) == one(ours, segments)


# Tokenizers of others


@pytest.mark.parametrize("template", ["<bos> $A", "<bos> $A <end>"])
def test_beginning_of_sequence_stands_once_at_the_start_and_nothing_else_is_added(byte_bpe_folder, template):
    plain = ExampleTokenizer(byte_bpe_folder)

    def add_bos(tokenizer):
        tokenizer.add_special_tokens(["<bos>", "<end>"])
        ids = [(name, tokenizer.token_to_id(name)) for name in ("<bos>", "<end>")]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)

    tokenizer = change(byte_bpe_folder, add_bos)
    bos = tokenizer._tokenizer.token_to_id("<bos>")
    segments = render([("user", "a <bos>"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], "plain")
    with_bos, without = one(tokenizer, segments), one(plain, segments)
    assert with_bos.input_ids == [bos, *without.input_ids]
    assert with_bos.response_start == [start + 1 for start in without.response_start]
    # With something before it, the very first token of a response counts.
    assert one(tokenizer, prompt_and_response("", "Paris")).response_start == [1]


def test_truncation_and_padding_in_tokenizer_json_are_switched_off(byte_bpe_folder):
    def limit(tokenizer):
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=8)

    segments = prompt_and_response("a long prompt of many tokens", "and a response")
    expected = one(ExampleTokenizer(byte_bpe_folder), segments)
    assert one(change(byte_bpe_folder, limit), segments) == expected


def write_settings(folder, **settings_):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))


def test_tokenizer_without_eos_is_a_config_error(byte_bpe_folder):
    for settings_ in ({}, {"eos_token": None}, {"eos_token": "<not a token>"}):
        write_settings(byte_bpe_folder, **settings_)
        with pytest.raises(ConfigError, match="end-of-sequence"):
            ExampleTokenizer(byte_bpe_folder)


def test_tokenizer_without_pad_pads_with_eos(byte_bpe_folder):
    write_settings(byte_bpe_folder, eos_token={"content": tokens.EOS})
    tokenizer = ExampleTokenizer(byte_bpe_folder)
    assert tokenizer.pad_id == tokenizer.eos_id == 1


def test_folder_without_tokenizer_json_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        ExampleTokenizer(tmp_path)


def test_folder_without_tokenizer_config_is_a_config_error(byte_bpe_folder):
    (byte_bpe_folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="end-of-sequence"):
        ExampleTokenizer(byte_bpe_folder)


# Rows


def example_of(length, spans=None):
    spans = [(1, length)] if spans is None else spans
    return TokenizedExample(list(range(100, 100 + length)), [a for a, _ in spans], [b for _, b in spans], False)


def table_of(examples, first_id=0):
    ids = range(first_id, first_id + len(examples))
    return tokens_table(list(ids), [None] * len(examples), examples)


EXAMPLES = [example_of(3), example_of(6, [(1, 2), (4, 6)]), example_of(2), example_of(5), example_of(4, [(3, 4)])]


def as_lists(rows):
    out = []
    for n in range(len(rows)):
        ids = rows.token[rows.token_offset[n] : rows.token_offset[n + 1]].tolist()
        spans = rows.span[rows.span_offset[n] : rows.span_offset[n + 1]].tolist()
        out.append((int(rows.example_id_N[n]), ids, spans, int(rows.num_response_tokens_N[n])))
    return out


def expected_lists(table):
    return [
        (
            r["example_id"],
            r["input_ids"],
            [list(s) for s in zip(r["response_start"], r["response_stop"], strict=True)],
            r["num_response_tokens"],
        )
        for r in table.to_pylist()
    ]


@pytest.mark.parametrize(
    "cut",
    [
        lambda t: t,
        lambda t: t.slice(1, 3),
        lambda t: pa.concat_tables([t.slice(3, 2), t.slice(0, 2), t.slice(2, 0)]),
        lambda t: pa.concat_tables([t, t.slice(1)]).slice(2, 5),
        lambda t: t.slice(0, 0),
        lambda t: t.schema.empty_table(),
    ],
)
def test_token_rows_from_any_slicing_hold_the_tables_rows(cut):
    table = cut(table_of(EXAMPLES))
    rows = TokenRows.from_table(table)
    assert as_lists(rows) == expected_lists(table)
    assert len(rows) == table.num_rows
    assert rows.length_N.tolist() == [len(ids) for ids in table.column("input_ids").to_pylist()]


def test_token_rows_take_keeps_the_order_asked_for():
    rows = TokenRows.from_table(table_of(EXAMPLES, first_id=10))
    taken = rows.take(np.array([13, 10, 13, 11]))
    whole = as_lists(rows)
    assert as_lists(taken) == [whole[3], whole[0], whole[3], whole[1]]
    assert as_lists(rows.take(np.array([], np.int64))) == []
    assert as_lists(taken.take(np.array([11, 10]))) == [whole[1], whole[0]]


@pytest.mark.parametrize("missing", [9, 15, 2**62])
def test_token_rows_take_missing_id_is_named(missing):
    rows = TokenRows.from_table(table_of(EXAMPLES, first_id=10))
    with pytest.raises(ArtifactError, match=str(missing)):
        rows.take(np.array([11, missing]))


def test_token_rows_take_from_no_rows_is_an_artifact_error():
    with pytest.raises(ArtifactError):
        TokenRows.from_table(table_of([])).take(np.array([4]))


def test_batch_pads_on_the_right_and_marks_the_spans():
    batch = TokenRows.from_table(table_of(EXAMPLES)).batch([1, 2, 4], pad_id=7)
    assert batch.input_ids_BL.dtype == np.int64
    assert batch.input_ids_BL.tolist() == [
        [100, 101, 102, 103, 104, 105],
        [100, 101, 7, 7, 7, 7],
        [100, 101, 102, 103, 7, 7],
    ]
    assert batch.response_BL.tolist() == [
        [False, True, False, False, True, True],
        [False, True, False, False, False, False],
        [False, False, False, True, False, False],
    ]


lengths = st.lists(st.integers(2, 30), min_size=0, max_size=40)


@given(lengths=lengths, batch_tokens=st.integers(1, 100), seed=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_length_batches_partition_the_rows_within_the_limit(lengths, batch_tokens, seed):
    rows = TokenRows.from_table(table_of([example_of(length) for length in lengths]))
    batches = list(rows.length_batches(batch_tokens))
    positions = [int(p) for batch in batches for p in batch]
    assert sorted(positions) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * rows.length_N[batch].max() <= batch_tokens
    longest = [int(rows.length_N[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    # The same examples in another order share the same batches.
    order = np.random.default_rng(seed).permutation(len(lengths))
    shuffled = rows.take(rows.example_id_N[order])
    again = [shuffled.example_id_N[batch].tolist() for batch in shuffled.length_batches(batch_tokens)]
    assert again == [rows.example_id_N[batch].tolist() for batch in batches]
