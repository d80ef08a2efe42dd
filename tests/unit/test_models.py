"""Models: built from a seed, loaded from safetensors alone, and every refusal with its own message."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from s2l_ray.config import ModelConfig
from s2l_ray.errors import ConfigError
from s2l_ray.models import (
    WEIGHTS,
    build_model,
    device_and_precision,
    load_model,
    save_model,
    save_stops,
)
from s2l_ray.plan import fetch_models
from s2l_ray.pretrained import check_fits, is_pretrained, pretrained_folder
from s2l_ray.storage import Storage
from tests.hub import GATED_MODEL, MODEL, hub
from tests.unit import tiny

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def fresh(model_type="gpt_neox", seed=0, **changes):
    config = ModelConfig(model={"model_type": model_type, **SHAPE, **changes})
    return build_model(config, key="proxy", vocab_size=40, max_tokens=16, eos_id=1, seed=seed)


def load(folder, vocab_size=40, max_tokens=16):
    config = ModelConfig(model=str(folder))
    return build_model(config, key="target", vocab_size=vocab_size, max_tokens=max_tokens, eos_id=1, seed=0)


def refused(call, *words):
    """Expect one short message that holds all words."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 700
    assert "Traceback" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    tiny.model("gpt_neox").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def committed(folder, storage, **summary):
    """A model folder as the artifact that training would make of it."""
    output = tiny.begun(Storage(str(storage)), "target")
    return tiny.commit(output, output.add_folder(folder, "model"), summary=summary)


# Fresh models


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "gpt2"])
def test_build_model_same_seed_same_weights_other_seed_others(model_type):
    first = fresh(model_type).state_dict()
    assert equal(first, fresh(model_type).state_dict())
    assert not equal(first, fresh(model_type, seed=1).state_dict())
    assert {tensor.dtype for tensor in first.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "gpt2", "qwen2", "mistral", "gemma2", "stablelm", "phi3"])
def test_build_model_has_the_shape_asked_for_and_runs(model_type):
    model = fresh(model_type)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 1, 4)
    assert getattr(config, "num_key_value_heads", 4) == 4
    assert getattr(config, "head_dim", 8) == 8
    assert config.eos_token_id == 1
    assert model.get_input_embeddings().weight.shape == (40, 32)
    assert model(input_ids=torch.zeros((1, 16), dtype=torch.long)).logits.shape == (1, 16, 40)


def test_build_model_from_three_token_ids_works():
    config = ModelConfig(model={"model_type": "gpt_neox", **SHAPE})
    model = build_model(config, key="proxy", vocab_size=3, max_tokens=4, eos_id=1, seed=0)
    assert model.get_output_embeddings().weight.shape[0] == 3


@pytest.mark.parametrize("model_type", ["no_such_type", "t5", "clip", "gptj"])
def test_build_model_of_no_causal_type_is_a_config_error(model_type):
    refused(lambda: fresh(model_type), "proxy.model.model_type", model_type)


def test_build_model_that_looks_ahead_is_a_config_error():
    refused(lambda: fresh("bert"), "proxy.model", "causal")


def test_heads_that_do_not_divide_the_width_are_refused_by_the_config():
    with pytest.raises(ValueError, match="multiple of num_attention_heads"):
        ModelConfig(model={**SHAPE, "num_attention_heads": 5})


# Pretrained folders


@pytest.mark.parametrize(("model_type", "tied"), [("gpt_neox", False), ("llama", True), ("gpt2", True)])
def test_save_model_writes_the_given_weights_and_from_pretrained_loads_them(tmp_path, model_type, tied):
    changes = {"tie_word_embeddings": True} if tied else {}
    model, other = tiny.model(model_type, seed=0, **changes), tiny.model(model_type, seed=1, **changes)
    copies = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for name, weights in (("shared", other.state_dict()), ("copied", copies)):
        save_model(model, weights, tmp_path / name)
        artifact = committed(tmp_path / name, tmp_path / f"{name}-storage")
        for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path / name), load_model(artifact, "model")):
            assert equal(loaded.state_dict(), other.state_dict())
            head, embedding = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
            assert (head.data_ptr() == embedding.data_ptr()) == tied
        (file,) = (tmp_path / name).glob("*model*")
        assert file.suffix == ".safetensors"
        assert len(load_file(file)) == len(dict(other.named_parameters()))  # those that are tied are written once
    assert equal(load(tmp_path / "shared").state_dict(), other.state_dict())


def test_code_of_a_model_runs_where_its_training_was_allowed_to_run_it_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = tmp_path / "source"
    tiny.model("llama").save_pretrained(source)
    (source / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    settings = json.loads((source / "config.json").read_text())
    settings |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    settings["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (source / "config.json").write_text(json.dumps(settings))
    refused(lambda: load(source), "target.model", "source")
    config = ModelConfig(model=str(source), trust_remote_code=True, revision="0" * 40)
    trained = build_model(config, key="target", vocab_size=40, max_tokens=16, eos_id=1, seed=0)
    assert type(trained).__name__ == "OwnForCausalLM"
    save_model(trained, trained.state_dict(), tmp_path / "trained")
    allowed = committed(tmp_path / "trained", tmp_path / "allowed", trust_remote_code=True)
    assert equal(load_model(allowed, "model").state_dict(), trained.state_dict())
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(committed(tmp_path / "trained", tmp_path / "other"), "model")


def test_is_pretrained_by_kind_of_model():
    assert is_pretrained(ModelConfig(model="org/name"))
    assert not is_pretrained(ModelConfig(model=SHAPE))


def test_folder_with_pickled_weights_only_is_refused(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(lambda: load(folder), "pytorch_model.bin", "safetensors")


def test_folder_without_weights_is_refused(folder):
    (folder / WEIGHTS).unlink()
    refused(lambda: load(folder), "no weights")


def test_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    refused(lambda: load(folder), "no config.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "nope"}', "\ufeff{}"])
def test_folder_with_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    refused(lambda: load(folder), "target.model", str(folder))


def test_folder_that_is_not_there_is_refused(tmp_path):
    refused(lambda: load(tmp_path / "nothing"), "no folder")


def test_truncated_weights_are_refused(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    refused(lambda: load(folder), "target.model", str(folder))


def test_missing_weights_are_refused_rather_than_random(folder):
    weights = load_file(folder / WEIGHTS)
    lost = next(name for name in weights if "dense" in name)
    del weights[lost]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    refused(lambda: load(folder), lost)


def test_weights_of_another_shape_are_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_size": 32}))
    refused(lambda: load(folder), "target.model", str(folder))


def test_encoder_decoder_is_refused(tmp_path):
    config = AutoConfig.for_model(
        "t5", d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40, decoder_start_token_id=0
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    refused(lambda: load(tmp_path), "encoder-decoder", "causal")


def test_max_tokens_above_the_models_limit_is_refused(folder):
    assert load(folder, max_tokens=tiny.MAX_TOKENS)
    refused(lambda: load(folder, max_tokens=tiny.MAX_TOKENS + 1), "tokens.max_tokens is 33", "32")


def test_tokenizer_larger_than_the_embeddings_is_refused(folder):
    refused(lambda: load(folder, vocab_size=41), "40 embeddings", "41")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_tokens": tiny.MAX_TOKENS + 1, "vocab_size": 40}, ("tokens.max_tokens is 33", "32", "Lower")),
        ({"max_tokens": tiny.MAX_TOKENS, "vocab_size": 41}, ("target.model has 40 embeddings", "41 ids")),
    ],
)
def test_what_a_model_cannot_read_is_said_from_its_config_alone(folder, limits, words):
    check_fits(folder, "target", max_tokens=tiny.MAX_TOKENS, vocab_size=40)
    (folder / WEIGHTS).unlink()
    refused(lambda: check_fits(folder, "target", **limits), *words)


def test_more_tokens_than_a_model_reads_are_refused_before_anything_runs(folder):
    models = f"proxy: {{model: {folder}}}\ntarget: {{model: {folder}}}\n"
    fetch_models(tiny.parse(f"{tiny.SYNTHETIC}{models}", f"tokens.max_tokens={tiny.MAX_TOKENS}"))
    refused(lambda: fetch_models(tiny.parse(f"{tiny.SYNTHETIC}{models}", "tokens.max_tokens=33")), "33", "32", "Lower")


@pytest.mark.parametrize(("stop_ids", "expected"), [([3], 3), ([1, 7], [1, 7])], ids=["one stop", "several stops"])
def test_saved_stops_are_what_transformers_generates_to(folder, stop_ids, expected):
    save_stops(folder, stop_ids)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == expected
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == expected


def test_stops_are_saved_beside_settings_that_transformers_would_not_save(folder):
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": false, "eos_token_id": 0}')
    save_stops(folder, [1, 7])
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved == {"temperature": 0.6, "do_sample": False, "eos_token_id": [1, 7]}
    (folder / "generation_config.json").unlink()
    save_stops(folder, [1])
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": 1}


# The hub


@pytest.mark.parametrize("name", ["EleutherAI/no-such-model", "no-such-model"])
def test_hub_model_offline_is_a_config_error(monkeypatch, tmp_path, name):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused(lambda: pretrained_folder(ModelConfig(model=name), "proxy"), "proxy.model", name, "HF_HUB_OFFLINE")


@pytest.fixture
def loopback_hub(monkeypatch, tmp_path):
    """A hub that this process is sent to, with nothing fetched from it yet."""
    import huggingface_hub.constants as constants

    with hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        url = server.environment["HF_ENDPOINT"]
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", server.environment["HF_TOKEN"])
        yield server


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        (GATED_MODEL, None, (f"{GATED_MODEL} is gated", "licence", "HF_TOKEN")),
        ("somebody/nothing", None, ("no model 'somebody/nothing'", "spelling")),
        (MODEL, "v9", ("proxy.revision", "'v9'", "commit")),
        (MODEL, None, ("no weights", "*.safetensors", "save_pretrained")),
    ],
)
def test_model_that_the_hub_does_not_give_has_a_message_of_its_own(loopback_hub, name, revision, words):
    loopback_hub.commit({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    refused(lambda: pretrained_folder(ModelConfig(model=name, revision=revision), "proxy"), *words)


@pytest.mark.parametrize("name", ["no such model!", "a--b", "a/b/c", "./here", ""])
def test_name_that_no_hub_model_can_have_is_a_config_error(name):
    refused(lambda: pretrained_folder(ModelConfig(model=name), "proxy"), "proxy.model")


# Devices


def test_device_and_precision_on_a_cpu():
    assert device_and_precision("auto", 0) == (torch.device("cpu"), False)
    assert device_and_precision("fp32", 0) == (torch.device("cpu"), False)
    assert device_and_precision("bf16", 0) == (torch.device("cpu"), True)


def test_gpu_asked_for_where_torch_sees_none_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: device_and_precision("auto", 0.5), "0.5 GPUs")


def test_bf16_on_a_gpu_without_it_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    refused(lambda: device_and_precision("bf16", 1), "fp32")
    assert device_and_precision("auto", 1) == (torch.device("cuda"), False)
