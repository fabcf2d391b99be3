"""Do published tokenizers align every byte of real text? ``python -m benchmarks.alignment_coverage [NAME=]PATH ...``

Converts the tokenizers of ``benchmarks/tokenizers.yaml``, reads at most ``--bytes`` of text from each path (a file or
a directory of .txt, .md, .py, .page, .jsonl or .jsonl.gz files; a JSON line is taken whole), aligns every pair of
tokenizers on it and prints Markdown. The bytes of every chunk are compared on both sides, from the tokens' own bytes
and not from the offsets that the alignment worked with.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from alignment.byte_view import ByteView
from alignment.chunk_alignment import ChunkAlignment
from alignment.encoding import Encoding
from alignment.spans import align_batch
from benchmarks.machine import measured_on
from stages.sources import TokenizerSource
from stages.stage import StageContext

TOKENIZERS = Path(__file__).with_name("tokenizers.yaml")
SUFFIXES = (".txt", ".md", ".py", ".page", ".jsonl", ".jsonl.gz")


@dataclass
class Cost:
    """What one tokenizer did on all texts."""

    tokens: int = 0
    seconds: float = 0.0
    inexact_documents: int = 0


@dataclass
class Pair:
    """What one pair of tokenizers did on all texts.

    ``failures`` counts documents that are exact on both sides and yet not wholly covered: must be none. ``worst`` is
    the lowest coverage of a text set, with its name.
    """

    covered_bytes: int = 0
    failures: int = 0
    chunks: int = 0
    unequal_chunks: int = 0
    seconds: float = 0.0
    worst: tuple[float, str] = field(default=(2.0, ""))


@dataclass(frozen=True)
class Spelling:
    """One encoding with what its tokens spell: ``data`` uint8, and ``lengths`` int64 [T], the bytes of each token."""

    encoding: Encoding
    data: np.ndarray
    lengths: np.ndarray


def load_views(directory: Path) -> dict[str, ByteView]:
    """Convert every tokenizer as a recipe would."""
    views = {}
    for name, spec in yaml.safe_load(TOKENIZERS.read_text(encoding="utf-8")).items():
        out = directory / name
        out.mkdir()
        config = TokenizerSource.Config(tokenizer=spec)
        TokenizerSource().run(StageContext(config=config, inputs={}, work=out, out=out))
        views[name] = ByteView.from_tokenizer(out)
    return views


def read_texts(path: Path, limit: int) -> Iterator[str]:
    """Documents of ``path`` until ``limit`` bytes are reached; the last one is whole."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    size = 0
    for file in files:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for text in content.decode().splitlines(keepends=True) if ".jsonl" in file.name else [content.decode()]:
            if size >= limit:
                return
            size += len(text.encode())
            yield text


def spell(view: ByteView, encoding: Encoding, text: bytes) -> Spelling:
    """What the tokens spell, less the one space that SentencePiece puts before a text."""
    tokens = [view.token_bytes(token) or b"" for token in encoding.ids.tolist()]
    if b"".join(tokens) == b" " + text:
        tokens[0] = tokens[0].removeprefix(b" ")
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    return Spelling(encoding, np.frombuffer(b"".join(tokens), np.uint8), lengths)


def unequal_chunks(teacher: Spelling, student: Spelling, chunks: ChunkAlignment) -> int:
    """Chunks whose tokens spell other bytes on one side than on the other."""
    sides = []
    for side, ids in ((teacher, chunks.teacher_chunk), (student, chunks.student_chunk)):
        inside = ids >= 0
        sizes = np.zeros(chunks.num_chunks, np.int64)
        np.add.at(sizes, ids[inside], side.lengths[inside])
        sides.append((sizes, side.data[np.repeat(inside, side.lengths)]))
    (left_sizes, left), (right_sizes, right) = sides
    if np.array_equal(left_sizes, right_sizes):
        differing = np.flatnonzero(left != right)
        return len(np.unique(np.searchsorted(np.cumsum(left_sizes), differing, side="right")))
    left_parts = np.split(left, np.cumsum(left_sizes)[:-1])
    right_parts = np.split(right, np.cumsum(right_sizes)[:-1])
    return sum(not np.array_equal(*parts) for parts in zip(left_parts, right_parts, strict=True))


def measure(
    name: str, texts: Sequence[str], views: dict[str, ByteView], costs: dict[str, Cost], pairs: dict[tuple, Pair]
) -> int:
    """Encode and align one set of texts, add what was found to ``costs`` and ``pairs``; gives the set's bytes."""
    data = [text.encode() for text in texts]
    sizes = np.array(list(map(len, data)))
    spellings: dict[str, list[Spelling]] = {}
    for tokenizer, view in views.items():
        start = time.perf_counter()
        encodings = view.encode_batch(texts, exact=False)
        costs[tokenizer].seconds += time.perf_counter() - start
        costs[tokenizer].tokens += sum(len(encoding.ids) for encoding in encodings)
        costs[tokenizer].inexact_documents += sum(not encoding.exact for encoding in encodings)
        spellings[tokenizer] = [spell(view, *item) for item in zip(encodings, data, strict=True)]
    for (left, right), pair in pairs.items():
        teachers = [spelling.encoding for spelling in spellings[left]]
        students = [spelling.encoding for spelling in spellings[right]]
        start = time.perf_counter()
        alignments = align_batch(teachers, students)
        pair.seconds += time.perf_counter() - start
        covered = int(np.rint(sizes * [alignment.coverage for alignment in alignments]).sum())
        pair.covered_bytes += covered
        pair.worst = min(pair.worst, (covered / sizes.sum(), name))
        pair.chunks += sum(alignment.num_chunks for alignment in alignments)
        for teacher, student, chunks in zip(spellings[left], spellings[right], alignments, strict=True):
            pair.unequal_chunks += unequal_chunks(teacher, student, chunks)
            pair.failures += teacher.encoding.exact and student.encoding.exact and chunks.coverage < 1
    return int(sizes.sum())


def report(
    sets: dict[str, tuple[int, int]], views: dict[str, ByteView], costs: dict[str, Cost], pairs: dict[tuple, Pair]
) -> str:
    """The Markdown page."""
    total = sum(size for _, size in sets.values())
    lines = [
        measured_on(("tokenizers", "transformers", "numpy")),
        "",
        "Texts (documents, bytes): "
        + "; ".join(f"{name} ({documents:,}, {size:,})" for name, (documents, size) in sets.items())
        + f". {total:,} bytes in all.",
        "",
        "| tokenizer | ids | bytes a token | documents not exact | seconds to encode | why not every text is exact |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, cost in costs.items():
        reasons = "; ".join(views[name].inexact_reasons).replace("|", "\\|") or "–"
        lines.append(
            f"| {name} | {views[name].vocab_size:,} | {total / cost.tokens:.2f} | {cost.inexact_documents} "
            f"| {cost.seconds:.1f} | {reasons} |"
        )
    lines += [
        "",
        "| pair | coverage | bytes in no chunk | lowest coverage of a text | exact documents not covered | chunks "
        "| chunks a token, left and right | unequal chunks | seconds to align |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for (left, right), pair in pairs.items():
        worst = "–" if pair.covered_bytes == total else f"{pair.worst[0]:.4%} {pair.worst[1]}"
        share = " ".join(f"{pair.chunks / costs[side].tokens:.3f}" for side in (left, right))
        lines.append(
            f"| {left}, {right} | {pair.covered_bytes / total:.4%} | {total - pair.covered_bytes:,} | {worst} "
            f"| {pair.failures} | {pair.chunks:,} | {share} | {pair.unequal_chunks} | {pair.seconds:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="[NAME=]PATH")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of each path (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        views = load_views(Path(directory))
    costs = {name: Cost() for name in views}
    pairs = {pair: Pair() for pair in itertools.combinations(views, 2)}
    sets: dict[str, tuple[int, int]] = {}
    for argument in arguments.texts:
        label, _, path = argument.rpartition("=")
        texts = list(read_texts(Path(path), arguments.bytes))
        name = label or Path(path).name
        sets[name] = (len(texts), measure(name, texts, views, costs, pairs))
    print(report(sets, views, costs, pairs))


if __name__ == "__main__":
    main()
