"""The windows that become of what a student wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from prompt_world import ANSWER, QUESTION, TEXTS, first_prompt, stream, texts
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from stages.training.data.aligner import DocumentAligner
from stages.training.data.windows import Document, Window
from stages.training.on_policy.prompts import Prompt
from stages.training.on_policy.rollouts import Rollout
from stages.training.on_policy.windows import NOTHING, RolloutAligner, ScoredRollout


def written(prompt: Prompt, text: str, view: ByteView, *, end: int | None = None, ids=None) -> Rollout:
    ids = view.encode(text).ids.tolist() if ids is None else ids
    return Rollout(prompt, tuple(ids), text, end, len(ids), 0.0)


def score_rollout(rollout: Rollout, aligner: DocumentAligner) -> ScoredRollout:
    return RolloutAligner.of(aligner)(rollout)


def scored_text(window: Window, side: str, view: ByteView) -> str:
    """The text of the scored tokens, special ones by their strings."""
    part = getattr(window, side)
    pieces = (
        view.special_tokens.get(token, "").encode() or view.token_bytes(token)
        for token in part.ids[part.chunk >= 0].tolist()
    )
    return b"".join(pieces).decode()


def end_of_text(view: ByteView) -> int:
    (token,) = (token for token, string in view.special_tokens.items() if string == "<|endoftext|>")
    return token


def test_only_what_the_student_wrote_is_scored_on_both_sides(aligner):
    prompt = first_prompt(aligner)
    rest = TEXTS[0][len(prompt.text) :][:30]
    scored = score_rollout(written(prompt, rest, aligner.views[1], end=end_of_text(aligner.views[1])), aligner)
    for side, view in zip(("teacher", "student"), aligner.views, strict=True):
        assert scored_text(scored.window, side, view) == f"{rest}<|endoftext|>"
        part = getattr(scored.window, side)
        context = part.ids[: np.flatnonzero(part.chunk >= 0)[0]].tolist()
        assert context == [*view.prefix_ids, *view.encode(prompt.text).ids.tolist()]
    assert (scored.scored_bytes, scored.own_tokens) == (len(rest.encode()), True)


def test_a_rollout_that_was_cut_off_loses_its_last_chunk_and_gets_no_end(aligner):
    prompt = first_prompt(aligner)
    rest = TEXTS[0][len(prompt.text) :][:30]
    whole, cut = (
        score_rollout(written(prompt, rest, aligner.views[1], end=end), aligner)
        for end in (end_of_text(aligner.views[1]), None)
    )
    assert cut.window.num_chunks == whole.window.num_chunks - 2
    assert rest.startswith(scored_text(cut.window, "student", aligner.views[1]))
    assert scored_text(cut.window, "student", aligner.views[1]) == scored_text(cut.window, "teacher", aligner.views[0])


def test_ends_of_text_are_matched_by_name_and_else_by_role(aligner, tmp_path, tiny_tokenizer_dirs):
    """A teacher with another end of text; what it does not have at all gets no credit."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
    tokenizer.add_special_tokens({"eos_token": "<|done|>"})
    tokenizer.save_pretrained(tmp_path)
    student = aligner.views[1]
    by_name = RolloutAligner.of(DocumentAligner(tmp_path, tiny_tokenizer_dirs[1], 64)).text_ends
    done, end = tokenizer.convert_tokens_to_ids(["<|done|>", "<|endoftext|>"])
    assert by_name == {end_of_text(student): end}
    other = RolloutAligner.of(DocumentAligner(tiny_tokenizer_dirs[1], tmp_path, 64)).text_ends
    assert other == {end: end_of_text(student), done: end_of_text(student)}


def test_the_students_own_tokens_are_kept_where_its_tokenizer_would_cut_otherwise(aligner):
    student = aligner.views[1]
    prompt = first_prompt(aligner)
    letters = [student.encode(letter).ids.tolist()[0] for letter in " the dog"]
    scored = score_rollout(written(prompt, " the dog", student, end=end_of_text(student), ids=letters), aligner)
    assert scored.window.student.ids[-9:].tolist() == [*letters, end_of_text(student)]
    assert scored_text(scored.window, "teacher", aligner.views[0]) == " the dog<|endoftext|>"
    assert scored.canonical < 8
    assert len(student.encode(" the dog").ids) < 8


def test_a_chunk_that_holds_some_of_the_prompt_is_context(aligner):
    """The student goes on within a word of which the teacher has the whole as one token."""
    teacher, student = aligner.views
    ends = teacher.encode(TEXTS[0]).byte_ends
    (first, *_) = np.flatnonzero((np.diff(ends) > 2) & (ends[1:] > 8))
    inside, after = int(ends[first]) + 1, int(ends[first + 1])
    prompt = Prompt(0, "d/0", TEXTS[0][:inside], tuple(student.encode(TEXTS[0][:inside]).ids.tolist()), None, None, "")
    rest = TEXTS[0][inside : after + 20]
    scored = score_rollout(written(prompt, rest, student, end=end_of_text(student)), aligner)
    expected = TEXTS[0][after : after + 20] + "<|endoftext|>"
    assert scored_text(scored.window, "teacher", teacher) == expected
    assert scored_text(scored.window, "student", student) == expected


def test_ending_at_once_is_scored_and_nothing_at_all_is_a_window_without_scores(aligner):
    prompt, student = first_prompt(aligner), aligner.views[1]
    ended = score_rollout(written(prompt, "", student, end=end_of_text(student)), aligner)
    assert scored_text(ended.window, "teacher", aligner.views[0]) == "<|endoftext|>"
    nothing = score_rollout(written(prompt, "", student), aligner)
    assert nothing.window is NOTHING
    assert (nothing.window.student.chunk >= 0).sum() == 0


def chat_prompt(chat_aligner: DocumentAligner) -> Prompt:
    return stream(chat_aligner, [Document("c/0", "", 1.0, [QUESTION, ANSWER])]).take(1)[0]


def turn(view: ByteView) -> int:
    (token,) = (token for token, string in view.special_tokens.items() if string == "<|turn|>")
    return token


def test_an_answer_is_scored_with_its_end_in_each_models_own_format(chat_aligner):
    teacher, student = chat_aligner.views
    prompt = chat_prompt(chat_aligner)
    scored = score_rollout(written(prompt, "It knows.", student, end=turn(student)), chat_aligner)
    for side, view, template in zip(("teacher", "student"), (teacher, student), chat_aligner.templates, strict=True):
        part = getattr(scored.window, side)
        rendered = template.apply([QUESTION, {"role": "assistant", "content": "It knows."}])
        tokens = view.encode_rendered(rendered).ids.tolist()
        assert part.ids.tolist() == tokens[: len(part.ids)]
        learned = part.ids[part.chunk >= 0].tolist()
        assert learned[-1] == turn(view)
        assert b"".join(view.token_bytes(token) for token in learned[:-1]) == b"It knows."
    assert scored.own_tokens


def test_ending_otherwise_than_the_template_or_not_at_all_gets_no_credit(chat_aligner):
    student = chat_aligner.views[1]
    prompt = chat_prompt(chat_aligner)
    for end, text in ((end_of_text(student), "It knows."), (None, "It knows")):
        scored = score_rollout(written(prompt, "It knows.", student, end=end), chat_aligner)
        learned = scored.window.student.ids[scored.window.student.chunk >= 0].tolist()
        assert turn(student) not in learned
        assert b"".join(student.token_bytes(token) for token in learned).decode() == text


def test_an_answer_keeps_the_sampled_tokens(chat_aligner):
    student = chat_aligner.views[1]
    letters = [student.encode(letter).ids.tolist()[0] for letter in "the dog"]
    scored = score_rollout(
        written(chat_prompt(chat_aligner), "the dog", student, end=turn(student), ids=letters), chat_aligner
    )
    learned = scored.window.student.ids[scored.window.student.chunk >= 0].tolist()
    assert learned == [*letters, turn(student)]
    assert scored.own_tokens


def test_the_string_of_a_control_token_in_an_answer_makes_it_unusable_and_no_error(chat_aligner):
    student = chat_aligner.views[1]
    scored = score_rollout(written(chat_prompt(chat_aligner), "I say <|turn|>", student), chat_aligner)
    assert (scored.window, scored.scored_bytes) == (NOTHING, 0)


def test_a_rollout_is_cut_to_the_window_on_the_side_that_has_more_tokens(tiny_tokenizer_dirs: tuple[Path, Path]):
    narrow = DocumentAligner(*tiny_tokenizer_dirs, window_tokens=20)
    prompt = stream(narrow, texts(), room=8, lengths=(2, 4)).take(1)[0]
    scored = score_rollout(written(prompt, " naïve façade, 東京 and Москва", narrow.views[1]), narrow)
    assert scored.window.tokens <= 20
    assert scored.window.num_chunks > 0
