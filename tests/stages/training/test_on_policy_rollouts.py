"""Prompts, what the student writes after them, and the windows that become of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.backends import process_group
from stages.training.data.aligner import DocumentAligner
from stages.training.data.order import ReadingOrder, Streamed
from stages.training.data.windows import Document, Window
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.on_policy.prompts import Prompt, PromptStream
from stages.training.on_policy.rollouts import Author, Rollout, whole_characters
from stages.training.on_policy.windows import NOTHING, RolloutAligner, ScoredRollout

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
)
QUESTION = {"role": "user", "content": "Which user asked?"}
ANSWER = {"role": "assistant", "content": "The assistant knows."}


@pytest.fixture(scope="module")
def aligner(tiny_tokenizer_dirs) -> DocumentAligner:
    return DocumentAligner(*tiny_tokenizer_dirs, window_tokens=64)


@pytest.fixture(scope="module")
def chat_aligner(tiny_chat_dirs) -> DocumentAligner:
    return DocumentAligner(*tiny_chat_dirs, window_tokens=96)


@pytest.fixture(scope="module")
def model(tiny_tokenizer_dirs, tiny_model_dir):
    """A random student with preferences, in float64, so that a batch's padding rounds nothing that matters."""
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tiny_tokenizer_dirs[1], tied=False)).double()
    student.get_output_embeddings().weight.data *= 5
    return student.train()


def stream(aligner: DocumentAligner, documents: list[Document], **options) -> PromptStream:
    options = {"lengths": (3, 9), "room": 48, "reference_tokens": 16, "seed": 5} | options
    weights = np.array([document.weight for document in documents])
    held = options.pop("held", len(documents))
    streamed = [Streamed(held, len(documents) - held, 1.0)] if held < len(documents) else []
    order = ReadingOrder(weights[:held], streamed, options["seed"], options.pop("block_documents", 100))
    return PromptStream(documents, held, order, aligner, **options)


def first_prompt(aligner: DocumentAligner, text: str = "") -> Prompt:
    return stream(aligner, [Document("d/0", text or TEXTS[0], 1.0)]).take(1)[0]


def texts(weights: tuple[float, ...] = (1, 1, 1)) -> list[Document]:
    return [Document(f"d/{n}", text, weight) for n, (text, weight) in enumerate(zip(TEXTS, weights, strict=True))]


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


def author(model, view: ByteView, **options) -> Author:
    settings = {name: options.pop(name) for name in list(options) if name in Author.__dataclass_fields__}
    student = SimpleNamespace(model=model, training=True, eval=model.eval, train=model.train)
    return Author(student, view, OnPolicyOptions(**{"max_new_tokens": 12} | options), seed=3, **settings)


def test_a_rollout_depends_on_its_number_and_not_on_its_neighbours_or_processes(aligner, model):
    view = aligner.views[1]
    prompts = stream(aligner, texts()).take(7)
    whole = author(model, view).write(prompts)
    assert author(model, view, batch=1).write(prompts) == whole
    shares = []

    def collect(mine):
        shares.append(mine)
        return [mine]

    for rank in range(3):
        with pytest.raises(KeyError):  # alone, a process has its own share only
            author(model, view, batch=2, rank=rank, world_size=3, exchange=collect).write(prompts)
    joined = author(model, view, batch=2, rank=2, world_size=3, exchange=lambda mine: shares).write(prompts)
    assert [rollout.ids for rollout in joined] == [rollout.ids for rollout in whole]
    assert model.training
    assert len({rollout.ids for rollout in whole}) == 7
    again = author(model, view).write([Prompt(**{**vars(prompts[0]), "number": 99})])
    assert again[0].ids != whole[0].ids


def test_tokens_are_sampled_from_the_students_distribution(aligner, model):
    view = aligner.views[1]
    prompt = first_prompt(aligner)
    prompts = [Prompt(**{**vars(prompt), "number": n}) for n in range(4000)]
    first = [rollout for rollout in author(model, view, max_new_tokens=1).write(prompts)]
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids])).logits[0, -1, : view.vocab_size]
    expected = logits.softmax(-1)
    found = Counter(rollout.ids[0] for rollout in first if rollout.ids)
    for token in expected.topk(3).indices.tolist():
        if view.special_tokens.get(token) is None and rollout_spells(token, view):
            assert found[token] / 4000 == pytest.approx(float(expected[token]), abs=0.035)
    special = list(view.special_tokens)
    assert first[0].end_mass == pytest.approx(float(expected[special].sum()), rel=1e-5)
    model.train()


def rollout_spells(token: int, view: ByteView) -> bool:
    """Whether a token is whole characters by itself."""
    return bool(whole_characters([token], view)[1])


def test_a_student_with_damaged_weights_is_an_error_in_every_process(aligner, model):
    prompts = [first_prompt(aligner)]

    def fails(mine):
        assert isinstance(mine, StageError)
        return [{}, mine]

    norm = model.model.norm.weight
    kept = norm.data.clone()
    norm.data[0] = float("nan")
    with pytest.raises(StageError, match="the student's logits are not finite"):
        author(model, aligner.views[1], exchange=fails).write(prompts)
    norm.data.copy_(kept)
    assert model.training


@pytest.mark.parametrize("sharded", [False, True])
def test_a_process_that_is_asked_to_stop_while_it_writes_ends_all_of_them(
    aligner, model, tmp_path, monkeypatch, sharded
):
    prompts = stream(aligner, texts()).take(6)
    polls, parts, shares, generate = iter([False] * 3), [], [], model.generate

    def generated(ids, **options):
        parts.append(len(ids))
        return generate(ids, **options)

    def collect(mine):
        shares.append(mine)
        return [mine]

    monkeypatch.setattr(model, "generate", generated)
    asked = {"rank": 1, "world_size": 2, "exchange": collect, "should_stop": lambda: next(polls, True)}
    with process_group.left_in_the_end():
        ctx = StageContext(config=None, inputs={}, work=tmp_path, out=tmp_path)
        process_group.join(ctx, torch.device("cpu"), alone=sharded)
        with pytest.raises(StageInterrupted):
            author(model, aligner.views[1], batch=1, sharded=sharded, **asked).write(prompts)
    # Where the parameters are split, the other process needs this one for each of its parts.
    assert parts == ([1, 1, 1] if sharded else [1])
    assert model.training

    def exchanged(mine):
        assert set(mine) == {0, 2, 4}, "the other one has written all of its share"
        return [mine, *shares]

    with pytest.raises(StageInterrupted):
        author(model, aligner.views[1], batch=1, rank=0, world_size=2, exchange=exchanged).write(prompts)


def test_the_models_own_settings_for_generation_come_back(aligner, model):
    before = model.generation_config.to_dict()
    author(model, aligner.views[1]).write([first_prompt(aligner)])
    assert model.generation_config.to_dict() == before


def test_what_is_no_text_is_left_out_from_there_on():
    view = ByteView.from_token_bytes([b"a", b"\xc3", b"\xa4", b"\xff", "東".encode()[:2], None])
    assert whole_characters([0, 1, 2, 0], view) == ([0, 1, 2, 0], "aäa")
    assert whole_characters([0, 1], view) == ([0], "a")
    assert whole_characters([0, 3, 0], view) == ([0], "a")
    assert whole_characters([4], view) == ([], "")


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
