"""Which beginnings of texts and conversations a student is given to continue."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from prompt_world import ANSWER, QUESTION, TEXTS, stream, texts

from stages.stage import StageError
from stages.training.data.windows import Document
from stages.training.on_policy.options import OnPolicyOptions


def test_a_prompt_is_the_beginning_of_a_text_up_to_a_boundary_of_both_tokenizers(aligner):
    lengths = set()
    for prompt in stream(aligner, texts()).take(60):
        text = TEXTS[int(prompt.document_id[-1])]
        assert text.startswith(prompt.text)
        assert text[len(prompt.text) :].startswith(prompt.reference)
        for view in aligner.views:
            ends = view.encode(text).byte_ends.tolist()
            assert len(prompt.text.encode()) in ends
        student = aligner.views[1]
        tokens = student.encode(prompt.text).ids.tolist()
        assert list(prompt.ids) == [*student.prefix_ids, *tokens]
        lengths.add(len(tokens))
        assert len(tokens) <= 9
    assert len(lengths) > 3


def test_prompts_end_before_white_space_where_they_can(aligner):
    found = [prompt.text for prompt in stream(aligner, texts()[:1]).take(20)]
    assert all(TEXTS[0][len(prompt)].isspace() for prompt in found)


def test_a_texts_own_prompt_is_taken_as_it_is(aligner):
    prompt = stream(aligner, [Document("d/0", TEXTS[2], 1.0, context_bytes=12)]).take(1)[0]
    assert prompt.text == TEXTS[2].encode()[:12].decode() == "Ein Häusche"
    assert prompt.reference.startswith("n steht")


def test_a_restored_stream_goes_on_with_the_same_prompts(aligner):
    whole = stream(aligner, texts(), block_documents=2).take(15)
    assert [prompt.number for prompt in whole] == list(range(15))
    for stop in (0, 4, 10):
        first = stream(aligner, texts(), block_documents=2)
        assert first.take(stop) == whole[:stop]
        second = stream(aligner, texts(), block_documents=2)
        second.restore(json.loads(json.dumps(first.state())))
        assert second.take(15 - stop) == whole[stop:]
    assert stream(aligner, texts(), seed=6).take(15) != whole


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 0.5)])
def test_every_document_comes_as_often_as_its_weight_says(aligner, weights):
    counts = Counter(prompt.document_id for prompt in stream(aligner, texts(weights)).take(120))
    for number, weight in enumerate(weights):
        assert counts[f"d/{number}"] == pytest.approx(120 * weight / sum(weights), abs=6)


def test_documents_that_are_read_on_are_read_in_ascending_order(aligner):
    class ReadOn(list):
        read: list[int] = []

        def __getitem__(self, number):
            self.read.append(number)
            return super().__getitem__(number)

    documents = ReadOn(Document(f"d/{n}", TEXTS[0], 1.0) for n in range(12))
    found = [prompt.document_id for prompt in stream(aligner, documents, held=4).take(12)]
    assert sorted(found) == sorted(f"d/{n}" for n in range(12))
    read_on = [number for number in documents.read if number >= 4]
    assert read_on == list(range(4, 12))
    assert [name for name in found if int(name[2:]) >= 4] != [f"d/{n}" for n in range(4, 12)]


def test_a_conversation_is_continued_before_its_last_answer(chat_aligner):
    messages = [QUESTION, ANSWER, QUESTION, {**ANSWER, "content": "And knows again."}]
    prompt = stream(chat_aligner, [Document("c/0", "", 1.0, messages)], room=200).take(1)[0]
    assert prompt.messages == tuple(messages[:-1])
    rendered = chat_aligner.templates[1].apply(messages)
    assert prompt.text == rendered[: rendered.rindex("And knows again.")]
    assert list(prompt.ids) == chat_aligner.views[1].encode_rendered(prompt.text).ids.tolist()
    assert prompt.reference == "And knows again."
    question = stream(chat_aligner, [Document("c/0", "", 1.0, [QUESTION])]).take(1)[0]
    assert (question.messages, question.reference) == ((QUESTION,), "")


def test_prompts_that_leave_no_room_are_passed_over_and_if_all_do_that_is_an_error(chat_aligner):
    long = Document("c/0", "", 1.0, [{**QUESTION, "content": "word " * 200}])
    short = Document("c/1", "", 1.0, [QUESTION])
    assert {prompt.document_id for prompt in stream(chat_aligner, [long, short]).take(9)} == {"c/1"}
    with pytest.raises(StageError, match=r"at most 48 tokens .*raise window_tokens, or lower max_new_tokens"):
        stream(chat_aligner, [long]).take(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fraction": 1.5}, "fraction"),
        ({"prompt_tokens": (9, 3)}, r"prompt_tokens: \[9, 3\] should be the fewest and the most"),
        ({"prompt_tokens": (0, 3)}, "from 1 up"),
        ({"temperature": 0}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        OnPolicyOptions(**options)
