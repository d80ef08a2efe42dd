"""The config: every section with its defaults, each on its field and nowhere else; unknown keys are refused.

Seeds that are not set derive from the root `seed`, so that a stage's settings hold only its own seed. Sections that
say *where* a thing runs (`resources`, `storage`) never reach a fingerprint.
"""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

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
from s2l_ray.config.resources import MARKET_LABEL, Demand, PoolResources, ResourcesConfig, TrainResources
from s2l_ray.config.section import MAX_SEED, Section
from s2l_ray.errors import ConfigError

__all__ = [
    "MARKET_LABEL",
    "MAX_SEED",
    "Demand",
    "EncoderConfig",
    "FreshModel",
    "LoraConfig",
    "ModelConfig",
    "ModelKey",
    "NamedModel",
    "PoolResources",
    "ProxyConfig",
    "ResourcesConfig",
    "Section",
    "TargetConfig",
    "TrainResources",
]

SEEDED = ("proxy", "cluster", "select", "target")
"""The sections with a seed of their own."""


TemplateName = Literal["alpaca", "plain", "chat"]
MetricName = Literal[
    "loss", "exact_match", "math_answer", "program_answer", "pass_at_1", "bleu", "rouge_l", "bert_score"
]
"""What held-out rows are judged by; `judging.metrics` says how."""


FormatName = Literal[
    "auto",
    "alpaca",
    "prompt_completion",
    "messages",
    "sharegpt",
    "question_answer",
    "text",
    "gsm8k",
    "math",
    "svamp",
    "aqua",
    "numglue",
    "simuleq",
    "mathematics",
]
"""How rows are laid out; `layouts` says which columns each has, and `evaluation_sets` what those are of a set."""
PromptName = Literal["plain", "step_by_step", "program"]
"""What held-out questions ask for beside their answer; `prompts` says in which words."""


class SyntheticCorpus(Section):
    """The embedded corpus of table skills, in place of `path`."""

    rows: int = Field(6000, ge=1)
    """Training rows."""
    skills: int = Field(28, ge=1)
    """Number of table skills; their counts follow a Zipf law."""
    zipf: float = Field(1.2, ge=0)
    """Exponent of the Zipf law."""
    wrong: float = Field(0.02, ge=0, lt=1)
    """Share of training rows whose answer is wrong."""
    mistakes: Literal["random", "consistent"] = "random"
    """Whether wrong answers to the same thing differ or are alike."""
    copied: int = Field(0, ge=0)
    """Rows that stand several times."""
    copies: int = Field(1, ge=1)
    """How often each of them stands; what is more than once comes on top of `rows`."""


class InputPath(Section):
    """One input of a mixture."""

    path: str
    """File, folder or glob; a local path or a `pyarrow.fs` URI."""
    source: str | None = None
    """Source name of its rows, unless they carry their own; of an evaluation set its name, unless given."""
    format: FormatName | None = None
    """As `examples.format`, of this input alone."""
    columns: dict[str, str] | None = None
    """As `examples.columns`, of this input alone."""

    def __hash__(self) -> int:
        """Inputs are listed once for all arms that name them, by what names them."""
        return hash(self.model_dump_json())


class ExamplesConfig(Section):
    """Where the examples come from and how their columns are read."""

    path: str | tuple[InputPath, ...] | None = None
    """File, folder or glob, or a list of `{path, source}`."""
    synthetic: SyntheticCorpus | None = None
    """The embedded corpus instead of `path`."""
    format: FormatName = "auto"
    """How a row is laid out; `auto` decides by its columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name -> the data's column, e.g. `{instruction: task, output: solution, source: origin, id: uid}`."""
    on_bad_row: Literal["error", "reject"] = "error"
    """`error` stops at the first bad row; `reject` sets bad rows aside with a reason."""
    decontaminate: Literal["report", "drop"] = "report"
    """What happens to rows whose prompt is like a held-out one: they are counted, or no model is trained on them."""
    max_rejected: float = Field(0.01, ge=0, le=1)
    """Share of rows that may be set aside before the run stops."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ExamplesConfig":
        if (self.path is None) == (self.synthetic is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(f"expected exactly one of `path` and `synthetic`, found {found}")
        return self


class TokensConfig(Section):
    """How examples become token ids."""

    max_tokens: int = Field(512, ge=2)
    """Longest example [tokens]; what exceeds it is cut from the end."""
    template: TemplateName = "alpaca"
    """Text around prompt and response; `chat` is the tokenizer's own chat template."""
    proxy_template: TemplateName | None = None
    """The proxy's, where it differs: a base model has no chat template."""
    tokenizer: Literal["byte_bpe", "word_level"] = "byte_bpe"
    """Tokenizer to train where a model is built from a config; a pretrained model brings its own."""
    vocab_size: int = Field(4096, ge=16)
    """Upper limit of a trained tokenizer's vocabulary [tokens]."""

    def template_of(self, key: ModelKey) -> TemplateName:
        """Return the template of a section's model."""
        return self.proxy_template or self.template if key == "proxy" else self.template


class ScoreConfig(Section):
    """How the losses of all checkpoints are computed."""

    batch_tokens: int = Field(2048, ge=1)
    """Padded tokens per forward pass."""
    shard_rows: int = Field(4096, ge=1)
    """Rows per shard: the unit of work, of a retry, and of an output file."""
    checkpoints_per_pass: int | None = Field(None, ge=1)
    """Checkpoints held in memory at once; all of them unless set."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"


class TrajectoriesConfig(Section):
    """Trajectories that were computed elsewhere, in place of the proxy's."""

    path: str | None = None
    """Parquet (file, folder, glob, URI) with an id and a list of losses per row, or a local folder with a `losses.pt`
    per checkpoint, as the authors' code writes them; null: a proxy is trained."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name (`example_id`, `user_id`, `loss`, `loss_initial`) -> the Parquet files' column."""


class ClusterConfig(Section):
    """k-means on the trajectories."""

    n_clusters: int = Field(100, ge=1)
    """Clusters (K), per stratum or over all of them as `n_clusters_per` says."""
    n_clusters_per: Literal["stratum", "pool"] = "stratum"
    """`pool` shares K over the strata in proportion to the square roots of their sizes."""
    max_iter: int = Field(20, ge=1)
    """Lloyd iterations at most."""
    stratify_by: Literal["source"] | None = None
    """Cluster each value of this column on its own."""
    features: Literal["loss", "hidden_state"] = "loss"
    """What is clustered: trajectories, or the proxy's hidden states after training."""
    window: Literal["all", "early", "middle", "late"] | int = "all"
    """Checkpoints of the trajectory that are clustered: all, a third of them, or every n-th (the last included)."""
    guard: float | None = Field(None, gt=0)
    """Set rows aside whose last loss is at least this share of their first, and copies of equal rows."""
    init_rows: int = Field(65_536, ge=1)
    """Rows on which the start is chosen: those of lowest draw hash."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the start; derived from the root seed unless set."""

    @field_validator("window")
    @classmethod
    def _window_steps_forward(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected all, early, middle, late, or n >= 1 for every n-th checkpoint")
        return value

    @model_validator(mode="after")
    def _start_has_rows(self) -> "ClusterConfig":
        if self.n_clusters > self.init_rows:
            raise ValueError(f"n_clusters {self.n_clusters} needs at least as many init_rows, found {self.init_rows}")
        return self


Method = Literal[
    "paper",
    "official",
    "guarded",
    "random",
    "random_per_source",
    "full",
    "longest",
    "least_confidence",
    "middle_perplexity",
    "high_learnability",
    "curriculum",
    "facility_location",
    "embedding_kmeans",
]
"""The selectors; `sampling` says what each does."""


class SelectConfig(Section):
    """Which rows become the subset."""

    method: Method = "paper"
    """`paper` is Algorithm 1; `official` the rule of the authors' code, over clusters within each source; `guarded`
    sets `cluster.guard`, clusters each source and takes square-root quotas, each unless set otherwise."""
    budget: int | float | str = 0.1
    """int: rows; float up to 1: fraction of the kept rows; or "10%", "5k", "2M tokens"."""
    quota_exponent: float | None = Field(None, ge=0, le=1)
    """0: an even share per cluster; 1: proportional to size. Unless set: 0.5 for `guarded`, else 0."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the draw within a cluster; derived from the root seed unless set."""

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_parses(cls, value: Any) -> Any:
        from s2l_ray.budgets import parse_budget

        try:
            parse_budget(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value


class EvaluateConfig(Section):
    """What the target is judged on."""

    path: str | tuple[InputPath, ...] | None = None
    """Held-out data, or a list of `{path, source, format}`, e.g. `[{path: SVAMP.json, format: svamp}]`; null: a
    hash-held-out share of the examples."""
    columns: dict[str, str] = Field(default_factory=dict)
    """As `examples.columns`."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the examples that is held out where `path` is null."""
    metrics: tuple[MetricName, ...] = Field(("loss",), min_length=1)
    """`exact_match`: the answer word for word; `math_answer`: the final answer, as mathematics or as an option;
    `program_answer`: the same, of what programs compute; `pass_at_1`: a program passes its prompt's assertions;
    `bleu`, `rouge_l`, `bert_score`: how near a summary comes to its reference, 0 to 1."""
    encoder: EncoderConfig | None = None
    """What `bert_score` reads texts with."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest generated answer [tokens]."""
    prompt: PromptName = "plain"
    """What is asked for behind each held-out question: `step_by_step` thoughts, or a `program`, in MAmmoTH's words."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts at which an answer ends; the first of them, and what follows, is left out: `["\\n\\nQuestion:"]`."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates answers: `transformers` in fp32, or `vllm` in `target.precision`, faster on a GPU. What vLLM
    computes together follows from timing: where two tokens are about as likely, two runs may differ. The loss is
    transformers' either way."""
    max_rows: int | None = Field(None, ge=1)
    """Judge only this many rows, those of lowest hash."""
    batch_tokens: int = Field(4096, ge=1)
    """Padded tokens per forward pass."""

    @model_validator(mode="after")
    def _long_answers_have_room(self) -> "EvaluateConfig":
        if self.prompt != "plain" and "max_new_tokens" not in self.model_fields_set:
            raise ValueError(
                f"prompt: {self.prompt} asks for long answers, but max_new_tokens is left at {self.max_new_tokens}: "
                "set it as well, e.g. evaluate.max_new_tokens: 1024"
            )
        return self

    @model_validator(mode="after")
    def _bert_score_has_an_encoder(self) -> "EvaluateConfig":
        if "bert_score" in self.metrics and self.encoder is None:
            raise ValueError(
                "metrics has bert_score, which reads texts with a model: set evaluate.encoder, e.g. "
                "{model: FacebookAI/roberta-large, layer: 17}, or a local folder"
            )
        return self


class ReportConfig(Section):
    """The report."""

    examples: int = Field(20, ge=0)
    """Examples shown; 0 keeps every text of the data out of the report."""
    sample: int = Field(200, ge=0)
    """Rows on which gradients, and the losses of proxy and target, are compared; 0 leaves these checks out."""


class TrackingConfig(Section):
    """Which experiment trackers are told what a run came to. Never part of a fingerprint."""

    to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Trackers; each but `tensorboard` is an extra of the package."""
    project: str = Field("s2l-ray", min_length=1)
    """MLflow's experiment, or the project of Weights & Biases."""
    uri: str | None = None
    """Folder of TensorBoard's files (`runs` unless set), MLflow's tracking URI, or the folder of W&B's files."""


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
                raise ValueError(
                    f"resources.{name}.launcher: task trains with one worker and the torch engine, found "
                    f"{asked.workers} workers and {engine}; set target.engine: torch and workers: 1, or launcher: gang"
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
        if gpus not in (0, 1):
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
