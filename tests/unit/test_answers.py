"""Answers against transformers' own greedy generation."""

from itertools import takewhile

import numpy as np
import pytest
import torch

from s2l_ray.answers import before_stop, generate_greedily, is_exact_match, prompts_and_answers
from tests.unit import tiny

CPU = torch.device("cpu")
EOS = 1


def prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, tiny.VOCAB, length).astype(np.int32) for length in lengths]


def generate(model, given, max_new_tokens=8, batch_tokens=64, stop_ids=(EOS,), **more):
    return generate_greedily(
        model, given, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, stop_ids=stop_ids, device=CPU, **more
    )


def oracle(model, prompt, max_new_tokens=8, stop_ids=(EOS,)):
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
    )[0, len(prompt) :].tolist()
    return list(takewhile(lambda token: token not in stop_ids, out))


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "gpt2", "qwen2", "bloom", "opt"])
def test_generate_greedily_is_transformers_greedy_search(model_type):
    extra = {"num_key_value_heads": 2} if model_type == "qwen2" else {}
    model = tiny.model(model_type, scale=4.0, **extra).eval()
    given = prompts([5, 3, 5, 1, 9, 3, 5, 12])
    expected = [oracle(model, prompt) for prompt in given]
    assert len({tuple(answer) for answer in expected}) > 2
    for batch_tokens in (1, 30, 10_000):
        assert generate(model, given, batch_tokens=batch_tokens) == expected


def test_generate_greedily_stops_at_eos_and_leaves_it_out():
    model = tiny.model("gpt_neox", scale=4.0).eval()
    given = prompts([4, 4, 4, 4, 6])
    free = [oracle(model, prompt, stop_ids=(-1,)) for prompt in given]
    eos = free[0][3]
    answers = generate(model, given, stop_ids=(eos,))
    assert answers == [answer[: answer.index(eos)] if eos in answer else answer for answer in free]
    assert len(answers[0]) <= 3
    assert {len(answer) for answer in answers} != {len(answers[0])}


def test_generate_greedily_stops_at_whichever_end_comes_first():
    model = tiny.model("gpt_neox", scale=4.0).eval()
    given = prompts([4, 6, 5])
    ends = tuple({oracle(model, prompt, stop_ids=(-1,))[2] for prompt in given})
    assert generate(model, given, stop_ids=ends) == [oracle(model, prompt, stop_ids=ends) for prompt in given]


def test_generate_greedily_when_all_end_at_once_no_more_is_computed():
    model = tiny.model("gpt_neox").eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert generate(model, prompts([4, 4]), stop_ids=(0,)) == [[], []]
    assert len(calls) == 1


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2"])
def test_generate_greedily_stays_within_the_models_positions(model_type):
    model = tiny.model(model_type, scale=4.0).eval()
    limit = tiny.MAX_TOKENS
    lengths = [limit - 1, limit, limit - 5, 3]
    given = prompts(lengths)
    answers = generate(model, given, max_new_tokens=20, stop_ids=(-1,))
    assert [len(answer) for answer in answers] == [1, 0, 5, 20]
    assert [oracle(model, p, len(a), (-1,)) for p, a in zip(given, answers, strict=True) if a] == [
        a for a in answers if a
    ]


def test_generate_greedily_dropout_is_off():
    model = tiny.model("gpt2", scale=4.0).train()
    given = prompts([5, 7])
    assert generate(model, given) == [oracle(tiny.model("gpt2", scale=4.0).eval(), prompt) for prompt in given]


def test_generate_greedily_ends_once_every_answer_of_a_batch_has_ended():
    model = tiny.model("gpt_neox", scale=4.0).eval()
    given = prompts([4, 4, 4])
    free = generate(model, given, stop_ids=(-1,))
    found = generate(model, given, stop_ids=(-1,), is_ended=lambda ids: len(ids) >= 3)
    assert found == [answer[:3] for answer in free]
    alone = free[0]
    found = generate(model, given, stop_ids=(-1,), is_ended=lambda ids: ids[:2] == alone[:2])
    assert [answer[: len(other)] for answer, other in zip(free, found, strict=True)] == found


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("18\n\nQuestion: and 5?", ["\n\n", "Question:"], "18"),
        ("18 Question: and\n\n", ["\n\n", "Question:"], "18 "),
        ("18", ["\n"], "18"),
        ("18\n", [], "18\n"),
        ("stop here", ["stop"], ""),
    ],
)
def test_before_stop_is_what_precedes_the_first_of_them(text, stops, kept):
    assert before_stop(text, stops) == kept


def test_generate_greedily_without_prompts():
    assert generate(tiny.model("gpt_neox"), []) == []


def test_prompts_and_answers_cut_before_the_last_response():
    rows = tiny.rows_of([([5, 6, 7, 8, 9], [(1, 2), (3, 5)]), ([5, 6], [(1, 2)])])
    given, answers = prompts_and_answers(rows.take(np.array([1, 0])))
    assert [p.tolist() for p in given] == [[5], [5, 6, 7]]
    assert [a.tolist() for a in answers] == [[6], [8, 9]]


@pytest.mark.parametrize(
    ("prediction", "expected", "same"),
    [
        ("42", "42", True),
        (" 42\n", "42", True),
        ("a  b\tc", "a b c", True),
        ("a\u00a0b", "a b", True),
        ("", "", True),
        ("", "  ", True),
        ("42", "42.0", False),
        ("Paris", "paris", False),
        ("Paris.", "Paris", False),
        ("ab", "a b", False),
        ("a b c", "a b", False),
        ("", "0", False),
    ],
)
def test_is_exact_match_all_but_white_space_counts(prediction, expected, same):
    assert is_exact_match(prediction, expected) is same
    assert is_exact_match(expected, prediction) is same
