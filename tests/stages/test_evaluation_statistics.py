"""From sums to the numbers of the table."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from stages.evaluation.report import build_report, flat_metrics, to_data
from stages.evaluation.retention_tables import tables
from stages.evaluation.sections import Measure
from stages.evaluation.statistics import DocumentScore, compare, gap_closed, ratio, ratio_difference, summarise
from stages.evaluation.windows import Document

ROLES = {"teacher": "teacher", "initial": "init"}
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


def test_ratio_difference_is_a_difference_of_ratios_of_sums_with_an_interval_of_the_right_width() -> None:
    rng = np.random.default_rng(7)
    deltas = rng.normal(0.1, 0.2, size=400)
    reference = rng.uniform(50, 300, size=400)
    bytes_ = [100.0] * 400
    difference = ratio_difference(reference + 100 * deltas, bytes_, reference, bytes_)
    assert difference.value == pytest.approx(deltas.mean())
    # Documents of equal size: the interval is that of a mean of 400 draws, although documents vary far more.
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * deltas.std() / math.sqrt(400), rel=0.1)
    assert difference.low < difference.value < difference.high
    assert difference == ratio_difference(reference + 100 * deltas, bytes_, reference, bytes_)


def test_ratio_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    denominators = rng.integers(50, 400, size=60).astype(float)
    numerators = denominators * rng.normal(1.2, 0.3, size=60)
    found = ratio(numerators, denominators)
    theirs = scipy.stats.bootstrap(
        (numerators, denominators),
        lambda left, right, axis: left.sum(axis=axis) / right.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.value == pytest.approx(numerators.sum() / denominators.sum())
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_the_sides_of_a_difference_may_have_denominators_of_their_own() -> None:
    # 6/4 - 9/9; a pair of equal sides has no spread at all.
    assert ratio_difference([2.0, 4.0], [1.0, 3.0], [4.0, 5.0], [4.0, 5.0]).value == pytest.approx(0.5)
    side = [2.0, 4.0] * 3, [1.0, 3.0] * 3
    assert ratio_difference(*side, *side) == Measure(0.0, 0.0, 0.0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_documents_have_no_interval_and_say_how_few(count: int) -> None:
    ones = [1.0] * count
    assert ratio([1.5] * count, ones) == Measure(pytest.approx(1.5), too_few=count)
    assert ratio_difference([1.5] * count, ones, ones, ones) == Measure(pytest.approx(0.5), too_few=count)


def test_six_documents_have_an_interval_and_an_empty_denominator_has_none() -> None:
    numerators = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = ratio(numerators, [1.0] * 6)
    assert found.low < found.value == 3.5 < found.high
    assert found.too_few is None
    assert ratio(numerators, [0.0, *[4.0] * 5]) == Measure(pytest.approx(1.05))


def test_the_interval_of_a_mean_is_about_students() -> None:
    # Of normal values Student's interval is exact; that of plain percentiles is a fifth too narrow for ten.
    values = scipy.stats.norm.ppf((np.arange(10) + 0.5) / 10)
    found = ratio(values, np.ones(10))
    half = scipy.stats.t.ppf(0.975, 9) * values.std(ddof=1) / math.sqrt(10)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


def _documents(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits of two models that do not differ but by chance, and bytes of the documents."""
    sizes = rng.uniform(500, 1500, count)
    shared = rng.normal(1.2, 0.3, count)
    own, other = (sizes * (shared + rng.normal(0, 0.05, count)) for _ in range(2))
    return own, other, sizes


@pytest.mark.parametrize(("count", "most"), [(6, 0.10), (10, 0.08), (20, 0.08)])
def test_models_that_do_not_differ_are_seldom_told_apart(count: int, most: float) -> None:
    rng = np.random.default_rng(11)
    trials = 1000
    marked = 0
    for _ in range(trials):
        own, other, sizes = _documents(rng, count)
        found = ratio_difference(own, sizes, other, sizes)
        marked += not found.low <= 0 <= found.high
    assert 0.02 < marked / trials <= most


def test_a_difference_that_is_there_is_found_in_few_documents() -> None:
    rng = np.random.default_rng(5)
    found = [
        ratio_difference(own + 0.15 * sizes, sizes, other, sizes)
        for own, other, sizes in (_documents(rng, 8) for _ in range(100))
    ]
    assert sum(one.low > 0 for one in found) > 90


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2, 1, 1\] entries"):
        ratio_difference([1.0, 2.0], [1.0, 1.0], [1.0], [1.0])


def test_every_pair_of_rows_is_compared_once() -> None:
    sides = {
        name: {"news": ([value, value], [1.0, 1.0])}
        for name, value in {"teacher": 1.0, "init": 4.0, "control": 2.5, "distill": 2.0}.items()
    }
    found = compare(sides, {"teacher": "teacher", "initial": "init", "control": "control"})
    values = {role: {row: cell["news"].value for row, cell in rows.items()} for role, rows in found.items()}
    assert values == {
        "teacher": {"init": 3.0, "control": 1.5, "distill": 1.0},
        "initial": {"control": -1.5, "distill": -2.0},
        "control": {"distill": -0.5},
    }
    assert compare(sides, {"teacher": "absent"}) == {}


def test_report_counts_trained_domains_first_and_warns_of_misalignment() -> None:
    documents = [Document("poems/0", "poems", ""), Document("news/0", "news", "")]
    worse = replace(BASE, nats=90.0)
    scores = {
        "teacher": [replace(BASE, absolute_difference=0.0)] * 2,
        "init": [worse, worse],
        "shifted": [replace(BASE, absolute_difference=71.0), BASE],
    }
    report = build_report(documents, scores, trained=["news"], initial="init", references=ROLES)
    assert (report.trained, report.untrained, report.domains) == (("news",), ("poems",), ("news", "poems"))
    assert len(report.warnings) == 1
    assert "shifted on poems" in report.warnings[0]
    assert "looks misaligned" in report.warnings[0]
    metrics = flat_metrics(report)
    assert metrics["shifted.gap_closed_mean"] == pytest.approx(1.0)
    assert metrics["init.gap_closed_mean"] == 0.0
    assert metrics["init.bits_per_byte.news"] == pytest.approx(90 / 100 / math.log(2))
    assert to_data(report, documents, scores)["documents"][1]["models"]["init"]["nats"] == 90.0
    bits, nats, top1 = tables(report)
    assert [(column.name, column.note) for column in bits.columns[:2]] == [("news", "trained"), ("poems", "untrained")]
    assert bits.differences["teacher"]["init"]["news"].value == pytest.approx(20 / 100 / math.log(2))
    assert bits.differences["initial"]["shifted"]["news"].value == pytest.approx(-20 / 100 / math.log(2))
    assert bits.rows["shifted"]["gap closed"].value == pytest.approx(100.0)
    assert nats.rows["shifted"]["poems"].value == pytest.approx(71 / 20)
    assert top1.rows["init"]["news"].value == pytest.approx(75.0)
    assert {role: set(rows) for role, rows in nats.differences.items()} == {"initial": {"shifted"}}


def test_without_an_initial_model_there_is_no_gap() -> None:
    documents = [Document("news/0", "news", "")]
    report = build_report(documents, {"teacher": [BASE], "student": [BASE]}, trained=(), initial=None, references=ROLES)
    assert report.models[1].gap_closed_mean is None
    assert "student.gap_closed_mean" not in flat_metrics(report)
    assert to_data(report, documents, {"teacher": [BASE], "student": [BASE]})["initial"] is None


def test_without_a_teacher_there_are_bits_per_byte_alone() -> None:
    documents = [Document("news/0", "news", "")]
    alone = replace(BASE, chunks=0, absolute_difference=0.0, same_top1=0)
    scores = {"init": [alone], "student": [replace(alone, nats=35.0)]}
    report = build_report(documents, scores, trained=(), initial="init", references=ROLES)
    (bits,) = tables(report)
    assert list(bits.differences) == ["initial"]
    assert bits.differences["initial"]["student"]["news"].value == pytest.approx(-35 / 100 / math.log(2))
    assert [column.name for column in bits.columns] == ["news", "tokens per byte"]
    assert set(flat_metrics(report)) == {
        f"{row}.{name}" for row in scores for name in ("bits_per_byte.news", "tokens_per_byte")
    }
