"""The config: every section with its defaults, each on its field and nowhere else; unknown keys are refused.

Seeds that are not set derive from the root `seed`, so that a stage's settings hold only its own seed. Sections that
say *where* a thing runs (`resources`, `storage`) never reach a fingerprint.
"""

import hashlib
from typing import Any

from pydantic import Field, model_validator

from s2l_ray.config.data import ExamplesConfig, FormatName, InputPath, SyntheticCorpus, TemplateName, TokensConfig
from s2l_ray.config.evaluation import EvaluateConfig, MetricName, PromptName, ReportConfig, TrackingConfig
from s2l_ray.config.models import (
    EncoderConfig,
    FreshModel,
    LoraConfig,
    ModelConfig,
    ModelKey,
    NamedModel,
    ProxyConfig,
    TargetConfig,
)
from s2l_ray.config.resources import GPU_STAGES, MARKET_LABEL, Demand, PoolResources, ResourcesConfig, TrainResources
from s2l_ray.config.section import MAX_SEED, Section
from s2l_ray.config.selection import ClusterConfig, Method, ScoreConfig, SelectConfig, TrajectoriesConfig

__all__ = [
    "GPU_STAGES",
    "MARKET_LABEL",
    "MAX_SEED",
    "ClusterConfig",
    "Demand",
    "EncoderConfig",
    "EvaluateConfig",
    "ExamplesConfig",
    "FormatName",
    "FreshModel",
    "InputPath",
    "LoraConfig",
    "Method",
    "MetricName",
    "ModelConfig",
    "ModelKey",
    "NamedModel",
    "PoolResources",
    "PromptName",
    "ProxyConfig",
    "ReportConfig",
    "ResourcesConfig",
    "ScoreConfig",
    "Section",
    "SelectConfig",
    "SyntheticCorpus",
    "TargetConfig",
    "TemplateName",
    "TokensConfig",
    "TrackingConfig",
    "TrainResources",
    "TrajectoriesConfig",
]

SEEDED = ("proxy", "cluster", "select", "target")
"""The sections with a seed of their own."""


class Config(Section):
    """One arm of an experiment, complete."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Root of every seed."""
    storage: str = "./.s2l"
    """Where artifacts live: any `pyarrow.fs` URI."""
    examples: ExamplesConfig
    tokens: TokensConfig = TokensConfig()
    proxy: ProxyConfig = ProxyConfig()
    score: ScoreConfig = ScoreConfig()
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    cluster: ClusterConfig = ClusterConfig()
    select: SelectConfig = SelectConfig()
    target: TargetConfig = TargetConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _derive_seeds(self) -> "Config":
        """Give every section without a seed one that follows from the root seed."""
        for name in SEEDED:
            section = getattr(self, name)
            if section.seed is None:
                seeded = section.model_copy(update={"seed": derive_seed(self.seed, name)})
                object.__setattr__(self, name, seeded)
        return self

    @model_validator(mode="after")
    def _method_decides(self) -> "Config":
        """Give the sections what the selector stands for, where the file does not say otherwise."""
        cluster, select, target = self.cluster, self.select, self.target

        def unset(section: Section, **defaults: Any) -> dict[str, Any]:
            return {name: value for name, value in defaults.items() if name not in section.model_fields_set}

        match select.method:
            case "official":
                cluster = cluster.model_copy(update={"stratify_by": "source"})
            case "guarded":
                from s2l_ray.clustering.guard import THRESHOLD

                implied = unset(cluster, guard=THRESHOLD, stratify_by="source", n_clusters_per="pool")
                cluster = cluster.model_copy(update=implied)
                select = select.model_copy(update=unset(select, quota_exponent=0.5))
            case "embedding_kmeans":
                cluster = cluster.model_copy(update={"features": "hidden_state"})
            case "curriculum":
                target = target.model_copy(update=unset(target, order="rank"))
        if select.quota_exponent is None:
            select = select.model_copy(update={"quota_exponent": 0.0})
        for name, section in (("cluster", cluster), ("select", select), ("target", target)):
            object.__setattr__(self, name, section)
        return self

    @model_validator(mode="after")
    def _losses_are_no_hidden_states(self) -> "Config":
        by_states = self.select.method == "facility_location" or self.cluster.features == "hidden_state"
        if self.trajectories.path is not None and by_states:
            raise ValueError(
                f"select.method {self.select.method} goes by the proxy's hidden states, and trajectories.path brings "
                "losses only; choose another method, or leave trajectories.path out"
            )
        return self

    @model_validator(mode="after")
    def _guard_sees_a_loss_fall(self) -> "Config":
        checkpoints = self.proxy.checkpoints
        count = checkpoints if isinstance(checkpoints, int) else len(checkpoints)
        if self.cluster.guard is not None and self.trajectories.path is None and count < 2:
            raise ValueError(
                "cluster.guard compares a row's last loss with its first, and proxy.checkpoints asks for one loss; "
                "set it to 2 or more, or cluster.guard: null"
            )
        return self

    @model_validator(mode="after")
    def _chat_needs_a_tokenizer_that_has_one(self) -> "Config":
        models: tuple[tuple[ModelKey, ModelConfig], ...] = (("proxy", self.proxy), ("target", self.target))
        for key, section in models:
            if self.tokens.template_of(key) == "chat" and isinstance(section.model, FreshModel):
                raise ValueError(
                    f"tokens.template is chat for {key}.model, but a model with random weights has a tokenizer without "
                    "a chat template; use alpaca or plain"
                )
        return self

    @model_validator(mode="after")
    def _task_trains_alone(self) -> "Config":
        for name, engine in (("train_proxy", "torch"), ("finetune_target", self.target.engine)):
            asked = getattr(self.resources, name)
            if asked.launcher == "task" and (asked.workers > 1 or engine != "torch"):
                found = f"workers: {asked.workers}" if engine == "torch" else f"target.engine: {engine}"
                raise ValueError(
                    f"resources.{name}.launcher: task trains with one worker and the torch engine, found {found}; set "
                    f"{'workers: 1' if engine == 'torch' else 'target.engine: torch'}, or launcher: gang"
                )
        return self

    @model_validator(mode="after")
    def _deepspeed_has_whole_gpus(self) -> "Config":
        asked = self.resources.finetune_target
        if self.target.engine == "deepspeed" and asked.workers > 1 and asked.gpus % 1:
            raise ValueError(
                f"resources.finetune_target.gpus: workers of DeepSpeed need a whole GPU each, found {asked.gpus:g}; "
                "set gpus: 1, one worker, or target.engine: torch"
            )
        return self

    @model_validator(mode="after")
    def _flash_attention_has_a_gpu(self) -> "Config":
        for key, section, stage in (("proxy", self.proxy, "train_proxy"), ("target", self.target, "finetune_target")):
            asked = getattr(self.resources, stage)
            if section.attention == "flash_attention_2" and (not asked.gpus or section.precision == "fp32"):
                raise ValueError(
                    f"{key}.attention: flash_attention_2 computes in bf16 on a GPU, found resources.{stage}.gpus: "
                    f"{asked.gpus:g} and {key}.precision: {section.precision}; give it GPUs and bf16, or set sdpa"
                )
        return self

    @model_validator(mode="after")
    def _vllm_has_a_whole_gpu_and_a_folder(self) -> "Config":
        if self.evaluate.engine != "vllm":
            return self
        gpus = self.resources.evaluate_target.gpus
        if 0 < gpus < 1:
            raise ValueError(
                "evaluate.engine: vllm takes one whole GPU per worker, found resources.evaluate_target.gpus: "
                f"{gpus:g}; set 1, and more workers by `actors` (0 is for a build of vLLM for CPUs)"
            )
        if "://" in self.storage and not self.storage.startswith("file://"):
            raise ValueError(
                "evaluate.engine: vllm reads the target from a folder, and `storage` is an object store; set a folder "
                "that every node sees, or evaluate.engine: transformers"
            )
        return self


def derive_seed(root: int, name: str) -> int:
    """Return a 31-bit seed that depends on the root seed and a name only."""
    return int.from_bytes(hashlib.sha256(f"{root}/{name}".encode()).digest()[:4], "big") >> 1
