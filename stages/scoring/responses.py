"""What servers return about a text -> its tokens' bytes and log-probabilities.

Understood are the ``logprobs`` of OpenAI-style completions (``tokens``, ``token_logprobs``, ``top_logprobs``) and chat
completions (``content``), and vLLM's ``prompt_logprobs``. Log-probabilities are in nats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BOUNDARY_BYTES = (b" ", b"\t", b"\n")
LEAST_MASS = 1e-8
"""Stands for the probability of a boundary where none of the returned tokens is one; a logarithm must exist."""
_TOLERANCE = 1e-3
_SNIPPET = 24
_ESCAPED = re.compile(r"bytes:(?:\\x[0-9a-fA-F]{2})+")


class ResponseProblem(ValueError):
    """A response cannot be understood, or is about another text; the message names the token."""


@dataclass(frozen=True)
class ServedToken:
    """One token of a response.

    Attributes:
        spelling: its bytes; None where the server does not even give its string.
        logp: None where it has no log-probability.
        alternatives: spelling -> log-probability of tokens in its place, as many as were returned, itself included.
    """

    spelling: bytes | None
    logp: float | None
    alternatives: Mapping[bytes, float]


@dataclass(frozen=True)
class LocatedTokens:
    """A text's tokens: n of them.

    Attributes:
        lengths: bytes of the text that each stands for.
        logp: NaN where there is none.
        boundary_logp: log-mass of a boundary after each, as far as it was returned; NaN where nothing was.
        unseen_mass: probability of all tokens that were not returned, for each token with alternatives.
    """

    lengths: list[int]
    logp: list[float]
    boundary_logp: list[float]
    unseen_mass: list[float]


def read_response(record: Mapping[str, Any]) -> list[ServedToken]:
    """The tokens of a server's response, given as it was returned, alone or under ``response``.

    Raises:
        ResponseProblem: there are no log-probabilities in it.
    """
    response = record.get("response", record)
    choices = response.get("choices", [response])
    if len(choices) != 1:
        raise ResponseProblem(f"has {len(choices)} choices; a text is scored by one")
    (choice,) = choices
    prompt = choice.get("prompt_logprobs") or response.get("prompt_logprobs")
    if prompt:
        return _vllm_tokens(prompt, choice.get("prompt_token_ids") or response.get("prompt_token_ids"))
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, Mapping) and isinstance(logprobs.get("content"), list):
        return [_chat_token(token) for token in logprobs["content"]]
    if isinstance(logprobs, Mapping) and isinstance(logprobs.get("tokens"), list):
        return _completion_tokens(logprobs)
    raise ResponseProblem(
        "has no log-probabilities: expected logprobs with tokens and token_logprobs (completions), logprobs with "
        "content (chat completions), or prompt_logprobs (vLLM)"
    )


def locate(tokens: Sequence[ServedToken], text: str, special_tokens: Sequence[str] = ()) -> LocatedTokens:
    """Place the tokens of a response in the text that it is about.

    The tokens spell the text from its start, or its end alone: the answer of a chat completion, or all but a first
    token that the server does not name. What they leave out is cut into words without scores. Special tokens at the
    start stand for no byte. Tokens after the text's end were generated, and say no more than what follows the last one.

    Raises:
        ResponseProblem: the tokens spell something else; names the token and the byte.
    """
    data, special = text.encode(), {string.encode() for string in special_tokens}
    leading = _leading(tokens, special)
    body = tokens[leading:]
    spellings = [token.spelling or b"" for token in body]
    count, problem = _match(spellings, data)
    head = b""
    if problem is not None:
        joined = b"".join(spellings)
        if not joined or not data.endswith(joined):
            raise ResponseProblem(_mismatch(problem, leading, body, data))
        head, count = data[: -len(joined)], len(body)
    words = [len(word) for word in re.findall(rb"\s*\S+|\s+$", head)]
    used = body[:count]
    scored = [math.nan if token.logp is None else _checked(token.logp) for token in used]
    missing = len(words) or leading
    return LocatedTokens(
        lengths=[*(words or [0] * leading), *(len(token.spelling or b"") for token in used)],
        logp=[math.nan] * missing + scored,
        boundary_logp=_boundaries(missing, [*used, *body[count : count + 1]], special, missing + count),
        unseen_mass=[
            max(0.0, 1 - sum(map(math.exp, token.alternatives.values()))) for token in used if token.alternatives
        ],
    )


def _leading(tokens: Sequence[ServedToken], special: set[bytes]) -> int:
    """How many tokens at the start are special, or not named."""
    named = (number for number, token in enumerate(tokens) if token.spelling not in {None, *special})
    return next(named, len(tokens))


def _match(spellings: Sequence[bytes], data: bytes) -> tuple[int, int | None]:
    """How many tokens spell ``data`` from its start, and the first of them that does not, None if all do."""
    position = 0
    for number, spelling in enumerate(spellings):
        if position == len(data):
            return number, None
        if not data.startswith(spelling, position):
            return number, number
        position += len(spelling)
    return len(spellings), None if position == len(data) else len(spellings)


def _mismatch(number: int, leading: int, body: Sequence[ServedToken], data: bytes) -> str:
    position = sum(len(token.spelling or b"") for token in body[:number])
    found = data[position : position + _SNIPPET]
    if number == len(body):
        return f"its tokens end at byte {position} of {len(data)}; the text goes on with {found!r}"
    spelling = body[number].spelling or b""
    hint = ""
    if "\ufffd".encode() in spelling:
        hint = "; its string is no text, so the server must return its bytes"
    elif number == 0:
        hint = "; name it under special_tokens if it is one that stands for no text"
    return (
        f"token {leading + number} spells {spelling[:_SNIPPET]!r}, but the text has {found!r} at byte {position} of "
        f"{len(data)}{hint}"
    )


def _boundaries(missing: int, tokens: Sequence[ServedToken], special: set[bytes], count: int) -> list[float]:
    """Log-mass of a boundary after each of ``count`` entries, of which ``tokens`` are those after ``missing``, and one
    more where the server went on."""
    masses = [math.nan] * (count + 1)
    for place, token in enumerate(tokens, start=missing):
        if token.alternatives:
            mass = sum(
                math.exp(logp)
                for spelling, logp in token.alternatives.items()
                if spelling.startswith(BOUNDARY_BYTES) or spelling in special
            )
            masses[place] = math.log(min(1.0, max(mass, LEAST_MASS)))
    return masses[1 : count + 1]


def _checked(logp: float) -> float:
    if not math.isfinite(logp) or logp > _TOLERANCE:
        raise ResponseProblem(f"{logp!r} is no log-probability in nats")
    return min(logp, 0.0)


def _vllm_tokens(
    positions: Sequence[Mapping[str, Mapping[str, Any]] | None], ids: Sequence[int] | None
) -> list[ServedToken]:
    """vLLM: for every prompt token its candidates by id; the token itself is the first of them."""
    tokens = []
    for number, candidates in enumerate(positions):
        if not candidates:
            tokens.append(ServedToken(None, None, {}))
            continue
        chosen = str(ids[number]) if ids is not None else next(iter(candidates))
        if chosen not in candidates:
            raise ResponseProblem(f"token {number} has id {chosen}, which is not among its prompt_logprobs")
        own = candidates[chosen]
        alternatives = {
            _spelled(each["decoded_token"]): float(each["logprob"])
            for each in candidates.values()
            if each.get("decoded_token") is not None
        }
        name = own.get("decoded_token")
        tokens.append(ServedToken(None if name is None else _spelled(name), float(own["logprob"]), alternatives))
    return tokens


def _completion_tokens(logprobs: Mapping[str, Any]) -> list[ServedToken]:
    names, scores = logprobs["tokens"], logprobs.get("token_logprobs")
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    spelled = logprobs.get("bytes") or [None] * len(names)
    if scores is None or not len(names) == len(scores) == len(tops) == len(spelled):
        raise ResponseProblem("its tokens, token_logprobs and top_logprobs are not lists of one length")
    tokens = []
    for name, logp, top, data in zip(names, scores, tops, spelled, strict=True):
        spelling = _spelled(name) if data is None else bytes(data)
        alternatives = {_spelled(other): float(value) for other, value in (top or {}).items()}
        tokens.append(_token(spelling, logp, alternatives))
    return tokens


def _chat_token(token: Mapping[str, Any]) -> ServedToken:
    alternatives = {_chat_spelling(other): float(other["logprob"]) for other in token.get("top_logprobs") or ()}
    return _token(_chat_spelling(token), token.get("logprob"), alternatives)


def _chat_spelling(token: Mapping[str, Any]) -> bytes:
    return _spelled(token["token"]) if token.get("bytes") is None else bytes(token["bytes"])


def _token(spelling: bytes, logp: float | None, alternatives: Mapping[bytes, float]) -> ServedToken:
    """A token, itself among its alternatives where there are any."""
    if alternatives and logp is not None:
        alternatives = {spelling: float(logp)} | dict(alternatives)
    return ServedToken(spelling, None if logp is None else float(logp), alternatives)


def _spelled(name: str) -> bytes:
    """A token's bytes from its string: itself, or ``bytes:\\xe2\\x80`` as some servers write what is no text."""
    if _ESCAPED.fullmatch(name):
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode("utf-8", "surrogatepass")
