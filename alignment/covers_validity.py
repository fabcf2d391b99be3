"""Which token may come next in the encoding of some text: by merges and pre-tokenizer, or by encoding again.

A sequence of tokens is *valid* if it begins the encoding of some text (evaluation.md §4). The encoding of the text that
it spells need not be the sequence itself: GPT-2 encodes two line ends as one token, and as two where a word follows.

Legend: V vocabulary, N tokens that are asked about.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from alignment.byte_models import merges_of
from alignment.byte_view import ByteView
from alignment.covers_borders import Borders, reads_classes_only, signs_named
from alignment.covers_merges import MergePairs
from alignment.covers_text import begins_text, futures, split_text
from alignment.token_table import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT_ANSWERS = 128
_BLOCK = 4096
_CONTINUATION = range(0x80, 0xC0)


class Begun(NamedTuple):
    """A valid sequence, from a place on that nothing before it matters to.

    Attributes:
        data: the bytes of the tokens.
        tokens: the sequence.
    """

    data: bytes
    tokens: tuple[int, ...]

    def then(self, token: int, spelled: bytes) -> Begun:
        """With one token more."""
        return Begun(self.data + spelled, (*self.tokens, token))


EncodeSpelled = Callable[[Sequence[str]], list[np.ndarray | None]]
"""Texts as their tokens spell them, an invented space included -> ids; None for one that tokens spell otherwise."""


class Validity(Protocol):
    """What a tokenizer allows.

    ``method`` says how it is known, for reports.
    """

    method: str

    def first(self, text: str, rest: bytes, starts: np.ndarray, tokens: np.ndarray) -> int:
        """From which of its tokens on a valid sequence matters to what may come after it.

        Args:
            text: what the sequence spells, and more.
            rest: bytes of a character begun after ``text``.
            starts: int64 [T + 1], bytes at which the tokens begin; the last one is where the next token does.
            tokens: int32 [T], the sequence; no token of the vocabulary could lie across its end.
        """

    def following(self, begun: Begun, tokens: np.ndarray) -> np.ndarray:
        """bool [N]: which of ``tokens`` (int64 [N], with bytes) may come next."""


class ByMerges:
    """Byte-pair encoding on bytes, behind a pre-tokenizer that sees classes of characters, or behind none.

    Args:
        pairs: its merges.
        borders: its pre-tokenizer; None for none.
        whole: a pre-token that is in the vocabulary is one token, whatever the merges make of it.
    """

    def __init__(self, view: ByteView, pairs: MergePairs, borders: Borders | None, *, whole: bool = False) -> None:
        self.method = "merges" if borders is None else "merges and pre-token borders"
        self._borders = borders
        self._spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        self._pairs = pairs
        self._added = view.kinds == TokenKind.ADDED
        begins = np.array([bool(data) and begins_text(data) for data in self._spelled])
        self._begins_text = begins & (pairs.made | self._added | whole)
        self._goes_on = np.array([bool(data) and data[0] in _CONTINUATION for data in self._spelled])

    def first(self, text: str, rest: bytes, starts: np.ndarray, tokens: np.ndarray) -> int:
        """The last token that begins where a pre-token always does; without pre-tokens, none."""
        if self._borders is None:
            return len(tokens)
        cuts = set.intersection(*(self._borders.cuts(text + end) for end in futures(text, rest)))
        offsets = np.cumsum([0, *(len(character.encode()) for character in text)])
        borders = {0, *(int(offsets[cut]) for cut in cuts if cut < len(offsets))}
        return max(index for index, start in enumerate(starts.tolist()) if start in borders)

    def following(self, begun: Begun, tokens: np.ndarray) -> np.ndarray:
        """See ``Validity``."""
        pairs = (self._pairs.after(begun.tokens[-1]) if begun.tokens else self._pairs.made)[tokens]
        text, rest = split_text(begun.data)
        if rest:
            return pairs & self._complete(rest, tokens)
        valid = self._begins_text[tokens]
        if self._borders is None:
            valid = valid & pairs
        else:
            edges, forced = self._edges(begun, text)
            asked = np.flatnonzero(valid)
            valid[asked] = self._borders.allowed(text, edges, forced, tokens[asked], pairs[asked])
        # An added token is cut out of a text before merges are asked.
        return valid | (self._added & self._begins_text)[tokens]

    def _complete(self, rest: bytes, tokens: np.ndarray) -> np.ndarray:
        """Which tokens go on with the incomplete character ``rest``: no pre-token begins inside one."""
        goes_on = self._goes_on[tokens]
        for index in np.flatnonzero(goes_on).tolist():
            goes_on[index] = begins_text(rest + self._spelled[tokens[index]])
        return goes_on

    def _edges(self, begun: Begun, text: str) -> tuple[list[int], list[int]]:
        """Characters at which tokens begin, and those of them where the merges do not allow that."""
        ends = np.cumsum([len(character.encode()) for character in text])
        character_at = {int(end): place for place, end in enumerate(ends, start=1)}
        edges, forced, place = [], [], 0
        for before, token in zip(begun.tokens, begun.tokens[1:], strict=False):
            place += len(self._spelled[before])
            if place in character_at:
                edges.append(character_at[place])
                if not (self._pairs.after(before)[token] or self._added[before] or self._added[token]):
                    forced.append(character_at[place])
        return edges, forced


class ByEncoding:
    """Any tokenizer: what it makes of the sequence's text, with the next token's and what may follow.

    Args:
        encode: encodes texts, given as what their tokens spell.
        looks_ahead: what follows a text may change its last tokens.
    """

    def __init__(self, view: ByteView, encode: EncodeSpelled, *, looks_ahead: bool) -> None:
        self.method = "encoding again"
        self._encode = encode
        self._spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        self._looks_ahead = looks_ahead
        self._answers: OrderedDict[Begun, np.ndarray] = OrderedDict()  # int8 [V]: 1 valid, 0 not, -1 not asked yet

    def first(self, text: str, rest: bytes, starts: np.ndarray, tokens: np.ndarray) -> int:
        """The last token from which on the text by itself has the tokens that it has in its place."""
        ends = ("", *futures(text, rest))
        whole = self._encode([text + end for end in ends])
        spelled = text.encode()
        for first in range(len(tokens) - 1, 0, -1):
            part = spelled[starts[first] :].decode(errors="ignore")
            again = self._encode([part + end for end in ends])
            if all(_same(old, new, first) for old, new in zip(whole, again, strict=True)):
                return first
        return 0

    def following(self, begun: Begun, tokens: np.ndarray) -> np.ndarray:
        """See ``Validity``."""
        known = self._answers.setdefault(begun, np.full(len(self._spelled), -1, dtype=np.int8))
        self._answers.move_to_end(begun)
        if len(self._answers) > _KEPT_ANSWERS:
            self._answers.popitem(last=False)
        unknown = tokens[known[tokens] < 0]
        for start in range(0, len(unknown), _BLOCK):
            block = unknown[start : start + _BLOCK]
            known[block] = self._ask(begun, block.tolist())
        return known[tokens] > 0

    def _ask(self, begun: Begun, tokens: Sequence[int]) -> np.ndarray:
        wanted = len(begun.tokens) + 1
        asked, texts = [], []
        for index, token in enumerate(tokens):
            data = begun.data + self._spelled[token]
            if begins_text(data):
                text, rest = split_text(data)
                # White space alone may be a text's beginning and no text.
                ends = futures(text, rest) if rest or self._looks_ahead or text.isspace() else ("",)
                asked += [index] * len(ends)
                texts += [text + end for end in ends]
        valid = np.zeros(len(tokens), dtype=np.int8)
        for index, ids in zip(asked, self._encode(texts), strict=True):
            valid[index] |= ids is not None and tuple(ids[:wanted].tolist()) == (*begun.tokens, tokens[index])
        return valid


def _same(whole: np.ndarray | None, part: np.ndarray | None, first: int) -> bool:
    if whole is None or part is None:
        return whole is part
    return np.array_equal(whole[first:], part)


def spelled_encoder(view: ByteView) -> tuple[EncodeSpelled, Callable[[bytes], bytes]]:
    """An encoder of texts given as their tokens spell them, and what the tokenizer puts in front of a text.

    The second is a space or nothing; with some tokenizers it depends on whether the text begins with a space.
    """
    probes = view.encode_batch(["a", " a"], exact=False)
    invented = [len(probe.ids) and probe.byte_ends[-1] < view.byte_lengths[probe.ids].sum() for probe in probes]

    def put_in_front(text: bytes) -> bytes:
        return b" " if invented[text.startswith(b" ")] else b""

    def encode(texts: Sequence[str]) -> list[np.ndarray | None]:
        plain = [text[1:] if invented[0] and text.startswith(" ") else text for text in texts]
        if invented[0] and not invented[1]:
            # Two texts have these tokens, with a space and without: either will do.
            plain = [" " + text if text.startswith(" ") else text for text in plain]
        encodings = view.encode_batch(plain, exact=False)
        return [
            encoding.ids if encoding.exact and _length(text) == view.byte_lengths[encoding.ids].sum() else None
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    return encode, put_in_front


def _length(text: str) -> int:
    return len(text.encode())


def validity_of(tokenizer: PreTrainedTokenizerBase, view: ByteView, encode: EncodeSpelled) -> Validity:
    """What ``tokenizer``, of which ``view`` is the view, allows; by its merges where they decide."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return ByEncoding(view, encode, looks_ahead=True)
    pipeline = json.loads(backend.to_str())
    model, pre_tokenizer = pipeline["model"], pipeline["pre_tokenizer"]
    if _bytes_are_merged(pipeline) and reads_classes_only(pre_tokenizer):
        borders = _borders(backend, pre_tokenizer, view) if _cuts(pre_tokenizer) else None
        return ByMerges(view, _pairs(pipeline, view), borders, whole=bool(model.get("ignore_merges")))
    return ByEncoding(view, encode, looks_ahead=pre_tokenizer is not None and model["type"] == "BPE")


def _bytes_are_merged(pipeline: Mapping[str, Any]) -> bool:
    """Whether byte-pair encoding starts from single bytes and sees the text as it is."""
    model = pipeline["model"]
    byte_level = '"ByteLevel"' in json.dumps(pipeline["pre_tokenizer"])
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    # Of texts that NFC leaves alone it is no part; others are not spelled by their tokens.
    unchanged = pipeline["normalizer"] in (None, {"type": "NFC"})
    return model["type"] == "BPE" and byte_level and unchanged and not affixes


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer does more than map bytes to characters."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(map(_cuts, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer["type"] != "ByteLevel" or pre_tokenizer["use_regex"]


def _borders(backend: Tokenizer, pre_tokenizer: Mapping[str, Any], view: ByteView) -> Borders:
    def cuts(text: str) -> set[int]:
        return {start for _, (start, _) in backend.pre_tokenizer.pre_tokenize_str(text)} - {0}

    token_bytes = [view.token_bytes(token) for token in range(view.vocab_size)]
    return Borders(cuts, token_bytes, literal=signs_named(pre_tokenizer))


def _pairs(pipeline: Mapping[str, Any], view: ByteView) -> MergePairs:
    """The neighbours that the merges allow, without pre-tokenizer and added tokens."""
    merging = {**pipeline, "added_tokens": [], "pre_tokenizer": None, "post_processor": None, "decoder": None}
    merging["model"] = {**pipeline["model"], "ignore_merges": False}
    tokenizer = Tokenizer.from_str(json.dumps(merging))
    entries = pipeline["model"]["vocab"]
    entry_of = {token: entry for entry, token in entries.items()}

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def ask(left: int, rights: np.ndarray) -> np.ndarray:
        pairs = [[left, right] for right in rights.tolist()]
        encoded = encode([entry_of[left] + entry_of[right] for _, right in pairs])
        return np.array([found == pair for found, pair in zip(encoded, pairs, strict=True)], dtype=bool)

    made = np.zeros(view.vocab_size, dtype=bool)
    for token, ids in zip(entries.values(), encode(list(entries)), strict=True):
        made[token] = ids == [token] and view.kinds[token] == TokenKind.TEXT
    return MergePairs(merges_of(pipeline["model"]), made, view.byte_lengths, ask)
