"""Losses against transformers' own at batch size 1, for heads that are plain and heads that are not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray import losses
from s2l_ray.losses import LOSS_GRID, head_is_plain, mean_hidden_states, mean_losses, response_loss_module, to_tensors
from tests.unit import tiny

CPU = torch.device("cpu")
PLAIN = {
    "gpt_neox": {},
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "gpt2": {},
    "qwen2": {"num_key_value_heads": 1},
    "phi": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_bigcode": {},
}
NOT_PLAIN = {
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8, "num_key_value_heads": 2},
    "cohere": {"logit_scale": 0.25, "num_key_value_heads": 2},
    "granite": {"logits_scaling": 4.0, "num_key_value_heads": 2},
}
ALL = PLAIN | NOT_PLAIN


def build(name, seed=0):
    # Larger weights than at the start of training: the tiny logits of a fresh model hide a softcap.
    return tiny.model(name.split()[0], seed=seed, scale=3.0, **ALL[name]).eval()


def oracle(model, rows):
    """transformers' own mean loss of every example, alone and unpadded."""
    out = []
    with torch.no_grad():
        for n in range(len(rows)):
            batch = rows.batch([n], 0)
            ids = torch.from_numpy(batch.input_ids_BL)
            labels = ids.masked_fill(~torch.from_numpy(batch.response_BL), -100)
            out.append(float(model(input_ids=ids, labels=labels).loss))
    return np.array(out)


def score(model, rows, batch_tokens=200, module=None):
    module = module or response_loss_module(model)
    return mean_losses(module, rows, batch_tokens=batch_tokens, pad_id=0, device=CPU, bf16=False)


@pytest.mark.parametrize("name", ALL)
def test_mean_losses_are_transformers_own(name):
    model, rows = build(name), tiny.rows(24)
    expected = oracle(model, rows)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(score(model, rows), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_head_is_plain_knows_what_follows_the_head(name):
    assert head_is_plain(build(name)) == (name in PLAIN)


def test_head_is_plain_sees_a_cap_that_small_logits_hide():
    model = tiny.model("gemma2", head_dim=8, num_key_value_heads=2)
    assert model.config.final_logit_softcapping == 30.0
    assert not head_is_plain(model)


def test_head_is_plain_leaves_the_model_as_it_was():
    model = tiny.model("gpt2").train()
    head_is_plain(model)
    assert model.training
    assert not model.get_output_embeddings()._forward_hooks


def test_losses_lie_on_the_grid():
    for loss_N in (score(build("gpt_neox"), tiny.rows(40)), score(build("llama"), tiny.rows(40))):
        multiples = loss_N.astype(np.float64) / LOSS_GRID
        assert loss_N.dtype == np.float32
        assert (multiples == np.round(multiples)).all()


@given(seed=st.integers(0, 50), batch_tokens=st.sampled_from([1, 33, 100, 1000]))
@settings(max_examples=15, deadline=None)
def test_a_loss_does_not_depend_on_the_batch_it_shares(seed, batch_tokens):
    model, rows = build("gpt_neox"), tiny.rows(20, seed)
    alone = score(model, rows, batch_tokens=1)
    order = np.random.default_rng(seed).permutation(len(rows))[:13]
    together = score(model, rows.take(rows.example_id_N[order]), batch_tokens)
    np.testing.assert_allclose(together, alone[order], rtol=0, atol=1e-5)


def test_the_same_rows_give_the_same_bits_in_any_order():
    model, rows = build("gpt_neox"), tiny.rows(30)
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = score(model, rows.take(rows.example_id_N[order]), 100)
    assert shuffled.tobytes() == score(model, rows, 100)[order].tobytes()


def test_chunks_of_the_head_change_nothing(monkeypatch):
    model, rows = build("gpt_neox"), tiny.rows(30)
    whole = score(model, rows, 10_000)
    monkeypatch.setattr(losses, "HEAD_CHUNK", 7)
    np.testing.assert_allclose(score(model, rows, 10_000), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["gpt_neox", "llama tied", "phi"])
@pytest.mark.parametrize("tile", [1, 7, 10_000])
def test_tiles_of_the_vocabulary_change_nothing(name, tile, monkeypatch):
    model, rows = build(name), tiny.rows(30)
    monkeypatch.setattr(losses, "VOCABULARY_TILE", tile)
    np.testing.assert_allclose(score(model, rows, 10_000), oracle(model, rows), rtol=0, atol=1e-5)


def test_a_loss_that_is_no_number_stays_one_in_tiles(monkeypatch):
    monkeypatch.setattr(losses, "VOCABULARY_TILE", 7)
    model, rows = tiny.model("gpt_neox"), tiny.rows(10)
    with torch.no_grad():
        model.get_output_embeddings().weight[9] = torch.nan
    assert np.isnan(score(model, rows)).all()


def test_dropout_is_off_while_scoring():
    model, rows = tiny.model("gpt2").train(), tiny.rows(10)
    assert model.config.resid_pdrop > 0
    expected = oracle(tiny.model("gpt2").eval(), rows)
    np.testing.assert_allclose(score(model, rows), expected, rtol=0, atol=1e-5)


# Out of memory


class Limited(torch.nn.Module):
    """Runs out of memory above a number of examples."""

    def __init__(self, inner, most):
        super().__init__()
        self.inner, self.most, self.calls = inner, most, []

    def forward(self, input_ids_BL, response_BL):
        self.calls.append(len(input_ids_BL))
        if len(input_ids_BL) > self.most:
            raise torch.OutOfMemoryError("injected")
        return self.inner(input_ids_BL, response_BL)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_out_of_memory_halves_the_batch(most):
    model, rows = build("gpt_neox"), tiny.rows(21)
    limited = Limited(response_loss_module(model), most)
    loss_N = score(model, rows, 10_000, limited)
    assert limited.calls[0] == 21
    assert sum(calls for calls in limited.calls if calls <= most) == 21
    np.testing.assert_allclose(loss_N, oracle(model, rows), rtol=0, atol=1e-5)


def test_out_of_memory_with_one_example_names_it():
    model, rows = build("gpt_neox"), tiny.rows(5)
    ids = np.arange(5) + 2**40
    rows = type(rows)(ids, rows.token, rows.token_offset, rows.span, rows.span_offset, rows.num_response_tokens_N)
    with pytest.raises(MemoryError) as caught:
        score(model, rows, 10_000, Limited(response_loss_module(model), 0))
    assert caught.value.args[0] in ids.tolist()


def test_another_error_is_not_taken_for_memory():
    class Broken(torch.nn.Module):
        def forward(self, *_):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        score(None, tiny.rows(3), 100, Broken())


# NaN


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_no_number_stays_so_and_touches_no_other(value):
    class OneBad(torch.nn.Module):
        def forward(self, input_ids_BL, response_BL):
            loss_B = response_BL.sum(dim=1).float()
            return loss_B.where(input_ids_BL[:, 0] != 39, torch.tensor(value))

    rows = tiny.rows_of([([5, 6, 7], [(1, 3)]), ([39, 6], [(1, 2)]), ([5, 6], [(1, 2)])])
    np.testing.assert_array_equal(score(None, rows, 100, OneBad()), np.array([1, value, 1], np.float32))


def test_nan_weights_give_nan_losses():
    model = build("gpt_neox")
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    assert np.isnan(score(model, tiny.rows(5))).all()


# Gradient


@pytest.mark.parametrize("name", ["gpt_neox", "llama tied", "gpt2", "gemma2"])
def test_gradient_is_that_of_the_full_logits(name):
    model, rows = build(name), tiny.rows(6)
    ids_BL, response_BL = to_tensors(rows.batch(range(6), 0), CPU)

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    ours = gradients(response_loss_module(model)(ids_BL, response_BL).sum())
    logits_NV = model(input_ids=ids_BL).logits[:, :-1].flatten(0, 1)
    labels_N = ids_BL.masked_fill(~response_BL, -100)[:, 1:].flatten()
    theirs = gradients(torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum"))
    largest = max(float(g.abs().max()) for g in theirs)
    assert largest > 0.1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * largest)


def test_an_example_without_response_has_loss_zero_and_no_gradient():
    module = response_loss_module(build("gpt_neox"))
    loss_B = module(torch.full((2, 3), 5), torch.zeros((2, 3), dtype=torch.bool))
    assert loss_B.tolist() == [0.0, 0.0]
    loss_B.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2"])
def test_mean_hidden_states_are_transformers_own(name):
    model = tiny.model(name, scale=3.0).eval()
    rows = tiny.rows(20, seed=4)
    found = mean_hidden_states(model, rows, batch_tokens=64, pad_id=0, device=torch.device("cpu"), bf16=False)
    for n in range(len(rows)):
        ids = torch.from_numpy(rows.token[rows.token_offset[n] : rows.token_offset[n + 1]].astype(np.int64))
        with torch.no_grad():
            hidden_LD = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0].numpy()
        spans = rows.span[rows.span_offset[n] : rows.span_offset[n + 1]]
        response = np.concatenate([np.arange(start, stop) for start, stop in spans])
        assert found[n] == pytest.approx(hidden_LD[response].mean(axis=0), abs=1e-5)
    assert (found / LOSS_GRID == np.round(found / LOSS_GRID)).all()
