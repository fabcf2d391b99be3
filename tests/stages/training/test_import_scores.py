"""Scores that a server returned: every documented shape of them, and what about them is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored_world import TEXTS, context, distill, write_documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.artifacts import ScoresArtifact
from stages.import_scores import ImportScores
from stages.scoring.config import ImportScoresConfig
from stages.scoring.responses import ResponseProblem, ServedToken, locate, read_response
from stages.scoring.store import ScoreStore, text_digest
from stages.stage import StageError

TEXT = "The dog is naïve."
CUTS = ["The", " dog", " is", " na", "ïve", "."]
LOGP = [None, -1.5, -0.25, -4.0, -2.0, -0.125]
TOP = {" dog": -1.5, " cat": -2.0, "s": -3.0}

COMPLETION = {
    "choices": [
        {
            "text": TEXT,
            "logprobs": {
                "tokens": CUTS,
                "token_logprobs": LOGP,
                "top_logprobs": [None, TOP, *({cut: logp} for cut, logp in zip(CUTS[2:], LOGP[2:], strict=True))],
                "text_offset": [0, 3, 7, 10, 13, 16],
            },
        }
    ]
}
CHAT = {
    "choices": [
        {
            "message": {"role": "assistant", "content": TEXT},
            "logprobs": {
                "content": [
                    {
                        "token": cut,
                        "logprob": -1.0 if logp is None else logp,
                        "bytes": list(cut.encode()),
                        "top_logprobs": [{"token": "\ufffd", "logprob": -3.0, "bytes": [0x20, 0xC3]}],
                    }
                    for cut, logp in zip(CUTS, LOGP, strict=True)
                ]
            },
        }
    ]
}
VLLM = {
    "choices": [
        {
            "prompt_logprobs": [
                None,
                *(
                    {
                        str(100 + number): {"logprob": logp, "rank": 7, "decoded_token": cut},
                        "5": {"logprob": -0.75, "rank": 1, "decoded_token": " x"},
                    }
                    for number, (cut, logp) in enumerate(zip(CUTS[1:], LOGP[1:], strict=True))
                ),
            ]
        }
    ]
}


def located(response: dict[str, Any], text: str = TEXT, **options: Any) -> Any:
    return locate(read_response(response), text, **options)


@pytest.mark.parametrize("wrap", [lambda response: response, lambda response: {"response": response}])
def test_a_completion_with_echo(wrap):
    tokens = located(wrap(COMPLETION))
    assert tokens.lengths == [len(cut.encode()) for cut in CUTS]
    assert math.isnan(tokens.logp[0])
    assert tokens.logp[1:] == LOGP[1:]
    # What the server returns about a token is about what follows the token before it.
    expected = [math.exp(-1.5) + math.exp(-2.0), math.exp(-0.25), math.exp(-4.0)]
    assert [math.exp(each) for each in tokens.boundary_logp[:3]] == pytest.approx(expected)
    assert [math.exp(each) for each in tokens.boundary_logp[3:5]] == pytest.approx([1e-8, 1e-8])
    assert math.isnan(tokens.boundary_logp[5])
    assert tokens.unseen_mass[0] == pytest.approx(1 - sum(map(math.exp, TOP.values())))


def test_a_chat_completion_spells_by_bytes():
    tokens = located(CHAT)
    assert tokens.lengths == [3, 4, 3, 3, 4, 1]
    assert tokens.logp == [-1.0, *LOGP[1:]]
    assert math.exp(tokens.boundary_logp[0]) == pytest.approx(math.exp(-1.5) + math.exp(-3.0))


def test_vllm_does_not_name_the_first_token():
    tokens = located(VLLM)
    assert tokens.lengths == [3, 4, 3, 3, 4, 1]
    assert math.isnan(tokens.logp[0])
    assert tokens.logp[1:] == LOGP[1:]
    assert math.exp(tokens.boundary_logp[3]) == pytest.approx(math.exp(-0.75))
    ids = VLLM["choices"][0] | {"prompt_token_ids": [1, *range(100, 105)]}
    assert located({"choices": [ids]}) == tokens
    with pytest.raises(ResponseProblem, match="token 1 has id 9, which is not among its prompt_logprobs"):
        located({"choices": [ids | {"prompt_token_ids": [9] * 6}]})


def test_a_special_token_before_the_text_and_generated_tokens_after_it():
    tokens = [
        ServedToken(b"<s>", None, {}),
        ServedToken(b"ab", -1.0, {b"ab": -1.0}),
        ServedToken(b" c", -2.0, {b" c": -2.0}),
        ServedToken(b" more", -0.5, {b" more": -0.5, b"<e>": -1.0}),
        ServedToken(b"!", -0.5, {}),
    ]
    with pytest.raises(ResponseProblem, match=r"token 0 spells b'<s>', .*name it under special_tokens"):
        locate(tokens, "ab c")
    found = locate(tokens, "ab c", ["<s>", "<e>"])
    assert found.lengths == [0, 2, 2]
    assert found.logp[1:] == [-1.0, -2.0]
    assert math.exp(found.boundary_logp[2]) == pytest.approx(math.exp(-0.5) + math.exp(-1.0))


def test_an_answer_alone_leaves_its_prompt_unscored():
    text = "What is it? " + TEXT
    tokens = located(CHAT, text)
    assert tokens.lengths == [4, 3, 4, 1, 3, 4, 3, 3, 4, 1]
    assert all(map(math.isnan, tokens.logp[:4]))
    assert tokens.logp[4] == -1.0


def test_strings_that_are_no_text_are_spelled_as_some_servers_write_them():
    tokens = [ServedToken(None, None, {})]
    response = {"logprobs": {"tokens": ["a", "bytes:\\xe2\\x82", "bytes:\\xac"], "token_logprobs": [-1, -1, -1]}}
    assert located(response, "a€").lengths == [1, 2, 1]
    assert locate(tokens * 2, "").lengths == [0, 0]


@pytest.mark.parametrize(
    ("response", "text", "message"),
    [
        (
            {"logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1, -1]}},
            "ac",
            r"token 1 spells b'b', but the text has",
        ),
        (
            {"logprobs": {"tokens": ["a"], "token_logprobs": [-1]}},
            "ac",
            r"its tokens end at byte 1 of 2; the text goes",
        ),
        ({"logprobs": {"tokens": ["\ufffd"], "token_logprobs": [-1]}}, "€", "so the server must return its bytes"),
        ({"logprobs": {"tokens": ["a"], "token_logprobs": [0.5]}}, "a", r"0\.5 is no log-probability in nats"),
        ({"logprobs": {"tokens": ["a"], "token_logprobs": []}}, "a", "are not lists of one length"),
        ({"logprobs": None}, "a", "has no log-probabilities: expected"),
        ({"choices": [{}, {}]}, "a", "has 2 choices"),
    ],
)
def test_what_is_wrong_with_a_response_is_said(response, text, message):
    with pytest.raises(ResponseProblem, match=message):
        located(response, text)


def import_scores(root: Path, documents: Path, records: list[Any], **options: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    file = root / "served.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = ImportScoresConfig(path=str(file), **options)
    ImportScores().run(context(root, config, {"documents": documents}))
    ScoresArtifact.verify(root / "out")
    return root / "out"


def test_records_name_their_document_or_hold_its_text(tmp_path):
    documents = write_documents(tmp_path / "documents", [TEXT, TEXT + ".", TEXT])
    longer = {"tokens": [*CUTS, "."], "token_logprobs": [*LOGP, -1.0]}
    records = [{"text": TEXT + ".", "logprobs": longer}, {"document": "d/0", "response": COMPLETION}]
    store = ScoreStore(import_scores(tmp_path, documents, records, model="served"))
    store.check()
    assert store.manifest.teacher.model == "served"
    assert store.manifest.gives == {"nothing", "scores"}
    span = store.find(text_digest(TEXT + "."))
    np.testing.assert_allclose(store.slice("label_logp", span), [np.nan, *LOGP[1:], -1.0])
    assert store.slice("byte_lengths", span).tolist() == [3, 4, 3, 3, 4, 1, 1]


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([{"document": "d/9"}], {}, r"served\.jsonl:1: no document is called 'd/9'; ids are as 'd/0'"),
        ([{"text": "other"}], {}, r"served\.jsonl:1: its text is that of no document; it begins 'other'"),
        ([COMPLETION], {}, r"served\.jsonl:1: add the document's id as `document`, or its text as `text`"),
        (
            [{"document": "d/0"} | COMPLETION] * 2,
            {},
            r"served\.jsonl:2: the text of document d/0 has scores already, from .*:1",
        ),
        ([{"document": "d/0"} | COMPLETION], {}, "1 of 2 texts have no record, first that of document d/1"),
        ([{"document": "d/1"} | COMPLETION], {}, r"served\.jsonl:1: document d/1: token 0 spells b'The'"),
        ([{"document": "d/0", "logprobs": {"tokens": 3}}], {}, "document d/0: has no log-probabilities"),
        ([{"document": "d/0", "choices": 3}], {}, "document d/0: not what a server returns"),
        (
            [{"document": "d/0", "logprobs": {"tokens": CUTS, "token_logprobs": LOGP}}],
            {"boundary": "top_k"},
            "boundary: top_k needs the most probable tokens of every position",
        ),
    ],
)
def test_records_that_do_not_fit_the_documents(tmp_path, records, options, message):
    documents = write_documents(tmp_path / "documents", [TEXT, "Another."])
    with pytest.raises(StageError, match=message):
        import_scores(tmp_path, documents, records, **options)


def test_conversations_are_refused(tmp_path):
    documents = write_documents(tmp_path / "documents", [[{"role": "user", "content": TEXT}]])
    with pytest.raises(StageError, match="document d/0 is a conversation"):
        import_scores(tmp_path, documents, [{"document": "d/0"} | COMPLETION])


def served(teacher: Path, text: str) -> dict[str, Any]:
    """What a server would return about a text: the real model's scores, spelled by bytes."""
    view = ByteView.from_tokenizer(teacher)
    ids = view.encode(text).ids.tolist()
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    tokens = []
    for place, token in enumerate(ids):
        # All tokens are returned, so the boundary is no bound but the mass itself.
        top = [] if place == 0 else [(other, logp[place - 1, other]) for other in range(view.vocab_size)]
        tokens.append(
            {
                "token": "?",
                "bytes": list(view.token_bytes(token)),
                "logprob": None if place == 0 else float(logp[place - 1, token]),
                "top_logprobs": [
                    {"token": view.special_tokens.get(other, "?"), "bytes": None if other in view.special_tokens
                     else list(view.token_bytes(other)), "logprob": float(value)}
                    for other, value in top
                ],
            }
        )  # fmt: skip
    return {"choices": [{"logprobs": {"content": tokens}}]}


def test_training_on_served_scores_is_training_with_the_teacher(tmp_path, tiny_tokenizer_dirs, tiny_model_dir):
    teacher, student = (tiny_model_dir(each, seed=seed) for seed, each in enumerate(tiny_tokenizer_dirs))
    texts = [text for text in TEXTS if len(text) > 1]
    documents = write_documents(tmp_path / "documents", texts)
    records = [{"text": text} | served(teacher, text) for text in texts]
    inputs = {"student": student, "documents": documents}
    plain = import_scores(tmp_path / "plain", documents, records)
    for name, losses in (("dpca", ["dpca"]), ("alm", [{"alm": {"gamma": None, "debias": False}}])):
        expected, _ = distill(tmp_path / f"{name}-online", inputs | {"teacher": teacher}, losses=losses)
        found, _ = distill(tmp_path / name, inputs | {"teacher": plain}, losses=losses)
        assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(StageError, match="alm with these options needs the probability of a boundary"):
        distill(tmp_path / "refused", inputs | {"teacher": plain}, losses=["alm"])
    with pytest.raises(StageError, match="bpm needs the teacher's most probable tokens"):
        distill(tmp_path / "top", inputs | {"teacher": plain}, losses=["bpm"])


def test_a_served_boundary_gives_alm_all_it_needs(tmp_path, tiny_tokenizer_dirs, tiny_model_dir):
    teacher, student = (tiny_model_dir(each, seed=seed) for seed, each in enumerate(tiny_tokenizer_dirs))
    text = TEXTS[0]
    documents = write_documents(tmp_path / "documents", [text])
    special = AutoTokenizer.from_pretrained(teacher).eos_token
    record = {"text": text} | served(teacher, text)
    scores = import_scores(tmp_path / "import", documents, [record], boundary="top_k", special_tokens=[special])
    store, view = ScoreStore(scores), ByteView.from_tokenizer(teacher)
    span = store.find(text_digest(text))
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
        logp = model(torch.tensor([view.encode(text).ids.tolist()])).logits[0].log_softmax(-1)
    mass = logp[:, torch.from_numpy(view.boundary_mask())].logsumexp(-1)
    np.testing.assert_allclose(store.slice("boundary_logp", span)[:-1], mass[:-1], atol=1e-4)
    assert np.isnan(store.slice("boundary_logp", span)[-1])
    assert np.isnan(store.slice("label_logp", span)[-1])
    curve, _ = distill(
        tmp_path / "alm",
        {"student": student, "documents": documents, "teacher": scores},
        losses=["alm"],
        batch_windows=1,
    )
    assert all(map(math.isfinite, curve))
