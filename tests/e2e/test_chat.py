"""Conversations through the command line: each model sees its own template, and only the answers are learned."""

from __future__ import annotations

import json

import pytest
import yaml
from e2e_helpers import Workplace, stages_that_ran

TURNS = [
    {"role": "user", "content": "Which user asked?\n\nA user, number {n}."},
    {"role": "assistant", "content": "The assistant 🙂 knows {n}."},
]


@pytest.fixture(scope="module")
def chat(tmp_path_factory, tiny_chat_dirs, tiny_model_dir) -> Workplace:
    """A recipe that trains on conversations, run once."""
    tmp_path = tmp_path_factory.mktemp("chat")
    teacher, student = tiny_chat_dirs
    lines = [[{**turn, "content": turn["content"].format(n=n)} for turn in TURNS] for n in range(12)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    recipe = {
        "name": "chat",
        "models": {
            "teacher": {"model": str(tiny_model_dir(teacher, seed=3))},
            "student": {"model": str(tiny_model_dir(teacher, seed=4)), "tokenizer": str(student)},
        },
        "data": {"train": [{"path": "chat.jsonl", "messages": "messages"}]},
        "stages": {
            "align": {"uses": "align"},
            "init": {"uses": "init", "needs": ["align"]},
            "distill": {
                "uses": "distill",
                "needs": ["init"],
                "losses": [{"alm": {}}, {"cross_entropy": {}}],
                "steps": 2,
                "batch_windows": 4,
                "window_tokens": 256,
            },
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    workplace = Workplace(tmp_path, {})
    code, output = workplace.run("run", "recipe.yaml")
    assert code == 0, output
    return workplace


def test_distilling_conversations_scores_the_answers_and_their_ends(chat):
    (facts,) = chat.directory.glob("runs/store/distill/*/out/training_data.json")
    account = json.loads(facts.read_text(encoding="utf-8"))
    answers = sum(len(TURNS[1]["content"].format(n=n).encode()) for n in range(12))
    assert (account["documents"], account["chat"]["conversations"]) == (12, 12)
    assert account["bytes"] == account["aligned_bytes"] == answers
    assert account["warnings"] == []


def test_a_conversation_that_cannot_be_rendered_stops_before_any_model_is_loaded(chat):
    with (chat.directory / "chat.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": "<|turn|>"}]}) + "\n")
    code, output = chat.run("run", "recipe.yaml")
    assert code == 1, output
    assert stages_that_ran(output) == {"sources/train", "distill"}
    assert "document chat/12: message 2 (assistant)" in output
    assert "<|turn|>" in output
    assert "Traceback" not in output
    assert "loading" not in output
