from __future__ import annotations

import json

import pytest
from chat_toys import DEFAULT_SYSTEM, TEMPLATES, byte_tokenizer

from alignment.chat import describe_chat_pair, describe_chat_template

REPORTS = {name: describe_chat_template(byte_tokenizer(template)) for name, template in TEMPLATES.items()}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("injected_text", {"chatml": f"system\n{DEFAULT_SYSTEM}"}),
        ("trims_content", {"header": True, "instruction": True, "turns": True}),
        ("reasoning", {"thinking": "last"}),
        ("drops_earlier_think_blocks", {"thinking": True}),
        ("supports_tools", {"thinking": True}),
        ("supports_tool_calls", {"thinking": True}),
    ],
)
def test_habits(key, expected):
    default = {"injected_text": None, "reasoning": "none"}.get(key, False)
    assert {name: report[key] for name, report in REPORTS.items()} == {
        name: expected.get(name, default) for name in TEMPLATES
    }


def test_roles_and_ends():
    assert REPORTS["turns"]["roles"] == {"system": False, "user": True, "assistant": True, "tool": True}
    assert REPORTS["chatml"]["roles"] == dict.fromkeys(("system", "user", "assistant", "tool"), True)
    assert REPORTS["markers"]["end_of_turn"]["assistant"] == "<|end|>"
    assert REPORTS["markers"]["end_of_turn"]["user"] is None


def test_reasoning_of_every_turn():
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}|{% endfor %}"
    assert describe_chat_template(byte_tokenizer(template))["reasoning"] == "all"


def test_a_pair_is_json_and_says_what_is_not_learned():
    pair = describe_chat_pair(byte_tokenizer(TEMPLATES["thinking"]), byte_tokenizer(TEMPLATES["turns"]))
    assert json.loads(json.dumps(pair)) == pair
    assert pair["usable"]
    assert (pair["teacher"], pair["student"]) == (REPORTS["thinking"], REPORTS["turns"])
    assert pair["notes"] == [
        "The teacher's template drops the reasoning of earlier turns: it is not learned.",
        "The student's template has no system messages.",
        "The student's template trims white space around contents: it is not learned.",
        "The student's template leaves tool calls out: conversations with tool calls are refused.",
    ]


def test_a_template_that_renders_nothing():
    pair = describe_chat_pair(byte_tokenizer(TEMPLATES["chatml"]), byte_tokenizer("{{ raise_exception('no') }}"))
    assert pair["notes"][-1] == "The student's template renders no conversation: correct it, or use plain text."
    assert not pair["usable"]


def test_a_side_without_a_template():
    pair = describe_chat_pair(byte_tokenizer(TEMPLATES["chatml"]), byte_tokenizer(None))
    assert pair["student"] == {"has_template": False}
    assert not pair["usable"]
    assert pair["notes"][-1] == "The student's tokenizer has no chat template: use plain text, not chat data."
