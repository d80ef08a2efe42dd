"""The metrics of answers: what each needs, what it says of a row, and what of it is in the scores' address."""

import itertools
import json
from typing import get_args

import pytest

from s2l_ray import cli, schemas
from s2l_ray.config import MetricName
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.judging import math_answers, symbolic
from s2l_ray.judging.metrics import METRICS, Aids, Answered, check_metrics, check_rows, judges_of, verdict_columns
from s2l_ray.judging.symbolic import MathVerify
from s2l_ray.significance import HIGHER_IS_BETTER
from s2l_ray.turns import Turn, last_exchange, lost_an_answer

ADDING = "Write a function.\nYour code should pass: assert add(1, 2) == 3"


def answered(question, reference, prediction):
    return Answered(question, reference, reference, prediction)


def verdicts(name, *rows):
    return METRICS[name].judge([answered(*row) for row in rows], Aids()).verdicts


def test_config_offers_the_metrics_that_there_are():
    assert get_args(MetricName) == ("loss", *METRICS)
    assert {f"macro_{name}" for name in METRICS} <= set(HIGHER_IS_BETTER)


def test_exact_match_compares_with_what_the_tokenizer_gives_back():
    row = Answered("q", "the whole reference", "the whole", "the whole")
    assert METRICS["exact_match"].judge([row], Aids()).verdicts == [True]


def test_math_answer_judges_the_rows_whose_reference_has_an_answer():
    pytest.importorskip("math_verify")
    found = verdicts(
        "math_answer",
        ("How many?", "She has 5 left.\n#### 5", "The answer is 5.0"),
        ("How long?", "It is $\\boxed{2\\sqrt{5}}$.", "so we get \\sqrt{20}"),
        ("How many?", "#### 5", "The answer is 6"),
        ("Which?\nAnswer Choices: A) 1 B) 2", "The answer is B", "2"),
        ("Prove it.", "def proof():\n    return 1", "The answer is 1"),
    )
    assert found == [True, True, False, True, None]


def test_program_metrics_run_what_was_said():
    pytest.importorskip("math_verify")
    assert verdicts("program_answer", ("How many?", "#### 5", "print(2 + 3)")) == [True]
    found = verdicts(
        "pass_at_1",
        (ADDING, "", "def add(a, b): return a + b"),
        (ADDING, "", "add = 1"),
        ("Write a function.", "", "def add(a, b): return a + b"),
    )
    assert found == [True, False, None]


def test_judges_are_those_of_metrics_that_have_one():
    assert judges_of(["loss", "exact_match"]) == {}
    assert judges_of(["loss", "math_answer"]) == {"math_answer": math_answers.JUDGE}
    assert math_answers.JUDGE in judges_of(["program_answer"])["program_answer"]


def test_metric_whose_package_is_missing_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(symbolic, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"s2l-ray\[math\]"):
        check_metrics(["loss", "math_answer"], allow_code_execution=False)
    check_metrics(["loss", "exact_match"], allow_code_execution=False)


def test_metric_that_runs_programs_is_refused_unless_the_command_line_allows_it(capsys, tmp_path):
    line = ["run", "workflows/quickstart.yaml", "--storage", str(tmp_path), "--set", "evaluate.metrics=[pass_at_1]"]
    assert cli.main(line) == 2
    assert "--allow-code-execution" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    # No file can allow it.
    assert cli.main([*line, "--set", "evaluate.allow_code_execution=true"]) == 2
    assert "allow_code_execution" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("math_answer", ("q", "#### 5"), ("q", "That is so because it is so, and it was never otherwise, said he.")),
        (
            "program_answer",
            ("q", "def solution():\n    return 5"),
            ("q", "It is so, and it was never otherwise, he said."),
        ),
        ("pass_at_1", (ADDING, ""), ("Write a function.", "assert 1 == 1")),
    ],
)
def test_held_out_rows_of_which_a_metric_can_judge_none_are_refused(metric, good, bad):
    check_rows(["loss", metric], iter([bad, good]), 2)
    with pytest.raises(DataError, match=metric):
        check_rows(["loss", metric], iter([bad, bad]), 2)


def test_no_more_held_out_rows_are_looked_at_than_it_takes():
    check_rows(["math_answer", "rouge_l"], itertools.repeat(("q", "#### 5")), 1)


def test_predictions_have_a_column_for_each_metric_and_stay_as_they_were_for_the_old():
    assert schemas.predictions(verdict_columns(["loss", "exact_match"])) == schemas.PREDICTIONS
    found = schemas.predictions(verdict_columns(["math_answer", "bleu", "rouge_l"]))
    assert found.names == [*schemas.PREDICTIONS.names, "math_answer", "bleu", "rouge_l"]
    assert [str(found.field(name).type) for name in found.names[-3:]] == [
        "bool", "fixed_size_list<item: int64>[10]", "double",
    ]  # fmt: skip


def test_last_exchange_is_what_was_asked_last_and_its_answer():
    turns = [Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("input", "d")]
    assert last_exchange([*turns, Turn("assistant", "e")]) == ("c\nd", "e")
    assert last_exchange([Turn("text", "e")]) == ("", "e")


def test_row_that_was_cut_before_an_answer_has_lost_one():
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    assert [lost_an_answer(turns, spans) for spans in (1, 2)] == [True, False]


# -------------------------------------------------------------------------------------------------- the process behind


def test_comparison_without_an_end_counts_as_wrong_and_the_next_is_judged():
    pytest.importorskip("math_verify")
    with MathVerify(seconds=0) as judge:
        assert judge("x + y", "y + x") is False
        assert judge.unsettled == 1
        judge._seconds = 60
        assert judge("x + z", "z + x") is True
        assert judge("\\frac{", "}{\\") is False
        assert judge("x + y + z", "y + x + 1") is False
        assert judge.unsettled == 1


def test_process_that_dies_is_started_anew():
    pytest.importorskip("math_verify")
    with MathVerify() as judge:
        assert judge("x + y", "y + x")
        judge._process.kill()
        judge._process.wait()
        assert judge("a + b", "b + a") is True


def test_what_a_model_wrote_is_never_evaluated_as_python(tmp_path):
    pytest.importorskip("math_verify")
    canary = tmp_path / "canary"
    with MathVerify() as judge:
        for text in (f"__import__('pathlib').Path({str(canary)!r}).touch()", f"\\text{{open({str(canary)!r}, 'w')}}"):
            assert judge("x", text) is False
    assert not canary.exists()


def test_judge_is_in_the_address_of_the_scores_that_use_it_and_of_no_others(monkeypatch):
    from tests.unit.test_plan import changed_artifacts, pipeline_of

    judged = ("", "evaluate.metrics=[loss, math_answer]")
    before = pipeline_of(), pipeline_of(*judged)
    monkeypatch.setitem(
        METRICS, "math_answer", METRICS["math_answer"].__class__(lambda rows, aids: None, judged_by="another")
    )
    after = pipeline_of(), pipeline_of(*judged)
    assert changed_artifacts(before[0], after[0]) == set()
    assert changed_artifacts(before[1], after[1]) == {"scores", "comparison"}


def test_permission_to_run_programs_reaches_the_stage_and_no_address():
    from s2l_ray.plan import build_pipeline
    from tests.unit.test_plan import laid_out, node_of

    experiment = laid_out("", "evaluate.metrics=[pass_at_1]")
    closed, allowed = (
        node_of(build_pipeline(experiment, allow_code_execution=allow), "scores") for allow in (False, True)
    )
    assert (closed.config.allow_code_execution, allowed.config.allow_code_execution) == (False, True)
    assert closed.key == allowed.key
    assert "pass_at_1" in json.dumps(closed.settings)
