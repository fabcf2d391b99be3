"""The training documents, as methods of initialisation that learn from text read them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from alignment.token_codecs import UnsupportedTokenizer
from stages.initialisation.task import Transplant
from stages.stage import StageError, StageInterrupted

_BATCH_TEXTS = 256


def required_texts(transplant: Transplant, method: str) -> Callable[[], Iterator[str]]:
    """What yields the training documents.

    Raises:
        StageError: the recipe names none.
    """
    if transplant.texts is None:
        raise StageError(f"{method} learns from text and the recipe has none: name documents under data.train")
    return transplant.texts


def texts_digest(texts: Iterable[str]) -> str:
    """sha256 of documents, one after the other, in hex."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def encoded(view: ByteView, texts: Iterable[str], transplant: Transplant) -> list[np.ndarray]:
    """The token ids of each text, int32 [T], without special tokens that stand for text that has no other.

    Raises:
        StageError: the tokenizer cannot encode.
        StageInterrupted: the stage was asked to stop.
    """
    documents = []
    stream = iter(texts)
    while batch := list(itertools.islice(stream, _BATCH_TEXTS)):
        stop_if_asked(transplant)
        try:
            encodings = view.encode_batch(batch, exact=False)
        except (InexactEncoding, UnsupportedTokenizer) as error:
            raise StageError(str(error)) from None
        documents += [encoding.ids[~encoding.special] for encoding in encodings]
    return documents


def stop_if_asked(transplant: Transplant) -> None:
    """Raise StageInterrupted if the stage was asked to stop."""
    if transplant.should_stop():
        raise StageInterrupted
