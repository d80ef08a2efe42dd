"""How a model computes: attention that was asked for and gives the same, and what an architecture cannot do."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from s2l_ray.computation import FLASH, memory_checked, recompute_activations, set_attention
from s2l_ray.errors import ConfigError
from s2l_ray.models import load_model
from s2l_ray.storage import Storage
from tests.unit import tiny

IDS_BL = torch.arange(2, 26).reshape(2, 12)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS_BL).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "gpt2"])
def test_attention_is_the_one_asked_for_and_computes_what_transformers_does_with_it(tmp_path, model_type, attention):
    model = tiny.model(model_type, scale=2.0).eval()
    model.save_pretrained(tmp_path)
    before = logits_of(model)
    set_attention(model, attention, in_bf16=False)
    assert model.config._attn_implementation == attention
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    torch.testing.assert_close(logits_of(model), logits_of(oracle), rtol=0, atol=0)
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["auto", FLASH])
def test_auto_and_flash_attention_in_fp32_leave_a_model_as_it_is(attention):
    model = tiny.model()
    before = model.config._attn_implementation
    set_attention(model, attention, in_bf16=False)
    assert model.config._attn_implementation == before


def test_attention_that_a_model_cannot_compute_with_is_a_config_error():
    with pytest.raises(ConfigError, match=f"does not compute with {FLASH}.*Set `auto`"):
        set_attention(tiny.model(), FLASH, in_bf16=True)  # the package is not there


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_trained_model_is_asked_with_the_attention_of_its_training(tmp_path, attention):
    tiny.model().save_pretrained(tmp_path / "model")
    output = tiny.begun(Storage(str(tmp_path / "storage")), "target")
    artifact = tiny.commit(output, output.add_folder(tmp_path / "model", "model"), summary={"attention": attention})
    assert load_model(artifact, "model").config._attn_implementation == attention


def test_architecture_that_cannot_compute_activations_again_is_refused():
    model = tiny.model()
    type(model).supports_gradient_checkpointing = False
    try:
        with pytest.raises(ConfigError, match="gradient_checkpointing"):
            recompute_activations(model)
    finally:
        del type(model).supports_gradient_checkpointing


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA: out of memory. Tried to have 9 GiB.\nmore"),
            "Tried to have 9 GiB. Lower",
        ),
        (MemoryError(7), "example 7 alone does not fit. Lower"),
        (MemoryError(), "the machine has no more. Lower"),
        (RuntimeError("CUDA error: out of memory\nmore"), "CUDA error: out of memory. Lower"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "CUBLAS_STATUS_ALLOC_FAILED"),
        (
            torch.distributed.DistBackendError("NCCL error in: x, Cuda failure 2 'out of memory'"),
            "Cuda failure 2 'out of memory'",
        ),
    ],
)
def test_too_little_memory_is_a_config_error_that_says_what_to_change(error, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught, memory_checked("Lower score.batch_tokens."):
        raise error
    assert "more\n" not in str(caught.value)


def test_other_faults_are_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="another"), memory_checked("Lower it."):
        raise RuntimeError("another")
