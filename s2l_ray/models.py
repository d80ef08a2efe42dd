"""Causal language models: where they come from, how they are built, loaded and saved.

Safetensors only. Code that comes with a model runs only where the config says so and pins its revision.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from s2l_ray.config import FreshModel, ModelConfig
from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"


def is_pretrained(config: ModelConfig) -> bool:
    """Return whether the model comes with weights and a tokenizer of its own."""
    return isinstance(config.model, str)


def pretrained_folder(config: ModelConfig, key: str) -> Path:
    """Return the local folder of a pretrained model, fetched from the hub where it is an id.

    Args:
        key: config path of the section, for messages.

    Raises:
        ConfigError: not found, not reachable, or without safetensors weights.
    """
    assert isinstance(config.model, str)
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return _checked(folder, key)
    if config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
        raise ConfigError(f"{key}.model: no folder {folder}. Expected a model folder or a Hugging Face id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        found = snapshot_download(
            config.model,
            revision=config.revision,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
        )
    except GatedRepoError as error:
        raise ConfigError(
            f"{key}.model: {config.model} is gated. Accept its licence on its page and set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{key}.model: the hub has no model {config.model!r}. Check the spelling.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ConfigError(
            f"{key}.model: {config.model} is not on this machine and the hub cannot be reached.{offline} "
            f"Give a local folder, or fetch the model first where there is a network."
        ) from error
    return _checked(Path(found), key)


def _checked(folder: Path, key: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{key}.model: {folder} has no config.json; expected a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights"
        raise ConfigError(
            f"{key}.model: {folder} holds {found}; expected *.safetensors. Convert it with "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)`; pickled weights are not loaded."
        )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.get("is_encoder_decoder"):
        raise ConfigError(f"{key}.model: {folder} is an encoder-decoder; expected a causal (decoder-only) model.")
    return folder


def weights_digest(folder: Path) -> str:
    """Return a hash over config and weights of a model folder."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def build_model(
    config: ModelConfig, *, key: str, vocab_size: int, max_tokens: int, eos_id: int, seed: int
) -> "PreTrainedModel":
    """Return a model ready to train: random weights from `seed`, or pretrained ones, in float32.

    Args:
        key: config path of the section, for messages.
        vocab_size: token ids that the tokenizer can produce.
        max_tokens: longest example.

    Raises:
        ConfigError: an unknown architecture, too few embeddings, too few positions, or what `pretrained_folder` says.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(config.model, FreshModel):
        shape = config.model
        try:
            model_config = AutoConfig.for_model(
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
            )
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(model_config)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{key}.model.model_type {shape.model_type!r}: {error}. Expected a causal architecture of transformers."
            ) from error
    else:
        folder = pretrained_folder(config, key)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=config.trust_remote_code, use_safetensors=True
            )
        except (ValueError, OSError, KeyError) as error:
            raise ConfigError(f"{key}.model: {folder} does not load as a causal model: {error}") from error
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < max_tokens:
        raise ConfigError(
            f"tokens.max_tokens is {max_tokens}, but {key}.model reads {limit} at most. Lower max_tokens."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocab_size:
        raise ConfigError(
            f"{key}.model has {rows} embeddings, its tokenizer {vocab_size} ids. Use the tokenizer that belongs to it."
        )
    return model


def load_model(folder: Path) -> "PreTrainedModel":
    """Load a model that this project saved, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def save_model(model: "PreTrainedModel", weights: Mapping[str, "torch.Tensor"], folder: Path) -> None:
    """Write a model folder that `from_pretrained` loads, with `weights` in place of the model's own.

    The model's own tensors may be shards or live elsewhere; only its config is used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=dict(weights), max_shard_size="4GB")


def device_and_precision(precision: str, gpus: float) -> tuple["torch.device", bool]:
    """Return the device of this process and whether it computes in bf16.

    Raises:
        ConfigError: bf16 is asked for and the GPU cannot.
    """
    import torch

    on_gpu = gpus > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    bf16_ok = not on_gpu or torch.cuda.is_bf16_supported()
    if precision == "bf16" and not bf16_ok:
        raise ConfigError("precision bf16: this GPU does not support it. Use `precision: fp32`.")
    return device, precision == "bf16" or (precision == "auto" and on_gpu and bf16_ok)
