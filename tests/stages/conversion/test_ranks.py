from __future__ import annotations

import base64
import gzip
import importlib.metadata
import itertools
import json
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stages.conversion.errors import ConversionError
from stages.conversion.patterns import PATTERNS, resolve_pattern
from stages.conversion.ranks import read_ranks, recover_merges, tokenizer_from_ranks
from stages.conversion.tokenizer import write_tokenizer

SCRIPTS = (
    "Straße, naïve, coöperate; Łódź. Ελληνικά και Кириллица, עברית مرحبا हिन्दी ไทย 日本語",
    "한국어 中文。 🙂👩‍👩‍👧 é\u0301 \u00a0\u2003 x",
    "def f(x):\n\tif x  >  1:\n        return [x**2, 1e-4, 0xff]\r\n\r\n    # it's they'LL we've\n\n\n   \n",
    "1 12 123 1234 12345 ½ ² Ⅳ ١٢٣ a1b22c333 __init__ snake_case CamelCase ...!!! --- \x00\x07 \t\t end  ",
)


def encode_by_rank(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """tiktoken's algorithm in the plainest form: look the piece up, else join the leftmost pair of lowest rank."""
    ids = []
    for piece in regex.findall(pattern, text):
        data = piece.encode("utf-8")
        parts = [data] if data in ranks else [bytes([byte]) for byte in data]
        while True:
            joined = [(ranks.get(a + b), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
            candidates = [(rank, i) for rank, i in joined if rank is not None]
            if not candidates:
                break
            _, i = min(candidates)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


def single_bytes() -> dict[bytes, int]:
    return {bytes([byte]): byte for byte in range(256)}


@pytest.mark.demo
def test_gpt2_gives_the_ids_of_bpe_by_rank_on_prose_code_and_other_scripts(gpt2_tokenizer_dir: Path) -> None:
    file = importlib.metadata.distribution("openai-whisper").locate_file("whisper/assets/gpt2.tiktoken")
    ranks = read_ranks(Path(str(file)))
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer_dir)
    data = Path(__file__).parents[3] / "recipes" / "data"
    texts = [
        json.loads(line)["text"]
        for file in sorted(data.glob("eval-*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert sum(map(len, texts)) > 10_000
    for text in (*texts, *SCRIPTS):
        assert tokenizer(text).input_ids == encode_by_rank(text, ranks, PATTERNS["gpt2"])
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.demo
def test_gpt2_knows_its_special_token_as_special(gpt2_tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer_dir)
    assert len(tokenizer) == 50257
    assert tokenizer.all_special_ids == [50256]
    assert tokenizer.added_tokens_decoder[50256].special
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (50256, 50256, 50256)
    assert tokenizer("a<|endoftext|>b").input_ids == [64, 50256, 65]
    # published ids of GPT-2
    assert tokenizer("Hello world").input_ids == [15496, 995]


@pytest.mark.demo
def test_every_merge_of_gpt2_is_recovered(gpt2_tokenizer_dir: Path) -> None:
    merges = json.loads((gpt2_tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert len(merges) == 50000
    # the first lines of GPT-2's published merges.txt
    assert [tuple(merge) for merge in merges[:4]] == [("Ġ", "t"), ("Ġ", "a"), ("h", "e"), ("i", "n")]


@st.composite
def grown_ranks(draw: st.DrawFn) -> dict[bytes, int]:
    """A vocabulary grown as training grows one: each new token joins two that are there."""
    tokens = [b"a", b"b", b"c"]
    for _ in range(draw(st.integers(0, 12))):
        new = draw(st.sampled_from(tokens)) + draw(st.sampled_from(tokens))
        if new not in tokens and len(new) <= 6:
            tokens.append(new)
    return single_bytes() | {token: 256 + i for i, token in enumerate(tokens[3:])}


@settings(max_examples=150, deadline=None)
@given(ranks=grown_ranks(), text=st.text("abc", max_size=24))
def test_any_grown_vocabulary_encodes_as_by_rank(
    tmp_path_factory: pytest.TempPathFactory, ranks: dict[bytes, int], text: str
) -> None:
    path = write_ranks(tmp_path_factory.getbasetemp() / "grown.tiktoken", ranks)
    tokenizer = tokenizer_from_ranks(path, pattern=r"\w+", special_tokens={"<end>": 999})
    assert tokenizer(text).input_ids == encode_by_rank(text, ranks, r"\w+")


def test_a_token_that_its_own_bytes_cannot_reach_gets_every_split() -> None:
    # "bc" is taken first in "abc", and "a" + "bc" outranks nothing: only ("ab", "c") would miss [a][bc].
    ranks = single_bytes() | {b"bc": 256, b"cd": 257, b"abcd": 258, b"ab": 259, b"abc": 260}
    merges = recover_merges(ranks)
    assert [merge for merge in merges if merge[0] + merge[1] == b"abcd"] == [(b"ab", b"cd"), (b"abc", b"d")]
    assert [merge for merge in merges if merge[0] + merge[1] == b"abc"] == [(b"a", b"bc")]


def test_a_whole_piece_is_looked_up_before_anything_is_merged(tmp_path: Path) -> None:
    # by merges alone "abcd" would stop at [a][bc][d]
    ranks = single_bytes() | {b"bc": 256, b"cd": 257, b"abcd": 258}
    path = write_ranks(tmp_path / "x.tiktoken", ranks)
    tokenizer = tokenizer_from_ranks(path, pattern=r"\w+", special_tokens={"<end>": 300})
    assert tokenizer("abcd").input_ids == [258]
    assert tokenizer("abcda").input_ids == [ord("a"), 256, ord("d"), ord("a")]


def test_special_tokens_keep_their_ids_across_gaps(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "gap.tiktoken", single_bytes())
    tokenizer = tokenizer_from_ranks(path, pattern=r"\S+|\s+", special_tokens={"<end>": 300, "<pad>": 305})
    tokenizer.eos_token = "<end>"
    tokenizer.save_pretrained(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded("A<end><pad>").input_ids == [65, 300, 305]
    assert sorted(loaded.all_special_ids) == [300, 305]


def test_a_gzipped_rank_file_is_read_as_it_is_packed(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "x.tiktoken", single_bytes())
    packed = tmp_path / "x.tiktoken.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_ranks(packed) == read_ranks(path)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ConversionError, match=r"x\.tiktoken\.gz: not a whole gzip file"):
        read_ranks(packed)


def test_with_a_pattern_a_model_file_is_read_as_ranks(tmp_path: Path) -> None:
    # as Llama 3 ships its ranks
    path = write_ranks(tmp_path / "tokenizer.model", single_bytes() | {b"ab": 256})
    options = {"pattern": r"\w+|\W+", "special_tokens": {"<end>": 300}, "roles": {"eos": "<end>"}}
    tokenizer = write_tokenizer(path, tmp_path / "out", **options)
    assert tokenizer("ab!<end>").input_ids == [256, ord("!"), 300]
    with pytest.raises(ConversionError, match=r"not a SentencePiece model; if it is a tiktoken rank file.*'pattern'"):
        write_tokenizer(path, tmp_path / "other")


def test_a_normal_form_is_applied_before_the_ranks(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "x.tiktoken", single_bytes())
    options = {"pattern": r"\w+|\W+", "special_tokens": {"<end>": 300}, "roles": {"eos": "<end>"}}
    composed, decomposed = "\u00e9", "e\u0301"
    for form, expected in ((None, decomposed), ("nfc", composed)):
        tokenizer = write_tokenizer(path, tmp_path / str(form), normalization=form, **options)
        assert tokenizer(decomposed).input_ids == list(expected.encode())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["IQ== x"], r"ranks:1: expected a base64 token and a rank"),
        (["IQ== 0", "I 1"], r"ranks:2: expected a base64 token"),
        (["IQ== 0", "IQ== 1"], r"ranks:2: the token b'!' is there a second time"),
        (["IQ== 0", "Ig== 0"], r"two tokens share one rank"),
        (["IQ== 0"], r"255 of the 256 single bytes are missing, first 0x00"),
    ],
)
def test_a_damaged_rank_file_is_refused_with_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "ranks"
    path.write_text("\n".join(lines))
    with pytest.raises(ConversionError, match=message):
        read_ranks(path)


def test_a_special_token_may_not_take_an_ordinary_id(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "x.tiktoken", single_bytes())
    with pytest.raises(ConversionError, match=r"already have: <end>=255"):
        tokenizer_from_ranks(path, pattern=r"\S+", special_tokens={"<end>": 255, "<ok>": 256})


def test_a_misspelled_pattern_name_is_not_taken_for_a_regex() -> None:
    assert resolve_pattern("gpt2") == PATTERNS["gpt2"]
    assert resolve_pattern(r"\w+|\W+") == r"\w+|\W+"
    with pytest.raises(ValueError, match="unknown pattern 'gtp2'; known: gpt2, cl100k"):
        resolve_pattern("gtp2")


def test_what_is_no_regex_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"'\(\[' is no regex \(Oniguruma error: premature end of char-class\)"):
        resolve_pattern("([")
