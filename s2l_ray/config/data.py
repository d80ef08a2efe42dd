"""The sections `examples` and `tokens`: what the rows are, and how models read them."""

from typing import Literal

from pydantic import Field, model_validator

from s2l_ray.config.models import ModelKey
from s2l_ray.config.section import Section

TemplateName = Literal["alpaca", "plain", "chat"]
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
    columns: dict[str, str | None] | None = None
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
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Our name -> the data's column, e.g. `{instruction: task, output: solution, source: origin, id: uid}`; null where
    the data's column of that name is something else: `{source: null}`."""
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
