"""Causal language models: where they come from, how they are built, loaded and saved.

Safetensors only. Code that comes with a model runs only where the config says so and pins its revision.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from s2l_ray.artifacts import Artifact
from s2l_ray.config import FreshModel, ModelConfig
from s2l_ray.digests import MODEL_CODE, MODEL_FILES
from s2l_ray.errors import ConfigError

ModelType = TypeVar("ModelType", bound=ModelConfig)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"


def is_pretrained(config: ModelConfig) -> bool:
    """Return whether the model comes with weights and a tokenizer of its own."""
    return isinstance(config.model, str)


def pinned(config: ModelType) -> ModelType:
    """Return the config with its hub revision replaced by the commit that this machine's cache holds for it.

    What has no name of its own on the hub (a local folder, a model from a config), or was never fetched, stays.
    """
    if not isinstance(config.model, str) or Path(config.model).expanduser().is_dir():
        return config
    if re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
        return config
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except HFValidationError:
        return config
    return config.model_copy(update={"revision": Path(found).parent.name}) if isinstance(found, str) else config


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
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(
            config.model,
            revision=config.revision,
            allow_patterns=[*MODEL_FILES, *([MODEL_CODE] if config.trust_remote_code else [])],
        )
    except GatedRepoError as error:
        raise ConfigError(
            f"{key}.model: {config.model} is gated. Accept its licence on its page and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{key}.model: the hub has no model {config.model!r}. Check the spelling.") from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{key}.revision: {config.model} has no revision {config.revision!r}. Take a commit from its page."
        ) from error
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
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{key}.model: {folder}/config.json is not JSON: {error}. Fetch the model again.") from error
    if isinstance(settings, dict) and settings.get("is_encoder_decoder"):
        raise ConfigError(f"{key}.model: {folder} is an encoder-decoder; expected a causal (decoder-only) model.")
    return folder


def check_length(folder: Path, key: str, max_tokens: int) -> None:
    """Refuse examples longer than a pretrained model can read.

    Raises:
        ConfigError: `max_tokens` is more than the model's positions.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit = settings.get("max_position_embeddings")
    if isinstance(limit, int) and limit < max_tokens:
        raise ConfigError(f"tokens.max_tokens is {max_tokens}, but {key}.model reads {limit} at most. Lower it.")


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
    if isinstance(config.model, FreshModel):
        try:
            model = _fresh_model(config.model, vocab_size, max_tokens, eos_id, seed)
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
        raise ConfigError(
            f"{key}.model has {rows} embeddings, its tokenizer {vocab_size} ids. Use the tokenizer that belongs to it."
        )
    return model


def _fresh_model(shape: FreshModel, vocab_size: int, max_tokens: int, eos_id: int, seed: int) -> "PreTrainedModel":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # Some architectures have defaults of their own for these, which fit their published sizes only.
    attention = {
        "num_key_value_heads": shape.num_attention_heads,
        "head_dim": shape.hidden_size // shape.num_attention_heads,
    }
    known = AutoConfig.for_model(shape.model_type).to_dict()
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
        **{name: value for name, value in attention.items() if name in known},
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(model_config)


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
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=artifact.summary.get("trust_remote_code", False),
        ).eval()


def save_model(model: "PreTrainedModel", weights: Mapping[str, "torch.Tensor"], folder: Path) -> None:
    """Write a model folder that `from_pretrained` loads, with `weights` in place of the model's own.

    The model's own tensors may be shards or live elsewhere; only its config is used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=dict(weights), max_shard_size="4GB")


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
    bf16_ok = not on_gpu or torch.cuda.is_bf16_supported()
    if precision == "bf16" and not bf16_ok:
        raise ConfigError("precision bf16: this GPU does not support it. Use `precision: fp32`.")
    return device, precision == "bf16" or (precision == "auto" and on_gpu and bf16_ok)
