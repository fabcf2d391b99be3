"""A ``Scorer`` as a model of lm-evaluation-harness. Needs the package ``lm_eval`` (written for 0.4.13)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS

from alignment.chat.messages import ChatError, check_control_tokens
from alignment.chat.template import ChatTemplate
from stages.evaluation.core import Request, Scorer, TextScore, Watch, ignore
from stages.evaluation.windows import Span
from stages.stage import StageError

NO_ANSWER = "no_answer"
"""The problem of a prompt that leaves no room in the model's context, or that its tokenizer cannot spell."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""How tasks call the most tokens that may be written; the first that is given counts, as in lm-eval."""
GREEDY = {"until", "do_sample", "temperature", *LENGTHS}
"""Options of generation that we honour; ``temperature`` and ``do_sample`` where they ask for greedy decoding."""


class Unanswered(NamedTuple):
    """A request without an answer: ``place`` is its place among the requests of the document."""

    task: str
    document: int
    place: int
    problem: str


def unsupported_generation(options: Mapping[str, Any]) -> str | None:
    """Why text cannot be written as a task wants it; None if it can."""
    if options.get("do_sample") or (options.get("do_sample") is None and options.get("temperature")):
        return "it asks for samples, and models are compared by what they write greedily"
    unknown = sorted(set(options) - GREEDY)
    return f"its generation_kwargs have {', '.join(unknown)}, which cannot be honoured" if unknown else None


class ScorerModel(LM):
    """Answers lm-eval's requests by a ``Scorer``, in text.

    White space at the end of a context is scored with the continuation, as lm-eval's own models do, since hardly a
    tokenizer ends a token there; with a chat template it stays where it is. A request without a number gets the
    log-probability -inf, which no option wins by, and is kept in ``unanswered``; text that could not be written is
    empty, and kept there too.

    Args:
        scorer: the model.
        spans: cuts a whole text into windows.
        bytes_per_token: UTF-8 bytes that stand for one token where a task limits tokens.
        chat: renders conversations; None for a model without a chat template. ``scorer`` must then read the strings of
            special tokens as those tokens.
        tokenizer_name: tells renderings of different templates apart in lm-eval's cache of requests.
        watch: told the share of ``parts`` that is done.
        parts: how many kinds of request will be made.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        spans: Callable[[str], Sequence[Span]],
        bytes_per_token: int,
        chat: ChatTemplate | None = None,
        tokenizer_name: str = "",
        watch: Watch = ignore,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.unanswered: list[Unanswered] = []
        self._scorer = scorer
        self._spans = spans
        self._bytes_per_token = bytes_per_token
        self._chat = chat
        self._tokenizer_name = tokenizer_name
        self._watch = watch
        self._parts = parts
        self._parts_done = 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether it is what greedy decoding writes), -inf if there is none."""
        asked = [self._asked(*instance.args) for instance in requests]
        scores = self._scorer.score(asked, self._part)
        self._parts_done += 1
        for instance, score in zip(requests, scores, strict=True):
            self._keep_problem(instance, score.problem)
        return [(_logp([score]), score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p of whole texts in nats, by windows; -inf for a text that has none."""
        texts = [text.encode(errors="surrogatepass") for (text,) in (instance.args for instance in requests)]
        spans = [self._spans(instance.args[0]) if _is_utf8(instance.args[0]) else None for instance in requests]
        asked = [
            Request(text[span.begin : span.scored].decode(), text[span.scored : span.end].decode())
            for text, found in zip(texts, spans, strict=True)
            for span in found or ()
        ]
        scores = iter(self._scorer.score(asked, self._part))
        self._parts_done += 1
        answers = []
        for instance, found in zip(requests, spans, strict=True):
            own = list(islice(scores, len(found or ())))
            problem = next((score.problem for score in own if score.problem), None)
            if not own:
                problem = "not_representable" if found is None else "empty"
            self._keep_problem(instance, problem)
            answers.append(_logp(own) if problem is None else -math.inf)
        return answers

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations, cut before the first stop string of the request, or at its most bytes."""
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for index, instance in enumerate(requests):
            alike[self._limits(instance.args[1])].append(index)
        texts: list[str] = [""] * len(requests)
        done = 0
        for (max_bytes, stop), members in alike.items():
            prompts = [requests[index].args[0] for index in members]
            watch = _share_of(self._part, done / len(requests), len(members) / len(requests))
            written = self._scorer.generate(prompts, max_bytes=max_bytes, stop=stop, watch=watch)
            for index, text in zip(members, written, strict=True):
                self._keep_problem(requests[index], NO_ANSWER if text is None else None)
                texts[index] = text or ""
            done += len(members)
        self._parts_done += 1
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text that the model's chat template makes of a conversation.

        Args:
            add_generation_prompt: the model answers next; else it goes on with the last message, which is its own.

        Raises:
            StageError: there is no template, it refuses the conversation, or a message has the string of a control
                token in it.
        """
        if self._chat is None:
            raise StageError("the model has no chat template")
        asked, begun = (chat_history, "") if add_generation_prompt else (chat_history[:-1], chat_history[-1]["content"])
        try:
            check_control_tokens(asked, None, self._chat.control_tokens, self._chat.name)
            return self._chat.apply(asked, add_generation_prompt=True) + begun
        except ChatError as error:
            raise StageError(f"lm_eval: {error}") from None

    @property
    def tokenizer_name(self) -> str:
        """A name for the chat template."""
        return self._tokenizer_name

    def _asked(self, context: str, continuation: str) -> Request:
        kept = context if self._chat is not None else context.rstrip()
        return Request(kept, context[len(kept) :] + continuation if continuation else "")

    def _limits(self, options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        problem = unsupported_generation(options)
        if problem:
            raise StageError(f"lm_eval: text cannot be generated: {problem}")
        tokens = next((options[name] for name in LENGTHS if options.get(name) is not None), DEFAULT_MAX_GEN_TOKS)
        until = options.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        return int(tokens) * self._bytes_per_token, tuple(text for text in stop if text)

    def _keep_problem(self, instance: Instance, problem: str | None) -> None:
        if problem is not None:
            self.unanswered.append(
                Unanswered(str(instance.task_name), int(instance.doc_id or 0), instance.idx, problem)
            )

    def _part(self, share: float) -> None:
        self._watch(min(1.0, (self._parts_done + share) / self._parts))


def _logp(scores: Sequence[TextScore]) -> float:
    return -math.inf if any(score.problem for score in scores) else -math.fsum(score.nats for score in scores)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _share_of(watch: Watch, done: float, part: float) -> Watch:
    return lambda share: watch(done + part * share)
