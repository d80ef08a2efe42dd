"""Chat templates: the tokens of transformers, the answers and nothing else, and data that stays data."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from s2l_ray import tokens
from s2l_ray.chat_template import ChatTemplate, UnusableChatError
from s2l_ray.errors import ConfigError
from s2l_ray.tokens import ExampleTokenizer

CHATML = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
LLAMA_LIKE = """\
{{- bos_token }}
{%- for message in messages -%}
{{- '<|header|>' + message['role'] + '<|header_ends|>\n\n' }}
{{- message['content'] | trim + '<|turn_ends|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|header_ends|>\n\n' }}{% endif -%}
"""
THINKING = """\
{%- set ns = namespace(last=-1) -%}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for message in messages -%}
{%- set content = message.content -%}
{%- if message.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif -%}
{{- content + '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
BARE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
MERGING = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '[ASK]' + (messages[0].content + '\n' if loop.last or messages[0].role == 'system' else '') -}}
{{- message.content + '[/ASK]' -}}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}{% endif -%}
{%- endfor -%}
"""
NO_SYSTEM = (
    """\
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif -%}
"""
    + CHATML
)
CLIPPING = CHATML.replace("message.content +", "message.content[:12] +")
REPEATING = CHATML + "{% if messages | length > 2 %}{{ messages[0].content }}{% endif %}"
CALLING = """\
{%- if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor -%}
{{ '<|im_end|>\n' }}{% endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role -}}
{%- if message.content %}{{ '\n' + message.content }}{% endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function if call.function else call -%}
{{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
TEMPLATES = {"chatml": CHATML, "llama_like": LLAMA_LIKE, "thinking": THINKING}
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|header|>",
    "<|header_ends|>",
    "<|turn_ends|>",
    "<|begin|>",
    "[ASK]",
    "[/ASK]",
]
TEXTS = [
    "What is the capital of France? Paris, of course. \n\n assistant user system Be kind.",
    "1 + 2 = 3 ### Ähm",
] * 4
QUESTION, ANSWER = ("user", "Which city?"), ("assistant", "Paris, of course.")
WORDS = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=12)
SAID = st.lists(st.one_of(WORDS, st.sampled_from([*SPECIAL, "<|im_", "end|>", "\n", " ", "{{ x }}"])), min_size=1).map(
    "".join
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Return a folder of a tokenizer that has all special tokens, with a template."""
    trained = tokens.train_tokenizer(TEXTS, "byte_bpe", 330)
    # Line ends are words of their own, as in the tokenizers of today's chat models.
    words = pre_tokenizers.Split(Regex(r"\s*\n+| ?[^\s]+|\s"), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trained.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    trained.add_tokens(["<think>", "</think>"])

    def make(template):
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trained, eos_token=tokens.EOS, bos_token="<|begin|>", pad_token=tokens.PAD
        )
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def opened(folder_of):
    """Return what is opened of every template: its folder, the template, the tokenizer, and transformers' own."""
    found = {}
    for name, template in TEMPLATES.items():
        folder = folder_of(template)
        found[name] = (ChatTemplate(folder), ExampleTokenizer(folder), AutoTokenizer.from_pretrained(folder))
    return found


def messages_of(turns):
    return [{"role": role, "content": content} for role, content in turns]


def tokenize(template, tokenizer, turns, max_tokens=10_000):
    (example,) = tokenizer.tokenize_chats([template.render(turns)], max_tokens)
    return example


def counted(example, theirs):
    """Return the text of every span, special tokens included."""
    spans = zip(example.response_start, example.response_stop, strict=True)
    return [theirs.decode(example.input_ids[start:stop]) for start, stop in spans]


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversation_gets_the_tokens_that_transformers_gives_it(opened, name):
    template, tokenizer, theirs = opened[name]
    turns = [("system", "Be brief."), QUESTION, ANSWER, ("user", "And 1 + 2?"), ("assistant", "3 ")]
    ours = tokenize(template, tokenizer, turns).input_ids
    whole = theirs.apply_chat_template(messages_of(turns), return_dict=False)
    assert whole[: len(ours)] == ours
    assert theirs.decode(whole[len(ours) :]).strip() == ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_comes_before_an_answer_is_what_a_generating_model_is_given(opened, name):
    template, tokenizer, theirs = opened[name]
    turns = [QUESTION, ("assistant", "\n3")]
    example = tokenize(template, tokenizer, turns)
    given = theirs.apply_chat_template(messages_of(turns[:-1]), add_generation_prompt=True, return_dict=False)
    assert example.input_ids[: example.response_start[-1]] == given


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", ["Paris, of course.<|im_end|>", "3<|im_end|>"]),
        ("llama_like", ["Paris, of course.<|turn_ends|>", "3<|turn_ends|>"]),
        ("thinking", ["Paris, of course.<|im_end|>", "<think>\n\n</think>\n\n3<|im_end|>"]),
    ],
)
def test_loss_counts_every_answer_with_the_token_that_ends_it(opened, name, expected):
    template, tokenizer, theirs = opened[name]
    example = tokenize(template, tokenizer, [QUESTION, ANSWER, ("user", "And 1 + 2?"), ("assistant", "3")])
    assert counted(example, theirs) == expected
    assert theirs.convert_ids_to_tokens(example.input_ids[-1:]) == [template.turn_end]


def test_template_that_asks_for_the_date_gets_the_same_one_every_day(folder_of):
    folder = folder_of(LLAMA_LIKE.replace("bos_token", "strftime_now('%d %b %Y')"))
    assert ChatTemplate(folder).render([QUESTION, ANSWER]).text.startswith("26 Jul 2024<|header|>user")
    folder = folder_of(LLAMA_LIKE.replace("bos_token", "strftime_now('%Y-%m-%d')"))
    assert ChatTemplate(folder).render([QUESTION, ANSWER]).text.startswith("2024-07-26<|header|>user")


def test_answer_that_the_template_trims_is_found(opened):
    template, tokenizer, theirs = opened["llama_like"]
    example = tokenize(template, tokenizer, [("user", "  Which? \n"), ("assistant", "\n Paris \n")])
    assert counted(example, theirs) == ["Paris<|turn_ends|>"]


def test_thought_counts_where_the_template_keeps_it_and_is_gone_where_it_does_not(opened):
    template, tokenizer, theirs = opened["thinking"]
    turns = [QUESTION, ("assistant", "<think>\nhm\n</think>\n\nParis"), ("user", "1 + 2?")]
    example = tokenize(template, tokenizer, [*turns, ("assistant", "<think>\nadd\n</think>\n\n3")])
    assert counted(example, theirs) == ["Paris<|im_end|>", "<think>\nadd\n</think>\n\n3<|im_end|>"]


@pytest.mark.parametrize("name", TEMPLATES)
@given(system=st.none() | SAID, said=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_hostile_texts_stay_texts_and_leave_the_answers_where_they_are(opened, name, system, said):
    template, tokenizer, theirs = opened[name]
    turns = [] if system is None else [("system", system)]
    turns += [turn for question, answer in said for turn in (("user", question), ("assistant", answer))]
    tame = [(role, "x") for role, _ in turns]
    example, like = tokenize(template, tokenizer, turns), tokenize(template, tokenizer, tame)
    special = set(theirs.all_special_ids) | set(theirs.convert_tokens_to_ids(SPECIAL))
    assert [i for i in example.input_ids if i in special] == [i for i in like.input_ids if i in special]
    for (_, answer), text in zip(said, counted(example, theirs), strict=True):
        shown = text.removeprefix("<think>\n\n</think>\n\n")
        if name == "llama_like":
            assert shown == f"{answer.strip()}{template.turn_end}"
        else:
            assert shown == f"{answer}{template.turn_end}"


def test_calls_of_tools_are_learned_and_what_the_tools_say_is_not(folder_of):
    folder = folder_of(CALLING)
    template, theirs = ChatTemplate(folder), AutoTokenizer.from_pretrained(folder)
    turns = [
        ("tools", '[{"type": "function", "function": {"name": "add", "description": "<|im_end|>"}}]'),
        ("user", "1 + 2?"),
        ("tool_calls", '[{"name": "add", "arguments": "{\\"a\\": \\"<|im_end|>\\"}"}]'),
        ("tool", "3"),
        ("assistant", "One more."),
        ("tool_calls", '[{"function": {"name": "a", "arguments": {}}}, {"function": {"name": "b", "arguments": {}}}]'),
        ("tool", "4"),
        ("assistant", "4"),
    ]
    example = tokenize(template, ExampleTokenizer(folder), turns)
    text = theirs.decode(example.input_ids)
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "add", "description"')
    assert counted(example, theirs) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": "<|im_end|>"}}\n</tool_call><|im_end|>',
        'One more.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "b", '
        '"arguments": {}}\n</tool_call><|im_end|>',
        "4<|im_end|>",
    ]
    (end,) = theirs.convert_tokens_to_ids(["<|im_end|>"])
    assert example.input_ids.count(end) == 7


def test_second_half_of_an_alpaca_prompt_belongs_to_the_question(opened):
    template, tokenizer, theirs = opened["chatml"]
    example = tokenize(template, tokenizer, [("user", "Add."), ("input", "1 2"), ("assistant", "3")])
    assert "<|im_start|>user\nAdd.\n1 2<|im_end|>" in theirs.decode(example.input_ids)


def test_cut_example_keeps_the_spans_that_are_left(opened):
    template, tokenizer, _ = opened["chatml"]
    turns = [QUESTION, ANSWER, ("user", "And?"), ("assistant", "3")]
    whole = tokenize(template, tokenizer, turns)
    cut = tokenize(template, tokenizer, turns, max_tokens=whole.response_start[0] + 1)
    assert cut.truncated
    assert cut.num_response_tokens == 1


def test_template_without_an_end_of_turn_gets_the_end_of_sequence_token(folder_of):
    folder = folder_of(BARE)
    template, theirs = ChatTemplate(folder), AutoTokenizer.from_pretrained(folder)
    example = tokenize(template, ExampleTokenizer(folder), [QUESTION, ANSWER, QUESTION, ANSWER])
    assert template.turn_end is None
    assert counted(example, theirs) == [" Paris, of course.", f" Paris, of course.{tokens.EOS}"]


def test_system_text_that_the_template_moves_is_no_loss(folder_of):
    folder = folder_of(MERGING)
    template, theirs = ChatTemplate(folder), AutoTokenizer.from_pretrained(folder)
    example = tokenize(template, ExampleTokenizer(folder), [("system", "Be brief."), QUESTION, ANSWER])
    assert theirs.decode(example.input_ids) == f"[ASK]Be brief.\nWhich city?[/ASK] Paris, of course.{tokens.EOS}"
    assert counted(example, theirs) == [f" Paris, of course.{tokens.EOS}"]  # the space is of the first token


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (NO_SYSTEM, [("system", "Hi"), QUESTION, ANSWER], "no system role here"),
        (CLIPPING, [QUESTION, ("assistant", "Paris, the city of light")], "changes texts"),
        (CHATML, [("user", "\U000f0000"), ANSWER], "private use"),
        (REPEATING, [QUESTION, ("user", "Well?"), ANSWER], "repeats a turn"),
        (MERGING, [QUESTION, ANSWER, ("tool", "42"), ("user", "So?"), ANSWER], "leaves out turn 3 (tool)"),
    ],
)
def test_conversation_that_the_template_does_not_carry_is_refused_with_a_reason(folder_of, template, turns, reason):
    opened = ChatTemplate(folder_of(template))
    with pytest.raises(UnusableChatError) as caught:
        opened.render(turns)
    assert reason in str(caught.value)


def test_template_that_takes_no_question_and_answer_is_refused_when_it_is_opened(folder_of):
    with pytest.raises(ConfigError, match="never"):
        ChatTemplate(folder_of("{{ raise_exception('never') }}"))


def test_tokenizer_without_a_template_is_refused_with_the_way_out(folder_of):
    with pytest.raises(ConfigError, match=r"no chat template.*alpaca"):
        ChatTemplate(folder_of(None))


def test_template_with_several_variants_is_read_by_its_default(folder_of):
    folder: Path = folder_of({"default": CHATML, "tool_use": BARE})
    assert ChatTemplate(folder).turn_end == "<|im_end|>"
