"""Secrets in a recipe: none where its options become results, and none in the copies that a run keeps.

What stands under ``models``, ``data`` and ``stages`` is written into every result and into MLflow, so an access token
there is refused. ``resources`` may hold DeepSpeed's own configuration, and that a key of the services it reports to:
it is passed on and masked in what is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.reading.problems import Problem, dotted, leaves
from stages.masking import MASK, VOCABULARY_NAMES, environment_secrets, holds_token, mask_text, masked, secret_texts

_PUBLISHED = ("models", "data", "stages")


def secret_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Where the recipe has an access token that would be written into results; the messages do not repeat it."""
    for section in _PUBLISHED:
        for location, value in leaves(values.get(section), (section,)):
            if isinstance(value, str) and holds_token(value):
                yield Problem(
                    location,
                    "holds what looks like an access token or a password, and a recipe's options are written into its "
                    "results. Give it to the environment instead, such as HF_TOKEN, or use `hf auth login`",
                )


def masked_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved recipe as it may be shown and kept."""
    secrets = environment_secrets()
    return {name: masked(section, secrets, _harmless(name)) for name, section in values.items()}


def masked_recipe_text(text: str, values: Mapping[str, Any]) -> str:
    """The recipe as written, without the secrets in it; ``values`` is what it says."""
    named = {found for name, section in values.items() for found in secret_texts(section, _harmless(name)) if found}
    for secret in sorted(named, key=len, reverse=True):
        # as a whole value: a short one may be part of any word
        text = re.sub(rf"(?<![\w-]){re.escape(secret)}(?![\w-])", MASK, text)
    return mask_text(text, environment_secrets())


def masked_places(values: Mapping[str, Any]) -> list[str]:
    """Where a kept recipe lacks what was masked, dotted."""
    resources = leaves(values.get("resources"), ("resources",))
    return [dotted(location) for location, value in resources if isinstance(value, str) and MASK in value]


def _harmless(section: str) -> tuple[str, ...]:
    return () if section == "resources" else VOCABULARY_NAMES
