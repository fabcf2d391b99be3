from __future__ import annotations

import numpy as np
import pytest
from chat_toys import (
    CHATML,
    HEADER,
    TEMPLATES,
    assistant,
    byte_tokenizer,
    call,
    system,
    user,
    with_template,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.chat import AlignedChat, ChatError, ChatSide, ChatTemplate, align_chat

WORDS = ["user", "assistant", "system", "model", "the ", "\n", "\n\n", " ", "[INST]", "12", "é", "東京", "🙂", "x. "]
CONTENTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)
TALK = [
    system("Be brief."),
    user("user\nassistant: what is 12 + 30? "),
    assistant("42, user.\n"),
    user("user"),
    assistant("  def f():\n    return 1"),
]


def side(tokenizer: PreTrainedTokenizerBase) -> ChatSide:
    return ByteView.from_tokenizer(tokenizer), ChatTemplate.from_tokenizer(tokenizer)


BYTES = {name: byte_tokenizer(template) for name, template in TEMPLATES.items()}
BYTE_SIDES = {name: side(tokenizer) for name, tokenizer in BYTES.items()}


@pytest.fixture(scope="module")
def trained(tiny_tokenizer_dirs):
    """Two trained tokenizers of different sizes, each with every template."""
    return [
        {name: with_template(AutoTokenizer.from_pretrained(path), template) for name, template in TEMPLATES.items()}
        for path in tiny_tokenizer_dirs
    ]


@pytest.fixture(scope="module")
def toy_newlines():
    """One token a byte, but for two newlines, which are one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: index for index, entry in enumerate([*alphabet, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return with_template(PreTrainedTokenizerFast(tokenizer_object=backend), CHATML)


def native_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"])


def assert_bytes_agree(chat: AlignedChat, teacher: ByteView, student: ByteView, messages: list[dict]) -> None:
    """Both sides of every chunk spell the same bytes of one message, or are both the end of the same turn."""
    contents = "".join(message["content"] for message in messages).encode()
    ends = np.cumsum([len(message["content"].encode()) for message in messages])
    assert (np.diff(chat.chunk_message) >= 0).all()
    for chunk, message in enumerate(chat.chunk_message.tolist()):
        start, end = int(chat.chunks.chunk_starts[chunk]), int(chat.chunks.chunk_ends[chunk])
        assert ends[message] - len(messages[message]["content"].encode()) <= start <= end <= ends[message]
        sides = (chat.teacher, chat.chunks.teacher_chunk, teacher), (chat.student, chat.chunks.student_chunk, student)
        for tokens, chunk_of_token, view in sides:
            members = np.flatnonzero(chunk_of_token == chunk)
            assert (tokens.message[members] == message).all()
            token_bytes = [view.token_bytes(token) for token in tokens.ids[members].tolist()]
            if chat.chunk_is_end[chunk]:
                assert token_bytes == [None]
            else:
                assert b"".join(token_bytes) == contents[start:end] != b""


class TestTwoFormats:
    def test_worked_example_one_token_a_byte(self):
        messages = [user("hi"), assistant(" é\n")]
        chat = align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["header"], messages)
        # "é" is two bytes; the header format trims the space and the newline, so that four bytes meet two.
        assert chat.trained_bytes == 4
        assert (chat.teacher.not_rendered_bytes, chat.student.not_rendered_bytes) == (0, 2)
        assert chat.chunks.num_chunks == 3
        assert chat.chunk_message.tolist() == [1, 1, 1]
        assert chat.chunk_is_end.tolist() == [False, False, True]
        assert chat.coverage == 0.5
        view, _ = BYTE_SIDES["chatml"]
        scored = chat.teacher.ids[chat.chunks.teacher_chunk >= 0].tolist()
        assert [view.token_bytes(token) for token in scored] == [b"\xc3", b"\xa9", None]
        assert view.special_tokens[scored[-1]] == "<|im_end|>"
        student_end = chat.student.ids[chat.chunks.student_chunk == 2].tolist()
        assert [BYTE_SIDES["header"][0].special_tokens[token] for token in student_end] == ["<|eot|>"]

    @pytest.mark.parametrize("student", ["header", "instruction", "thinking", "markers"])
    @settings(max_examples=25)
    @given(contents=st.lists(CONTENTS, min_size=4, max_size=4))
    def test_every_byte_that_both_render_is_scored(self, student, contents):
        messages = [
            {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, contents, strict=True)
        ]
        chat = align_chat(BYTE_SIDES["chatml"], BYTE_SIDES[student], messages, train_on="all")
        assert_bytes_agree(chat, BYTE_SIDES["chatml"][0], BYTE_SIDES[student][0], messages)
        total = sum(len(text.encode()) for text in contents)
        trimmed = sum(len(text.strip().encode()) for text in contents)
        assert chat.chunks.chunk_bytes == (trimmed if student in ("header", "instruction") else total)
        assert chat.trained_bytes == total
        assert chat.student.not_rendered_bytes == total - chat.chunks.chunk_bytes
        ends = {"header": 4, "thinking": 4, "instruction": 2, "markers": 2}[student]
        assert chat.chunk_is_end.sum() == ends
        assert chat.student.missing_ends == (() if ends == 4 else (0, 2))
        assert chat.teacher.missing_ends == ()

    @pytest.mark.parametrize("teacher", ["chatml", "header", "instruction", "thinking", "markers"])
    @pytest.mark.parametrize("student", ["chatml", "header", "instruction", "thinking", "markers"])
    def test_trained_tokenizers_keep_native_ids_and_equal_bytes(self, trained, teacher, student):
        teacher_tokenizer, student_tokenizer = trained[0][teacher], trained[1][student]
        sides = side(teacher_tokenizer), side(student_tokenizer)
        chat = align_chat(*sides, TALK, train_on="all")
        assert chat.teacher.ids.tolist() == native_ids(teacher_tokenizer, TALK)
        assert chat.student.ids.tolist() == native_ids(student_tokenizer, TALK)
        assert_bytes_agree(chat, sides[0][0], sides[1][0], TALK)
        assert chat.coverage > 0.75
        mirrored = align_chat(*sides[::-1], TALK, train_on="all")
        np.testing.assert_array_equal(mirrored.chunks.teacher_chunk, chat.chunks.student_chunk)
        np.testing.assert_array_equal(mirrored.chunks.student_chunk, chat.chunks.teacher_chunk)

    @settings(max_examples=30)
    @given(contents=st.lists(CONTENTS, min_size=2, max_size=2))
    def test_equal_sides_give_every_content_token_its_own_chunk(self, trained, contents):
        messages = [user(contents[0]), assistant(contents[1])]
        both = side(trained[0]["chatml"])
        chat = align_chat(both, both, messages, train_on="all")
        np.testing.assert_array_equal(chat.chunks.teacher_chunk, chat.chunks.student_chunk)
        scored = chat.chunks.teacher_chunk >= 0
        np.testing.assert_array_equal(chat.chunks.teacher_chunk[scored], np.arange(chat.chunks.num_chunks))
        assert chat.chunks.chunk_bytes == chat.trained_bytes - chat.teacher.straddling_bytes
        assert (chat.teacher.trained & ~scored).sum() <= 2  # at most the newline of each header, joined with content
        assert chat.teacher.not_rendered_bytes == 0


class TestWhatIsLeftOut:
    def test_role_words_of_a_format_without_roles(self):
        # A table of template words loses everything after the first "user" here (alm.md §7 no. 1).
        text = "user\n\nassistant system model <bos> [INST] user"
        chat = align_chat(BYTE_SIDES["header"], BYTE_SIDES["markers"], [user(text), assistant(text)])
        assert chat.coverage == 1.0
        assert chat.chunks.num_chunks == len(text) + 1

    def test_one_token_for_start_and_end(self):
        # bos, eos and end of turn are the same token on one side only (alm.md §7 no. 2).
        template = "{{ eos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        messages = [user("a"), assistant("bc"), user("d"), assistant("e")]
        chat = align_chat(BYTE_SIDES["header"], side(byte_tokenizer(template)), messages, train_on="all")
        assert chat.coverage == 1.0
        assert chat.chunk_is_end.tolist() == [False, True, False, False, True, False, True, False, True]
        assert chat.chunk_message.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3]

    def test_a_token_of_content_and_markup_is_not_scored(self, toy_newlines):
        chat = align_chat(BYTE_SIDES["thinking"], side(toy_newlines), [user("a"), assistant("\nb")])
        # One token is the newline of the header and the content's own.
        assert chat.student.straddling_bytes == 1
        assert chat.chunks.chunk_bytes == 1
        assert chat.chunk_is_end.tolist() == [False, True]
        straddling = chat.student.trained & (chat.chunks.student_chunk < 0)
        assert toy_newlines.decode(chat.student.ids[straddling].tolist()) == "\n\n"

    def test_a_tokenizer_that_puts_a_space_after_every_special_token(self):
        # SentencePiece with a dummy prefix encodes the text after each special token on its own (alm.md §7 no. 4).
        characters = ["▁", *"helo,thr usnmdw"]
        vocabulary = {"<unk>": 0} | {character: index + 1 for index, character in enumerate(dict.fromkeys(characters))}
        merges = [("▁", "h"), ("▁h", "e"), ("l", "l"), ("▁he", "ll"), ("▁hell", "o")]
        vocabulary |= {left + right: len(vocabulary) + index for index, (left, right) in enumerate(merges)}
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        template = "{% for m in messages %}<|User|>{{ m.content }}<|end|>{% endfor %}"
        tokenizer = with_template(
            PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), template, ["<|User|>", "<|end|>"]
        )
        messages = [user("hello"), assistant("hello hello")]
        chat = align_chat(BYTE_SIDES["chatml"], side(tokenizer), messages, train_on="all")
        assert chat.student.ids.tolist() == native_ids(tokenizer, messages)
        assert tokenizer.convert_ids_to_tokens(chat.student.ids.tolist()) == [
            *("<|User|>", "▁hello", "<|end|>", "<|User|>", "▁hello", "▁hello", "<|end|>")
        ]
        assert chat.coverage == 1.0
        assert chat.chunk_message.tolist() == [0, 0, 1, 1, 1]

    def test_reasoning_that_one_side_drops(self):
        thought = "<think>\nhm\n</think>\n\n"
        messages = [user("a"), assistant(thought + "bc"), user("d"), assistant(thought + "e")]
        chat = align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["thinking"], messages)
        assert chat.student.not_rendered_bytes == len(thought)
        assert chat.trained_bytes == 2 * len(thought) + 3
        assert chat.chunks.chunk_bytes == len(thought) + 3
        assert_bytes_agree(chat, BYTE_SIDES["chatml"][0], BYTE_SIDES["thinking"][0], messages)

    def test_reasoning_content_that_one_side_does_not_know(self):
        messages = [user("a"), assistant("b", reasoning_content="hm")]
        chat = align_chat(BYTE_SIDES["thinking"], BYTE_SIDES["chatml"], messages)
        assert (chat.trained_bytes, chat.chunks.chunk_bytes) == (3, 1)
        assert (chat.teacher.not_rendered_bytes, chat.student.not_rendered_bytes) == (0, 2)
        both = align_chat(BYTE_SIDES["thinking"], BYTE_SIDES["thinking"], messages)
        assert both.coverage == 1.0

    def test_tool_calls_are_counted_and_their_turn_ends(self):
        messages = [
            user("x?"),
            assistant("", tool_calls=[call("look")]),
            {"role": "tool", "content": "1"},
            assistant("one"),
        ]
        chat = align_chat(BYTE_SIDES["thinking"], BYTE_SIDES["thinking"], messages)
        assert chat.tool_calls == 1
        assert chat.chunk_message.tolist() == [1, 3, 3, 3, 3]
        assert chat.chunk_is_end.tolist() == [True, False, False, False, True]

    def test_text_that_a_tokenizer_rewrites(self):
        lowered = byte_tokenizer(HEADER)
        lowered.backend_tokenizer.normalizer = normalizers.Lowercase()
        chat = align_chat(BYTE_SIDES["chatml"], side(lowered), [user("a"), assistant("one Two")])
        assert chat.student.rewritten_bytes == 1
        assert chat.chunks.chunk_bytes == 6
        assert chat.chunks.rejected_bytes >= 1


class TestTrainOn:
    @pytest.mark.parametrize(("train_on", "messages"), [("assistant", [2, 4]), ("last", [4]), ("all", [0, 1, 2, 3, 4])])
    def test_chunks_are_those_of_the_messages_to_learn(self, train_on, messages):
        chat = align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["thinking"], TALK, train_on=train_on)
        sizes = [len(TALK[index]["content"]) for index in messages]
        assert chat.trained_bytes == sum(sizes)
        expected = [index for index, size in zip(messages, sizes, strict=True) for _ in range(size + 1)]
        assert chat.chunk_message.tolist() == expected
        for tokens in (chat.teacher, chat.student):
            assert set(tokens.message[tokens.trained].tolist()) == set(messages)
            assert tokens.trained.sum() == len(expected)

    def test_no_answer_gives_nothing_to_learn(self):
        for train_on in ("assistant", "last"):
            chat = align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["header"], [user("a")], train_on=train_on)
            assert (chat.chunks.num_chunks, chat.trained_bytes, chat.coverage) == (0, 0, 1.0)
            assert (chat.chunks.teacher_chunk == -1).all()

    def test_unknown_choice(self):
        with pytest.raises(ValueError, match="train_on is 'user'; expected one of 'assistant', 'all', 'last'"):
            align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["header"], TALK, train_on="user")


def test_a_control_token_of_either_side_is_refused_by_name():
    messages = [user("a"), assistant("b <|eot|>")]
    with pytest.raises(ChatError, match=r"^message 2 \(assistant\): .*'<\|eot\|>'"):
        align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["header"], messages)
    assert align_chat(BYTE_SIDES["chatml"], BYTE_SIDES["markers"], messages).coverage == 1.0


@pytest.mark.demo
class TestSmolLM2:
    def test_native_ids_and_full_coverage(self, smollm2_dir, trained):
        tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
        teacher, student = side(tokenizer), side(trained[1]["thinking"])
        messages = [user("user\nWas ist 12 + 30? 🙂"), assistant("Zweiundvierzig, naïve user.\n\n東京")]
        chat = align_chat(teacher, student, messages, train_on="all")
        assert chat.teacher.ids.tolist() == native_ids(tokenizer, messages)
        assert "named SmolLM" in chat.teacher.text
        assert_bytes_agree(chat, teacher[0], student[0], messages)
        assert chat.coverage == 1.0
        assert chat.chunk_is_end.sum() == 2
