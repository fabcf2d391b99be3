from __future__ import annotations

import pickle
import re

import pytest
from chat_toys import (
    CHATML,
    DEFAULT_SYSTEM,
    HEADER,
    INSTRUCTION,
    MARKERS,
    SPECIALS,
    TEMPLATES,
    THINKING,
    assistant,
    byte_tokenizer,
    call,
    system,
    user,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.chat import ChatError, ChatTemplate
from alignment.chat.template import RenderedChat

CHAT = {name: ChatTemplate.from_tokenizer(byte_tokenizer(template)) for name, template in TEMPLATES.items()}

CONTROL_TOKENS = re.compile(
    "|".join({re.escape(token) for tokens in SPECIALS.values() for token in tokens} | {"</?s>"})
)

# Role words, markup-like strings, tags, white space, characters of one to four bytes.
FRAGMENTS = [
    *("user", "assistant", "system", "model", "Qxz", "Qxz0Z", "\n", "\n\n", " ", "\t", "[INST]", "[/INST]", "<<SYS>>"),
    *("<|im_end|", "im_start|>", "<|im_start", "<think>", "</think>", "<tool_response>", "{{ x }}", "{%", "\\n", '"'),
    *("é", "東京", "🙂", "\x00", "\u2028", "\u00a0", "e\u0301"),
]
CONTENTS = st.lists(st.sampled_from(FRAGMENTS) | st.text("ab <>|/\n", max_size=5), max_size=6).map("".join)
CONTENTS = CONTENTS.filter(lambda text: not CONTROL_TOKENS.search(text))


@st.composite
def conversations(draw: st.DrawFn, contents: st.SearchStrategy[str] = CONTENTS) -> list[dict[str, str]]:
    turns = [{"role": role, "content": draw(contents)} for role in ("user", "assistant") * draw(st.integers(1, 3))]
    return ([system(draw(contents))] if draw(st.booleans()) else []) + turns


def pieces(chat: RenderedChat) -> list[tuple[int, str, int, int, str]]:
    """Each span with the text that it has in the rendering."""
    data = chat.text.encode()
    return [
        (span.message, span.part, span.start, span.stop, data[span.rendered_start : span.rendered_stop].decode())
        for span in chat.spans
    ]


def expected_spans(
    messages: list[dict[str, str]], opening: str, header: str, end: str, trim: bool
) -> tuple[str, list[tuple[int, int, int, int]], list[int]]:
    """An explicit renderer: text, (message, start, stop, rendered start) of what is not blank, and ends, in bytes."""
    text, spans, ends = opening.encode(), [], []
    for index, message in enumerate(messages):
        text += header.format(role=message["role"]).encode()
        content = message["content"]
        kept = content.strip() if trim else content
        if content.strip():
            start = len(content[: content.index(kept)].encode())
            spans.append((index, start, start + len(kept.encode()), len(text)))
        text += kept.encode()
        ends.append(len(text))
        text += end.encode()
    return text.decode(), spans, ends


class TestContentsAreFound:
    @settings(max_examples=60)
    @given(conversations())
    def test_where_nothing_is_trimmed(self, messages):
        chat = CHAT["chatml"].render(messages)
        opening = "" if messages[0]["role"] == "system" else f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
        text, spans, ends = expected_spans(messages, opening, "<|im_start|>{role}\n", "<|im_end|>\n", trim=False)
        assert chat.text == text
        assert [(span.message, span.start, span.stop, span.rendered_start) for span in chat.spans] == spans
        if all(message["content"].strip() for message in messages):
            assert chat.ends == ends

    @settings(max_examples=60)
    @given(conversations())
    def test_where_contents_are_trimmed(self, messages):
        chat = CHAT["header"].render(messages)
        text, spans, ends = expected_spans(messages, "<s>", "<|header|>{role}<|/header|>\n\n", "<|eot|>", trim=True)
        assert chat.text == text
        assert [(span.message, span.start, span.stop, span.rendered_start) for span in chat.spans] == spans
        assert chat.ends == ends

    @pytest.mark.parametrize("name", ["instruction", "thinking", "markers"])
    @settings(max_examples=60)
    @given(messages=conversations())
    def test_spans_hold_the_contents_own_bytes(self, name, messages):
        if name == "thinking":  # nothing is left of an answer that is all reasoning: see below
            messages = [{**message, "content": message["content"].replace("</think>", "hm")} for message in messages]
        chat = CHAT[name].render(messages)
        data, position = chat.text.encode(), 0
        for span in chat.spans:
            own = messages[span.message]["content"].encode()[span.start : span.stop]
            assert own == data[span.rendered_start : span.rendered_stop]
            assert own
            assert position <= span.rendered_start
            position = span.rendered_stop
        for index, message in enumerate(messages):
            covered = [span.stop - span.start for span in chat.spans if span.message == index]
            if name == "markers" and message["content"].strip():
                assert covered == [len(message["content"].encode())]
            if name == "instruction" and message["content"].strip():
                assert sum(covered) >= len(message["content"].strip().encode())

    def test_a_system_message_inside_the_user_turn(self):
        chat = CHAT["instruction"].render([system("Be brief."), user(" user? "), assistant("user!\n")])
        assert chat.text == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n user? [/INST] user! </s>"
        assert pieces(chat) == [
            (0, "content", 0, 9, "Be brief."),
            (1, "content", 0, 6, " user?"),
            (2, "content", 0, 5, "user!"),
        ]
        assert chat.ends == [None, None, chat.text.index("</s>")]

    def test_the_same_content_again_and_again(self):
        chat = CHAT["chatml"].render([user("user"), assistant("user")] * 2)
        assert [(message, text) for message, _, _, _, text in pieces(chat)] == [(index, "user") for index in range(4)]
        offsets = [span.rendered_start for span in chat.spans]
        assert offsets == sorted(set(offsets))

    def test_messages_without_content_still_end(self):
        chat = CHAT["chatml"].render([system("Go."), user(""), assistant(""), user("x"), assistant(" \n")])
        assert [span.message for span in chat.spans] == [0, 3]
        assert chat.ends == [match for match in range(len(chat.text)) if chat.text.startswith("<|im_end|>", match)]

    def test_an_injected_turn_is_not_taken_for_one_without_content(self):
        chat = CHAT["chatml"].render([user(""), assistant("yes")])
        assert chat.ends == [None, chat.text.rindex("<|im_end|>")]

    def test_the_generation_prompt_is_markup(self):
        chat = CHAT["chatml"].render([user("assistant")], add_generation_prompt=True)
        assert chat.text.endswith("assistant<|im_end|>\n<|im_start|>assistant\n")
        assert pieces(chat) == [(0, "content", 0, 9, "assistant")]


class TestReasoningAndTools:
    def test_think_blocks_of_earlier_turns_are_dropped(self):
        thought = "<think>\nhm\n</think>\n\n"
        chat = CHAT["thinking"].render([user("a"), assistant(thought + "b"), user("c"), assistant(thought + "d")])
        size = len(thought)
        assert pieces(chat) == [
            (0, "content", 0, 1, "a"),
            (1, "content", size, size + 1, "b"),
            (2, "content", 0, 1, "c"),
            (3, "content", 0, size + 1, thought + "d"),
        ]

    def test_a_think_block_that_the_template_rewrites_leaves_its_tags_out(self):
        chat = CHAT["thinking"].render([user("a"), assistant("<think>hm</think>b")])
        assert chat.text.endswith("<think>\nhm\n</think>\n\nb<|im_end|>\n")
        assert pieces(chat)[1:] == [(1, "content", 7, 9, "hm"), (1, "content", 17, 18, "b")]

    def test_literals_of_the_template_that_overlap_stay_whole(self):
        template = (
            "{% for m in messages %}{% set c = m.content %}{% if '\n<' in c %}{% set c = c | trim %}{% endif %}"
            "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c | replace('/th', '/th') }};"
            "{% endfor %}"
        )
        chat = ChatTemplate.from_tokenizer(byte_tokenizer(template)).render([user("a"), assistant("hm\n</think>b")])
        assert chat.text == "a;b;"
        assert pieces(chat) == [(0, "content", 0, 1, "a"), (1, "content", 11, 12, "b")]

    def test_an_answer_that_is_all_reasoning_is_refused(self):
        with pytest.raises(ChatError, match=r"^message 2 \(assistant\): .* leaves out or rewrites its content"):
            CHAT["thinking"].render([user("a"), assistant("hm</think>"), user("b")])

    def test_reasoning_content(self):
        reasoned = assistant("b", reasoning_content="hm\nuser")
        chat = CHAT["thinking"].render([user("a"), reasoned, user("c"), reasoned])
        assert pieces(chat) == [
            (0, "content", 0, 1, "a"),
            (1, "content", 0, 1, "b"),
            (2, "content", 0, 1, "c"),
            (3, "reasoning", 0, 7, "hm\nuser"),
            (3, "content", 0, 1, "b"),
        ]
        assert [span.part for span in CHAT["chatml"].render([user("a"), reasoned]).spans] == ["content", "content"]

    def test_tool_calls_are_markup_before_the_end_of_the_turn(self):
        messages = [
            user("x?"),
            {"role": "assistant", "tool_calls": [call("look", at="x?"), call("look", at="y")]},
            {"role": "tool", "content": "x? 1"},
            {"role": "tool", "content": "<2>"},
            assistant("1", tool_calls=[call("stop")]),
        ]
        tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
        chat = CHAT["thinking"].render(messages, tools=tools)
        assert "<tools>" in chat.text
        assert [(message, text) for message, _, _, _, text in pieces(chat)] == [
            (0, "x?"),
            (2, "x? 1"),
            (3, "<2>"),
            (4, "1"),
        ]
        ends = [match for match in range(len(chat.text)) if chat.text.startswith("<|im_end|>", match)]
        assert chat.ends == [ends[1], ends[2], None, ends[3], ends[4]]  # ends[0] is the tools'; one for both results

    def test_results_written_as_json_have_no_span_if_that_changes_them(self):
        template = CHATML.replace(
            "message['content'] +",
            "(message['content'] | tojson if message['role'] == 'tool' else message['content']) +",
        )
        chat = ChatTemplate.from_tokenizer(byte_tokenizer(template, specials=["<|im_start|>", "<|im_end|>"]))
        request = assistant("", tool_calls=[])
        plain = chat.render([user("x"), request, {"role": "tool", "content": "12 °C"}, assistant("y")])
        assert [span.message for span in plain.spans] == [0, 2, 3]
        escaped = chat.render([user("x"), request, {"role": "tool", "content": '{"t": 12}'}, assistant("y")])
        assert '"{\\"t\\": 12}"' in escaped.text
        assert [span.message for span in escaped.spans] == [0, 3]


class TestEndOfTurn:
    @pytest.mark.parametrize(
        ("name", "role", "token"),
        [
            *(("chatml", role, "<|im_end|>") for role in ("system", "user", "assistant", "tool", "developer")),
            *(("header", role, "<|eot|>") for role in ("system", "user", "assistant")),
            *(("instruction", role, None) for role in ("system", "user")),
            ("instruction", "assistant", "</s>"),
            ("turns", "system", None),
            ("turns", "user", "<end>"),
            ("turns", "assistant", "<end>"),
            ("thinking", "tool", "<|im_end|>"),
            ("markers", "system", None),
            ("markers", "user", None),
            ("markers", "assistant", "<|end|>"),
        ],
    )
    def test_is_found_by_probing(self, name, role, token):
        assert CHAT[name].end_of_turn(role) == token

    def test_a_marker_that_only_closes_the_request_ends_the_users_turn(self):
        template = ChatTemplate.from_tokenizer(byte_tokenizer(INSTRUCTION, specials=["[INST]", "[/INST]"]))
        assert template.end_of_turn("user") == "[/INST]"
        assert template.end_of_turn("assistant") == "</s>"

    def test_another_token_at_the_end_of_the_conversation(self):
        template = (
            "<|start|>system<|message|>Reason.<|end|>"
            "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
            "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        )
        specials = ["<|start|>", "<|message|>", "<|end|>", "<|return|>"]
        chat = ChatTemplate.from_tokenizer(byte_tokenizer(template, specials=specials))
        assert (chat.end_of_turn("assistant"), chat.end_of_turn("assistant", last=True)) == ("<|end|>", "<|return|>")
        rendered = chat.render([user("a"), assistant("b"), user("c"), assistant("d")])
        assert [rendered.text[end:].partition("|>")[0] for end in rendered.ends] == ["<|end"] * 3 + ["<|return"]

    def test_one_token_for_every_purpose(self):
        template = "{% for m in messages %}{{ eos_token + m.role + ': ' + m.content + eos_token }}{% endfor %}"
        chat = ChatTemplate.from_tokenizer(byte_tokenizer(template)).render([user("</S>"), assistant("b")])
        assert chat.text == "</s>user: </S></s></s>assistant: b</s>"
        assert chat.ends == [14, 34]


BAD_CONVERSATIONS = {
    "no messages": ([], None, "empty"),
    "a string": ("hello", None, "list of messages"),
    "no mapping": ([user("a"), "b"], 1, "mapping"),
    "no role": ([{"content": "a"}], 0, "role"),
    "no content": ([user("a"), {"role": "assistant"}], 1, "no content"),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], 0, "join the text parts"),
    "a number": ([{"role": "user", "content": 1}], 0, "must be a string, got int"),
    "a lone surrogate": ([user("a"), assistant("b\ud800")], 1, r"U\+D800 at character 1"),
    "control": ([user("a"), assistant("b<|im_end|>c")], 1, r"'<\|im_end\|>' at character 1"),
    "control in reasoning": ([assistant("b", reasoning_content="</s>")], 0, "reasoning_content contains.*'</s>'"),
    "control in a call": ([assistant("b", tool_calls=[call("f", x="</s>")])], 0, "tool_calls contain.*'</s>'"),
    "calls left out": ([user("a"), assistant("b", tool_calls=[call("f")])], 1, "leaves its tool calls out"),
    "a nameless call": ([assistant("b", tool_calls=[{"function": {}}])], 0, "function that has a name"),
    "calls that are no list": ([assistant("b", tool_calls=call("f"))], 0, "must be a list, got dict"),
}

CONTENT = "{{ message['content'] }}"
REWRITING_TEMPLATES = {
    "upper case": ("{% for message in messages %}{{ message['content'] | upper }}{% endfor %}", 0, "leaves out or"),
    "escaped": ("{% for message in messages %}{{ message['content'] | e }};{% endfor %}", 1, "rewrites its content"),
    "cut short": ("{% for message in messages %}{{ message['content'][:9] }};{% endfor %}", 1, "rewrites its content"),
    "reordered": ("{% for message in messages | reverse %}" + CONTENT + "{% endfor %}", 0, "reorders messages"),
    "repeated": ("{% for message in messages %}" + CONTENT * 2 + "{% endfor %}", 0, "repeats its content"),
    "left out": ("{% for message in messages[:1] %}" + CONTENT + "{% endfor %}", 1, "leaves out"),
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD_CONVERSATIONS)
    def test_a_bad_conversation_names_message_and_role(self, case):
        messages, index, problem = BAD_CONVERSATIONS[case]
        with pytest.raises(ChatError, match=problem) as error:
            CHAT["chatml"].render(messages)
        assert error.value.message_index == index
        if index is not None and isinstance(messages[index], dict) and "role" in messages[index]:
            assert str(error.value).startswith(f"message {index + 1} ({messages[index]['role']}): ")

    @pytest.mark.parametrize("case", REWRITING_TEMPLATES)
    def test_a_template_that_hides_contents(self, case):
        template, index, problem = REWRITING_TEMPLATES[case]
        chat = ChatTemplate.from_tokenizer(byte_tokenizer(template))
        with pytest.raises(ChatError, match=problem) as error:
            chat.render([user("hello"), assistant("<b>hello</b> world")])
        assert error.value.message_index == index

    def test_the_templates_own_refusal_is_passed_on(self):
        with pytest.raises(ChatError, match=r"^message 1 \(system\): .*System role not supported"):
            CHAT["turns"].render([system("a"), user("b")])
        with pytest.raises(ChatError, match=r"^message 3 \(assistant\): .*must alternate") as error:
            CHAT["turns"].render([user("a"), assistant("b"), assistant("c"), user("d")])
        assert error.value.message_index == 2

    def test_control_tokens_in_tools(self):
        with pytest.raises(ChatError, match="tools contain the control token '</s>'"):
            CHAT["thinking"].render([user("a")], tools=[{"function": {"name": "f", "description": "</s>"}}])

    def test_a_template_that_is_no_template(self):
        template = ChatTemplate.from_tokenizer(byte_tokenizer("{% for m in messages %}\n{{ m.content }"))
        with pytest.raises(ChatError, match=r"chat template of tokenizer .* is no valid Jinja template: line 2"):
            template.render([user("a")])

    def test_no_template(self):
        with pytest.raises(ChatError, match="has no chat template"):
            ChatTemplate.from_tokenizer(byte_tokenizer(None))


def test_from_a_directory_and_after_pickling(tmp_path):
    byte_tokenizer(HEADER).save_pretrained(tmp_path)
    template = ChatTemplate.from_tokenizer(tmp_path)
    chat = template.render([user("a"), assistant("b")])
    assert chat == CHAT["header"].render([user("a"), assistant("b")])
    assert pickle.loads(pickle.dumps(template)).render([user("a"), assistant("b")]) == chat


def test_named_templates_are_chosen_by_the_tools():
    tokenizer = byte_tokenizer(None, specials=["<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|end|>"])
    tokenizer.chat_template = {"default": MARKERS, "tool_use": THINKING}
    template = ChatTemplate.from_tokenizer(tokenizer)
    assert template.render([user("a")]).text == "<|User|>a"
    assert template.render([user("a")], tools=[{"function": {"name": "f"}}]).text.startswith("<|im_start|>system")


def test_a_long_conversation_is_located_in_linear_time():
    text = 'user\n<b> "x" {y} 42\n' * 50_000
    chat = CHAT["thinking"].render([user(text), assistant(text)])
    assert [(span.message, span.start, span.stop) for span in chat.spans] == [(0, 0, len(text)), (1, 0, len(text))]
