"""Teachers in other types than the student's: what they weigh, what they say, and which are refused where."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from stages.distill import DistillConfig
from stages.output_head import OutputHead
from stages.stage import StageContext, StageError
from stages.training.backends.zero import Zero
from stages.training.config import TrainingConfig
from stages.training.memory.memory_facts import teacher_memory
from stages.training.models import Reads, ScoringModel
from stages.training.teachers.teacher_loading import check_teacher_dtype, load_teacher

CPU = torch.device("cpu")
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
TEXT = (Path(__file__).parents[2] / "data" / "declaration.jsonl").read_text(encoding="utf-8")[:1500]


def _label_logp(directory, dtype) -> torch.Tensor:
    from transformers import AutoTokenizer

    model = load_teacher(directory, dtype, CPU).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(directory).encode(TEXT)])
    with torch.no_grad():
        logp = model(ids).logits.float().log_softmax(-1)
    return logp[0, :-1].gather(1, ids[0, 1:, None])


@pytest.mark.parametrize(("dtype", "loaded"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_float_teacher_is_loaded_as_asked(tiny_model_dir, tiny_tokenizer_dirs, dtype, loaded):
    directory = tiny_model_dir(tiny_tokenizer_dirs[0])
    model = load_teacher(directory, dtype, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {loaded}
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert teacher_memory(directory, dtype, 1, 8).parameter_bytes == held


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_without_bitsandbytes_a_quantised_teacher_is_refused_at_once(dtype):
    with pytest.raises(StageError, match=rf"teacher_dtype: {dtype} needs bitsandbytes, which is not installed: `pip"):
        check_teacher_dtype(dtype)


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.demo
@pytest.mark.parametrize(("dtype", "tolerance", "weighs"), [("int8", 0.2, 1e-3), ("nf4", 0.4, 0.03)])
def test_a_quantised_teacher_says_nearly_the_same(smollm2_dir, dtype, tolerance, weighs):
    model = load_teacher(smollm2_dir, dtype, CPU)
    head = model.get_output_embeddings()
    assert head.weight.dtype == torch.bfloat16
    OutputHead.of(model, len(head.weight))
    ScoringModel(model, len(head.weight), Reads(label=True)).eval().check()
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert teacher_memory(smollm2_dir, dtype, 1, 8).parameter_bytes == pytest.approx(held, rel=weighs)
    exact, rounded = (_label_logp(smollm2_dir, each).mean() for each in ("fp32", dtype))
    # Of 2.8 nats a token; so small a model feels 4 bits.
    assert 1e-4 < abs(rounded - exact) < tolerance


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_quantised_teacher_is_not_split(tmp_path, tiny_model_dir, tiny_tokenizer_dirs, dtype):
    student = {"student": {"s": tiny_model_dir(tiny_tokenizer_dirs[0])}}
    ctx = StageContext(config=None, inputs=student, work=tmp_path, out=tmp_path, resources={"zero": {"teacher": 3}})
    message = f"teacher_dtype: {dtype} cannot be split over processes: remove zero.teacher"
    with pytest.raises(StageError, match=message):
        Zero.of(ctx, TrainingConfig(steps=1), 1, 1, dtype)


def test_a_type_of_no_teacher_is_refused():
    with pytest.raises(ValueError, match="teacher_dtype has no effect: none of the losses needs a teacher"):
        DistillConfig(losses=["cross_entropy"], steps=1, teacher_dtype="fp32")
    assert DistillConfig(losses=["alm"], steps=1, teacher_dtype="nf4").teacher_dtype == "nf4"
