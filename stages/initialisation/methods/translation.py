"""Rows made of the rows of the tokens that a new token translates."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from alignment.initializers.rows import RowBlock
from alignment.initializers.translation import (
    Words,
    frequent,
    token_counts,
    translation_rows,
    with_numbers_spelled,
)
from alignment.initializers.word_alignment import link_counts
from alignment.table_cache import cached_arrays
from alignment.token_flags import token_flags
from alignment.token_index import TokenIndex
from stages.digests import content_digest
from stages.documents import DocumentProblem
from stages.initialisation.corpus import encoded, stop_if_asked
from stages.initialisation.task import Estimate, RowTask
from stages.initialisation.translation_files import read_sentence_pairs, read_token_counts
from stages.initializers.translation import ITERATIONS, TransTokOptions
from stages.references import ReferenceProblem, parse
from stages.stage import StageError, stage_error


class TransTok:
    """Old rows weighted by how often their tokens are translated by the new one."""

    def __init__(self, options: TransTokOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        try:
            self._file = parse(options.parallel or options.counts or "", Path.cwd()).locate()
        except ReferenceProblem as error:
            raise stage_error(error) from None
        if not self._file.is_file():
            raise StageError(f"{self._file}: trans_tok reads one .tsv or .jsonl file, this is a directory")

    def estimate(self, new_rows: int) -> Estimate:
        # Every byte of the file may be a word that is paired with others; what is counted is not known before.
        return Estimate(8 * self._file.stat().st_size, 0.0)

    def fit(self) -> None:
        """Count which tokens translate which.

        Raises:
            StageError: the file cannot be read, or no count reaches the minimum.
            StageInterrupted: the stage was asked to stop.
        """
        transplant, options = self._task.transplant, self._options
        try:
            counts = self._aligned_counts() if options.parallel else self._given_counts()
        except DocumentProblem as error:
            raise StageError(str(error)) from None
        kept = frequent(counts, options.min_count)
        if not kept.nnz:
            raise StageError(
                f"trans_tok: no two tokens translate each other {options.min_count:g} times in {self._file}; the "
                f"highest count is {counts.data.max(initial=0):.4g}. Give more sentences or lower min_count"
            )
        reached = np.count_nonzero(np.diff(kept.indptr))
        transplant.progress(f"trans_tok: translations of {reached:,} of {self._task.alignment.target_size:,} tokens")
        numbers = token_flags(transplant.target).digit_length > 0
        self._counts = with_numbers_spelled(kept, self._task.alignment, numbers)

    def rows(self, target_ids: Tensor) -> RowBlock:
        sparse = translation_rows(self._counts, target_ids)
        return RowBlock(sparse, (sparse.indices >= 0).any(dim=1))

    @property
    def _source_index(self) -> TokenIndex:
        return TokenIndex(self._task.transplant.source, self._task.alignment.source_size)

    def _given_counts(self) -> csr_array:
        return read_token_counts(self._file, self._source_index, TokenIndex(self._task.transplant.target))

    def _aligned_counts(self) -> csr_array:
        transplant = self._task.transplant
        facts = (
            f"{content_digest(self._file)} {self._file.suffix.lower()} {transplant.source.fingerprint} "
            f"{transplant.target.fingerprint} {self._options.iterations or ITERATIONS}"
        )
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        arrays = cached_arrays(transplant.cache, "translation-1", fingerprint, self._align)
        shape = (transplant.target.vocab_size, transplant.source.vocab_size)
        counts = csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
        # The tokenizer may have ids that the matrix has no row for.
        return csr_array(counts[:, : self._task.alignment.source_size])

    def _align(self) -> dict[str, np.ndarray]:
        transplant = self._task.transplant
        transplant.progress(f"trans_tok: reading {self._file}")
        source_words, target_words = Words(transplant.source), Words(transplant.target)
        old = (sentence for sentence, _ in read_sentence_pairs(self._file))
        new = (sentence for _, sentence in read_sentence_pairs(self._file))
        source = source_words.sentences(encoded(transplant.source, old, transplant))
        target = target_words.sentences(encoded(transplant.target, new, transplant))
        transplant.progress(f"trans_tok: aligning the words of {len(source.lengths):,} sentence pairs")
        links = link_counts(
            source,
            target,
            source_words=len(source_words.tokens),
            target_words=len(target_words.tokens),
            iterations=self._options.iterations or ITERATIONS,
            between=lambda: stop_if_asked(transplant),
        )
        shape = (transplant.target.vocab_size, transplant.source.vocab_size)
        counts = token_counts(links, source_words.tokens, target_words.tokens, shape=shape)
        return {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}
