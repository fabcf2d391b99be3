"""What init does to rows after the methods made them, and which tokens its methods may work through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from init_stage import EMBEDDING, HEAD, init_context, manifest_of
from safetensors.torch import load_file
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

from alignment.byte_view import ByteView
from alignment.vocab import VocabAlignment
from stages.init import Init
from stages.initialisation.donor import Donor
from stages.initialisation.plan import named
from stages.initialisation.tasks import load_transplant, make_task
from stages.initialisation.tensors import read_rows, vocabulary_tensors
from stages.initializers.steps import AnchorOptions

pytestmark = pytest.mark.usefixtures("warm_checks")


def test_new_rows_are_scaled_biases_and_padding_are_zero_and_what_the_user_names_comes_last(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    tokenizer = AutoTokenizer.from_pretrained(small)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **sizes))
    model.lm_head.bias.data = 1 + torch.arange(len(tokenizer)) / 100
    model.save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    ctx = init_context(
        tmp_path / "phi", large, tmp_path / "init", post={"scale": 2.0}, bias="zero", override={"e": ["a", "b"]},
        pad_to_multiple_of=64, padding="zero",
    )  # fmt: skip
    Init().run(ctx)
    before, after = load_file(tmp_path / "phi" / "model.safetensors"), load_file(ctx.out / "model.safetensors")
    alignment = VocabAlignment.load(tmp_path / "init-align" / "alignment.npz")
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "ab"}
    target = AutoTokenizer.from_pretrained(large)
    overridden = target.convert_tokens_to_ids("e")
    for token in range(alignment.target_size):
        pieces = [ids["a"], ids["b"]] if token == overridden else alignment.pieces_of(token).tolist()
        copied = len(pieces) == 1
        factor = 1.0 if copied or token == overridden else 2.0
        for name in (EMBEDDING, HEAD):
            expected = factor * before[name][pieces].mean(dim=0)
            torch.testing.assert_close(after[name][token], expected, rtol=1e-5, atol=1e-7)
        bias = before["lm_head.bias"][pieces].mean() if copied or token == overridden else torch.tensor(0.0)
        torch.testing.assert_close(after["lm_head.bias"][token], bias, rtol=1e-5, atol=1e-7)
    for name in (EMBEDDING, HEAD):
        assert len(after[name]) > alignment.target_size
        assert not after[name][alignment.target_size :].any()


def test_refiners_change_the_rows_that_are_written_and_the_check_predicts_the_given_text(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small, tied=False)
    refine = ({"method": "norm_calibration", "target": "global"},)
    ctx = init_context(student, large, tmp_path / "init", refine=refine, verify={"text": "eval"})
    text = "Ein Häuschen steht im Wald.\n"
    ctx.inputs["eval"] = {"sources/eval": tmp_path / "eval"}
    (tmp_path / "eval").mkdir()
    record = {"id": "d/0", "domain": "d", "weight": 1.0, "text": text}
    (tmp_path / "eval" / "documents.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    Init().run(ctx)
    alignment = VocabAlignment.load(tmp_path / "init-align" / "alignment.npz")
    rows = load_file(ctx.out / "model.safetensors")[EMBEDDING][: alignment.target_size]
    lengths = rows.norm(dim=1)[~torch.from_numpy(alignment.copied)]
    torch.testing.assert_close(lengths, lengths[0].expand_as(lengths), rtol=1e-5, atol=0)
    (refined,) = manifest_of(ctx)["refined"]
    assert manifest_of(ctx)["verification"]["probe"]["bytes"] == len(text.encode())
    assert refined["method"] == "norm_calibration"
    assert refined["input.median_norm"] == pytest.approx(float(lengths[0]), rel=1e-5)


@pytest.fixture
def world(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> Callable[[AnchorOptions], set[str]]:
    """Options -> the anchors of a pair of tokenizers that share a special token, and a word added to both."""
    directories = []
    for size, directory in zip(("small", "large"), tiny_tokenizer_dirs, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tokenizer.add_tokens(["quokka"])
        directories.append(tmp_path / size)
        tokenizer.save_pretrained(directories[-1])
    student = tiny_model_dir(directories[0])
    transplant = load_transplant(init_context(student, directories[1], tmp_path / "init"))
    target = AutoTokenizer.from_pretrained(directories[1])
    tensor = named(vocabulary_tensors(student), "input")

    def anchors(options: AnchorOptions, unused: str | None = None) -> set[str]:
        # The model's own row of the special token is zero: it pads too.
        rows = torch.randn(read_rows(tensor).shape, generator=torch.Generator().manual_seed(0))
        if unused is not None:
            rows[transplant.alignment.pieces_of(target.convert_tokens_to_ids(unused))] = 0
        task, facts = make_task(transplant, tensor, rows, None, options)
        assert len(task.anchor_target) == facts.shared - facts.dropped
        return set(target.convert_ids_to_tokens(task.anchor_target.tolist()))

    return anchors


def test_anchors_are_the_shared_tokens_that_the_options_allow(world) -> None:
    default = world(AnchorOptions())
    assert {"e", "quokka"} <= default
    assert "<|endoftext|>" not in default
    assert world(AnchorOptions(special=True)) - default == {"<|endoftext|>"}
    assert default - world(AnchorOptions(added=False)) == {"quokka"}
    assert default - world(AnchorOptions(), unused="e") == {"e"}


def test_a_donors_rows_are_found_by_the_bytes_of_the_token(
    tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    donor = tiny_model_dir(small, seed=3)
    matrix = load_file(donor / "model.safetensors")[EMBEDDING]
    rows = Donor(donor, ByteView.from_tokenizer(large), large).rows("input")
    assert rows is not None
    ours, theirs = (AutoTokenizer.from_pretrained(directory) for directory in (large, small))
    vocabulary = theirs.get_vocab()
    shared = [token for token in ours.get_vocab() if token in vocabulary and rows.usable[ours.get_vocab()[token]]]
    assert len(shared) > 250
    for token in shared:
        assert torch.equal(rows.rows[ours.get_vocab()[token]], matrix[vocabulary[token]]), token
    missing = [ours.get_vocab()[token] for token in ours.get_vocab() if token not in vocabulary]
    assert not rows.usable[missing].any()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, set()),
        ({"verify": {"text": "eval"}}, {"eval"}),
        ({"refine": ["token_distill"]}, {"documents"}),
        ({"output": "omp"}, {"donor"}),
        ({"other": "hypernet"}, {"hypernet"}),
    ],
)
def test_an_input_is_wanted_by_the_option_that_reads_it(options: dict[str, Any], wanted: set[str]) -> None:
    assert Init.Config.model_validate(options).wanted_inputs == wanted
