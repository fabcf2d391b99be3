"""What the sections on exact bytes let a recipe choose alike; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

EstimatorName = Literal["valid", "all"]
"""See ``alignment.covers.Estimator``."""

ESTIMATORS: dict[EstimatorName, str] = {
    "valid": "valid ones only (those that the tokenizer could have made).",
    "all": "any last token after valid ones, also where the tokenizer would never write it.",
}
"""What the report says of each."""
