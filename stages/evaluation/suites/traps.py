"""Trap words as questions: where is the border of two words that are written without the space between them?

The questions are made from the tokenizers under evaluation, each of which has other traps, and are put to every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignment.byte_view import ByteView
from stages.evaluation.core import Ability, Watch
from stages.evaluation.sections import Column, Measure, SectionContext, SectionReport, Skipped, Subject, Table
from stages.evaluation.statistics import ratio, ratio_difference
from stages.evaluation.suites.marking import ACCURACY, marks
from stages.evaluation.suites.options import TrapsOptions
from stages.evaluation.suites.questions import Question, Suite, draws, placed
from stages.evaluation.suites.section import SuiteSection
from stages.evaluation.suites.tables import wilson
from stages.evaluation.suites.trap_pairs import Found, Trap, draw_pairs, find_traps
from stages.evaluation.suites.trap_words import CARRIER, Pair
from stages.evaluation.suites.words import lexicon
from stages.stage import StageError

OPTIONS = 4
KINDS = ("trap", "strict", "control")
ABOUT = (
    "Two words are written without the space between them: where was it (cut), and, given one of them, which is the "
    "other (rest)? A trap of a tokenizer is a pair with a token across the border; a strict one, if that token is "
    "itself a word. The wrong answers begin with the cuts that this token tempts to. Every trap has a control: the "
    "same words in other pairs, without such a token, with wrong cuts as far from the border: glued words are hard "
    "anyway. A tempting cut often makes a word (include|d), which tempts every model, so look at how models of other "
    "tokenizers do on the same traps as well."
)


def sections(options: TrapsOptions, documents: Sequence[Any], context: SectionContext) -> list[TrapsSection]:
    """The section of ``traps``.

    Raises:
        StageError: no tokenizer has a trap, or there are fewer questions than kinds of them.
    """
    words = (*lexicon().known, *lexicon().held_out)
    owners: dict[str, str] = {}
    for row, view in context.views.items():
        owners.setdefault(view.fingerprint, row)
    pairs = draw_pairs(words, options.pairs, draws("traps", options.seed))
    wanted = options.items // (2 * len(owners))
    if wanted < 2:
        raise StageError(f"traps.items: {options.items} questions are too few for {len(owners)} tokenizers; give more")
    found = {row: find_traps(context.views[row], pairs, frozenset(words), wanted) for row in owners.values()}
    if not any(each.traps for each in found.values()):
        raise StageError(
            f"traps: no tokenizer has a token across the border of any of {len(pairs):,} glued pairs of words, as with "
            "byte tokenizers; leave traps out"
        )
    suite = _suite(options, found, {row: context.views[row] for row in found})
    owner_of_row = {row: owners[view.fingerprint] for row, view in context.views.items()}
    return [TrapsSection(SuiteSection(suite, context.references()), found, owner_of_row)]


def _suite(options: TrapsOptions, found: Mapping[str, Found], views: Mapping[str, ByteView]) -> Suite:
    words = (*lexicon().known, *lexicon().held_out)
    questions = []
    for row, each in found.items():
        # Strict traps and others are counted apart, so that both are asked in every form equally often.
        counts = {True: 0, False: 0}
        for number, trap in enumerate(each.traps):
            questions += _questions(row, trap, number, counts[trap.strict], options, words)
            counts[trap.strict] += 1
    return Suite(
        name="traps",
        title="Trap words",
        about=ABOUT,
        version=options.VERSION,
        settings={
            **options.model_dump(mode="json"),
            "words": lexicon().digest,
            "tokenizers": {row: view.fingerprint for row, view in views.items()},
        },
        questions=questions,
        groups={
            "pairs": [f"{row}_{kind}" for row in found for kind in KINDS],
            "question": ("cut", "rest"),
        },
        forms=("choice",),
    )


def _questions(
    row: str, trap: Trap, number: int, round_: int, options: TrapsOptions, words: Sequence[str]
) -> list[Question]:
    """A trap and its control, asked alike; ``round_``: how many of its kind come before it."""
    form = "rest" if trap.ambiguous or round_ % 2 else "cut"
    # Which of the words is missing changes after the answer has stood at every place in every form.
    missing = round_ // (2 * OPTIONS) % 2
    rng = draws("traps", options.seed, row, number)
    examples = "".join(
        _asked(pair, form, missing) + _right(pair, form, missing) + "\n\n"
        for pair in draw_pairs(words, options.shots, rng)
    )
    offsets = [cut - trap.pair.border for cut in trap.crossing.cuts]
    made = []
    for kind, pair in (("strict" if trap.strict else "trap", trap.pair), ("control", trap.control)):
        cuts = _wrong_cuts(pair, offsets)
        answer, *others = [_written(pair, cut, form, missing) for cut in (pair.border, *cuts)]
        made.append(
            Question(
                id=f"{row}/{number}/{kind}",
                groups={"pairs": f"{row}_{kind}", "question": form},
                prompt=examples + _asked(pair, form, missing),
                answer=answer,
                options=placed(answer, others, round_ // 2),
            )
        )
    return made


def _wrong_cuts(pair: Pair, offsets: Sequence[int]) -> list[int]:
    """Places to cut, those at ``offsets`` from the border first, then the nearest to it."""
    nearest = [distance * sign for distance in range(1, len(pair.glued)) for sign in (-1, 1)]
    cuts = (pair.border + offset for offset in (*offsets, *nearest))
    return list(dict.fromkeys(cut for cut in cuts if 0 < cut < len(pair.glued)))[: OPTIONS - 1]


def _asked(pair: Pair, form: str, missing: int) -> str:
    written = f"{CARRIER}{pair.glued}\n"
    if form == "cut":
        return f"Two words without the space between them.\n{written}With the space:"
    known, asked = (("second", "first"), ("first", "second"))[missing]
    word = (pair.second, pair.first)[missing]
    return f"Two words without the space between them.\n{written}The {known} word: {word}\nThe {asked} word:"


def _right(pair: Pair, form: str, missing: int) -> str:
    return _written(pair, pair.border, form, missing)


def _written(pair: Pair, cut: int, form: str, missing: int) -> str:
    parts = pair.glued[:cut], pair.glued[cut:]
    return f" {parts[0]} {parts[1]}" if form == "cut" else f" {parts[missing]}"


@dataclass(frozen=True)
class TrapsSection:
    """Asks every model for the border of trap words and controls of every tokenizer.

    Attributes:
        asked: the questions.
        found: tokenizer, by its first row -> its traps.
        owner: row -> the row that its tokenizer goes by in ``found``.
    """

    asked: SuiteSection
    found: Mapping[str, Found]
    owner: Mapping[str, str]

    name = "traps"
    relies_on: frozenset[Ability] = frozenset({"score_continuations"})

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """The model's answers, as ``asking.ask`` gives them."""
        return self.asked.score(subject, watch)

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """What the suite shows, and before it what each model's own traps cost it."""
        suite = self.asked.suite
        credits = {row: [mark.credit for mark in marks(suite, answers)[ACCURACY]] for row, answers in results.items()}
        own = {row: measures for row, values in credits.items() if (measures := self._own_traps(row, values))}
        report = self.asked.report(results)
        return replace(
            report,
            tables=(_own_table(own), self._rates(results), *report.tables),
            skipped=tuple(self._left_out()),
            metrics={
                **report.metrics,
                **{f"{row}.cost": measures["cost of traps"].value / 100 for row, measures in own.items()},
                **{
                    f"{row}.rate": found.crossing / found.pairs
                    for row in results
                    if (found := self.found.get(self.owner.get(row, "")))
                },
            },
        )

    def _own_traps(self, row: str, credits: Sequence[float]) -> dict[str, Measure]:
        """Accuracy on the traps of a model's own tokenizer and on their controls; nothing where it has none."""
        mine = [
            credit
            for credit, question in zip(credits, self.asked.suite.questions, strict=True)
            if question.groups["pairs"].rpartition("_")[0] == self.owner.get(row)
        ]
        traps, controls = [100 * credit for credit in mine[::2]], [100 * credit for credit in mine[1::2]]
        if not traps:
            return {}
        ones = [1.0] * len(traps)
        return {
            "traps": ratio(traps, ones),
            "controls": ratio(controls, ones),
            "cost of traps": ratio_difference(controls, ones, traps, ones),
        }

    def _rates(self, results: Mapping[str, Any]) -> Table:
        rows = {}
        for row in results:
            found = self.found.get(self.owner.get(row, ""))
            if found is not None:
                shares = {"crossing": found.crossing, "strict": found.strict}
                rows[row] = {name: _percent(wilson(count, found.pairs)) for name, count in shares.items()}
        pairs = next(iter(self.found.values())).pairs
        columns = (Column("crossing", "%", "lower", 1), Column("strict", "%", "lower", 2))
        return Table(f"Traps among {pairs:,} glued pairs of words", columns, rows)

    def _left_out(self) -> list[Skipped]:
        entries = []
        for row, found in self.found.items():
            if not found.traps:
                entries.append(
                    Skipped("traps of its tokenizer", f"none among {found.pairs:,} glued pairs of words", row)
                )
            if found.without_control:
                why = "no other second word frees their first words of the token across the border"
                entries.append(Skipped(f"{found.without_control} traps of its tokenizer", why, row))
        return entries


def _own_table(rows: Mapping[str, Mapping[str, Measure]]) -> Table:
    columns = (
        Column("traps", "%", "higher", 1),
        Column("controls", "%", "higher", 1),
        Column("cost of traps", "%", "lower", 1, note="controls - traps"),
    )
    return Table("Trap words of each model's own tokenizer", columns, rows)


def _percent(measure: Measure) -> Measure:
    return Measure(100 * measure.value, 100 * measure.low, 100 * measure.high)
