"""The sections that describe a model and its training: `proxy` and `target`."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from s2l_ray.config.section import MAX_SEED, Section

ModelKey = Literal["proxy", "target"]
"""The sections that describe a model."""


class FreshModel(Section):
    """A model built from a config with random weights."""

    model_type: str = "gpt_neox"
    """A causal architecture of transformers."""
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    """Width of the feed-forward layers; four times `hidden_size` unless set."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "FreshModel":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class NamedModel(Section):
    """Which model."""

    model: str | FreshModel
    """Hugging Face id, local folder, or a mapping: a model with random weights."""
    revision: str | None = None
    """Commit of a Hugging Face id."""
    trust_remote_code: bool = False
    """Run code that comes with the model; needs a pinned 40-hex `revision`."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "NamedModel":
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code needs `revision` to be a full 40-hex commit")
        return self


class ModelConfig(NamedModel):
    """Which model, and how it is trained. Shared by proxy and target."""

    epochs: float = Field(3, gt=0)
    """Passes over the data."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps, in place of `epochs`."""
    learning_rate: float = Field(2.0e-5, gt=0)
    """Peak of the cosine schedule."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps with a rising learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    gradient_clipping: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    global_batch_size: int = Field(128, ge=1)
    """Examples per optimizer step, over all workers."""
    micro_batch_size: int = Field(16, ge=1)
    """Examples per forward pass of one worker; accumulation follows from it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 where the stage has GPUs, else fp32; GPUs without bf16 are refused, and want fp32."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention of transformers, in training and wherever the trained model is asked; `auto` is its own choice.
    FlashAttention computes in bf16 on a GPU; where a later stage computes otherwise, `auto` takes its place."""
    deterministic: bool = False
    """Ask torch for deterministic kernels on a GPU."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of weights and batch order; derived from the root seed unless set."""


class EncoderConfig(NamedModel):
    """The pretrained model whose hidden states `bert_score` compares."""

    model: str = Field(min_length=1)
    """Hugging Face id, or local folder with safetensors."""
    layer: int | None = Field(None, ge=1)
    """Hidden layer whose states are compared; the last unless set. bert-score's choice for roberta-large is 17."""


class ProxyConfig(ModelConfig):
    """The small model that is watched."""

    model: str | FreshModel = "EleutherAI/pythia-70m-deduped"
    checkpoints: int | tuple[int, ...] = 12
    """How many checkpoints, evenly spaced, or the list of their steps."""

    @field_validator("checkpoints")
    @classmethod
    def _at_least_one(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        steps = (value,) if isinstance(value, int) else value
        if not steps or min(steps) < 1:
            raise ValueError("expected at least one checkpoint, after step 1 or later")
        if not isinstance(value, int) and sorted(set(value)) != list(value):
            raise ValueError("expected a rising list of distinct steps")
        return value


class LoraConfig(Section):
    """A low-rank adapter: the model's own weights stay as they are, and small matrices beside them are trained."""

    rank: int = Field(16, ge=1)
    """Inner width of the adapter's matrices."""
    alpha: float = Field(32, gt=0)
    """What the adapter says counts alpha / rank times."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that training leaves out."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field("all-linear", min_length=1)
    """Every linear layer but the head, or the names of those that get an adapter, as the architecture calls them."""


class TargetConfig(ModelConfig):
    """The large model that is fine-tuned on the subset."""

    model: str | FreshModel = "microsoft/phi-2"
    lora: LoraConfig | None = None
    """Train a low-rank adapter instead of all weights; needs the package's extra `lora`."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """What trains: DeepSpeed, or plain torch (with several workers, DDP)."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """DeepSpeed's ZeRO stage."""
    match: Literal["epochs", "steps", "tokens"] = "epochs"
    """What arms have in common: passes over their own rows, optimizer steps of `full`, or tokens of `full`."""
    order: Literal["shuffled", "rank"] = "shuffled"
    """Order of the rows in an epoch."""
