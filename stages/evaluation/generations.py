"""How models go on with held-out documents: samples side by side, and how far they are the text's own continuation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from stages.evaluation.core import Ability, Watch
from stages.evaluation.sections import (
    TEACHER,
    Column,
    Item,
    Sample,
    Section,
    SectionContext,
    SectionReport,
    Skipped,
    Subject,
    Table,
)
from stages.generation.prompts import cut_prompt
from stages.stage import StageConfig, StageError

if TYPE_CHECKING:
    from stages.evaluation.windows import Document

ABOUT = (
    "Every model goes on greedily with the beginnings of held-out documents. Exact match: how often the first bytes "
    "that it writes, as many as match_bytes says, are those of the document. Bytes as in the text, as the teacher: how "
    "many bytes, on average, it writes before the first that differs from the document's, or from what the teacher "
    "wrote. Greedy text is a narrow view of a model: read it beside retention."
)
EXACT, AS_TEXT, AS_TEACHER = "exact match", "bytes as in the text", "bytes as the teacher"
NO_ROOM = "the prompt leaves no room in the model's context, or its tokenizer cannot spell it"


class GenerationOptions(StageConfig):
    """Continuations of held-out documents."""

    prompts: int = Field(4, ge=1)
    """Documents of each domain that are continued, from the start."""
    prompt_bytes: int = Field(256, ge=4)
    """Longest prompt: the beginning of a document, cut before white space where possible."""
    max_bytes: int = Field(200, ge=1)
    """Longest continuation, in UTF-8 bytes."""
    match_bytes: int = Field(16, ge=1)
    """An exact match agrees with the document in so many bytes. Documents that go on for fewer are not continued."""

    @model_validator(mode="after")
    def _a_continuation_can_match(self) -> GenerationOptions:
        if self.match_bytes > self.max_bytes:
            raise ValueError(
                f"match_bytes {self.match_bytes} is more than max_bytes {self.max_bytes}: nothing could match"
            )
        return self


@dataclass(frozen=True)
class Question:
    """The beginning of a document, and how it goes on."""

    id: str
    domain: str
    prompt: str
    gold: str


class Generation:
    """The beginnings of documents, continued by every model."""

    name = "generation"
    relies_on: frozenset[Ability] = frozenset({"generate"})

    def __init__(
        self, options: GenerationOptions, questions: Sequence[Question], too_short: int, references: Mapping[str, str]
    ) -> None:
        self._options = options
        self._questions = questions
        self._too_short = too_short
        self._references = references

    def score(self, subject: Subject, watch: Watch) -> list[str | None]:
        """One continuation a question; None where the model could not be asked.

        Raises:
            StageError: it can be asked less than half of the questions, and would take the others from all models.
        """
        prompts = [question.prompt for question in self._questions]
        texts = subject.scorer.generate(prompts, max_bytes=self._options.max_bytes, watch=watch)
        if 2 * texts.count(None) > len(texts):
            raise StageError(
                f"{texts.count(None)} of {len(texts)} prompts cannot be asked: {NO_ROOM}; lower prompt_bytes"
            )
        return texts

    def report(self, results: Mapping[str, Sequence[str | None]]) -> SectionReport:
        """Shares and lengths over the prompts that every model could be asked, and all continuations."""
        asked = [
            index
            for index in range(len(self._questions))
            if all(texts[index] is not None for texts in results.values())
        ]
        table = self._table(results, asked)
        items = self._items(results)
        return SectionReport(
            name=self.name,
            title="Generation",
            about=ABOUT,
            tables=(table,),
            items=items,
            samples=tuple(Sample(item.prompt, item.answers, item.gold) for item in _one_a_domain(items)),
            skipped=tuple(self._skipped(results)),
            facts={"prompts": len(asked), **self._options.model_dump(mode="json", exclude={"prompts"})},
            metrics={
                f"{row}.{name.replace(' ', '_')}": measure.value
                for row, named in table.rows.items()
                for name, measure in named.items()
            },
        )

    def _table(self, results: Mapping[str, Sequence[str | None]], asked: Sequence[int]) -> Table:
        from stages.evaluation.statistics import compare, ratio  # needs numpy, which planning does not load

        columns = [
            Column(EXACT, "%", "higher", digits=1),
            Column(AS_TEXT, "bytes", "higher", digits=1),
        ]
        if TEACHER in results:
            columns.append(Column(AS_TEACHER, "bytes", "higher", digits=1))
        ones = [1.0] * len(asked)
        sides = {
            row: {name: (values, ones) for name, values in self._measures(row, results, asked).items()}
            for row in results
            if asked
        }
        rows = {row: {name: ratio(*side) for name, side in named.items()} for row, named in sides.items()}
        return Table("Continuations of held-out documents", tuple(columns), rows, compare(sides, self._references))

    def _measures(
        self, row: str, results: Mapping[str, Sequence[str | None]], asked: Sequence[int]
    ) -> dict[str, list[float]]:
        """Column -> a value for each prompt that counts. What the teacher shares with itself says nothing."""
        texts = {index: results[row][index] or "" for index in asked}
        gold = {index: self._questions[index].gold for index in asked}
        found = {
            EXACT: [100.0 * self._matches(texts[index], gold[index]) for index in asked],
            AS_TEXT: [float(common_bytes(texts[index], gold[index])) for index in asked],
        }
        if TEACHER in results and row != TEACHER:
            found[AS_TEACHER] = [float(common_bytes(texts[index], results[TEACHER][index] or "")) for index in asked]
        return found

    def _skipped(self, results: Mapping[str, Sequence[str | None]]) -> Iterator[Skipped]:
        for index, question in enumerate(self._questions):
            for row, texts in results.items():
                if texts[index] is None:
                    yield Skipped(f"prompt {question.id}", f"{NO_ROOM}; it counts for no model", row)
        if self._too_short:
            why = f"{self._too_short} do not go on for {self._options.match_bytes} bytes after a prompt"
            yield Skipped("short documents", why)

    def _matches(self, text: str, gold: str) -> bool:
        return common_bytes(text, gold) >= self._options.match_bytes

    def _items(self, results: Mapping[str, Sequence[str | None]]) -> tuple[Item, ...]:
        items = []
        for index, question in enumerate(self._questions):
            texts = {row: found[index] for row, found in results.items()}
            items.append(
                Item(
                    question.id,
                    {"domain": question.domain},
                    question.prompt,
                    question.gold,
                    answers={row: text for row, text in texts.items() if text is not None},
                    correct={
                        row: None if text is None else self._matches(text, question.gold) for row, text in texts.items()
                    },
                    problems={row: NO_ROOM for row, text in texts.items() if text is None},
                )
            )
        return tuple(items)


def sections(options: GenerationOptions, documents: Sequence[Document], context: SectionContext) -> list[Section]:
    """The section of ``generation``.

    Raises:
        StageError: no document is long enough.
    """
    questions: list[Question] = []
    too_short = 0
    for domain in dict.fromkeys(document.domain for document in documents):
        found = [_question(document, options) for document in documents if document.domain == domain]
        kept = [question for question in found if question is not None]
        too_short += len(found) - len(kept)
        questions += kept[: options.prompts]
    if not questions:
        raise StageError(
            f"generation: no document of data.eval goes on for {options.match_bytes} bytes after a prompt of up to "
            f"{options.prompt_bytes}; lower prompt_bytes or match_bytes, or give longer documents"
        )
    return [Generation(options, questions, too_short, context.references())]


def _question(document: Document, options: GenerationOptions) -> Question | None:
    """The beginning of a document and what follows; None if too little does."""
    prompt = cut_prompt(document.text, options.prompt_bytes)
    gold = document.text[len(prompt) :].encode()[: options.max_bytes].decode(errors="ignore")
    if len(gold.encode()) < options.match_bytes:
        return None
    return Question(document.id, document.domain, prompt, gold)


def common_bytes(first: str, second: str) -> int:
    """UTF-8 bytes of the longest common beginning of two texts."""
    left, right = first.encode(), second.encode()
    return next(
        (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def _one_a_domain(items: Sequence[Item]) -> list[Item]:
    return list({item.groups["domain"]: item for item in reversed(items)}.values())[::-1]
