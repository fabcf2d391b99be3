"""The init stage at work: from the student's files to those of a model with the target vocabulary.

Every tensor with a row for each token gets new rows; all others are copied byte for byte, file by file, so that little
more than those matrices is ever in memory (embedding_init.md §6.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from alignment.initializers.post import adjust
from alignment.initializers.rows import SparseRows, mean_row
from alignment.vocab_tensors import padded_rows
from stages.initialisation.chain import MadeRows, make_rows
from stages.initialisation.checking import check_result, passages_to_predict
from stages.initialisation.configuration import write_configuration
from stages.initialisation.manifest import describe
from stages.initialisation.overrides import Named, override_rows
from stages.initialisation.plan import TensorPlan, named, plan_tensors, tied
from stages.initialisation.refining import build_refiner
from stages.initialisation.shards import write_model_files
from stages.initialisation.suffix_expansion.expansion import Expansion, longest_suffix_expansion
from stages.initialisation.task import Transplant
from stages.initialisation.tasks import load_transplant
from stages.initialisation.tensors import VocabularyTensor, stored_layout, vocabulary_tensors
from stages.model_loading import refuse_expanded
from stages.stage import StageContext, StageError

NO_TOKEN_BIAS = -1e4
"""Output bias of padding rows: finite in every dtype, and a probability of zero."""


def give_vocabulary(ctx: StageContext) -> dict[str, Any]:
    """Write the student with the target vocabulary into ``ctx.out``; returns what ``init.json`` says.

    Raises:
        StageError: the inputs do not belong together, a method cannot work, or the result does not load.
        StageInterrupted: the stage was asked to stop.
    """
    config = ctx.config
    refuse_expanded(ctx.input("student"))
    passages = passages_to_predict(ctx)
    transplant = load_transplant(ctx)
    tensors = vocabulary_tensors(transplant.student)
    _check_rows(transplant, named(tensors, "input"))
    refiners = [build_refiner(options, transplant) for options in config.refine]
    plans = plan_tensors(config, transplant, tensors)
    stays_tied = tied(tensors) and config.tie == "keep"
    overrides = _overrides(config.override, transplant, plans)
    expansion = None
    if config.expand_input == "longest_suffix":
        expansion = longest_suffix_expansion(transplant, plans[named(tensors, "input").name].task.rows)

    made: dict[str, MadeRows] = {}
    for name, plan in plans.items():
        made[name] = make_rows(
            plan.task, plan.methods, copy_exact=config.copy_exact, max_norm=config.max_norm, followers=plan.followers
        )
        for sentence in made[name].remarks(transplant.target):
            ctx.progress(f"warning: {name}: {sentence}")
        _adjust(ctx, plan, made[name])
        _fill_biases(config.bias, plan.followers, made[name])
    by_role = {plan.tensor.role: made[name].values for name, plan in plans.items()}
    new = made[named(tensors, "input").name].new
    refined = [{"method": refiner.options.method} | refiner.refine(by_role, new) for refiner in refiners]
    for name, (ids, weights) in overrides.items():
        made[name].set_rows(ids, weights, plans[name].task.rows, plans[name].followers)

    matrix_rows = padded_rows(transplant.alignment.target_size, config.pad_to_multiple_of)
    _write_weights(ctx, tensors, made, matrix_rows, expansion)
    dropped = write_configuration(
        transplant.student,
        ctx.out,
        tokenizer=AutoTokenizer.from_pretrained(transplant.tokenizer),
        alignment=transplant.alignment,
        sizes=dict.fromkeys((tensor.config_key for tensor in tensors), matrix_rows),
        tie=stays_tied,
    )
    if expansion:
        expansion.declare(ctx.out)
    for line in dropped:
        ctx.progress(f"warning: {line}")
    _save_row_records(ctx, made)
    # Once more: overrides may have taken the place of copies.
    new = made[named(tensors, "input").name].new
    verification = check_result(ctx, transplant, new, passages, {"matrix_rows": matrix_rows, "tied": stays_tied})
    return describe(config, transplant, plans, made, matrix_rows=matrix_rows, tied=stays_tied) | {
        "refined": refined,
        "dropped": list(dropped),
        "verification": verification,
    }


def _check_rows(transplant: Transplant, tensor: VocabularyTensor) -> None:
    if transplant.alignment.source_size > tensor.matrix_rows:
        raise StageError(
            f"the tokenizer in {transplant.student} has ids up to {transplant.alignment.source_size - 1}, the model "
            f"has only {tensor.matrix_rows} rows: the last ids have no embedding. Use the tokenizer that the model was "
            "trained with."
        )


def _adjust(ctx: StageContext, plan: TensorPlan, made: MadeRows) -> None:
    post = ctx.config.post
    if plan.tensor.role not in ("input", "output") or post == type(post)():
        return
    new = made.new
    made.values[new] = adjust(
        made.values[new].float(),
        plan.task.rows.float(),
        plan.task.transplant.row_keys[new.numpy()],
        centre=post.centre,
        scale=post.scale,
        noise=post.noise,
        longest=post.longest,
        seed=ctx.config.seed,
    ).to(made.values.dtype)


def _fill_biases(policy: str, old: Mapping[str, Tensor], made: MadeRows) -> None:
    if policy == "output":
        return
    new = made.new
    for name, values in made.followers.items():
        values[new] = 0 if policy == "zero" else mean_row(old[name]).to(values.dtype)


def _overrides(
    override: Mapping[str, Named], transplant: Transplant, plans: Mapping[str, TensorPlan]
) -> dict[str, tuple[Tensor, SparseRows]]:
    """Tensor -> the target ids that the user names, and what their rows are made of."""
    if not override:
        return {}
    return {
        name: override_rows(transplant.source, transplant.target, override, len(plan.task.rows))
        for name, plan in plans.items()
    }


def _write_weights(
    ctx: StageContext,
    tensors: Sequence[VocabularyTensor],
    made: Mapping[str, MadeRows],
    matrix_rows: int,
    expansion: Expansion | None,
) -> None:
    """Write all tensors, those with a row for each token replaced wherever they are stored."""
    values: dict[str, Tensor] = {}
    for name, rows in made.items():
        values[name] = _padded(rows.values, matrix_rows, ctx.config.padding)
        for follower, column in rows.followers.items():
            values[follower] = torch.cat([column, column.new_full((matrix_rows - len(column), 1), NO_TOKEN_BIAS)])
    replaced, added = {}, {}
    for tensor in tensors:
        rows = values.get(tensor.name, values.get(tensor.tied_to or ""))
        if rows is None:
            continue
        if tensor.stored_name is not None:
            replaced[tensor.stored_name] = stored_layout(tensor, rows)
        elif tensor.name in values or ctx.config.tie == "untie":
            # Untied, transformers expects the head's bias under its own name too.
            added[tensor.name] = stored_layout(tensor, rows)
    if expansion:
        added |= expansion.tensors(named(tensors, "input").name, matrix_rows)
    write_model_files(ctx.input("student"), ctx.out, replaced, added=added, should_stop=ctx.should_stop)


def _padded(rows: Tensor, matrix_rows: int, policy: str) -> Tensor:
    missing = matrix_rows - len(rows)
    if not missing:
        return rows
    # A zero row has logit 0, which beats real tokens with negative logits (embedding_init.md §0.6).
    row = mean_row(rows).to(rows.dtype) if policy == "mean" else torch.zeros_like(rows[0])
    return torch.cat([rows, row.expand(missing, -1)])


def _save_row_records(ctx: StageContext, made: Mapping[str, MadeRows]) -> None:
    """``rows.npz``: for each tensor the method of each row, an index into ``init.json``'s list, and its diagnostics."""
    arrays = {}
    for name, rows in made.items():
        arrays[f"{name}/method"] = rows.method
        arrays |= {f"{name}/{diagnostic}": values for diagnostic, values in rows.diagnostics.items()}
    np.savez_compressed(ctx.out / "rows.npz", **arrays)
