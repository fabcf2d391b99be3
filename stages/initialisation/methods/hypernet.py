"""Rows predicted by a network that a hypernet stage has trained."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.initializers.rows import RowBlock
from alignment.initializers.surface_forms import aligned_forms
from stages.hypernetwork import network
from stages.hypernetwork.priors import unigram_log_probabilities
from stages.hypernetwork.table import StudentTable
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.hypernet import HypernetOptions
from stages.stage import StageError
from stages.training.models import pick_device


class Hypernet:
    """Zero-Shot Tokenizer Transfer: the prediction for the pieces of each token (``stages.hypernetwork.network``).

    Makes rows for the input matrix, the output matrix and the output bias.
    """

    def __init__(self, options: HypernetOptions, task: RowTask) -> None:
        transplant = task.transplant
        if transplant.hypernet is None:
            raise StageError("hypernet needs a network: name a hypernet stage under `needs`")
        self._task = task
        self._batch = options.batch_tokens
        self._source = StudentTable.of(transplant.student, transplant.source.vocab_size)
        manifest = network.read_manifest(transplant.hypernet)
        self._shape = network.Shape(**manifest["network"])
        trained_for, facts = manifest["student"], self._source.layout.facts(transplant.source.fingerprint)
        differing = [
            f"{name} {trained_for[name]}, not {facts[name]}" for name in facts if facts[name] != trained_for[name]
        ]
        if differing:
            raise StageError(
                f"the hypernetwork in {transplant.hypernet} was trained for another student ({'; '.join(differing)}): "
                "name the hypernet stage of this student under `needs`"
            )

    def estimate(self, new_rows: int) -> Estimate:
        shape = self._shape
        tokens = min(new_rows, self._batch) * shape.max_pieces
        states = 4 * tokens * shape.hidden * (4 + 2 * shape.expansion)
        table = 2 * self._source.vocab_size * shape.columns
        weights_per_layer = (4 + 2 * shape.expansion) * shape.hidden**2
        weights = shape.layers * weights_per_layer + 2 * shape.hidden**2 + 2 * shape.columns * shape.hidden
        pieces = self._task.alignment.piece_counts.clip(max=shape.max_pieces)
        return Estimate(table + states + 4 * weights, 2.0 * weights * float(pieces.mean()) * new_rows)

    def fit(self) -> None:
        transplant = self._task.transplant
        self._device = pick_device(0)
        self._network = network.load(transplant.hypernet).to(self._device)
        self._table = self._source.rows().to(self._device)
        self._priors: Tensor | None = None
        if self._shape.priors:
            self._priors = unigram_log_probabilities(transplant.tokenizer, transplant.target.vocab_size)

    @torch.no_grad()
    def rows(self, target_ids: Tensor) -> RowBlock:
        rows, biases = zip(*(self._predict(ids) for ids in target_ids.split(self._batch)), strict=True)
        spelled = torch.from_numpy(self._task.alignment.piece_counts[target_ids.numpy()] > 0)
        bias = None if biases[0] is None else torch.cat(biases)
        return RowBlock(torch.cat(rows), spelled & (self._task.role in ("input", "output")), bias=bias)

    def _predict(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        pieces = aligned_forms(self._task.alignment, ids, self._shape.max_pieces)
        priors = None if self._priors is None else self._priors[ids].to(self._device)
        predicted = self._network(self._table, pieces.to(self._device), priors).cpu()
        rows = self._source.layout.split(predicted)
        return rows.output if self._task.role == "output" else rows.input, rows.bias
