"""Windows keep every aligned token once and are cut only where both tokenizers have a boundary."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from stages.stage import StageError
from stages.training.data.account import Account
from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import collate
from stages.training.data.windows import Document, plain_windows

TEXT = "The quick brown fox jumps over 12345 lazy dogs.\n    def add(x):\n        return x + 1\n" * 6
CHAT = [
    {"role": "user", "content": "Which user asked?\n\nA user."},
    {"role": "assistant", "content": "The assistant 🙂 knows 12345."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Nothing more."},
]


@pytest.fixture(scope="module")
def aligner(tiny_tokenizer_dirs):
    return cache(lambda window_tokens: DocumentAligner(*tiny_tokenizer_dirs, window_tokens))


def _spelled(view: ByteView, ids) -> bytes:
    return b"".join(view.token_bytes(int(token)) for token in ids)


@pytest.mark.parametrize("window_tokens", [8, 17, 64, 10_000])
def test_windows_spell_the_document_on_both_sides(aligner, window_tokens):
    teacher, student = aligner(window_tokens).views
    windows = aligner(window_tokens)(Document("d", TEXT, 1.0), 0, 0)
    position = 0
    for window in windows:
        piece = _spelled(student, window.student.ids)
        assert piece == _spelled(teacher, window.teacher.ids)
        # What lies between two windows is at most one chunk, which alone would have nothing to score.
        position = TEXT.encode().index(piece, position, position + len(piece) + window_tokens) + len(piece)
    assert len(TEXT.encode()) - position <= window_tokens
    for window in windows:
        assert max(len(window.teacher.ids), len(window.student.ids)) <= window_tokens
        for chunk in range(window.num_chunks):
            left = _spelled(teacher, window.teacher.ids[window.teacher.chunk == chunk])
            right = _spelled(student, window.student.ids[window.student.chunk == chunk])
            assert left == right != b""


@given(text=st.text(max_size=200), window_tokens=st.integers(8, 40))
def test_any_text_gives_windows_whose_chunks_have_equal_bytes(aligner, text, window_tokens):
    teacher, student = aligner(window_tokens).views
    for window in aligner(window_tokens)(Document("d", text, 1.0), 0, 0):
        assert _spelled(teacher, window.teacher.ids) == _spelled(student, window.student.ids)
        assert len(window.student.ids) <= window_tokens
        # Every window has something to learn from, or a small batch could have nothing at all.
        assert collate([window]).student.scored.any()
        assert window.num_chunks >= 2


@given(length=st.integers(0, 60), room=st.integers(3, 12), prefix=st.sampled_from([(), (99,)]))
def test_plain_windows_predict_every_token_but_the_first_exactly_once(length, room, prefix):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    predicted = []
    for window in plain_windows(ids, np.ones(10_000, np.int32), prefix, room):
        batch = collate([window]).student
        predicted += batch.labels[batch.labels != -100].tolist()
    expected = ids.tolist() if prefix else ids.tolist()[1:]
    assert predicted == expected


@settings(deadline=None)
@given(
    prompt=st.text("abcd é東", max_size=60),
    text=st.text("xyz12🙂\n", min_size=1, max_size=120),
    window_tokens=st.integers(8, 40),
)
def test_nothing_of_a_prompt_is_scored(aligner, prompt, text, window_tokens):
    size = len(prompt.encode())
    made = aligner(window_tokens).make(Document("d", prompt + text, 1.0, context_bytes=size), 0, 0)
    for window in made.windows:
        for view, side in zip(aligner(window_tokens).views, (window.teacher, window.student), strict=True):
            # The two alphabets have no byte in common, so a chunk that holds any of the prompt would show.
            assert set(_spelled(view, side.ids[side.chunk >= 0])) <= set(text.encode())
            assert set(side.chunk[side.chunk >= 0].tolist()) == set(range(window.num_chunks))
        assert _spelled(aligner(window_tokens).views[1], window.student.ids) in (prompt + text).encode()
        assert collate([window]).student.scored.any()
    assert made.facts.sizes["bytes"] == len(text.encode())
    assert made.facts.sizes["aligned_bytes"] <= len(text.encode())
    if not prompt:
        plain = aligner(window_tokens)(Document("d", text, 1.0), 0, 0)
        assert [w.student.chunk.tolist() for w in made.windows] == [w.student.chunk.tolist() for w in plain]


def test_a_text_after_a_prompt_is_learned_with_as_much_of_the_prompt_as_fits_in_half_a_window(aligner):
    prompt, text = "The quick brown fox jumps over it. " * 20, "The dog sleeps on. " * 40
    windows = aligner(48)(Document("d", prompt + text, 1.0, context_bytes=len(prompt)), 0, 0)
    student = aligner(48).views[1]
    first = windows[0]
    context = _spelled(student, first.student.ids[first.student.chunk < 0]).decode()
    assert 12 <= (first.student.chunk < 0).sum() <= 24
    assert prompt.endswith(context)
    assert all((window.student.chunk >= 0).all() for window in windows[1:])
    scored = sum((window.student.lengths * (window.student.chunk >= 0)).sum() for window in windows)
    assert len(text) - scored <= 10  # a chunk at the seam at most, and one at the end
    short = aligner(200)(Document("d", "Say it: the dog sleeps on.", 1.0, context_bytes=8), 0, 0)
    assert _spelled(student, short[0].student.ids) == b"Say it: the dog sleeps on."


@settings(deadline=None)
@given(
    length=st.integers(0, 60), room=st.integers(3, 12), prefix=st.sampled_from([(), (99,)]), context=st.integers(0, 70)
)
def test_plain_windows_after_a_prompt_predict_the_tokens_of_the_text_exactly_once(length, room, prefix, context):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    predicted = []
    for window in plain_windows(ids, np.full(10_000, 2, np.int32), prefix, room, context):
        labels = collate([window]).student.labels
        predicted += labels[labels != -100].tolist()
    # Tokens of two bytes: one that begins before the end of the prompt is not learned.
    learned = [token for index, token in enumerate(ids.tolist()) if 2 * index >= context]
    assert predicted == (learned if prefix or context else learned[1:])


def test_what_a_tokenizer_rewrites_is_left_out_and_accounted_for(tiny_tokenizer_dirs, tmp_path):
    teacher, student = tiny_tokenizer_dirs
    lower = AutoTokenizer.from_pretrained(teacher)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.save_pretrained(tmp_path)
    aligner = DocumentAligner(tmp_path, student, 64)
    documents = [Document("d/0", "all of it is lower case, as before.", 1.0), Document("d/1", "Some Of It.", 1.0)]
    account, windows = Account(), []
    for document in documents:
        made = aligner.make(document, 0, 0)
        windows += made.windows
        account.read(made.facts)
    for window in windows:
        for chunk in range(window.num_chunks):
            left = _spelled(aligner.views[0], window.teacher.ids[window.teacher.chunk == chunk])
            assert left == _spelled(aligner.views[1], window.student.ids[window.student.chunk == chunk])
            assert left == left.lower() != b""
    account = aligner.describe(account)
    assert (account["documents"], account["bytes"]) == (2, 35 + 11)
    assert account["rewritten"]["student"]["documents"] == 0
    assert account["rewritten"]["teacher"]["first"] == ["d/1"]
    assert account["rewritten"]["teacher"]["reasons"] == ["lower-cases"]
    assert 35 <= account["aligned_bytes"] < 35 + 11
    assert account["warnings"][0].startswith("the teacher's tokenizer rewrites 1 of 2 documents, first d/1")


def test_rewritten_text_is_in_no_chunk_of_any_window(tiny_tokenizer_dirs, tmp_path):
    teacher, student = tiny_tokenizer_dirs
    lower = AutoTokenizer.from_pretrained(teacher)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.save_pretrained(tmp_path)
    windows = DocumentAligner(tmp_path, student, 16)(Document("d", "the dog and The Fox. " * 8, 1.0), 0, 0)
    assert len(windows) > 2
    for window in windows:
        for side in (window.teacher, window.student):
            assert set(side.chunk.tolist()) - {-1} == set(range(window.num_chunks))
    # Not only before the first chunk: chunks are counted from 0 in every window, what is in none is not.
    assert all((window.student.chunk == -1).any() for window in windows[1:])


def test_a_conversation_scores_the_assistant_only_on_both_native_renderings(tiny_chat_dirs):
    aligner = DocumentAligner(*tiny_chat_dirs, 512)
    made = aligner.make(Document("c/0", "", 1.0, CHAT), 0, 0)
    (window,) = made.windows
    for side, view, directory in zip((window.teacher, window.student), aligner.views, tiny_chat_dirs, strict=True):
        native = AutoTokenizer.from_pretrained(directory).apply_chat_template(CHAT, tokenize=True, return_dict=False)
        assert side.ids.tolist() == native[: len(side.ids)]
        scored = _spelled(view, [token for token in side.ids[side.chunk >= 0] if view.token_bytes(int(token))])
        assert scored.decode() == CHAT[1]["content"] + CHAT[3]["content"]
        ends = [view.special_tokens.get(int(token)) for token in side.ids[side.chunk >= 0]]
        assert ends.count("<|turn|>") == 2
        assert set(side.chunk[side.chunk >= 0]) == set(range(window.num_chunks))
    assert collate([window]).student.scored.sum() == (window.student.chunk >= 0).sum()
    account = Account()
    account.read(made.facts)
    assert aligner.describe(account)["warnings"] == []


def test_a_conversation_that_is_too_long_is_cut_at_a_chunk_and_said_so(tiny_chat_dirs):
    document = Document("c/0", "", 1.0, CHAT)
    (long,) = DocumentAligner(*tiny_chat_dirs, 512)(document, 0, 0)
    room = len(long.student.ids) * 2 // 3
    cut = DocumentAligner(*tiny_chat_dirs, room)
    made = cut.make(document, 0, 0)
    (short,) = made.windows
    assert 0 < short.num_chunks < long.num_chunks
    for side in ("teacher", "student"):
        kept, all_of_it = getattr(short, side), getattr(long, side)
        assert len(kept.ids) <= room
        assert kept.chunk.tolist() == all_of_it.chunk[: len(kept.ids)].tolist()
        assert set(kept.chunk[kept.chunk >= 0]) == set(range(short.num_chunks))
    account = Account()
    account.read(made.facts)
    assert f"1 of 1 conversations are longer than window_tokens ({room})" in cut.describe(account)["warnings"][0]
    assert DocumentAligner(*tiny_chat_dirs, 8)(document, 0, 0) == []


def test_a_conversation_that_cannot_be_rendered_is_refused_by_name(tiny_chat_dirs, tiny_tokenizer_dirs):
    with pytest.raises(StageError, match="holds conversations, but the student cannot render them"):
        DocumentAligner(tiny_chat_dirs[0], tiny_tokenizer_dirs[1], 64)(Document("c/7", "", 1.0, CHAT), 0, 0)
    bad = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bye <|turn|>"}]
    with pytest.raises(StageError, match=r"document c/8: .*assistant.*<\|turn\|>"):
        DocumentAligner(*tiny_chat_dirs, 64)(Document("c/8", "", 1.0, bad), 0, 0)
