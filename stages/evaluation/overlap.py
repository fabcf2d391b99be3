"""Evaluation text that is training text as well: found, and counted for every document.

Source: GPT-3's 13-grams (arXiv 2005.14165, appendix C); passages of bytes as in Lee et al., arXiv 2107.06499.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.document_streams import read_streams
from stages.documents import DocumentProblem
from stages.evaluation.overlap_options import OverlapOptions
from stages.evaluation.overlap_report import Finding, Overlap
from stages.evaluation.shared_passages import Passages, Words
from stages.evaluation.windows import Conversation, Document
from stages.stage import StageContext, StageError, StageInterrupted, stage_error

DOCUMENTS_BETWEEN_PROGRESS = 10_000


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
        progress: told now and then, and at the end, how much was read.
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
        if count % DOCUMENTS_BETWEEN_PROGRESS == 0:
            progress(f"compared with {count:,} training documents so far")
    progress(f"compared with {count:,} training documents of {size:,} bytes")
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
        raise stage_error(error, "overlap: ") from None


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
