"""Pretrained models, before their weights are read: where they come from, and what is wrong with a model folder.

Safetensors only.
"""

import json
import os
import re
from pathlib import Path
from typing import TypeVar

from s2l_ray.config import NamedModel
from s2l_ray.digests import MODEL_CODE, MODEL_FILES
from s2l_ray.errors import ConfigError

ModelType = TypeVar("ModelType", bound=NamedModel)


def is_pretrained(config: NamedModel) -> bool:
    """Return whether the model comes with weights and a tokenizer of its own."""
    return isinstance(config.model, str)


def own_folder(config: NamedModel) -> Path | None:
    """Return the local folder that a config names; None for an id of the hub and a model from sizes."""
    folder = Path(config.model).expanduser() if isinstance(config.model, str) else None
    return folder if folder is not None and folder.is_dir() else None


def pinned(config: ModelType) -> ModelType:
    """Return the config with its hub revision replaced by the commit that this machine's cache holds for it.

    What has no name of its own on the hub (a local folder, a model from a config), or was never fetched, stays.
    """
    if not is_pretrained(config) or own_folder(config) is not None:
        return config
    if re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
        return config
    folder = local_folder(config)
    return config if folder is None else config.model_copy(update={"revision": folder.name})


def located(config: ModelType) -> ModelType:
    """Return the config with a local folder's whole path: workers do not start where the command does."""
    folder = own_folder(config)
    return config if folder is None else config.model_copy(update={"model": str(folder.absolute())})


def local_folder(config: NamedModel) -> Path | None:
    """Return the folder in which this machine has a pretrained model's config; None where it has it not."""
    if not isinstance(config.model, str):
        return None
    if (folder := own_folder(config)) is not None:
        return folder if (folder / "config.json").exists() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def pretrained_folder(config: NamedModel, key: str) -> Path:
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
            ignore_patterns=["consolidated*"],  # the same weights again, in their makers' own layout
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


def check_fits(folder: Path, key: str, *, max_tokens: int, vocab_size: int = 0) -> None:
    """Refuse what a pretrained model cannot read, by its config alone: its weights are not loaded.

    Args:
        vocab_size: token ids that its tokenizer can produce.

    Raises:
        ConfigError: `max_tokens` is more than the model's positions, or the ids are more than its embeddings.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit, embeddings = (settings.get(name) for name in ("max_position_embeddings", "vocab_size"))
    if isinstance(limit, int) and limit < max_tokens:
        raise ConfigError(f"tokens.max_tokens is {max_tokens}, but {key}.model reads {limit} at most. Lower it.")
    if isinstance(embeddings, int) and embeddings < vocab_size:
        raise too_few_embeddings(key, embeddings, vocab_size)


def too_few_embeddings(key: str, embeddings: int, vocab_size: int) -> ConfigError:
    """Return the error for a tokenizer that is not the model's."""
    return ConfigError(
        f"{key}.model has {embeddings} embeddings, its tokenizer {vocab_size} ids. Use the tokenizer that is its own."
    )
