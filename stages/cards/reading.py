"""What a card is made of: a tokenizer of any file, named texts, a lexicon."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.byte_view import ByteView
from alignment.card.lexicon import Lexicon
from alignment.token_codecs import UnsupportedTokenizer
from alignment.tokenizer_facts import load_tokenizer
from stages.conversion.errors import ConversionError
from stages.conversion.tokenizer import FAST_FILES, write_tokenizer
from stages.document_sets import DocumentSet, read_file, set_files
from stages.documents import DocumentProblem
from stages.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PURE = "pure"
"""What stands behind a tab after an entry of a lexicon that does not decompose."""


@dataclass(frozen=True)
class OpenedTokenizer:
    """A tokenizer, and the same as bytes."""

    tokenizer: PreTrainedTokenizerBase
    view: ByteView


def open_tokenizer(path: Path, name: str) -> OpenedTokenizer:
    """The tokenizer of a directory or file of any kind that a recipe may name, called ``name`` in what is shown.

    Raises:
        StageError: there is no tokenizer, or its bytes cannot be derived.
    """
    try:
        # What a model needs of its tokenizer, such as an end-of-text token, a card can do without.
        tokenizer = load_tokenizer(path, trust_remote_code=False) if _is_complete(path) else _converted(path)
        tokenizer.name_or_path = name
        return OpenedTokenizer(tokenizer, ByteView.from_tokenizer(tokenizer))
    except (ConversionError, UnsupportedTokenizer) as error:
        raise StageError(str(error)) from None


def _is_complete(path: Path) -> bool:
    return all((path / name).is_file() for name in FAST_FILES)


def _converted(path: Path) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory(prefix="tokenferry-card-") as directory:
        return write_tokenizer(path, Path(directory))


def read_texts(paths: Mapping[str, Path]) -> dict[str, list[str]]:
    """Name -> the documents of a file or directory: plain text, or ``text`` fields of .jsonl and .parquet files.

    Raises:
        StageError: a file cannot be read, or holds no text.
    """
    return {name: _documents(path) for name, path in paths.items()}


def read_lexicon(path: Path) -> Lexicon:
    """A file of one word, root or affix a line; ``ENTRY<tab>pure`` marks those that do not decompose.

    Raises:
        StageError: it cannot be read, has no entry, or something else behind a tab.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    valid, pure = set(), set()
    for number, line in enumerate(lines, start=1):
        entry, tab, mark = line.partition("\t")
        if tab and mark.strip() != PURE:
            raise StageError(f"{path}, line {number}: {mark!r} behind the tab; write {PURE!r} there or nothing")
        if entry.strip():
            valid.add(entry.strip())
            if tab:
                pure.add(entry.strip())
    if not valid:
        raise StageError(f"{path}: holds no entries; write one word, root or affix a line")
    return Lexicon(frozenset(valid), frozenset(pure))


def _documents(path: Path) -> list[str]:
    documents = DocumentSet(path=str(path))
    try:
        texts = [content["text"] for file in set_files(path) for content in read_file(documents, file)]
    except (DocumentProblem, OSError) as error:
        raise StageError(str(error)) from None
    if not any(texts):
        raise StageError(f"{path}: holds no text")
    return texts
