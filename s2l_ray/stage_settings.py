"""What each stage is told, beyond its section of the config."""

from collections.abc import Mapping
from dataclasses import dataclass

from s2l_ray.config import (
    ClusterConfig,
    Config,
    EvaluateConfig,
    ExamplesConfig,
    ModelConfig,
    PromptName,
    ProxyConfig,
    ReportConfig,
    SelectConfig,
    TargetConfig,
    TemplateName,
    TokensConfig,
)
from s2l_ray.digests import OutsideFile
from s2l_ray.input_files import InputFile


@dataclass(frozen=True)
class PrepareSettings:
    """What `prepare_examples` is to do."""

    examples: ExamplesConfig
    files: tuple[InputFile, ...]
    part: str
    """`train`, `held_out` (by hash), `eval` (the generator's held-out rows), or `all`."""
    held_out: float
    """Share of the rows that is held out by hash."""
    synthetic_seed: int
    key: str
    """Config section, for messages."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What `prepare_tokenizer` is to do: take a pretrained model's, or train one."""

    tokens: TokensConfig
    template: TemplateName
    pretrained: ModelConfig | None
    key: str


@dataclass(frozen=True)
class TokenizeSettings:
    """What `tokenize_examples` is to do."""

    max_tokens: int
    template: TemplateName
    examples: ExamplesConfig
    """For what becomes of rows that the template refuses."""
    prompt: PromptName = "plain"
    """What is asked for behind the last question of each."""


@dataclass(frozen=True)
class ProxySettings:
    """A training run of the proxy."""

    model: ProxyConfig
    max_tokens: int


@dataclass(frozen=True)
class ImportSettings:
    """Which trajectories `import_trajectories` is to read."""

    files: tuple[OutsideFile, ...]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class TargetSettings:
    """A training run of the target."""

    model: TargetConfig
    max_tokens: int


@dataclass(frozen=True)
class SelectSettings:
    """What `select_subset` is to do, and where the raw rows are."""

    select: SelectConfig
    files: tuple[InputFile, ...]


@dataclass(frozen=True)
class EvaluateSettings:
    """What `evaluate_target` is to do."""

    evaluate: EvaluateConfig
    precision: str
    allow_code_execution: bool
    """Programs that a model wrote may run: it decides whether, not what, so no address holds it."""


@dataclass(frozen=True)
class CompareSettings:
    """What `compare_arms` is to do."""

    baselines: Mapping[str, str]
    """Arm -> the arm that it is held against, row by row."""


@dataclass(frozen=True)
class DiagnoseSettings:
    """What `diagnose_selection` is to do."""

    sample: int
    """Rows whose gradients are computed."""
    cluster: ClusterConfig
    target_precision: str


@dataclass(frozen=True)
class ReportSettings:
    """What `write_report` is to do."""

    report: ReportConfig
    arms: Mapping[str, Config]
    name: str
    text: str
    """The experiment as a file that would run again."""
