"""From a method's options to the method at work on a tensor."""

from __future__ import annotations

import importlib

from stages.initialisation.task import Method, RowTask
from stages.initializers.base import InitializerOptions

METHODS: dict[str, str] = {
    "trans_tok": "stages.initialisation.methods.translation:TransTok",
    "tokalign": "stages.initialisation.methods.cooccurrence:TokAlign",
    "tokenadapt": "stages.initialisation.methods.tokenadapt:TokenAdapt",
    "cw2v": "stages.initialisation.methods.constrained_word2vec:CW2V",
    "hypernet": "stages.initialisation.methods.hypernet:Hypernet",
    "focus": "stages.initialisation.methods.focus:Focus",
    "wechsel": "stages.initialisation.methods.word_vectors:Wechsel",
    "ofa": "stages.initialisation.methods.word_vectors:Ofa",
    "clp": "stages.initialisation.methods.similarity:Clp",
    "clp_plus": "stages.initialisation.methods.similarity:ClpPlus",
    "piece_mean": "stages.initialisation.methods.pieces:PieceMean",
    "omp": "stages.initialisation.methods.omp:Omp",
    "mean": "stages.initialisation.methods.simple:Mean",
    "piece_weighted": "stages.initialisation.methods.pieces:PieceWeighted",
    "knn": "stages.initialisation.methods.knn:Knn",
    "procrustes": "stages.initialisation.methods.linear_maps:MappedRows",
    "ridge_map": "stages.initialisation.methods.linear_maps:MappedRows",
    "zero": "stages.initialisation.methods.simple:Zero",
    "normal": "stages.initialisation.methods.simple:Normal",
    "mvn": "stages.initialisation.methods.simple:Mvn",
    "copy": "stages.initialisation.methods.simple:Copy",
}
"""Name in a recipe -> "module:class" of the ``Method``."""


def build_method(options: InitializerOptions, task: RowTask) -> Method:
    """The method that ``options`` describes, checked against ``task`` and not yet fitted.

    Raises:
        StageError: it cannot work on this tensor.
    """
    module, _, name = METHODS[options.method].partition(":")
    return getattr(importlib.import_module(module), name)(options, task)
