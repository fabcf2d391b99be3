"""Writing text byte by byte from next-byte distributions: the most probable byte, or a draw.

A prompt may end anywhere, also inside a token: the model goes on as if it had read no token boundary there, without the
bias of token-level sampling (Phan et al., arXiv 2410.09303).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from alignment.byte_view import InexactEncoding
from alignment.covers_text import NotText, split_text
from stages.evaluation.core import Watch, ignore
from stages.evaluation.exact_bytes.masses import END
from stages.evaluation.exact_bytes.next_tokens import TooLong

Choose = Callable[[int, int, np.ndarray], int]
"""Index of the text, bytes written so far, next-byte log-probabilities [257] in nats -> a byte, or ``END``."""


class NextByte(Protocol):
    """Anything with a next-byte distribution: a model, or several as one."""

    def next_byte(self, prefixes: Sequence[bytes]) -> np.ndarray:
        """float32 [B, 257] log-probabilities in nats; the last is that the text ends."""


def continue_bytes(
    model: NextByte, prefixes: Sequence[bytes], choose: Choose, *, max_bytes: int, watch: Watch = ignore
) -> list[bytes]:
    """Go on with every prefix until ``choose`` ends it, or for ``max_bytes``.

    Returns:
        What was written after each prefix. It may end inside a character.
    """
    written = [b""] * len(prefixes)
    going_on = list(range(len(prefixes)))
    for step in range(max_bytes):
        if not going_on:
            break
        logp = model.next_byte([prefixes[index] + written[index] for index in going_on])
        chosen = [choose(index, step, row) for index, row in zip(going_on, logp, strict=True)]
        for index, symbol in zip(going_on, chosen, strict=True):
            written[index] += bytes([symbol]) if symbol != END else b""
        going_on = [index for index, symbol in zip(going_on, chosen, strict=True) if symbol != END]
        watch((step + 1) / max_bytes)
    return written


def sample(
    model: NextByte, prefixes: Sequence[bytes], draws: np.ndarray, *, temperature: float = 1.0, watch: Watch = ignore
) -> list[bytes]:
    """Draw a continuation of every prefix from the model's distribution of texts.

    Args:
        draws: float64 [B, N] in [0, 1), one for every byte to write; what a prefix gets depends on its own row alone.
        temperature: of the next-byte distribution, above 0; 1 draws as the model has it.

    Returns:
        At most N bytes each, less where the text ended.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (``write`` takes the most probable byte)")

    def choose(index: int, step: int, logp: np.ndarray) -> int:
        scaled = logp.astype(np.float64) / temperature
        cumulative = np.cumsum(np.exp(scaled - scaled.max()))
        return int(np.searchsorted(cumulative, draws[index, step] * cumulative[-1], side="right"))

    return continue_bytes(model, prefixes, choose, max_bytes=draws.shape[1], watch=watch)


def write(
    model: NextByte, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
) -> list[str | None]:
    """Greedy continuations in whole characters, as ``Scorer.generate`` has them.

    One that reaches the end of the model's context ends there.
    """
    stops = [text.encode() for text in stop]
    texts: list[str | None] = []
    for number, prompt in enumerate(prompts):
        so_far = bytearray()

        def choose(index: int, step: int, logp: np.ndarray, so_far: bytearray = so_far) -> int:
            if any(text in so_far for text in stops):
                return END
            symbol = int(logp.argmax())
            so_far.extend(b"" if symbol == END else bytes([symbol]))
            return symbol

        def part(share: float, number: int = number) -> None:
            watch((number + share) / len(prompts))

        try:
            continue_bytes(model, [prompt.encode()], choose, max_bytes=max_bytes, watch=part)
        except (InexactEncoding, NotText, UnicodeEncodeError):
            texts.append(None)
            continue
        except TooLong:
            if not so_far:
                texts.append(None)
                continue
        text = split_text(bytes(so_far)).text
        texts.append(text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))])
    return texts
