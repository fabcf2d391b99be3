"""Secrets in what is written down: resolved recipes, logs, what is recorded of a launch, and MLflow.

What is secret is told by a name (``HF_TOKEN``, ``api_key``), by the form of a value (``hf_...``, the password in a
URL), or because it is the value of a secret variable of this process's environment. Light: read while planning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TextIO

MASK = "***"
"""What is written in the place of a secret."""

SHORTEST_VALUE = 8
"""Characters. A shorter value of a secret variable is no secret worth the name, and may be part of any word."""

VOCABULARY_NAMES = ("token",)
"""What looks like the name of a secret, and is that of a token of a vocabulary in a stage's options."""

_NAME = re.compile(
    r"(?:.*[^a-z])?(?:(?<!per_)token|password|passwd|passphrase|secret|credentials?|authorization|jwt|"
    r"(?:api|access|private|secret)[_-]?key)"
)
_VARIABLE = r"[A-Z0-9_]*(?:TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?|JWT|_KEY)"
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"  # GitHub, GitLab
    r"|sk-[A-Za-z0-9_-]{20,}|xox[a-z]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16}"  # OpenAI and others, Slack, AWS
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)"  # JSON web tokens
)
_IN_CONTEXT = (
    re.compile(r"(?P<before>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/'\"<>]+(?=@)"),  # user and password in a URL
    re.compile(
        r"(?P<before>[?&](?:[\w-]*token|api[_-]?key|key|password|sig|X-Amz-\w+|Signature)=)[^&\s'\"<>]+", re.IGNORECASE
    ),
    re.compile(r"(?P<before>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/-]{16,}=*"),
    re.compile(rf"(?P<before>\b{_VARIABLE}=['\"]?)[^\s,;'\"]+"),
    re.compile(
        r"(?P<before>\b(?:\w+_)?(?:password|passwd|secret|api[_-]?key)['\"]?\s*[:=]\s*['\"]?)(?!\*\*\*)[^\s,;'\"}]+",
        re.IGNORECASE,
    ),
)


def is_secret_name(name: str) -> bool:
    """Whether an option of that name holds a secret: ``hf_token``, ``apiKey``; not ``tokens`` nor ``token_id``."""
    return _NAME.fullmatch(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) is not None


def is_secret_variable(name: str) -> bool:
    """The same of a variable of the environment, where ``GPG_KEY`` is one too."""
    return is_secret_name(name) or name.endswith("_KEY")


def environment_secrets(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The values of its secret variables, the longest first."""
    found = {value for name, value in environment.items() if is_secret_variable(name) and len(value) >= SHORTEST_VALUE}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def holds_token(text: str) -> bool:
    """Whether an access token is part of a text, or a password in a URL."""
    return _TOKENS.search(text) is not None or _IN_CONTEXT[0].search(text) is not None


def mask_text(text: str, values: Sequence[str] = ()) -> str:
    """``text`` with every secret in it replaced: ``values``, and what has the form of one."""
    for value in values:
        text = text.replace(value, MASK)
    text = _TOKENS.sub(MASK, text)
    for pattern in _IN_CONTEXT:
        text = pattern.sub(rf"\g<before>{MASK}", text)
    return text


def masked(value: Any, values: Sequence[str] = (), harmless: Collection[str] = ()) -> Any:
    """Nested mappings and lists with every secret text in them replaced.

    Args:
        value: JSON values.
        values: texts that are secret wherever they occur.
        harmless: names that are no secret's here, although they look so.
    """
    if isinstance(value, str):
        return mask_text(value, values)
    if isinstance(value, Mapping):
        return {
            name: _hidden(child) if _is_secret(name, harmless) else masked(child, values, harmless)
            for name, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(child, values, harmless) for child in value]
    return value


def secret_texts(value: Any, harmless: Collection[str] = ()) -> Iterator[str]:
    """The texts that ``masked`` would replace because of their names."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _texts(child) if _is_secret(name, harmless) else secret_texts(child, harmless)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from secret_texts(child, harmless)


def _is_secret(name: Any, harmless: Collection[str]) -> bool:
    return isinstance(name, str) and name not in harmless and is_secret_name(name)


def _hidden(value: Any) -> Any:
    """All texts in ``value`` replaced; a switch or a number is no secret."""
    if isinstance(value, str):
        return MASK if value else value
    if isinstance(value, Mapping):
        return {name: _hidden(child) for name, child in value.items()}
    return [_hidden(child) for child in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(child)


class MaskedStream:
    """A text stream that masks what is written to it, for ``sys.stdout`` and ``sys.stderr`` of a stage's process.

    What C code writes to the descriptor does not pass through it.
    """

    def __init__(self, stream: TextIO, values: Sequence[str] = ()) -> None:
        self._stream, self._values = stream, values

    def write(self, text: str) -> int:
        """Write it masked; returns how much of ``text`` was taken, which is all."""
        self._stream.write(mask_text(text, self._values))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
