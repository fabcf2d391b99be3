"""Tokenizers and documents for tests of the ``tokenizer`` stage, and the stage run on them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece
from stages.stage import StageContext
from stages.tokenizer import TokenizerStage

SPECIALS = ("<|end|>", "<|start|>")
TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
ENGLISH = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
    "In the 1775th year there were 2024 of them, 12,345 in all, and 3.14159 besides. "
)
FRENCH = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité, en 1948 comme en 2024. "
)
HINDI = "सभी मनुष्यों को गौरव और अधिकारों के विषय में जन्मजात स्वतन्त्रता प्राप्त है। "
HOSTILE = (
    "",
    "\x00\x01",
    "  two  spaces\n\n \n\ttab\r\n",
    "it was the age of theft; it was the ageing of the\nage",
    "007 1234567 1,5 a1b22",
    "🙂 e\u0301 ▁ Ġ 東京 ﬁ",
    "<|end|> is text",
)


class Made(NamedTuple):
    """What the stage wrote and told."""

    directory: Path
    report: dict[str, Any]
    told: str


def byte_level(directory: Path, *, digits: str = "free", size: int = 420) -> Path:
    """A byte-level BPE tokenizer trained on the English text, with two special tokens and a chat template."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits == "single":
        steps = [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    # every number of two digits, so that only the pre-tokenizer can keep digits apart
    numbers = " ".join(f"x{number:02}" for number in range(100))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([ENGLISH, numbers], trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], bos_token=SPECIALS[1], pad_token=SPECIALS[0]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return directory


def sentencepiece(directory: Path) -> Path:
    """A SentencePiece BPE tokenizer with byte fallback, trained on the English text."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([ENGLISH] * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(written.getvalue())
    tokenizer_from_sentencepiece(directory / "tokenizer.model").save_pretrained(directory)
    return directory


def documents(directory: Path, texts: Sequence[str | list[dict[str, str]]]) -> Path:
    """A documents artifact; a text that is a list is a conversation."""
    directory.mkdir()
    contents = [{"text": text} if isinstance(text, str) else {"messages": text} for text in texts]
    lines = [
        json.dumps({"id": str(number), "domain": "a", "weight": 1.0} | each) for number, each in enumerate(contents)
    ]
    (directory / "documents.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (directory / "manifest.json").write_text(json.dumps({"bytes": 1000}), encoding="utf-8")
    return directory


def make(
    directory: Path,
    student: Path,
    data: Path,
    options: Any,
    *,
    target: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Made:
    """Run the stage and verify what it wrote as the runner would."""
    directory.mkdir()
    inputs = {"student": {"student": student}, "documents": {"train": data}}
    if target is not None:
        inputs["tokenizer"] = {"target": target}
    told: list[str] = []
    config = TokenizerStage.Config(make=options)
    TokenizerStage().run(
        StageContext(
            config=config, inputs=inputs, work=directory, out=directory, progress=told.append, should_stop=stop
        )
    )
    TokenizerStage.output.verify(directory)
    report = json.loads((directory / "tokenizer_report.json").read_text(encoding="utf-8"))
    return Made(directory, report, "\n".join(told))
