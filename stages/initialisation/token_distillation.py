"""New rows trained until the student reads the new tokens as it reads their pieces."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from alignment.token_table import TokenKind
from alignment.vocab_tensors import Role, VocabTensorError, read_vocab_tensors
from stages.initialisation.shared_body import SharedBody
from stages.initialisation.snippets import count_tokens, find_snippets, most_frequent
from stages.initialisation.task import Transplant
from stages.initializers.refiners import TokenDistillOptions
from stages.stage import StageError, StageInterrupted
from stages.training.data.batch import Batch, collate, to_device
from stages.training.data.windows import Window
from stages.training.models import pick_device
from stages.training.random import generator
from stages.training.saving import checkpoint

_CHECKPOINT_STEPS = 200
_PROGRESS_SECONDS = 20.0


class TokenDistillation:
    """Token Distillation (AweDist; Dobler, Elliott and de Melo, ICLR 2026; embedding_init.md §1.15).

    On snippets of the training text, the rows of the tokens in them minimise the squared distance between the hidden
    states of the student on the target's tokens and those on its own tokens of the same bytes: at the end of the new
    token, and wherever both tokenizations have a boundary after it. Nothing else is trained; special tokens and byte
    tokens are left alone. Output rows of an untied model learn by cross-entropy on all tokens of the snippets.

    Unlike the released code: a snippet serves every wanted token in it; whatever the target tokenizer makes of the
    text is read as such, and not one new token among old ones; positions are paired by bytes.

    Memory: the student in its own dtype, the activations of one batch, and 16 bytes a number of every trained row. The
    state is saved every 200 steps and when the stage is asked to stop; a resumed run ends as an uninterrupted one.
    """

    def __init__(self, options: TokenDistillOptions, transplant: Transplant) -> None:
        self.options = options
        self._transplant = transplant
        if transplant.texts is None:
            raise StageError(
                "refine: token_distill looks for the new tokens in data.train; add it, or remove the refiner"
            )
        _check_student(transplant.student, options)

    def refine(self, rows: Mapping[Role, Tensor], new: Tensor) -> dict[str, float]:
        """See ``Refiner``; returns how many tokens were trained on how many snippets, how many new ones were left as
        they were, and on snippets that were not trained on the mean squared distance before and after.

        Raises:
            StageError: a text cannot be encoded, the model's head is not understood, or training diverges.
            StageInterrupted: the stage was asked to stop; training goes on from here the next time.
        """
        options, transplant = self.options, self._transplant
        new_text = new.numpy() & np.isin(transplant.target.kinds, (TokenKind.TEXT, TokenKind.ADDED))
        transplant.progress("token_distill: looking for the new tokens in the training text")
        counts = count_tokens(transplant)
        wanted = most_frequent(counts, new_text, options.max_tokens, transplant.row_keys)
        snippets = find_snippets(transplant, wanted, counts, snippets=options.snippets, tokens=options.snippet_tokens)
        numbers = {
            "tokens": float(len(snippets.tokens)),
            "tokens_left_as_they_were": float(int(new.sum()) - len(snippets.tokens)),
            "snippets": float(len(snippets.training)),
        }
        if not len(snippets.tokens):
            transplant.progress("warning: token_distill found no new token in the training text; all rows stay")
            return numbers
        transplant.progress(
            f"token_distill: training the rows of {len(snippets.tokens):,} of {int(new.sum()):,} new tokens on "
            f"{len(snippets.training):,} snippets"
        )
        roles = ("input", "output") if options.output == "cross_entropy" and "output" in rows else ("input",)
        tokens = torch.from_numpy(snippets.tokens)
        body = SharedBody(
            transplant.student,
            transplant.source.vocab_size,
            layer=options.layer,
            rows={role: rows[role] for role in roles},
            tokens=tokens,
            device=pick_device(0),
        )
        if snippets.held_out:
            numbers["held_out_distance_before"] = _distance(body, snippets.held_out, options.batch_snippets)
        _Training(body, snippets.training, options, transplant).run()
        for role, trained in body.trained.items():
            rows[role][tokens] = trained.detach().to(rows[role].device, rows[role].dtype)
        if snippets.held_out:
            numbers["held_out_distance"] = _distance(body, snippets.held_out, options.batch_snippets)
        return numbers


@dataclass
class _Training:
    """Optimiser steps over the snippets, from the newest checkpoint or from the start."""

    body: SharedBody
    snippets: Sequence[Window]
    options: TokenDistillOptions
    transplant: Transplant

    def __post_init__(self) -> None:
        self._parameters = list(self.body.trained.values())
        # One optimiser for all rows, whose averages go on where a batch lacks a token: rare tokens move further by it.
        self._optimiser = torch.optim.AdamW(self._parameters, lr=self.options.learning_rate, weight_decay=0.0)
        self._steps_in_epoch = math.ceil(len(self.snippets) / self.options.batch_snippets)
        self._checkpoints = self.transplant.work / "token_distill" / self._digest()

    def run(self) -> None:
        """Train to the last step.

        Raises:
            StageError: the loss is not finite.
            StageInterrupted: asked to stop; a checkpoint is saved.
        """
        first = self._resume()
        steps = self.options.epochs * self._steps_in_epoch
        started = shown = time.monotonic()
        for step in range(first, steps):
            if self.transplant.should_stop():
                self._save(step)
                raise StageInterrupted(f"stopped after step {step:,} of {steps:,} of token_distill")
            distance = self._take(step)
            if (step + 1) % _CHECKPOINT_STEPS == 0:
                self._save(step + 1)
            now = time.monotonic()
            if now - shown > _PROGRESS_SECONDS or step + 1 == steps:
                left = (now - started) / (step + 1 - first) * (steps - step - 1)
                self.transplant.progress(
                    f"token_distill: step {step + 1:,}/{steps:,}  squared distance {distance:.4g}  ETA {left:.0f} s"
                )
                shown = now

    def _take(self, step: int) -> float:
        """One optimiser step; returns the mean squared distance before it."""
        batch = self._batch(step)
        total, count, hidden = self.body.compare(batch)
        loss = distance = total / count.clamp(min=1)
        if "output" in self.body.trained:
            loss = loss + self.body.cross_entropy(batch.student, hidden)
        if not loss.isfinite():
            raise StageError(f"refine: token_distill diverged at step {step + 1:,}; lower its learning_rate")
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return float(distance.detach())

    def _batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self._steps_in_epoch)
        order = generator(self.transplant.seed, epoch).permutation(len(self.snippets))
        size = self.options.batch_snippets
        return _batch([self.snippets[index] for index in order[place * size : (place + 1) * size]], self.body)

    def _save(self, step: int) -> None:
        directory = checkpoint.begin(self._checkpoints, step)
        state = {"rows": [p.detach() for p in self._parameters], "optimiser": self._optimiser.state_dict()}
        torch.save(state, directory / "training.pt")
        checkpoint.complete(directory, {"step": step})
        checkpoint.prune(self._checkpoints, step, keep=1)

    def _resume(self) -> int:
        found = checkpoint.latest(self._checkpoints, self.transplant.progress)
        if found is None:
            return 0
        directory, state = found
        saved = torch.load(directory / "training.pt", weights_only=True, map_location=self._parameters[0].device)
        with torch.no_grad():
            for parameter, value in zip(self._parameters, saved["rows"], strict=True):
                parameter.copy_(value)
        self._optimiser.load_state_dict(saved["optimiser"])
        self.transplant.progress(f"token_distill: resuming after step {state['step']:,}")
        return state["step"]

    def _digest(self) -> str:
        """Of all that training begins with, so that no other run's checkpoint is taken for this one's."""
        digest = hashlib.sha256(self.options.model_dump_json().encode())
        for parameter in self._parameters:
            digest.update(parameter.detach().cpu().numpy().tobytes())
        for window in self.snippets:
            digest.update(window.student.ids.tobytes())
        return digest.hexdigest()[:16]


@torch.no_grad()
def _distance(body: SharedBody, windows: Sequence[Window], size: int) -> float:
    """The mean squared distance between the two readings of some windows."""
    pairs = [body.compare(_batch(windows[start : start + size], body))[:2] for start in range(0, len(windows), size)]
    totals, counts = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return float(totals.double().sum() / counts.sum().clamp(min=1))


def _batch(windows: Sequence[Window], body: SharedBody) -> Batch:
    batch = collate(windows)
    device = body.trained["input"].device
    return Batch(to_device(batch.student, device), to_device(batch.teacher, device), batch.num_chunks)


def _check_student(student: Path, options: TokenDistillOptions) -> None:
    """Refuse what the student cannot do.

    Raises:
        StageError: it reads ids by more than its input matrix, has no such layer, or reads no such long snippets.
    """
    try:
        tensors = read_vocab_tensors(student).tensors
    except VocabTensorError as error:
        raise StageError(f"refine: token_distill: {error}") from None
    others = [tensor.name for tensor in tensors if tensor.role in ("per_layer_input", "other")]
    if others:
        raise StageError(
            f"refine: token_distill trains input and output rows alone, but the student also has {', '.join(others)}; "
            "remove it"
        )
    config = AutoConfig.from_pretrained(student).get_text_config()
    states = config.num_hidden_layers + 1
    if not -states < options.layer < states:
        raise StageError(
            f"refine: token_distill.layer is {options.layer}; the student has the layers 1 to {states - 1}, or "
            f"{1 - states} to -1 counted from the last"
        )
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and options.snippet_tokens > context:
        raise StageError(
            f"refine: token_distill.snippet_tokens is {options.snippet_tokens:,}, but the student reads at most "
            f"{context:,} tokens; lower it"
        )
