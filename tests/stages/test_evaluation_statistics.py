"""From sums to the numbers of the table."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from stages.evaluation.report import build_report, flat_metrics, to_json
from stages.evaluation.statistics import DocumentScore, gap_closed, paired_difference, summarise
from stages.evaluation.windows import Document

BASE = DocumentScore(bytes=100, nats=70.0, tokens=25, chunks=20, absolute_difference=8.0, same_top1=15)


def bits(bits_per_byte: float, byte_count: int = 100) -> DocumentScore:
    return replace(BASE, bytes=byte_count, nats=bits_per_byte * math.log(2) * byte_count)


def test_bits_per_byte_worked_examples() -> None:
    # evaluation.md §1: 100 tokens of 2 nats on 430 bytes; a uniform byte model.
    assert summarise([replace(BASE, bytes=430, nats=200.0)]).bits_per_byte == pytest.approx(0.6710, abs=5e-5)
    assert summarise([replace(BASE, bytes=7, nats=7 * math.log(256))]).bits_per_byte == pytest.approx(8.0)


def test_documents_are_pooled_not_averaged() -> None:
    result = summarise([bits(1.0, 300), replace(bits(3.0, 100), tokens=55, chunks=60, absolute_difference=2.0)])
    assert result.bits_per_byte == pytest.approx(1.5)
    assert (result.documents, result.bytes) == (2, 400)
    assert result.tokens_per_byte == pytest.approx(80 / 400)
    assert result.agreement_nats == pytest.approx(10 / 80)
    assert result.top1 == pytest.approx(30 / 80)
    assert result.nats_per_chunk == pytest.approx(600 * math.log(2) / 80)


def test_gap_closed_per_domain_leaves_out_domains_without_a_gap() -> None:
    teacher = {"news": summarise([bits(1.0)]), "code": summarise([bits(0.8)]), "poems": summarise([bits(2.0)])}
    initial = {"news": summarise([bits(1.4)]), "code": summarise([bits(1.6)]), "poems": summarise([bits(2.004)])}
    model = {"news": summarise([bits(1.1)]), "code": summarise([bits(1.8)]), "poems": summarise([bits(2.0)])}
    assert gap_closed(model, initial, teacher) == pytest.approx({"news": 0.75, "code": -0.25})
    assert gap_closed(teacher, initial, teacher) == pytest.approx({"news": 1.0, "code": 1.0})


def test_paired_difference_is_a_ratio_of_sums_with_an_interval_of_the_right_width() -> None:
    rng = np.random.default_rng(7)
    deltas = rng.normal(0.1, 0.2, size=400)
    reference = [bits(value) for value in rng.uniform(0.5, 3.0, size=400)]
    model = [
        replace(score, nats=score.nats + delta * math.log(2) * 100)
        for score, delta in zip(reference, deltas, strict=True)
    ]
    difference = paired_difference(model, reference, seed=0)
    assert difference.value == pytest.approx(deltas.mean())
    # Documents of equal size: the interval is that of a mean of 400 draws, although documents vary far more.
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * deltas.std() / math.sqrt(400), rel=0.1)
    assert difference.low < difference.value < difference.high
    assert difference == paired_difference(model, reference, seed=0)


def test_one_document_has_no_interval() -> None:
    assert paired_difference([bits(1.5)], [bits(1.0)], seed=0) == (pytest.approx(0.5), None, None)


def test_report_counts_trained_domains_first_and_warns_of_misalignment() -> None:
    documents = [Document("poems/0", "poems", ""), Document("news/0", "news", "")]
    worse = replace(BASE, nats=90.0)
    scores = {
        "teacher": [replace(BASE, absolute_difference=0.0)] * 2,
        "init": [worse, worse],
        "shifted": [replace(BASE, absolute_difference=71.0), BASE],
    }
    report = build_report(documents, scores, trained=["news"], initial="init")
    assert (report.trained, report.untrained, report.domains) == (("news",), ("poems",), ("news", "poems"))
    assert len(report.warnings) == 1
    assert "shifted on poems" in report.warnings[0]
    assert "looks misaligned" in report.warnings[0]
    metrics = flat_metrics(report)
    assert metrics["shifted.gap_closed_mean"] == pytest.approx(1.0)
    assert metrics["init.gap_closed_mean"] == 0.0
    assert metrics["init.bits_per_byte.news"] == pytest.approx(90 / 100 / math.log(2))
    content = to_json(report, documents, scores, {})
    assert content["documents"][1]["models"]["init"]["nats"] == 90.0
    assert content["models"]["init"]["domains"]["news"]["difference_to_teacher"]["value"] == pytest.approx(
        20 / 100 / math.log(2)
    )


def test_without_an_initial_model_there_is_no_gap() -> None:
    documents = [Document("news/0", "news", "")]
    report = build_report(documents, {"teacher": [BASE], "student": [BASE]}, trained=(), initial=None)
    assert report.models[1].gap_closed_mean is None
    assert "student.gap_closed_mean" not in flat_metrics(report)
    assert to_json(report, documents, {"teacher": [BASE], "student": [BASE]}, {})["initial"] is None
