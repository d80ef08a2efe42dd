"""Per-example gradients against torch on transformers' own loss, and sketches against the gradients they stand for."""

import numpy as np
import pytest
import torch

from s2l_ray import gradients
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.gradients import example_gradients
from tests.unit import tiny

CPU = torch.device("cpu")
KINDS = {
    "gpt_neox": {},
    "llama tied": {"tie_word_embeddings": True},
    "gpt2": {},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8, "num_key_value_heads": 2},
}


def build(name="gpt_neox"):
    return tiny.model(name.split()[0], scale=3.0, **KINDS[name])


def oracle(model, rows):
    """Gradients of transformers' own mean loss of every example, alone and unpadded."""
    out = []
    for n in range(len(rows)):
        batch = rows.batch([n], 0)
        ids = torch.from_numpy(batch.input_ids_BL)
        model.zero_grad()
        model(input_ids=ids, labels=ids.masked_fill(~torch.from_numpy(batch.response_BL), -100)).loss.backward()
        out.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad]))
    model.zero_grad()
    return torch.stack(out).numpy()


def compute(model, rows, **changes):
    return example_gradients(model, rows, pad_id=0, device=CPU, **changes)


def sketches(model, rows, monkeypatch, **changes):
    monkeypatch.setattr(gradients, "EXACT_PARAMETERS", 100)
    sketch_MD, exact = compute(model, rows, **changes)
    assert not exact
    return sketch_MD.astype(np.float64)


def cosines(gradient_MD):
    unit_MD = gradient_MD / np.linalg.norm(gradient_MD, axis=1, keepdims=True)
    return unit_MD @ unit_MD.T


@pytest.mark.parametrize("name", KINDS)
def test_example_gradients_are_those_of_transformers_own_loss(name):
    model, rows = build(name), tiny.rows(8)
    expected_MD = oracle(model.eval(), rows)
    gradient_MD, exact = compute(model, rows)
    assert exact
    assert gradient_MD.dtype == np.float32
    np.testing.assert_allclose(gradient_MD, expected_MD, rtol=1e-3, atol=2e-5)
    assert np.linalg.norm(expected_MD, axis=1).min() > 0.1


def test_example_gradients_leave_the_model_as_it_was_and_dropout_out():
    model, rows = build("gpt2").train(), tiny.rows(4)
    assert model.config.resid_pdrop > 0
    gradient_MD, _ = compute(model, rows)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    np.testing.assert_allclose(gradient_MD, oracle(build("gpt2").eval(), rows), rtol=1e-3, atol=2e-5)


def test_example_gradients_are_of_the_trainable_parameters_only():
    model, rows = build(), tiny.rows(3)
    model.get_input_embeddings().requires_grad_(False)
    gradient_MD, _ = compute(model, rows)
    assert gradient_MD.shape[1] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    np.testing.assert_allclose(gradient_MD, oracle(model.eval(), rows), rtol=1e-3, atol=2e-5)


def test_example_gradients_report_every_row():
    done = []
    compute(build(), tiny.rows(3), on_row=done.append)
    assert done == [0, 1, 2]


def test_gradients_that_together_are_too_large_are_sketched(monkeypatch):
    model, rows = build(), tiny.rows(3)
    n_parameters = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(gradients, "EXACT_BYTES", 3 * n_parameters * 4)
    assert compute(model, rows, sketch_dims=64)[0].shape == (3, n_parameters)
    monkeypatch.setattr(gradients, "EXACT_BYTES", 3 * n_parameters * 4 - 1)
    sketch_MD, exact = compute(model, rows, sketch_dims=64)
    assert (sketch_MD.shape, exact) == ((3, 64), False)


def test_sketch_cosines_are_near_the_exact_ones(monkeypatch):
    model, rows, dims = build(), tiny.rows(12), 4096
    exact_MM = cosines(compute(model, rows)[0].astype(np.float64))
    error_MM = cosines(sketches(model, rows, monkeypatch, sketch_dims=dims)) - exact_MM
    assert np.abs(error_MM).max() < 5 * np.sqrt(2 / dims)
    assert np.abs(error_MM).max() > 0


def test_sketch_inner_products_are_unbiased_over_seeds(monkeypatch):
    model, rows, dims, repeats = build(), tiny.rows(4), 64, 80
    unit_MD = compute(model, rows)[0].astype(np.float64)
    norm_M = np.linalg.norm(unit_MD, axis=1)
    exact_MM = cosines(unit_MD)
    found = np.stack(
        [
            (s @ s.T) / np.outer(norm_M, norm_M)
            for s in (sketches(model, rows, monkeypatch, sketch_dims=dims, seed=seed) for seed in range(repeats))
        ]
    )
    bound_MM = np.sqrt((1 + exact_MM**2) / dims)
    assert (np.abs(found.mean(axis=0) - exact_MM) < 5 * bound_MM / np.sqrt(repeats)).all()
    # The stated standard error is an upper bound, and not far from what is found.
    assert (found.std(axis=0) < 1.25 * bound_MM).all()
    assert (found.std(axis=0)[~np.eye(4, dtype=bool)] > 0.5 / np.sqrt(dims)).all()


def test_sketch_of_coordinates_of_one_sign_keeps_their_length():
    # Without signs, 64 buckets of 200 ones each would make a squared length of 2,560,000.
    sketch_D = gradients._CountSketch([6400, 6400], 64, 0, CPU)([torch.ones(6400), torch.ones(6400)])
    assert np.square(sketch_D).sum() == pytest.approx(12800, rel=5 * np.sqrt(2 / 64))


def test_sketch_is_a_function_of_the_seed(monkeypatch):
    model, rows = build(), tiny.rows(4)
    first = sketches(model, rows, monkeypatch, sketch_dims=128, seed=3)
    assert sketches(model, rows, monkeypatch, sketch_dims=128, seed=3).tolist() == first.tolist()
    assert sketches(model, rows, monkeypatch, sketch_dims=128, seed=4).tolist() != first.tolist()
    alone = sketches(model, rows.take(rows.example_id_N[2:3]), monkeypatch, sketch_dims=128, seed=3)
    assert alone[0].tolist() == first[2].tolist()


def test_sketch_drawn_anew_for_every_example_is_the_same(monkeypatch):
    model, rows = build(), tiny.rows(4)
    kept = sketches(model, rows, monkeypatch, sketch_dims=128)
    monkeypatch.setattr(gradients, "SKETCH_BYTES", 0)
    assert sketches(model, rows, monkeypatch, sketch_dims=128).tolist() == kept.tolist()
    monkeypatch.setattr(gradients, "SKETCH_CHUNK", 100)
    np.testing.assert_allclose(sketches(model, rows, monkeypatch, sketch_dims=128), kept, rtol=1e-4, atol=1e-5)


def test_sketch_draws_other_buckets_for_every_parameter():
    sketch = gradients._CountSketch([1000, 1000], 512, 0, CPU)
    slots = sketch._slots(0, 0, 1000).tolist()
    assert sketch._slots(1, 0, 1000).tolist() != slots
    assert gradients._CountSketch([1000], 512, 0, CPU)._slots(0, 300, 700).tolist() == slots[300:700]


def test_sketch_draws_every_slot_equally_often():
    slots = gradients._CountSketch([2**20], 512, 7, CPU)._slots(0, 0, 2**20).numpy()
    count = np.bincount(slots, minlength=1024)
    assert len(count) == 1024
    expected = 2**20 / 1024
    assert abs(np.square(count - expected).sum() / expected - 1023) < 5 * np.sqrt(2 * 1023)


def test_gradient_that_is_not_finite_names_its_example():
    model, rows = build(), tiny.rows(3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError) as caught:
        compute(model, rows.take(rows.example_id_N[1:]))
    assert caught.value.example_ids == (1,)


def test_a_row_that_does_not_fit_is_named(monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.autograd, "grad", out_of_memory)
    rows = tiny.rows(3)
    with pytest.raises(MemoryError, match=r"^2$"):
        compute(build(), rows.take(rows.example_id_N[2:]))


def test_nothing_to_differentiate_and_a_sketch_of_nothing_are_refused():
    with pytest.raises(ConfigError):
        compute(build().requires_grad_(False), tiny.rows(1))
    with pytest.raises(ConfigError):
        compute(build(), tiny.rows(1), sketch_dims=0)
