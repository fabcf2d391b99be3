"""The tensors of a model that have a row for each token, and where they are stored, found without loading a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from alignment.vocab_tensors import Role
from stages.initialisation.shards import DTYPES, StoredTensor, read_shard, weight_files
from stages.initialisation.skeleton import (
    ROLES,
    Dependent,
    build_skeleton,
    dependents,
    loaded_names,
    tied_groups,
    vocabulary_sizes,
)
from stages.stage import StageError


@dataclass(frozen=True)
class VocabularyTensor:
    """One tensor with a row for each token.

    Attributes:
        name: in the model that transformers builds; of a tensor that it does not know, the stored one.
        role: what its rows are for.
        config_key: the size in the configuration that it follows, ``vocab_size`` for most.
        shape: in elements.
        dimension: which one counts the tokens.
        dtype: of its elements, as stored.
        stored_name: in the weight files; None where it is not stored (a tied tensor, usually).
        file: the weight file that holds it; None where it is not stored.
        tied_to: ``name`` of the tensor that it shares its values with: a tied output matrix with the input, the
            second name of a bias with the first.
    """

    name: str
    role: Role
    config_key: str
    shape: tuple[int, ...]
    dimension: int
    dtype: torch.dtype
    stored_name: str | None = None
    file: Path | None = None
    tied_to: str | None = None

    @property
    def matrix_rows(self) -> int:
        """Rows, padding included."""
        return self.shape[self.dimension]


def vocabulary_tensors(model_dir: Path) -> tuple[VocabularyTensor, ...]:
    """All stored vocabulary tensors of a causal language model: the input matrix, the output matrix, then the others.

    Tied tensors are found as transformers loads them: a configuration that ties two matrices which are stored with
    different values does not hold. Tensors that are stored but unknown to transformers (heads for the prediction of
    further tokens) are told by their shape.

    Raises:
        StageError: the model has no single input and output matrix; one of them is not stored, in another shape than
            the configuration says or in a dtype that rows cannot have; a tensor depends on the vocabulary in another
            way than with a row for each token, or may or may not do so.
    """
    config = AutoConfig.from_pretrained(model_dir)
    model = build_skeleton(config)
    stored = [tensor for file in weight_files(model_dir) for tensor in read_shard(file).tensors]
    loaded = loaded_names(model, [tensor.name for tensor in stored])
    groups = tied_groups(model, dependents(model, config))

    known = {dependent.name for group in groups for dependent in group}
    by_name: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = loaded[tensor.name]
        if name in known and name in by_name:
            raise StageError(
                f"{model_dir}: both {by_name[name].name} and {tensor.name} are stored for {name}: keep one"
            )
        by_name[name] = tensor
    shapes = model.state_dict()
    unknown = [tensor for tensor in stored if loaded[tensor.name] not in shapes]
    found = [tensor for group in groups for tensor in _located(group, by_name, model_dir)]
    found += _unknown_to_transformers(unknown, config, model_dir)
    return tuple(sorted(found, key=lambda tensor: ROLES.index(tensor.role)))


def read_rows(tensor: VocabularyTensor) -> Tensor:
    """The rows of a stored tensor, [V, D] in its own dtype; a bias has D = 1. Reads no other tensor."""
    with safe_open(tensor.file, framework="pt") as file:
        return file.get_tensor(tensor.stored_name).movedim(tensor.dimension, 0).reshape(tensor.matrix_rows, -1)


def stored_layout(tensor: VocabularyTensor, rows: Tensor) -> Tensor:
    """Rows [V', D] in the layout that ``tensor`` is stored in: the inverse of ``read_rows`` for any number of rows."""
    rest = tensor.shape[: tensor.dimension] + tensor.shape[tensor.dimension + 1 :]
    return rows.reshape(len(rows), *rest).movedim(0, tensor.dimension).contiguous()


def _located(group: Sequence[Dependent], stored: Mapping[str, StoredTensor], model_dir: Path) -> list[VocabularyTensor]:
    """The names of one tensor of the model, with where each is stored.

    Raises:
        StageError: it is not stored under any of them, or in another shape than the configuration says.
    """
    places = {dependent.name: stored.get(dependent.name) for dependent in group}
    owner = group[0]
    if places[owner.name] is None:
        # transformers ties both ways: what is stored under the other name alone is the owner's too.
        other = next((name for name, place in places.items() if place is not None), None)
        if other is None:
            raise StageError(
                f"{model_dir} stores no {owner.name}, and nothing that it is tied to: fetch or save the model again"
            )
        places[owner.name], places[other] = places[other], None
    found = []
    for dependent in group:
        place = places[dependent.name]
        if place is not None and place.shape != dependent.shape:
            raise StageError(
                f"{model_dir} stores {place.name} as {place.shape}, but by its config.json it is {dependent.shape}: "
                f"put the number of stored rows under `{dependent.config_key}`, or fetch the model again"
            )
        tied = dependent is not owner and (place is None or _same_values(place, places[owner.name]))
        tensor = VocabularyTensor(
            *dependent,
            dtype=_row_dtype(place or places[owner.name], model_dir),
            stored_name=place.name if place else None,
            file=place.file if place else None,
            tied_to=owner.name if tied else None,
        )
        found.append(tensor)
    return found


def _row_dtype(place: StoredTensor, model_dir: Path) -> torch.dtype:
    if place.dtype not in DTYPES:
        raise StageError(
            f"{model_dir} stores {place.name} as {place.dtype}: use a student with embeddings in "
            f"{', '.join(DTYPES)} (one that is not quantized)"
        )
    return DTYPES[place.dtype]


def _same_values(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two stored tensors are equal to the byte."""
    same_kind = (left.dtype, left.shape) == (right.dtype, right.shape)
    return same_kind and all(ours == theirs for ours, theirs in zip(left.blocks(), right.blocks(), strict=True))


def _unknown_to_transformers(
    unknown: Iterable[StoredTensor], config: PretrainedConfig, model_dir: Path
) -> list[VocabularyTensor]:
    """The stored tensors that transformers does not load and that have one dimension of a vocabulary's size.

    Raises:
        StageError: that dimension may as well be a width that equals the vocabulary.
    """
    sizes = vocabulary_sizes(config)
    values = config.get_text_config().to_dict()
    widths = {value: key for key, value in values.items() if isinstance(value, int) and key not in sizes}
    found = []
    for tensor in unknown:
        matching = [(key, index) for key, size in sizes.items() for index, n in enumerate(tensor.shape) if n == size]
        if not matching:
            continue
        key, dimension = matching[0]
        width = widths.get(tensor.shape[dimension])
        if width is not None or len({index for _, index in matching}) > 1:
            also = f"`{width}`" if width else "another dimension"
            raise StageError(
                f"{model_dir}: {tensor.name} {tensor.shape}, which transformers does not load, may have a row for each "
                f"token or not: {also} equals `{key}` as well. Remove the tensor, or use another student."
            )
        found.append(
            VocabularyTensor(
                name=tensor.name,
                role="other",
                config_key=key,
                shape=tensor.shape,
                dimension=dimension,
                dtype=_row_dtype(tensor, model_dir),
                stored_name=tensor.name,
                file=tensor.file,
            )
        )
    return found
