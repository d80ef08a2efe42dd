"""Low-rank adapters (LoRA): small trained matrices beside a model's frozen weights, and their way back into them.

`peft` is used here and nowhere else. A model with an adapter stays the class it was, so that nothing else has to know.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2l_ray.config import FreshModel, LoraConfig, ModelConfig
from s2l_ray.errors import ConfigError
from s2l_ray.models import fresh_config
from s2l_ray.pretrained import pretrained_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADAPTER = "default"
"""Name of an adapter inside a model, as peft has it."""
KEY = "target.lora.target_modules"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def add_adapter(model: "PreTrainedModel", lora: LoraConfig, seed: int) -> None:
    """Freeze a model and put a trainable adapter beside its linear layers.

    The adapter adds nothing at first: the model computes what it did.

    Args:
        seed: of the adapter's random matrices.

    Raises:
        ConfigError: `target_modules` names no linear layer, or one that shares its weights with the embedding.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    wanted = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    asked = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=wanted,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    linear = {name for name, layer in model.named_modules() if _is_linear(layer)}
    try:
        peft.inject_adapter_in_model(asked, model, adapter_name=ADAPTER)
    except (ValueError, NotImplementedError) as error:
        raise _not_these(lora, linear, str(error)) from error
    layers = _layers(model)
    if not layers.keys() <= linear:
        raise _not_these(lora, linear, f"{min(layers.keys() - linear)} is no linear layer")
    embedding = model.get_input_embeddings()
    tied = [name for name, layer in layers.items() if layer.get_base_layer().weight is embedding.weight]
    if tied:
        raise _not_these(lora, linear, f"{tied[0]} shares its weights with the embedding")


def check_adapter(config: ModelConfig, lora: LoraConfig) -> None:
    """Refuse an adapter for layers that the target does not have; its weights are not read.

    Raises:
        ConfigError: as `add_adapter` does.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(config.model, FreshModel):
        described = fresh_config(config.model, vocab_size=8, max_tokens=8, eos_id=0)
    else:
        folder = pretrained_folder(config, "target")
        described = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code)
    add_adapter(model, lora, 0)


def merged(model: "PreTrainedModel", weights: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Return the weights of the model without an adapter that computes what the one with it does.

    Args:
        model: tells where the adapter is; its own tensors may be shards.
        weights: all of its weights.
    """
    layers = _layers(model)
    found = {}
    for name, tensor in weights.items():
        layer, border, rest = name.partition(".base_layer.")
        if border and layer in layers:
            found[f"{layer}.{rest}"] = tensor
        elif name.partition(".lora_")[0] not in layers:
            found[name] = tensor
    for name, layer in layers.items():
        down, up = (weights[f"{name}.{part}.{ADAPTER}.weight"] for part in ("lora_A", "lora_B"))
        change = layer.scaling[ADAPTER] * (up @ down)
        # GPT-2's layers hold their weights the other way round.
        found[f"{name}.weight"] = found[f"{name}.weight"] + (change.T if layer.fan_in_fan_out else change)
    return found


def save_adapter(
    model: "PreTrainedModel", weights: Mapping[str, "torch.Tensor"], base: ModelConfig, folder: Path
) -> None:
    """Write the adapter alone, as `PeftModel.from_pretrained` loads it onto the model that it was trained for.

    Args:
        weights: all weights of the model.
        base: which model that is.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.{part}.weight": weights[f"{name}.{part}.{ADAPTER}.weight"].contiguous()
        for name in _layers(model)
        for part in ("lora_A", "lora_B")
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    described = model.peft_config[ADAPTER]
    described.save_pretrained(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings |= {
        "base_model_name_or_path": base.model if isinstance(base.model, str) else None,
        "revision": base.revision,
        "inference_mode": True,
        "target_modules": sorted(settings["target_modules"]),  # a set, in an order that varies from run to run
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _layers(model: "torch.nn.Module") -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _is_linear(layer: "torch.nn.Module") -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, torch.nn.Linear | Conv1D)


def _not_these(lora: LoraConfig, linear: set[str], why: str) -> ConfigError:
    names = sorted({name.rpartition(".")[2] for name in linear})
    brief = why.partition(". ")[0][:200]
    return ConfigError(
        f"{KEY}: found {lora.target_modules!r}, but {brief}. This model has the linear layers {', '.join(names)}; name "
        "some of them, or `all-linear`."
    )
