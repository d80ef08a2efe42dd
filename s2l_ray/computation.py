"""How a model computes, not what: which attention, and whether activations are kept or computed again."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLASH = "flash_attention_2"
"""The attention that computes in half precision on a GPU, and nowhere else."""


_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
)
"""What torch, cuBLAS and NCCL say."""


def set_attention(model: "PreTrainedModel", attention: str, *, in_bf16: bool) -> None:
    """Let a model compute its attention in another way.

    Args:
        attention: of transformers, or `auto` for what the model has chosen itself.
        in_bf16: whether it computes in bf16 on a GPU from here on; where it does not, FlashAttention is left out.

    Raises:
        ConfigError: the model cannot.
    """
    if attention == "auto" or (attention == FLASH and not in_bf16):
        return
    try:
        model.set_attn_implementation(attention)
        reason = "its attention cannot be exchanged"
    except (ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0][:300]
    if model.config._attn_implementation != attention:
        raise ConfigError(f"attention: {type(model).__name__} does not compute with {attention}: {reason}. Set `auto`.")


@contextmanager
def memory_checked(advice: str) -> Iterator[None]:
    """Say what to change where memory does not hold what the block computes; a second try would end the same way.

    Args:
        advice: what to change, in sentences.

    Raises:
        ConfigError: a device, or this machine, has too little.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            what = str(error).partition("\n")[0][:200]
        elif isinstance(error, MemoryError):
            what = f"example {error.args[0]} alone does not fit" if error.args else "the machine has no more"
        else:
            raise
        raise ConfigError(f"too little memory: {what.rstrip('.')}. {advice}") from error


def _is_out_of_memory(error: Exception) -> bool:
    # By name: torch is not imported in every process that comes here. NCCL and cuBLAS, which take memory of their own,
    # only say it in their text.
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def recompute_activations(model: "PreTrainedModel") -> None:
    """Let training compute a layer's activations again instead of keeping them (gradient checkpointing).

    Dropout draws the same again, so the gradients are the same.

    Raises:
        ConfigError: the architecture cannot.

    Source:
        Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"gradient_checkpointing: {type(model).__name__} does not support it. Set it to false.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its new name is not known to every version in use
        model.gradient_checkpointing_enable({"use_reentrant": False})
