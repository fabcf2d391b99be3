"""The hypernet method of init: which rows it makes, for whom, and for whom it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from init_world import make_task, make_transplant
from safetensors.torch import load_file
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.initializers.pieces import piece_rows
from alignment.vocab import align_vocabularies
from stages.hypernetwork import network
from stages.hypernetwork.priors import unigram_log_probabilities
from stages.hypernetwork.sampling import SampledVocabulary
from stages.hypernetwork.table import StudentTable
from stages.initialisation.chain import make_rows
from stages.initialisation.methods.hypernet import Hypernet
from stages.initialisation.task import RowTask, Transplant
from stages.initializers.hypernet import HypernetOptions
from stages.stage import StageError

OPTIONS = HypernetOptions(method="hypernet")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_hypernet(student: Path, directory: Path, *, priors: bool = False, trained: bool = True) -> Path:
    """A network for the student of a directory, with output weights drawn at random unless it is fresh."""
    view = ByteView.from_tokenizer(student)
    table = StudentTable.of(student, view.vocab_size)
    shape = network.Shape(table.layout.columns, 16, layers=1, heads=2, expansion=2, max_pieces=8, priors=priors)
    made = network.Hypernetwork.for_table(shape, table.rows(), seed=3)
    if trained:
        torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(5))
    directory.mkdir()
    network.save(made, directory, {"student": table.layout.facts(view.fingerprint)})
    return directory


def transplant_to(student: Path, target: Path, hypernet: Path) -> Transplant:
    views = ByteView.from_tokenizer(student), ByteView.from_tokenizer(target)
    made = make_transplant(views=views, directory=student, hypernet=hypernet)
    return replace(made, tokenizer=target)


@pytest.fixture(params=["tied", "untied"])
def world(
    request: pytest.FixtureRequest,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
) -> tuple[Path, Transplant]:
    """A student, and its transplant to a larger vocabulary with a hypernetwork."""
    student = tiny_model_dir(tiny_tokenizer_dirs[0], tied=request.param == "tied")
    return student, transplant_to(student, tiny_tokenizer_dirs[1], write_hypernet(student, tmp_path / "hypernet"))


def task_of(student: Path, transplant: Transplant, name: str = EMBEDDING) -> RowTask:
    rows = load_file(student / "model.safetensors")[name][: transplant.source.vocab_size]
    return make_task(transplant, role="output" if name == HEAD else "input", rows=rows)


def fitted(task: RowTask, options: HypernetOptions = OPTIONS) -> Hypernet:
    method = Hypernet(options, task)
    assert method.estimate(10).memory_bytes > 0
    method.fit()
    return method


def test_an_untrained_network_gives_piece_means(world: tuple[Path, Transplant], tmp_path: Path) -> None:
    student, transplant = world
    transplant = replace(transplant, hypernet=write_hypernet(student, tmp_path / "fresh", trained=False))
    for name in load_file(student / "model.safetensors").keys() & {EMBEDDING, HEAD}:
        task = task_of(student, transplant, name)
        ids = torch.arange(transplant.target.vocab_size)
        block = fitted(task).rows(ids)
        assert block.made.tolist() == (transplant.alignment.piece_counts > 0).tolist()
        expected = piece_rows(transplant.alignment, ids).combine(task.rows)
        torch.testing.assert_close(block.rows[block.made], expected[block.made])


def test_rows_do_not_depend_on_their_block(world: tuple[Path, Transplant]) -> None:
    task = task_of(*world)
    method, in_threes = fitted(task), fitted(task, HypernetOptions(method="hypernet", batch_tokens=3))
    ids = torch.arange(task.alignment.target_size)
    whole = method.rows(ids).rows
    assert whole.dtype == torch.float32
    assert not torch.allclose(whole[300:], piece_rows(task.alignment, ids[300:]).combine(task.rows), atol=1e-2)
    torch.testing.assert_close(in_threes.rows(ids).rows, whole, rtol=1e-5, atol=1e-6)
    order = ids.flip(0)
    torch.testing.assert_close(method.rows(order).rows, whole[order], rtol=1e-5, atol=1e-6)


def test_input_and_output_are_columns_of_one_prediction(
    tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    student = tiny_model_dir(tiny_tokenizer_dirs[0], tied=False)
    hypernet = write_hypernet(student, tmp_path / "hypernet")
    transplant = transplant_to(student, tiny_tokenizer_dirs[1], hypernet)
    stored = load_file(student / "model.safetensors")
    size = transplant.source.vocab_size
    table = torch.cat([stored[EMBEDDING][:size], stored[HEAD][:size]], dim=1)
    token = int(transplant.alignment.piece_counts.argmax())
    pieces = torch.full((1, 8), -1)
    found = torch.from_numpy(transplant.alignment.pieces_of(token)).long()
    pieces[0, : len(found)] = found
    expected = network.load(hypernet)(table, pieces)
    for name, columns in ((EMBEDDING, slice(0, 32)), (HEAD, slice(32, 64))):
        block = fitted(task_of(student, transplant, name)).rows(torch.tensor([token]))
        torch.testing.assert_close(block.rows, expected[:, columns])


def test_the_bias_is_predicted_and_other_tensors_are_not(
    tiny_tokenizer_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    small, large = tiny_tokenizer_dirs
    tokenizer = PreTrainedTokenizerFast.from_pretrained(small)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **sizes))
    torch.nn.init.normal_(model.lm_head.bias, generator=torch.Generator().manual_seed(1))
    student = tmp_path / "student"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    transplant = transplant_to(student, large, write_hypernet(student, tmp_path / "hypernet", trained=False))
    ids = torch.arange(len(tokenizer) - 20, transplant.target.vocab_size)
    biases = model.lm_head.bias.detach()[:, None]
    task = make_task(transplant, role="output", rows=model.lm_head.weight.detach())
    made = make_rows(task, {"hypernet": fitted(task)}, followers={"bias": biases})
    # An untrained network predicts the mean of a token's pieces, in every column of the table.
    predicted = piece_rows(transplant.alignment, ids).combine(biases)
    torch.testing.assert_close(made.followers["bias"][ids], predicted)
    assert predicted.std() > 0.1
    assert not fitted(make_task(transplant, role="other", rows=biases)).rows(ids).made.any()


def test_a_unigram_target_brings_its_scores(world: tuple[Path, Transplant], tmp_path: Path) -> None:
    student, transplant = world
    tokens = [*(bytes([byte]) for byte in range(256)), b"the", b" quick", b"brown fox"]
    scores = torch.linspace(-12, -2, len(tokens)).numpy()
    target = tmp_path / "unigram"
    backend = SampledVocabulary(tokens, scores).tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(target)
    expected = [*scores.tolist(), 0.0]
    assert unigram_log_probabilities(target, len(tokens) + 1).tolist() == pytest.approx(expected, rel=1e-5)
    assert not unigram_log_probabilities(student, 50).any()

    hypernet = write_hypernet(student, tmp_path / "with-priors", priors=True)
    view = ByteView.from_tokenizer(target)
    to_unigram = replace(
        transplant_to(student, target, hypernet), alignment=align_vocabularies(transplant.source, view)
    )
    ids = torch.tensor([256, 257, 258])
    rows = fitted(task_of(student, to_unigram)).rows(ids).rows
    blind = fitted(task_of(student, replace(to_unigram, tokenizer=student))).rows(ids).rows
    assert not torch.allclose(rows, blind, atol=1e-3)


def test_a_network_for_another_student_is_refused(
    world: tuple[Path, Transplant], tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    student, transplant = world
    other = tiny_model_dir(tiny_tokenizer_dirs[1])
    elsewhere = transplant_to(other, tiny_tokenizer_dirs[0], transplant.hypernet)
    with pytest.raises(StageError, match=r"another student \(tokenizer .*under `needs`"):
        Hypernet(OPTIONS, task_of(other, elsewhere))
    with pytest.raises(StageError, match="name a hypernet stage under `needs`"):
        Hypernet(OPTIONS, task_of(student, replace(transplant, hypernet=None)))
    manifest = json.loads((transplant.hypernet / "hypernet.json").read_text())
    manifest["student"]["width"] = 48
    (transplant.hypernet / "hypernet.json").write_text(json.dumps(manifest))
    with pytest.raises(StageError, match="width 48, not 32"):
        Hypernet(OPTIONS, task_of(student, transplant))
