"""The metrics of answers: by name, what judges them, what a row must carry, and what has to be there to judge.

`loss` is none of them: it judges no answer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray.answers import is_exact_match
from s2l_ray.config import EncoderConfig
from s2l_ray.errors import DataError
from s2l_ray.judging import bert_score, execution, math_answers, programs, summaries, symbolic
from s2l_ray.scoring import Mean, mean_of, share_of


@dataclass(frozen=True)
class Answered:
    """A held-out row and what a model answered.

    Attributes:
        question: the last turn before the reference.
        reference: the expected answer, as the data has it.
        expected: the same as the tokenizer gives it back, cut where tokens were cut.
        prediction: what the model said.
    """

    question: str
    reference: str
    expected: str
    prediction: str


@dataclass(frozen=True)
class Judged:
    """The verdicts on some rows; None where a row has nothing to be judged by.

    Attributes:
        verdicts: right or wrong, a score from 0 to 1, or what the score of several rows is computed from.
        unsettled: comparisons that were ended because they took too long, and count as wrong.
    """

    verdicts: Sequence[bool | float | Sequence[int] | None]
    unsettled: int = 0


@dataclass(frozen=True)
class Aids:
    """What some judges need beside the answers.

    Attributes:
        encoder: the model that `bert_score` reads texts with.
        device: where it runs, as torch calls it.
    """

    encoder: EncoderConfig | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Metric:
    """How answers are judged.

    Attributes:
        judge: gives a verdict on every row.
        column: type of a verdict.
        mean: score of some rows together, from their verdicts [N] or [N, C].
        judged_by: name and version of the judge, part of the scores' address; empty where nothing could change.
        can_judge: whether a question and its reference hold what it takes.
        asks: what that is, for messages.
        check: refuses to begin where something is not installed.
        runs_programs: it runs what a model wrote, which takes a permission.
    """

    judge: Callable[[Sequence[Answered], Aids], Judged]
    column: pa.DataType = field(default_factory=pa.bool_)
    mean: Callable[[NDArray[Any]], Mean] = share_of
    judged_by: str = ""
    can_judge: Callable[[str, str], bool] = lambda question, reference: True
    asks: str = "an answer"
    check: Callable[[], None] = lambda: None
    runs_programs: bool = False


def _exact_matches(rows: Sequence[Answered], _: Aids) -> Judged:
    return Judged([is_exact_match(row.prediction, row.expected) for row in rows])


def _math_answers(rows: Sequence[Answered], _: Aids) -> Judged:
    with symbolic.MathVerify() as judge:
        verdicts = [math_answers.is_right(row.question, row.reference, row.prediction, judge) for row in rows]
        return Judged(verdicts, judge.unsettled)


def _program_answers(rows: Sequence[Answered], _: Aids) -> Judged:
    with symbolic.MathVerify() as judge:
        verdicts = [programs.computes_right(row.question, row.reference, row.prediction, judge) for row in rows]
        return Judged(verdicts, judge.unsettled)


def _passes(rows: Sequence[Answered], _: Aids) -> Judged:
    return Judged([programs.passes(row.question, row.prediction) for row in rows])


def _bleu_counts(rows: Sequence[Answered], _: Aids) -> Judged:
    return Judged(
        [summaries.bleu_counts(row.reference, row.prediction) if row.reference.strip() else None for row in rows]
    )


def _rouge_l(rows: Sequence[Answered], _: Aids) -> Judged:
    return Judged(
        [
            summaries.rouge_l(row.reference, row.prediction) if summaries.has_words(row.reference) else None
            for row in rows
        ]
    )


def _bert_scores(rows: Sequence[Answered], aids: Aids) -> Judged:
    assert aids.encoder is not None
    judged = [row for row in rows if row.reference.strip()]
    encoder = bert_score.load_encoder(aids.encoder, aids.device)
    scores = iter(encoder.scores([(row.reference, row.prediction) for row in judged]))
    return Judged([next(scores) if row.reference.strip() else None for row in rows])


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(_exact_matches),
    "math_answer": Metric(
        _math_answers,
        judged_by=math_answers.JUDGE,
        can_judge=math_answers.has_answer,
        asks="a final answer in its reference: `\\boxed{}`, `#### 18`, `The answer is 18`, or nothing else",
        check=symbolic.check_installed,
    ),
    "program_answer": Metric(
        _program_answers,
        judged_by=f"{math_answers.JUDGE} {programs.JUDGE}",
        can_judge=programs.can_compute,
        asks="a final answer in its reference, or a program that computes it",
        check=symbolic.check_installed,
        runs_programs=True,
    ),
    "pass_at_1": Metric(
        _passes,
        judged_by=programs.JUDGE,
        can_judge=lambda question, reference: bool(programs.assertions_of(question)),
        asks="its assertions in its prompt, as in `Your code should pass: assert add(1, 2) == 3`",
        runs_programs=True,
    ),
    "bleu": Metric(
        _bleu_counts,
        column=pa.list_(pa.int64(), summaries.COUNTS),
        mean=summaries.corpus_bleu,
        judged_by=summaries.BLEU_JUDGE,
        can_judge=lambda question, reference: bool(reference.strip()),
        asks="a reference that is not empty",
        check=summaries.check_installed,
    ),
    "rouge_l": Metric(
        _rouge_l,
        column=pa.float64(),
        mean=mean_of,
        judged_by=summaries.ROUGE_JUDGE,
        can_judge=lambda question, reference: summaries.has_words(reference),
        asks="a reference with letters from a to z, or digits: ROUGE knows no others",
    ),
    "bert_score": Metric(
        _bert_scores,
        column=pa.float64(),
        mean=mean_of,
        judged_by=bert_score.JUDGE,
        can_judge=lambda question, reference: bool(reference.strip()),
        asks="a reference that is not empty",
    ),
}


def is_share(name: str) -> bool:
    """Return whether a metric is a share of rows."""
    return name in METRICS and METRICS[name].mean is share_of


def is_of_rows(name: str) -> bool:
    """Return whether a metric is a mean of what each row has for itself."""
    return name not in METRICS or METRICS[name].mean in (share_of, mean_of)


def answer_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return those of some metrics that judge answers, in the order of the registry."""
    asked = set(names)
    return {name: metric for name, metric in METRICS.items() if name in asked}


def judges_of(names: Iterable[str]) -> dict[str, str]:
    """Return metric -> judge, of the metrics whose verdicts are a judge's."""
    return {name: metric.judged_by for name, metric in answer_metrics(names).items() if metric.judged_by}


def verdict_columns(names: Iterable[str]) -> dict[str, pa.DataType]:
    """Return metric -> type of its verdicts, of the metrics that judge answers."""
    return {name: metric.column for name, metric in answer_metrics(names).items()}


def check_metrics(names: Iterable[str], *, allow_code_execution: bool) -> None:
    """Refuse metrics that cannot be judged here.

    Args:
        allow_code_execution: programs that a model wrote may run.

    Raises:
        ConfigError: something is not installed, or not allowed.
    """
    for name, metric in answer_metrics(names).items():
        metric.check()
        if metric.runs_programs:
            execution.check_allowed(name, allow_code_execution)


def check_rows(names: Iterable[str], rows: Iterable[tuple[str, str]], count: int) -> None:
    """Refuse held-out rows of which a metric can judge none.

    Args:
        rows: question and reference of each; no more are taken than it takes to know.
        count: how many they are.

    Raises:
        DataError: with what the metric asks of a row.
    """
    waiting = answer_metrics(names)
    for row in rows:
        waiting = {name: metric for name, metric in waiting.items() if not metric.can_judge(*row)}
        if not waiting:
            return
    for name, metric in waiting.items():
        raise DataError(
            f"evaluate.metrics: {name} can judge none of {count} held-out rows: each would need {metric.asks}. "
            "Leave the metric out, or name other data with evaluate.path."
        )
