"""BLEU, ROUGE-L and BERTScore: against their reference packages, by hand, and as metrics of answers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.config import EncoderConfig
from s2l_ray.errors import ConfigError
from s2l_ray.judging import summaries
from s2l_ray.judging.bert_score import Embedded, check_encoder, f1, load_encoder
from s2l_ray.judging.metrics import METRICS, Aids, Answered, check_metrics
from tests.unit import tiny

PAIRS = [
    ("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality."),
    ("Stable 3.5 cm mass, unchanged since 2019.", "The mass of 3.5 cm is stable."),
    ("Mild edema. No effusion.", "Mild edema. No effusion."),
    ("Normal.", ""),
    ("Pneumonia in the left lower lobe; follow up in 6 weeks", "left lower lobe pneumonia"),
    ("a a a b", "a b a a a a"),
    ("Größe 3 mm", "GRÖSSE 3 mm"),
]
TEXTS = st.lists(st.sampled_from(["no", "acute", "No", "process.", "3.5", "cm,", "x-ray", "", "é", "\n"]), max_size=12)


# ------------------------------------------------------------------------------------------------------------- ROUGE-L


@pytest.mark.parametrize(("reference", "answer"), PAIRS)
def test_rouge_l_is_that_of_the_reference_package(reference, answer):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    assert summaries.rouge_l(reference, answer) == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure)


@given(TEXTS, TEXTS)
def test_rouge_l_of_any_texts_is_that_of_the_reference_package(one, other):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    reference, answer = " ".join(one), " ".join(other)
    assert summaries.rouge_l(reference, answer) == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure)


def test_rouge_l_by_hand():
    # The longest common subsequence of "the cat sat on a mat" and "a cat sat on mats" is "cat sat on".
    assert summaries.rouge_l("the cat sat on a mat", "A cat sat on mats!") == pytest.approx(2 * 3 / (6 + 5))


def test_rouge_has_nothing_to_say_of_other_scripts():
    assert not summaries.has_words("正常")
    rows = [Answered("", "正常", "", "正常"), Answered("", "ok 1", "", "ok")]
    assert METRICS["rouge_l"].judge(rows, Aids()).verdicts == [None, pytest.approx(2 / 3)]


# ---------------------------------------------------------------------------------------------------------------- BLEU


@pytest.mark.parametrize("rows", [slice(0, 7), slice(0, 1), slice(3, 4), slice(2, 6)])
def test_bleu_of_rows_together_is_that_of_the_reference_package(rows):
    sacrebleu = pytest.importorskip("sacrebleu")
    references, answers = zip(*PAIRS[rows], strict=True)
    counts_NC = np.array([summaries.bleu_counts(*pair) for pair in PAIRS[rows]])
    assert counts_NC.shape[1] == summaries.COUNTS
    expected = sacrebleu.corpus_bleu(list(answers), [list(references)]).score / 100
    assert summaries.corpus_bleu(counts_NC).value == pytest.approx(expected, abs=1e-12)


def test_bleu_error_is_the_jackknifes():
    pytest.importorskip("sacrebleu")
    counts_NC = np.array([summaries.bleu_counts(*pair) for pair in (PAIRS[0], PAIRS[4], PAIRS[5])])
    without = [summaries.bleu(np.delete(counts_NC, row, axis=0).sum(axis=0)) for row in range(3)]
    expected = math.sqrt(2 * float(np.var(without)))
    found = summaries.corpus_bleu(counts_NC)
    assert (found.standard_error, found.rows) == (pytest.approx(expected), 3)
    assert summaries.corpus_bleu(counts_NC[:1]).standard_error is None
    assert summaries.corpus_bleu(np.repeat(counts_NC[:1], 5, axis=0)).standard_error == pytest.approx(0, abs=1e-12)


def test_bleu_without_its_package_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(summaries, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"s2l-ray\[summaries\]"):
        check_metrics(["loss", "bleu"], allow_code_execution=False)


# ----------------------------------------------------------------------------------------------------------- BERTScore


def embedded(states, counted):
    import torch

    return Embedded(torch.tensor(states, dtype=torch.float32), torch.tensor(counted))


def test_f1_by_hand():
    # Tokens of the reference: (1, 0) and (0, 1); of the answer: (1, 0), (.6, .8), and a special one, (0, 1).
    reference = embedded([[1.0, 0.0], [0.0, 1.0]], [True, True])
    answer = embedded([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], [True, True, False])
    recall, precision = (1 + 1) / 2, (1 + 0.8) / 2
    assert f1(reference, answer) == pytest.approx(2 * recall * precision / (recall + precision))


def test_f1_without_a_token_that_counts_is_zero():
    special = embedded([[1.0, 0.0]], [False])
    assert f1(special, embedded([[1.0, 0.0]], [True])) == f1(embedded([[1.0, 0.0]], [True]), special) == 0


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    words = {word for pair in PAIRS for text in pair for word in text.lower().split()}
    return tiny.encoder(tmp_path_factory.mktemp("encoder"), words)


@pytest.mark.parametrize("layer", [None, 1])
def test_scores_are_those_of_one_pair_at_a_time_by_the_formula(encoder_folder, layer):
    import torch
    from torch.nn.functional import normalize

    encoder = load_encoder(EncoderConfig(model=str(encoder_folder), layer=layer), "cpu")

    def states(text):
        with torch.no_grad():
            ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
            output = encoder.model(input_ids=ids, output_hidden_states=True)
        return normalize(output.hidden_states[2 if layer is None else layer][0], dim=-1)

    def expected(reference, answer):
        if not answer:
            return 0.0
        similar = states(reference) @ states(answer).T
        # The first and the last token are special ones: they may be matched, but count nothing.
        recall, precision = similar.max(dim=1).values[1:-1].mean(), similar.max(dim=0).values[1:-1].mean()
        return float(2 * recall * precision / (recall + precision))

    assert encoder.scores(PAIRS) == pytest.approx([expected(*pair) for pair in PAIRS], abs=1e-5)
    assert encoder.scores([("stable mass", " stable mass ")]) == [pytest.approx(1)]


def test_long_texts_are_cut_where_the_encoder_ends(encoder_folder):
    encoder = load_encoder(EncoderConfig(model=str(encoder_folder)), "cpu")
    long = " ".join(["mass"] * 50)
    assert encoder.limit == 16
    assert encoder.scores([(long, " ".join(["mass"] * 14))]) == [pytest.approx(1, abs=1e-5)]


def test_bert_score_judges_rows_that_have_a_reference(encoder_folder):
    aids = Aids(EncoderConfig(model=str(encoder_folder)))
    rows = [Answered("", "stable mass", "", "stable mass"), Answered("", " ", "", "stable")]
    assert METRICS["bert_score"].judge(rows, aids).verdicts == [pytest.approx(1, abs=1e-5), None]


def test_encoder_that_cannot_be_used_is_refused(encoder_folder, tmp_path):
    check_encoder(EncoderConfig(model=str(encoder_folder), layer=2))
    with pytest.raises(ConfigError, match="layer is 3"):
        check_encoder(EncoderConfig(model=str(encoder_folder), layer=3))
    with pytest.raises(ConfigError, match=r"evaluate\.encoder"):
        check_encoder(EncoderConfig(model=str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="safetensors"):
        check_encoder(EncoderConfig(model=str(tmp_path)))


def test_bert_score_without_an_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"evaluate\.encoder"):
        tiny.config_of("", "evaluate.metrics=[bert_score]")


def test_encoder_is_in_the_address_of_scores_that_it_judges_and_of_no_others(encoder_folder):
    from tests.unit.test_plan import changed_artifacts, pipeline_of

    used = f"evaluate.encoder={{model: {encoder_folder}}}"
    assert changed_artifacts(pipeline_of(), pipeline_of("", used)) == set()
    judged = ("", "evaluate.metrics=[bert_score]", used)
    other = changed_artifacts(pipeline_of(*judged), pipeline_of(*judged, "evaluate.encoder.layer=1"))
    assert other == {"scores", "comparison"}
