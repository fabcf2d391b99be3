"""Random splits inside training: what a document becomes, what stays as it was, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored_world
from safetensors.torch import load_file

from alignment.byte_view import ByteView
from alignment.spans import align
from stages.distill import DistillConfig
from stages.stage import StageError, StageInterrupted
from stages.stochastok import StochasTok, StochasTokConfig
from stages.training.data.account import Account
from stages.training.data.aligner import DocumentAligner
from stages.training.data.order import ReadingOrder, Streamed
from stages.training.data.random_splits import RandomSplits
from stages.training.data.split_options import SplitOptions
from stages.training.data.split_progress import ShareDone
from stages.training.data.windows import Document, Window

TEXT = "The quick brown fox jumps over 12345 lazy dogs, and two tokenizations of one text meet. " * 3
CHAT = [
    {"role": "user", "content": "Where do the two boundaries of one text coincide?"},
    {"role": "assistant", "content": "The brown fox jumps where both tokenizations meet their boundaries."},
]
METHODS = ("stochastok", "bpe_dropout", "maxmatch_dropout")


def aligner(directories: Sequence[Path], window_tokens: int = 4096, seed: int = 1, **options: Any) -> DocumentAligner:
    splits = RandomSplits(SplitOptions(**options), seed, directories[1]) if options else None
    made = DocumentAligner(directories[0], directories[1], window_tokens, splits=splits)
    made.prepare()
    return made


def spelled(view: ByteView, ids: Sequence[int]) -> bytes:
    return b"".join(view.token_bytes(int(token)) or view.special_tokens[int(token)].encode() for token in ids)


def the_window(made: DocumentAligner, text: str = TEXT, number: int = 0, epoch: int = 0, done: float = 0.0) -> Window:
    (window,) = made.make(Document("d", text, 1.0), number, epoch, done).windows
    return window


@pytest.mark.parametrize("method", METHODS)
def test_the_students_tokens_change_and_the_teachers_do_not(tiny_tokenizer_dirs, method) -> None:
    plain, split = (the_window(aligner(tiny_tokenizer_dirs, **o)) for o in ({}, {"proportion": 0.4, "method": method}))
    assert split.teacher.ids.tolist() == plain.teacher.ids.tolist()
    assert split.teacher.lengths.tolist() == plain.teacher.lengths.tolist()
    assert len(split.student.ids) > len(plain.student.ids)
    view = ByteView.from_tokenizer(tiny_tokenizer_dirs[1])
    assert spelled(view, split.student.ids) == spelled(view, plain.student.ids) == TEXT.encode()
    assert split.student.lengths.tolist() == view.byte_lengths[split.student.ids].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_split_text_is_aligned_exactly(tiny_tokenizer_dirs, method) -> None:
    """The chunks are those of the teacher's ends and the split student's, not of the tokens before the split."""
    window = the_window(aligner(tiny_tokenizer_dirs, proportion=0.4, method=method))
    ends = [np.cumsum(side.lengths) for side in (window.teacher, window.student)]
    chunks = align(*ends)
    assert window.num_chunks == chunks.num_chunks == len(np.intersect1d(*ends))
    assert window.teacher.chunk.tolist() == chunks.teacher_chunk.tolist()
    assert window.student.chunk.tolist() == chunks.student_chunk.tolist()
    assert window.num_chunks > the_window(aligner(tiny_tokenizer_dirs)).num_chunks


def test_each_half_inherits_what_its_token_had(tiny_tokenizer_dirs) -> None:
    """With one tokenizer on both sides a chunk is a token; the prompt's stay unscored, whatever is split."""
    same = (tiny_tokenizer_dirs[1],) * 2
    document = Document("d", TEXT, 1.0, context_bytes=40)
    plain, split = (aligner(same, **o).make(document, 0, 0).windows[0] for o in ({}, {"proportion": 0.9}))
    view = ByteView.from_tokenizer(same[1])
    assert plain.num_chunks == split.num_chunks
    assert (plain.student.chunk == -1).any()
    for chunk in range(plain.num_chunks):
        (whole,) = plain.student.ids[plain.student.chunk == chunk].tolist()
        assert spelled(view, split.student.ids[split.student.chunk == chunk]) == view.token_bytes(whole)
    before = [spelled(view, window.student.ids[window.student.chunk == -1]) for window in (plain, split)]
    assert before[0] == before[1] != b""


@pytest.mark.parametrize("method", METHODS)
def test_markup_of_a_conversation_is_never_split(tiny_chat_dirs, method) -> None:
    document = Document("c", "", 1.0, CHAT)
    (plain,) = aligner(tiny_chat_dirs).make(document, 0, 0).windows
    made = aligner(tiny_chat_dirs, proportion=0.9, method=method)
    (split,) = made.make(document, 0, 0).windows
    view = made.views[1]
    assert spelled(view, split.student.ids) == spelled(view, plain.student.ids)
    markup = [
        [token for token in window.student.ids.tolist() if token in view.special_tokens] for window in (plain, split)
    ]
    assert markup[0] == markup[1]
    # The role's name stands between the special tokens <|start|> and the content, as ordinary tokens.
    start = int(np.flatnonzero(plain.student.ids == view.encode_rendered("<|start|>").ids[0])[0])
    header = plain.student.ids[start : start + 1 + len(view.encode("user\n").ids)].tolist()
    assert split.student.ids[start : start + len(header)].tolist() == header
    assert len(split.student.ids) > len(plain.student.ids) + 5
    scored = [spelled(view, window.student.ids[window.student.chunk >= 0]) for window in (plain, split)]
    assert scored[0] == scored[1] == CHAT[1]["content"].encode() + b"<|turn|>"
    assert split.teacher.ids.tolist() == plain.teacher.ids.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_splits_are_a_function_of_seed_epoch_and_document(tiny_tokenizer_dirs, method) -> None:
    options = {"proportion": 0.5, "method": method}
    made, other = aligner(tiny_tokenizer_dirs, **options), aligner(tiny_tokenizer_dirs, seed=2, **options)
    first = the_window(made, number=3, epoch=1).student.ids.tolist()
    the_window(made, number=8)
    assert the_window(made, number=3, epoch=1).student.ids.tolist() == first
    assert the_window(aligner(tiny_tokenizer_dirs, **options), number=3, epoch=1).student.ids.tolist() == first
    for different in ((made, 3, 2), (made, 4, 1), (other, 3, 1)):
        assert the_window(different[0], number=different[1], epoch=different[2]).student.ids.tolist() != first


def test_a_share_of_the_documents_stays_deterministic_drawn_anew_in_every_epoch(tiny_tokenizer_dirs) -> None:
    plain = the_window(aligner(tiny_tokenizer_dirs)).student.ids.tolist()
    made = aligner(tiny_tokenizer_dirs, proportion=0.5, deterministic_share=0.25)
    kept = [[the_window(made, number=n, epoch=e).student.ids.tolist() == plain for n in range(120)] for e in (0, 1)]
    assert sum(kept[0]) == pytest.approx(30, abs=20)  # more than four standard deviations
    assert kept[0] != kept[1]


def test_short_documents_take_part_with_stochastic_rounding_alone(tiny_tokenizer_dirs) -> None:
    text = "The quick fox meets boundaries"
    plain = the_window(aligner(tiny_tokenizer_dirs), text).student.ids.tolist()
    assert len(plain) < 20
    for rounding, reached in (("floor", False), ("stochastic", True)):
        made = aligner(tiny_tokenizer_dirs, proportion=0.05, rounding=rounding)
        seen = [the_window(made, text, number).student.ids.tolist() != plain for number in range(60)]
        assert any(seen) == reached
        assert not all(seen)


def test_the_proportion_follows_its_schedule(tiny_tokenizer_dirs) -> None:
    made = aligner(tiny_tokenizer_dirs, proportion=0.8, proportion_schedule="linear")
    plain = len(the_window(aligner(tiny_tokenizer_dirs)).student.ids)
    sizes = [
        sum(len(the_window(made, number=n, done=done).student.ids) - plain for n in range(8)) for done in (0, 0.3, 0.99)
    ]
    assert sizes[0] == 0
    assert sizes[1] < sizes[2]
    assert sizes[1] == pytest.approx(0.3 * sizes[2], rel=0.4)


@pytest.mark.parametrize("batch", [{"batch_windows": 3}, {"batch_tokens": 64, "batch_windows": None}])
def test_the_share_done_of_a_block_is_that_of_the_steps(tiny_tokenizer_dirs, batch) -> None:
    """40 equal documents, of which an epoch of 4 blocks reads each once, and a step some."""
    documents = [Document(str(n), TEXT, 1.0) for n in range(40)]
    made = aligner(tiny_tokenizer_dirs, window_tokens=64)
    windows = made(documents[0], 0, 0)
    size = sum(window.tokens for window in windows) if "batch_tokens" in batch else len(windows)
    a_step = (batch.get("batch_tokens") or 3) / size  # documents
    steps = 100
    config = StochasTokConfig(steps=steps, window_tokens=64, **batch)
    done = ShareDone(documents, made, ReadingOrder(np.ones(40), (), 0, 10), config)
    assert done(0, 0) == 0.0
    assert done(0, 2) == pytest.approx(20 / a_step / steps)
    assert done(1, 1) == pytest.approx(min(50 / a_step / steps, 0.99))
    assert done(1000, 0) == pytest.approx(0.99)
    assert ReadingOrder(np.full(4, 1.5), (Streamed(4, 10, 0.5),), 0, 5).mean_readings == 11.0


def test_the_account_tells_growth_splittable_share_and_cuts_of_characters(tiny_tokenizer_dirs) -> None:
    text = "東京 naïve façade 🙂 The quick brown fox jumps over the lazy dog. " * 4
    made = aligner(tiny_tokenizer_dirs, proportion=0.8)
    account = Account()
    windows = []
    for number in range(3):
        document = made.make(Document(str(number), text, 1.0), number, 0)
        account.read(document.facts)
        windows += document.windows
    said = made.describe(account)
    view = made.views[1]
    tokens = view.encode(text).ids
    splits = said["splits"]
    assert splits["documents"] == 3
    assert splits["deterministic_documents"] == 0
    assert splits["tokens_before"] == 3 * len(tokens)
    assert splits["tokens_after"] == sum(len(window.student.ids) for window in windows)
    assert splits["growth"] == splits["tokens_after"] / splits["tokens_before"] > 1.2
    data = text.encode()
    cut = sum(
        data[end] & 0xC0 == 0x80
        for window in windows
        for end in np.cumsum(window.student.lengths)[:-1].tolist()
        if end not in set(view.encode(text).byte_ends.tolist())
    )
    assert splits["cuts_inside_characters"] == cut > 0
    assert 0 < splits["splittable_share"] < 1
    assert "splits/documents" not in said["chat"]
    assert said["warnings"] == []

    without = aligner(tiny_tokenizer_dirs, proportion=0.8, cuts_inside_characters=False)
    account = Account()
    account.read(without.make(Document("0", text, 1.0), 0, 0).facts)
    assert without.describe(account)["splits"]["cuts_inside_characters"] == 0


def test_nothing_split_is_said(tiny_tokenizer_dirs) -> None:
    made, account = aligner(tiny_tokenizer_dirs, proportion=0.01), Account()
    account.read(made.make(Document("0", "The quick fox", 1.0), 0, 0).facts)
    assert made.describe(account)["splits"]["growth"] == 1.0
    assert "rounding: stochastic reaches them" in made.describe(account)["warnings"][0]


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("bytes")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(directory)
    return directory


def test_a_byte_tokenizer_has_nothing_to_split(bytes_only) -> None:
    with pytest.raises(StageError, match="there is nothing to split"):
        aligner((bytes_only, bytes_only), proportion=0.1)
    assert the_window(aligner((bytes_only, bytes_only), proportion=0)).student.ids.size == len(TEXT)


def test_bpe_dropout_needs_merges(tmp_path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0), ("a", -2.0), ("1", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(StageError, match="needs the merges of byte-pair encoding, and the student has a Unigram model"):
        aligner((tmp_path, tmp_path), proportion=0.1, method="bpe_dropout")
    window = the_window(aligner((tmp_path, tmp_path), proportion=1.0, method="maxmatch_dropout"), "a a a a")
    assert window.student.ids.tolist() == [2, *([1, 3] * 3)]  # the space before the text is not in it, and stays


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"proportion": 1.2}, "less than or equal to 1"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"rounds": 2}, "rounds has no effect without law: binomial"),
        ({"law": "binomial", "rounding": "stochastic"}, "rounding has no effect without law: steps"),
        ({"method": "bpe_dropout", "law": "binomial"}, "law has no effect without method: stochastok"),
        ({"method": "maxmatch_dropout", "byte_fallback_pairs": True}, "without method: stochastok"),
        ({"byte_fallback_pairs": True, "cuts_inside_characters": False}, "cut inside characters"),
        ({"deterministic_share": 1.0}, "less than 1"),
        ({"method": "dropout"}, "'stochastok', 'bpe_dropout' or 'maxmatch_dropout'"),
        ({"mixing": 0.1}, "Extra inputs"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        SplitOptions(**options)
    with pytest.raises(ValueError, match=said):
        StochasTokConfig(steps=1, **options)
    with pytest.raises(ValueError, match=said):
        DistillConfig(steps=1, losses=["cross_entropy"], random_splits=options)


def test_splits_beside_text_of_the_student_alone_are_refused() -> None:
    options = {"steps": 1, "losses": [{"alm": {}}], "on_policy": {"fraction": 1}, "random_splits": {}}
    with pytest.raises(ValueError, match="random_splits has no effect with on_policy"):
        DistillConfig(**options)


# Through the engine.

OPTIONS = {"steps": 4, "batch_windows": 4, "window_tokens": 64, "learning_rate": 3e-3, "log_every": 1, "dtype": "fp32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("world")
    texts = [f"{text} {number}." for number in range(3) for text in scored_world.TEXTS]
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": scored_world.write_documents(root / "documents", texts),
    }


def stochastok(world, root: Path, *, stop_after: int | None = None, **options: Any) -> tuple[dict, dict]:
    """The trained weights, and what is said of the data."""
    polls = iter(range(1_000_000))
    stop = (lambda: False) if stop_after is None else (lambda: next(polls) >= stop_after)
    inputs = {name: world[name] for name in ("student", "documents")}
    config = StochasTokConfig(**OPTIONS | {"data_workers": 0} | options)
    ctx = scored_world.context(root, config, inputs, should_stop=stop, cache=root / "cache")
    StochasTok().run(ctx)
    return load_file(ctx.out / "model.safetensors"), json.loads((ctx.out / "training_data.json").read_text())


def equal(left: dict, right: dict) -> bool:
    return all(bool((left[name] == right[name]).all()) for name in left | right)


def test_a_control_without_splits_is_plain_training_by_cross_entropy(world, tmp_path) -> None:
    control, said = stochastok(world, tmp_path / "control", proportion=0)
    inputs = {name: world[name] for name in ("student", "documents")}
    _, plain = scored_world.distill(tmp_path / "plain", inputs, losses=["cross_entropy"], **OPTIONS)
    assert equal(control, plain)
    assert said["splits"]["growth"] == 1.0
    _, none = scored_world.distill(
        tmp_path / "none", inputs, losses=["cross_entropy"], random_splits={"proportion": 0}, **OPTIONS
    )
    assert equal(control, none)
    split, said = stochastok(world, tmp_path / "split", proportion=0.5)
    assert said["splits"]["growth"] > 1.1
    assert not equal(control, split)


@pytest.mark.parametrize("options", [{}, {"method": "bpe_dropout"}, {"law": "binomial", "deterministic_share": 0.5}])
def test_workers_and_interruptions_make_no_difference(world, tmp_path, options) -> None:
    options = {"proportion": 0.5, "shuffle_documents": 5, "proportion_schedule": "reverse_cosine", **options}
    straight, said = stochastok(world, tmp_path / "straight", **options)
    with pytest.raises(StageInterrupted):
        stochastok(world, tmp_path / "resumed", stop_after=2, data_workers=1, checkpoint_every=1, **options)
    resumed, again = stochastok(world, tmp_path / "resumed", data_workers=0, checkpoint_every=1, **options)
    assert equal(straight, resumed)
    assert again == said
    assert said["splits"]["growth"] > 1.0


def test_stochastok_takes_conversations(world, tmp_path, tiny_chat_dirs, tiny_model_dir) -> None:
    documents = scored_world.write_documents(tmp_path / "documents", [CHAT, scored_world.CONVERSATION] * 4)
    chat = {"student": tiny_model_dir(tiny_chat_dirs[1], seed=2), "documents": documents}
    _, said = stochastok(chat, tmp_path / "chat", proportion=0.5, window_tokens=256)
    assert said["chat"]["conversations"] == said["splits"]["documents"] == 8
    assert said["splits"]["growth"] > 1.05
    assert said["aligned_bytes"] == said["bytes"]


def test_cached_scores_teach_split_text_like_the_model_they_came_from(world, tmp_path) -> None:
    scores = scored_world.score(world["teacher"], world["documents"], tmp_path / "scores")
    losses = [{"alm": {"gamma": 0.0, "temperature": 20.0}}]
    options = {"losses": losses, "random_splits": {"proportion": 0.5}, **OPTIONS, "window_tokens": 128}
    live, _ = scored_world.distill(tmp_path / "live", world, **options)
    cached, _ = scored_world.distill(tmp_path / "cached", world | {"teacher": scores}, **options)
    plain, _ = scored_world.distill(tmp_path / "plain", world, **options | {"random_splits": None})
    assert cached == pytest.approx(live, rel=2e-3)  # cached scores are rounded
    assert abs(live[0] / plain[0] - 1) > 0.01
