"""Causal language models: how they are built, loaded and saved.

Safetensors only. Code that comes with a model runs only where the config says so and pins its revision.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2l_ray.artifacts import Artifact
from s2l_ray.computation import set_attention
from s2l_ray.config import FreshModel, ModelConfig
from s2l_ray.errors import ConfigError
from s2l_ray.pretrained import pretrained_folder, too_few_embeddings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHTS = "model.safetensors"


def build_model(
    config: ModelConfig, *, key: str, vocab_size: int, max_tokens: int, eos_id: int, seed: int
) -> "PreTrainedModel":
    """Return a model ready to train: random weights from `seed`, or pretrained ones, in float32.

    Args:
        key: config path of the section, for messages.
        vocab_size: token ids that the tokenizer can produce.
        max_tokens: longest example.

    Raises:
        ConfigError: an unknown architecture or one that looks ahead, too few embeddings, too few positions, weights
            that are missing, or what `pretrained_folder` says.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(config.model, FreshModel):
        try:
            described = fresh_config(config.model, vocab_size=vocab_size, max_tokens=max_tokens, eos_id=eos_id)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(described)
            is_causal = _is_causal(model)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"{key}.model.model_type {config.model.model_type!r}: {_brief(error)}. Expected a causal architecture "
                "of transformers that is described by a FreshModel's fields; others are loaded from a folder."
            ) from error
    else:
        model = _pretrained_model(config, key)
        is_causal = _is_causal(model)
    if not is_causal:
        raise ConfigError(
            f"{key}.model: {type(model).__name__} lets a token see those after it; expected a causal (decoder-only) "
            "model."
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < max_tokens:
        raise ConfigError(
            f"tokens.max_tokens is {max_tokens}, but {key}.model reads {limit} at most. Lower max_tokens."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocab_size:
        raise too_few_embeddings(key, rows, vocab_size)
    return model


def fresh_config(shape: FreshModel, *, vocab_size: int, max_tokens: int, eos_id: int) -> "PreTrainedConfig":
    """Return the config of transformers for a model of some shape."""
    from transformers import AutoConfig

    # Some architectures have defaults of their own for these, which fit their published sizes only.
    attention = {
        "num_key_value_heads": shape.num_attention_heads,
        "head_dim": shape.hidden_size // shape.num_attention_heads,
    }
    known = AutoConfig.for_model(shape.model_type).to_dict()
    return AutoConfig.for_model(
        shape.model_type,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size or 4 * shape.hidden_size,
        vocab_size=vocab_size,
        max_position_embeddings=max_tokens,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
        **{name: value for name, value in attention.items() if name in known},
    )


def _pretrained_model(config: ModelConfig, key: str) -> "PreTrainedModel":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = pretrained_folder(config, key)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{key}.model: {folder} does not load as a causal model: {_brief(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"{key}.model: the weights in {folder} lack {len(missing)} tensors of {type(model).__name__}, the first is "
            f"{missing[0]}; they would be random. Expected the complete weights of a causal model."
        )
    return model


def _brief(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if len(text) <= 300 else text[:300] + "..."


def _is_causal(model: "PreTrainedModel") -> bool:
    """Return whether a token's logits are the same whatever follows it; losses and padding rely on it."""
    import torch

    probe_BL = torch.tensor([[0, 1, 0], [0, 1, 1]])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        first_LV, second_LV = model(input_ids=probe_BL, use_cache=False).logits[:, :2].float()
    model.train(was_training)
    return bool(torch.allclose(first_LV, second_LV, rtol=1e-3, atol=1e-4, equal_nan=True))


def load_model(artifact: Artifact, path: str) -> "PreTrainedModel":
    """Load a model that this project trained, in float32 and ready to be asked.

    Args:
        artifact: a `proxy` or a `target`. Code that came with its model runs where its training was allowed to run it.
        path: the model's folder in it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with artifact.local_folder(path) as folder:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=artifact.summary.get("trust_remote_code", False),
        )
    set_attention(model, artifact.summary.get("attention", "auto"), in_bf16=False)
    return model.eval()


def longest_input(artifact: Artifact, path: str) -> int | None:
    """Return the most tokens that a model of `load_model` reads; None where nothing limits them."""
    from transformers import AutoConfig

    with artifact.local_folder(path) as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=artifact.summary.get("trust_remote_code", False))
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


def save_model(model: "PreTrainedModel", weights: Mapping[str, "torch.Tensor"], folder: Path) -> None:
    """Write a model folder that `from_pretrained` loads, with `weights` in place of the model's own.

    The model's own tensors may be shards or live elsewhere; only its config is used, and which of them are tied: copied
    from a GPU these are two tensors, and would be written twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    same_as = {name: first.setdefault(id(weight), name) for name, weight in named}
    tied = {name for name, kept in same_as.items() if kept != name and kept in weights}
    written = {name: weight for name, weight in weights.items() if name not in tied}
    model.save_pretrained(folder, state_dict=written, max_shard_size="4GB")


def save_stops(folder: Path, stop_ids: Sequence[int]) -> None:
    """Let programs that generate with a model folder end an answer at any of these tokens.

    The file is written by hand: transformers refuses to save a changed setting beside others that it finds fault with,
    as those of some published models are.
    """
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    settings["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def device_and_precision(precision: str, gpus: float) -> tuple["torch.device", bool]:
    """Return the device of this process and whether it computes in bf16.

    Raises:
        ConfigError: a GPU is asked for and torch sees none, or bf16 and the GPU cannot.
    """
    import torch

    on_gpu = gpus > 0
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError(
            f"the resources ask for {gpus:g} GPUs per worker, but torch {torch.__version__} sees none. Install torch "
            "for CUDA on the nodes, or set `gpus: 0`."
        )
    device = torch.device("cuda" if on_gpu else "cpu")
    bf16_ok = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not bf16_ok:
        raise ConfigError("precision bf16: this GPU does not support it. Use `precision: fp32`.")
    return device, precision == "bf16" or (precision == "auto" and on_gpu and bf16_ok)
