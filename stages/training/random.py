"""Random numbers that are functions of a seed and of what they are for."""

from __future__ import annotations

import numpy as np


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A counter-based random generator that depends on ``seed`` and the numbers of ``stream`` only."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
