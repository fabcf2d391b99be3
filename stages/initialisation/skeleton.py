"""Which tensors of a model grow with its vocabulary, known from its skeleton: the model without weights.

The skeleton is built on the meta device with the sizes of its configuration, and again with one of them a row larger. A
dimension that merely equals the vocabulary size proves nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from alignment.vocab_tensors import Role
from stages.stage import StageError

ROLES: tuple[Role, ...] = ("input", "output", "bias", "per_layer_input", "other")
"""In the order in which tensors are listed."""

_PER_LAYER = re.compile(r"per_layer[^.]*\.weight$")


class Dependent(NamedTuple):
    """A tensor of the skeleton that grows with a vocabulary size; the fields as in ``VocabularyTensor``."""

    name: str
    role: Role
    config_key: str
    shape: tuple[int, ...]
    dimension: int


def build_skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The causal language model of a configuration, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def vocabulary_sizes(config: PretrainedConfig) -> dict[str, int]:
    """The vocabulary sizes of a configuration: ``vocab_size`` and its like."""
    values = config.get_text_config().to_dict()
    return {
        key: value for key, value in values.items() if key.startswith("vocab_size") and isinstance(value, int) and value
    }


def dependents(model: PreTrainedModel, config: PretrainedConfig) -> list[Dependent]:
    """The tensors of ``model``, the skeleton of ``config``, that grow with a vocabulary size.

    Raises:
        StageError: a tensor grows by other than one row for each token, or the input or output matrix does not grow.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, tuple[str, int]] = {}
    for key, size in vocabulary_sizes(config).items():
        larger_config = copy.deepcopy(config)
        setattr(larger_config.get_text_config(), key, size + 1)
        for name, larger in build_skeleton(larger_config).state_dict().items():
            growth = {
                dimension: after - before
                for dimension, (before, after) in enumerate(zip(shapes[name], larger.shape, strict=True))
                if after != before
            }
            if not growth:
                continue
            if name in found or list(growth.values()) != [1]:
                raise StageError(
                    f"{name} {shapes[name]} depends on `{key}`, but not with one row for each token: such models "
                    "cannot be given another vocabulary"
                )
            found[name] = (key, *growth)
    roles = _roles(model, found)
    return [Dependent(name, roles[name], key, shapes[name], dimension) for name, (key, dimension) in found.items()]


def tied_groups(model: PreTrainedModel, members: Iterable[Dependent]) -> list[list[Dependent]]:
    """``members`` by the parameter that they are. Its owner comes first: the input, else the first of the model."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    groups: dict[int, list[Dependent]] = {}
    for member in sorted(members, key=lambda member: ROLES.index(member.role)):
        groups.setdefault(id(tensors[member.name]), []).append(member)
    return list(groups.values())


def loaded_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Stored name -> the name under which transformers loads it, by its own rules (prefixes, renamed modules)."""
    known = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def loaded(name: str) -> str:
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        return name if renamed not in known and name in known else renamed

    return {name: loaded(name) for name in sorted(stored)}


def _roles(model: PreTrainedModel, names: Collection[str]) -> dict[str, Role]:
    """Name of each tensor that grows with the vocabulary -> what its rows are for.

    Raises:
        StageError: the input or the output matrix is not among them.
    """
    head = model.get_output_embeddings()
    module_names = {id(module): name for name, module in model.named_modules()}
    modules: dict[Role, nn.Module | None] = {"input": model.get_input_embeddings(), "output": head}
    roles: dict[str, Role] = {}
    for role, module in modules.items():
        name = f"{module_names.get(id(module))}.weight"
        if name not in names:
            raise StageError(
                f"{type(model).__name__} has no {role} matrix with a row for each token: only models with an embedding "
                "matrix and an output matrix can be given another vocabulary"
            )
        roles[name] = role
    bias = getattr(head, "bias", None)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        is_bias = bias is not None and parameters.get(name) is bias
        rest: Role = "bias" if is_bias else "per_layer_input" if _PER_LAYER.search(name) else "other"
        roles.setdefault(name, rest)
    return roles
