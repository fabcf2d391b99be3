"""Questions for the missing next word of held-out text, asked clean and with a misspelled beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stages.evaluation.robustness.excerpts import draws, in_turn
from stages.evaluation.robustness.options import NoiseOptions, Perturbation
from stages.evaluation.robustness.perturbations import perturb
from stages.evaluation.suites.questions import Question, Suite, placed
from stages.evaluation.windows import Document

OPTIONS = 4
CLEAN = "clean"
_NEXT_WORD = re.compile(r"(?<=[^\W\d_]) ([a-z]{5,})(?![\w-])")
"""A word in lower case, between a word and what is no letter."""
_LEAST_PROMPT = 40
ABOUT = (
    "Which of four words comes next in held-out text? The others are as long, from the same domain. The text before "
    "it is misspelled, the words to choose from are not."
)


@dataclass(frozen=True)
class Version:
    """How a text is misspelled; ``kind`` None: not at all."""

    kind: Perturbation | None
    severity: float

    @property
    def name(self) -> str:
        return CLEAN if self.kind is None else self.kind

    def of(self, text: str, *path: object) -> str:
        """The text, misspelled."""
        return text if self.kind is None else perturb(text, self.kind, self.severity, *path)


def versions(options: NoiseOptions) -> list[Version]:
    """Clean text, then every perturbation at every severity."""
    noisy = [Version(kind, severity) for kind in options.perturbations for severity in options.severities]
    return [Version(None, 0.0), *noisy]


def make_suite(options: NoiseOptions, documents: Sequence[Document]) -> Suite | None:
    """The questions: the first of every document before a second one of any; None if the text has none.

    They stand version after version, in the same order in each.
    """
    clean = _clean_questions(options, documents)
    if not clean:
        return None
    questions = [
        Question(
            id=f"{question.id}/{version.name}/{version.severity:g}",
            groups={"perturbation": version.name, "severity": f"{version.severity:g}"},
            prompt=version.of(question.prompt, options.seed, question.id),
            answer=question.answer,
            options=question.options,
        )
        for version in versions(options)
        for question in clean
    ]
    return Suite(
        name="noise",
        title="Missing words after misspelled text",
        about=ABOUT,
        version=options.VERSION,
        settings=options.model_dump(mode="json"),
        questions=questions,
        groups={
            "perturbation": (CLEAN, *options.perturbations),
            "severity": ("0", *(f"{severity:g}" for severity in options.severities)),
        },
        forms=("choice",),
        repeats=True,
    )


def _clean_questions(options: NoiseOptions, documents: Sequence[Document]) -> list[Question]:
    words: dict[str, set[str]] = {}
    for document in documents:
        words.setdefault(document.domain, set()).update(match[1] for match in _NEXT_WORD.finditer(document.text))
    places = [(document, _places(document, options)) for document in in_turn(documents)]
    deepest = max((len(found) for _, found in places), default=0)
    questions: list[Question] = []
    for depth in range(deepest):
        for document, found in places:
            if depth < len(found) and len(questions) < options.questions:
                question = _question(document, found[depth], words[document.domain], options, len(questions))
                questions += [] if question is None else [question]
    return questions


def _places(document: Document, options: NoiseOptions) -> list[re.Match[str]]:
    found = [match for match in _NEXT_WORD.finditer(document.text) if match.start() >= _LEAST_PROMPT]
    draws("missing words", options.seed, document.id).shuffle(found)
    return found


def _question(
    document: Document, place: re.Match[str], words: set[str], options: NoiseOptions, number: int
) -> Question | None:
    """None where the domain has too few words of the same length."""
    alike = sorted(word for word in words if len(word) == len(place[1]) and word != place[1])
    if len(alike) < OPTIONS - 1:
        return None
    name = f"{document.id}/{place.start()}"
    others = draws("missing words", options.seed, name).sample(alike, OPTIONS - 1)
    return Question(
        id=name,
        groups={},
        prompt=_prompt(document.text[: place.start()], options.excerpt_bytes),
        answer=f" {place[1]}",
        options=placed(f" {place[1]}", [f" {word}" for word in others], number),
    )


def _prompt(text: str, size: int) -> str:
    """The last ``size`` UTF-8 bytes of a text at most, from a word on where possible."""
    tail = text.encode()[-size:].decode(errors="ignore")
    space = tail.find(" ", 0, len(tail) - _LEAST_PROMPT)
    return tail if len(tail) == len(text) or space < 0 else tail[space + 1 :]
