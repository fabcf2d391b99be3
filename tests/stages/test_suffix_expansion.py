"""The longest-suffix expansion: exact, the same with and without a cache, and loadable without our package."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.align import Align
from stages.artifacts import ModelArtifact
from stages.conversion.byte_tokenizer import write_byte_tokenizer
from stages.conversion.model import write_model
from stages.distill import Distill, DistillConfig
from stages.init import Init, InitConfig
from stages.initialisation.shards import write_model_files
from stages.initialisation.suffix_expansion.expansion import Expansion, SuffixTrie, token_bytes
from stages.initialisation.suffix_expansion.modeling_suffix_expansion import NO_BYTE, longest_suffixes
from stages.initialisation.tensors import vocabulary_tensors
from stages.model_loading import MODELING_FILE, load_causal_lm, modeling_file
from stages.stage import StageContext, StageError
from tests.stages.tiny_architectures import ROWS, save_model

TARGET = [None, *(bytes([byte]) for byte in range(32, 127))]
"""As many as ``tiny_architectures`` has rows: one special token, then the printable bytes."""
PRINTABLE = TARGET[1:]
SOURCE = [
    *PRINTABLE,
    *(first + second for first in PRINTABLE for second in PRINTABLE),
    *(b"the", b" the", b"ther", b"   ", b"     ", None, b"and", b" an", b"there"),
]
"""With all pairs: what is read at a byte always depends on the one before."""
TEXTS = (b"there the     and", b"he and her", b" then other")


def brute_force(tokens: Sequence[bytes | None], row: Sequence[int]) -> list[int]:
    """The definition, position by position."""
    found = []
    for end in range(1, len(row) + 1):
        start = max((place + 1 for place in range(end) if row[place] == NO_BYTE), default=0)
        suffixes = [bytes(row[first:end]) for first in range(start, end)]
        found.append(next((tokens.index(suffix) for suffix in suffixes if suffix in tokens), -1))
    return found


def search(tokens: Sequence[bytes | None], rows: Tensor, positions: int) -> Tensor:
    trie = SuffixTrie.from_view(ByteView.from_token_bytes(tokens))
    return longest_suffixes(rows, trie.edges, trie.tokens, positions)


ALPHABET = st.sampled_from([0, 97, 98, 255])
VOCABULARIES = st.lists(st.none() | st.lists(ALPHABET, min_size=1, max_size=6).map(bytes), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), tokens=VOCABULARIES.filter(any))
def test_the_longest_suffix_is_that_of_brute_force(data: st.DataObject, tokens: list[bytes | None]) -> None:
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    symbols = st.just(NO_BYTE) | ALPHABET
    rows = data.draw(st.lists(st.lists(symbols, min_size=T, max_size=T), min_size=B, max_size=B))
    positions = data.draw(st.integers(1, T))
    expected = torch.tensor([brute_force(tokens, row) for row in rows])[:, -positions:]
    assert torch.equal(search(tokens, torch.tensor(rows), positions), expected)


def test_worked_example() -> None:
    tokens = [b"H", b"e", b"l", b"o", b"He", b"Hell", b"llo", b"Hello"]
    found = search(tokens, torch.tensor([list(b"Hello")]), 5)[0].tolist()
    assert [tokens[token] for token in found] == [b"H", b"He", b"l", b"Hell", b"Hello"]


def ids_of(text: bytes) -> list[int]:
    return [TARGET.index(bytes([byte])) for byte in text]


def suffix_tokens(ids: Sequence[int]) -> list[int]:
    return brute_force(SOURCE, [NO_BYTE if TARGET[index] is None else TARGET[index][0] for index in ids])


def expand(
    architecture: str, directory: Path, rows: Tensor | None = None, shard_size: str = "5GB"
) -> tuple[Path, Path]:
    """A tiny model of an architecture, and the same with an expanded input embedding."""
    plain, expanded = directory / "plain", directory / "expanded"
    dtype = torch.float32 if rows is None else rows.dtype
    width = save_model(architecture, plain, dtype=dtype, shard_size=shard_size).get_input_embeddings().embedding_dim
    shutil.copytree(plain, expanded)
    if rows is None:
        rows = torch.randn(len(SOURCE), width, generator=torch.Generator().manual_seed(1))
    source, target = ByteView.from_token_bytes(SOURCE), ByteView.from_token_bytes(TARGET)
    expansion = Expansion(rows, SuffixTrie.from_view(source), torch.from_numpy(token_bytes(target)))
    tensors = expansion.tensors(vocabulary_tensors(plain)[0].name, ROWS)
    write_model_files(plain, expanded, {}, added=tensors)
    expansion.declare(expanded)
    return plain, expanded


ARCHITECTURES = ("llama-tied", "llama-untied", "gpt2", "gpt-neox", "gemma3", "gemma3n")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_reads_its_own_row_and_the_suffixs(architecture: str, tmp_path: Path) -> None:
    plain_dir, expanded_dir = expand(architecture, tmp_path, shard_size="4KB" if architecture == "gpt2" else "5GB")
    plain, expanded = AutoModelForCausalLM.from_pretrained(plain_dir), load_causal_lm(expanded_dir)
    ids = torch.tensor([[0, *ids_of(b"there"), 0, *ids_of(b"then the")]])
    own = plain.get_input_embeddings()(ids)
    scale = (own / plain.get_input_embeddings().weight[ids]).median()  # Gemma multiplies what it looks up
    (stored,) = (
        value
        for file in expanded_dir.glob("*.safetensors")
        for name, value in load_file(file).items()
        if name.endswith("expansion.weight")
    )
    tokens = torch.tensor([suffix_tokens(ids[0].tolist())])
    added = torch.where((tokens >= 0)[..., None], scale * stored[tokens], 0.0)
    torch.testing.assert_close(expanded.get_input_embeddings()(ids), own + added)
    # and that is all that changed: with an older vocabulary of zeros it is the model that it was
    torch.nn.init.zeros_(expanded.get_input_embeddings().expansion.weight)
    with torch.inference_mode():
        torch.testing.assert_close(expanded(ids).logits, plain(ids).logits)
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == (expanded.get_input_embeddings().weight is expanded.get_output_embeddings().weight)
    assert not any("expansion" in name for name, _ in expanded.get_output_embeddings().named_parameters())


def left_padded(pad: int) -> tuple[Tensor, Tensor]:
    rows = [ids_of(text) for text in TEXTS]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@pytest.mark.parametrize("pad", [0, TARGET.index(b"t")], ids=["special", "byte"])
def test_no_suffix_reaches_into_padding(pad: int, tmp_path: Path) -> None:
    model = load_causal_lm(expand("llama-tied", tmp_path)[1]).eval()
    embedding = model.get_input_embeddings()
    ids, mask = left_padded(pad)
    for text, left, right in zip(
        TEXTS, embedding.find(ids, mask), embedding.find(ids.flip(1), mask.flip(1)), strict=True
    ):
        assert left[-len(text) :].tolist() == suffix_tokens(ids_of(text))
        assert right[: len(text)].tolist() == suffix_tokens(ids_of(text)[::-1])
        assert (left[: -len(text)] == -1).all()
        assert (right[len(text) :] == -1).all()
    with torch.inference_mode():
        padded = model(ids, attention_mask=mask).logits
        for text, logits in zip(TEXTS, padded, strict=True):
            alone = model(torch.tensor([ids_of(text)])).logits[0]
            torch.testing.assert_close(logits[-len(text) :], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "gemma3"])
def test_generation_with_a_cache_reads_what_it_reads_without(architecture: str, beams: int, tmp_path: Path) -> None:
    model = load_causal_lm(expand(architecture, tmp_path)[1]).eval()
    ids, mask = left_padded(TARGET.index(b"t"))  # as ``generate`` pads, by the mask alone
    options = {"max_new_tokens": 10, "num_beams": beams, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached, uncached = (
        model.generate(
            ids, attention_mask=mask, use_cache=cache, output_logits=True, return_dict_in_generate=True, **options
        )
        for cache in (True, False)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    for ours, theirs in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for text, row in zip(TEXTS, cached.sequences[:, ids.shape[1] :], strict=True):
        alone = model.generate(torch.tensor([ids_of(text)]), **options)[0, len(text) :]
        assert torch.equal(alone, row)
    if beams == 1:
        # every step read the bytes before it: the logits are those of one pass over the finished text
        text, row = TEXTS[0], cached.sequences[0]
        with torch.inference_mode():
            whole = model(row[None, -10 - len(text) : -1]).logits[0, -10:]
        torch.testing.assert_close(torch.stack([logits[0] for logits in cached.logits]), whole, atol=1e-4, rtol=1e-4)


def test_a_cache_without_the_bytes_before_is_refused(tmp_path: Path) -> None:
    model = load_causal_lm(expand("llama-tied", tmp_path)[1]).eval()
    ids = torch.tensor([ids_of(b"there and there")])
    whole = model(ids).logits
    cache = model(ids[:, :-2], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="the cache holds 13 positions, but only 0 ids before the 2 new ones"):
        model(ids[:, -2:], past_key_values=cache)
    suffixes = model.get_input_embeddings().find(ids, None, 2)
    continued = model(ids[:, -2:], past_key_values=cache, suffixes=suffixes).logits
    torch.testing.assert_close(continued, whole[:, -2:], atol=1e-5, rtol=1e-5)
    for blind in (
        {"inputs_embeds": model.get_input_embeddings()(ids)},
        {"input_ids": ids, "prefill_chunk_size": 4},
    ):
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            model.generate(**blind, max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)


STRANGER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
directory, again, ids = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
model.save_pretrained(again)
model = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
plain = AutoModelForCausalLM.from_pretrained(again.replace("again", "plain")).eval()
assert not {"stages", "alignment"} & set(sys.modules)
with torch.inference_mode():
    logits = model(ids).logits.float()
written = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
print(json.dumps([logits.tolist(), written.tolist(), type(plain).__module__]))
"""


def test_a_stranger_loads_saves_and_runs_it_with_one_line(tmp_path: Path) -> None:
    rows = torch.randn(len(SOURCE), 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    _, expanded = expand("llama-tied", tmp_path, rows)
    ids = torch.tensor([ids_of(b"there the and"), ids_of(b"other and the")])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(expanded), str(tmp_path / "again"), json.dumps(ids.tolist())],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    logits, written, plain_class = json.loads(done.stdout.splitlines()[-1])
    model = load_causal_lm(tmp_path / "again", dtype="auto").eval()
    assert model.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(torch.tensor(logits), model(ids).logits.float())
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert written == model.generate(ids, **options).tolist()
    assert plain_class.startswith("transformers."), "loading it changed how other models are loaded"


def test_saving_a_loaded_model_changes_nothing(tmp_path: Path) -> None:
    _, expanded = expand("llama-untied", tmp_path)
    load_causal_lm(expanded).save_pretrained(tmp_path / "again")
    assert modeling_file(tmp_path / "again") is not None
    before, after = load_file(expanded / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    write_model(expanded, tmp_path / "published")
    assert (tmp_path / "published" / MODELING_FILE.name).read_bytes() == MODELING_FILE.read_bytes()


def test_code_that_is_not_ours_is_not_run(tmp_path: Path) -> None:
    plain, expanded = expand("llama-tied", tmp_path)
    assert type(load_causal_lm(plain)).__module__.startswith("transformers.")
    with (expanded / MODELING_FILE.name).open("a", encoding="utf-8") as file:
        file.write("raise SystemExit('was run')\n")
    for load in (load_causal_lm, lambda directory: write_model(directory, tmp_path / "out")):
        with pytest.raises(StageError, match=rf"{MODELING_FILE.name} beside it is missing or not the one"):
            load(expanded)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
) -> tuple[Path, Path]:
    """A student, and what the init stage made of it: a byte-level model with an expanded embedding."""
    root = tmp_path_factory.mktemp("byte-student")
    student = tiny_model_dir(tiny_tokenizer_dirs[1])
    write_byte_tokenizer(AutoTokenizer.from_pretrained(student), root / "bytes")
    return student, init(student, root / "bytes", root)


def init(student: Path, tokenizer: Path, root: Path) -> Path:
    inputs = {"student": {"sources/student": student}, "tokenizer": {"sources/tokenizer": tokenizer}}
    for name in ("align", "init", "work"):
        (root / name).mkdir()
    Align().run(
        StageContext(config=Align.Config(digits="warn"), inputs=inputs, work=root / "align", out=root / "align")
    )
    config = InitConfig(expand_input="longest_suffix", pad_to_multiple_of=64)
    inputs["alignment"] = {"align": root / "align"}
    Init().run(StageContext(config=config, inputs=inputs, work=root / "work", out=root / "init"))
    ModelArtifact.verify(root / "init")
    return root / "init"


def test_init_gives_a_byte_student_the_tokens_that_it_had(made: tuple[Path, Path]) -> None:
    student, directory = made
    old, new = AutoModelForCausalLM.from_pretrained(student), load_causal_lm(directory)
    tokenizer, bytes_tokenizer = AutoTokenizer.from_pretrained(student), AutoTokenizer.from_pretrained(directory)
    text = " the quick brown fox, naïve 東京"
    ids = bytes_tokenizer(text, return_tensors="pt").input_ids
    assert bytes(ids[0].tolist()) == text.encode()
    view = ByteView.from_tokenizer(tokenizer)
    tokens = [view.token_bytes(token) for token in range(view.vocab_size)]
    expected = torch.tensor([brute_force(tokens, ids[0].tolist())])
    rows, older = new.get_input_embeddings().weight, old.get_input_embeddings().weight
    torch.testing.assert_close(new.get_input_embeddings()(ids), rows[ids] + older[expected])
    assert new.get_output_embeddings().weight is rows
    assert rows.shape[0] == 320
    assert new.get_input_embeddings().expansion_bytes[len(bytes_tokenizer) :].eq(NO_BYTE).all()
    assert math.isfinite(json.loads((directory / "metrics.json").read_text())["bits_per_byte"])


def test_init_refuses_what_cannot_be_expanded(
    made: tuple[Path, Path], tiny_tokenizer_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    student, directory = made
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with pytest.raises(StageError, match=r"tokens of the target are not single bytes.*`tokenizer: bytes`"):
        init(student, tiny_tokenizer_dirs[0], first)
    with pytest.raises(StageError, match=r"expanded by an older vocabulary.*start from the model"):
        init(directory, tiny_tokenizer_dirs[0], second)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_changes_the_rows_and_not_the_trie(made: tuple[Path, Path], dtype: str, tmp_path: Path) -> None:
    student, directory = made
    documents = tmp_path / "documents"
    documents.mkdir()
    record = {"id": "d/0", "domain": "d", "weight": 1.0, "text": "the dog and the fox sleep on in the wood. " * 8}
    (documents / "documents.jsonl").write_text(json.dumps(record) + "\n")
    (documents / "manifest.json").write_text("{}")
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    config = DistillConfig(
        losses=[{"cross_entropy": {}}], steps=2, batch_windows=2, window_tokens=32, learning_rate=1e-2, dtype=dtype
    )
    inputs = {"student": {"init": directory}, "teacher": {"teacher": student}, "documents": {"documents": documents}}
    Distill().run(StageContext(config=config, inputs=inputs, work=work, out=out))
    ModelArtifact.verify(out)
    assert modeling_file(out) is not None
    before, after = load_file(directory / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.endswith(("expansion_edges", "expansion_tokens", "expansion_bytes")):
            assert torch.equal(after[name], value)
    name = "model.embed_tokens.expansion.weight"
    moved = (after[name].float() - before[name]).abs().amax(dim=1) > 1e-3
    view = ByteView.from_tokenizer(student)
    text = record["text"].encode()
    read = set(brute_force([view.token_bytes(token) for token in range(view.vocab_size)], list(text)))
    assert 10 < moved.sum() <= len(read)
    assert set(np.flatnonzero(moved.numpy()).tolist()) <= read
