"""Evaluation text that is training text as well: found, counted for every document, and never dropped in silence.

Source: GPT-3's 13-grams (arXiv 2005.14165, appendix C); passages of bytes as in Lee et al., arXiv 2107.06499.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from stages.document_streams import read_streams
from stages.documents import DocumentProblem
from stages.evaluation.overlap_options import OverlapOptions
from stages.evaluation.sections import Column, Item, Measure, SectionReport, Skipped, Table
from stages.evaluation.shared_passages import Passages, Words
from stages.evaluation.windows import Conversation, Document
from stages.stage import StageContext, StageError, StageInterrupted

Held = TypeVar("Held", Document, Conversation)

NAME = "overlap"
KINDS = ("bytes", "words")
ABOUT = (
    "Passages of the held-out documents that the training text has as well: runs of {bytes} bytes, character for "
    "character, and runs of {words} words, whatever their case and what stands between them. Found in training: the "
    "share of a domain's bytes that lie in such a passage. A document counts as overlapping if at least {share:g} of "
    "its bytes do, in one way or the other. {action} The training text of this recipe alone is compared: what models "
    "were trained on before is not known here."
)
ACTIONS = {
    "report": "Overlapping documents are evaluated all the same.",
    "exclude": "Overlapping documents are left out of the evaluation, and listed.",
    "refuse": "An overlapping document would have failed the evaluation.",
}


@dataclass(frozen=True)
class Finding:
    """What of one held-out document the training text has.

    Attributes:
        bytes: of the document.
        found: ``bytes`` or ``words``, the kind of passage -> bytes of the document that lie in one.
    """

    id: str
    domain: str
    bytes: int
    found: dict[str, int]

    @property
    def share(self) -> float:
        """The larger of both kinds' shares of the document's bytes."""
        return max(self.found.values()) / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Overlap:
    """What of all held-out documents the training text has."""

    options: OverlapOptions
    findings: Sequence[Finding]
    training_documents: int
    training_bytes: int

    @property
    def overlapping(self) -> list[Finding]:
        """The documents whose share reaches the threshold."""
        return [finding for finding in self.findings if finding.share >= self.options.share]

    def kept(self, documents: Sequence[Held]) -> list[Held]:
        """The documents that are to be evaluated.

        Raises:
            StageError: there are overlapping ones and the options refuse them.
        """
        overlapping = {finding.id: finding for finding in self.overlapping}
        if self.options.action == "refuse" and overlapping:
            raise StageError(
                f"overlap: {len(overlapping)} of {len(self.findings)} held-out documents have {self.options.share:g} "
                f"or more of their bytes in the training text: {_listed(list(overlapping.values()))}. Remove them from "
                "data.eval or data.train, or write overlap: exclude to evaluate without them"
            )
        if self.options.action != "exclude":
            return list(documents)
        return [document for document in documents if document.id not in overlapping]

    def report(self) -> SectionReport:
        """Shares by domain, and every document with something found."""
        domains = list(dict.fromkeys(finding.domain for finding in self.findings))
        groups = {
            "all": self.findings,
            **{domain: [finding for finding in self.findings if finding.domain == domain] for domain in domains},
        }
        options, overlapping = self.options, self.overlapping
        excluded = overlapping if options.action == "exclude" else []
        warning = (
            f"{len(overlapping)} of {len(self.findings)} held-out documents are training text to {options.share:.0%} "
            f"or more: {_listed(overlapping)}; " + ("left out" if excluded else "evaluated all the same")
        )
        return SectionReport(
            name=NAME,
            title="Overlap with the training text",
            about=ABOUT.format(
                bytes=options.bytes, words=options.words, share=options.share, action=ACTIONS[options.action]
            ),
            tables=(self._shares(groups), _counts(groups, options.share)),
            items=tuple(_item(finding, options.share) for finding in self.findings if finding.share),
            skipped=tuple(
                Skipped(f"document {finding.id}", f"{finding.share:.0%} of its bytes are in the training text")
                for finding in excluded
            ),
            warnings=(warning,) if overlapping else (),
            facts={
                "training documents": self.training_documents,
                "training bytes": self.training_bytes,
                **options.model_dump(mode="json"),
            },
            metrics={
                f"{domain}.{kind}": _share(findings, kind) for domain, findings in groups.items() for kind in KINDS
            }
            | {f"{domain}.documents": float(_overlapping(of, options.share)) for domain, of in groups.items()},
            data={"documents": [vars(finding) for finding in self.findings]},
        )

    def _shares(self, groups: dict[str, Sequence[Finding]]) -> Table:
        sizes = {"bytes": self.options.bytes, "words": self.options.words}
        return Table(
            "Found in training",
            tuple(
                Column(domain, "%", "lower", 1, note=f"{len(findings)} documents")
                for domain, findings in groups.items()
            ),
            {
                f"{sizes[kind]} {kind}": {
                    domain: Measure(100 * _share(findings, kind)) for domain, findings in groups.items()
                }
                for kind in KINDS
            },
        )


def compare_with_training(
    ctx: StageContext, options: OverlapOptions, documents: Sequence[Document | Conversation]
) -> Overlap:
    """``find_overlap`` with the stage's training text.

    Raises:
        StageError: a streamed set cannot be read, or no document would be left to evaluate.
        StageInterrupted: asked to stop.
    """

    def check() -> None:
        if ctx.should_stop():
            raise StageInterrupted("evaluate: stopped while the training text was read")

    overlap = find_overlap(options, documents, ctx.input("training"), progress=ctx.progress, check=check)
    if documents and not overlap.kept(documents):
        raise StageError(
            f"overlap: every held-out document has {options.share:.0%} or more of its bytes in the training text, and "
            "none is left to evaluate; give other documents as data.eval"
        )
    return overlap


def find_overlap(
    options: OverlapOptions,
    documents: Sequence[Document | Conversation],
    training: Path,
    *,
    progress: Callable[[str], None],
    check: Callable[[], None],
) -> Overlap:
    """Look for passages of ``documents`` in all documents of a training set.

    Streamed sets are read where they lie, all of them.

    Args:
        training: a documents artifact.
        progress: told once how much was read.
        check: called for each training document; may raise to stop.

    Raises:
        StageError: a streamed set cannot be read.
    """
    texts = [_text(document) for document in documents]
    words = Words()
    learned = [words.learn(text) for text in texts]
    in_bytes = Passages([np.frombuffer(text.encode(), np.uint8) for text in texts], options.bytes)
    in_words = Passages([numbers for numbers, _ in learned], options.words)
    count = size = 0
    for text in _training_texts(training, progress):
        check()
        data = np.frombuffer(text.encode(errors="replace"), np.uint8)
        in_bytes.look_in(data)
        for run in words.known(text):
            in_words.look_in(run)
        count, size = count + 1, size + len(data)
    progress(f"evaluate: compared with {count:,} training documents of {size:,} bytes")
    findings = []
    for place, (document, text) in enumerate(zip(documents, texts, strict=True)):
        total = len(text.encode())
        found = {
            "bytes": int(in_bytes.covered(place).sum()),
            "words": _bytes_of_words(learned[place][1], in_words.covered(place), total),
        }
        findings.append(Finding(document.id, document.domain, total, found))
    return Overlap(options, findings, count, size)


def _text(document: Document | Conversation) -> str:
    """All that is compared of a document; of a conversation, what its messages say."""
    if isinstance(document, Document):
        return document.text
    return "\n".join(_strings([message.get("content") for message in document.messages]))


def _strings(value: object) -> Iterator[str]:
    """The texts in a message's content, which is a text or a list of parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(value.get("text"))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _training_texts(path: Path, progress: Callable[[str], None]) -> Iterator[str]:
    """The texts of a documents artifact; of streamed sets all, not the sample that is copied."""
    streams = read_streams(path)
    streamed = {stream.documents.name for stream in streams}
    with (path / "documents.jsonl").open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record["domain"] not in streamed:
                yield _content(record)
    try:
        for stream in streams:
            for record in stream.read(0, progress):
                yield _content(record)
    except DocumentProblem as error:
        raise StageError(f"overlap: {error}") from None


def _content(record: dict[str, object]) -> str:
    if "text" in record:
        return str(record["text"])
    messages = record["messages"]
    return "\n".join(_strings([message.get("content") for message in messages]))


def _bytes_of_words(places: np.ndarray, covered: np.ndarray, total: int) -> int:
    """Bytes of the covered words, with what stands between two of them that follow each other."""
    edges = np.zeros(total + 1, dtype=np.int64)
    for word in np.flatnonzero(covered).tolist():
        begin, end = places[word]
        if word and covered[word - 1]:
            begin = places[word - 1][1]
        edges[begin] += 1
        edges[end] -= 1
    return int((np.cumsum(edges[:-1]) > 0).sum())


def _share(findings: Sequence[Finding], kind: str) -> float:
    total = sum(finding.bytes for finding in findings)
    return sum(finding.found[kind] for finding in findings) / total if total else 0.0


def _overlapping(findings: Sequence[Finding], share: float) -> int:
    return sum(finding.share >= share for finding in findings)


def _counts(groups: dict[str, Sequence[Finding]], share: float) -> Table:
    rows = {
        "with any passage": {domain: sum(finding.share > 0 for finding in of) for domain, of in groups.items()},
        f"{share:.0%} or more": {domain: _overlapping(of, share) for domain, of in groups.items()},
    }
    return Table(
        "Documents that are found in training",
        tuple(Column(domain, "documents", "lower", 0, note=f"of {len(of)}") for domain, of in groups.items()),
        {name: {domain: Measure(float(count)) for domain, count in of.items()} for name, of in rows.items()},
    )


def _item(finding: Finding, share: float) -> Item:
    shares = {kind: f"{count / finding.bytes:.1%}" for kind, count in finding.found.items()}
    return Item(
        id=finding.id,
        groups={"domain": finding.domain, "overlapping": "yes" if finding.share >= share else "no"},
        prompt=f"{finding.bytes:,} bytes, found in training: {shares['bytes']} by bytes, {shares['words']} by words",
        gold="",
    )


def _listed(findings: Sequence[Finding]) -> str:
    most = sorted(findings, key=lambda finding: -finding.share)
    shown = ", ".join(f"{finding.id} ({finding.share:.0%})" for finding in most[:5])
    return shown + (f" and {len(most) - 5} more" if len(most) > 5 else "")
