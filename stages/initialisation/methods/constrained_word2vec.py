"""Rows trained on text without leaving the convex hull of the old ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignment.initializers.constrained_word2vec import Schedule, Text, train
from alignment.initializers.rows import RowBlock
from alignment.table_cache import cached_arrays
from stages.initialisation.corpus import encoded, required_texts, stop_if_asked, texts_digest
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.constrained_word2vec import CW2VOptions

_CURVE_POINTS = 20
_CHARACTERS_A_TOKEN = 4


class CW2V:
    """Convex combinations of all old rows, learnt by skip-gram with negative sampling.

    A token that corresponds to a single old one has that one's row.
    """

    def __init__(self, options: CW2VOptions, task: RowTask) -> None:
        self._task = task
        self._texts = required_texts(task.transplant, options.method)
        self._schedule = Schedule(**options.model_dump(exclude={"method"}))
        alignment, keys = task.alignment, task.transplant.row_keys
        new = np.flatnonzero(~alignment.copied)
        # In the order of what the tokens are, so that nothing that is drawn depends on their ids.
        self._new = new[np.argsort(keys[new], kind="stable")]
        copied = np.flatnonzero(alignment.copied)
        self._copied = copied[np.argsort(keys[copied], kind="stable")]

    def estimate(self, new_rows: int) -> Estimate:
        """An upper bound: as if every token of the text were a new one."""
        old, rank = len(self._task.rows), self._schedule.rank
        # Both factors with Adam's gradient and two moments each; the drawn tokens of a step may be all new ones.
        factors = 4 * 4 * rank * (len(self._new) + old)
        drawn = min(len(self._new), self._schedule.batch_pairs * (1 + self._schedule.negatives))
        step = 8.0 * drawn * old * (rank + self._task.rows.shape[1])
        tokens = sum(map(len, self._texts())) // _CHARACTERS_A_TOKEN
        return Estimate(factors, step * self._schedule.steps(tokens))

    def fit(self) -> None:
        """Train the rows.

        Raises:
            StageInterrupted: the stage was asked to stop; nothing is kept.
        """
        transplant, task = self._task.transplant, self._task
        facts = hashlib.sha256(task.rows.contiguous().view(torch.uint8).numpy().tobytes())
        facts.update(f"{self._schedule} {transplant.seed} {task.alignment.fingerprint}".encode())
        facts.update(f"{transplant.target.fingerprint} {texts_digest(self._texts())}".encode())
        arrays = cached_arrays(transplant.cache, "cw2v-1", facts.hexdigest(), self._train)
        alignment = task.alignment
        self._rows = torch.zeros(alignment.target_size, task.rows.shape[1])
        self._rows[self._new] = torch.from_numpy(arrays["rows"])
        self._rows[self._copied] = self._copied_rows().float()
        self._made = torch.from_numpy(alignment.copied.copy())
        self._made[self._new] = torch.from_numpy(arrays["trained"])

    def rows(self, target_ids: Tensor) -> RowBlock:
        return RowBlock(self._rows[target_ids], self._made[target_ids])

    def _copied_rows(self) -> Tensor:
        alignment = self._task.alignment
        return self._task.rows[torch.from_numpy(alignment.pieces[alignment.offsets[self._copied]]).long()]

    def _train(self) -> dict[str, np.ndarray]:
        transplant = self._task.transplant
        numbers = np.empty(self._task.alignment.target_size, dtype=np.int64)
        numbers[np.concatenate([self._new, self._copied])] = np.arange(len(numbers))
        documents = [numbers[ids] for ids in encoded(transplant.target, self._texts(), transplant)]
        text = Text.of(documents, new=len(self._new), size=len(numbers), window=self._schedule.window)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows, trained = train(
            text,
            self._task.rows.to(device),
            self._copied_rows().to(device),
            _drawn(transplant.row_keys[self._new], transplant.seed, self._schedule.rank),
            self._schedule,
            transplant.seed,
            self._reporter(self._schedule.steps(len(text.centres))),
        )
        return {"rows": rows.numpy(), "trained": trained.numpy()}

    def _reporter(self, steps: int) -> Callable[[int, float], None]:
        transplant, every = self._task.transplant, max(steps // _CURVE_POINTS, 1)

        def report(step: int, loss: float) -> None:
            stop_if_asked(transplant)
            if step in (1, steps) or step % every == 0:
                transplant.progress(f"cw2v: {self._task.name}: step {step} of {steps}, loss {loss:.4f}")

        return report


def _drawn(keys: np.ndarray, seed: int, rank: int) -> Tensor:
    """float32 [n, rank] from uniform(0, 1), each row from its own key."""
    rows = [np.random.default_rng([seed, int(key)]).random(rank, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, rank)
