"""Where a chat template puts the contents of messages: exact spans, found without knowing the template.

A conversation is rendered a second time with unique words (sentinels) in place of its contents; where a sentinel
comes out, the content did. What a template may look at inside a content stays in place: white space around it, and
any of the template's own string literals, such as a ``</think>`` that it splits at. The two renderings must then be
equal but for the sentinels. If they are not, the template rewrites contents, and that is an error, never a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from alignment.chat.messages import ChatError, Message, Part, message_parts
from alignment.chat.sentinels import Skeleton, numbered_sentinel, split_at_sentinels, unused_sentinel

Render = Callable[[Sequence[Message]], str]

_SNIPPET_CHARACTERS = 40


class TextSpan(NamedTuple):
    """A stretch of a message's text in the rendering, in characters.

    Attributes:
        part: index into the conversation's ``message_parts``.
        start, stop: the stretch in the part's own text.
        rendered_start: where the stretch starts in the rendering.
    """

    part: int
    start: int
    stop: int
    rendered_start: int

    @property
    def rendered_stop(self) -> int:
        return self.rendered_start + self.stop - self.start


class _Stretch(NamedTuple):
    """Characters of a part that one sentinel stands for."""

    part: int
    start: int
    stop: int


class _Conversation(NamedTuple):
    """What is being located, and in whose rendering."""

    messages: Sequence[Message]
    parts: list[Part]
    render: Render
    tokenizer_name: str

    def error(self, part: int, action: str, consequence: str) -> ChatError:
        """That the template does something to a text, and what follows."""
        index, name, _, _ = self.parts[part]
        return ChatError(
            f"the chat template of tokenizer {self.tokenizer_name!r} {action} its {name}{consequence}",
            message_index=index,
            role=self.messages[index]["role"],
        )


def locate_contents(
    messages: Sequence[Message], render: Render, literals: Sequence[str], tokenizer_name: str
) -> tuple[str, list[TextSpan]]:
    """Render a conversation and locate its contents in the rendering.

    A template may drop stretches of a content (outer white space, the reasoning of earlier turns) or write them as
    JSON: these have no span. White space that could as well be the template's own has none either.

    Args:
        messages: a conversation that ``check_messages`` accepts.
        render: turns messages into the text that the model sees.
        literals: the string literals of the template.
        tokenizer_name: whose template it is, for messages.

    Returns:
        The rendering, and spans that are apart from each other, from left to right.

    Raises:
        ChatError: a content is missing, repeated, rewritten or out of order in the rendering.
    """
    rendered = render(messages)
    conversation = _Conversation(messages, message_parts(messages), render, tokenizer_name)
    stretches = [
        _Stretch(index, *span)
        for index, part in enumerate(conversation.parts)
        for span in _replaceable(part.text, literals)
    ]
    sentinel = unused_sentinel(rendered, *(part.text for part in conversation.parts))
    skeleton = _render_skeleton(conversation, stretches, sentinel)
    _check_order(conversation, stretches, skeleton.numbers)
    starts = _fill_in(conversation, stretches, skeleton, rendered)
    edges = _find_edges(conversation, stretches, skeleton, sentinel)
    spans = []
    for number, start, (_, before), (after, _) in zip(skeleton.numbers, starts, edges[:-1], edges[1:], strict=True):
        if start is not None:
            part, first, last = stretches[number]
            spans.append(TextSpan(part, first - before, last + after, start - before))
    return rendered, _joined(spans)


def _replaceable(text: str, literals: Sequence[str]) -> list[tuple[int, int]]:
    """The stretches of a text outside all literals that occur in it, without the white space around them."""
    if not text.strip():
        return []
    # Literals may overlap, as "\n<" and "</think>" do: each must stay whole.
    found = [match.span() for literal in literals if literal in text for match in re.finditer(re.escape(literal), text)]
    stretches = []
    position = 0
    for start, stop in [*sorted(found), (len(text), len(text))]:
        inner = text[position:start].strip()
        if inner:
            inner_start = text.index(inner, position)
            stretches.append((inner_start, inner_start + len(inner)))
        position = max(position, stop)
    # A content of nothing but literals needs a sentinel too, or it could not be found.
    return stretches or [(len(text) - len(text.lstrip()), len(text.rstrip()))]


def _render_skeleton(conversation: _Conversation, stretches: Sequence[_Stretch], sentinel: str) -> Skeleton:
    """Render the conversation with a sentinel in place of each stretch."""
    pieces: list[list[str]] = [[] for _ in conversation.parts]
    position = [0] * len(conversation.parts)
    for number, (index, start, stop) in enumerate(stretches):
        pieces[index] += [conversation.parts[index].text[position[index] : start], numbered_sentinel(sentinel, number)]
        position[index] = stop
    replaced = [dict(message) for message in conversation.messages]
    for part, before, start in zip(conversation.parts, pieces, position, strict=True):
        replaced[part.message][part.key] = "".join([*before, part.text[start:]])
    return split_at_sentinels(conversation.render(replaced), sentinel)


def _check_order(conversation: _Conversation, stretches: Sequence[_Stretch], numbers: Sequence[int]) -> None:
    """Refuse a rendering in which a content is repeated, out of order or missing."""
    for previous, number in pairwise(numbers):
        if number <= previous:
            action = "repeats" if numbers.count(number) > 1 else "reorders messages: it moves"
            raise conversation.error(stretches[number].part, action, "; leave the conversation out")
    missing = {stretch.part for stretch in stretches} - {stretches[number].part for number in numbers}
    for index in sorted(missing):
        if conversation.parts[index].name == "content":
            raise conversation.error(index, "leaves out or rewrites", "; remove the message or rephrase it")


def _fill_in(
    conversation: _Conversation, stretches: Sequence[_Stretch], skeleton: Skeleton, rendered: str
) -> list[int | None]:
    """Where each sentinel's stretch starts in the true rendering, which must be the skeleton but for the sentinels.

    None for a stretch that the template writes as JSON, as some do with the results of tools, and that is other text
    then.
    """
    starts: list[int | None] = []
    position = 0
    part = stretches[skeleton.numbers[0]].part if skeleton.numbers else 0
    for gap, number in zip(skeleton.gaps, skeleton.numbers, strict=False):
        if not rendered.startswith(gap, position):
            break
        position += len(gap)
        part, start, stop = stretches[number]
        text = conversation.parts[part].text[start:stop]
        if rendered.startswith(text, position):
            starts.append(position)
            position += len(text)
            continue
        escaped = json.dumps(text, ensure_ascii=False)[1:-1]
        if not rendered.startswith(escaped, position):
            break
        starts.append(None)
        position += len(escaped)
    else:
        if rendered[position:] == skeleton.gaps[-1]:
            return starts
    if not conversation.parts:
        raise ChatError(f"the chat template of tokenizer {conversation.tokenizer_name!r} never renders the same twice")
    found = rendered[position : position + _SNIPPET_CHARACTERS]
    raise conversation.error(
        part,
        "rewrites",
        f" or the text around it, so that it cannot be located: from character {position} on the rendering has "
        f"{found!r}; rephrase the message or leave the conversation out",
    )


def _find_edges(
    conversation: _Conversation, stretches: Sequence[_Stretch], skeleton: Skeleton, sentinel: str
) -> list[tuple[int, int]]:
    """For each gap of the skeleton, how many characters at its start and its end belong to the contents beside it."""
    markup: dict[tuple[int | None, int | None], str] | None = None
    edges = []
    for gap, (left, right) in zip(skeleton.gaps, pairwise([None, *skeleton.numbers, None]), strict=True):
        after, before = _literal_after(conversation, stretches, left), _literal_before(conversation, stretches, right)
        left_part = None if left is None else stretches[left].part
        right_part = None if right is None else stretches[right].part
        if left_part is not None and left_part == right_part:
            edges.append((len(gap), 0) if right == left + 1 and gap == after else (0, 0))
        elif after or before:
            if markup is None:
                markup = _bare_markup(conversation, sentinel)
            edges.append(_own_edges(gap, after, before, markup.get((left_part, right_part))))
        else:
            edges.append((0, 0))
    return edges


def _literal_after(conversation: _Conversation, stretches: Sequence[_Stretch], number: int | None) -> str:
    """What follows a stretch in its own text, up to the next one."""
    if number is None:
        return ""
    part, _, stop = stretches[number]
    following = stretches[number + 1] if number + 1 < len(stretches) else None
    return conversation.parts[part].text[stop : following.start if following and following.part == part else None]


def _literal_before(conversation: _Conversation, stretches: Sequence[_Stretch], number: int | None) -> str:
    """What precedes a stretch in its own text, from the previous one on."""
    if number is None:
        return ""
    part, start, _ = stretches[number]
    previous = stretches[number - 1] if number else None
    return conversation.parts[part].text[previous.stop if previous and previous.part == part else 0 : start]


def _bare_markup(conversation: _Conversation, sentinel: str) -> dict[tuple[int | None, int | None], str]:
    """The template's own text between neighbouring parts: what it renders when contents are one sentinel each."""
    whole = [_Stretch(index, 0, len(part.text)) for index, part in enumerate(conversation.parts) if part.text.strip()]
    try:
        gaps, numbers = _render_skeleton(conversation, whole, sentinel)
    except ChatError:  # the template insists on something in a content: the markup without it is unknown
        return {}
    if sorted(set(numbers)) != numbers:
        return {}
    neighbours = [None, *(whole[number].part for number in numbers), None]
    return dict(zip(pairwise(neighbours), gaps, strict=True))


def _own_edges(gap: str, after: str, before: str, markup: str | None) -> tuple[int, int]:
    """How many characters at the start and at the end of a gap are surely those of the contents beside it.

    Args:
        gap: the text between two contents in the rendering.
        after: the rest of the left content, of which the gap may start with any part.
        before: the head of the right content, of which the gap may end with any part.
        markup: the gap as it is without the two, if known.
    """
    if markup is not None:
        kept = len(gap) - len(markup)
        solutions = [
            (left, kept - left)
            for left in range(max(0, kept - len(before)), min(kept, len(after)) + 1)
            if gap == after[:left] + markup + before[len(before) - (kept - left) :]
        ]
        if solutions:
            return min(left for left, _ in solutions), min(right for _, right in solutions)
    # The markup depends on the contents. Anything but white space is recognised; white space may be the template's.
    left = len(after) if after.strip() and gap.startswith(after) else 0
    right = len(before) if before.strip() and gap.endswith(before) else 0
    return (left, right) if left + right <= len(gap) else (0, 0)


def _joined(spans: Sequence[TextSpan]) -> list[TextSpan]:
    """Spans that follow each other both in a part and in the rendering, made one."""
    joined: list[TextSpan] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and (last.part, last.stop, last.rendered_stop) == (span.part, span.start, span.rendered_start):
            joined[-1] = last._replace(stop=span.stop)
        else:
            joined.append(span)
    return joined
