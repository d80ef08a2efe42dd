"""The sections `evaluate`, `report` and `tracking`: what a target is judged by, and who is told."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from s2l_ray.config.data import InputPath
from s2l_ray.config.models import EncoderConfig
from s2l_ray.config.section import Section

MetricName = Literal[
    "loss", "exact_match", "math_answer", "program_answer", "pass_at_1", "bleu", "rouge_l", "bert_score"
]
"""What held-out rows are judged by; `judging.metrics` says how."""
PromptName = Literal["plain", "step_by_step", "program"]
"""What held-out questions ask for beside their answer; `prompts` says in which words."""


class EvaluateConfig(Section):
    """What the target is judged on."""

    path: str | tuple[InputPath, ...] | None = None
    """Held-out data, or a list of `{path, source, format}`, e.g. `[{path: SVAMP.json, format: svamp}]`; null: a
    hash-held-out share of the examples."""
    columns: dict[str, str | None] = Field(default_factory=dict)
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
