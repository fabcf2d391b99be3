"""Conversations: bits per byte of their contents, in each model's own chat template."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.evaluate import Evaluate
from stages.evaluation.conversations import Conversations
from stages.evaluation.core import ignore
from stages.evaluation.rendered_chats import ChatRow, render
from stages.evaluation.scoring import load_model
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.windows import Conversation
from stages.stage import StageContext, StageError

TALKS = [
    Conversation(
        "talk/0",
        "talk",
        [
            {"role": "user", "content": "Where does the naïve fox sleep?"},
            {"role": "assistant", "content": "  In the Wald, 東京.  "},
        ],
        None,
    ),
    Conversation("talk/1", "talk", [{"role": "user", "content": "print(add(12, 345))"}], None),
    Conversation("talk/2", "talk", [{"role": "user", "content": "Say <|turn|> to me"}], None),
]


@pytest.fixture(scope="module")
def chat_models(tiny_chat_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> tuple[Path, Path]:
    """A model for each of the two templates, the first of which trims contents."""
    directories = []
    for seed, tokenizer in enumerate(tiny_chat_dirs):
        directory = tiny_model_dir(tokenizer, seed=seed, tied=False)
        model = AutoModelForCausalLM.from_pretrained(directory)
        model.get_output_embeddings().weight.data *= 20
        model.save_pretrained(directory)
        directories.append(directory)
    return directories[0], directories[1]


def section_of(*directories: Path, batch_tokens: int = 64) -> tuple[Conversations, list[Subject]]:
    rows = {f"model{number}": directory for number, directory in enumerate(directories)}
    views = {row: ByteView.from_tokenizer(path) for row, path in rows.items()}
    context = SectionContext(
        paths=rows,
        views=views,
        trained_domains=(),
        initial="model0",
        control=None,
        changed={},
        conversations=TALKS,
        batch_tokens=batch_tokens,
        cache=None,
    )
    subjects = [Subject(row, path, views[row], None, load_model(path)) for row, path in rows.items()]
    return Conversations(TALKS, context), subjects


def nats_by_hand(directory: Path, conversation: Conversation) -> tuple[float, int]:
    """Nats of the tokens that hold content, in float64 and from transformers alone, and the contents' bytes."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(conversation.messages, tokenize=False)
    inside = [False] * len(text)
    position = 0
    for message in conversation.messages:
        content = message["content"] if message["content"] in text else message["content"].strip()
        start = text.index(content, position)
        position = start + len(content)
        inside[start:position] = [True] * len(content)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    model = AutoModelForCausalLM.from_pretrained(directory).double()
    with torch.no_grad():
        logp = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
    nats = -sum(
        float(logp[place - 1, token])
        for place, (token, (start, stop)) in enumerate(zip(encoded.input_ids, encoded.offset_mapping, strict=True))
        if any(inside[start:stop])
    )
    return nats, sum(len(character.encode()) for character, within in zip(text, inside, strict=True) if within)


def test_the_contents_are_scored_in_each_models_own_markup(chat_models: tuple[Path, Path]) -> None:
    section, subjects = section_of(*chat_models)
    for subject, directory in zip(subjects, chat_models, strict=True):
        found = section.score(subject, ignore)
        for conversation in TALKS[:2]:
            nats, size = nats_by_hand(directory, conversation)
            assert found[conversation.id][:2] == [pytest.approx(nats, rel=1e-5), size]
        assert "contains the control token '<|turn|>'" in found["talk/2"]
    # The first template trims the answer: its spaces are not charged.
    sizes = [section.score(subject, ignore)["talk/0"][1] for subject in subjects]
    assert sizes == [len("Where does the naïve fox sleep?In the Wald, 東京.".encode()), sizes[0] + 4]


def test_batches_change_nothing(chat_models: tuple[Path, Path]) -> None:
    wide, narrow = section_of(chat_models[1], batch_tokens=500), section_of(chat_models[1], batch_tokens=1)
    left, right = (section.score(subjects[0], ignore) for section, subjects in (wide, narrow))
    for conversation in TALKS[:2]:
        assert left[conversation.id] == [
            pytest.approx(right[conversation.id][0], rel=1e-5),
            *right[conversation.id][1:],
        ]


def test_the_report_pools_what_all_models_could_read(chat_models: tuple[Path, Path]) -> None:
    section, _ = section_of(*chat_models)
    results = {
        "model0": {"talk/0": [40.0, 50, 10], "talk/1": [10.0, 20, 5], "talk/2": "refused"},
        "model1": {"talk/0": [20.0, 54, 10], "talk/1": [5.0, 20, 5], "talk/2": [1.0, 10, 2]},
    }
    report = section.report(results)
    (table,) = report.tables
    assert table.rows["model0"]["talk"].value == pytest.approx(50 / 70 / math.log(2))
    assert table.rows["model1"]["talk"].value == pytest.approx(25 / 74 / math.log(2))
    assert table.differences["initial"]["model1"]["talk"].value == pytest.approx((25 / 74 - 50 / 70) / math.log(2))
    assert [(entry.what, entry.why) for entry in report.skipped] == [
        ("conversation talk/2, of any model", "model0: refused")
    ]
    assert report.facts["conversations"] == "2 of 3"
    assert report.metrics["model1.bits_per_byte.talk"] == pytest.approx(25 / 74 / math.log(2))


def test_a_model_without_a_template_or_for_few_of_them_is_skipped(
    chat_models: tuple[Path, Path], tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    section, (plain,) = section_of(tiny_model_dir(tiny_tokenizer_dirs[0]))
    with pytest.raises(StageError, match="has no chat template"):
        section.score(plain, ignore)
    section, (short,) = section_of(chat_models[0])
    short.model.config.max_position_embeddings = 8
    with pytest.raises(StageError, match=r"3 of 3 conversations cannot be read: it takes \d+ tokens, .* 8 positions"):
        section.score(short, ignore)


def test_content_that_begins_the_rendering_is_conditioned_on_a_start(
    chat_models: tuple[Path, Path], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_models[1])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    (row,) = render(TALKS[1:2], tmp_path, ByteView.from_tokenizer(tmp_path))
    assert isinstance(row, ChatRow)
    assert row.ids[0] == tokenizer.bos_token_id
    assert row.first_scored == 1
    assert row.content.tolist() == [True] * (len(row.ids) - 2) + [False]


def test_the_stage_scores_texts_and_conversations_and_skips_models_without_a_template(
    chat_models: tuple[Path, Path],
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    records: list[dict[str, Any]] = [{"id": "a/0", "domain": "a", "text": "The dog sleeps on, and the fox jumps."}]
    records += [{"id": talk.id, "domain": talk.domain, "messages": talk.messages} for talk in TALKS]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    plain = tiny_model_dir(tiny_tokenizer_dirs[1])
    ctx = StageContext(
        config=Evaluate.Config(),
        inputs={
            "models": {"chat": chat_models[1], "plain": plain},
            "teacher": {"sources/teacher": chat_models[0]},
            "documents": {"sources/eval": documents},
        },
        work=tmp_path / "work",
        out=tmp_path / "out",
    )
    Evaluate().run(ctx)
    report = json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))
    retention, conversations = report["sections"]
    assert set(retention["tables"][0]["rows"]) == {"teacher", "chat", "plain"}
    assert set(conversations["tables"][0]["rows"]) == {"teacher", "chat"}
    assert ("conversations", "plain") in [(entry["what"], entry["model"]) for entry in conversations["skipped"]]
    assert "has no chat template" in conversations["skipped"][0]["why"]
