"""The preflight audit: what two tokenizers do to the training text, before any model is loaded."""

from __future__ import annotations

from alignment.audit.preflight import Audit

__all__ = ["Audit"]
