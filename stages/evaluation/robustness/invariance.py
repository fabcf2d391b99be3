"""How much a model minds in which tokens a text reaches it (StochasTok, arXiv 2506.01687; evaluation.md §3)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.splits import SplitTable
from stages.evaluation.core import Ability, Watch
from stages.evaluation.robustness.excerpts import Excerpt, choose_excerpts
from stages.evaluation.robustness.options import InvarianceOptions
from stages.evaluation.robustness.segmentations import (
    Reader,
    compare,
    random_segmentations,
    split_words,
    word_ends,
)
from stages.evaluation.sections import (
    Column,
    Curve,
    SectionContext,
    SectionReport,
    Skipped,
    Subject,
    Table,
)
from stages.evaluation.statistics import Sides, ratio
from stages.evaluation.statistics import compare as differences
from stages.evaluation.windows import Document
from stages.stage import StageError

NAME = "invariance"
ABOUT = (
    "Every model reads excerpts of held-out text in its own tokens and in {segmentations} random segmentations, tokens "
    "split by StochasTok's law with proportion {proportion:g}, and is compared with itself. Cost: bits per byte of a "
    "random segmentation minus those of the own tokens. Spread: standard deviation over the random segmentations of an "
    "excerpt, in bits per byte. At the last piece of every word that was split: same byte, how often the most probable "
    "next byte is that after the own tokens; KL, the divergence of the next byte's distribution, where a byte's "
    "probability is that of all tokens beginning with it; distance, 1 - cosine similarity of the last hidden states. "
    "A model that knows how its tokens are spelled has small numbers; how finely its own tokens are cut matters as "
    "well, so compare models of one tokenizer first. Intervals are 95 % over excerpts."
)
COLUMNS = (
    Column("cost", "bits/byte", "lower", 3),
    Column("spread", "bits/byte", "lower", 4),
    Column("same byte", "%", "higher", 1),
    Column("KL", "nats", "lower", 3),
    Column("distance", "1 - cosine", "lower", 3),
    Column("growth", "tokens", digits=3, note="after / before"),
)


def sections(options: InvarianceOptions, documents: Sequence[Document], context: SectionContext) -> list[Invariance]:
    """The section of ``invariance``.

    Raises:
        StageError: there is no plain text.
    """
    excerpts = choose_excerpts(documents, options.excerpts, options.excerpt_bytes, purpose=NAME, seed=options.seed)
    if not excerpts:
        raise StageError("invariance: data.eval has no plain text; leave invariance out")
    return [Invariance(options, excerpts, context)]


class Invariance:
    """Excerpts in random segmentations."""

    name = NAME
    relies_on: frozenset[Ability] = frozenset({"score_texts"})

    def __init__(self, options: InvarianceOptions, excerpts: Sequence[Excerpt], context: SectionContext) -> None:
        self._options = options
        self._excerpts = excerpts
        self._context = context

    def score(self, subject: Subject, watch: Watch) -> list[dict[str, Any] | None]:
        """Sums over the segmentations and places of every excerpt; None where the tokens do not spell it.

        Raises:
            StageError: the model is none of tokens, no token can be split, or its head is not one we can compute.
        """
        if subject.model is None or subject.view is None:
            raise StageError("an ensemble has no tokens of its own to split")
        table = SplitTable.from_view(subject.view, directory=self._context.cache)
        if not table.splittable.any():
            raise StageError(
                "no token of its vocabulary is two others put together, as with a byte tokenizer, so a text has one "
                "segmentation"
            )
        encodings = subject.view.encode_batch([excerpt.text for excerpt in self._excerpts], exact=False)
        usable = [encoding for encoding in encodings if encoding.exact and len(encoding.ids) > 1]
        if not usable:
            raise StageError("its tokens spell none of the excerpts")
        reader = Reader(subject.model, subject.view, usable[0].ids.tolist())
        found: list[dict[str, Any] | None] = []
        for number, (excerpt, encoding) in enumerate(zip(self._excerpts, encodings, strict=True), start=1):
            exact = encoding.exact and len(encoding.ids) > 1
            found.append(self._read(reader, table, excerpt, encoding.ids, encoding.byte_ends) if exact else None)
            watch(number / len(self._excerpts))
        return found

    def _read(
        self, reader: Reader, table: SplitTable, excerpt: Excerpt, ids: np.ndarray, ends: np.ndarray
    ) -> dict[str, Any]:
        own = reader.read(ids, 1)
        name = int.from_bytes(hashlib.sha256(excerpt.id.encode()).digest()[:8], "big")
        seeds = [(self._options.seed, name, number) for number in range(self._options.segmentations)]
        expansions = random_segmentations(table, ids, self._options.proportion, seeds)
        is_end = word_ends(excerpt.text, ends)
        compared = [compare(reader, own, each, split_words(is_end, each)) for each in expansions]
        return {
            "bytes": int(ends[-1] - ends[0]),
            "tokens": len(ids),
            "random_tokens": [len(each.ids) for each in expansions],
            "nats": own.nats,
            "random_nats": [each.nats for each in compared],
            "places": sum(each.places for each in compared),
            "kl_nats": float(sum(each.kl_nats.sum() for each in compared)),
            "same_byte": int(sum(each.same_byte.sum() for each in compared)),
            "distance": np.sum([each.distance.sum(axis=1) for each in compared], axis=0).tolist(),
        }

    def report(self, results: Mapping[str, Sequence[dict[str, Any] | None]]) -> SectionReport:
        """Costs, agreement and distances over the excerpts that every model could read."""
        read = [
            number
            for number in range(len(self._excerpts))
            if all(excerpts[number] is not None for excerpts in results.values())
        ]
        chosen = {row: [excerpts[number] for number in read] for row, excerpts in results.items()}
        sides: Sides = {row: _sides(excerpts) for row, excerpts in chosen.items() if excerpts}
        rows = {row: {name: ratio(*side) for name, side in named.items()} for row, named in sides.items()}
        curve = Curve(
            "Distance of hidden states at the last piece of split words, by layer",
            "layer (0: embeddings)",
            "1 - cosine similarity",
            {row: points for row, excerpts in chosen.items() if (points := _by_layer(excerpts))},
        )
        return SectionReport(
            name=self.name,
            title="Segmentation invariance",
            about=ABOUT.format(**self._options.model_dump()),
            tables=(
                Table(
                    "Random segmentations of held-out text",
                    COLUMNS,
                    rows,
                    differences(sides, self._context.references()),
                ),
            ),
            curves=(curve,),
            skipped=tuple(
                Skipped(f"excerpt {excerpt.id}", "its tokens do not spell it; it counts for no model", row)
                for row, excerpts in results.items()
                for excerpt, found in zip(self._excerpts, excerpts, strict=True)
                if found is None
            ),
            facts={
                "excerpts read": len(read),
                **self._options.model_dump(mode="json"),
                "places": {row: sum(found["places"] for found in excerpts) for row, excerpts in chosen.items()},
            },
            metrics={
                f"{row}.{name.replace(' ', '_')}": cell.value
                for row, named in rows.items()
                for name, cell in named.items()
            },
        )


def _sides(excerpts: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Column -> numerators and denominators, one of each for every excerpt; none of places where there are none."""
    bits = [found["bytes"] * math.log(2) for found in excerpts]
    sides = {
        "cost": ([float(np.mean(found["random_nats"])) - found["nats"] for found in excerpts], bits),
        "spread": ([float(np.std(found["random_nats"], ddof=1)) for found in excerpts], bits),
        "growth": (
            [float(np.mean(found["random_tokens"])) for found in excerpts],
            [float(found["tokens"]) for found in excerpts],
        ),
    }
    places = [float(found["places"]) for found in excerpts]
    if sum(places):
        sides["same byte"] = ([100.0 * found["same_byte"] for found in excerpts], places)
        sides["KL"] = ([found["kl_nats"] for found in excerpts], places)
        sides["distance"] = ([found["distance"][-1] for found in excerpts], places)
    return sides


def _by_layer(excerpts: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    places = sum(found["places"] for found in excerpts)
    if not places:
        return []
    sums = np.sum([found["distance"] for found in excerpts], axis=0)
    return [(float(layer), float(total) / places) for layer, total in enumerate(sums)]
