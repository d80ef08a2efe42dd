"""The config: every section with its defaults, each on its field and nowhere else; unknown keys are refused.

Seeds that are not set derive from the root `seed`, so that a stage's
settings hold only its own seed. Sections that say *where* a thing runs (`resources`, `storage`) never reach
a fingerprint.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from s2l_ray.errors import ConfigError

MARKET_LABEL = "ray.io/market-type"
"""Ray's own label for how a node was bought: `spot` or `on-demand`."""
MAX_SEED = 2**63 - 1
"""What torch and numpy both take."""
SEEDED = ("proxy", "cluster", "select", "target")
"""The sections with a seed of their own."""


class Section(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number stands: Python would read it as 1."""
        expected = cls.model_fields[info.field_name or ""].annotation
        items = value if isinstance(value, list | tuple) else (value,)
        if expected is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("true and false are no values of this key")
        return value


TemplateName = Literal["alpaca", "plain", "chat"]
MetricName = Literal["loss", "exact_match", "math_answer", "program_answer", "pass_at_1"]
"""What held-out rows are judged by; `judging.metrics` says how."""
ModelKey = Literal["proxy", "target"]
"""The sections that describe a model."""


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
    """Source name of its rows, unless they carry their own."""


class ExamplesConfig(Section):
    """Where the examples come from and how their columns are read."""

    path: str | tuple[InputPath, ...] | None = None
    """File, folder or glob, or a list of `{path, source}`."""
    synthetic: SyntheticCorpus | None = None
    """The embedded corpus instead of `path`."""
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "sharegpt", "question_answer", "text"] = "auto"
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


class ModelConfig(Section):
    """Which model, and how it is trained. Shared by proxy and target."""

    model: str | FreshModel
    """Hugging Face id, local folder, or a `FreshModel` mapping."""
    revision: str | None = None
    """Commit of a Hugging Face id."""
    trust_remote_code: bool = False
    """Run code that comes with the model; needs a pinned 40-hex `revision`."""
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
    """`auto` is bf16 on a GPU that supports it, else fp32."""
    deterministic: bool = False
    """Ask torch for deterministic kernels on a GPU."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of weights and batch order; derived from the root seed unless set."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "ModelConfig":
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code needs `revision` to be a full 40-hex commit")
        return self


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
        from s2l_ray.sampling import parse_budget

        try:
            parse_budget(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value


class TargetConfig(ModelConfig):
    """The large model that is fine-tuned on the subset."""

    model: str | FreshModel = "microsoft/phi-2"
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 3
    """DeepSpeed's ZeRO stage."""
    match: Literal["epochs", "steps", "tokens"] = "epochs"
    """What arms have in common: passes over their own rows, optimizer steps of `full`, or tokens of `full`."""
    order: Literal["shuffled", "rank"] = "shuffled"
    """Order of the rows in an epoch."""


class EvaluateConfig(Section):
    """What the target is judged on."""

    path: str | tuple[InputPath, ...] | None = None
    """Held-out data; null: a hash-held-out share of the examples."""
    columns: dict[str, str] = Field(default_factory=dict)
    """As `examples.columns`."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the examples that is held out where `path` is null."""
    metrics: tuple[MetricName, ...] = Field(("loss",), min_length=1)
    """`exact_match`: the answer word for word; `math_answer`: the final answer, as mathematics or as an option;
    `program_answer`: the same, of what programs compute; `pass_at_1`: a program passes its prompt's assertions."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest generated answer [tokens]."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts at which an answer ends; the first of them, and what follows, is left out: `["\\n\\nQuestion:"]`."""
    max_rows: int | None = Field(None, ge=1)
    """Judge only this many rows, those of lowest hash."""
    batch_tokens: int = Field(4096, ge=1)
    """Padded tokens per forward pass."""


class ReportConfig(Section):
    """The report."""

    examples: int = Field(20, ge=0)
    """Examples shown; 0 keeps every text of the data out of the report."""
    sample: int = Field(200, ge=0)
    """Rows on which gradients, and the losses of proxy and target, are compared; 0 leaves these checks out."""


class Demand(Section, ABC):
    """What each worker of a stage asks of the cluster."""

    cpus: float = Field(1, gt=0)
    """CPUs per worker, as Ray counts them."""
    gpus: float = Field(0, ge=0)
    """GPUs per worker."""
    memory: ByteSize | None = None
    """Memory per worker that Ray sets aside, such as "16GiB"; it limits nothing."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Custom resources per worker, as the nodes declare them."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must carry, as Ray's label selectors are written: `{gpu-family: "in(a100, h100)"}`."""
    market: Literal["any", "spot", "on-demand"] = "any"
    """Only nodes that may be taken away at any time, or only those that may not, as Ray labels them."""
    threads: int = Field(1, ge=1)
    """Threads of the arithmetic libraries per worker."""

    counted_by: ClassVar[str]
    """The key that says how many workers."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Workers without which the stage makes no progress."""

    @property
    def total_cpus(self) -> float:
        """CPUs without which the stage makes no progress."""
        return self.count * self.cpus

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker asks for, by Ray's names."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory or 0), **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def selector(self) -> dict[str, str]:
        """What a worker's node must carry."""
        return self.labels | ({} if self.market == "any" else {MARKET_LABEL: self.market})


class TrainResources(Demand):
    """What one training run asks of the cluster."""

    counted_by: ClassVar[str] = "workers"
    workers: int = Field(1, ge=1)
    launcher: Literal["gang", "task"] = "gang"
    """`gang`: workers that Ray Train starts together. `task`: one plain Ray task, seconds quicker to start, which
    begins anew when it is killed; for `target.engine: torch` and one worker."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group after a dead worker."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between the points that a killed run goes on from; a fifth of the run unless set."""

    @property
    def count(self) -> int:
        """All workers: they start together."""
        return self.workers


class PoolResources(Demand):
    """What a stage over shards asks of the cluster."""

    counted_by: ClassVar[str] = "actors"
    actors: tuple[int, int] = (1, 8)
    """Fewest and most workers; the pool grows and shrinks between them."""

    @field_validator("actors")
    @classmethod
    def _bounds(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("expected [fewest, most] with 1 <= fewest <= most")
        return value

    @property
    def count(self) -> int:
        """The fewest."""
        return self.actors[0]


class ResourcesConfig(Section):
    """Where it runs. Never part of a fingerprint."""

    address: str | None = None
    """Ray cluster to join; null: `RAY_ADDRESS` where set, else a local Ray."""
    wait_seconds: float = Field(1800, gt=0)
    """Longest wait for what a stage asks for, while nodes come up or others use them [s]."""
    prepare_examples: PoolResources = PoolResources()
    tokenize_examples: PoolResources = PoolResources()
    train_proxy: TrainResources = TrainResources()
    score_examples: PoolResources = PoolResources()
    """Also for the hidden states, and for the report's checks on proxy and target."""
    cluster_trajectories: PoolResources = PoolResources()
    finetune_target: TrainResources = TrainResources()
    evaluate_target: PoolResources = PoolResources()

    def of(self, stage: str) -> Demand | None:
        """Return what a stage asks for; None where it needs nothing worth asking for."""
        key = "score_examples" if stage in ("embed_examples", "diagnose_selection") else stage
        found = getattr(self, key, None)
        return found if isinstance(found, Demand) else None


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
                from s2l_ray.guard import THRESHOLD

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


def derive_seed(root: int, name: str) -> int:
    """Return a 31-bit seed that depends on the root seed and a name only."""
    return int.from_bytes(hashlib.sha256(f"{root}/{name}".encode()).digest()[:4], "big") >> 1
