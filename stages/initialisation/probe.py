"""How well a model predicts a few short texts, and which of its new rows stand out on them.

Every passage is scored on its own, after what begins a text, so two models with different tokenizers predict the same
bytes from the same bytes and their bits per byte compare.

Legend: T tokens of a window, N scored tokens, V ids of the tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.byte_view import ByteView
from alignment.vocab_report import spelling

PASSAGES = (
    "The ferry left the quay at a quarter past seven, ten minutes late, with forty passengers, two bicycles and a dog. "
    "Nobody on board was in a hurry. The captain had made the crossing every working day for nineteen years, and she "
    "still looked up when the lighthouse came into view behind the headland.",
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it presses less. Cooks "
    "who move to the mountains learn to give their beans more time; chemists write the pressure by the temperature.",
    '"Have you read the letter?" she asked.\n"Twice," he said, "and I don\'t believe a word of it. Who\'d sell a house '
    'like that for so little?"\n"Somebody who wants to leave town before Friday."',
    "def moving_average(values: list[float], width: int) -> list[float]:\n"
    '    """The mean of every `width` neighbouring values."""\n'
    "    if not 0 < width <= len(values):\n"
    '        raise ValueError(f"width {width} does not fit {len(values)} values")\n'
    "    sums = [sum(values[i : i + width]) for i in range(len(values) - width + 1)]\n"
    "    return [total / width for total in sums]\n",
    '{"id": 4071, "name": "night train", "stops": [{"at": "21:48", "platform": 3}, {"at": "06:12", "platform": 11}], '
    '"price": 89.50, "currency": "EUR", "sleeper": true, "notes": null}',
    "In 2019 the town had 12,408 inhabitants, 3.7 % more than in 1998. 17 + 25 = 42; 1/8 = 0.125; 2^10 = 1024. Call "
    "+44 20 7946 0958 before 2024-03-31, or write to room 516.",
    "Le marché ouvre à huit heures, mais les pêcheurs arrivent bien avant l'aube. Déjà, ça sent le café et le pain "
    "chaud. Die Brücke über den Fluß wurde im Frühjahr gesperrt; seitdem fahren alle über die Umgehungsstraße. El niño "
    "preguntó cuánto faltaba para llegar, y su abuela señaló la última montaña.",
    "Поезд пришёл вовремя, но на платформе уже никого не было. Η θάλασσα ήταν ήρεμη και ο ουρανός καθαρός.",
    "春天来了，河边的柳树又绿了。孩子们放学以后在那里放风筝。 電車が遅れたので、駅の前の店で温かいお茶を飲んだ。 "
    "오늘은 비가 와서 집에서 책을 읽었다.",
    "وصل القطار في الساعة الثامنة صباحًا وكان الجو باردًا. आज बाज़ार में बहुत भीड़ थी, इसलिए हम जल्दी घर लौट आए।",
)
"""Our own writing: prose, speech, code, data, numbers and a few other languages and scripts."""

PASSAGE_CHARACTERS = 600
WINDOW_TOKENS = 1024
_POSITIONS_AT_ONCE = 64
_OUTLIER_DEVIATIONS = 6.0
_LISTED = 20


def read_passages(documents: Path) -> list[str]:
    """The beginnings of the texts of a ``documents.jsonl``; conversations are left out."""
    with documents.open(encoding="utf-8") as file:
        texts = (json.loads(line).get("text") for line in file)
        return [text[:PASSAGE_CHARACTERS] for text in texts if text]


@dataclass(frozen=True)
class Scores:
    """What a model makes of some passages.

    Attributes:
        ids: int64 [N], the tokens that it was to predict.
        nats: float32 [N], the loss of each, in nats.
        bytes: that these tokens stand for.
        unspelled_bytes: of the passages, those that no token spells: unknown to the tokenizer, or rewritten by it.
        peaks: float32 [V], for each id the largest logit that it had at any position, above the mean logit of
            the reference ids there.
    """

    ids: Tensor
    nats: Tensor
    bytes: int
    unspelled_bytes: int
    peaks: Tensor


@torch.inference_mode()
def score_passages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[str], reference: Tensor
) -> Scores:
    """Score passages, each after the tokens that begin a text.

    Those are what the tokenizer itself puts before a text, else its begin token, else its end token; without any, the
    first token of a window is not scored. Probabilities are over all logits, those of padding rows included: that is
    what a user of the model gets. Logits of one window are held at a time.

    Args:
        reference: bool [V], ids whose mean logit the peaks are measured from.
    """
    view = ByteView.from_tokenizer(tokenizer)
    prefix = _prefix(view, tokenizer)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or WINDOW_TOKENS
    window_tokens = min(WINDOW_TOKENS, positions) - len(prefix)
    peaks = torch.full((view.vocab_size,), -math.inf)
    ids, nats = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    scored_bytes = unspelled_bytes = 0
    for passage in passages:
        encoding = view.encode(passage, exact=False)
        ends = [0, *encoding.byte_ends.tolist()]
        scored_bytes += encoding.text_bytes
        unspelled_bytes += encoding.text_bytes - int(np.diff(ends)[encoding.verbatim].sum())
        for start in range(0, len(encoding.ids), window_tokens):
            window = torch.from_numpy(encoding.ids[start : start + window_tokens]).long()
            if not prefix:
                scored_bytes -= ends[start + 1] - ends[start]
            labels = window if prefix else window[1:]
            if not len(labels):
                continue
            sequence = torch.cat([torch.tensor(prefix, dtype=torch.int64), window])
            logits = model(sequence[None, :-1]).logits[0, max(0, len(prefix) - 1) :]
            ids.append(labels)
            nats += list(_losses(logits, labels))
            peaks = torch.maximum(peaks, _peaks(logits, reference))
    return Scores(torch.cat(ids), torch.cat(nats), scored_bytes, unspelled_bytes, peaks)


def report(scores: Scores, new_rows: Tensor | None) -> dict[str, Any]:
    """Bits per byte, and the mean loss in nats of tokens with copied and of tokens with new rows (bool [V])."""
    summary: dict[str, Any] = {
        "bytes": scores.bytes,
        "unspelled_bytes": scores.unspelled_bytes,
        "tokens": len(scores.ids),
        "bits_per_byte": float(scores.nats.double().sum()) / math.log(2) / scores.bytes,
    }
    if new_rows is not None:
        for name, rows in (("copied", ~new_rows), ("new", new_rows)):
            nats = scores.nats[rows[scores.ids]].double()
            summary[name] = {"tokens": len(nats), "nats_per_token": float(nats.mean()) if len(nats) else None}
    return summary


def logit_outliers(scores: Scores, new_rows: Tensor, view: ByteView) -> dict[str, Any]:
    """New rows (bool [V]) that were somewhere more probable than any copied row has reason to be.

    The limit is six standard deviations above the mean of the copied rows' peaks.
    """
    copied = scores.peaks[~new_rows]
    limit = float(copied.mean() + _OUTLIER_DEVIATIONS * copied.std())
    return {"limit": limit, **_listing(scores.peaks, new_rows & (scores.peaks > limit), view)}


def norm_outliers(matrix: Tensor, new_rows: Tensor, view: ByteView) -> dict[str, Any]:
    """New rows (bool [V]) of a matrix [>= V, D] that are longer (or not finite) or shorter than every copied one."""
    rows = matrix[: len(new_rows)]
    norms = torch.cat([block.float().norm(dim=1) for block in rows.detach().split(1 << 14)])
    smallest, largest = norms[~new_rows].min(), norms[~new_rows].max()
    return {
        "smallest": float(smallest),
        "largest": float(largest),
        "longer": _listing(norms, new_rows & ~(norms <= largest), view),
        "shorter": _listing(norms, new_rows & (norms < smallest), view, descending=False),
    }


def _prefix(view: ByteView, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if view.prefix_ids:
        return view.prefix_ids
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if begin is None else [begin]


def _losses(logits: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """float32 [N] in parts: the loss of each label in nats."""
    for block, wanted in zip(logits.split(_POSITIONS_AT_ONCE), labels.split(_POSITIONS_AT_ONCE), strict=True):
        yield torch.nn.functional.cross_entropy(block.float(), wanted, reduction="none")


def _peaks(logits: Tensor, reference: Tensor) -> Tensor:
    """float32 [V]: for each id the largest of its logits, each above the mean logit of ``reference`` (bool [V])."""
    blocks = [block[:, : len(reference)].float() for block in logits.split(_POSITIONS_AT_ONCE)]
    return torch.stack([(block - block[:, reference].mean(dim=1, keepdim=True)).amax(dim=0) for block in blocks]).amax(
        0
    )


def _listing(values: Tensor, outliers: Tensor, view: ByteView, *, descending: bool = True) -> dict[str, Any]:
    """How many outliers (bool [V]) there are, and those with the most extreme values [V]."""
    found = outliers.nonzero().squeeze(1)
    order = values[found].nan_to_num(nan=math.inf).argsort(descending=descending, stable=True)
    listed = found[order][:_LISTED]
    rows = [
        {"id": token, "token": spelling(view, token), "value": value if math.isfinite(value) else None}
        for token, value in zip(listed.tolist(), values[listed].tolist(), strict=True)
    ]
    return {"count": len(found), "rows": rows}
