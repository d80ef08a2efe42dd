"""Low-rank adapters: merged into the weights they compute what they did beside them; peft loads them alone."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from s2l_ray.adapters import SETTINGS, add_adapter, merged, save_adapter
from s2l_ray.config import LoraConfig, ModelConfig
from s2l_ray.errors import ConfigError
from s2l_ray.models import save_model
from s2l_ray.plan import fetch_models
from tests.unit import tiny

SHAPES = {
    "gpt_neox": {},
    "gpt2": {},
    "llama": {"tie_word_embeddings": True},
    "phi": {"num_key_value_heads": 1},
    "phi3": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8},
}
IDS_BL = torch.arange(2, 38).reshape(3, 12)


def built(model_type, seed=0):
    return tiny.model(model_type, seed=seed, scale=2.0, **SHAPES[model_type]).eval()


def trained(model_type, lora):
    """A model whose adapter says something."""
    model = built(model_type)
    add_adapter(model, lora, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return model.eval()


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS_BL).logits


@pytest.mark.parametrize("model_type", SHAPES)
def test_new_adapter_says_nothing_and_is_all_that_is_trained(model_type):
    model, plain = built(model_type), built(model_type)
    add_adapter(model, LoraConfig(rank=3), 0)
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=0, atol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert trained == {name for name in model.state_dict() if ".lora_" in name}


@pytest.mark.parametrize("model_type", SHAPES)
def test_merged_folder_and_adapter_alone_compute_what_the_trained_model_does(tmp_path, model_type):
    from peft import PeftModel

    model = trained(model_type, LoraConfig(rank=3, alpha=5))
    expected = logits_of(model)
    assert (expected - logits_of(built(model_type))).abs().max() > 0.1
    save_model(model, merged(model, model.state_dict()), tmp_path / "model")
    save_adapter(model, model.state_dict(), ModelConfig(model="org/base", revision="a" * 40), tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-5)
    by_peft = PeftModel.from_pretrained(built(model_type), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(by_peft), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_of(by_peft.merge_and_unload()), logits_of(loaded), rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", "a" * 40)
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_adapter_follows_from_its_seed():
    first, same, other = (built("llama") for _ in range(3))
    for model, seed in ((first, 0), (same, 0), (other, 1)):
        add_adapter(model, LoraConfig(), seed)
    name = next(name for name in first.state_dict() if ".lora_A." in name)
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_named_layers_get_an_adapter_and_no_others(tmp_path):
    model = built("llama")
    add_adapter(model, LoraConfig(target_modules=("q_proj", "v_proj")), 0)
    save_adapter(model, model.state_dict(), ModelConfig(model="org/base"), tmp_path)
    assert {name.split(".")[-3] for name in load_file(tmp_path / "adapter_model.safetensors")} == {"q_proj", "v_proj"}


def test_an_adapter_of_all_linear_layers_leaves_the_head_alone():
    model = built("gpt_neox")
    add_adapter(model, LoraConfig(), 0)
    assert not [name for name in model.state_dict() if "lora" in name and "layers" not in name]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("c_attn",), ("found ('c_attn',)", "q_proj", "all-linear")),
        (("embed_tokens",), ("embed_tokens is no linear layer", "q_proj")),
        (("lm_head",), ("lm_head shares its weights with the embedding",)),
    ],
)
def test_layers_that_can_have_no_adapter_are_refused_with_those_that_can(names, words):
    with pytest.raises(ConfigError) as caught:
        add_adapter(built("llama"), LoraConfig(target_modules=names), 0)
    assert str(caught.value).startswith("target.lora.target_modules")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_layers_that_the_target_lacks_are_said_before_anything_runs(tmp_path, is_pretrained):
    tiny.model("llama").save_pretrained(tmp_path)
    model = str(tmp_path) if is_pretrained else "{model_type: llama, hidden_size: 8, num_hidden_layers: 1, "
    model += "" if is_pretrained else "num_attention_heads: 2}"
    proxy = "proxy: {model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}}\n"
    text = f"{tiny.SYNTHETIC}tokens: {{max_tokens: 32}}\n{proxy}target: {{model: {model}}}\n"
    with pytest.raises(ConfigError, match="query_key_value"):
        fetch_models(tiny.parse(text, "target.lora={target_modules: [query_key_value]}"))
    fetch_models(tiny.parse(text, "target.lora={target_modules: [q_proj]}"))
