"""What a recipe may write as the ``input`` or ``output`` chain of init, validated. Light: nothing is computed here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from stages.initializers.base import InitializerOptions, WantedInput
from stages.initializers.constrained_word2vec import CW2VOptions
from stages.initializers.cooccurrence import TokAlignOptions
from stages.initializers.hypernet import HypernetOptions
from stages.initializers.knn import KnnOptions
from stages.initializers.linear_maps import ProcrustesOptions, RidgeMapOptions
from stages.initializers.omp import OmpOptions
from stages.initializers.pieces import PieceMeanOptions, PieceWeightedOptions
from stages.initializers.similarity import ClpOptions, ClpPlusOptions, FocusOptions, OfaOptions, WechselOptions
from stages.initializers.simple import CopyOptions, MeanOptions, MvnOptions, NormalOptions, ZeroOptions
from stages.initializers.tokenadapt import TokenAdaptOptions
from stages.initializers.translation import TransTokOptions

__all__ = ["Chain", "InitializerOptions", "WantedInput"]

_ALIASES = {"fvt": "piece_mean"}


def _as_mapping(value: Any) -> Any:
    """``omp`` means ``{method: omp}``."""
    if isinstance(value, str):
        return {"method": _ALIASES.get(value, value)}
    if isinstance(value, dict) and value.get("method") in _ALIASES:
        return {**value, "method": _ALIASES[value["method"]]}
    return value


Entry = Annotated[
    TransTokOptions
    | TokAlignOptions
    | TokenAdaptOptions
    | CW2VOptions
    | HypernetOptions
    | PieceMeanOptions
    | MeanOptions
    | PieceWeightedOptions
    | KnnOptions
    | ProcrustesOptions
    | RidgeMapOptions
    | ZeroOptions
    | NormalOptions
    | MvnOptions
    | CopyOptions
    | FocusOptions
    | WechselOptions
    | OfaOptions
    | ClpOptions
    | ClpPlusOptions
    | OmpOptions,
    Field(discriminator="method"),
]


def _as_chain(value: Any) -> Any:
    """A chain as a list of mappings, however it is written: ``omp``, ``{method: omp, k: 8, fallback: [piece_mean]}``,
    ``[omp, piece_mean]``."""
    if isinstance(value, dict):
        first = {key: item for key, item in value.items() if key != "fallback"}
        fallback = value.get("fallback") or []
        value = [first, *(fallback if isinstance(fallback, list | tuple) else [fallback])]
    elif isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple) and not value:
        raise ValueError("names no method; write piece_mean, or leave it out")
    return [_as_mapping(item) for item in value] if isinstance(value, list | tuple) else value


Chain = Annotated[tuple[Entry, ...], BeforeValidator(_as_chain)]
"""Methods in the order in which they are asked: what one cannot make the next one tries."""
