"""The config: one sparse YAML per experiment, every default on its field, unknown keys refused.

`load_experiment` reads a file and `--set` lines into an `Experiment`; its arms are `Config`s that share
what precedes their first difference. Seeds that are not set derive from the root `seed`, so that a stage's
settings hold only its own seed. Sections that say *where* a thing runs (`resources`, `storage`) never reach
a fingerprint.
"""

import difflib
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from s2l_ray.errors import ConfigError

MAIN_ARM = "main"

MAX_SEED = 2**63 - 1
"""What torch and numpy both take."""
SEEDED = ("proxy", "cluster", "select", "target")
"""The sections with a seed of their own."""
SHARED = ("storage", "resources")
"""What all arms have in common: one run has one storage and one Ray."""
MAX_SHOWN = 120
"""Characters of a wrong value in a message."""


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
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "question_answer"] = "auto"
    """How a row is laid out; `auto` decides by its columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name -> the data's column, e.g. `{instruction: task, output: solution, source: origin, id: uid}`."""
    on_bad_row: Literal["error", "reject"] = "error"
    """`error` stops at the first bad row; `reject` sets bad rows aside with a reason."""
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
    template: Literal["alpaca", "plain"] = "alpaca"
    """Text around prompt and response."""
    tokenizer: Literal["byte_bpe", "word_level"] = "byte_bpe"
    """Tokenizer to train where a model is built from a config; a pretrained model brings its own."""
    vocab_size: int = Field(4096, ge=16)
    """Upper limit of a trained tokenizer's vocabulary [tokens]."""


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


class ClusterConfig(Section):
    """k-means on the trajectories."""

    n_clusters: int = Field(100, ge=1)
    """Clusters per stratum (K)."""
    max_iter: int = Field(20, ge=1)
    """Lloyd iterations at most."""
    stratify_by: Literal["source"] | None = None
    """Cluster each value of this column on its own."""
    init_rows: int = Field(65_536, ge=1)
    """Rows on which the start is chosen: those of lowest draw hash."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the start; derived from the root seed unless set."""

    @model_validator(mode="after")
    def _start_has_rows(self) -> "ClusterConfig":
        if self.n_clusters > self.init_rows:
            raise ValueError(f"n_clusters {self.n_clusters} needs at least as many init_rows, found {self.init_rows}")
        return self


class SelectConfig(Section):
    """Which rows become the subset."""

    method: Literal["paper", "official", "random", "random_per_source", "full"] = "paper"
    """`paper` is Algorithm 1; `official` the rule of the authors' code, over clusters within each source."""
    budget: int | float | str = 0.1
    """int: rows; float up to 1: fraction of the kept rows; or "10%", "5k", "2M tokens"."""
    quota_exponent: float = Field(0.0, ge=0, le=1)
    """0: an even share per cluster; 1: proportional to size."""
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
    metrics: tuple[Literal["loss", "exact_match"], ...] = Field(("loss",), min_length=1)
    max_new_tokens: int = Field(64, ge=1)
    """Longest generated answer [tokens]."""
    max_rows: int | None = Field(None, ge=1)
    """Judge only this many rows, those of lowest hash."""
    batch_tokens: int = Field(4096, ge=1)
    """Padded tokens per forward pass."""


class ReportConfig(Section):
    """The report."""

    examples: int = Field(20, ge=0)
    """Examples shown."""


class TrainResources(Section):
    """What one training run asks of the cluster."""

    workers: int = Field(1, ge=1)
    cpus: float = Field(1, gt=0)
    """CPUs per worker, as Ray counts them."""
    gpus: float = Field(0, ge=0)
    """GPUs per worker."""
    threads: int = Field(1, ge=1)
    """Torch threads per worker."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group after a dead worker."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between the points that a killed run goes on from; a fifth of the run unless set."""


class PoolResources(Section):
    """What a stage over shards asks of the cluster."""

    actors: tuple[int, int] = (1, 8)
    """Fewest and most workers; the pool grows and shrinks between them."""
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    threads: int = Field(1, ge=1)

    @field_validator("actors")
    @classmethod
    def _bounds(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("expected [fewest, most] with 1 <= fewest <= most")
        return value


class ResourcesConfig(Section):
    """Where it runs. Never part of a fingerprint."""

    address: str | None = None
    """Ray cluster to join; null: `RAY_ADDRESS` where set, else a local Ray."""
    prepare_examples: PoolResources = PoolResources()
    tokenize_examples: PoolResources = PoolResources()
    train_proxy: TrainResources = TrainResources()
    score_examples: PoolResources = PoolResources()
    cluster_trajectories: PoolResources = PoolResources()
    finetune_target: TrainResources = TrainResources()
    evaluate_target: PoolResources = PoolResources()


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
    cluster: ClusterConfig = ClusterConfig()
    select: SelectConfig = SelectConfig()
    target: TargetConfig = TargetConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
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
    def _official_is_stratified(self) -> "Config":
        if self.select.method == "official" and self.cluster.stratify_by != "source":
            cluster = self.cluster.model_copy(update={"stratify_by": "source"})
            object.__setattr__(self, "cluster", cluster)
        return self


@dataclass(frozen=True)
class Experiment:
    """A config file as read: its arms, each a complete `Config`, and the sparse text they came from."""

    name: str
    arms: Mapping[str, Config]
    sparse: Mapping[str, Any]

    @property
    def shared(self) -> Config:
        """What all arms have in common for storage and resources: the first arm."""
        return next(iter(self.arms.values()))


def derive_seed(root: int, name: str) -> int:
    """Return a 31-bit seed that depends on the root seed and a name only."""
    return int.from_bytes(hashlib.sha256(f"{root}/{name}".encode()).digest()[:4], "big") >> 1


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read a YAML file, apply `--set` lines, and return its arms.

    Args:
        path: the YAML file.
        overrides: lines `dotted.path=value`; a value is read as a YAML scalar, list or mapping.

    Raises:
        ConfigError: the file, a key or a value is not what it must be.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}. Give the path of a UTF-8 YAML file.") from error
    return parse_experiment(parse_yaml(text, origin=str(path)), overrides or [], origin=str(path), name=path.stem)


def parse_experiment(data: Any, overrides: list[str], *, origin: str, name: str) -> Experiment:
    """Turn a parsed mapping and `--set` lines into an `Experiment`; see `load_experiment`."""
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: found {_kind(data)}, expected a mapping of sections such as `examples:`.")
    data = dict(data)
    arms = data.pop("arms", None)
    if "sweep" in data and data.pop("sweep"):
        raise ConfigError(f"{origin}: `sweep` is not run by this version; remove it or leave it empty.")
    if arms is not None and (not isinstance(arms, dict) or not all(isinstance(a, dict) for a in arms.values())):
        raise ConfigError(f"{origin}: `arms` must map a name to overrides, e.g. `random: {{select.method: random}}`.")
    set_paths = []
    for line in overrides:
        dotted, value = parse_override(line)
        if dotted.partition(".")[0] in ("arms", "sweep"):
            raise ConfigError(
                f"--set {line!r}: found `arms` or `sweep`, expected a value of a section. Write them in {origin}; "
                "to run one variant alone, set its own paths, e.g. `--set select.method=random`."
            )
        set_paths.append(dotted)
        data = override(data, dotted, value)
    for arm, changes in (arms or {}).items():
        _check_arm(arm, changes, origin)
    clash = any(_overlap(s, str(p)) for s in set_paths for arm in (arms or {}).values() for p in arm)
    if not arms or clash:
        arms = {MAIN_ARM: {}}
    configs = {}
    for arm, changes in arms.items():
        arm_data = data
        for dotted, value in changes.items():
            arm_data = override(arm_data, str(dotted), value)
        where = origin if arm == MAIN_ARM else f"{origin} (arm {arm})"
        configs[str(arm)] = _validate(arm_data, where)
    return Experiment(name=name, arms=configs, sparse=data | {"arms": arms})


def _check_arm(arm: Any, changes: Mapping[Any, Any], origin: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(arm)):
        raise ConfigError(f"{origin}: arm name {arm!r}: expected letters, digits, `_` or `-`, 40 at most.")
    for dotted, value in changes.items():
        if str(dotted).partition(".")[0] in SHARED:
            raise ConfigError(
                f"{origin} (arm {arm}): found `{dotted}`, which all arms share. Set it outside `arms`, or with `--set`."
            )
        if isinstance(value, Mapping) and dotted in Config.model_fields:
            # It would replace the section, and silently drop what the file sets there for all arms.
            first = next(iter(value), "...")
            raise ConfigError(
                f"{origin} (arm {arm}): found the whole section `{dotted}`, expected dotted keys. "
                f"Write `{dotted}.{first}: ...`."
            )


def override(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """Return a copy of `data` with the value at a dotted path replaced; missing sections are made.

    Raises:
        ConfigError: the path is empty or runs through something that is not a section.
    """
    head, _, rest = dotted.partition(".")
    if not head or (not rest and dotted.endswith(".")):
        raise ConfigError(f"override path {dotted!r}: expected names joined by dots, e.g. `cluster.n_clusters`.")
    result = dict(data)
    if not rest:
        result[head] = value
        return result
    section = result.get(head)
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"override path {dotted!r}: `{head}` is {_kind(section)}, not a section.")
    result[head] = override(section or {}, rest, value)
    return result


def parse_override(line: str) -> tuple[str, Any]:
    """Split a `--set` line into its path and its value.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    dotted, equals, text = line.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"--set {line!r}: expected `path=value`, e.g. `--set cluster.n_clusters=200`.")
    return dotted.strip(), parse_yaml(text, origin=f"--set {line}")


class _StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, `no` is a word, a key stands once; no aliases, no tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        found = None
        if isinstance(event, yaml.events.AliasEvent) or event.anchor is not None:
            found = "an alias" if isinstance(event, yaml.events.AliasEvent) else "an anchor"
        elif event.tag not in (None, "!"):
            found = f"the tag {event.tag}"
        if found:
            raise yaml.constructor.ConstructorError(
                None, None, f"found {found}, expected plain values", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_NUMBER = re.compile(
    r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][\d_]*)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def parse_yaml(text: str, *, origin: str) -> Any:
    """Parse YAML with the strict loader.

    Raises:
        ConfigError: not YAML, a repeated key, an alias, an anchor, or a tag.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise ConfigError(f"{origin}: lists or mappings are nested too deep. Expected plain YAML.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{origin}{line}: {problem}. Expected plain YAML; mend that line.") from error


def _validate(data: Mapping[str, Any], origin: str) -> Config:
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        # A mapping or list was not meant as the text that the key may also hold.
        meant = [d for d in details if d["type"] != "string_type" or not isinstance(d["input"], Mapping | list)]
        lines = [f"{origin}: {_explain(detail)}" for detail in meant or details]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error
    _check_finite(config.model_dump(), origin)
    return config


def _check_finite(value: Any, origin: str, dotted: str = "") -> None:
    if isinstance(value, Mapping):
        for key, child in value.items():
            _check_finite(child, origin, f"{dotted}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _check_finite(child, origin, f"{dotted}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{origin}: `{dotted}`: found {value}, expected a finite number.")


_BRANCH = re.compile(r"(?:FreshModel|str|int|float)$|tuple\[|function-")
"""Where pydantic names the type that it tried instead of a key."""


def _explain(detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"] if not _BRANCH.match(str(part))]
    dotted = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}."
        return f"unknown key `{dotted}`; {hint}"
    if detail["type"] == "missing":
        in_list = any(isinstance(part, int) for part in detail["loc"])
        advice = "" if in_list else f" or with `--set {dotted}=...`"
        return f"`{dotted}` is missing; set it in the file{advice}."
    message = detail["msg"].removeprefix("Value error, ")
    found = detail["input"]
    shown = "" if isinstance(found, Mapping | BaseModel) else f"found {_shown(found)}; "
    return f"`{dotted}`: {shown}{message[0].lower()}{message[1:].rstrip('.')}."


def _known_keys(path: list[str]) -> list[str]:
    model: type[Section] | None = Config
    for name in path:
        if model is None:
            return []
        if name.isdigit():
            continue
        field = model.model_fields.get(name)
        model = _section_in(field.annotation) if field else None
    keys = list(model.model_fields) if model else []
    return [*keys, "arms", "sweep"] if model is Config else keys


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a field holds, be it one of several types or inside a list."""
    if arguments := get_args(annotation):
        return next((found for argument in arguments if (found := _section_in(argument))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
