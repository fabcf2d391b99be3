"""What is right in a recipe and yet may not be what its author meant."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.reading.problems import dotted
from pipeline.reading.source_stages import stage_name
from pipeline.recipe import Recipe
from stages.document_sets import DocumentSet
from stages.references import LocalReference, Reference, ReferenceProblem, parse


def notes(recipe: Recipe) -> list[str]:
    """Lines for people: what nothing reads, and text that is both trained on and held out. Reads no file."""
    return [*(f"no stage reads {section}" for section in recipe.unused), *_trained_on_and_held_out(recipe)]


def _trained_on_and_held_out(recipe: Recipe) -> Iterator[str]:
    if not {stage_name("train"), stage_name("eval")} <= recipe.stages.keys():
        return
    training = list(_document_sets(recipe, "train"))
    for place, held_out, reference in _document_sets(recipe, "eval"):
        for training_place, trained_on, other in training:
            same_part = (held_out.subset, held_out.split) == (trained_on.subset, trained_on.split)
            if same_part and _overlap(reference, other):
                yield (
                    f"{training_place} and {place} share text ({held_out.path}): what is measured on it is of text "
                    "that was trained on"
                )


def _document_sets(recipe: Recipe, source: str) -> Iterator[tuple[str, DocumentSet, Reference]]:
    """Every set of ``data.train`` or ``data.eval`` with its place; one that leads nowhere is reported elsewhere."""
    spec = recipe.stages[stage_name(source)]
    for index, documents in enumerate(spec.config.documents):
        try:
            reference = parse(documents.path, recipe.directory)
        except ReferenceProblem:
            continue
        yield dotted((*spec.section, index)), documents, reference


def _overlap(one: Reference, other: Reference) -> bool:
    if isinstance(one, LocalReference) and isinstance(other, LocalReference):
        return one.path.is_relative_to(other.path) or other.path.is_relative_to(one.path)
    return one == other
